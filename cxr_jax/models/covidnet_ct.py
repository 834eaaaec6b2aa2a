"""COVIDNet-CT (Gunraj, Wang and Wong, Frontiers in Medicine 2020, 7:608525), in outline.

Theirs: a network found by a machine search, of 1.40 M parameters at 512x512, released as a graph of
TensorFlow's without a table of its layers. What the paper says of it is here: a 7x7 convolution
first, then blocks of projection, replication, projection, expansion ('PRPE'), some of them strided,
light 3x3 convolutions of each channel alone, and connections that leap over blocks.

Ours: the widths and how many blocks there are, chosen so that the number of parameters is theirs;
batch norm and ReLU behind every convolution; one shortcut a block, where theirs leap selectively.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.models import layers

Array = jax.Array


class PRPE(nn.Module):
    """Projection, replication, projection, expansion, and a shortcut around them.

    Conv(1x1) to half the width, Conv(3x3) of each channel alone, which gives two for one, Conv(1x1)
    to half, Conv(1x1) to the width; ReLU of the sum.

    Attributes:
      width: channels that come out; even.
      stride: of the replication.
      dtype: of the computation.
    """

    width: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, h, w, C] -> [B, ceil(h / stride), ceil(w / stride), width]."""
        half = self.width // 2
        y = nn.relu(self._conv(x, half, "project1", train=train))
        y = nn.Conv(
            2 * half,
            (3, 3),
            strides=self.stride,
            padding=1,
            feature_group_count=half,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.he_normal(),
            name="replicate_conv",
        )(y)
        y = nn.relu(layers.BatchNorm(dtype=self.dtype, name="replicate_norm")(y, train=train))
        y = nn.relu(self._conv(y, half, "project2", train=train))
        y = self._conv(y, self.width, "expand", train=train)
        if self.stride > 1 or x.shape[-1] != self.width:
            x = self._conv(x, self.width, "shortcut", train=train, stride=self.stride)
        return nn.relu(x + y)

    def _conv(self, x: Array, features: int, name: str, *, train: bool, stride: int = 1) -> Array:
        conv = layers.Conv1x1(
            features, stride=stride, use_bias=False, dtype=self.dtype, name=f"{name}_conv"
        )
        return layers.BatchNorm(dtype=self.dtype, name=f"{name}_norm")(conv(x), train=train)


class COVIDNetCT(nn.Module):
    """A stem and stages of `PRPE` blocks; the classifier, a mean and one dense layer, is a head's.

    Attributes:
      block_sizes: blocks of each stage; the first of each but the first stage is strided.
      init_features: channels of the stem and the first stage; each stage doubles them.
      stop_at: the last tap that is wanted; what follows it is neither computed nor owned.
      dtype: of the computation; parameters and batch statistics stay float32.
    """

    block_sizes: tuple[int, ...] = (2, 3, 4, 2)
    init_features: int = 64
    stop_at: str = "stage4"
    dtype: Any = jnp.float32

    @property
    def strides(self) -> dict[str, int]:
        """The stride of every tap in pixels of the image, in the order they are computed."""
        stages = range(1, len(self.block_sizes) + 1)
        return {"stem": 4, **{f"stage{i}": 2 ** (i + 1) for i in stages}}

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        """[B, H, W, 3] -> every tap up to `stop_at`: 'stem', 'stage1', ... at stride 4, 4, 8, ...

        Raises:
          ValueError: `stop_at` is not a tap of this network.
        """
        if self.stop_at not in self.strides:
            raise ValueError(
                f"stop_at={self.stop_at!r}; this COVIDNetCT has the taps {list(self.strides)}."
            )
        x = layers.StemConv(self.init_features, dtype=self.dtype, name="stem_conv")(x)
        x = nn.relu(layers.BatchNorm(dtype=self.dtype, name="stem_norm")(x, train=train))
        out = {"stem": layers.max_pool_3x3(x)}
        x = out["stem"]
        for i, num_blocks in enumerate(self.block_sizes, start=1):
            if self.stop_at in out:
                break
            for k in range(num_blocks):
                stride = 2 if i > 1 and k == 0 else 1
                width = self.init_features * 2 ** (i - 1)
                block = PRPE(width, stride, self.dtype, name=f"stage{i}_{k}")
                x = block(x, train=train)
            out[f"stage{i}"] = x
        return out


def covidnet_ct(*, stop_at: str = "stage4", dtype: Any = jnp.float32) -> COVIDNetCT:
    """COVIDNet-CT: 1.40 M parameters with a classifier of three classes."""
    return COVIDNetCT(stop_at=stop_at, dtype=dtype)
