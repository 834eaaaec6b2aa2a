"""The published sizes of the networks in Table 2 (Kim et al. 2021) and Table 8 (Park et al. 2021).

Plain data: a config file reads it, and must not wait for JAX to be imported.
"""

from typing import Any


def _densenet(*block_sizes: int) -> dict[str, Any]:
    return dict(
        name="densenet", tap="block3", growth_rate=32, block_sizes=block_sizes, init_features=64
    )


def _resnet(*block_sizes: int, bottleneck: bool = True) -> dict[str, Any]:
    return dict(
        name="resnet",
        tap="layer3",
        block_sizes=block_sizes,
        bottleneck=bottleneck,
        init_features=64,
    )


# `config.model.backbone` of each published network, cut at its last stride-16 stage: what the map
# head's parameter counts in Table 2 imply. The ResNet-50 of the hybrid ViT has the blocks of its
# fourth stage in the third, (3, 4, 9): the R50+ViT-B/16 of arXiv:2010.11929. Park et al. do not
# say which they took. There it has group norm; here batch norm, as the other networks.
BACKBONES: dict[str, dict[str, Any]] = {
    "densenet121": _densenet(6, 12, 24, 16),
    "densenet169": _densenet(6, 12, 32, 32),
    "densenet201": _densenet(6, 12, 48, 32),
    "resnet18": _resnet(2, 2, 2, 2, bottleneck=False),
    "resnet50": _resnet(3, 4, 6, 3),
    "resnet152": _resnet(3, 8, 36, 3),
    "nasnet_large": dict(name="nasnet", tap="stage3", cells=6, filters=168, stem_filters=96),
    "resnet50_hybrid": _resnet(3, 4, 9),
}
