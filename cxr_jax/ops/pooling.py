"""From maps to vectors: PCAM, log-sum-exp and other pooling, the six lung zones, regions."""

from typing import Literal

import jax
import jax.numpy as jnp

Array = jax.Array
ZoneMode = Literal["max", "mean"]
Over = Literal["present", "all"]

NUM_ZONES = 6
# Below every logit, yet finite: -inf would turn the cross-entropy of an empty zone into NaN.
LOWEST = -1e30


def _zone_table(values: list[Array]) -> Array:
    """Six arrays [B], zone 1 (upper right) to 6 (lower left), to [B, 3, 2]."""
    return jnp.stack(values, axis=-1).reshape(-1, 3, 2)


def zone_valid(zones: Array) -> Array:
    """Which zones have a pixel: zone maps [B, H, W] (0 outside, 1..6) -> bool [B, 3, 2]."""
    return _zone_table([jnp.any(zones == k, axis=(1, 2)) for k in range(1, NUM_ZONES + 1)])


def _zone_max(values: Array, zones: Array) -> tuple[Array, Array]:
    """The largest value of each zone and which zones exist: [B, H, W] twice -> [B, 3, 2] twice.

    The gradient goes to one pixel, the zone's first largest: a gather, cheaper than comparing every
    pixel again on the way back. An empty zone has the value 0 and no gradient.
    """
    flat_values = values.reshape(values.shape[0], -1)
    flat_zones = zones.reshape(values.shape[0], -1)
    fixed = jax.lax.stop_gradient(flat_values)
    pixels = jnp.arange(fixed.shape[1], dtype=jnp.int32)
    places = []
    for k in range(1, NUM_ZONES + 1):
        # Two plain reductions take half the time of XLA's argmax.
        inside = flat_zones == k
        top = jnp.max(jnp.where(inside, fixed, LOWEST), axis=1, keepdims=True)
        places.append(jnp.min(jnp.where(inside & (fixed == top), pixels, pixels[-1]), axis=1))
    peak = jnp.take_along_axis(flat_values, jnp.stack(places, axis=1), axis=1)
    valid = zone_valid(zones)
    return jnp.where(valid, peak.reshape(-1, 3, 2), 0.0), valid


def zone_pool(values: Array, zones: Array, *, mode: ZoneMode) -> Array:
    """ROI max (or mean) of a map over the six lung zones.

    Args:
      values: [B, H, W], for instance lesion probabilities.
      zones: int [B, H, W]: 0 outside, 1 upper right, 2 upper left, ... 6 lower left.
      mode: 'max' (Kim et al. 2021) or 'mean' (the ablation).

    Returns:
      [B, 3, 2] float32; rows upper, middle, lower; columns right lung, left lung. 0 where a zone
      has no pixel, and then without a gradient.

    Raises:
      ValueError: another mode.
    """
    values = values.astype(jnp.float32)
    if mode == "max":
        return _zone_max(values, zones)[0]
    if mode != "mean":
        raise ValueError(f"mode={mode!r}; expected 'max' or 'mean'.")
    sums, counts = [], []
    for k in range(1, NUM_ZONES + 1):
        inside = zones == k
        sums.append(jnp.sum(jnp.where(inside, values, 0.0), axis=(1, 2)))
        counts.append(jnp.sum(inside, axis=(1, 2), dtype=jnp.float32))
    return _zone_table(sums) / jnp.maximum(_zone_table(counts), 1.0)


