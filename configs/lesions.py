"""FeCNN: COVID-19 on CT slices and its lesions (Wu et al., Phys. Med. Biol. 2022).

    python -m cxr_jax.main --config=configs/lesions.py:quick --workdir=DIR
    python -m cxr_jax.main --config=configs/lesions.py --config.init_from=WEIGHTS --workdir=DIR
    python -m cxr_jax.lesion_space --workdir=DIR

| variant | what |
| --- | --- |
| (none) | the paper's training on COVIDx CT, 512 px; WEIGHTS: imported ImageNet weights |
| quick | a small FeCNN on phantom slices of 224 px, minutes on two cores |
| covid_ct | the same on the real slices of `covid_ct` |
| ct_lesions | the same on the real halves of slices of `ct_lesions`: is a lesion in it? |
| smoke | two tiny steps |

| option | what |
| --- | --- |
| `network=fecnn` | rows of Table 3: resnet50, vgg16, xception, wsnet, decovnet, covidnet_ct |
| `pyramid=0`, `fusion=0` | Table 4: without the feature pyramid, without ensemble fusion |
| `classes=3` | of (none) and quick: another infection as third class [paper, Sec. 6.2] |

The rows of Table 3 without a network: `benchmarks/classical.py`.

Reach. The paper's last map has 16x16 cells of a slice of 512 px; the small networks' 14x14 of 224
px, each of which sees 91 px. Phantoms' lesions are as wide as in extensive disease: half of them
would be smaller than two cells otherwise, of which a map can tell no place.
"""

import ml_collections

from configs import common
from cxr_jax.data import sources
from cxr_jax.data.records import DIAGNOSES
from cxr_jax.errors import InputError
from cxr_jax.meanings import described
from cxr_jax.models.sizes import SLICE_CNNS, SMALL_SLICE_CNNS

# Network -> its backbone in the tables of sizes, and its head.
NETWORKS = {
    "fecnn": ("resnet50", "levels"),
    "resnet50": ("resnet50", "dense"),
    "vgg16": ("vgg16", "dense"),
    "xception": ("xception", "dense"),
    "wsnet": ("wsnet", "score_maps"),
    "decovnet": ("decovnet", "progressive"),
    "covidnet_ct": ("covidnet_ct", "dense"),
}
HIDDEN = {"resnet50", "vgg16", "xception"}  # have two dense layers more [paper, Sec. 5.1]
OPTIONS = {"network": "fecnn", "pyramid": 1, "fusion": 1, "classes": 2}
KNOWN = {"network": tuple(NETWORKS), "pyramid": (0, 1), "fusion": (0, 1), "classes": (2, 3)}
COVID = DIAGNOSES[2]
MEANINGS = {
    "classes": "those of the data set that are told apart",
    "positive": "the class whose lesions are looked for",
    "maps": "heat maps that are cut into lesions, the first one is drawn",
    "same_cut": "True: every map is cut as lam is: by Otsu's threshold",
    "gate": "slice: one that is not called positive has no lesion; or none",
    "least_lesion": "pixels of a true lesion; smaller ones are left out",
    "model.head": "levels (FeCNN), dense, score_maps (WsNet) or progressive (DeCoVNet)",
    "model.pyramid": "of levels: a feature pyramid over the last three blocks",
    "model.fusion": "of levels: ensemble fusion; else one dense layer",
    "model.width": "of levels: channels of the pyramid and of each level's vector",
    "model.dropout": "before the last layers",
    "model.momentum": "of levels: of the running error rates",
    "model.hidden": "of dense: units of the hidden layers",
    "model.backbone.norm": "of VGG: with batch norm",
    "model.backbone.entry_features": "of Xception: channels of the entry flow",
    "model.backbone.middle_blocks": "of Xception: how many blocks the middle flow has",
    "model.backbone.exit_features": "of Xception: channels of the exit flow",
}


