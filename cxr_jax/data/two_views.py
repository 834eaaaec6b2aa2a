"""Two random views of a film, for contrastive pre-training (Chen et al. 2020, SimCLR, App. A).

A resized crop, a flip, a jitter of brightness and contrast, and a Gaussian blur, each view its own.
Radiographs are grey, so there is no jitter of colour. Unlike in `augment`, a flip is part of it:
nothing is labelled.
"""

import dataclasses
import math

import cv2
import numpy as np

from cxr_jax.errors import InputError

_DISTORTION = math.log(4 / 3)  # of a crop's aspect against the film's, at most, either way
_APPLIED = {"jitter": 0.8, "blur": 0.5}  # how often
_LEAST_BLUR = 0.1  # px


@dataclasses.dataclass(frozen=True)
class TwoViews:
    """Draws two views of a film.

    Attributes:
        crop: least area of a view, as a share of the film's, 0..1; the most is all of it.
        flip: mirror left and right with probability 1/2.
        brightness: factor on the grey levels, uniform in 1 +- brightness.
        contrast: factor about the view's mean grey, uniform in 1 +- contrast.
        blur: greatest standard deviation of the Gaussian, in pixels of the view; 0: none.
    """

    crop: float = 0.08
    flip: bool = True
    brightness: float = 0.8
    contrast: float = 0.8
    blur: float = 2.0

    def __post_init__(self):
        if not 0 < self.crop <= 1:
            raise InputError(f"augment.crop={self.crop}; expected a share above 0 and at most 1")
        for name in ("brightness", "contrast"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"augment.{name}={getattr(self, name)}; expected 0 to below 1")
        if self.blur and not _LEAST_BLUR <= self.blur < np.inf:
            raise InputError(f"augment.blur={self.blur}; expected 0, or at least {_LEAST_BLUR} px")

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [H, W] -> two views of that size; the numbers drawn depend on `rng` alone."""
        return self._view(image, rng), self._view(image, rng)

    def _view(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        draws = rng.random(9)
        view = _cropped(image, self.crop, draws[:4])
        if self.flip and draws[4] < 0.5:
            view = cv2.flip(view, 1)
        if draws[5] < _APPLIED["jitter"]:
            factors = 1 + (2 * draws[6:8] - 1) * (self.brightness, self.contrast)
            view = _jittered(view, *factors)
        again = rng.random()
        if self.blur and draws[8] < _APPLIED["blur"]:
            view = cv2.GaussianBlur(view, (0, 0), _LEAST_BLUR + again * (self.blur - _LEAST_BLUR))
        return view


def _cropped(image: np.ndarray, least: float, draws: np.ndarray) -> np.ndarray:
    """A random window, brought back to the size of the film; `draws`: area, aspect, place."""
    height, width = image.shape
    area = least + (1 - least) * draws[0]
    # As much as the film can hold of the greatest distortion: the area is kept.
    most = min(_DISTORTION, -math.log(area))
    stretch = math.exp(most * (2 * draws[1] - 1))
    rows = max(round(height * math.sqrt(area / stretch)), 1)
    columns = max(round(width * math.sqrt(area * stretch)), 1)
    top = int(draws[2] * (height - rows + 1))
    left = int(draws[3] * (width - columns + 1))
    window = image[top : top + rows, left : left + columns]
    return cv2.resize(window, (width, height), interpolation=cv2.INTER_LINEAR)


def _jittered(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Brightness, then contrast about the mean grey; clipped and rounded, by a table."""
    levels = np.clip(np.arange(256) * brightness, 0, 255)
    mean = levels @ np.bincount(image.reshape(-1), minlength=256) / image.size
    levels = (levels - mean) * contrast + mean
    return cv2.LUT(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8))
