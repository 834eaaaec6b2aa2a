"""The networks of Oh and Ye (arXiv:2104.05892): a StarGAN v2 whose generator also segments.

StarGAN v2 (Choi et al., arXiv:1912.01865) takes a picture of one domain to another in a style: a
code, made from noise by the mapping network or from a picture by the style encoder, that scales and
shifts the generator's instance norms. A discriminator tells real from made, domain by domain. Here
the domains are abnormal and normal films. Without a code the same generator draws lung masks; with
a code of its own in the encoder it draws those of an abnormal film at once (`distilled`).

The blocks and the full sizes are those of the released code of both papers. Differs: the code of
`distilled` is learned itself (there a mapping network makes it of a constant); two masks, of the
right and the left lung; a film enters by one convolution whatever is made of it.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cxr_jax.models import layers
from cxr_jax.models.adain import AdaIN, instance_moments

Array = jax.Array

DOMAINS = ("abnormal", "normal")
ABNORMAL, NORMAL = range(len(DOMAINS))
EPSILON = 1e-5


def instance_norm(x: Array) -> Array:
    """[B, h, w, C] -> the same, each example's channels with mean 0 and deviation 1."""
    mean, variance = instance_moments(x)
    return ((x - mean) * lax.rsqrt(variance + EPSILON)).astype(x.dtype)


class InstanceNorm(nn.Module):
    """`instance_norm` with a learned scale and shift of every channel."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, C] -> [B, h, w, C]."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        return (instance_norm(x) * scale + bias).astype(x.dtype)


class ResBlock(nn.Module):
    """Twice norm, leaky ReLU (0.2) and conv(3x3), plus a shortcut, divided by sqrt 2.

    Attributes:
      features: output channels.
      resample: 'down' (means of 2x2 between the convolutions), 'up' (every cell four times, before
        the first) or ''.
      norm: 'learned' (scale and shift of its own), 'plain', or ''; with a code the first two are
        AdaIN.
      dtype: of the computation; parameters stay float32.
    """

    features: int
    resample: str = ""
    norm: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, code: Array | None = None) -> Array:
        """[B, h, w, C] and codes [B, D] or None -> [B, h', w', features]."""
        up, down = self.resample == "up", self.resample == "down"
        # As released: a block that goes up widens in its first convolution, others in the second.
        first = self.features if up or self.norm == "plain" else x.shape[-1]
        y = nn.leaky_relu(self._normed(x, code, "norm0"), 0.2)
        y = _doubled(y) if up else y
        y = layers.Conv3x3(first, dtype=self.dtype, use_bias=True, name="conv0")(y)
        y = layers.average_pool_2x2(y) if down else y
        y = nn.leaky_relu(self._normed(y, code, "norm1"), 0.2)
        y = layers.Conv3x3(self.features, dtype=self.dtype, use_bias=True, name="conv1")(y)
        short = _doubled(x) if up else x
        if x.shape[-1] != self.features:
            conv = layers.Conv1x1(self.features, use_bias=False, dtype=self.dtype, name="short")
            short = conv(short)
        short = layers.average_pool_2x2(short) if down else short
        return (short + y) / 2**0.5

    def _normed(self, x: Array, code: Array | None, name: str) -> Array:
        if not self.norm:
            return x
        if code is not None:
            init = nn.initializers.lecun_normal()
            return AdaIN(dtype=self.dtype, kernel_init=init, name=f"{name}_code")(x, code)
        return InstanceNorm(name=name)(x) if self.norm == "learned" else instance_norm(x)


def _doubled(x: Array) -> Array:
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class Generator(nn.Module):
    """Down, two blocks, two blocks, up; then a picture or masks.

    Attributes:
      features: channels of each size, finest first. [released: 64, 128, 256, 512, 512 at 256 px]
      out_channels: masks.
    """

    features: tuple[int, ...]
    out_channels: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, film: Array, *, encode: Array | None = None, decode: Array | None = None, masks: bool
    ) -> Array:
        """Films [B, H, W, 1] -> float32 masks' logits [B, H, W, out_channels], or films.

        Args:
          encode, decode: codes [B, D] of the norms on the way down and on the way up.

        Raises:
          ValueError: H or W is not a multiple of 2^(sizes - 1).
        """
        layers.check_halves(film, levels=len(self.features))
        first, *wider = self.features
        x = layers.Conv3x3(first, dtype=self.dtype, use_bias=True, name="film")(film)
        ways = [(f"down{i}", c, "down") for i, c in enumerate(wider)]
        ways += [(f"encode{i}", self.features[-1], "") for i in range(2)]
        for name, channels, resample in ways:
            x = ResBlock(channels, resample, "learned", self.dtype, name=name)(x, encode)
        ways = [(f"decode{i}", self.features[-1], "") for i in range(2)]
        ways += [(f"up{i}", self.features[i], "up") for i in reversed(range(len(wider)))]
        for name, channels, resample in ways:
            x = ResBlock(channels, resample, "plain", self.dtype, name=name)(x, decode)
        name, channels = ("masks", self.out_channels) if masks else ("picture", 1)
        x = nn.leaky_relu(InstanceNorm(name=f"{name}_norm")(x), 0.2)
        return layers.Conv1x1(channels, dtype=self.dtype, name=name)(x).astype(jnp.float32)


class Trunk(nn.Module):
    """What style encoder and discriminator are: a film -> numbers for each domain.

    Attributes:
      features: channels of each size, finest first. [released: 64, 128, 256 and four times 512, to
        4x4 cells at 256 px]
      size: numbers of a domain.
    """

    features: tuple[int, ...]
    size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, film: Array, domain: Array) -> Array:
        """Films [B, H, W, 1] and the domains int [B] asked for -> float32 [B, size]."""
        first, *wider = self.features
        x = layers.Conv3x3(first, dtype=self.dtype, use_bias=True, name="film")(film)
        for i, channels in enumerate(wider):
            x = ResBlock(channels, "down", dtype=self.dtype, name=f"down{i}")(x)
        x = nn.leaky_relu(x, 0.2).reshape(len(x), -1)  # a convolution over all cells
        x = nn.leaky_relu(nn.Dense(self.features[-1], dtype=self.dtype, name="cells")(x), 0.2)
        x = nn.Dense(len(DOMAINS) * self.size, dtype=self.dtype, name="heads")(x)
        return _of_domain(x.astype(jnp.float32).reshape(len(x), len(DOMAINS), self.size), domain)


class Mapping(nn.Module):
    """Noise -> a code of a domain: four shared layers, and four of the domain's own."""

    hidden: int
    size: int

    @nn.compact
    def __call__(self, noise: Array, domain: Array) -> Array:
        """[B, L] and int [B] -> float32 [B, size]."""
        x, codes = noise, []
        for i in range(4):
            x = nn.relu(nn.Dense(self.hidden, name=f"shared{i}")(x))
        for name in DOMAINS:
            y = x
            for i in range(3):
                y = nn.relu(nn.Dense(self.hidden, name=f"{name}{i}")(y))
            codes.append(nn.Dense(self.size, name=f"{name}_code")(y))
        return _of_domain(jnp.stack(codes, axis=1), domain)


