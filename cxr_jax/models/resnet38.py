"""ResNet-38d (Wu et al., arXiv:1611.10080), the network under SEAM and M-SEAM-NAM."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.models import layers

Array = jax.Array

# The last convolution of every residual branch starts at a hundredth of He's standard deviation, so
# that a network from random numbers begins as its shortcuts (Goyal et al., arXiv:1706.02677, begin
# at zero). Without it the 38 layers learn nothing in the first hundreds of steps.
branch_init = nn.initializers.variance_scaling(2.0 * 0.01**2, "fan_in", "truncated_normal")


class PlainUnit(nn.Module):
    """y = Conv(3x3)-BN-ReLU-Conv(3x3) of a + shortcut, a = ReLU(BN(x)): the pre-activated input.

    The shortcut is x itself, or a 1x1 convolution of a where the width or the size changes.

    Attributes:
      width, out: channels inside and at the end.
      stride: of the first convolution.
      dilations: of the two convolutions.
    """

    width: int
    out: int
    stride: int = 1
    dilations: tuple[int, int] = (1, 1)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train_norms: bool) -> tuple[Array, Array]:
        """[B, h, w, C] -> y [B, h / stride, w / stride, out] and a [B, h, w, C]."""

        def norm_relu(x: Array, name: str) -> Array:
            return nn.relu(layers.BatchNorm(dtype=self.dtype, name=name)(x, train=train_norms))

        a = norm_relu(x, "bn_branch2a")
        first, second = self.dilations
        y = layers.Conv3x3(self.width, self.stride, first, self.dtype, name="conv_branch2a")(a)
        y = norm_relu(y, "bn_branch2b1")
        y = layers.Conv3x3(
            self.out, 1, second, self.dtype, kernel_init=branch_init, name="conv_branch2b1"
        )(y)
        if self.stride > 1 or x.shape[-1] != self.out:
            x = layers.Conv1x1(
                self.out, self.stride, use_bias=False, dtype=self.dtype, name="conv_branch1"
            )(a)
        return x + y, a


class BottleneckUnit(nn.Module):
    """y = Conv(1x1)-BN-ReLU-Conv(3x3, dilated)-BN-ReLU-Conv(1x1) of a, plus Conv(1x1) of a.

    a = ReLU(BN(x)) is the pre-activated input. The inner widths are out / 4 and out / 2. Dropout
    comes after each inner ReLU and drops whole channels, as the released code's does.

    Attributes:
      out: channels at the end.
      dropout: probability that a channel is dropped.
      dilation: of the 3x3 convolution.
    """

    out: int
    dropout: float
    dtype: Any = jnp.float32
    dilation: int = 4

    @nn.compact
    def __call__(self, x: Array, *, train: bool, train_norms: bool) -> tuple[Array, Array]:
        """[B, h, w, C] -> y [B, h, w, out] and a [B, h, w, C]."""

        def norm_relu(x: Array, name: str) -> Array:
            return nn.relu(layers.BatchNorm(dtype=self.dtype, name=name)(x, train=train_norms))

        def conv1x1(x: Array, features: int, name: str, **kwargs) -> Array:
            return layers.Conv1x1(features, use_bias=False, dtype=self.dtype, name=name, **kwargs)(
                x
            )

        drop = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)
        a = norm_relu(x, "bn_branch2a")
        y = conv1x1(a, self.out // 4, "conv_branch2a")
        y = drop(norm_relu(y, "bn_branch2b1"))
        y = layers.Conv3x3(
            self.out // 2, dilation=self.dilation, dtype=self.dtype, name="conv_branch2b1"
        )(y)
        y = drop(norm_relu(y, "bn_branch2b2"))
        y = conv1x1(y, self.out, "conv_branch2b2", kernel_init=branch_init)
        return conv1x1(a, self.out, "conv_branch1") + y, a


class ResNet38(nn.Module):
    """ResNet-38d without its classifier; submodules are named as the released code names them.

    Stride and dilations change no parameter: weights fit whatever they are. On a small picture the
    published ones reach too far: what a cell sees is some 53 px wide (one standard deviation), 12%
    of a slice of 448 px and 41% of one of 128, so that evidence may lie anywhere.

    Attributes:
      width: a factor on all channels; 1 is the published network (105 M parameters), a small one
        must leave whole numbers: a multiple of 1/64.
      dropout: of b6 and b7.
      dtype: of the computation; parameters and batch statistics stay float32.
      stride: of the last maps: 8, as published; 4 and 2 leave b4, or b3 and b4, at stride 1.
      dilations: of b5, b6 and b7; the first convolution of b5 has half of its (at least 1).
      stop_at: the tap that a corpus or a classifier reads (`backbones`); all are computed.
    """

    width: float = 1.0
    dropout: tuple[float, float] = (0.3, 0.5)
    dtype: Any = jnp.float32
    stride: int = 8
    dilations: tuple[int, int, int] = (2, 4, 4)
    stop_at: str = "conv6"

    @property
    def strides(self) -> dict[str, int]:
        """Tap -> pixels of the image between two of its cells."""
        return {"conv3": min(self.stride, 4)} | dict.fromkeys(
            ("conv4", "conv5", "conv6"), self.stride
        )

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool, train_norms: bool | None = None
    ) -> dict[str, Array]:
        """[B, H, W, 3] -> four taps.

        Args:
          x: images.
          train: turns dropout on (needs the random stream 'dropout').
          train_norms: True takes the batch's statistics; the paper's norms stay in inference mode.
            None: as `train`.

        Returns:
          With stride s: 'conv3' [B, H/4, W/4, 256] (at most s), 'conv4' [B, H/s, W/s, 512], 'conv5'
          [B, H/s, W/s, 1024]: the pre-activated inputs of b4, b5 and b6; 'conv6' [B, H/s, W/s,
          4096]: the end. All widths are times `width`.

        Raises:
          ValueError: `width` leaves a fraction of a channel, or there is no such stride, dilation
            or tap.
        """
        self._check()
        train_norms = train if train_norms is None else train_norms

        def unit(x: Array, name: str, inner: int, out: int, **kwargs) -> tuple[Array, Array]:
            inner, out = round(inner * self.width), round(out * self.width)
            block = PlainUnit(inner, out, dtype=self.dtype, name=name, **kwargs)
            return block(x, train_norms=train_norms)

        def stage(x: Array, name: str, units: int, channels: int) -> tuple[Array, Array]:
            shrinks = int(name[1]) - 2 < self.stride.bit_length() - 1  # b2 first, b4 last
            x, a = unit(x, name, channels, channels, stride=2 if shrinks else 1)
            for index in range(1, units):
                x, _ = unit(x, f"{name}_{index}", channels, channels)
            return x, a

        def bottleneck(x: Array, name: str, channels: int) -> tuple[Array, Array]:
            index = int(name[1]) - 6
            out, far = round(channels * self.width), self.dilations[index + 1]
            drop = self.dropout[index]
            block = BottleneckUnit(out, drop, dtype=self.dtype, dilation=far, name=name)
            return block(x, train=train, train_norms=train_norms)

        x = layers.Conv3x3(round(64 * self.width), dtype=self.dtype, name="conv1a")(x)
        x, _ = stage(x, "b2", 3, 128)
        x, _ = stage(x, "b3", 3, 256)
        x, conv3 = stage(x, "b4", 6, 512)
        far = self.dilations[0]
        x, conv4 = unit(x, "b5", 512, 1024, dilations=(max(far // 2, 1), far))
        x, _ = unit(x, "b5_1", 512, 1024, dilations=(far, far))
        x, _ = unit(x, "b5_2", 512, 1024, dilations=(far, far))
        x, conv5 = bottleneck(x, "b6", 2048)
        x, _ = bottleneck(x, "b7", 4096)
        conv6 = nn.relu(layers.BatchNorm(dtype=self.dtype, name="bn7")(x, train=train_norms))
        return {"conv3": conv3, "conv4": conv4, "conv5": conv5, "conv6": conv6}

    def _check(self) -> None:
        if self.width <= 0 or self.width * 64 % 1:
            raise ValueError(f"width={self.width}; expected a positive multiple of 1/64.")
        if self.stride not in (2, 4, 8):
            raise ValueError(f"stride={self.stride}; expected 2, 4 or 8.")
        if len(self.dilations) != 3 or min(self.dilations) < 1:
            raise ValueError(f"dilations={self.dilations}; expected three numbers of at least 1.")
        if self.stop_at not in self.strides:
            raise ValueError(
                f"stop_at={self.stop_at!r}; this ResNet-38 has the taps {list(self.strides)}."
            )
