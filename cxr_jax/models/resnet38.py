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
    """y = Conv(1x1)-BN-ReLU-Conv(3x3, dilation 4)-BN-ReLU-Conv(1x1) of a, plus Conv(1x1) of a.

    a = ReLU(BN(x)) is the pre-activated input. The inner widths are out / 4 and out / 2. Dropout
    comes after each inner ReLU and drops whole channels, as the released code's does.

    Attributes:
      out: channels at the end.
      dropout: probability that a channel is dropped.
    """

    out: int
    dropout: float
    dtype: Any = jnp.float32

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
        y = layers.Conv3x3(self.out // 2, dilation=4, dtype=self.dtype, name="conv_branch2b1")(y)
        y = drop(norm_relu(y, "bn_branch2b2"))
        y = conv1x1(y, self.out, "conv_branch2b2", kernel_init=branch_init)
        return conv1x1(a, self.out, "conv_branch1") + y, a


class ResNet38(nn.Module):
    """ResNet-38d without its classifier; submodules are named as the released code names them.

    Attributes:
      width: a factor on all channels; 1 is the published network (105 M parameters), a small one
        must leave whole numbers: a multiple of 1/64.
      dropout: of b6 and b7.
      dtype: of the computation; parameters and batch statistics stay float32.
    """

    width: float = 1.0
    dropout: tuple[float, float] = (0.3, 0.5)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool, train_norms: bool = False) -> dict[str, Array]:
        """[B, H, W, 3] -> four taps.

        Args:
          x: images.
          train: turns dropout on (needs the random stream 'dropout').
          train_norms: True takes the batch's statistics; the paper's norms stay in inference mode.

        Returns:
          'conv3' [B, H/4, W/4, 256], 'conv4' [B, H/8, W/8, 512], 'conv5' [B, H/8, W/8, 1024]: the
          pre-activated inputs of b4, b5 and b6; 'conv6' [B, H/8, W/8, 4096]: the end. All widths
          are times `width`.

        Raises:
          ValueError: `width` leaves a fraction of a channel.
        """
        if self.width <= 0 or self.width * 64 % 1:
            raise ValueError(f"width={self.width}; expected a positive multiple of 1/64.")

        def unit(x: Array, name: str, inner: int, out: int, **kwargs) -> tuple[Array, Array]:
            inner, out = round(inner * self.width), round(out * self.width)
            block = PlainUnit(inner, out, dtype=self.dtype, name=name, **kwargs)
            return block(x, train_norms=train_norms)

        def stage(x: Array, name: str, units: int, channels: int) -> tuple[Array, Array]:
            x, a = unit(x, name, channels, channels, stride=2)
            for index in range(1, units):
                x, _ = unit(x, f"{name}_{index}", channels, channels)
            return x, a

        x = layers.Conv3x3(round(64 * self.width), dtype=self.dtype, name="conv1a")(x)
        x, _ = stage(x, "b2", 3, 128)
        x, _ = stage(x, "b3", 3, 256)
        x, conv3 = stage(x, "b4", 6, 512)
        x, conv4 = unit(x, "b5", 512, 1024, dilations=(1, 2))
        x, _ = unit(x, "b5_1", 512, 1024, dilations=(2, 2))
        x, _ = unit(x, "b5_2", 512, 1024, dilations=(2, 2))
        x, conv5 = BottleneckUnit(round(2048 * self.width), self.dropout[0], self.dtype, name="b6")(
            x, train=train, train_norms=train_norms
        )
        x, _ = BottleneckUnit(round(4096 * self.width), self.dropout[1], self.dtype, name="b7")(
            x, train=train, train_norms=train_norms
        )
        conv6 = nn.relu(layers.BatchNorm(dtype=self.dtype, name="bn7")(x, train=train_norms))
        return {"conv3": conv3, "conv4": conv4, "conv5": conv5, "conv6": conv6}
