"""From maps to vectors: PCAM, log-sum-exp and other pooling, and the six lung zones."""

from typing import Literal

import jax
import jax.numpy as jnp

Array = jax.Array
ZoneMode = Literal["max", "mean"]

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

    The gradient goes to one pixel, the zone's first largest: a gather, cheaper than a comparison
    with every pixel. An empty zone has the value 0 and no gradient.
    """
    flat_values = values.reshape(values.shape[0], -1)
    flat_zones = zones.reshape(values.shape[0], -1)
    fixed = jax.lax.stop_gradient(flat_values)
    index = _zone_table(
        [
            jnp.argmax(jnp.where(flat_zones == k, fixed, LOWEST), axis=1)
            for k in range(1, NUM_ZONES + 1)
        ]
    )
    valid = zone_valid(zones)
    peak = jnp.take_along_axis(flat_values, index.reshape(-1, NUM_ZONES), axis=1)
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
    """log of the mean of exp(x) over each zone: [B, H, W] -> [B, 3, 2], 0 for an empty zone."""
    means = []
    for k in range(1, NUM_ZONES + 1):
        inside = zones == k
        count = jnp.sum(inside, axis=(1, 2), dtype=jnp.float32)
        top = jax.lax.stop_gradient(jnp.max(jnp.where(inside, x, LOWEST), axis=(1, 2)))
        # Fill first: outside the zone exp could overflow, and a masked infinity has a NaN gradient.
        shifted = jnp.where(inside, x - top[:, None, None], LOWEST)
        total = jnp.sum(jnp.exp(shifted), axis=(1, 2))
        empty = count == 0
        mean = jnp.log(jnp.where(empty, 1.0, total) / jnp.maximum(count, 1.0)) + top
        means.append(jnp.where(empty, 0.0, mean))
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


def exp_pool(x: Array) -> Array:
    """sum(x e) / (sum(e) + 1e-7), e = exp(x - max x): [B, h, w, C] -> [B, C]."""
    x = x.astype(jnp.float32)
    weights = jnp.exp(x - jax.lax.stop_gradient(jnp.max(x, axis=(1, 2), keepdims=True)))
    return jnp.sum(x * weights, axis=(1, 2)) / (jnp.sum(weights, axis=(1, 2)) + 1e-7)


def linear_pool(x: Array) -> Array:
    """sum(x x) / (sum(x) + 1e-7) over the pixels, for x >= 0: [B, h, w, C] -> [B, C]."""
    x = x.astype(jnp.float32)
    return jnp.sum(x * x, axis=(1, 2)) / (jnp.sum(x, axis=(1, 2)) + 1e-7)
