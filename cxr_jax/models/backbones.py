"""The CNNs of Table 2 (Kim et al. 2021), Table 8 (Park et al. 2021) and Table 3 (Wu et al. 2022),
chosen by a config.

Each is cut after a tap; `stop_at` names it and `strides` gives the stride of every tap:

    taps = backbone(x, train=train)  # [B, H, W, 3] -> dict of maps
    features = taps[backbone.stop_at]  # [B, H / stride, W / stride, C]
"""

from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from cxr_jax.errors import InputError
from cxr_jax.models.covidnet_ct import COVIDNetCT
from cxr_jax.models.densenet import DenseNet
from cxr_jax.models.nasnet import NASNet
from cxr_jax.models.resnet import ResNet
from cxr_jax.models.resnet38 import ResNet38
from cxr_jax.models.vgg import VGG
from cxr_jax.models.xception import Xception

Backbone = DenseNet | ResNet | ResNet38 | NASNet | VGG | Xception | COVIDNetCT

# A family's module and the sizes it needs, besides `name` and `tap`.
_FAMILIES = {
    "densenet": (DenseNet, ("growth_rate", "block_sizes", "init_features")),
    "resnet": (ResNet, ("block_sizes", "bottleneck", "init_features")),
    "resnet38": (ResNet38, ("width", "dropout", "stride", "dilations")),
    "nasnet": (NASNet, ("cells", "filters", "stem_filters")),
    "vgg": (VGG, ("block_sizes", "init_features", "norm")),
    "xception": (Xception, ("entry_features", "middle_blocks", "exit_features")),
    "covidnet_ct": (COVIDNetCT, ("block_sizes", "init_features")),
}

_SWITCHES = ("bottleneck", "norm")  # yes or no
_SHARES = ("width", "dropout")  # any number from 0 on; all other fields are whole ones above 0


def make_backbone(config: ml_collections.ConfigDict, dtype: Any = jnp.float32) -> Backbone:
    """The network of `config.model.backbone`, cut at its `tap`.

    Args:
      config: `model.backbone` has `name` ('densenet', 'resnet', ...), `tap` and the sizes of that
        family, as an entry of `sizes.BACKBONES` or `sizes.SLICE_CNNS` has.
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
            f"{_listed(wanted)}: give it all of an entry of a table in cxr_jax.models.sizes"
        )
    for field, value in fields.items():
        if np.size(value) == 0 or np.min(value) < (field not in (*_SWITCHES, *_SHARES)):
            raise InputError(
                f"config.model.backbone.{field}={value!r}; expected whole numbers above 0"
            )
    if name == "nasnet" and fields["filters"] % 4:
        raise InputError(
            f"config.model.backbone.filters={fields['filters']}; expected a multiple of 4"
        )
    # A saved config has lists.
    fields = {k: tuple(v) if np.ndim(v) else v for k, v in fields.items()}
    backbone = module(**fields, stop_at=tap, dtype=dtype)
    if tap not in backbone.strides:
        raise InputError(
            f"config.model.backbone.tap={tap!r}; this {name} has {', '.join(backbone.strides)}"
        )
    return backbone


def _listed(names) -> str:
    return ", ".join(sorted(names)) or "none"


def last_taps(backbone: Backbone, levels: int) -> dict[int, str]:
    """Stride -> the last tap of that stride, of the backbone's last `levels` strides."""
    taps: dict[int, str] = {}
    for name, stride in backbone.strides.items():
        taps[stride] = name  # the last one of this stride
        if name == backbone.stop_at:
            break
    return {stride: taps[stride] for stride in sorted(taps)[-levels:]}


def stride_of(config: ml_collections.ConfigDict) -> int:
    """Pixels of the image between two cells of the tap's map. Raises as `make_backbone`."""
    backbone = make_backbone(config)
    return backbone.strides[backbone.stop_at]