def _of_domain(values: Array, domain: Array) -> Array:
    """[B, domains, n] -> [B, n]."""
    return jnp.take_along_axis(values, domain[:, None, None], axis=1)[:, 0]


class StarGAN(nn.Module):
    """All four networks; a method for each use. Films are [B, H, W], domains int [B].

    Attributes:
      features: of the generator.
      trunk: of style encoder and discriminator.
      code_size: D, of a style. [released: 16]
      hidden: width of the mapping network. [released: 512]
      dtype: of the computation; parameters stay float32.
    """

    features: tuple[int, ...]
    trunk: tuple[int, ...]
    code_size: int = 16
    hidden: int = 512
    dtype: Any = jnp.float32

    def setup(self):
        """The four networks, and the code of `distilled`."""
        self.generator = Generator(self.features, dtype=self.dtype)
        self.mapping = Mapping(self.hidden, self.code_size)
        self.style = Trunk(self.trunk, self.code_size, self.dtype)
        self.discriminator = Trunk(self.trunk, 1, self.dtype)
        self.distil_code = self.param("distil_code", nn.initializers.normal(1.0), (self.code_size,))

    def __call__(self, film: Array, noise: Array, domain: Array) -> Array:
        """Runs every part, so that `init` makes all parameters."""
        code = self.code(noise, domain) + self.style_of(film, domain)
        masks = self.segment(film) + self.segment(film, distilled=True)
        return self.translate(film, code), masks, self.judge(film, domain)

    def segment(self, film: Array, *, distilled: bool = False) -> Array:
        """Logits [B, H, W, 2] of the right and the left lung; `distilled`: of an abnormal film."""
        code = None
        if distilled:
            code = jnp.broadcast_to(self.distil_code, (len(film), self.code_size))
        return self.generator(film[..., None], encode=code, masks=True)

    def translate(self, film: Array, code: Array) -> Array:
        """The film [B, H, W] in the style of the codes [B, D]."""
        return self.generator(film[..., None], decode=code, masks=False)[..., 0]

    def code(self, noise: Array, domain: Array) -> Array:
        """A style [B, D] of the domain, of noise [B, L]."""
        return self.mapping(noise, domain)

    def style_of(self, film: Array, domain: Array) -> Array:
        """The style [B, D] of a film, as one of the domain."""
        return self.style(film[..., None], domain)

    def judge(self, film: Array, domain: Array) -> Array:
        """Logit [B] of being a real film of the domain."""
        return self.discriminator(film[..., None], domain)[:, 0]
