"""Anchors of a detector: boxes of fixed places and sizes, what each learns, and boxes from deltas.

As in RetinaNet (Lin et al., ICCV 2017, Sec. 4) there are nine anchors a cell of each level, of
three sizes and three aspects. An anchor learns the findings of the true boxes that it overlaps by
an IoU of at least 0.5, and nothing of those that it overlaps by 0.4 to 0.5. As in Faster R-CNN (Ren
et al., NIPS 2015) the anchor that lies nearest to a true box learns it in any case.

Boxes are xyxy, shares of the film.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cxr_jax.ops import boxes

Array = jax.Array

SIZES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))  # of a level, in units of its smallest
ASPECTS = (0.5, 1.0, 2.0)  # height over width
PER_CELL = len(SIZES) * len(ASPECTS)
POSITIVE, NEGATIVE = 0.5, 0.4  # IoU: what is learned from the first on; what is none below the last
LARGEST = math.log(1000 / 16)  # of a side's delta when decoded, as in Detectron


class Targets(NamedTuple):
    """What the anchors of a film learn.

    Attributes:
      labels: float32 [A, K], 1 and 0; NaN where a finding's box is neither near nor far.
      boxes: float32 [A, 4] of the true box that an anchor is to become; itself where it has none.
      positive: bool [A], it has one.
    """

    labels: Array
    boxes: Array
    positive: Array


def make_anchors(size: int, strides: Sequence[int], *, scale: float) -> np.ndarray:
    """The anchors of a square film.

    Args:
      size: of the film, pixels a side.
      strides: of the levels, pixels; a level has ceil(size / stride) cells a side.
      scale: the side of a level's smallest anchor of aspect 1, in units of its stride (4 in the
        paper).

    Returns:
      float32 [A, 4]: level by level, row by row, cell by cell, size by size, aspect by aspect;
      not clipped to the film.
    """
    unit = np.array([[s / a**0.5, s * a**0.5] for s in SIZES for a in ASPECTS])  # width, height
    found = []
    for stride in strides:
        places = (np.arange(math.ceil(size / stride)) + 0.5) * stride
        y, x = np.meshgrid(places, places, indexing="ij")
        centres = np.stack([x, y], axis=-1)[:, :, None]  # [h, w, 1, 2]
        half = scale * stride * unit / 2
        found.append(np.concatenate([centres - half, centres + half], axis=-1).reshape(-1, 4))
    return (np.concatenate(found) / size).astype(np.float32)


def match(anchors: Array, true_xyxy: Array, true_finding: Array, *, findings: int) -> Targets:
    """What each anchor learns of the true boxes of one film.

    Findings are learned apart: where boxes of two findings lie alike, their anchors learn both. An
    anchor that several true boxes claim becomes the one whose nearest anchor it is, else the one
    that it overlaps most.

    Args:
      anchors: [A, 4].
      true_xyxy: [T, 4]; NaN where padded.
      true_finding: int [T], 0..K-1; a box of another number takes no part.
      findings: K.
    """
    there = ~jnp.isnan(true_xyxy).any(axis=-1) & (true_finding >= 0) & (true_finding < findings)
    overlap = jnp.where(there, boxes.iou(anchors[:, None], true_xyxy), 0.0)  # [A, T]
    nearest = jnp.arange(len(anchors))[:, None] == jnp.argmax(overlap, axis=0)
    nearest &= overlap > 0
    claims = nearest | (overlap >= POSITIVE)
    of = jax.nn.one_hot(jnp.where(there, true_finding, -1), findings)  # [T, K]
    positive, near = (x.astype(jnp.float32) @ of > 0 for x in (claims, overlap >= NEGATIVE))
    labels = jnp.where(positive, 1.0, jnp.where(near, jnp.nan, 0.0))
    chosen = jnp.argmax(jnp.where(claims, overlap + nearest, -1.0), axis=1)
    has_one = claims.any(axis=1)
    return Targets(labels, jnp.where(has_one[:, None], true_xyxy[chosen], anchors), has_one)


def encode(boxes_xyxy: Array, anchors: Array) -> Array:
    """How an anchor becomes a box (Girshick et al., CVPR 2014, App. C): the shift of the centre in
    units of the anchor's sides, and the logarithms of the sides' ratios.

    Boxes and anchors [..., 4] with an area -> float32 [..., 4].
    """
    centre, size = jnp.split(boxes.to_centres(boxes_xyxy), 2, axis=-1)
    from_centre, from_size = jnp.split(boxes.to_centres(anchors), 2, axis=-1)
    return jnp.concatenate([(centre - from_centre) / from_size, jnp.log(size / from_size)], axis=-1)


def decode(deltas: Array, anchors: Array) -> Array:
    """The inverse of `encode`, kept to the film: [..., 4] and anchors [..., 4] -> float32 [..., 4],
    0..1. A box that has left the film has no area."""
    shift, growth = jnp.split(jnp.asarray(deltas, jnp.float32), 2, axis=-1)
    from_centre, from_size = jnp.split(boxes.to_centres(anchors), 2, axis=-1)
    size = from_size * jnp.exp(jnp.minimum(growth, LARGEST))
    found = jnp.concatenate([from_centre + shift * from_size, size], axis=-1)
    return jnp.clip(boxes.to_corners(found), 0.0, 1.0)