def zone_log_probs(logits: Array, zones: Array, *, mode: ZoneMode) -> tuple[Array, Array]:
    """log p and log(1 - p) of each zone's probability, without leaving the log domain.

    'max': p = sigmoid(max z), because the sigmoid is monotonous.
    'mean': p = mean sigmoid(z), so log p = logsumexp(log sigmoid(z)) - log n, and log(1 - p) the
    same of -z. Both stay exact where p itself would round to 0 or 1.

    Args:
      logits: [B, H, W], before the sigmoid.
      zones: int [B, H, W], as in `zone_pool`.
      mode: 'max' or 'mean'.

    Returns:
      Two [B, 3, 2] float32; both 0, without a gradient, where a zone has no pixel.

    Raises:
      ValueError: another mode.
    """
    logits = logits.astype(jnp.float32)
    if mode == "max":
        peak, valid = _zone_max(logits, zones)
        return (
            jnp.where(valid, jax.nn.log_sigmoid(peak), 0.0),
            jnp.where(valid, jax.nn.log_sigmoid(-peak), 0.0),
        )
    if mode != "mean":
        raise ValueError(f"mode={mode!r}; expected 'max' or 'mean'.")
    log_p, log_1mp = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return _zone_log_mean_exp(log_p, zones), _zone_log_mean_exp(log_1mp, zones)


def _zone_log_mean_exp(x: Array, zones: Array) -> Array:
    """log of the mean of exp(x) over each zone, x <= 0: [B, H, W] -> [B, 3, 2], 0 where empty."""
    masks = [zones == k for k in range(1, NUM_ZONES + 1)]
    fixed = jax.lax.stop_gradient(x)
    tops = [jnp.max(jnp.where(inside, fixed, LOWEST), axis=(1, 2)) for inside in masks]
    # One exponential a pixel, relative to the top of its own zone; outside, exp(x) <= 1 is safe.
    shift = jnp.zeros_like(x)
    for inside, top in zip(masks, tops):
        shift = jnp.where(inside, top[:, None, None], shift)
    relative = jnp.exp(x - shift)
    means = []
    for inside, top in zip(masks, tops):
        count = jnp.sum(inside, axis=(1, 2), dtype=jnp.float32)
        total = jnp.sum(jnp.where(inside, relative, 0.0), axis=(1, 2))
        # Filled before the logarithm: a masked infinity would still make the gradient NaN.
        mean = jnp.where(count > 0, total, 1.0) / jnp.maximum(count, 1.0)
        means.append(jnp.where(count > 0, jnp.log(mean) + top, 0.0))
    return _zone_table(means)


def pcam_weights(logit_map: Array) -> Array:
    """w = p / sum of p over the pixels, p = sigmoid(logit): float32 [B, h, w, K].

    As the softmax of log p it needs no epsilon and holds where every p underflows.
    """
    log_p = jax.nn.log_sigmoid(logit_map.astype(jnp.float32))
    return jax.nn.softmax(log_p, axis=(1, 2))


def pcam_pool(features: Array, logit_map: Array) -> Array:
    """Probabilistic-CAM pooling (Ye et al., arXiv:2005.14480): sum over the pixels of w F.

    Args:
      features: F [B, h, w, C].
      logit_map: [B, h, w, K], one map a finding; w = sigmoid of it, divided by its sum.

    Returns:
      [B, K, C] float32. Gradients go through the weights as well.
    """
    weights = pcam_weights(logit_map)
    return jnp.einsum("bhwk,bhwc->bkc", weights, features.astype(jnp.float32))


def lse_pool(x: Array, *, gamma: float) -> Array:
    """log-sum-exp: (1/gamma) log(mean of exp(gamma x)) over the pixels: [B, h, w, C] -> [B, C]."""
    x = x.astype(jnp.float32)
    pixels = x.shape[1] * x.shape[2]
    return (jax.nn.logsumexp(gamma * x, axis=(1, 2)) - jnp.log(float(pixels))) / gamma


