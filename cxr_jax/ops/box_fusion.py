"""From regions to boxes of findings, on the host: weighted boxes fusion (ADPD, Sec. 3.2).

Of Solovyev et al., Image Vis. Comput. 2021. The package `ensemble-boxes` is the reference; it goes
through Python box by box. Here every finding of every film is a group, and all groups take their
next box at once.
"""

from typing import Literal, NamedTuple

import numpy as np

ScoreRule = Literal["max", "mean"]


class Boxes(NamedTuple):
    """Boxes of groups, by falling score; where there is none any more, both are NaN.

    Attributes:
      xyxy: float32 [..., M, 4].
      scores: float32 [..., M].
    """

    xyxy: np.ndarray
    scores: np.ndarray


def finding_boxes(
    boxes_cxcywh: np.ndarray,
    probs: np.ndarray,
    positive: np.ndarray,
    *,
    fusion: float | None = 0.03,
) -> Boxes:
    """The boxes of each finding: those of the regions that have it, fused where they overlap.

    Args:
      boxes_cxcywh: [B, A, 4] of the regions, shares of the film.
      probs: [B, A, K] of the findings in them: the scores.
      positive: bool [B, A, K], the region is there and has the finding.
      fusion: the IoU above which boxes of a finding are fused, the score being the largest; None
        leaves them as they are.

    Returns:
      [B, K, A, 4] and [B, K, A], clipped to the film. The best box of a finding is the first:
      `xyxy[:, :, 0]`. Boxes without an area are left out.
    """
    boxes = np.asarray(boxes_cxcywh, np.float64)
    centre, size = boxes[..., :2], boxes[..., 2:]
    corners = np.concatenate([centre - size / 2, centre + size / 2], axis=-1)
    groups = np.broadcast_to(
        np.clip(corners, 0.0, 1.0)[:, None], (*np.shape(probs)[::2], *boxes.shape[1:])
    )
    scores = np.where(positive, np.asarray(probs, np.float64), np.nan).swapaxes(1, 2)
    if fusion is None:
        return _sorted(groups, np.where(_area(groups) > 0, scores, np.nan))
    return weighted_boxes_fusion(groups, scores, threshold=fusion, score="max")


def weighted_boxes_fusion(
    xyxy: np.ndarray, scores: np.ndarray, *, threshold: float, score: ScoreRule
) -> Boxes:
    """Fuses the overlapping boxes of each group.

    By falling score (equal ones in their order), each box joins the cluster whose present box has
    the largest IoU with it, if that is above the threshold; else it opens one. A cluster's box is
    the mean of its members' corners, weighted by their scores, at every moment. Boxes without an
    area or with a score that is not above 0 are left out.

    Args:
      xyxy: [..., M, 4].
      scores: [..., M]; NaN where there is no box.
      threshold: IoU, 0..1.
      score: a cluster's score is the largest of its members', or their mean.

    Returns:
      [..., M, 4] and [..., M]; each cluster is a box.

    Raises:
      ValueError: another rule for the score.
    """
    if score not in ("max", "mean"):
        raise ValueError(f"score={score!r}; expected 'max' or 'mean'.")
    lead, most = np.shape(scores)[:-1], np.shape(scores)[-1]
    boxes = np.asarray(xyxy, np.float64).reshape(-1, most, 4)
    flat = np.asarray(scores, np.float64).reshape(-1, most)
    flat = np.where((_area(boxes) > 0) & (flat > 0), flat, np.nan)
    counts = np.sum(~np.isnan(flat), axis=1)
    # Full groups first: those that still have a box at step j are then a prefix.
    groups = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    deep = counts.max(initial=0)
    order = np.argsort(-flat[groups], axis=1, kind="stable")[:, :deep]  # NaN last
    ordered = np.take_along_axis(flat[groups], order, axis=1)
    members = np.take_along_axis(boxes[groups], order[..., None], axis=1)
    fused, fused_scores = _clusters(
        members, ordered, counts[groups], threshold=threshold, score=score
    )
    whole = Boxes(np.full(boxes.shape, np.nan), np.full(flat.shape, np.nan))
    whole.xyxy[groups, :deep], whole.scores[groups, :deep] = fused, fused_scores
    return _sorted(whole.xyxy.reshape(*lead, most, 4), whole.scores.reshape(*lead, most))


def _clusters(
    boxes: np.ndarray,
    scores: np.ndarray,
    counts: np.ndarray,
    *,
    threshold: float,
    score: ScoreRule,
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of G groups, the fullest first: [G, M, 4] and [G, M], by falling score, `counts` [G]
    of them there -> the clusters' boxes and scores, in the order of opening."""
    fused = np.full(boxes.shape, np.nan)
    weight, size, top = (np.zeros(scores.shape) for _ in range(3))
    opened = np.zeros(len(boxes), np.intp)
    for step in range(boxes.shape[1]):
        live = np.count_nonzero(counts > step)
        rows, box, mark = np.arange(live), boxes[:live, step], scores[:live, step]
        # At most `step` clusters are open; the column after them says that none need be.
        overlaps = np.nan_to_num(_iou(fused[:live, : step + 1], box[:, None]), nan=-1.0)
        best = np.argmax(overlaps, axis=1)
        joins = overlaps[rows, best] > threshold
        slot = np.where(joins, best, opened[:live])
        opened[:live] += ~joins
        before = weight[rows, slot]
        mean = np.nan_to_num(fused[rows, slot]) * before[:, None] + box * mark[:, None]
        fused[rows, slot] = mean / (before + mark)[:, None]
        weight[rows, slot] += mark
        size[rows, slot] += 1
        top[rows, slot] = np.maximum(top[rows, slot], mark)
    found = np.where(size > 0, top if score == "max" else weight / np.maximum(size, 1), np.nan)
    return fused, found


def _sorted(xyxy: np.ndarray, scores: np.ndarray) -> Boxes:
    """Boxes by falling score; what has no score is NaN and last."""
    order = np.argsort(-scores, axis=-1, kind="stable")
    scores = np.take_along_axis(scores, order, axis=-1)
    xyxy = np.take_along_axis(xyxy, order[..., None], axis=-2)
    xyxy = np.where(np.isnan(scores)[..., None], np.nan, xyxy)
    return Boxes(xyxy.astype(np.float32), scores.astype(np.float32))


def _area(xyxy: np.ndarray) -> np.ndarray:
    """0 where a side is not above 0; NaN of NaN."""
    sides = np.maximum(xyxy[..., 2:] - xyxy[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes with an area; NaN of NaN."""
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    meet = _area(np.concatenate([low, high], axis=-1))
    return meet / (_area(a) + _area(b) - meet)
