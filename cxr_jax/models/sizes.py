"""The published sizes of the networks in Table 2 (Kim et al. 2021), Tables 7, 8 (Park et al. 2021)
and Table 3 (Wu et al. 2022), and small ones in their proportions.

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

# Small networks for two cores, cut at stride 8: 16x16 cells at 128 px.
SMALL = {
    "densenet": dict(growth_rate=12, block_sizes=(3, 6), init_features=16, tap="block2"),
    "resnet": dict(block_sizes=(2, 2), init_features=24, tap="layer2"),
    "nasnet": dict(cells=1, filters=12, stem_filters=8, tap="stage2"),
    "none": dict(),
}
# Tiny ones, cut at stride 16, for the smoke variant.
SMOKE = {
    "densenet": dict(growth_rate=4, block_sizes=(1, 1, 1), init_features=36, tap="block3"),
    "resnet": dict(block_sizes=(1, 1, 1), init_features=4, tap="layer3"),
    "nasnet": dict(cells=1, filters=8, stem_filters=4, tap="stage3"),
    "none": dict(),
}
# After the last stage, at stride 32: what the corpus paper taps.
LAST_TAP = {"densenet": "final", "resnet": "layer4", "nasnet": "stage4"}
VIT_B16 = dict(
    num_layers=12, num_heads=12, width=768, mlp_dim=3072, dropout=0.0, patch_size=1, stride=1
)
# CNN classifiers in the proportions of the published ones: all their stages, to stride 32.
SMALL_CNNS: dict[str, dict[str, Any]] = {
    "densenet121": dict(
        name="densenet", tap="final", growth_rate=12, block_sizes=(2, 4, 6, 4), init_features=16
    ),
    "resnet50": dict(
        name="resnet", tap="layer4", block_sizes=(1, 1, 2, 1), bottleneck=True, init_features=16
    ),
    "resnet152": dict(
        name="resnet", tap="layer4", block_sizes=(1, 2, 8, 1), bottleneck=True, init_features=16
    ),
}
# The backbones of Table 3 (Wu et al. 2022), to stride 32 but for DeCoVNet's; the heads they go with
# are in the table of `models/slices.py`.
SLICE_CNNS: dict[str, dict[str, Any]] = {
    "resnet50": BACKBONES["resnet50"] | dict(tap="layer4"),
    "vgg16": dict(
        name="vgg", tap="block5", block_sizes=(2, 2, 3, 3, 3), init_features=64, norm=False
    ),
    "xception": dict(
        name="xception",
        tap="exit",
        entry_features=(32, 64, 128, 256, 728),
        middle_blocks=8,
        exit_features=(1024, 1536, 2048),
    ),
    "wsnet": dict(
        name="vgg", tap="block5", block_sizes=(2, 2, 3, 3, 3), init_features=64, norm=True
    ),
    "decovnet": dict(
        name="resnet", tap="layer2", block_sizes=(1, 1), bottleneck=True, init_features=16
    ),
    "covidnet_ct": dict(
        name="covidnet_ct", tap="stage4", block_sizes=(2, 3, 4, 2), init_features=64
    ),
}
# Small ones in their proportions; the last map of 112 px has 7x7 cells (DeCoVNet: 14x14).
SMALL_SLICE_CNNS: dict[str, dict[str, Any]] = {
    "resnet50": dict(
        name="resnet", tap="layer3", block_sizes=(1, 2, 2), bottleneck=True, init_features=16
    ),
    "vgg16": dict(name="vgg", tap="block4", block_sizes=(1, 1, 2, 2), init_features=16, norm=False),
    "xception": dict(
        name="xception",
        tap="exit",
        entry_features=(8, 16, 32, 64),
        middle_blocks=2,
        exit_features=(96, 128, 192),
    ),
    "wsnet": dict(name="vgg", tap="block4", block_sizes=(1, 1, 2, 2), init_features=16, norm=True),
    "decovnet": dict(
        name="resnet", tap="layer2", block_sizes=(1, 1), bottleneck=True, init_features=8
    ),
    "covidnet_ct": dict(name="covidnet_ct", tap="stage3", block_sizes=(1, 2, 2), init_features=24),
}
# The network under SEAM, as a backbone of other tasks that its CAM may start from; and the small
# one of `configs/seam.py:quick`: 32x32 cells at 128 px.
RESNET38: dict[str, Any] = dict(
    name="resnet38", tap="conv6", width=1.0, dropout=(0.3, 0.5), stride=8, dilations=(2, 4, 4)
)
SMALL_RESNET38 = RESNET38 | dict(width=1 / 16, dropout=(0.0, 0.0), stride=4, dilations=(1, 1, 1))