def max_min_pool(x: Array, *, cells: int, alpha: float = 1.0) -> Array:
    """Mean of the largest pixels plus alpha times the mean of the smallest: [B, h, w, C] -> [B, C].

    s = 1/k sum of the k largest + alpha 1/k sum of the k smallest: the best instances, and negative
    evidence (WELDON, Durand et al., CVPR 2016; with alpha, WILDCAT, Durand et al., CVPR 2017). They
    may overlap where 2 k exceeds the number of pixels. Each chosen pixel has 1/k of the gradient.

    Args:
      x: [B, h, w, C].
      cells: k, 1 .. h w.
      alpha: weight of the smallest.

    Returns:
      float32 [B, C].

    Raises:
      ValueError: k is out of range.
    """
    pixels = x.shape[1] * x.shape[2]
    if not 1 <= cells <= pixels:
        raise ValueError(f"cells={cells}; expected 1 to {pixels}, the number of pixels.")
    flat = jnp.moveaxis(x.astype(jnp.float32).reshape(x.shape[0], pixels, -1), 1, 2)
    largest, smallest = (sign * jax.lax.top_k(sign * flat, cells)[0] for sign in (1.0, -1.0))
    return jnp.mean(largest, axis=-1) + alpha * jnp.mean(smallest, axis=-1)


def exp_pool(x: Array) -> Array:
    """sum(x e) / (sum(e) + 1e-7), e = exp(x - max x): [B, h, w, C] -> [B, C]."""
    x = x.astype(jnp.float32)
    weights = jnp.exp(x - jax.lax.stop_gradient(jnp.max(x, axis=(1, 2), keepdims=True)))
    return jnp.sum(x * weights, axis=(1, 2)) / (jnp.sum(weights, axis=(1, 2)) + 1e-7)


def linear_pool(x: Array) -> Array:
    """sum(x x) / (sum(x) + 1e-7) over the pixels, for x >= 0: [B, h, w, C] -> [B, C]."""
    x = x.astype(jnp.float32)
    return jnp.sum(x * x, axis=(1, 2)) / (jnp.sum(x, axis=(1, 2)) + 1e-7)


def region_lse(logits: Array, present: Array, *, over: Over, r: float = 5.0) -> tuple[Array, Array]:
    """A film's probabilities out of its regions' by log-sum-exp, a smooth maximum (ADPD, Sec. 3.3).

    v = (1/r) log(1/A sum over present regions of exp(r p)), p = sigmoid(logit); its logit is
    log v - log(1 - v), both clipped to 1e-7 .. 1 - 1e-7. v and 1 - v are each summed from their own
    small terms, p and 1 - p: neither is lost where the other is near 1.

    Args:
        logits: [B, A, K] of the regions, before the sigmoid; anything where absent, NaN included.
        present: [B, A] bool or 0/1.
        over: what A counts. 'present', the regions that are there, as the paper says, or 'all', as
            in its released code: then few regions can give a v below 0, which the clip catches.
        r: sharpness, above 0 and at most 10: beyond, float32 loses 1 - v of small probabilities.

    Returns:
        v and its logit, both float32 [B, K]; both 0, without a gradient, where a film has no
        region: it has no probability then and takes no part.

    Raises:
        ValueError: another `over`, or r out of range.
    """
    if over not in ("present", "all"):
        raise ValueError(f"over={over!r}; expected 'present' or 'all'.")
    if not 0 < r <= 10:
        raise ValueError(f"r={r}; expected above 0 and at most 10.")
    present = jnp.asarray(present, bool)[..., None]
    count = jnp.sum(present, axis=1, dtype=jnp.float32)  # [B, 1]
    some, count = count > 0, jnp.maximum(count, 1.0)
    # Filled first: a NaN that is only masked out afterwards makes the gradient NaN.
    logits = jnp.where(present, jnp.asarray(logits, jnp.float32), 0.0)

    def log_mean(exponent: Array) -> Array:
        """log of the mean of exp over the present regions, exact near exponents of 0."""
        terms = jnp.where(present, jnp.expm1(exponent), 0.0)
        return jnp.log1p(jnp.sum(terms, axis=1) / count)

    shift = jnp.log(count / present.shape[1]) / r if over == "all" else 0.0
    value = log_mean(r * jax.nn.sigmoid(logits)) / r + shift
    rest = -log_mean(-r * jax.nn.sigmoid(-logits)) / r - shift
    logit = jnp.log(jnp.clip(value, 1e-7, 1 - 1e-7)) - jnp.log(jnp.clip(rest, 1e-7, 1 - 1e-7))
    return jnp.where(some, value, 0.0), jnp.where(some, logit, 0.0)
