"""The deterministic preparation of a film, in the order that a paper gives; resizing of records.

Kim et al. 2021: resize to 256x256, Gaussian blur 3x3, histogram equalisation, normalisation.
Park et al. 2021: histogram equalisation, Gaussian blur 3x3, normalisation, resize to 512x512, with
(x - 128) / 64 of the PCAM network. Normalisation is affine and resizing is linear, so those two
commute but for the rounding to 8 bits; the order of the other steps matters.
"""

import dataclasses

import cv2
import numpy as np

from cxr_jax.data.boxes import scale as scale_boxes
from cxr_jax.data.records import BOXES, IMAGE, MASK, SCHEMA, Record
from cxr_jax.errors import InputError

STEPS = ("resize", "blur", "equalize", "clahe")


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """What is done to every film before augmentation.

    Attributes:
        size: side of the square that comes out, in pixels.
        order: the steps in the order they run, each at most once, 'resize' among them:
            'resize' (a stretch to the square, as in the papers: the aspect is not kept),
            'blur' (Gaussian 3x3), 'equalize' (histogram equalisation), 'clahe' (the contrast
            limited, local form: 8x8 tiles, limit 2).
        mean: grey level that becomes 0.
        std: grey levels that become 1.
    """

    size: int
    order: tuple[str, ...] = ("resize", "blur", "equalize")
    mean: float = 128.0
    std: float = 64.0

    def __post_init__(self):
        # ml_collections hands over lists; a tuple keeps the dataclass hashable.
        object.__setattr__(self, "order", tuple(self.order))
        if self.size < 1:
            raise InputError(f"preprocess.size={self.size}; it must be at least 1 pixel")
        if not self.std > 0:
            raise InputError(f"preprocess.std={self.std}; it must be positive")
        for step in self.order:
            if step not in STEPS:
                raise InputError(
                    f"preprocess.order={self.order}: unknown step {step!r}; "
                    f"the steps are {', '.join(STEPS)}"
                )
        if len(set(self.order)) != len(self.order) or "resize" not in self.order:
            raise InputError(
                f"preprocess.order={self.order}; 'resize' must be there, and no step twice"
            )

    @property
    def full_size_steps(self) -> tuple[str, ...]:
        """The steps before 'resize': they are meant for the film at its full size."""
        return self.order[: self.order.index("resize")]

    def film(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W] -> uint8 [size, size]: the steps of `order`, in that order."""
        _check_plane(image)
        for step in self.order:
            if step == "resize":
                image = resize_film(image, self.size)
            elif step == "blur":
                image = cv2.GaussianBlur(image, (3, 3), 0)
            elif step == "equalize":
                image = cv2.equalizeHist(image)
            else:
                image = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(image)
        return image

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """uint8 [H, W] -> uint8 [size, size]: nearest pixel, so that labels survive."""
        _check_plane(mask)
        return resize_mask(mask, (self.size, self.size))

    def mask_or_empty(self, mask: np.ndarray | None) -> np.ndarray:
        """As `mask`; all 0 where there is none."""
        return np.zeros((self.size, self.size), np.uint8) if mask is None else self.mask(mask)

    def boxes(self, boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Boxes [M, 4] on a film of `shape` (height, width) -> float32 [M, 4] on the square."""
        boxes = np.asarray(boxes, np.float32)
        return scale_boxes(boxes, shape, (self.size, self.size))

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """Grey levels [...] -> float32 [...]: (x - mean) / std."""
        return (np.asarray(image, np.float32) - np.float32(self.mean)) / np.float32(self.std)


def shrink(record: Record, max_side: int) -> Record:
    """The record with its pictures reduced so that the longest side is at most `max_side`.

    Never enlarged; the shape is kept to the nearest pixel. Masks keep their labels (nearest);
    boxes and `pixel_area` follow.
    """
    height, width = shape = record["image"].shape
    scale = max_side / max(shape)
    if scale >= 1:
        return record
    new = max(1, round(height * scale)), max(1, round(width * scale))
    small = {}
    for name in record.keys() & SCHEMA.keys():
        kind, value = SCHEMA[name].kind, record[name]
        if kind == IMAGE:
            small[name] = cv2.resize(value, new[::-1], interpolation=cv2.INTER_AREA)
        elif kind == MASK:
            small[name] = resize_mask(value, new)
        elif kind == BOXES:
            small[name] = scale_boxes(np.asarray(value, np.float64), shape, new)
    if "pixel_area" in record:
        small["pixel_area"] = record["pixel_area"] * (width * height) / (new[0] * new[1])
    return record | small


def resize_film(image: np.ndarray, size: int) -> np.ndarray:
    """Stretches uint8 [H, W] to [size, size]: area means where it shrinks, else bilinear."""
    height, width = image.shape
    # Two steps, because OpenCV's INTER_AREA turns bilinear, without antialiasing, as soon as ONE
    # side grows.
    shrunk = (min(width, size), min(height, size))
    if shrunk != (width, height):
        image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != (size, size):
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    return image


def resize_mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w] -> uint8 [H, W] of `shape`: nearest pixel, so that labels survive."""
    if mask.shape == tuple(shape):
        return mask
    # EXACT: plain INTER_NEAREST samples pixel corners and so shifts a mask against its film.
    return cv2.resize(mask, tuple(shape)[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def resize_map(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """float32 [h, w] or [h, w, C] -> the same, of the height and width of `shape`; bilinear."""
    if values.shape[:2] == tuple(shape):
        return values
    return cv2.resize(values, tuple(shape)[::-1], interpolation=cv2.INTER_LINEAR)


def _check_plane(array: np.ndarray) -> None:
    if array.ndim != 2 or array.dtype != np.uint8 or array.size == 0:
        raise ValueError(f"got {array.dtype} {array.shape}; expected a non-empty uint8 [H, W]")
