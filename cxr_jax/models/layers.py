"""Layers every network here shares. Maps are NHWC; parameters float32; `dtype` is for compute."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Moments = tuple[Array, Array]


class Conv1x1(nn.Module):
    """A 1x1 convolution as one matrix product: y[b, i, j] = x[b, s i, s j] W + bias.

    XLA's CPU backend trains this form about three times faster than a 1x1 convolution.

    Attributes:
      features: output channels.
      stride: s; the rows and columns in between are skipped, as a strided convolution does.
      use_bias: adds a bias, which starts at zero.
      dtype: of the product; the kernel [C, features] stays float32.
    """

    features: int
    stride: int = 1
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Callable = nn.initializers.he_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, C] -> [B, ceil(h / stride), ceil(w / stride), features]."""
        if self.stride > 1:
            x = x[:, :: self.stride, :: self.stride]
        batch, height, width, channels = x.shape
        kernel = self.param("kernel", self.kernel_init, (channels, self.features))
        y = x.astype(self.dtype).reshape(-1, channels) @ kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            y = y + bias.astype(self.dtype)
        return y.reshape(batch, height, width, self.features)


class Conv3x3(nn.Module):
    """A 3x3 convolution, padded by `dilation` zeros on every side as PyTorch does.

    'SAME' with stride 2 would pad an even side by (0, 1) and shift the map.

    Attributes:
      features: output channels.
      stride, dilation: steps between two outputs, and between two taps of the kernel.
      dtype: of the computation; the kernel [3, 3, C, features] stays float32.
      use_bias: adds a bias, which starts at zero.
    """

    features: int
    stride: int = 1
    dilation: int = 1
    dtype: Any = jnp.float32
    kernel_init: Callable = nn.initializers.he_normal()
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, C] -> [B, ceil(h / stride), ceil(w / stride), features]."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=[(self.dilation, self.dilation)] * 2,
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            y = y + bias.astype(self.dtype)
        return y


def channel_sums(x: Array) -> Array:
    """The sum of every channel: [B, h, w, C] -> float32 [C].

    Over the rows of w * C numbers first, which a CPU vectorises, then over the w columns; the
    partial sums lose less to rounding too.
    """
    width, channels = x.shape[2:]
    rows = x.astype(jnp.float32).reshape(-1, width * channels)
    return jnp.sum(rows, axis=0).reshape(width, channels).sum(axis=0)


def batch_moments(x: Array) -> Moments:
    """Mean and (biased) variance of every channel: [B, h, w, C] -> float32 [C], [C]."""
    x = x.astype(jnp.float32)
    pixels = x.size // x.shape[-1]
    mean = channel_sums(x) / pixels
    # Rounding must not make the difference negative.
    return mean, jnp.maximum(channel_sums(jnp.square(x)) / pixels - jnp.square(mean), 0.0)


@jax.custom_vjp
def scale_and_shift(x: Array, factor: Array, shift: Array) -> Array:
    """x * factor + shift per channel: [B, h, w, C], float32 [C] twice -> float32 [B, h, w, C].

    Its gradient is written out only so that its sums are `channel_sums`: a DenseNet trains a fifth
    faster on a CPU. Reverse mode only.
    """
    return x * factor + shift


def _scale_and_shift_forward(x, factor, shift):
    return scale_and_shift(x, factor, shift), (x, factor)


def _scale_and_shift_backward(saved, grad):
    x, factor = saved
    return (grad * factor).astype(x.dtype), channel_sums(grad * x), channel_sums(grad)


scale_and_shift.defvjp(_scale_and_shift_forward, _scale_and_shift_backward)


class BatchNorm(nn.Module):
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, per channel, statistics in float32.

    With `train` the mean and variance are the batch's, and the running ones move towards them:
    running = momentum * running + (1 - momentum) * batch. Without, the running ones are used.
    A momentum of 0.9 is what PyTorch calls 0.1. PyTorch keeps the unbiased variance, n / (n - 1)
    times this one; n is the number of pixels in the batch, so the two agree to 4 digits or better.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool, moments: Moments | None = None) -> Array:
        """[B, h, w, C] -> [B, h, w, C].

        Args:
          x: the map.
          train: chooses the batch's statistics.
          moments: `batch_moments(x)` where the caller has it already; read with `train` only.
        """
        shape = (x.shape[-1],)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        scale = self.param("scale", nn.initializers.ones_init(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), shape)
        if train:
            mean, variance = batch_moments(x) if moments is None else moments
            if not self.is_initializing():
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * variance
        else:
            mean, variance = running_mean.value, running_var.value
        factor = scale * lax.rsqrt(variance + self.epsilon)
        return scale_and_shift(x, factor, bias - mean * factor).astype(self.dtype)


