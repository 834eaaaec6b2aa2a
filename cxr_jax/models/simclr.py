"""Contrastive pre-training of a corpus and its transformer (Chen et al. 2020, SimCLR).

h = f(x): the [class] token of Park et al. 2021, as their classifier reads it; without a ViT the
mean of the last map. z = g(h) = W2 relu(W1 h), on which the loss is; h is what is kept. Differs:
the layers have biases.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.models.corpus_vit import CorpusViT

Array = jax.Array


class Projection(nn.Module):
    """g: two layers, float32.

    Attributes:
      hidden: units of the first layer.
      size: D, of the vectors that are compared.
    """

    hidden: int
    size: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, C] -> [B, D]."""
        return nn.Dense(self.size, name="fc2")(nn.relu(nn.Dense(self.hidden, name="fc1")(x)))


class SimclrNet(CorpusViT):
    """Corpus, transformer and the projection, which is thrown away after the pre-training."""

    projection: Projection

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalised films [B, H, W] -> z [B, D], float32."""
        return self.projection(self.embed(x, train=train))

    def embed(self, x: Array, *, train: bool) -> Array:
        """Normalised films [B, H, W] -> h [B, C], float32."""
        encoded = self.encode(x, train=train)
        if self.vit is not None:
            return encoded["cls"].astype(jnp.float32)
        return jnp.mean(encoded["map"].astype(jnp.float32), axis=(1, 2))
