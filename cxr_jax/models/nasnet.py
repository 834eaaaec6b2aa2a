"""NASNet-A (Zoph et al., arXiv:1707.07012), a tap after every run of normal cells.

A cell sees the output of the cell before it, h, and of the one before that, p (Fig. 2). Both are
first brought to the cell's width by ReLU-Conv(1x1)-BN; p to h's size too.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.models import layers

Array = jax.Array
Tap = Literal["stage2", "stage3", "stage4"]

BATCH_NORM_EPS = 1e-3  # the released code's


def _norm(x: Array, dtype: Any, name: str, *, train: bool) -> Array:
    return layers.BatchNorm(epsilon=BATCH_NORM_EPS, dtype=dtype, name=name)(x, train=train)


def average_pool_3x3(x: Array, stride: int = 1) -> Array:
    """3x3 mean of the pixels that exist: [B, h, w, C] -> [B, ceil(h/stride), ceil(w/stride), C]."""
    mean = nn.avg_pool(x, (3, 3), (stride, stride), "SAME", count_include_pad=False)
    return mean.astype(x.dtype)  # the count of the pixels made it float32


def max_pool_3x3(x: Array) -> Array:
    """3x3 maximum, stride 2, where the authors' framework puts it: an even side is padded (0, 1).

    [B, h, w, C] -> [B, ceil(h/2), ceil(w/2), C].
    """
    return nn.max_pool(x, (3, 3), (2, 2), "SAME")


class Separable(nn.Module):
    """Twice ReLU-Conv(size x size, each channel alone)-Conv(1x1)-BN (Sec. A.4).

    Attributes:
      features: output channels.
      size: side of the kernel.
      stride: of the first of the two.
    """

    features: int
    size: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, h, w, C] -> [B, ceil(h / stride), ceil(w / stride), features]."""
        for index, stride in enumerate((self.stride, 1), start=1):
            channels = x.shape[-1]
            x = nn.Conv(
                channels,
                (self.size, self.size),
                stride,
                "SAME",
                feature_group_count=channels,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=nn.initializers.he_normal(),
                name=f"depthwise{index}",
            )(nn.relu(x))
            x = layers.Conv1x1(
                self.features, use_bias=False, dtype=self.dtype, name=f"pointwise{index}"
            )(x)
            x = _norm(x, self.dtype, f"norm{index}", train=train)
        return x


class Squeeze(nn.Module):
    """ReLU-Conv(1x1)-BN."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, h, w, C] -> [B, h, w, features]."""
        conv = layers.Conv1x1(self.features, use_bias=False, dtype=self.dtype, name="conv")
        return _norm(conv(nn.relu(x)), self.dtype, "norm", train=train)


class HalvingSqueeze(nn.Module):
    """The same at half the size without losing pixels: every second one, and the ones diagonal.

    Each half of the channels is a 1x1 convolution of stride 2; the second starts one pixel further
    down and right. Beyond the border are zeros.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, h, w, C] -> [B, ceil(h/2), ceil(w/2), features]."""

        def half(x: Array, name: str) -> Array:
            conv = layers.Conv1x1(
                self.features // 2, stride=2, use_bias=False, dtype=self.dtype, name=name
            )
            return conv(x)

        x = nn.relu(x)
        shifted = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))[:, 1:, 1:]
        x = jnp.concatenate([half(x, "conv1"), half(shifted, "conv2")], axis=-1)
        return _norm(x, self.dtype, "norm", train=train)


class NormalCell(nn.Module):
    """The normal cell of Fig. 4: five sums of two operations, and p, side by side.

    Attributes:
      features: f, channels of each of the six.
      halve_previous: p has twice the size of h.
    """

    features: int
    halve_previous: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, previous: Array, *, train: bool) -> Array:
        """x [B, h, w, C], previous [B, h, w, C'] (or twice the size) -> [B, h, w, 6 f]."""
        f, dtype = self.features, self.dtype

        def separable(x: Array, size: int, name: str) -> Array:
            return Separable(f, size, dtype=dtype, name=name)(x, train=train)

        squeeze = HalvingSqueeze if self.halve_previous else Squeeze
        p = squeeze(f, dtype, name="squeeze_previous")(previous, train=train)
        h = Squeeze(f, dtype, name="squeeze")(x, train=train)
        sums = [
            separable(h, 5, "separable1a") + separable(p, 3, "separable1b"),
            separable(p, 5, "separable2a") + separable(p, 3, "separable2b"),
            average_pool_3x3(h) + p,
            2 * average_pool_3x3(p),
            separable(h, 3, "separable5") + h,
        ]
        return jnp.concatenate([p, *sums], axis=-1)