class ConvNormRelu(nn.Module):
    """Conv(3x3)-BN-ReLU, `features` channels out."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, h, w, C] -> [B, h, w, features]."""
        x = Conv3x3(self.features, dtype=self.dtype, name="conv")(x)
        return nn.relu(BatchNorm(dtype=self.dtype, name="norm")(x, train=train))


def _pairs(x: Array, axis: int) -> tuple[Array, Array]:
    """The even and the odd rows (axis 1) or columns (axis 2) of x, whose number is even."""
    shape = (*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    x = x.reshape(shape)
    return (
        lax.index_in_dim(x, 0, axis + 1, keepdims=False),
        lax.index_in_dim(x, 1, axis + 1, keepdims=False),
    )


def max_pool_3x3(x: Array) -> Array:
    """3x3 maximum, stride 2, padding 1: [B, h, w, C] -> [B, ceil(h/2), ceil(w/2), C].

    Out of slices, because the gradient of XLA's windowed maximum is a scatter: on a CPU this form
    trains eight times faster. Equal largest values share the gradient.
    """
    for axis in (1, 2):
        if x.shape[axis] % 2:  # The border repeated cannot change a maximum.
            x = jnp.concatenate([x, lax.slice_in_dim(x, -1, None, axis=axis)], axis)
        even, odd = _pairs(x, axis)
        first, rest = (lax.slice_in_dim(odd, 0, end, axis=axis) for end in (1, -1))
        x = jnp.maximum(jnp.maximum(even, odd), jnp.concatenate([first, rest], axis))
    return x


def check_halves(image: Array, *, levels: int) -> None:
    """Refuses an image [B, H, W, C] whose sides a network of `levels` levels cannot halve.

    Raises:
      ValueError: H or W is not a multiple of 2^(levels - 1).
    """
    height, width = image.shape[1:3]
    unit = 2 ** (levels - 1)
    if height % unit or width % unit:
        raise ValueError(
            f"the image is {height}x{width} px; both sides must be multiples of {unit} "
            f"({levels} levels). Resize or pad it first."
        )


def max_pool_2x2(x: Array) -> Array:
    """2x2 maximum, stride 2; h and w even: [B, h, w, C] -> [B, h/2, w/2, C]."""
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])


def average_pool_2x2(x: Array) -> Array:
    """2x2 mean, stride 2, an odd last row or column dropped: [B, h, w, C] -> [B, h//2, w//2, C]."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def upsample_2x(x: Array) -> Array:
    """Bilinear x2 with half-pixel centres (PyTorch's align_corners=False).

    [B, h, w, C] -> [B, 2h, 2w, C]. Along each side, with the border repeated:
    out[2i] = (x[i-1] + 3 x[i]) / 4 and out[2i+1] = (3 x[i] + x[i+1]) / 4.
    """
    for axis in (1, 2):
        before = jnp.concatenate(
            [lax.slice_in_dim(x, 0, 1, axis=axis), lax.slice_in_dim(x, 0, -1, axis=axis)], axis
        )
        after = jnp.concatenate(
            [
                lax.slice_in_dim(x, 1, x.shape[axis], axis=axis),
                lax.slice_in_dim(x, -1, None, axis=axis),
            ],
            axis,
        )
        pair = jnp.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis=axis + 1)
        x = pair.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])
    return x


class StemConv(nn.Module):
    """A 7x7 convolution, stride 2, padded by 3 on every side as PyTorch does, without bias.

    'SAME' with stride 2 would pad an even side by (2, 3) and shift the map.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, ceil(H/2), ceil(W/2), features]."""
        batch, height, width, channels = x.shape
        shape = (7, 7, channels, self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        # Two neighbouring columns become two halves of the channels (a reshape, no copy); an eighth
        # tap, of zero, makes the kernel even. The same sums, and on a CPU up to five times faster.
        columns = -(-width // 2)
        padding = ((0, 0), (3, 3), (4, 2 * columns + 2 - width), (0, 0))
        folded = jnp.pad(x.astype(self.dtype), padding)
        folded = folded.reshape(batch, height + 6, columns + 3, 2 * channels)
        kernel = jnp.pad(kernel, ((0, 0), (1, 0), (0, 0), (0, 0)))
        return lax.conv_general_dilated(
            folded,
            kernel.reshape(7, 4, 2 * channels, self.features).astype(self.dtype),
            window_strides=(2, 1),
            padding="VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
