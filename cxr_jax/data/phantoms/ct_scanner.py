"""The scanner of a CT slice: field of view, kernel and noise."""

import cv2
import numpy as np

from cxr_jax.data.phantoms.ct_anatomy import Thorax
from cxr_jax.data.phantoms.drawing import grain


def mask_view(hu: np.ndarray, thorax: Thorax) -> None:
    """Some scanners show a round field of view, black outside; in place."""
    if thorax.round_view:
        size = len(hu)
        layer = np.zeros((size, size), np.uint8)
        cv2.circle(layer, (size * 8, size * 8), int(size * 8.1), 1, -1, cv2.LINE_8, 4)
        hu[layer == 0] = -2000


def reconstruct(hu: np.ndarray, thorax: Thorax, rng: np.random.Generator) -> np.ndarray:
    """`hu` float32 [size, size] with the kernel's blur or sharpness, and its noise."""
    size = len(hu)
    hu = cv2.GaussianBlur(hu, (0, 0), max(thorax.kernel * size / 256, 0.3))
    if thorax.sharpen > 0.1:
        soft = cv2.GaussianBlur(hu, (0, 0), 1.6 * size / 256)
        hu = cv2.addWeighted(hu, 1 + thorax.sharpen, soft, -thorax.sharpen, 0)
    noise = grain(rng, size)
    blur = 0.45 + 0.9 * thorax.kernel * size / 256
    noise = cv2.GaussianBlur(noise, (0, 0), blur)
    noise *= np.float32(thorax.noise_hu * 2 * np.sqrt(np.pi) * blur * np.sqrt(min(size / 256, 1.4)))
    hu += noise
    return hu
