"""A U-Net (Ronneberger et al., arXiv:1505.04597)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.models import layers

Array = jax.Array


class UNet(nn.Module):
    """Two Conv(3x3)-BN-ReLU a level; 2x2 max pools down; bilinear x2 and the level's skip going up.

    Differs from arXiv:1505.04597: padded convolutions (the output has the input's size), batch
    norm, bilinear upsampling in place of transposed convolutions, and narrower.

    Attributes:
      features: channels of each level, finest first; each level after the first halves the size.
      out_channels: maps; by default two, for the right and the left lung.
      dtype: of the computation; parameters and batch statistics stay float32.
    """

    features: tuple[int, ...] = (32, 64, 128, 256)
    out_channels: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> Array:
        """[B, H, W, C] -> logits float32 [B, H, W, out_channels].

        Raises:
          ValueError: H or W is not a multiple of 2^(levels - 1).
        """
        layers.check_halves(image, levels=len(self.features))

        def level(x: Array, channels: int, name: str) -> Array:
            for part in ("a", "b"):
                x = layers.ConvNormRelu(channels, self.dtype, name=name + part)(x, train=train)
            return x

        x, skips = image, []
        for index, channels in enumerate(self.features):
            x = layers.max_pool_2x2(x) if index else x
            x = level(x, channels, f"down{index}")
            skips.append(x)
        for index in reversed(range(len(self.features) - 1)):
            x = jnp.concatenate([skips[index], layers.upsample_2x(x)], axis=-1)
            x = level(x, self.features[index], f"up{index}")
        logits = layers.Conv1x1(self.out_channels, dtype=self.dtype, name="out")(x)
        return logits.astype(jnp.float32)
