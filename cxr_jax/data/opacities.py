"""Synthetic opacities on a film: consolidated, whitened lungs whose outline is known.

A lung segmentation network that has only seen clear lungs takes a consolidated one for the wall
beside it. Its student (`tasks/lungs.py`) therefore sees films on which smooth opacities were drawn,
while the mask stays what it was.
"""

import dataclasses

import cv2
import numpy as np

from cxr_jax.errors import InputError

# Where the lungs of a centred film lie, if no mask says so: (x, y) of the centre and the
# half axes of an ellipse each, in shares of the width and the height.
_ROUGH = ((0.31, 0.47, 0.15, 0.33), (0.69, 0.47, 0.15, 0.33))
_COARSE = 4  # opacities are drawn at a quarter of the film's size: they are smooth
_RIGHT, _LEFT = 1, 2


@dataclasses.dataclass(frozen=True)
class Opacities:
    """Draws opacities into the lungs of a film.

    With w in 0..1 the drawn opacity, g the grey of dense tissue and f_low the film f without its
    fine structure, the film becomes f + w (max(g - f_low, 0) + max(g - f, 0)) / 2: the lung turns
    as bright as its surroundings and keeps half the contrast of the ribs and vessels in it.

    Attributes:
      chance: that a film gets any; 0 is the identity.
      most: opacities on such a film, 1 .. most, each a round patch or a part of a lobe.
      weakest: least w of an opacity at its densest.
      strongest: greatest w of an opacity at its densest; 0 is the identity.
      whole: chance that an opacity takes in a whole lung (a white-out).
    """

    chance: float = 0.0
    most: int = 4
    weakest: float = 0.4
    strongest: float = 1.0
    whole: float = 0.25

    def __post_init__(self):
        for name in ("chance", "weakest", "strongest", "whole"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"opacities.{name}={getattr(self, name)}; it must lie in 0..1")
        if self.most < 1:
            raise InputError(f"opacities.most={self.most}; it must be at least 1")

    def __call__(
        self, image: np.ndarray, lungs: np.ndarray | None, rng: np.random.Generator
    ) -> np.ndarray:
        """Draws opacities on one film; nothing is written to the arguments.

        Args:
          image: uint8 [H, W].
          lungs: uint8 [H, W], 0 outside, 1 right lung, 2 left lung. None, or a mask without a
            lung: the usual place of lungs on a film.
          rng: what is drawn depends on it and the arguments alone.

        Returns:
          uint8 [H, W]; `image` itself where nothing is drawn.

        Raises:
          ValueError: an image or mask of another type or size.
        """
        for array in (image, lungs):
            if array is not None and (array.dtype != np.uint8 or array.shape != image.shape[:2]):
                raise ValueError(f"got {array.dtype} {array.shape}; expected uint8 {image.shape}")
        drawn = rng.random() < self.chance
        if not drawn or not self.strongest:
            return image
        height, width = image.shape
        size = max(width // _COARSE, 8), max(height // _COARSE, 8)  # OpenCV: width first
        film = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        labels = _lungs_or_rough(lungs, size)
        film = cv2.GaussianBlur(film, (0, 0), 0.02 * sum(size))
        weights, tissue = self._weights(labels, rng) / 2, _tissue(film, labels, rng)
        coarse = np.stack([weights * np.maximum(tissue - film, 0), weights], axis=-1)
        added, weights = cv2.split(cv2.resize(coarse, (width, height)))
        added += weights * cv2.subtract(np.full_like(image, tissue), image)
        return cv2.add(image, np.rint(added).astype(np.uint8))

    def _weights(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """float32 [h, w] in 0..1: the union of the opacities, soft at the lungs' borders."""
        clear = np.ones(labels.shape, np.float32)
        present = [label for label in (_RIGHT, _LEFT) if (labels == label).any()]
        low, high = min(self.weakest, self.strongest), self.strongest
        for _ in range(rng.integers(1, self.most + 1)):
            lung = (labels == rng.choice(present)).astype(np.float32)
            if rng.random() < self.whole:
                shape = np.ones_like(lung)
            else:
                shape = (_patch if rng.random() < 0.5 else _lobe)(lung, rng)
            clear *= 1 - rng.uniform(low, high) * shape * _soft(lung)
        return (1 - clear) * _noise(labels.shape, rng, 0.75, 1.0)  # no opacity is even


def _lungs_or_rough(lungs: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    """uint8 labels of `size` (width, height), with at least one lung."""
    if lungs is not None:
        labels = cv2.resize(lungs, size, interpolation=cv2.INTER_NEAREST)
        if labels.any():
            return labels
    labels = np.zeros(size[::-1], np.uint8)
    for label, (x, y, a, b) in zip((_RIGHT, _LEFT), _ROUGH):
        centre, axes = (round(x * size[0]), round(y * size[1])), (a * size[0], b * size[1])
        cv2.ellipse(labels, centre, tuple(map(round, axes)), 0, 0, 360, label, cv2.FILLED)
    return labels


def _tissue(film: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> float:
    """The grey of dense tissue: a bright one of those around the lungs."""
    around = cv2.dilate(labels, np.ones((9, 9), np.uint8)) > 0
    around = film[around & (labels == 0)]
    share = rng.uniform(0.6, 0.98)
    return float(np.quantile(around, share)) if around.size else 255 * share


def _patch(lung: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32 [h, w] in 0..1: a cloud of uneven outline about a point of the lung."""
    rows, columns = np.nonzero(lung)
    centre = rng.integers(len(rows))
    y, x = np.ogrid[: lung.shape[0], : lung.shape[1]]
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    radii = rng.uniform(0.15, 0.5) * height, rng.uniform(0.25, 0.7) * width
    away = ((y - rows[centre]) / radii[0]) ** 2 + ((x - columns[centre]) / radii[1]) ** 2
    away = np.maximum(away + _noise(lung.shape, rng, -0.8, 0.8), 0)
    return np.exp(-(away**2)).astype(np.float32)  # flat inside, gone at 1.5 radii


def _lobe(lung: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32 [h, w] in 0..1: the lung above or below a slanting, soft line, as of a fissure."""
    rows, columns = np.nonzero(lung)
    y, x = np.ogrid[: lung.shape[0], : lung.shape[1]]
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    slant = rng.uniform(-0.25, 0.25) * (x - columns.mean()) / width
    depth = (y - rows.min()) / height - rng.uniform(0.25, 0.75) + slant
    depth = depth + _noise(lung.shape, rng, -0.1, 0.1)
    # Below more often than above: that is where fluid and consolidation gather.
    side = 1 if rng.random() < 0.65 else -1
    return (1 / (1 + np.exp(-side * depth / rng.uniform(0.02, 0.08)))).astype(np.float32)


def _soft(lung: np.ndarray) -> np.ndarray:
    """The lung with a soft border: a sharp one would give the outline away, which a real opacity
    hides (the silhouette sign)."""
    return cv2.GaussianBlur(lung, (0, 0), 0.008 * sum(lung.shape))


def _noise(shape: tuple[int, int], rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """float32 [h, w] of `shape` in low..high, smooth over a seventh of the picture."""
    grid = rng.uniform(low, high, size=(7, 7)).astype(np.float32)
    return np.clip(cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC), low, high)
