"""Multiple-instance bags: from the logits of the instances to the logit of the bag."""

import jax
import jax.numpy as jnp

from cxr_jax.ops.pooling import LOWEST

Array = jax.Array

# Below this -log P the odds of the union are the sum of the odds, to float32's last digit.
RARE = 1e-6


def bag_logit(logits: Array, valid: Array) -> Array:
    """Logit of the noisy-OR of a bag: pb of Eq. 7, Tang et al. 2021 (M-SEAM-NAM).

    pb = log((1 - P) / P), P = product of 1 - sigmoid(p) over the valid instances. With
    L = -log P = sum of softplus(p) this is L + log(1 - exp(-L)). Where L < 1e-6 every p is below
    -13 and pb = logsumexp(p), which also holds where exp(p), and L with it, underflows.

    Args:
      logits: p [B, S], one an instance; anything where invalid, NaN included.
      valid: [B, S] bool or 0/1.

    Returns:
      [B] float32; the gradient is sigmoid(p) / (1 - P), and 0 at invalid instances. A bag without
      a valid instance has probability 0: it gives the finite -1e30, without a gradient. Data
      readers must refuse such a bag: the loss of a positive one means nothing.
    """
    valid = jnp.asarray(valid, bool)
    # Fill first: a non-finite value that is only masked out afterwards makes the gradient NaN.
    logits = jnp.where(valid, jnp.asarray(logits, jnp.float32), 0.0)
    none_positive = jnp.sum(jnp.where(valid, jax.nn.softplus(logits), 0.0), axis=-1)  # L
    rare = none_positive < RARE
    common = jnp.where(rare, 1.0, none_positive)
    sum_of_odds = jax.nn.logsumexp(jnp.where(valid, logits, LOWEST), axis=-1)
    return jnp.where(rare, sum_of_odds, common + jnp.log(-jnp.expm1(-common)))


def mean_inside(values: Array, valid: Array) -> Array:
    """The mean over the valid instances of each bag: [B, S] twice -> [B]; 0 where none is."""
    return jnp.sum(jnp.where(valid, values, 0.0), 1) / jnp.maximum(valid.sum(1), 1)
