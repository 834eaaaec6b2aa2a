"""Explanations of a ViT from its attention alone: the last layer's, and attention rollout.

Both are the same for every class. `attention` is what `models/vit.py: ViT` returns with
`return_attention`: one [B, heads, 1 + N, 1 + N] a layer (query, key), the [class] token first.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array


def last_layer(attention: Sequence[Array]) -> Array:
    """What the [class] token looks at in the last layer, mean over heads: -> [B, N].

    A row sums to 1 less what the token gives to itself.
    """
    return jnp.mean(attention[-1].astype(jnp.float32), axis=1)[:, 0, 1:]


def rollout(attention: Sequence[Array]) -> Array:
    """Attention rollout (Abnar and Zuidema, ACL 2020): -> [B, N], the [class] token's row.

    A layer mixes its tokens by (mean attention over heads + identity), rows scaled to sum 1; the
    layers are multiplied, later ones on the left. Only the first row of the product is formed.
    """
    batch, tokens = attention[-1].shape[::3]
    row = class_row(batch, tokens)
    for layer in reversed(attention):
        mixing = jnp.mean(layer.astype(jnp.float32), axis=1) + jnp.eye(layer.shape[-1])
        mixing = mixing / jnp.sum(mixing, axis=-1, keepdims=True)
        row = through_layer(row, mixing)
    return row[:, 1:]


def class_row(batch: int, tokens: int) -> Array:
    """The first row of the identity, [B, N], where the product of the layers begins."""
    return jnp.zeros((batch, tokens)).at[:, 0].set(1.0)


def through_layer(row: Array, mixing: Array) -> Array:
    """One more factor on the right: [B, N], [B, N, N] -> [B, N]."""
    return jnp.einsum("bi,bij->bj", row, mixing, precision=jax.lax.Precision.HIGHEST)
