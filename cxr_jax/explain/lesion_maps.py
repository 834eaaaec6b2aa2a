"""Lesions from a heat map: their places, and what the network sees there (Wu et al. 2022).

A map of the positive class on the last block (LAHm, Eq. 6 and 7) is scaled to 0..1 and cut by
Otsu's threshold; 4-connected components of more than one cell are the lesions. The map times that
mask, enlarged, is the lesion activation map (LAM). The highest cell of a component is its place
(Eq. 8), the features there describe it (Eq. 9), and their distances to the centres of clusters give
its score (Eq. 10).

`lesion_heat` is pure, and jitted by whoever calls it; components are found on the host, of a whole
batch at once. A map that is flat, or not finite, and one whose
components are single cells have no lesion: an empty result, with the shapes of any other.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from scipy.spatial.distance import cdist
from skimage.filters import threshold_otsu

from cxr_jax.explain import gradcam
from cxr_jax.ops.components import label_components

Array = jax.Array


def lesion_heat(
    classify: Callable[[Array], Array],
    cells: Array,
    *,
    positive: int,
    method: gradcam.Method = gradcam.grad_cam,
) -> Array:
    """LAHm, Eq. 6 and 7, scaled: where on the last map the positive class is seen.

    Args:
      classify: the map -> logits [B, K]; what else the logits depend on, levels below the last
        block, is held (Eq. 6 has partial derivatives). As `scores` of `gradcam.grad_cam`.
      cells: the last block's map, [B, h, w, C].
      positive: the class, 0..K-1.
      method: one of `gradcam.METHODS`.

    Returns:
      float32 [B, h, w], 0..1.
    """
    classes = jnp.full(len(cells), positive)
    return scaled(method(lambda x: log_odds(classify(x)), cells, classes))


def log_odds(logits: Array) -> Array:
    """log p_k / (1 - p_k) of softmax probabilities: [B, K], K >= 2 -> float32 [B, K].

    Eq. 6 takes the gradient of a probability p. That of its log-odds is the same divided by
    p (1 - p), one number for a whole map, which scaling the map to 0..1 takes out; but it does not
    vanish where p is 1 in float32, as on slices of which a network is sure.
    """
    logits = jnp.asarray(logits, jnp.float32)
    own = jnp.eye(logits.shape[-1], dtype=bool)
    others = jnp.where(own, -jnp.inf, logits[..., None, :])
    return logits - jax.nn.logsumexp(others, axis=-1)


def scaled(heat: Array) -> Array:
    """(heat - min) / (max - min) of each map: [B, h, w] -> float32, 0..1; a map that is flat or has
    a cell that is not finite is 0."""
    heat = jnp.asarray(heat, jnp.float32)
    low, high = (f(heat, axis=(1, 2), keepdims=True) for f in (jnp.min, jnp.max))
    spread = high - low
    usable = (spread > 0) & jnp.isfinite(spread)
    return jnp.where(usable, (heat - low) / jnp.where(usable, spread, 1.0), 0.0)


@dataclasses.dataclass(frozen=True)
class Lesions:
    """The lesions of a batch of maps, one after another: map by map, in a map by their first cell,
    row by row.

    Attributes:
      slice_index: int [L], the number of the map.
      cells: int [L, 2], row and column of the highest cell; of equal ones the first.
      points: float32 [L, 2], x and y of that cell's centre, shares of the slice.
      boxes: float32 [L, 4], x0, y0, x1, y1 around all cells of it, each a full square: shares of
        the slice.
      peaks: float32 [L], the heat there, 0..1.
      sizes: int [L], cells.
      mask: bool [B, h, w], the cells of all lesions.
      thresholds: float32 [B], Otsu's; 0 where a map is flat.
    """

    slice_index: np.ndarray
    cells: np.ndarray
    points: np.ndarray
    boxes: np.ndarray
    peaks: np.ndarray
    sizes: np.ndarray
    mask: np.ndarray
    thresholds: np.ndarray

    def __len__(self) -> int:
        return len(self.slice_index)

    def features(self, cells: np.ndarray) -> np.ndarray:
        """Eq. 9, the lesions' features: the network's last map [B, h, w, C] -> [L, C]."""
        return np.asarray(cells)[self.slice_index, self.cells[:, 0], self.cells[:, 1]]


def find_lesions(heat: np.ndarray, *, cut: float | None = None, least: int = 2) -> Lesions:
    """The components of heat maps above a threshold. On the host.

    Args:
      heat: float [B, h, w], 0..1, what `scaled` gives.
      cut: the threshold; None: Otsu's of each map, over 256 bins (Wu et al.). CAM has 0.2 (Zhou et
        al. 2016).
      least: cells of a lesion; smaller components are dropped.
    """
    heat = np.asarray(heat, np.float32)
    batch, height, width = heat.shape
    # A flat map's threshold is its own value: nothing lies above it.
    given = [threshold_otsu(one) if cut is None else cut for one in heat]
    thresholds = np.array(given, np.float32).reshape(batch)
    labels, count = label_components(heat > thresholds[:, None, None])
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0  # what lies outside
    mask = (sizes >= least)[labels]
    at, rows, columns = np.nonzero(mask)  # row by row
    # Of each cell its lesion's number; SciPy numbers components by their first cell.
    ids, rank = np.unique(labels[mask], return_inverse=True)
    # The hottest cell of each lesion first; lexsort is stable, so of equal ones the first.
    order = np.lexsort((-heat[mask], rank))
    hottest = order[np.searchsorted(rank[order], np.arange(len(ids)))]
    cells = np.stack([rows, columns], axis=1)
    low, high = np.full((len(ids), 2), max(height, width)), np.zeros((len(ids), 2), int)
    np.minimum.at(low, rank, cells)
    np.maximum.at(high, rank, cells + 1)
    side = np.array([width, height])
    return Lesions(
        slice_index=at[hottest],
        cells=cells[hottest],
        points=((cells[hottest][:, ::-1] + 0.5) / side).astype(np.float32),
        boxes=np.concatenate([low[:, ::-1] / side, high[:, ::-1] / side], 1).astype(np.float32),
        peaks=heat[mask][hottest],
        sizes=np.bincount(rank, minlength=len(ids)),
        mask=mask,
        thresholds=thresholds,
    )


def lesion_rows(lesions: Lesions, *, most: int) -> dict[str, np.ndarray]:
    """The lesions as rows of one shape, a slice each.

    Args:
      lesions: see `find_lesions`.
      most: M, how many of a slice have room; where there are more, those with the highest peaks.

    Returns:
      float32 `lesion_boxes` [B, M, 4], `lesion_points` [B, M, 2], `lesion_peaks` [B, M], NaN where
      there is none; int `lesion_count` [B], of all, also those without room.
    """
    batch = len(lesions.mask)
    count = np.bincount(lesions.slice_index, minlength=batch)
    order = np.lexsort((-lesions.peaks, lesions.slice_index))
    place = np.arange(len(lesions)) - (np.cumsum(count) - count)[lesions.slice_index[order]]
    kept = np.sort(order[place < most])  # back in their own order
    at = lesions.slice_index[kept]
    held = np.minimum(count, most)
    column = np.arange(len(kept)) - (np.cumsum(held) - held)[at]
    rows = {"lesion_count": count}
    for name in ("boxes", "points", "peaks"):
        values = getattr(lesions, name)[kept]
        rows[f"lesion_{name}"] = np.full((batch, most, *values.shape[1:]), np.nan, np.float32)
        rows[f"lesion_{name}"][at, column] = values
    return rows


def lesion_scores(features: np.ndarray, centres: np.ndarray) -> dict[str, np.ndarray]:
    """Eq. 10 of lesions: how far each is from the centres of the clusters.

    Args:
      features: [L, C].
      centres: [K, C], K >= 1.

    Returns:
      float64: `distances` [L, K], Euclidean; `softmax` [L, K], of minus the distances over the
      centres; `score` [L], its smallest, as Eq. 10 is printed: the share of the least likely
      cluster. int `cluster` [L]: the nearest, of equal ones the first.
    """
    distances = cdist(np.asarray(features, np.float64), np.asarray(centres, np.float64))
    shares = scipy.special.softmax(-distances, axis=1)
    return {
        "distances": distances,
        "softmax": shares,
        "score": shares.min(axis=1),
        "cluster": distances.argmin(axis=1),
    }
