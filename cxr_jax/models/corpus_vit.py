"""A low-level feature corpus and a transformer over its cells (Kim et al. 2021; Park et al. 2021).

Eq. 1 of both: c = F(x), the corpus: a tap of a CNN on the film. Then a ViT over its cells. What is
put on top is a head's business: a map head on the cells (severity), a classifier on the [class]
token (diagnosis).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from cxr_jax.errors import InputError
from cxr_jax.models import backbones
from cxr_jax.models.vit import ViT

Array = jax.Array


class CorpusViT(nn.Module):
    """Corpus and transformer; a subclass adds its head beside them.

    Attributes:
      backbone: None is the ViT of Park et al. 2021, Tables 7 and 8, on raw patches.
      vit: None leaves the corpus as it is: the CNN baselines of Table 2 of Kim et al. 2021.
      train_backbone: False keeps the corpus frozen, its batch norm in inference mode.
      freeze_norms: True keeps all batch norm in inference mode.
    """

    backbone: backbones.Backbone | None
    vit: ViT | None
    train_backbone: bool
    freeze_norms: bool

    def encode(
        self, x: Array, *, train: bool, return_attention: bool = False
    ) -> dict[str, Array | list[Array]]:
        """Normalised films [B, H, W] -> 'map' [B, h, w, C]; with a ViT its other outputs too, 'cls'
        [B, C], 'tokens' [B, 1 + h w, C] and, if asked for, 'attention', a list of every layer's."""
        features = self.features(x, train=train)
        if self.vit is None:
            return {"map": features}
        return self.vit(features, train=train, return_attention=return_attention)

    def features(self, x: Array, *, train: bool) -> Array:
        """Normalised films [B, H, W] -> the corpus [B, h, w, C]; without a backbone the films
        themselves [B, H, W, 3]."""
        features = jnp.repeat(x[..., None], 3, axis=-1)
        if self.backbone is None:
            return features
        taps = self.backbone(features, train=self.trains_norms(train) and self.train_backbone)
        return taps[self.backbone.stop_at]

    def trains_norms(self, train: bool) -> bool:
        """Whether batch norm takes the batch's statistics."""
        return train and not self.freeze_norms


def make_parts(
    config: ml_collections.ConfigDict, dtype: Any
) -> tuple[backbones.Backbone | None, ViT | None]:
    """The backbone and the transformer of `config.model`, whose fields `backbone` and `vit` are.

    Raises:
      InputError: neither is there, or a setting that cannot be meant.
    """
    c = config.model
    backbone = None
    if c.backbone.name != "none":
        backbone = backbones.make_backbone(config, dtype)
    elif not c.vit.num_layers:
        raise InputError("config.model has neither a backbone nor a vit; choose one")
    return backbone, ViT(**c.vit, dtype=dtype) if c.vit.num_layers else None


def cells_of(side: int, backbone: backbones.Backbone | None, vit: ViT | None) -> tuple[int, int]:
    """(cells on a side of the map of a film of `side` pixels, pixels between two of them).

    Raises:
      InputError: the cells do not divide the film.
    """
    cell = backbone.strides[backbone.stop_at] if backbone else 1
    cell *= vit.patch_size * vit.stride if vit else 1
    if side % cell:
        raise InputError(
            f"config.preprocess.size={side} with cells of {cell} px: the stride must divide it"
        )
    return side // cell, cell