def paper(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """The setting of Wu et al. 2022."""
    config.task = "lesions"
    three = options["classes"] == 3
    # Of two, other pneumonia is left out [paper, Sec. 4.1].
    config.classes = DIAGNOSES if three else (DIAGNOSES[0], COVID)
    config.positive = COVID
    config.maps = ("lam", "cam", "norm_grad", "brightness")
    config.same_cut = False
    config.gate = "slice"
    config.least_lesion = 1
    config.crop = dict(masks="morphology", hide=True, least_intensity=0.08)  # [PAPERS, 5]
    config.data = sources.block("covidx_ct")
    config.preprocess.update(size=512, order=("resize",))  # [paper, Sec. 4.2.2]
    config.augment.update(rotate_deg=180.0, shift=0.0, scale=0.05)  # [paper, Sec. 4.2.3]
    config.augment.update(gain=0.5, contrast=0.3, flip=True, flip_vertical=True)
    config.augment.brightness = 0.0  # theirs is a factor, which leaves black black
    config.batch_size = 10  # [paper, Sec. 4.2.1]
    # 50 epochs [Sec. 4.2.1] of 67,782 slices, or of 103,778 of three classes [paper, Sec. 6.2].
    config.total_steps = 518_890 if three else 338_910
    config.checkpoint_every = 5_000
    config.optimizer.update(name="adam", lr=1e-5)  # [paper, Sec. 4.2.1]
    network = str(options["network"])
    backbone, head = NETWORKS[network]
    config.model = dict(
        backbone=SLICE_CNNS[backbone],
        head=head,
        pyramid=bool(options["pyramid"]),
        fusion=bool(options["fusion"]),
        width=256,  # [paper, Sec. 3.1.2]
        dropout=0.5,  # [paper, Sec. 4.2.1]
        momentum=0.99,
        hidden=(256, 64) if network in HIDDEN else (),
    )


def small(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """224 px and 14x14 cells; phantoms, whose lungs are known."""
    config.data = sources.block(
        "phantom_ct", slices=16, train=96, val=16, test=40, positive=0.6, label_every=1
    )
    config.data.disease_extent = 1.0
    if options["classes"] == 3:
        config.data.other = 0.5
    config.crop.update(masks="record_or_morphology", least_intensity=0.0)
    config.preprocess.size = 224
    config.model.backbone = SMALL_SLICE_CNNS[NETWORKS[str(options["network"])][0]]
    config.model.update(width=32, dropout=0.2, momentum=0.95)
    if config.model.hidden:
        config.model.hidden = (32, 16)
    config.augment.update(gain=0.2, contrast=0.2)
    config.batch_size, config.total_steps = 16, 800
    config.checkpoint_every = 50
    config.eval_steps = (700, 750, 800)
    config.eval_batch_size = 32
    common.small_optimizer(config, warmup_steps=30, lr=2e-3)


def covid_ct(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """Single slices cut from publications; there is no lesion mask."""
    config.classes = ("non-covid", COVID)
    config.data = sources.block("covid_ct")
    config.crop.masks = "morphology"
    config.optimizer.update(weight_decay=0.05)


def ct_lesions(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """Patients all of whom have COVID-19, and slices all of which have a lesion: only their halves
    are with or without one. The halves are cut by the lung masks, which are used."""
    config.data = sources.block("ct_lesions", halves=True)


def smoke(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """Two tiny steps."""
    common.smoke(config)
    config.data.update(size=64, slices=8, positive=0.5, train=4, val=2, test=4)
    config.model.width = 8
    if options["network"] == "fecnn":
        config.model.backbone.update(block_sizes=(1, 1, 1), init_features=8)
    config.eval_steps = (1, 2)
    config.optimizer.warmup_steps = 0


VARIANTS = {
    "": (),
    "quick": (small,),
    "covid_ct": (small, covid_ct),
    "ct_lesions": (small, ct_lesions),
    "smoke": (small, smoke),
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config of a variant with its options; see the module.

    Raises:
      InputError: an unknown variant, option or value, or two that exclude each other.
    """
    base, options = common.read_variant(variant, VARIANTS, OPTIONS)
    common.check_options(options, KNOWN)
    if options["network"] != "fecnn" and not (options["pyramid"] and options["fusion"]):
        raise InputError("pyramid=0 and fusion=0 are of network=fecnn")
    if options["classes"] == 3 and base in ("covid_ct", "ct_lesions"):
        raise InputError(f"classes=3: {base} has two")
    config = common.get_config()
    paper(config, options)
    for change in VARIANTS[base]:
        change(config, options)
    return config.lock()


def meanings() -> dict[str, str]:
    """Path -> what the field means, of all fields but `data` and `second`. Imports JAX."""
    from cxr_jax.data.ct_slices import LungCrop

    return common.meanings() | common.BACKBONE_MEANINGS | MEANINGS | described("crop", LungCrop)