class ReductionCell(nn.Module):
    """The reduction cell of Fig. 4: half the size; four of its five sums come out.

    Attributes:
      features: f, channels of each sum.
      halve_previous: p has twice the size of h.
    """

    features: int
    halve_previous: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, previous: Array | None, *, train: bool) -> Array:
        """x [B, h, w, C], previous likewise, or None at the start -> [B, h / 2, w / 2, 4 f]."""
        f, dtype = self.features, self.dtype

        def separable(x: Array, size: int, name: str, stride: int = 2) -> Array:
            return Separable(f, size, stride, dtype=dtype, name=name)(x, train=train)

        if previous is None:
            p = x  # the first cell has one input; its second is taken as it is
        else:
            squeeze = HalvingSqueeze if self.halve_previous else Squeeze
            p = squeeze(f, dtype, name="squeeze_previous")(previous, train=train)
        h = Squeeze(f, dtype, name="squeeze")(x, train=train)
        largest = max_pool_3x3(h)
        first = separable(h, 5, "separable1a") + separable(p, 7, "separable1b")
        second = largest + separable(p, 7, "separable2")
        third = average_pool_3x3(h, stride=2) + separable(p, 5, "separable3")
        fourth = average_pool_3x3(first) + second
        fifth = separable(first, 3, "separable5", stride=1) + largest
        return jnp.concatenate([second, third, fourth, fifth], axis=-1)


class NASNet(nn.Module):
    """NASNet-A of the ImageNet kind: a strided convolution, two reduction cells, three stages.

    Stage s is `cells` normal cells at stride 2^(s + 1), the numbering of ResNet's and DenseNet's
    stages; a reduction cell lies between two stages. The first cell of a stage takes p from before
    the reduction (the released code's `skip_reduction_layer_input`).
    Differs from the released code: no drop path, no auxiliary classifier, batch norm momentum 0.9
    in place of 0.9997. Keras' copy of it pads the reductions' pools with zeros; here, as in the
    code it copies, a pool sees only pixels that exist.

    Attributes:
      cells: N, normal cells a stage.
      filters: f of the first stage, a multiple of 4; each stage doubles it. The paper's name for a
        network, 'N @ P', has P = 24 f.
      stem_filters: channels of the first convolution.
      stop_at: the last tap that is wanted; what follows it is neither computed nor owned.
      dtype: of the computation; parameters and batch statistics stay float32.
    """

    cells: int = 6
    filters: int = 168
    stem_filters: int = 96
    stop_at: Tap = "stage4"
    dtype: Any = jnp.float32

    @property
    def strides(self) -> dict[str, int]:
        """The stride of every tap in pixels of the image, in the order they are computed."""
        return {"stage2": 8, "stage3": 16, "stage4": 32}

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        """[B, H, W, 3] -> every tap up to `stop_at`.

        Returns:
          'stage2' [B, H/8, W/8, 6 f], 'stage3' [B, H/16, W/16, 12 f] and 'stage4'
          [B, H/32, W/32, 24 f], each after the ReLU with which all that follows it begins. H and W
          are at least 3 px. The first convolution has no padding, (H - 1) // 2 rows; each halving
          after it rounds up.

        Raises:
          ValueError: `stop_at` is not a tap of this network, or `filters` not a multiple of 4.
        """
        if self.stop_at not in self.strides:
            raise ValueError(
                f"stop_at={self.stop_at!r}; this NASNet has the taps {list(self.strides)}."
            )
        if self.filters % 4:
            raise ValueError(
                f"filters={self.filters}; expected a multiple of 4 (the stem's cells)."
            )
        stem = nn.Conv(
            self.stem_filters,
            (3, 3),
            2,
            "VALID",
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.he_normal(),
            name="stem_conv",
        )(x)
        p = _norm(stem, self.dtype, "stem_norm", train=train)
        f, reduction, normal = self.filters, ReductionCell, NormalCell
        x = reduction(f // 4, dtype=self.dtype, name="stem_cell1")(p, None, train=train)
        p, x = x, reduction(f // 2, True, self.dtype, name="stem_cell2")(x, p, train=train)
        out = {}
        for stage in (2, 3, 4):
            if self.stop_at in out:
                return out
            if stage > 2:
                f *= 2
                x = reduction(f, dtype=self.dtype, name=f"reduction{stage}")(x, p, train=train)
            for index in range(self.cells):
                cell = normal(f, index == 0, self.dtype, name=f"stage{stage}_cell{index}")
                p, x = x, cell(x, p, train=train)
            out[f"stage{stage}"] = nn.relu(x)
        return out


def nasnet_large(*, stop_at: Tap = "stage4", dtype: Any = jnp.float32) -> NASNet:
    """NASNet-A (6 @ 4032): 84.72 M parameters without classifier; 'stage3' has 2016 channels."""
    return NASNet(stop_at=stop_at, dtype=dtype)
