"""Which predicted boxes find a true one, and how well regions are placed: rows, one an example.

Within a film and a finding nothing changes when films are resampled, so all matching is done here,
once; `metrics.detection` turns the rows of a split into numbers.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cxr_jax.ops import boxes

Array = jax.Array

THRESHOLDS = np.round(np.arange(1, 8) * 0.1, 1)  # of IoU in ADPD, to be passed: 0.1 .. 0.7
COCO_THRESHOLDS = np.round(np.arange(10, 20) * 0.05, 2)  # to be reached: 0.5 .. 0.95
CALLED = 0.7  # the score above which localisation accuracy counts a box [paper, Sec. 4.1]


def detection_rows(
    predicted_xyxy: Array,
    scores: Array,
    *,
    true_xyxy: Array,
    true_finding: Array,
    known: Array | None = None,
) -> dict[str, Array]:
    """Matches the boxes of each film and finding.

    By falling score each predicted box takes, of the true boxes that none has taken yet, the one
    with the largest IoU, if that suffices; then it is a hit. IoU is in float32.

    Args:
        predicted_xyxy: [B, K, M, 4], up to M boxes of each finding; all boxes in one unit.
        scores: [B, K, M]; NaN where there is no box.
        true_xyxy: [B, T, 4]; NaN where padded.
        true_finding: int [B, T], 0..K-1; a box of another number takes no part.
        known: bool [B, K], all of the film's boxes of the finding are known; None: all are. What is
            not known takes no part, on either side.

    Returns:
        `scores` float32 [B, K, M] by falling score, NaN last; `hits` bool [B, K, M, 7] at
        THRESHOLDS (IoU above them) and `coco_hits` bool [B, K, M, 10] at COCO_THRESHOLDS (IoU at
        least); `targets` int32 [B, K], how many true boxes there are; `known` bool [B, K].
        For localisation accuracy: `called` int32 [B, K], predictions with a score above CALLED, and
        `located` int32 [B, K, 7], true boxes whose best IoU with such a one is above THRESHOLDS.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check_shapes((predicted_xyxy, scores), (true_xyxy, true_finding))
    films, findings, _ = scores.shape
    known = jnp.ones((films, findings), bool) if known is None else jnp.asarray(known, bool)
    scores = jnp.where(known[..., None], jnp.asarray(scores, jnp.float32), jnp.nan)
    order = jnp.argsort(-scores, axis=-1)  # stable; NaN last
    scores = jnp.take_along_axis(scores, order, axis=-1)
    predicted = jnp.take_along_axis(predicted_xyxy, order[..., None], axis=2)
    is_target = (true_finding[:, None] == jnp.arange(findings)[:, None]) & known[..., None]
    is_target &= ~jnp.isnan(true_xyxy).any(-1)[:, None]  # [B, K, T]
    overlaps = boxes.iou(predicted[:, :, :, None], true_xyxy[:, None, None])  # [B, K, M, T]
    pairs = ~jnp.isnan(scores)[..., None] & is_target[:, :, None]
    overlaps = jnp.where(pairs, overlaps, -1.0)
    called = scores > CALLED
    best = jnp.max(jnp.where(called[..., None], overlaps, -1.0), axis=2, initial=-1.0)
    located = best[..., None] > jnp.asarray(THRESHOLDS, jnp.float32)  # [B, K, T, 7]
    hits = _match(overlaps)
    return {
        "scores": scores,
        "hits": hits[..., : len(THRESHOLDS)],
        "coco_hits": hits[..., len(THRESHOLDS) :],
        "targets": jnp.sum(is_target, axis=-1, dtype=jnp.int32),
        "known": known,
        "called": jnp.sum(called, axis=-1, dtype=jnp.int32),
        "located": jnp.sum(located, axis=2, dtype=jnp.int32),
    }


def _check_shapes(predicted: tuple[Array, Array], true: tuple[Array, Array]) -> None:
    """Boxes with their scores, and true boxes with their findings."""
    for boxes_xyxy, values in (predicted, true):
        if boxes_xyxy.shape != (*values.shape, 4):
            raise ValueError(
                f"boxes are {boxes_xyxy.shape} and what belongs to them {values.shape}; expected "
                "predicted ones [B, K, M, 4] with scores [B, K, M], true ones [B, T, 4] with "
                "findings [B, T]."
            )


def _match(overlaps: Array) -> Array:
    """IoU [B, K, M, T] by falling score, -1 where there is no pair -> bool [B, K, M, 17]."""
    above = jnp.asarray(THRESHOLDS, jnp.float32)
    reached = jnp.asarray(COCO_THRESHOLDS, jnp.float32)

    def take(taken: Array, overlap: Array) -> tuple[Array, Array]:
        """One prediction of every film and finding; `taken` is bool [B, K, T, 17]."""
        free = jnp.where(taken, -1.0, overlap[..., None])  # [B, K, T, 17]
        best = jnp.max(free, axis=2)
        split = len(THRESHOLDS)
        hit = jnp.concatenate([best[..., :split] > above, best[..., split:] >= reached], axis=-1)
        place = jnp.arange(overlap.shape[-1])[:, None] == jnp.argmax(free, axis=2)[:, :, None]
        return taken | (place & hit[:, :, None]), hit

    films, findings, _, targets = overlaps.shape
    none = jnp.zeros((films, findings, targets, len(above) + len(reached)), bool)
    _, hits = jax.lax.scan(take, none, jnp.moveaxis(overlaps, 2, 0))
    return jnp.moveaxis(hits, 0, 2)


def region_rows(
    predicted_xyxy: Array, presence: Array, *, true_xyxy: Array, present: Array
) -> dict[str, Array]:
    """How well the regions are placed, and whether they are rightly said to be there.

    Args:
        predicted_xyxy: [B, A, 4]; all boxes in one unit.
        presence: bool [B, A], the region is said to be there.
        true_xyxy: [B, A, 4]; NaN where the region is absent or its box unknown.
        present: [B, A] 0 or 1, or bool; NaN where nobody knows.

    Returns:
        `region_iou` float32 [B, A], NaN where there is no true box, whatever `presence` says;
        `region_called` [B, A], 1 or 0 or, where nobody knows, NaN; `region_present` [B, A] float32.
    """
    present = jnp.asarray(present, jnp.float32)
    unknown = jnp.isnan(true_xyxy).any(-1)
    return {
        "region_iou": jnp.where(unknown, jnp.nan, boxes.iou(predicted_xyxy, true_xyxy)),
        "region_called": jnp.where(jnp.isnan(present), jnp.nan, jnp.asarray(presence, bool)),
        "region_present": present,
    }
