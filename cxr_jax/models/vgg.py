"""VGG (Simonyan and Zisserman, ICLR 2015, arXiv:1409.1556), a tap after every block."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.models import layers

Array = jax.Array


class VGG(nn.Module):
    """Blocks of Conv(3x3)-ReLU, each with a 2x2 max pool behind it (Table 1).

    The paper's two hidden layers of 4096, on 224x224 pixels, are the head's: `slices.DenseHead`,
    `hidden=(4096, 4096), pool="flatten"`.

    Attributes:
      block_sizes: convolutions of each block; (2, 2, 3, 3, 3) is VGG-16.
      init_features: channels of the first block; each block doubles them, up to eight times them.
      norm: batch norm before every ReLU, and then no bias (not in the paper).
      stop_at: the last tap that is wanted; what follows it is neither computed nor owned.
      dtype: of the computation; parameters and batch statistics stay float32.
    """

    block_sizes: tuple[int, ...] = (2, 2, 3, 3, 3)
    init_features: int = 64
    norm: bool = False
    stop_at: str = "block5"
    dtype: Any = jnp.float32

    @property
    def strides(self) -> dict[str, int]:
        """The stride of every tap in pixels of the image, in the order they are computed."""
        return {f"block{i}": 2**i for i in range(1, len(self.block_sizes) + 1)}

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        """[B, H, W, 3] -> every tap up to `stop_at`: 'block1', 'block2', ..., each behind its pool,
        at stride 2, 4, ...; an odd last row or column is dropped.

        Raises:
          ValueError: `stop_at` is not a tap of this network.
        """
        if self.stop_at not in self.strides:
            raise ValueError(
                f"stop_at={self.stop_at!r}; this VGG has the taps {list(self.strides)}."
            )
        out: dict[str, Array] = {}
        for i, num_convs in enumerate(self.block_sizes, start=1):
            if self.stop_at in out:
                break
            features = self.init_features * min(2 ** (i - 1), 8)
            for k in range(1, num_convs + 1):
                conv = layers.Conv3x3(
                    features, use_bias=not self.norm, dtype=self.dtype, name=f"conv{i}_{k}"
                )
                x = conv(x)
                if self.norm:
                    x = layers.BatchNorm(dtype=self.dtype, name=f"norm{i}_{k}")(x, train=train)
                x = nn.relu(x)
            height, width = (side // 2 * 2 for side in x.shape[1:3])
            x = layers.max_pool_2x2(x[:, :height, :width])
            out[f"block{i}"] = x
        return out


def vgg16(*, stop_at: str = "block5", dtype: Any = jnp.float32) -> VGG:
    """VGG-16: 14.71 M parameters, 138.36 M with the published classifier."""
    return VGG(stop_at=stop_at, dtype=dtype)
