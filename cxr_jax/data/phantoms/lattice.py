"""Smooth fields of one film, laid out on a lattice of cells that does not depend on its size."""

import cv2
import numpy as np

LATTICE = 96  # cells a side


class Texture:
    """Random fields float32 [LATTICE, LATTICE] of one film: `fine` grain to `broad` changes."""

    def __init__(self, rng: np.random.Generator):
        self.fine = rng.standard_normal((LATTICE, LATTICE), np.float32)
        self.mid = resized(rng.standard_normal((44, 44), np.float32), LATTICE)
        self.patch = resized(rng.standard_normal((15, 15), np.float32), LATTICE)
        self.broad = resized(rng.standard_normal((7, 7), np.float32), LATTICE)


def resized(field: np.ndarray, size: int) -> np.ndarray:
    """A smooth field at another size: from the lattice to the film, or from few cells to it."""
    kind = cv2.INTER_CUBIC if len(field) < LATTICE else cv2.INTER_LINEAR
    return cv2.resize(field, (size, size), interpolation=kind)


def depth(layer: np.ndarray) -> np.ndarray:
    """Distance to the outside of a lattice mask in units; the film's border is no outside."""
    mask = (layer > 127).astype(np.uint8)
    return cv2.distanceTransform(mask, cv2.DIST_L2, 3) / np.float32(LATTICE)
