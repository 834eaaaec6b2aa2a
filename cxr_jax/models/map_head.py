"""The map head: features to one full-size map (implied by Table 2 of Kim et al. 2021)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.models import layers

Array = jax.Array


class SeverityMapHead(nn.Module):
    """`blocks` times: bilinear x2, Conv(3x3)-BN-ReLU to half the channels, Conv(3x3)-BN-ReLU.

    Then a 1x1 convolution to `out_channels`. The paper does not write this head down; its parameter
    counts imply it. The sigmoid is the caller's, so that losses can work on logits.
    """

    blocks: int = 4
    out_channels: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Array, *, train: bool) -> Array:
        """[B, h, w, C] -> logits float32 [B, 2^blocks h, 2^blocks w, out_channels].

        Raises:
          ValueError: C is not a multiple of 2^blocks.
        """
        x, channels = features, features.shape[-1]
        if channels % 2**self.blocks:
            raise ValueError(
                f"the features have {channels} channels; {self.blocks} blocks that halve them need "
                f"a multiple of {2**self.blocks}. Use fewer blocks or another width."
            )
        for index in range(self.blocks):
            channels //= 2
            x = layers.upsample_2x(x)
            for part in ("a", "b"):
                block = layers.ConvNormRelu(channels, self.dtype, name=f"block{index}{part}")
                x = block(x, train=train)
        logits = layers.Conv1x1(self.out_channels, dtype=self.dtype, name="out")(x)
        return logits.astype(jnp.float32)
