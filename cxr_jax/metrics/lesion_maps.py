"""Do lesion maps find the lesions, and do clusters of lesions match their types (Wu et al. 2022)?

Rows of a hit: `lesion_hit` [N, T, 9] bool, of each true lesion at `OVERLAPS`, and `lesion_true`
[N, T] bool, there is one.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from cxr_jax.metrics.bootstrap import Value

Rows = Mapping[str, np.ndarray]

OVERLAPS = np.round(np.arange(1, 10) * 0.1, 1)  # Table 5: 0.1 .. 0.9
# What the overlap is a share of; the first is the one of PAPERS section 5.
SHARES = ("lesion", "union", "map")
_ROUNDING = 1e-6  # boxes are shares of the slice in float32
_NO_LESION = "no slice has a lesion"


def hit_rows(
    boxes: np.ndarray, points: np.ndarray, lesions: np.ndarray, *, share: str = "lesion"
) -> dict[str, np.ndarray]:
    """Which true lesions are hit, at each overlap (Sec. 4.3.2).

    A lesion is hit where the box of some lesion of the map overlaps its box enough, and the place
    of that one, its highest cell, lies in the overlap. Both are upright boxes, not masks, as in the
    paper. What 'enough' is a share of, the paper says in two ways, and PAPERS section 5 in a third:

    | `share` | overlap over | where it is said |
    | --- | --- | --- |
    | 'lesion' | the true lesion's box | PAPERS; the larger the map's box, the better |
    | 'union' | both boxes' union | the paper's Sec. 5.2 |
    | 'map' | the map's box | the paper's Sec. 4.3.2; the smaller the map's box, the better |

    Args:
      boxes: [B, M, 4] xyxy of what the map has found; NaN where there is none.
      points: [B, M, 2] x and y, their places.
      lesions: [B, T, 4] true ones, NaN likewise; all in one unit.
      share: one of `SHARES`.

    Returns:
      `lesion_hit` bool [B, T, 9], whether the share reaches `OVERLAPS`, and `lesion_true` [B, T].

    Raises:
      ValueError: the shapes do not fit, or an unknown share.
    """
    boxes, points, lesions = (np.asarray(x, np.float64) for x in (boxes, points, lesions))
    if boxes.shape[2:] != (4,) or points.shape != (*boxes.shape[:2], 2) or share not in SHARES:
        raise ValueError(
            f"boxes are {boxes.shape}, points {points.shape}, share {share!r}; expected [B, M, 4], "
            f"[B, M, 2] and one of {', '.join(SHARES)}."
        )
    mine, true = boxes[:, None], lesions[:, :, None]  # [B, 1, M, 4], [B, T, 1, 4]
    low = np.maximum(mine[..., :2], true[..., :2])
    high = np.minimum(mine[..., 2:], true[..., 2:])
    overlap = _area(low, high)
    areas = {
        "lesion": _area(true[..., :2], true[..., 2:]),
        "map": _area(mine[..., :2], mine[..., 2:]),
    }
    areas["union"] = areas["lesion"] + areas["map"] - overlap
    whole = np.broadcast_to(areas[share], overlap.shape)
    # NaN, of what is not there, is not above 0 and not inside.
    part = np.divide(overlap, whole, out=np.zeros_like(overlap), where=whole > 0)
    at = points[:, None]
    inside = ((low <= at) & (at < high)).all(axis=-1)
    reached = (part[..., None] >= OVERLAPS - _ROUNDING) & inside[..., None]
    return {"lesion_hit": reached.any(axis=2), "lesion_true": ~np.isnan(lesions).any(axis=-1)}


def _area(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.prod(np.maximum(high - low, 0), axis=-1)


def chance_hits(lesions: np.ndarray) -> np.ndarray:
    """How probable it is that a box around the whole slice, whose place is drawn blindly, hits each
    lesion: its share of the slice, whatever the overlap asked for. [B, T, 4] -> [B, T], NaN
    likewise."""
    inside = np.clip(np.asarray(lesions, np.float64), 0.0, 1.0)
    return np.prod(inside[..., 2:] - inside[..., :2], axis=-1)


def perfect_heat(lesions: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """What a map of so many cells shows at best: how much of each cell lies in a true lesion's box.

    Args:
      lesions: [B, T, 4] xyxy, shares of the slice; NaN where there is none.
      shape: h, w.

    Returns:
      float32 [B, h, w], 0..1; of boxes that overlap the larger share counts.
    """
    boxes = np.nan_to_num(np.asarray(lesions, np.float64))
    height, width = shape
    along_x = _covered(boxes[..., 0], boxes[..., 2], width)
    along_y = _covered(boxes[..., 1], boxes[..., 3], height)
    shares = along_y[..., :, None] * along_x[..., None, :]  # [B, T, h, w]
    return shares.max(axis=1, initial=0.0).astype(np.float32)


def _covered(low: np.ndarray, high: np.ndarray, cells: int) -> np.ndarray:
    """Shares of `cells` equal parts of 0..1 that lie in low..high: [..., cells]."""
    left = np.arange(cells)
    inside = np.minimum(high[..., None] * cells, left + 1) - np.maximum(
        low[..., None] * cells, left
    )
    return np.clip(inside, 0.0, 1.0)


def hit_rates(rows: Rows) -> dict[str, Value]:
    """Hits over true lesions, at each overlap (Table 5): `hit_rate_10`, .., `hit_rate_90`."""
    true = np.asarray(rows["lesion_true"], bool)
    hits = np.asarray(rows["lesion_hit"], bool)[true]
    reason = "" if len(hits) else _NO_LESION
    rates = hits.mean(axis=0) if len(hits) else np.full(len(OVERLAPS), np.nan)
    return {
        f"hit_rate_{100 * overlap:.0f}": Value(float(rate), len(hits), reason)
        for overlap, rate in zip(OVERLAPS, rates)
    }


def match_clusters(counts: np.ndarray) -> np.ndarray:
    """The one-to-one matching of clusters to types with the most lesions in matched pairs.

    Args:
      counts: int [K, T], lesions of each cluster and type.

    Returns:
      int [K], the type of each cluster, -1 where there are more clusters than types.
    """
    matched = np.full(len(counts), -1)
    clusters, types = linear_sum_assignment(counts, maximize=True)
    matched[clusters] = types
    return matched


def cluster_report(
    clusters: np.ndarray,
    types: np.ndarray,
    *,
    num_clusters: int,
    names: Sequence[str],
    matched: np.ndarray | None = None,
) -> dict[str, Value]:
    """How well clusters tell the types of lesions, after the best matching (Sec. 4.3.3, Table 7).

    A lesion is called the type of its cluster; one of a cluster without type is called none. Of a
    type, `sensitivity` is the share of its lesions that are called so, `specificity` the share of
    all other lesions that are not, `precision` the share of those called so that are it. What the
    paper's Table 7 prints as sensitivity, 51/54, 4/9, 12/14, are the precisions as the table is
    headed (its text reads it the other way round); sensitivities there are 51/55, 4/7, 12/15.

    Args:
      clusters: int [L], 0..K-1.
      types: int [L], 0..T-1; lesions of a type below 0, unknown, take no part.
      num_clusters: K.
      names: of the T types.
      matched: int [K], the type of each cluster, below 0 for none; None: the best matching of
        these lesions.

    Returns:
      `cluster_accuracy`, lesions called right; `mean_sensitivity`, `mean_specificity`, over types
      that have them; `sensitivity_NAME`, `specificity_NAME`, `precision_NAME`. NaN with the reason
      where nothing can be said.
    """
    clusters, types = np.asarray(clusters, int), np.asarray(types, int)
    clusters, types = clusters[types >= 0], types[types >= 0]
    if matched is None:
        counts = np.zeros((num_clusters, len(names)), int)
        np.add.at(counts, (clusters, types), 1)
        matched = match_clusters(counts)
    called = np.asarray(matched, int)[clusters]
    report = {"cluster_accuracy": _share(called == types, "no lesion has a known type")}
    for number, name in enumerate(names):
        is_it, so = types == number, called == number
        report[f"sensitivity_{name}"] = _share(so[is_it], f"no lesion is {name}")
        report[f"specificity_{name}"] = _share(~so[~is_it], f"all lesions are {name}")
        report[f"precision_{name}"] = _share(is_it[so], f"no lesion is called {name}")
    for what in ("sensitivity", "specificity"):
        each = [value for key, value in report.items() if key.startswith(what)]
        report[f"mean_{what}"] = _mean(each, len(types))
    return report


def _share(right: np.ndarray, reason: str) -> Value:
    """The share of True; `reason` is why there is nothing to count."""
    return Value(float(right.mean()), len(right)) if len(right) else Value(np.nan, 0, reason)


def _mean(values: list[Value], count: int) -> Value:
    """Over those that are defined."""
    defined = [value.value for value in values if not np.isnan(value.value)]
    if not defined:
        return Value(np.nan, count, values[0].reason if values else "there is no type")
    return Value(float(np.mean(defined)), count)
