"""A layer of tissue in Hounsfield units, on which outlines and lines are painted."""

import cv2
import numpy as np

from cxr_jax.data.phantoms.drawing import Pen, band, ellipse

AIR, FAT, MUSCLE, BLOOD, LIVER, BONE = -1000.0, -95.0, 45.0, 42.0, 58.0, 380.0  # HU

# Tissue is drawn in 8 bits, 6 HU a step, from -1050 HU.
_STEP_HU, _LOW_HU = 6.0, -1050.0
_HU_TABLE = np.arange(256, dtype=np.float32) * np.float32(_STEP_HU) + np.float32(_LOW_HU)


def _code(hu: float) -> float:
    return (hu - _LOW_HU) / _STEP_HU


class TissueLayer:
    """What a slice shows so far, in 8-bit codes; what is painted later covers the rest."""

    def __init__(self, pen: Pen):
        self.pen = pen
        self.codes = np.full((pen.size, pen.size), round(_code(AIR)), np.uint8)

    def fill(self, outline: np.ndarray, hu: float) -> None:
        """Fills an outline [n, 2] of the patient's frame."""
        self.pen.fill(self.codes, outline, _code(hu))

    def ellipse(self, centre, radii, *, hu: float, n: int) -> None:
        """Fills an ellipse of n corners."""
        self.fill(ellipse(np.asarray(centre), radii, n), hu)

    def band(self, path, half_width, hu: float) -> None:
        """Fills a band around a path [n, 2]."""
        self.fill(band(np.asarray(path), half_width), hu)

    def line(self, paths: np.ndarray, width: float, hu: float) -> None:
        """Strokes one path [n, 2] or many [m, n, 2]."""
        self.pen.line(self.codes, paths, width, _code(hu))

    def hu(self) -> np.ndarray:
        """float32 [size, size], in HU."""
        return cv2.LUT(self.codes, _HU_TABLE)
