"""Classifiers of CT slices: a backbone and a head, FeCNN and the baselines of its Table 3.

Wu et al. 2022 ('FeCNN') compare with these, all 'trained in the same environment'. Each is a
`SliceClassifier`; full sizes:

| row of Table 3 | backbone, in `sizes.SLICE_CNNS` | head |
| --- | --- | --- |
| Resnet50, VGG16, Xception | 'resnet50', 'vgg16', 'xception' | `DenseHead(hidden=(256, 64))` |
| WsNet | 'wsnet' | `ScoreMapHead()` |
| DeCoVNet | 'decovnet' | `ProgressiveHead()` |
| COVIDNet | 'covidnet_ct' | `DenseHead()` |
| FeCNN | 'resnet50' | `fecnn.LevelHead()` |

A head says how many of the backbone's last strides it reads, `levels`, takes their maps, the finest
first, and gives 'logits' [B, K] in float32, and what else it has. Only FeCNN's reads labels.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.models import layers
from cxr_jax.models.backbones import Backbone, last_taps

Array = jax.Array


class DenseHead(nn.Module):
    """Dense layers with ReLU on the last map's mean, and one without.

    Wu et al. (Sec. 5.1) put two dense layers with ReLU and one with softmax on their ResNet-50,
    VGG-16 and Xception and do not say how wide they are, nor how the map was made a vector: 256, 64
    and the mean are ours.

    Attributes:
      num_classes: K.
      hidden: units of the hidden layers.
      pool: 'mean', or 'flatten', as VGG's own classifier does.
      dropout: rate behind every hidden layer; where there is none, before the last layer.
      dtype: of the products.
    """

    num_classes: int = 2
    hidden: tuple[int, ...] = ()
    pool: Literal["mean", "flatten"] = "mean"
    dropout: float = 0.5
    dtype: Any = jnp.float32

    levels: ClassVar[int] = 1

    @nn.compact
    def __call__(
        self, maps: Sequence[Array], *, train: bool, labels: Array | None = None
    ) -> dict[str, Array]:
        """One map [B, h, w, C] -> 'logits' [B, K].

        Raises:
          ValueError: `pool` is none of the two.
        """
        del labels
        (cells,) = maps
        if self.pool == "flatten":
            x = cells.reshape(len(cells), -1)
        elif self.pool == "mean":
            x = jnp.mean(cells.astype(jnp.float32), axis=(1, 2))
        else:
            raise ValueError(f"pool={self.pool!r}; expected 'mean' or 'flatten'.")
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x = x if self.hidden else drop(x)
        for index, units in enumerate(self.hidden, start=1):
            x = drop(nn.relu(nn.Dense(units, dtype=self.dtype, name=f"hidden{index}")(x)))
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="classes")(x)
        return {"logits": logits.astype(jnp.float32)}


class ScoreMapHead(nn.Module):
    """WsNet: a score map of every class on three levels, the highest cell of each, added.

    Hu et al., IEEE Access 8, 2020 (arXiv:2004.06689): 1x1 convolutions turn the maps of the third,
    fourth and fifth block of a VGG-like network into score maps, whose global maxima are the
    level's scores; softmax of their sum. The blocks' sizes, VGG-16's with batch norm, are ours.
    (Wu et al.'s Table 3 names another paper beside WsNet, their text this one.)

    Attributes:
      num_classes: K.
      dtype: of the products.
    """

    num_classes: int = 2
    dtype: Any = jnp.float32

    levels: ClassVar[int] = 3

    @nn.compact
    def __call__(
        self, maps: Sequence[Array], *, train: bool, labels: Array | None = None
    ) -> dict[str, Array]:
        """Three maps [B, h, w, C] -> 'logits' [B, K]."""
        del train, labels
        scores = []
        for index, cells in enumerate(maps):
            conv = layers.Conv1x1(self.num_classes, dtype=self.dtype, name=f"classes{index}")
            scores.append(jnp.max(conv(cells).astype(jnp.float32), axis=(1, 2)))
        return {"logits": sum(scores)}


class ProgressiveHead(nn.Module):
    """DeCoVNet's progressive classifier: 3x3 convolutions and max pools down to one cell.

    Wang et al., IEEE TMI 39(8), 2020, by its released code, of which the depth is left out: before
    it a stem of 16 channels and a residual bottleneck each of 64 and of 128, which is
    `ResNet((1, 1), init_features=16)`. Then Conv-ReLU, a pool to half the cells, Conv-ReLU, a pool
    to half, Conv-ReLU, the maximum over the cells, and two dense layers with nothing between them.
    Theirs: pools to fixed numbers of cells, the first one before the first convolution; the mask of
    the lungs as a second channel (Wu et al.: the slice is masked).

    Attributes:
      num_classes: K.
      features: channels of the three convolutions, and of the first dense layer after the last.
      dropout: of whole channels before the last convolution (the paper has it; the released code
        sets it to 0).
      dtype: of the computation.
    """

    num_classes: int = 2
    features: tuple[int, int, int] = (64, 32, 32)
    dropout: float = 0.5
    dtype: Any = jnp.float32

    levels: ClassVar[int] = 1

    @nn.compact
    def __call__(
        self, maps: Sequence[Array], *, train: bool, labels: Array | None = None
    ) -> dict[str, Array]:
        """One map [B, h, w, C] of at least 4x4 cells -> 'logits' [B, K]."""
        del labels
        (x,) = maps
        for index, features in enumerate(self.features, start=1):
            if index == 3:
                # One number a channel of an image: broadcast over the cells.
                drop = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)
                x = drop(x)
            conv = layers.Conv3x3(features, use_bias=True, dtype=self.dtype, name=f"conv{index}")
            x = nn.relu(conv(x))
            if index < 3:
                height, width = (side // 2 * 2 for side in x.shape[1:3])
                x = layers.max_pool_2x2(x[:, :height, :width])
        x = jnp.max(x, axis=(1, 2))
        x = nn.Dense(self.features[-1], dtype=self.dtype, name="dense")(x)
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="classes")(x)
        return {"logits": logits.astype(jnp.float32)}


class SliceClassifier(nn.Module):
    """A backbone and a head.

    In two halves, so that a map can be explained by what becomes of it: `maps`, then `classify`.

    Attributes:
      backbone: see `backbones.make_backbone`.
      head: see the module's table.
    """

    backbone: Backbone
    head: nn.Module

    def __call__(self, x: Array, *, train: bool, labels: Array | None = None) -> dict[str, Array]:
        """Normalised slices [B, H, W] -> what the head gives, and 'cells' [B, h, w, C], the last
        block's map. `labels` as in `classify`."""
        maps = self.maps(x, train=train)
        return self.classify(maps, train=train, labels=labels) | {"cells": maps[-1]}

    def maps(self, x: Array, *, train: bool) -> tuple[Array, ...]:
        """Normalised slices [B, H, W] -> the maps that the head reads, the finest first."""
        taps = self.backbone(jnp.repeat(x[..., None], 3, axis=-1), train=train)
        return tuple(taps[name] for name in last_taps(self.backbone, self.head.levels).values())

    def classify(
        self, maps: Sequence[Array], *, train: bool, labels: Array | None = None
    ) -> dict[str, Array]:
        """What `maps` gives -> 'logits' [B, K] and what else the head has.

        Args:
          maps: as `maps` gives them.
          train: dropout and the batch's statistics.
          labels: int [B], the true classes, -1 where nobody knows; read in training only, by a head
            that keeps count of its errors.
        """
        return self.head(maps, train=train, labels=labels)
