"""Random changes of a film in training: one affine warp, brightness and contrast, a blur.

Flip is OFF by default and belongs off for radiographs: left and right matter (the heart, the side
of a lesion), although with it on the sides of every label are exchanged too. Slices of CT may be
turned by any angle and mirrored both ways, as in Wu et al. 2022 (Sec. 4.2.3): rotate_deg=180, flip,
flip_vertical, scale=0.05, contrast=0.3, and their brightness of +-50%, a factor, is gain=0.5.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from cxr_jax.data import boxes
from cxr_jax.data.records import (
    BOXES,
    IMAGE,
    MASK,
    REGION_TABLE,
    REGIONS,
    SCHEMA,
    ZONE_TABLE,
    Field,
)
from cxr_jax.errors import InputError

# What tasks make of a record's fields, under names of its own.
EXAMPLE_FIELDS = {
    "zones": Field(
        np.uint8,
        ("H", "W"),
        MASK,
        "0 outside, 1 upper right, 2 upper left .. 6 lower left (data/zones.py)",
        values=range(7),
        exchanged=((1, 2), (3, 4), (5, 6)),
    ),
    "zone_valid": Field(np.bool_, (3, 2), ZONE_TABLE, "the zone has a pixel in zones"),
    "zone_order": Field(np.int8, (3, 2), ZONE_TABLE, "which zone of the film it was"),
}
FIELDS = SCHEMA | EXAMPLE_FIELDS


_LATER = ("crop", "shrink", "gain", "blur")  # draw numbers of their own
_LEAST_BLUR, _MOST_BLUR = 0.1, 1.0  # px, as the released code of ADPD has it
_SIDES = {"right": "left", "left": "right"}


def _other_side(region: str) -> str:
    """The region on the other side; itself where it has no partner."""
    side, _, part = region.partition(" ")
    other = f"{_SIDES.get(side, side)} {part}"
    return other if other in REGIONS else region


# Row by row of REGIONS, the row that a flip puts there.
_FLIPPED_REGIONS = np.array([REGIONS.index(_other_side(region)) for region in REGIONS])


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
        crop: a window of the film's aspect and of 1 - crop .. 1 of its area becomes the film; as
            large and placed so that it holds every box there is.
        shrink: a further magnification, uniform in 1 - shrink .. 1.
        gain: factor on the grey levels, before contrast, uniform in 1 +- gain.
        blur: probability of a Gaussian blur, of a deviation uniform in 0.1 .. 1 pixels.
        flip_vertical: mirror top and bottom with probability 1/2. Of slices only: zones and regions
            of a film have names that say how high they lie.
    """

    rotate_deg: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    flip: bool = False
    crop: float = 0.0
    shrink: float = 0.0
    gain: float = 0.0
    blur: float = 0.0
    flip_vertical: bool = False

    def __post_init__(self):
        for name in ("rotate_deg", "shift", "scale", "brightness", "contrast", *_LATER):
            value = getattr(self, name)
            if not 0 <= value < np.inf:
                raise InputError(f"augment.{name}={value}; it must be a number of at least 0")
        for name in ("scale", "contrast", "crop", "shrink", "gain"):
            if getattr(self, name) >= 1:
                raise InputError(f"augment.{name}={getattr(self, name)}; it must be below 1")
        if self.blur > 1:
            raise InputError(f"augment.blur={self.blur}; it is a probability, at most 1")

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Changes one example; the input is left as it is.

        Args:
            example: `image` uint8 [H, W], or slices [S, H, W] that move together; of the fields of
                `FIELDS` those there are: masks are uint8 [H, W] of the same size, or [N, H, W] of
                slices, boxes are in its pixels and may be padded (NaN, label -1); anything else is
                passed on.
            rng: the numbers drawn depend on it alone, and as many are drawn for every setting; some
                more where crop, shrink, gain, blur or flip_vertical are asked for.

        Returns:
            A new dict with the same keys, types and shapes. What comes in from outside the film is
            0 (black, as beyond the collimator). Boxes and regions that have left the film are NaN,
            with label -1 or not present; the others are clipped to it, and after a rotation they
            are the upright boxes around the turned ones. `zone_valid` is also cleared where a zone
            of `zones` has left the film.

        Raises:
            ValueError: an image or mask of another type or size, or zones or regions that
                `flip_vertical` would turn upside down.
        """
        draws = rng.uniform(-1.0, 1.0, size=6)
        mirror = bool(rng.random() < 0.5) and self.flip
        # Drawn by those alone who ask for it: what others draw stays what it was.
        later = any(getattr(self, name) for name in _LATER)
        more = rng.random(7) if later else np.zeros(7)
        out = dict(example)
        _check_planes(out)
        if mirror:
            _mirror(out)
        # Drawn last, and by those alone who ask for it.
        if self.flip_vertical and rng.random() < 0.5:
            _turn_over(out)
        if self.rotate_deg or self.shift or self.scale or self.crop or self.shrink:
            matrix = self._matrix(draws[:4], more[0], out["image"].shape[-2:])
            if self.crop:
                matrix = matrix @ _enlarged(_window(out, self.crop, more[1:4]))
            _warp(out, matrix)
        if self.brightness or self.contrast or self.gain:
            factor = 1.0 + self.gain * (2 * more[4] - 1)
            out["image"] = self._expose(out["image"], *draws[4:], factor=factor)
        if more[5] < self.blur:
            sigma = _LEAST_BLUR + more[6] * (_MOST_BLUR - _LEAST_BLUR)
            out["image"] = _each(out["image"], lambda x: cv2.GaussianBlur(x, (0, 0), sigma))
        return out

    def _matrix(self, draws: np.ndarray, more: float, shape: tuple[int, int]) -> np.ndarray:
        """float64 [2, 3], the map from source to target pixels (x, y)."""
        height, width = shape
        angle = np.deg2rad(self.rotate_deg * draws[0])
        factor = (1.0 + self.scale * draws[1]) * (1.0 - self.shrink * more)
        linear = factor * np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        # Pixel centres lie on whole numbers, so the middle of the film is at (side - 1) / 2.
        centre = np.array([(width - 1) / 2, (height - 1) / 2])
        moved = centre + self.shift * np.array([width * draws[2], height * draws[3]])
        return np.concatenate([linear, (moved - linear @ centre)[:, None]], axis=1)

    def _expose(
        self, image: np.ndarray, brightness: float, contrast: float, *, factor: float
    ) -> np.ndarray:
        """The factor, contrast about the mean grey, then brightness, clipped and rounded; by a
        table."""
        mean = cv2.mean(image.reshape(-1, image.shape[-1]))[0] * factor
        levels = np.arange(256, dtype=np.float64) * factor
        levels = (levels - mean) * (1.0 + self.contrast * contrast) + mean
        levels += 255.0 * self.brightness * brightness
        table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        return _each(image, lambda x: cv2.LUT(x, table))


def _window(out: Mapping[str, Any], crop: float, draws: np.ndarray) -> tuple[float, float, float]:
    """A window that holds every box: its left and top edge, and its share of the film's sides;
    `draws` of 0..1 are for the area and the two edges."""
    sides = np.array(out["image"].shape[-2:][::-1], np.float64)  # x, y
    found = [np.asarray(out[name], np.float64) for name in _named(out, BOXES)]
    kept = np.concatenate([*found, np.empty((0, 4))])
    kept = kept[~np.isnan(kept).any(axis=1)]
    # Without a box its two ends are such that the window may lie anywhere.
    low = np.clip(kept[:, :2], 0, sides).min(axis=0, initial=np.inf)
    high = np.clip(kept[:, 2:], 0, sides).max(axis=0, initial=-np.inf)
    needed = np.where(len(kept), (high - low) / sides, 0.0).max()
    share = max(np.sqrt(1.0 - crop * draws[0]), needed)
    first = np.maximum(high - share * sides, 0.0)
    last = np.minimum(low, (1.0 - share) * sides)
    left, top = first + draws[1:] * np.maximum(last - first, 0.0)
    return left, top, share


def _enlarged(window: tuple[float, float, float]) -> np.ndarray:
    """float64 [3, 3], the map that makes a film of its window; of pixel centres, as all of them."""
    left, top, share = window
    shift = np.array([0.5 - left, 0.5 - top]) / share - 0.5
    return np.array([[1 / share, 0, shift[0]], [0, 1 / share, shift[1]], [0, 0, 1]])


def _named(out: Mapping[str, Any], kind: str) -> list[str]:
    """The fields of this kind that are there."""
    return [name for name in out if name in FIELDS and FIELDS[name].kind == kind]


def _check_planes(out: Mapping[str, Any]) -> None:
    size = out["image"].shape[-2:]
    for name in [*_named(out, IMAGE), *_named(out, MASK)]:
        array = out[name]
        planes = array.ndim in (2, 3) and array.ndim <= out["image"].ndim
        if not planes or array.dtype != np.uint8 or array.shape[-2:] != size:
            raise ValueError(f"{name!r} is {array.dtype} {array.shape}; expected uint8 {size}")


def _mirror(out: dict[str, Any]) -> None:
    """Mirrors the film and exchanges the sides of every label.

    Here as below the arrays of `out` are replaced, never written to: the pipeline's cache has them.
    """
    out["image"] = _each(out["image"], lambda x: cv2.flip(x, 1))
    for name in _named(out, MASK):
        flipped = _each(out[name], lambda x: cv2.flip(x, 1))
        out[name] = _each(flipped, functools.partial(_exchanged, pairs=FIELDS[name].exchanged))
    for name in _named(out, ZONE_TABLE):
        out[name] = np.asarray(out[name])[:, ::-1].copy()
    for name in _named(out, BOXES):
        out[name] = boxes.flip(out[name], out["image"].shape[-1])
    for name in [*_named(out, BOXES), *_named(out, REGION_TABLE)]:
        if FIELDS[name].by_region:
            out[name] = np.asarray(out[name])[_FLIPPED_REGIONS]


def _turn_over(out: dict[str, Any]) -> None:
    """Mirrors a slice top to bottom; the right lung stays on the image's left."""
    for name in out.keys() & FIELDS.keys():
        field = FIELDS[name]
        if name == "zones" or field.by_region or field.kind == ZONE_TABLE:
            raise ValueError(f"flip_vertical would turn {name!r} upside down; it is for CT slices")
    out["image"] = _each(out["image"], lambda x: cv2.flip(x, 0))
    for name in _named(out, MASK):
        out[name] = _each(out[name], lambda x: cv2.flip(x, 0))
    height = out["image"].shape[-2]
    for name in _named(out, BOXES):
        turned = boxes.flip(np.asarray(out[name])[:, [1, 0, 3, 2]], height)
        out[name] = turned[:, [1, 0, 3, 2]]


