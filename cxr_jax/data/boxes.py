"""Boxes on a film, on the host: resized, flipped, moved and padded.

A box is x0, y0, x1, y1 in pixels, by the pixels' corners: pixel k covers k .. k + 1, so that the
box of a mask whose first and last columns are a and b has x0 = a and x1 = b + 1. A film [H, W]
covers 0 .. W and 0 .. H. A row of NaN is a box that is not there; it stays so.
"""

import numpy as np

from cxr_jax.errors import InputError

MOST = 64  # of a film in a batch, which has one shape: phantoms have up to 36, NIH films up to 6


def scale(boxes: np.ndarray, shape: tuple[float, float], new: tuple[float, float]) -> np.ndarray:
    """Boxes on a film of `shape` -> the same on the film resized to `new`.

    Args:
      boxes: [M, 4]; the sum is done in their precision.
      shape: height and width of the film.
      new: height and width of the resized one.

    Returns:
      float32 [M, 4].
    """
    boxes = _rows(boxes)
    height, width = np.array(new, np.float64) / np.array(shape, np.float64)
    factors = np.array([width, height, width, height], boxes.dtype)
    return (boxes * factors).astype(np.float32)


def flip(boxes: np.ndarray, width: float) -> np.ndarray:
    """Boxes on a film of this width -> float32 [M, 4], the same on the film mirrored left-right."""
    x0, y0, x1, y1 = _rows(boxes).astype(np.float32).T
    return np.stack([width - x1, y0, width - x0, y1], axis=1)


def warp(boxes: np.ndarray, matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Boxes after an affine map of the film, as upright boxes around the moved corners.

    Args:
      boxes: [M, 4].
      matrix: [2, 3], from source to target (x, y), as OpenCV's `warpAffine` has it: there the
        CENTRES of pixels lie on whole numbers, so corners are moved half a pixel off.
      shape: height and width of the target, to which the boxes are clipped.

    Returns:
      float32 [M, 4]; NaN where nothing of a box is left on the film.
    """
    x0, y0, x1, y1 = _rows(boxes).astype(np.float64).T
    corners = np.array([[x0, x1, x0, x1], [y0, y0, y1, y1]]) - 0.5  # [2, 4, M]
    x, y = np.einsum("ij,jkm->ikm", matrix[:, :2], corners) + matrix[:, 2, None, None] + 0.5
    height, width = shape
    x, y = np.clip(x, 0, width), np.clip(y, 0, height)
    moved = np.stack([x.min(axis=0), y.min(axis=0), x.max(axis=0), y.max(axis=0)], axis=1)
    moved = moved.astype(np.float32)
    inside = (moved[:, :2] < moved[:, 2:]).all(axis=1, keepdims=True)
    return np.where(inside, moved, np.float32(np.nan))


def clip(boxes: np.ndarray, shape: tuple[float, float]) -> np.ndarray:
    """Boxes as a table gives them, kept to the film: the one rule of what is a box.

    Tables have boxes that leave their film by some pixels: what is outside is cut off. A box of
    which no area is left, with its corners the wrong way round or with a corner that is no number
    is none.

    Args:
      boxes: [M, 4].
      shape: height and width of the film.

    Returns:
      float64 [M, 4]; NaN where there is none.
    """
    boxes = _rows(boxes).astype(np.float64)
    height, width = shape
    inside = np.clip(boxes, 0, [width, height, width, height])
    there = (inside[:, :2] < inside[:, 2:]).all(axis=1, keepdims=True)  # False for NaN
    return np.where(there & np.isfinite(boxes).all(axis=1, keepdims=True), inside, np.nan)


def pad(
    boxes: np.ndarray, labels: np.ndarray, *, length: int, film: str
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and their labels at one length, so that films make a batch.

    Args:
      boxes: [M, 4].
      labels: [M].
      length: at least M.
      film: its id, for the message.

    Returns:
      float32 [length, 4], the rest NaN, and int32 [length], the rest -1.

    Raises:
      InputError: more than `length` boxes.
    """
    if len(boxes) > length:
        raise InputError(
            f"film {film!r} has {len(boxes)} boxes of findings; at most {length} can be scored: "
            "merge some, or leave the film out"
        )
    padded = np.full((length, 4), np.nan, np.float32)
    padded[: len(boxes)] = boxes
    padded_labels = np.full(length, -1, np.int32)
    padded_labels[: len(boxes)] = labels
    return padded, padded_labels


def _rows(boxes: np.ndarray) -> np.ndarray:
    """[M, 4] floats, also of an empty list."""
    boxes = np.asarray(boxes).reshape(-1, 4)
    return boxes if np.issubdtype(boxes.dtype, np.floating) else boxes.astype(np.float64)
