"""Boxes as arrays on the device: two forms, IoU and generalised IoU.

`cxcywh` is centre x, centre y, width, height and `xyxy` two corners, both as shares of the film's
width and height, 0..1. (`cxr_jax/data/boxes.py` moves boxes in pixels, on the host.)
"""

import jax
import jax.numpy as jnp

Array = jax.Array

LEAST = 1e-18  # an area that counts, a billionth of a side squared: its square is still a float32


def to_corners(boxes_cxcywh: Array) -> Array:
    """[..., 4] cxcywh -> float32 [..., 4] xyxy, not clipped to the film."""
    centre, size = jnp.split(jnp.asarray(boxes_cxcywh, jnp.float32), 2, axis=-1)
    return jnp.concatenate([centre - size / 2, centre + size / 2], axis=-1)


def to_centres(boxes_xyxy: Array) -> Array:
    """[..., 4] xyxy -> float32 [..., 4] cxcywh."""
    low, high = jnp.split(jnp.asarray(boxes_xyxy, jnp.float32), 2, axis=-1)
    return jnp.concatenate([(low + high) / 2, high - low], axis=-1)


def iou(a_xyxy: Array, b_xyxy: Array) -> Array:
    """Intersection over union: [..., 4] twice, which may broadcast -> float32 [...], 0..1.

    0 where both boxes have no area (at most `LEAST`), with a finite gradient; 0 where one is NaN.
    """
    intersection, union, _ = _areas(a_xyxy, b_xyxy)
    return _share(intersection, union)


def generalized_iou(a_xyxy: Array, b_xyxy: Array) -> Array:
    """IoU - (hull - union) / hull, the hull being the smallest box around both (Rezatofighi et al.,
    CVPR 2019).

    [..., 4] twice, which may broadcast -> float32 [...], -1..1. Unlike IoU it has a gradient where
    the boxes do not meet. A term whose denominator is at most `LEAST` is 0, with a finite gradient.
    """
    intersection, union, hull = _areas(a_xyxy, b_xyxy)
    return _share(intersection, union) - _share(hull - union, hull)


def _areas(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """The areas of the intersection, the union and the hull."""
    a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    meet = _area(jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:]))
    hull = _area(jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:]))
    return meet, _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - meet, hull


def _area(low: Array, high: Array) -> Array:
    sides = jnp.maximum(high - low, 0.0)
    return sides[..., 0] * sides[..., 1]


def _share(part: Array, whole: Array) -> Array:
    """part / whole; 0 where there is no whole to speak of."""
    # The gradient has 1 / whole^2, which is infinite below some 1e-19. Filled before the division:
    # a masked infinity would still make the gradient NaN.
    some = whole > LEAST
    return jnp.where(some, part / jnp.where(some, whole, 1.0), 0.0)
