"""RetinaNet (Lin et al., ICCV 2017, arXiv:1708.02002) on any backbone.

A feature pyramid (Lin et al., CVPR 2017, arXiv:1612.03144) over the last three strides of a
backbone, 8, 16 and 32 of a DenseNet-121, and two levels above; two heads that all levels share, one
for the findings of each anchor and one for its box.

Differs from the paper: batch norm behind the 1x1 convolutions of the pyramid, since the blocks of a
DenseNet end without a norm; the heads' hidden layers start as He et al. 2015 have it, because a
deviation of 0.01 hardly lets a signal through heads that are narrower than the paper's 256.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.models import backbones, layers
from cxr_jax.models.pyramid import MORE_LEVELS, Pyramid

Array = jax.Array

LEVELS = 3  # of the backbone
PRIOR = 0.01  # what the probability of a finding starts at
_SMALL = nn.initializers.normal(0.01)


class Head(nn.Module):
    """Convolutions of 3x3 with ReLU, and a last one without (Sec. 4).

    Attributes:
      width, depth: of the hidden layers.
      per_anchor: numbers of each anchor.
      anchors: of a cell.
      bias: what the last layer's starts at.
      dtype: of the computation; the result is float32.
    """

    width: int
    depth: int
    per_anchor: int
    anchors: int
    bias: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, C] -> float32 [B, h * w * anchors, per_anchor], row by row, cell by cell."""
        for index in range(self.depth):
            conv = layers.Conv3x3(self.width, use_bias=True, dtype=self.dtype, name=f"conv{index}")
            x = nn.relu(conv(x))
        last = nn.Conv(
            self.anchors * self.per_anchor,
            (3, 3),
            padding=1,
            dtype=self.dtype,
            kernel_init=_SMALL,
            bias_init=nn.initializers.constant(self.bias),
            name="out",
        )
        return last(x).astype(jnp.float32).reshape(len(x), -1, self.per_anchor)


class RetinaNet(nn.Module):
    """Backbone, pyramid and heads.

    Attributes:
      backbone: of whose maps the last of each stride is taken, of the last three strides.
      num_findings: K.
      anchors: of a cell.
      width: channels of pyramid and heads.
      depth: hidden layers of each head.
      freeze_norms: True keeps the backbone's batch norm in inference mode.
      dtype: of the computation; what comes out is float32.
    """

    backbone: backbones.Backbone
    num_findings: int
    anchors: int = 9
    width: int = 256
    depth: int = 4
    freeze_norms: bool = False
    dtype: Any = jnp.float32

    @property
    def taps(self) -> dict[int, str]:
        """Stride -> the backbone's tap, of its levels."""
        return backbones.last_taps(self.backbone, LEVELS)

    @property
    def strides(self) -> tuple[int, ...]:
        """Of all levels, in pixels of the film."""
        last = max(self.taps)
        return (*self.taps, *(last * 2 ** (k + 1) for k in range(MORE_LEVELS)))

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        """Normalised films [B, H, W] -> 'logits' [B, A, K] and 'deltas' [B, A, 4] of the anchors,
        in the order of `ops.anchors.make_anchors`."""
        films = jnp.repeat(x[..., None], 3, axis=-1)
        taps = self.backbone(films, train=train and not self.freeze_norms)
        pyramid = Pyramid(self.width, self.dtype, name="pyramid")
        maps = pyramid([taps[name] for name in self.taps.values()], train=train)
        prior = -math.log((1 - PRIOR) / PRIOR)
        outputs = {"logits": (self.num_findings, prior), "deltas": (4, 0.0)}
        found = {}
        for name, (count, bias) in outputs.items():
            head = Head(
                self.width,
                self.depth,
                per_anchor=count,
                anchors=self.anchors,
                bias=bias,
                dtype=self.dtype,
                name=name,
            )
            found[name] = jnp.concatenate([head(level) for level in maps], axis=1)
        return found
