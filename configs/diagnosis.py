"""Diagnosis from a corpus of findings: Park et al. 2021 ('corpus_vit'), and models for two cores.

    python -m cxr_jax.main --config=configs/diagnosis.py:quick --config.init_from=DIR
    python -m cxr_jax.main --config=configs/diagnosis.py --config.init_from=DIR --workdir=DIR

where DIR is a run of `configs/findings.py` with the same variant, the low-level feature corpus.
For `cxr3` it is one of phantoms, which has seen no film of any fold: `findings.py:quick,side=224`.
The baselines of Table 7 start from ImageNet's weights in the paper (`cxr_jax.weights`; but for the
hybrid ViT, whose published weights have group norm), small ones from random numbers.

| variant | what |
| --- | --- |
| (none) | the paper's model and training, 512 px, on three classes of a `manifest` |
| quick | a small model on phantoms, minutes on two cores |
| cxr3 | on the real films of `cxr_3class`, 224 px |
| smoke | two tiny steps |

Options, e.g. `configs/diagnosis.py:quick,size=2x4` (Tables 7 and 9 of the paper):

| option | what |
| --- | --- |
| `size=12x12, 4x8, 2x4` | layers and heads of the transformer; small models: 4x4, 2x3, 1x2 |
| `corpus=map, 1, 3, 10` | the map before PCAM, or weighed by the maps of so many findings |
| `backbone=NAME,vit=0` | CNN baselines of Table 7: resnet50, resnet152, densenet121 |
| `backbone=none`, `backbone=resnet50_hybrid` | ViT and hybrid ViT of Table 7 |
| `frozen=1` | the corpus is not trained on (Table 9); it needs `init_from` |
| `pixels=2` | films of twice the side, the projection's stride two: 1024 px of Table 9 |
| `crop=nothing, square, lungs`, `hide=nothing, lungs, outside` | what of a film is seen |

Self-supervised pre-training (Table 9): `--config.init_from` a run of `configs/simclr.py`. PA and AP
are models of their own: `--config.view=PA`. Results: RESULTS.md.
"""

import ml_collections

from configs import common
from cxr_jax.data import sources
from cxr_jax.data.records import DIAGNOSES, FINDINGS
from cxr_jax.data.visible import CROPS, HIDES
from cxr_jax.errors import InputError
from cxr_jax.meanings import described
from cxr_jax.models.sizes import BACKBONES, LAST_TAP, SMALL, SMALL_CNNS, SMOKE, VIT_B16

# Layers and heads [paper, Table 9]; of small models about a third of both.
SIZES = {"12x12": (12, 12), "4x8": (4, 8), "2x4": (2, 4)}
SMALL_SIZES = {"12x12": (4, 4), "4x8": (2, 3), "2x4": (1, 2)}
# What weighs the corpus [paper, Sec. 5.5.2].
WEIGHING = {
    "map": (),
    "1": ("pneumonia",),
    "3": ("lung opacity", "consolidation", "pneumonia"),
    "10": FINDINGS,
}
OPTIONS = {
    "size": "12x12",
    "corpus": "map",
    "backbone": "densenet121",
    "vit": 1,
    "frozen": 0,
    "pixels": 1,
    "crop": "nothing",
    "hide": "nothing",
}
KNOWN = {
    "size": tuple(SIZES),
    "corpus": tuple(WEIGHING),
    "backbone": (*BACKBONES, "none"),
    "pixels": (1, 2),
    "crop": CROPS,
    "hide": HIDES,
}
MEANINGS = {
    "classes": "those of the data set that are told apart",
    "view": "PA or AP: films of that projection alone; nothing: all",
    "model.weighing": "findings whose probability maps weigh the corpus; (): the map before PCAM",
    "model.train_backbone": "False: the corpus is frozen",
    "model.freeze_norms": "True keeps all batch norm in inference mode",
}


