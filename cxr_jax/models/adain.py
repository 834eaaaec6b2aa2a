"""One generator, several jobs: a U-Net whose instance norms take scale and shift from a code.

Oh and Ye, 'CXR Segmentation by AdaIN-based Domain Adaptation and Knowledge Distillation'
(arXiv:2104.05892); adaptive instance normalisation is Huang and Belongie's (arXiv:1703.06868):

    AdaIN(x, s) = (1 + gamma(s)) (x - mean(x)) / std(x) + beta(s)

with mean and standard deviation of each example and channel over the picture, and gamma and beta
affine in the code s. All jobs share every convolution and differ by their codes alone.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cxr_jax.models import layers

Array = jax.Array

JOBS = ("segment", "normalise", "distil")  # job number -> what the code is for
SEGMENT, NORMALISE, DISTIL = range(len(JOBS))


def instance_moments(x: Array) -> tuple[Array, Array]:
    """Mean and (biased) variance over the picture: [B, h, w, C] -> float32 [B, 1, 1, C] twice."""
    batch, height, width, channels = x.shape
    x = x.astype(jnp.float32)

    def mean(x: Array) -> Array:
        # Rows of w * C numbers first, which a CPU vectorises (see layers.channel_sums).
        rows = jnp.sum(x.reshape(batch, height, width * channels), axis=1)
        sums = jnp.sum(rows.reshape(batch, width, channels), axis=1)
        return sums[:, None, None, :] / (height * width)

    centre = mean(x)
    return centre, mean(jnp.square(x - centre))


class AdaIN(nn.Module):
    """See the module. With the usual `kernel_init` gamma and beta start at zero: at first every job
    is plain instance norm."""

    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    kernel_init: Callable = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Array, code: Array) -> Array:
        """[B, h, w, C] and codes [B, D] -> [B, h, w, C]."""
        affine = nn.Dense(2 * x.shape[-1], kernel_init=self.kernel_init, name="affine")(code)
        gamma, beta = jnp.split(affine[:, None, None, :], 2, axis=-1)
        mean, variance = instance_moments(x)
        factor = (1 + gamma) * lax.rsqrt(variance + self.epsilon)
        return (x * factor + (beta - mean * factor)).astype(self.dtype)


class ConvAdaINRelu(nn.Module):
    """Conv(3x3)-AdaIN-leaky ReLU (slope 0.2, as in the released code), `features` channels out."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, code: Array) -> Array:
        """[B, h, w, C] and codes [B, D] -> [B, h, w, features]."""
        x = layers.Conv3x3(self.features, dtype=self.dtype, name="conv")(x)
        return nn.leaky_relu(AdaIN(dtype=self.dtype, name="norm")(x, code), 0.2)


class AdaINGenerator(nn.Module):
    """Lung masks and pictures from one network; the job's code says which it is for.

    Differs from Oh and Ye: the U-Net of `models/unet.py` with its skips in place of residual blocks
    without skips (the outline needs the fine levels); one learned code a job in place of codes made
    by a mapping network from noise and by a style encoder from a reference film (there is one
    normal look here, not a choice of styles), read by all levels; the picture is the film plus a
    learned correction, which starts small.

    Attributes:
      features: channels of each level, finest first; each level after the first halves the size.
      out_channels: masks, here of the right and the left lung.
      code_size: D, length of a code. [released code: 16]
      dtype: of the computation; parameters stay float32.
    """

    features: tuple[int, ...] = (32, 64, 128, 256)
    out_channels: int = 2
    code_size: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Array, job: Array) -> dict[str, Array]:
        """Films [B, H, W, 1] and their jobs int32 [B], numbers of `JOBS`.

        Returns:
          float32 `logits` [B, H, W, out_channels] of the masks (meant for the jobs 'segment' and
          'distil') and `image` [B, H, W, 1] (meant for 'normalise').

        Raises:
          ValueError: H or W is not a multiple of 2^(levels - 1).
        """
        layers.check_halves(image, levels=len(self.features))
        codes = self.param("codes", nn.initializers.normal(1.0), (len(JOBS), self.code_size))
        code = codes[job]

        def level(x: Array, channels: int, name: str) -> Array:
            for part in ("a", "b"):
                x = ConvAdaINRelu(channels, self.dtype, name=name + part)(x, code)
            return x

        x, skips = image, []
        for index, channels in enumerate(self.features):
            x = layers.max_pool_2x2(x) if index else x
            x = level(x, channels, f"down{index}")
            skips.append(x)
        for index in reversed(range(len(self.features) - 1)):
            x = jnp.concatenate([skips[index], layers.upsample_2x(x)], axis=-1)
            x = level(x, self.features[index], f"up{index}")
        small = nn.initializers.normal(1e-2)
        logits = layers.Conv1x1(self.out_channels, dtype=self.dtype, name="masks")(x)
        change = layers.Conv1x1(1, dtype=self.dtype, kernel_init=small, name="picture")(x)
        return {
            "logits": logits.astype(jnp.float32),
            "image": image.astype(jnp.float32) + change.astype(jnp.float32),
        }
