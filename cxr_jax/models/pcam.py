"""Finding heads on a DenseNet's last map: PCAM (Ye et al., arXiv:2005.14480) and others."""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.models import layers
from cxr_jax.ops import pooling

Array = jax.Array
Pooling = Literal["pcam", "avg", "max", "lse", "exp", "linear"]


class PCAMHeads(nn.Module):
    """One 1x1 convolution per finding, applied to every pixel and, the same one, after pooling.

    PCAM: logit_k = w_k . sum_ij a_ij F_ij + b_k, where a = p / sum p and p = sigmoid(logit map k).

    Attributes:
      num_findings: K.
      pool: 'pcam', or how the features are pooled before the convolution.
      lse_gamma: sharpness of 'lse' (0.5 in the authors' configuration).
      dtype: of the convolution; pooling is in float32.
    """

    num_findings: int
    pool: Pooling = "pcam"
    lse_gamma: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Array) -> dict[str, Array]:
        """[B, h, w, C] -> 'logit_maps' [B, h, w, K] and 'logits' [B, K], both float32.

        Raises:
          ValueError: `pool` is none of the names.
        """
        conv = layers.Conv1x1(self.num_findings, dtype=self.dtype, name="fc")
        maps = conv(features).astype(jnp.float32)
        # The weights of 'pcam' and 'avg' sum to one over the pixels, so the convolution of the
        # pooled features is the pooled logit map: the features need not be touched again.
        if self.pool == "pcam":
            logits = jnp.sum(pooling.pcam_weights(maps) * maps, axis=(1, 2))
            return {"logit_maps": maps, "logits": logits}
        if self.pool == "avg":
            return {"logit_maps": maps, "logits": jnp.mean(maps, axis=(1, 2))}
        match self.pool:
            case "max":
                pooled = jnp.max(features, axis=(1, 2))
            case "lse":
                pooled = pooling.lse_pool(features, gamma=self.lse_gamma)
            case "exp":
                pooled = pooling.exp_pool(features)
            case "linear":
                pooled = pooling.linear_pool(features)
            case _:
                raise ValueError(
                    f"pool={self.pool!r}; expected 'pcam', 'avg', 'max', 'lse', 'exp' or 'linear'."
                )
        logits = conv(pooled[:, None, None])[:, 0, 0]
        return {"logit_maps": maps, "logits": logits.astype(jnp.float32)}


class PCAMNet(nn.Module):
    """A DenseNet and finding heads: what is pre-trained on the ten findings (Park et al. 2021)."""

    backbone: nn.Module
    heads: PCAMHeads

    def __call__(self, image: Array, *, train: bool) -> dict[str, Array]:
        """[B, H, W, 3] -> the backbone's taps, 'logit_maps' [B, h, w, K] and 'logits' [B, K]."""
        taps = self.backbone(image, train=train)
        return taps | self.heads(taps["final"])