def _exchanged(mask: np.ndarray, pairs: tuple[tuple[int, int], ...]) -> np.ndarray:
    """The mask with the labels of each pair exchanged."""
    if not pairs:
        return mask
    table = np.arange(256, dtype=np.uint8)
    for right, left in pairs:
        table[[right, left]] = left, right
    return cv2.LUT(mask, table)


def _warp(out: dict[str, Any], matrix: np.ndarray) -> None:
    """Moves the film by a map from source to target pixels, and what lies on it."""
    shape = out["image"].shape[-2:]
    size = shape[::-1]  # OpenCV: width first
    out["image"] = _each(
        out["image"], lambda x: cv2.warpAffine(x, matrix, size, flags=cv2.INTER_LINEAR)
    )
    for name in _named(out, MASK):
        out[name] = _each(
            out[name], lambda x: cv2.warpAffine(x, matrix, size, flags=cv2.INTER_NEAREST)
        )
    for name in _named(out, BOXES):
        out[name] = boxes.warp(out[name], matrix, shape)
    _mark_gone(out)


def _mark_gone(out: dict[str, Any]) -> None:
    """Says of the boxes and zones that have left the film that they are not there."""
    for name in out.keys() & FIELDS.keys():
        field = FIELDS[name]
        if field.boxes in out:
            gone = np.isnan(out[field.boxes]).any(axis=-1)
            rows = np.array(out[name])
            rows[gone] = field.gone
            out[name] = rows
    if "zones" in out and "zone_valid" in out:
        # Six comparisons are ten times faster than a histogram of the map.
        there = [(out["zones"] == zone).any() for zone in range(1, 7)]
        valid = np.asarray(out["zone_valid"])
        out["zone_valid"] = valid * np.reshape(there, (3, 2)).astype(valid.dtype)


def _each(image: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`change` of a plane [H, W], or of every plane of a stack [S, H, W]."""
    return change(image) if image.ndim == 2 else np.stack([change(plane) for plane in image])
