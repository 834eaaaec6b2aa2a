"""Non-maximum suppression with fixed shapes, and the best boxes of each finding, on the device."""

import functools

import jax
import jax.numpy as jnp

from cxr_jax.ops import boxes
from cxr_jax.ops.anchors import decode

Array = jax.Array


def suppress(
    boxes_xyxy: Array, scores: Array, *, most: int, threshold: float
) -> tuple[Array, Array]:
    """Greedy non-maximum suppression of each group of boxes.

    The box with the highest score (of equal ones the first) is kept, and those whose IoU with it is
    above the threshold are dropped; then the next one. Boxes without an area are left out.

    Args:
      boxes_xyxy: [..., N, 4].
      scores: [..., N]; NaN where there is no box.
      most: M, how many are kept.
      threshold: IoU, 0..1.

    Returns:
      float32 [..., M, 4] and [..., M] by falling score; NaN where there is no box any more.
    """
    there = (boxes_xyxy[..., 2:] > boxes_xyxy[..., :2]).all(axis=-1) & ~jnp.isnan(scores)
    left = jnp.where(there, scores, -jnp.inf)

    def keep(left: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        best = jnp.argmax(left, axis=-1, keepdims=True)
        score = jnp.take_along_axis(left, best, axis=-1)
        box = jnp.take_along_axis(boxes_xyxy, best[..., None], axis=-2)  # [..., 1, 4]
        gone = (boxes.iou(box, boxes_xyxy) > threshold) | (jnp.arange(left.shape[-1]) == best)
        some = score > -jnp.inf
        box = jnp.where(some, box[..., 0, :], jnp.nan)
        return jnp.where(gone, -jnp.inf, left), (box, jnp.where(some, score, jnp.nan)[..., 0])

    _, (kept, kept_scores) = jax.lax.scan(keep, left, None, length=most)
    return jnp.moveaxis(kept, 0, -2), jnp.moveaxis(kept_scores, 0, -1)


@functools.partial(jax.jit, static_argnames=("most", "candidates", "least", "threshold"))
def best_boxes(
    scores: Array,
    deltas: Array,
    anchors: Array,
    *,
    most: int,
    candidates: int,
    least: float,
    threshold: float,
) -> tuple[Array, Array]:
    """The best boxes of each finding: anchors decoded, those that overlap a better one left out.

    Args:
      scores: [B, A, K] probabilities of the findings at the anchors.
      deltas: [B, A, 4] of the anchors, see `anchors.decode`.
      anchors: [A, 4] xyxy, shares of the film.
      most: M, boxes of a finding.
      candidates: anchors of a finding that are looked at, the best first.
      least: an anchor whose score is below is no box.
      threshold: IoU of `suppress`.

    Returns:
      [B, K, M, 4] xyxy, shares of the film, and [B, K, M] by falling score; NaN where there is
      none.
    """
    count = min(candidates, scores.shape[1])
    top, places = jax.lax.top_k(jnp.swapaxes(scores, 1, 2), count)  # [B, K, N]
    moves = jnp.take_along_axis(deltas[:, None], places[..., None], axis=2)
    found = decode(moves, jnp.asarray(anchors)[places])
    top = jnp.where(top >= least, top, jnp.nan)
    return suppress(found, top, most=most, threshold=threshold)
