"""Classifiers that point: the weakly supervised baselines of ADPD's Table 1 (Müller et al. 2023).

A CNN's last map, and a head that makes of it a logit and a map of each finding. Trained on labels
of films alone; `ops/map_boxes.py` makes a box of a map.

| method | head | baseline |
| --- | --- | --- |
| gap | `GapHead` | CheXNet |
| lse | `LseHead` | CXR |
| lse_map | `LseMapHead` | LSE model |
| weldon | `WeldonHead` | WELDON |
| multimap | `MultiMapHead` | MultiMap |
| stl | `TransferHead` | STL |
| gradcam | `HiddenHead` | Grad-CAM |
| agxnet | `AGXNet`, a network of its own | AGXNet |

ADPD says which pooling some of them have: the mean (CheXNet), log-sum-exp (CXR and STL) and max-min
(WELDON, MultiMap) [Sec. 2]. It says no more of how they are built. 'The baselines' code' is what
its first author released with another paper that has them (WSRPN, Müller et al., IEEE TMI 2024,
arXiv:2402.11985); where a source is silent, that code is followed or 'ours' is said.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.models import layers
from cxr_jax.models.backbones import Backbone
from cxr_jax.ops import pooling

Array = jax.Array

EPSILON = 1e-5  # of a map's range: one that is flat is stretched to 0


class GapHead(nn.Module):
    """CheXNet: the mean of the features, one linear layer; the map is the class activation map.

    Rajpurkar et al., arXiv:1711.05225, by Zhou et al., CVPR 2016 (CAM): M_k = sum over channels of
    w_kc F_c, and logit_k = w_k . mean of F + b_k, which is the mean of M_k + b_k. As in the
    baselines' code the map has the bias too; a constant does not move its boxes.

    Attributes:
      num_findings: K.
      dtype: of the products.
    """

    num_findings: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, cells: Array) -> dict[str, Array]:
        """[B, h, w, C] -> 'logits' [B, K] and 'maps' [B, h, w, K], float32."""
        maps = _score_maps(cells, self.num_findings, self.dtype)
        return {"logits": jnp.mean(maps, axis=(1, 2)), "maps": maps}


class LseHead(nn.Module):
    """CXR: log-sum-exp of the features, one linear layer, whose weights make the map.

    Wang et al., CVPR 2017 (ChestX-ray8): x_p = x* + (1/r) log(mean of exp(r (x - x*))) of each
    channel, x* its largest value. Theirs: r = 10 was the best; a transition layer, a 1x1
    convolution, before the pooling. The baselines' code has r = 5 and no transition layer.

    Attributes:
      num_findings: K.
      sharpness: r, above 0.
      transition: channels of the transition layer, with ReLU (ours); 0: there is none.
      dtype: of the products.
    """

    num_findings: int
    sharpness: float = 10.0
    transition: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, cells: Array) -> dict[str, Array]:
        """[B, h, w, C] -> 'logits' [B, K] and 'maps' [B, h, w, K], float32."""
        if self.transition:
            convert = layers.Conv1x1(self.transition, dtype=self.dtype, name="transition")
            cells = nn.relu(convert(cells))
        conv = layers.Conv1x1(self.num_findings, dtype=self.dtype, name="findings")
        pooled = pooling.lse_pool(cells, gamma=self.sharpness)
        logits = conv(pooled[:, None, None])[:, 0, 0]
        return {"logits": logits.astype(jnp.float32), "maps": conv(cells).astype(jnp.float32)}


class LseMapHead(nn.Module):
    """LSE model: log-sum-exp of the findings' own score maps.

    Pinheiro and Collobert, CVPR 2015: s_k = (1/r) log(mean of exp(r M_k)), so that pixels of
    similar scores have similar weights in training. r = 5 as in the baselines' code. Theirs, not
    here: a softmax over the classes at every pixel, for findings do not exclude each other.

    Attributes:
      num_findings: K.
      sharpness: r, above 0.
      dtype: of the products.
    """

    num_findings: int
    sharpness: float = 5.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, cells: Array) -> dict[str, Array]:
        """[B, h, w, C] -> 'logits' [B, K] and 'maps' [B, h, w, K], float32."""
        maps = _score_maps(cells, self.num_findings, self.dtype)
        return {"logits": pooling.lse_pool(maps, gamma=self.sharpness), "maps": maps}


class WeldonHead(nn.Module):
    """WELDON: the best cells of a score map, and the worst ones as negative evidence.

    Durand et al., CVPR 2016: s_k = mean of the k largest + mean of the k smallest of M_k. k = 3 is
    the baselines' code's, which has sums in place of means: another scale of the first logits.

    Attributes:
      num_findings: K.
      top_cells: k, how many of the largest and of the smallest.
      dtype: of the products.
    """

    num_findings: int
    top_cells: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, cells: Array) -> dict[str, Array]:
        """[B, h, w, C] -> 'logits' [B, K] and 'maps' [B, h, w, K], float32."""
        maps = _score_maps(cells, self.num_findings, self.dtype)
        return {"logits": pooling.max_min_pool(maps, cells=self.top_cells), "maps": maps}


class MultiMapHead(nn.Module):
    """MultiMap: several maps of each finding, averaged; then the largest and the smallest cell.

    Yan et al., ACM BCB 2018, after WILDCAT (Durand et al., CVPR 2017): M_k = the mean of M maps,
    s_k = max of M_k + alpha min of M_k. M = 12 and alpha = 0.7 are the baselines' code's. A mean of
    linear maps is a linear map: M changes how it is learned, not what it can be. Theirs, not here:
    squeeze-and-excitation behind each transition of the DenseNet, for the encoder is ADPD's.

    Attributes:
      num_findings: K.
      maps_each: M.
      alpha: weight of the smallest cell.
      dtype: of the products.
    """

    num_findings: int
    maps_each: int = 12
    alpha: float = 0.7
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, cells: Array) -> dict[str, Array]:
        """[B, h, w, C] -> 'logits' [B, K] and 'maps' [B, h, w, K], float32."""
        count = self.num_findings * self.maps_each
        maps = layers.Conv1x1(count, dtype=self.dtype, name="findings")(cells)
        maps = maps.reshape(*maps.shape[:3], self.num_findings, self.maps_each)
        maps = jnp.mean(maps.astype(jnp.float32), axis=-1)
        return {"logits": pooling.max_min_pool(maps, cells=1, alpha=self.alpha), "maps": maps}


class HiddenHead(nn.Module):
    """Grad-CAM: a classifier with a hidden layer behind the mean, which has no map of its own.

    Selvaraju et al., ICCV 2017: the map is ReLU(sum over channels of alpha_kc F_c), alpha the mean
    gradient of logit k; `explain.gradcam.grad_cam` of this head gives it. The hidden layer is ours.
    Without one Grad-CAM is the ReLU of the class activation map, for the mean of the features and
    for their log-sum-exp too (whose gradients sum to the weight): the baselines' code, one linear
    layer behind log-sum-exp, differs from CXR in that ReLU alone.

    Attributes:
      num_findings: K.
      hidden: units of the hidden layer.
      dtype: of the products.
    """

    num_findings: int
    hidden: int = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, cells: Array) -> dict[str, Array]:
        """[B, h, w, C] -> 'logits' [B, K], float32."""
        pooled = jnp.mean(cells.astype(jnp.float32), axis=(1, 2))
        units = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(pooled))
        logits = nn.Dense(self.num_findings, dtype=self.dtype, name="findings")(units)
        return {"logits": logits.astype(jnp.float32)}


class TransferHead(nn.Module):
    """STL, self-transfer learning: a branch that classifies and one that localises.

    Hwang and Kim, MICCAI 2016 (arXiv:1602.01625): both read the same features and learn the same
    labels; the first leads the features at the beginning, the second at the end (the task's `loss`
    has the weights). Localisation: a 1x1 convolution and log-sum-exp of each map, which is what
    ADPD says of STL (Sec. 2); r is that of `LseMapHead`. Their classification branch has fully
    connected layers, here `HiddenHead` (ours, since the encoder's map is not flattened). The
    baselines' code has the mean and one linear layer in both, which are then the same function.

    Attributes:
      num_findings: K.
      hidden: units of the hidden layer of the classification branch.
      sharpness: r, above 0.
      dtype: of the products.
    """

    num_findings: int
    hidden: int = 512
    sharpness: float = 5.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, cells: Array) -> dict[str, Array]:
        """[B, h, w, C] -> 'logits' [B, K] and 'maps' [B, h, w, K] of the localisation branch and
        'class_logits' [B, K] of the other, float32."""
        maps = _score_maps(cells, self.num_findings, self.dtype)
        classify = HiddenHead(self.num_findings, self.hidden, self.dtype, name="classify")
        return {
            "logits": pooling.lse_pool(maps, gamma=self.sharpness),
            "maps": maps,
            "class_logits": classify(cells)["logits"],
        }


class CamDetector(nn.Module):
    """A backbone and one of the heads.

    Attributes:
      backbone: its last map is what the head reads (`final` of a DenseNet-121 in ADPD).
      head: see the module's table.
    """

    backbone: Backbone
    head: nn.Module

    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        """Normalised films [B, H, W] -> what the head gives, and 'cells' [B, h, w, C], what it
        read."""
        cells = _cells(self.backbone, x, train)
        return self.head(cells) | {"cells": cells}


class AGXNet(nn.Module):
    """AGXNet: a network that finds abnormal regions guides the one that finds findings.

    Yu et al., MICCAI 2022 (arXiv:2206.12704), by its released code. Two CNNs, each with a mean and
    one linear layer. The first says of each region whether it is abnormal, and has a class
    activation map of it. In training the maps of the regions that hold finding k, by their labels,
    are stretched to 0..1, added and stretched again to A_k; the second's features are
    F_k = (1 + beta A_k) F, of which logit_k = w_k . mean of F_k + b_k and the map is w_k . F_k.
    A tenth of the first one's channels is dropped in its maps (there without enlarging the rest).
    Where nothing is labelled, as at prediction, A_k = 0: so the released code validates, too.

    Theirs, not here: the positive-unlabelled estimate, for what a report does not mention may be
    there, and the second training on films without regions (ADPD: on CXR8).

    Attributes:
      backbone: of the network of findings.
      anatomy: of the network of regions.
      num_findings: K.
      num_regions: A.
      beta: weight of the attention.
      drop_channels: share of the channels of the first network's features that is dropped.
      dtype: of the products.
    """

    backbone: Backbone
    anatomy: Backbone
    num_findings: int
    num_regions: int = 29
    beta: float = 0.1
    drop_channels: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, *, train: bool, region_findings: Array | None = None
    ) -> dict[str, Array]:
        """One pass.

        Args:
          x: normalised films [B, H, W].
          train: drops channels (random stream 'dropout').
          region_findings: [B, A, K], 1 where a region holds a finding, else 0 or NaN; None: nobody
            knows, and the network of regions is not asked.

        Returns:
          'logits' [B, K] and 'maps' [B, h, w, K]; with labels 'region_logits' [B, A] too, that a
          region is abnormal. All float32.
        """
        guide = {}
        attention = jnp.zeros(())
        if region_findings is not None:
            guide["region_logits"], attention = self._guide(x, region_findings, train)
        conv = layers.Conv1x1(self.num_findings, use_bias=False, dtype=self.dtype, name="findings")
        maps = conv(_cells(self.backbone, x, train)).astype(jnp.float32)
        maps = (1.0 + self.beta * attention) * maps
        bias = self.param("bias", nn.initializers.zeros_init(), (self.num_findings,))
        return guide | {"logits": jnp.mean(maps, axis=(1, 2)) + bias, "maps": maps}

    def _guide(self, x: Array, region_findings: Array, train: bool) -> tuple[Array, Array]:
        """Logits of the regions [B, A], and A_k [B, h, w, K]."""
        cells = _cells(self.anatomy, x, train).astype(jnp.float32)
        # Whole channels of the whole batch, as in the released code.
        drop = nn.Dropout(self.drop_channels, broadcast_dims=(0, 1, 2), deterministic=not train)
        conv = layers.Conv1x1(self.num_regions, dtype=self.dtype, name="regions")
        maps = conv(drop(cells)).astype(jnp.float32)
        holds = jnp.nan_to_num(jnp.asarray(region_findings, jnp.float32))
        added = jnp.einsum("bhwa,bak->bhwk", stretched(maps), holds)
        return jnp.mean(maps, axis=(1, 2)), stretched(added)


def stretched(maps: Array) -> Array:
    """Maps [B, h, w, C] stretched to 0..1 by their own minimum and maximum, with a gradient; a flat
    one is 0."""
    low, high = (f(maps, axis=(1, 2), keepdims=True) for f in (jnp.min, jnp.max))
    return (maps - low) / (high - low + EPSILON)


def _score_maps(cells: Array, num_findings: int, dtype: Any) -> Array:
    """M [B, h, w, K], float32: one linear layer of a head, at every cell."""
    conv = layers.Conv1x1(num_findings, dtype=dtype, name="findings")
    return conv(cells).astype(jnp.float32)


def _cells(backbone: Backbone, x: Array, train: bool) -> Array:
    """The last map [B, h, w, C] of grey films [B, H, W]."""
    films = jnp.repeat(x[..., None], 3, axis=-1)
    return backbone(films, train=train)[backbone.stop_at]