def paper(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """The classifier of Park et al. 2021, on a table of films: its hospitals' are not public."""
    config.task = "diagnosis"
    config.classes = DIAGNOSES  # [paper, Sec. 4.2]
    config.view = ""
    config.visible = dict(crop=options["crop"], hide=options["hide"])
    config.lungs = dict(masks="record", workdir="")  # read if visible needs them
    config.data = sources.block("manifest")
    config.preprocess.size = 512  # [paper, Sec. 4.4]
    config.preprocess.order = ("equalize", "blur", "resize")  # [paper, Sec. 4.4]
    config.total_steps = 10_000  # [paper, Sec. 4.4]
    config.batch_size = 16  # [paper, Sec. 4.4]
    config.optimizer.update(name="sgd", lr=0.001, momentum=0.9, clip_norm=1.0)  # [paper, Sec. 4.4]
    config.optimizer.update(schedule="cosine", warmup_steps=500)  # [paper, Sec. 4.4]
    layers, heads = SIZES[options["size"]]
    backbone = options["backbone"]
    config.model = dict(
        backbone=BACKBONES.get(backbone, dict(name="none")),
        train_backbone=not options["frozen"],  # trained [paper, Sec. 5.5.3]
        freeze_norms=False,
        vit=VIT_B16 | dict(num_layers=layers, num_heads=heads),
        weighing=WEIGHING[options["corpus"]],
    )
    if backbone == "none":
        config.model.vit.patch_size = 16  # [PAPERS]
    elif backbone == "resnet50_hybrid":
        config.model.vit.stride = 2  # 16x16 cells at 512 px, as the others
    else:
        config.model.backbone.tap = LAST_TAP[config.model.backbone.name]


def small(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """128 px, 16x16 cells as the paper has at 512; the corpus of `findings.py:quick`."""
    config.data = sources.block("phantom_cxr", train=1500, val=256, test=256)
    config.preprocess.size = 128
    config.preprocess.order = ("resize", "blur", "equalize")
    layers, heads = SMALL_SIZES[options["size"]]
    config.model.vit.update(num_layers=layers, num_heads=heads, width=96, mlp_dim=192, stride=1)
    if not options["vit"]:
        config.model.backbone = SMALL_CNNS[options["backbone"]]
    elif options["backbone"] == "none":
        config.model.vit.patch_size = 8
    else:
        config.model.backbone.update(SMALL[config.model.backbone.name])
    if config.model.backbone.name == "densenet" and options["vit"]:
        config.model.backbone.tap = LAST_TAP["densenet"]
    config.total_steps = 400
    config.checkpoint_every = 50
    config.eval_steps = (300, 350, 400)
    common.small_optimizer(config, warmup_steps=30, lr=1e-3)


def cxr3(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """Three folds to train on, one to validate, one to test; the middle square of each film, for
    the classes differ in its shape. The paper's four blocks: 7x7 cells at 224 px."""
    config.data = sources.block("cxr_3class", fold=3)
    if options["crop"] == OPTIONS["crop"]:
        config.visible.crop = "square"
    config.lungs.masks = "predicted"  # read if visible needs them; needs config.lungs.workdir
    config.preprocess.size = 224
    if config.model.backbone.name == "densenet" and options["vit"]:
        config.model.backbone.update(block_sizes=(2, 4, 6, 4))
    config.augment.update(rotate_deg=10.0, shift=0.06, scale=0.15, brightness=0.05, contrast=0.1)
    config.total_steps = 800
    config.checkpoint_every = 100
    config.eval_steps = (600, 700, 800)
    config.optimizer.update(weight_decay=0.05)


def smoke(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """Two tiny steps."""
    common.smoke(config)
    config.data.update(train=32, val=8)  # some film of every class
    config.model.vit.update(num_layers=2, num_heads=2, width=32, mlp_dim=32)
    if options["backbone"] == "none":
        config.model.vit.patch_size = 16
    elif options["vit"]:
        config.model.backbone.update(SMOKE[config.model.backbone.name])
    if config.model.backbone.name == "densenet" and options["vit"]:
        config.model.backbone.tap = LAST_TAP["densenet"]
    config.eval_steps = (1, 2)


VARIANTS = {
    "": (),
    "quick": (small,),
    "cxr3": (small, cxr3),
    "smoke": (small, smoke),
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config of a variant with its options; see the module.

    Raises:
      InputError: an unknown variant, option or value, or two that exclude each other.
    """
    base, options = common.read_variant(variant, VARIANTS, OPTIONS)
    common.check_options(options, KNOWN)
    if not options["vit"]:
        _check_baseline(options)
    config = common.get_config()
    paper(config, options)
    for change in VARIANTS[base]:
        change(config, options)
    if not options["vit"]:
        config.model.vit.num_layers = 0
    if options["pixels"] == 2:  # the same 16x16 cells [paper, Sec. 5.5.4]
        config.preprocess.size *= 2
        config.model.vit.stride *= 2
    return config.lock()


def _check_baseline(options: dict[str, object]) -> None:
    """Refuses what a CNN without a transformer cannot be."""
    if options["backbone"] not in SMALL_CNNS:
        raise InputError(
            f"backbone={options['backbone']},vit=0; the baselines are {', '.join(SMALL_CNNS)}"
        )
    if options["corpus"] != "map" or options["pixels"] != 1:
        raise InputError("vit=0: corpus= and pixels= are of the transformer's projection")


def meanings() -> dict[str, str]:
    """Path -> what the field means, of all fields but `data` and `second`. Imports JAX."""
    from cxr_jax.data.lungs import LungMasks
    from cxr_jax.data.visible import Visible
    from cxr_jax.models.vit import ViT

    return (
        common.meanings()
        | common.BACKBONE_MEANINGS
        | MEANINGS
        | described("model.vit", ViT)
        | described("lungs", LungMasks)
        | described("visible", Visible)
    )
