"""Xception (Chollet, CVPR 2017, arXiv:1610.02357), a tap after every change of stride."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.models import layers

Array = jax.Array


class Separable(nn.Module):
    """Conv(3x3, each channel alone)-Conv(1x1)-BN, no ReLU in between (Sec. 3).

    Attributes:
      features: output channels.
      dtype: of the computation.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, h, w, C] -> [B, h, w, features]."""
        channels = x.shape[-1]
        x = nn.Conv(
            channels,
            (3, 3),
            padding=1,
            feature_group_count=channels,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.he_normal(),
            name="depthwise",
        )(x)
        x = layers.Conv1x1(self.features, use_bias=False, dtype=self.dtype, name="pointwise")(x)
        return layers.BatchNorm(dtype=self.dtype, name="norm")(x, train=train)


class Block(nn.Module):
    """ReLU-Separable, several times, and a shortcut around them (Fig. 5).

    Attributes:
      features: channels of each.
      halve: a 3x3 max pool of stride 2 behind them, a 1x1 convolution with batch norm as shortcut.
      first_relu: False where what comes in had one already.
      dtype: of the computation.
    """

    features: tuple[int, ...]
    halve: bool = False
    first_relu: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, h, w, C] -> [B, h, w, features[-1]]; half the cells a side, rounded up, if halved."""
        y = x
        for index, features in enumerate(self.features):
            y = nn.relu(y) if index or self.first_relu else y
            y = Separable(features, self.dtype, name=f"separable{index + 1}")(y, train=train)
        if not self.halve:
            return x + y
        shortcut = layers.Conv1x1(
            self.features[-1], stride=2, use_bias=False, dtype=self.dtype, name="shortcut_conv"
        )(x)
        norm = layers.BatchNorm(dtype=self.dtype, name="shortcut_norm")
        return norm(shortcut, train=train) + layers.max_pool_3x3(y)


class Xception(nn.Module):
    """Entry, middle and exit flow (Fig. 5).

    Differs: convolutions are padded by 1 all round, the first two as well, so that cells divide the
    image; batch norm's epsilon is 1e-5.

    Attributes:
      entry_features: channels of the two plain convolutions, and of every block that halves.
      middle_blocks: how many blocks keep the stride, of three separable convolutions each.
      exit_features: channels of the last block, and of the two separable convolutions behind it.
      stop_at: the last tap that is wanted; what follows it is neither computed nor owned.
      dtype: of the computation; parameters and batch statistics stay float32.
    """

    entry_features: tuple[int, ...] = (32, 64, 128, 256, 728)
    middle_blocks: int = 8
    exit_features: tuple[int, int, int] = (1024, 1536, 2048)
    stop_at: str = "exit"
    dtype: Any = jnp.float32

    @property
    def strides(self) -> dict[str, int]:
        """The stride of every tap in pixels of the image, in the order they are computed."""
        entries = range(1, len(self.entry_features) - 1)
        last = 2 ** (len(entries) + 1)
        return {
            **{"stem": 2, **{f"entry{i}": 2 ** (i + 1) for i in entries}},
            **{"middle": last, "exit": 2 * last},
        }

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        """[B, H, W, 3] -> every tap up to `stop_at`: 'stem' at stride 2, 'entry1', ... at 4, ...,
        'middle' at the last one's, 'exit' at twice that. Only 'stem' and 'exit' end with a ReLU.

        Raises:
          ValueError: `stop_at` is not a tap of this network.
        """
        if self.stop_at not in self.strides:
            raise ValueError(
                f"stop_at={self.stop_at!r}; this Xception has the taps {list(self.strides)}."
            )
        out: dict[str, Array] = {}
        for name in self.strides:
            if name == "stem":
                x = self._stem(x, train)
            elif name == "middle":
                x = self._middle(x, train)
            elif name == "exit":
                x = self._exit(x, train)
            else:
                x = self._entry(x, train, number=len(out))
            out[name] = x
            if name == self.stop_at:
                break
        return out

    def _stem(self, x: Array, train: bool) -> Array:
        for index, features in enumerate(self.entry_features[:2], start=1):
            stride = 3 - index  # 2, then 1
            conv = layers.Conv3x3(
                features, stride=stride, dtype=self.dtype, name=f"stem_conv{index}"
            )
            norm = layers.BatchNorm(dtype=self.dtype, name=f"stem_norm{index}")
            x = nn.relu(norm(conv(x), train=train))
        return x

    def _entry(self, x: Array, train: bool, *, number: int) -> Array:
        block = Block(
            (self.entry_features[number + 1],) * 2,
            halve=True,
            first_relu=number > 1,
            dtype=self.dtype,
            name=f"entry{number}",
        )
        return block(x, train=train)

    def _middle(self, x: Array, train: bool) -> Array:
        features = (self.entry_features[-1],) * 3
        for index in range(1, self.middle_blocks + 1):
            x = Block(features, dtype=self.dtype, name=f"middle{index}")(x, train=train)
        return x

    def _exit(self, x: Array, train: bool) -> Array:
        features = (self.entry_features[-1], self.exit_features[0])
        x = Block(features, halve=True, dtype=self.dtype, name="exit")(x, train=train)
        for index, width in enumerate(self.exit_features[1:], start=1):
            separable = Separable(width, self.dtype, name=f"exit_separable{index}")
            x = nn.relu(separable(x, train=train))
        return x


def xception(*, stop_at: str = "exit", dtype: Any = jnp.float32) -> Xception:
    """Xception: 20.81 M parameters, 22.86 M with ImageNet's classifier."""
    return Xception(stop_at=stop_at, dtype=dtype)
