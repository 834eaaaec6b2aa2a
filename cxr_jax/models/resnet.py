"""ResNet (He et al., arXiv:1512.03385) in torchvision's layout, a tap after every stage."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.models import layers

Array = jax.Array
Tap = Literal["stem", "layer1", "layer2", "layer3", "layer4"]


def _shortcut(x: Array, features: int, stride: int, dtype: Any, *, train: bool) -> Array:
    """x where it fits, else Conv(1x1, stride)-BN of it (Sec. 3.3, option B); in the caller's scope.

    [B, h, w, C] -> [B, ceil(h / stride), ceil(w / stride), features].
    """
    if stride == 1 and x.shape[-1] == features:
        return x
    x = layers.Conv1x1(
        features, stride=stride, use_bias=False, dtype=dtype, name="downsample_conv"
    )(x)
    return layers.BatchNorm(dtype=dtype, name="downsample_norm")(x, train=train)


class BasicBlock(nn.Module):
    """y = ReLU(F(x) + shortcut), F = Conv(3x3)-BN-ReLU-Conv(3x3)-BN (Fig. 5, left).

    Attributes:
      width: channels, inside and out.
      stride: of the first convolution.
    """

    width: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, h, w, C] -> [B, ceil(h / stride), ceil(w / stride), width]."""
        y = layers.Conv3x3(self.width, stride=self.stride, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(layers.BatchNorm(dtype=self.dtype, name="bn1")(y, train=train))
        y = layers.Conv3x3(self.width, dtype=self.dtype, name="conv2")(y)
        y = layers.BatchNorm(dtype=self.dtype, name="bn2")(y, train=train)
        return nn.relu(y + _shortcut(x, self.width, self.stride, self.dtype, train=train))


class Bottleneck(nn.Module):
    """y = ReLU(F(x) + shortcut), F = Conv(1x1)-BN-ReLU-Conv(3x3)-BN-ReLU-Conv(1x1)-BN (Fig. 5).

    Differs from the paper as torchvision does ('v1.5'): the 3x3 convolution has the stride, not the
    first 1x1.

    Attributes:
      width: channels inside; 4 * width come out.
      stride: of the 3x3 convolution.
    """

    width: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, h, w, C] -> [B, ceil(h / stride), ceil(w / stride), 4 * width]."""
        wide = 4 * self.width
        y = layers.Conv1x1(self.width, use_bias=False, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(layers.BatchNorm(dtype=self.dtype, name="bn1")(y, train=train))
        y = layers.Conv3x3(self.width, stride=self.stride, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(layers.BatchNorm(dtype=self.dtype, name="bn2")(y, train=train))
        y = layers.Conv1x1(wide, use_bias=False, dtype=self.dtype, name="conv3")(y)
        y = layers.BatchNorm(dtype=self.dtype, name="bn3")(y, train=train)
        return nn.relu(y + _shortcut(x, wide, self.stride, self.dtype, train=train))


class Stage(nn.Module):
    """Blocks '0', '1', ... of one width; the first has the stride."""

    num_blocks: int
    bottleneck: bool
    width: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, h, w, C] -> [B, ceil(h / stride), ceil(w / stride), width or 4 * width]."""
        block = Bottleneck if self.bottleneck else BasicBlock
        for index in range(self.num_blocks):
            stride = 1 if index else self.stride
            x = block(self.width, stride, self.dtype, name=str(index))(x, train=train)
        return x


class ResNet(nn.Module):
    """ResNet; submodules are named as torchvision names them.

    A block's shortcut is `downsample_conv` and `downsample_norm`; torchvision has `downsample.0`
    and `downsample.1`.

    Attributes:
      block_sizes: blocks of each stage; fewer stages make a shallower network.
      bottleneck: blocks of three convolutions, four times as wide at their end; else of two.
      init_features: channels of the stem and the width of the first stage; each stage doubles it.
      stop_at: the last tap that is wanted; what follows it is neither computed nor owned.
      dtype: of the computation; parameters and batch statistics stay float32.
    """

    block_sizes: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    init_features: int = 64
    stop_at: Tap = "layer4"
    dtype: Any = jnp.float32

    @property
    def strides(self) -> dict[str, int]:
        """The stride of every tap in pixels of the image, in the order they are computed."""
        stages = range(1, len(self.block_sizes) + 1)
        return {"stem": 4, **{f"layer{i}": 2 ** (i + 1) for i in stages}}

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        """[B, H, W, 3] -> every tap up to `stop_at`.

        Returns:
          'stem' [B, H/4, W/4, init_features] after the max pool; 'layer1', 'layer2', ... after each
          stage's last ReLU, at stride 4, 8, 16, 32.

        Raises:
          ValueError: `stop_at` is not a tap of this network.
        """
        if self.stop_at not in self.strides:
            raise ValueError(
                f"stop_at={self.stop_at!r}; this ResNet has the taps {list(self.strides)}."
            )
        x = layers.StemConv(self.init_features, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(layers.BatchNorm(dtype=self.dtype, name="bn1")(x, train=train))
        x = layers.max_pool_3x3(x)
        out = {"stem": x}
        for i, num_blocks in enumerate(self.block_sizes, start=1):
            if self.stop_at in out:
                return out
            width, stride = self.init_features * 2 ** (i - 1), 1 if i == 1 else 2
            stage = Stage(
                num_blocks,
                bottleneck=self.bottleneck,
                width=width,
                stride=stride,
                dtype=self.dtype,
                name=f"layer{i}",
            )
            x = stage(x, train=train)
            out[f"layer{i}"] = x
        return out


def resnet18(*, stop_at: Tap = "layer4", dtype: Any = jnp.float32) -> ResNet:
    """ResNet-18: 11.18 M parameters without classifier; 'layer3' has 256 channels."""
    return ResNet((2, 2, 2, 2), bottleneck=False, stop_at=stop_at, dtype=dtype)


def resnet34(*, stop_at: Tap = "layer4", dtype: Any = jnp.float32) -> ResNet:
    """ResNet-34: 21.28 M parameters without classifier; 'layer3' has 256 channels."""
    return ResNet((3, 4, 6, 3), bottleneck=False, stop_at=stop_at, dtype=dtype)


def resnet50(*, stop_at: Tap = "layer4", dtype: Any = jnp.float32) -> ResNet:
    """ResNet-50: 23.51 M parameters without classifier; 'layer3' has 1024 channels."""
    return ResNet((3, 4, 6, 3), stop_at=stop_at, dtype=dtype)


def resnet101(*, stop_at: Tap = "layer4", dtype: Any = jnp.float32) -> ResNet:
    """ResNet-101: 42.50 M parameters without classifier; 'layer3' has 1024 channels."""
    return ResNet((3, 4, 23, 3), stop_at=stop_at, dtype=dtype)


def resnet152(*, stop_at: Tap = "layer4", dtype: Any = jnp.float32) -> ResNet:
    """ResNet-152: 58.14 M parameters without classifier; 'layer3' has 1024 channels."""
    return ResNet((3, 8, 36, 3), stop_at=stop_at, dtype=dtype)
