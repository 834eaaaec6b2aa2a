"""The CNNs of Table 2 (Kim et al. 2021) and Table 8 (Park et al. 2021), chosen by a config.

Each is cut after a tap; `stop_at` names it and `strides` gives the stride of every tap:

    taps = backbone(x, train=train)  # [B, H, W, 3] -> dict of maps
    features = taps[backbone.stop_at]  # [B, H / stride, W / stride, C]
"""

from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from cxr_jax.errors import InputError
from cxr_jax.models.densenet import DenseNet
from cxr_jax.models.nasnet import NASNet
from cxr_jax.models.resnet import ResNet

Backbone = DenseNet | ResNet | NASNet

# A family's module and the sizes it needs, besides `name` and `tap`.
_FAMILIES = {
    "densenet": (DenseNet, ("growth_rate", "block_sizes", "init_features")),
    "resnet": (ResNet, ("block_sizes", "bottleneck", "init_features")),
    "nasnet": (NASNet, ("cells", "filters", "stem_filters")),
}


def make_backbone(config: ml_collections.ConfigDict, dtype: Any = jnp.float32) -> Backbone:
    """The network of `config.model.backbone`, cut at its `tap`.

    Args:
      config: `model.backbone` has `name` ('densenet', 'resnet' or 'nasnet'), `tap` and the sizes of
        that family, as an entry of `sizes.BACKBONES` has.
      dtype: of the computation; parameters and batch statistics stay float32.

    Raises:
      InputError: an unknown name, field or tap, a missing field, or a size that is not positive.
    """
    fields = dict(config.model.backbone)
    # A config saved before there were other families has no name.
    name, tap = fields.pop("name", "densenet"), fields.pop("tap", None)
    if name not in _FAMILIES:
        raise InputError(
            f"config.model.backbone.name={name!r}; expected one of {', '.join(_FAMILIES)}"
        )
    module, wanted = _FAMILIES[name]
    if set(fields) != set(wanted):
        raise InputError(
            f"config.model.backbone, a {name}, has the fields {_listed(fields)}; expected "
            f"{_listed(wanted)}: give it all of an entry of cxr_jax.models.sizes.BACKBONES"
        )
    for field, value in fields.items():
        if np.size(value) == 0 or np.min(value) < (field != "bottleneck"):
            raise InputError(
                f"config.model.backbone.{field}={value!r}; expected whole numbers above 0"
            )
    if name == "nasnet" and fields["filters"] % 4:
        raise InputError(
            f"config.model.backbone.filters={fields['filters']}; expected a multiple of 4"
        )
    if "block_sizes" in fields:
        fields["block_sizes"] = tuple(fields["block_sizes"])
    backbone = module(**fields, stop_at=tap, dtype=dtype)
    if tap not in backbone.strides:
        raise InputError(
            f"config.model.backbone.tap={tap!r}; this {name} has {', '.join(backbone.strides)}"
        )
    return backbone


def _listed(names) -> str:
    return ", ".join(sorted(names)) or "none"


def stride_of(config: ml_collections.ConfigDict) -> int:
    """Pixels of the image between two cells of the tap's map. Raises as `make_backbone`."""
    backbone = make_backbone(config)
    return backbone.strides[backbone.stop_at]
