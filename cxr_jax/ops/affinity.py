"""Neighbourhood affinity (NAM): features of like pixels close by agree, of unlike ones do not.

Eq. 4-6 of Tang et al. 2021 (M-SEAM-NAM). A pixel has 80 neighbours at radius 5: the neighbours'
features of a bag of eight 56x56x448 maps would take 3.6 GB, and all pairs of pixels nine times the
products of what is done here. Each row meets the `radius` rows below it, one batched matrix product
an offset, and the products outside the neighbourhood are masked. `benchmarks/affinity.py` compares.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Shape = Literal["euclid", "chebyshev"]
Empty = Literal["count", "drop"]

HIGHEST = jax.lax.Precision.HIGHEST
# Squared lengths up to here count as 0: the derivative of the root would not be finite.
TINY = 1e-24


def unit_vectors(features: Array) -> Array:
    """[..., C] divided by their lengths, float32; a zero vector stays 0 and has no gradient."""
    features = features.astype(jnp.float32)
    squares = jnp.sum(features * features, axis=-1, keepdims=True)
    # Filled before the root: a masked infinity would still make the gradient NaN.
    scale = jnp.where(squares > TINY, jax.lax.rsqrt(jnp.where(squares > TINY, squares, 1.0)), 0.0)
    return features * scale


def _bands(width: int, radius: int, shape: Shape) -> np.ndarray:
    """[radius + 1, w, w] 0/1: is column z, dy rows below, a neighbour of column x.

    At dy = 0 only z > x: each pair of pixels appears once, and never a pixel with itself.
    """
    columns, rows = np.arange(width), np.arange(radius + 1)[:, None, None]
    dx = columns - columns[:, None]
    near = abs(dx) <= radius if shape == "chebyshev" else dx**2 + rows**2 <= radius**2
    return (near & ((rows > 0) | (dx > 0))).astype(np.float32)


def similarity_sums(unit: Array, marks: Array, *, radius: int, shape: Shape) -> Array:
    """Sum of the cosines between each pixel and those of its neighbours that carry each mark.

    Args:
      unit: [B, h, w, C], of `unit_vectors`.
      marks: [B, h, w, M], 0/1.
      radius: of the neighbourhood, in pixels; the pixel itself is left out.
      shape: 'euclid' or 'chebyshev'.

    Returns:
      [B, h, w, M] float32.
    """
    height, width = unit.shape[1:3]
    radius_y = min(radius, height - 1)
    bands = _bands(width, radius, shape)[: radius_y + 1]
    # Rows beyond the last one are zero: they have no cosine and no mark.
    beyond = ((0, 0), (0, radius_y), (0, 0), (0, 0))
    unit_below, marks_below = jnp.pad(unit, beyond), jnp.pad(marks, beyond)

    # Rematerialised: the cosines and shifted rows are cheaper to make again than to keep.
    @jax.checkpoint
    def add_offset(sums: Array, offset: tuple[Array, Array]) -> tuple[Array, None]:
        dy, band = offset
        below, kinds = (
            jax.lax.dynamic_slice_in_dim(x, dy, height, axis=1) for x in (unit_below, marks_below)
        )
        cosine = jnp.einsum("byxc,byzc->byxz", unit, below, precision=HIGHEST) * band
        # Each pair counts for the pixel above and for the one below.
        to_upper = jnp.einsum("byxz,byzm->byxm", cosine, kinds, precision=HIGHEST)
        to_lower = jnp.einsum("byxz,byxm->byzm", cosine, marks, precision=HIGHEST)
        sums = sums.at[:, :height].add(to_upper)
        lower = jax.lax.dynamic_slice_in_dim(sums, dy, height, axis=1) + to_lower
        return jax.lax.dynamic_update_slice_in_dim(sums, lower, dy, axis=1), None

    start = jnp.zeros(marks_below.shape, jnp.float32)
    sums, _ = jax.lax.scan(add_offset, start, (jnp.arange(radius_y + 1), bands))
    return sums[:, :height]


def neighbour_counts(marks: Array, *, radius: int, shape: Shape) -> Array:
    """How many neighbours of each pixel carry each mark: [B, h, w, M] 0/1 -> [B, h, w, M]."""
    ones = jnp.ones((*marks.shape[:3], 1))  # every cosine is 1
    return similarity_sums(ones, marks, radius=radius, shape=shape)


def affinity_terms(sums: Array, counts: Array, marks: Array, *, empty: Empty) -> dict[str, Array]:
    """Eq. 4-6 from the sums of cosines.

    Args:
      sums: [B, h, w, 2], of `similarity_sums`: with foreground, with background neighbours.
      counts: [B, h, w, 2], of `neighbour_counts`.
      marks: [B, h, w, 2] 0/1: the pixel is foreground, is background.
      empty: as in `neighbourhood_affinity`.

    Returns:
      As `neighbourhood_affinity`.
    """
    has_any = counts > 0
    mean_cosine = jnp.where(has_any, sums / jnp.maximum(counts, 1.0), 0.0)

    def outer_mean(values: Array, pixels: int, neighbours: int) -> Array:
        """Mean of values [B, h, w] over the pixels of a kind, by the kind of their neighbours."""
        found = marks[..., pixels] * has_any[..., neighbours]
        counted = found if empty == "drop" else marks[..., pixels]
        total = jnp.sum(found * values, axis=(1, 2))
        return total / jnp.maximum(jnp.sum(counted, axis=(1, 2)), 1.0)

    to_foreground, to_background = mean_cosine[..., 0], mean_cosine[..., 1]
    return {
        "nfs": outer_mean(1.0 - to_foreground, 0, 0),
        "nbs": outer_mean(1.0 - to_background, 1, 1),
        "nfbd": outer_mean(to_background, 0, 1) + outer_mean(to_foreground, 1, 0),
    }


def neighbourhood_affinity(
    prob: Array,
    features: Array,
    *,
    foreground: float,
    background: float,
    radius: int,
    shape: Shape = "euclid",
    empty: Empty = "count",
) -> dict[str, Array]:
    """L_NFS, L_NBS and L_NFBD: Eq. 4, 5 and 6 of Tang et al. 2021 (M-SEAM-NAM).

    A pixel is foreground where prob > T_fg, background where prob < T_bg, and takes no part
    otherwise; no gradient goes through that. The neighbours of a pixel are the others within
    `radius`. With cos the cosine of two pixels' features:
    nfs = mean over foreground pixels of the mean over foreground neighbours of 1 - cos;
    nbs = the same of the background;
    nfbd = mean over foreground pixels of the mean over background neighbours of cos, plus mean over
    background pixels of the mean over foreground neighbours of cos.

    The paper thresholds sigma(D). Our D lies in 0..1 already, so this takes a probability as it is.

    Args:
      prob: [B, h, w] foreground probability, 0..1.
      features: F' [B, h, w, C]. A zero vector has cosine 0 with everything, and no gradient.
      foreground: T_fg (paper: 0.1), at least `background`.
      background: T_bg (paper: 0.01).
      radius: r in pixels (paper: 5), at least 1; it may exceed the map.
      shape: distance is 'euclid', the reading of the paper's radius (80 neighbours at r = 5), or
        'chebyshev', the larger of row and column difference.
      empty: a pixel without a neighbour of the wanted kind adds 0; it is part of the outer mean's
        denominator ('count', J of the equations) or not ('drop').

    Returns:
      nfs and nbs in 0..2, nfbd in -2..2, each [B] float32; 0 where a map has no pixel of a kind.

    Raises:
      ValueError: crossed thresholds, a radius below 1, another shape or way with empty sets.
    """
    if not background <= foreground:
        raise ValueError(
            f"background={background} is above foreground={foreground}: a pixel would be both."
        )
    if radius < 1:
        raise ValueError(f"radius={radius}; a neighbourhood needs at least 1.")
    if shape not in ("euclid", "chebyshev"):
        raise ValueError(f"shape={shape!r}; expected 'euclid' or 'chebyshev'.")
    if empty not in ("count", "drop"):
        raise ValueError(f"empty={empty!r}; expected 'count' or 'drop'.")
    prob = jnp.asarray(prob, jnp.float32)  # bfloat16 would round the thresholds
    marks = jnp.stack([prob > foreground, prob < background], axis=-1).astype(jnp.float32)
    sums = similarity_sums(unit_vectors(features), marks, radius=radius, shape=shape)
    counts = neighbour_counts(marks, radius=radius, shape=shape)
    return affinity_terms(sums, counts, marks, empty=empty)


def exp_l1_affinity(
    prob: Array, features: Array, *, foreground: float, background: float, radius: int
) -> dict[str, Array]:
    """The affinity losses of M-SEAM-NAM's released code, which are not its equations.

    a = exp(-mean over channels of |x - x'|) of two pixels within `radius` (below it, not at it: 68
    neighbours at 5); -log a is averaged over pairs of foreground, and over pairs of background,
    -log(1 - a) over mixed ones; 1e-5 is added in each logarithm. The code averages over the pairs
    of the batch, here each map over its own.

    Args:
      prob: [B, h, w], as in `neighbourhood_affinity`; at least `foreground` is foreground here.
      features: [B, h, w, C].
      foreground, background, radius: as there (released: 0.2, 0.01 and 5).

    Returns:
      'nfs', 'nbs', 'nfbd', each [B] float32; 0 where a map has no such pair.
    """
    prob, x = jnp.asarray(prob, jnp.float32), features.astype(jnp.float32)
    marks = jnp.stack([prob >= foreground, prob < background], axis=-1).astype(jnp.float32)
    span = radius - 1
    # Each pair once: rows below, and the pixels to the right in the same row.
    steps = [(y, z) for y in range(radius) for z in range(-span, span + 1)]
    steps = np.array([(y, z) for y, z in steps if 0 < y * y + z * z < radius**2 and (y or z > 0)])
    if not len(steps):
        return dict.fromkeys(("nfs", "nbs", "nfbd"), jnp.zeros(len(prob)))
    around = ((0, 0), (0, span), (span, span), (0, 0))
    x_around, marks_around = jnp.pad(x, around), jnp.pad(marks, around)

    @jax.checkpoint
    def add_step(sums: Array, step: Array) -> tuple[Array, None]:
        start = (0, step[0], step[1] + span, 0)
        other = jax.lax.dynamic_slice(x_around, start, x.shape)
        kinds = jax.lax.dynamic_slice(marks_around, start, marks.shape)
        far = jnp.mean(jnp.abs(x - other), axis=-1)
        like, unlike = -jnp.log(jnp.exp(-far) + 1e-5), -jnp.log(1.0 + 1e-5 - jnp.exp(-far))
        both = marks * kinds  # [B, h, w, 2]: a pair of foreground, of background
        mixed = marks[..., 0] * kinds[..., 1] + marks[..., 1] * kinds[..., 0]
        pairs = jnp.stack([both[..., 0], both[..., 1], mixed], axis=-1)
        values = jnp.stack([like, like, unlike], axis=-1)
        return sums + jnp.stack([(pairs * values).sum((1, 2)), pairs.sum((1, 2))]), None

    sums, _ = jax.lax.scan(add_step, jnp.zeros((2, len(x), 3)), jnp.asarray(steps))
    means = sums[0] / jnp.maximum(sums[1], 1.0)
    return {name: means[:, k] for k, name in enumerate(("nfs", "nbs", "nfbd"))}
