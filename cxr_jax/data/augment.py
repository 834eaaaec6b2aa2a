"""Random changes of a film in training: one affine warp, brightness and contrast.

Flip is OFF by default and belongs off for radiographs: left and right matter (the heart, the side
of a lesion), although with it on the sides of every label are exchanged too.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from cxr_jax.errors import InputError

MASKS = ("lungs", "zones", "lesion", "lesion_type")  # warped with the film, [H, W]
SIDED_TABLES = ("severity", "severity_second", "severity_valid", "zone_valid", "zone_order")
BOXES = ("regions", "boxes")

# Labels after a flip: lungs 1 <-> 2; in the zone map 1 <-> 2, 3 <-> 4, 5 <-> 6.
_FLIPPED = {"lungs": np.arange(256, dtype=np.uint8), "zones": np.arange(256, dtype=np.uint8)}
_FLIPPED["lungs"][[1, 2]] = 2, 1
_FLIPPED["zones"][[1, 2, 3, 4, 5, 6]] = 2, 1, 4, 3, 6, 5


@dataclasses.dataclass(frozen=True)
class Augment:
    """Draws one change of an example. All zero is the identity.

    Attributes:
        rotate_deg: rotation about the centre, uniform in +-rotate_deg degrees.
        shift: translation of each axis, uniform in +-shift of that side's length.
        scale: magnification, uniform in 1 +- scale.
        brightness: added grey, uniform in +-brightness of the full range (255).
        contrast: factor about the film's mean grey, uniform in 1 +- contrast.
        flip: mirror left and right with probability 1/2; sides of labels are exchanged too.
    """

    rotate_deg: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    flip: bool = False

    def __post_init__(self):
        for name in ("rotate_deg", "shift", "scale", "brightness", "contrast"):
            value = getattr(self, name)
            if not 0 <= value < np.inf:
                raise InputError(f"augment.{name}={value}; it must be a number of at least 0")
        for name in ("scale", "contrast"):
            if getattr(self, name) >= 1:
                raise InputError(f"augment.{name}={getattr(self, name)}; it must be below 1")

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Changes one example; the input is left as it is.

        Args:
            example: `image` uint8 [H, W], or slices [S, H, W] that move together; of the masks
                `lungs`, `zones`, `lesion`, `lesion_type` those there are, uint8 [H, W] of the same
                size; of the tables [3, 2] in `SIDED_TABLES` those there are; anything else is
                passed on.
            rng: the numbers drawn depend on it alone, and as many are drawn for every setting.

        Returns:
            A new dict with the same keys, types and shapes. What comes in from outside the film is
            0 (black, as beyond the collimator). `zone_valid` is also cleared where a zone of
            `zones` has left the film.

        Raises:
            ValueError: an image or mask of another type or size, or boxes, which are not moved.
        """
        draws = rng.uniform(-1.0, 1.0, size=6)
        mirror = bool(rng.random() < 0.5) and self.flip
        out = dict(example)
        image = out["image"]
        masks = [name for name in MASKS if name in out]
        for name in ["image", *masks]:
            array = out[name]
            planes = array.ndim == 2 or (name == "image" and array.ndim == 3)
            if not planes or array.dtype != np.uint8 or array.shape[-2:] != image.shape[-2:]:
                raise ValueError(
                    f"{name!r} is {array.dtype} {array.shape}; expected uint8 {image.shape[-2:]}"
                )
        moves = bool(self.rotate_deg or self.shift or self.scale)
        if moves or self.flip:
            for name in BOXES:
                if name in out:
                    raise ValueError(f"Augment does not move {name!r}; drop it from the example")
        if mirror:
            self._mirror(out, masks)
        if moves:
            matrix = self._matrix(draws[:4], image.shape[-2:])
            size = image.shape[:-3:-1]
            out["image"] = _each(
                out["image"], lambda x: cv2.warpAffine(x, matrix, size, flags=cv2.INTER_LINEAR)
            )
            for name in masks:
                out[name] = cv2.warpAffine(out[name], matrix, size, flags=cv2.INTER_NEAREST)
            if "zones" in masks and "zone_valid" in out:
                # Six comparisons are ten times faster than a histogram of the map.
                there = [(out["zones"] == zone).any() for zone in range(1, 7)]
                valid = np.asarray(out["zone_valid"])
                out["zone_valid"] = valid * np.reshape(there, (3, 2)).astype(valid.dtype)
        if self.brightness or self.contrast:
            out["image"] = self._expose(out["image"], draws[4], draws[5])
        return out

    def _matrix(self, draws: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """float64 [2, 3], the map from source to target pixels (x, y)."""
        height, width = shape
        angle = np.deg2rad(self.rotate_deg * draws[0])
        factor = 1.0 + self.scale * draws[1]
        linear = factor * np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        # Pixel centres lie on whole numbers, so the middle of the film is at (side - 1) / 2.
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        moved = centre + self.shift * np.array([width * draws[2], height * draws[3]])
        return np.concatenate([linear, (moved - linear @ centre)[:, None]], axis=1)

    def _mirror(self, out: dict[str, Any], masks: list[str]) -> None:
        """Mirrors the arrays of `out` (replaced, not written to) and exchanges the sides."""
        for name in ["image", *masks]:
            flipped = _each(out[name], lambda x: cv2.flip(x, 1))
            out[name] = cv2.LUT(flipped, _FLIPPED[name]) if name in _FLIPPED else flipped
        for name in SIDED_TABLES:
            if name in out:
                out[name] = np.asarray(out[name])[:, ::-1].copy()

    def _expose(self, image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
        """Contrast about the mean grey, then brightness, clipped and rounded; by a table."""
        mean = cv2.mean(image.reshape(-1, image.shape[-1]))[0]
        levels = np.arange(256, dtype=np.float64)
        levels = (levels - mean) * (1.0 + self.contrast * contrast) + mean
        levels += 255.0 * self.brightness * brightness
        table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        return _each(image, lambda x: cv2.LUT(x, table))


def _each(image: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`change` of a plane [H, W], or of every plane of a stack [S, H, W]."""
    return change(image) if image.ndim == 2 else np.stack([change(plane) for plane in image])
