"""DenseNet (Huang et al., arXiv:1608.06993) in torchvision's layout, a tap after every block."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.models import layers

Array = jax.Array
Tap = Literal["stem", "block1", "block2", "block3", "block4", "final"]


class DenseLayer(nn.Module):
    """H_l of Eq. 2: BN-ReLU-Conv(1x1)-BN-ReLU-Conv(3x3), k = `growth_rate` new channels.

    The 1x1 bottleneck has `bn_size` * k channels (4k, Sec. 3, 'Bottleneck layers').
    """

    growth_rate: int
    bn_size: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool, moments: layers.Moments | None = None) -> Array:
        """[B, h, w, C] -> [B, h, w, k]: the new channels alone; `moments` are those of x."""
        x = layers.BatchNorm(dtype=self.dtype, name="norm1")(x, train=train, moments=moments)
        x = layers.Conv1x1(
            self.bn_size * self.growth_rate, use_bias=False, dtype=self.dtype, name="conv1"
        )(nn.relu(x))
        x = layers.BatchNorm(dtype=self.dtype, name="norm2")(x, train=train)
        return layers.Conv3x3(self.growth_rate, dtype=self.dtype, name="conv2")(nn.relu(x))


class DenseBlock(nn.Module):
    """Layer l sees the block's input and the new channels of all layers before it (Eq. 2)."""

    num_layers: int
    growth_rate: int
    bn_size: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, h, w, C] -> [B, h, w, C + num_layers * growth_rate]; new channels come last."""
        # A channel's batch statistics are the same in every layer that sees it: take them once.
        moments = layers.batch_moments(x) if train else None
        for index in range(self.num_layers):
            new = DenseLayer(
                self.growth_rate, self.bn_size, self.dtype, name=f"denselayer{index + 1}"
            )(x, train=train, moments=moments)
            x = jnp.concatenate([x, new], axis=-1)
            if train:
                added = layers.batch_moments(new)
                moments = tuple(jnp.concatenate(pair) for pair in zip(moments, added))
        return x


class Transition(nn.Module):
    """BN-ReLU-Conv(1x1) to half the channels, then a 2x2 average pool (theta = 0.5, Sec. 3)."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, h, w, C] -> [B, h // 2, w // 2, C // 2]."""
        half = x.shape[-1] // 2
        x = nn.relu(layers.BatchNorm(dtype=self.dtype, name="norm")(x, train=train))
        # The mean of a linear map is the map of the mean: pooled first, the product is 4x smaller.
        x = layers.average_pool_2x2(x)
        return layers.Conv1x1(half, use_bias=False, dtype=self.dtype, name="conv")(x)


class DenseNet(nn.Module):
    """DenseNet with bottlenecks and compression; submodules are named as torchvision names them.

    Attributes:
      growth_rate: k, new channels a layer.
      block_sizes: layers of each of the four blocks; fewer blocks make a shallower network.
      init_features: channels of the stem.
      bn_size: bottleneck channels in units of k.
      stop_at: the last tap that is wanted; what follows it is neither computed nor owned.
      dtype: of the computation; parameters and batch statistics stay float32.
    """

    growth_rate: int = 32
    block_sizes: tuple[int, ...] = (6, 12, 24, 16)
    init_features: int = 64
    bn_size: int = 4
    stop_at: Tap = "final"
    dtype: Any = jnp.float32

    @property
    def strides(self) -> dict[str, int]:
        """The stride of every tap in pixels of the image, in the order they are computed."""
        blocks = {f"block{i}": 2 ** (i + 1) for i in range(1, len(self.block_sizes) + 1)}
        return {"stem": 4, **blocks, "final": 2 ** (len(blocks) + 1)}

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        """[B, H, W, 3] -> every tap up to `stop_at`.

        Returns:
          'stem' [B, H/4, W/4, init_features] after the max pool; 'block1', 'block2', ... each
          before its transition, at stride 4, 8, 16, 32; 'final' after the last batch norm and ReLU.

        Raises:
          ValueError: `stop_at` is not a tap of this network.
        """
        if self.stop_at not in self.strides:
            raise ValueError(
                f"stop_at={self.stop_at!r}; this DenseNet has the taps {list(self.strides)}."
            )
        x = layers.StemConv(self.init_features, dtype=self.dtype, name="conv0")(x)
        x = nn.relu(layers.BatchNorm(dtype=self.dtype, name="norm0")(x, train=train))
        x = layers.max_pool_3x3(x)
        out = {"stem": x}
        for i, num_layers in enumerate(self.block_sizes, start=1):
            if self.stop_at in out:
                return out
            if i > 1:
                x = Transition(self.dtype, name=f"transition{i - 1}")(x, train=train)
            block = DenseBlock(
                num_layers,
                self.growth_rate,
                bn_size=self.bn_size,
                dtype=self.dtype,
                name=f"denseblock{i}",
            )
            x = block(x, train=train)
            out[f"block{i}"] = x
        if self.stop_at not in out:
            norm = layers.BatchNorm(dtype=self.dtype, name=f"norm{len(self.block_sizes) + 1}")
            out["final"] = nn.relu(norm(x, train=train))
        return out


def densenet121(*, stop_at: Tap = "final", dtype: Any = jnp.float32) -> DenseNet:
    """DenseNet-121: 6.95 M parameters without classifier; 'block3', 'final': 1024 channels."""
    return DenseNet(block_sizes=(6, 12, 24, 16), stop_at=stop_at, dtype=dtype)


def densenet169(*, stop_at: Tap = "final", dtype: Any = jnp.float32) -> DenseNet:
    """DenseNet-169: 12.48 M parameters without classifier; 'block3' 1280, 'final' 1664 channels."""
    return DenseNet(block_sizes=(6, 12, 32, 32), stop_at=stop_at, dtype=dtype)


def densenet201(*, stop_at: Tap = "final", dtype: Any = jnp.float32) -> DenseNet:
    """DenseNet-201: 18.09 M parameters without classifier; 'block3' 1792, 'final' 1920 channels."""
    return DenseNet(block_sizes=(6, 12, 48, 32), stop_at=stop_at, dtype=dtype)
