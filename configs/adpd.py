"""Boxes of pathologies from anatomical regions: Müller et al. 2023 ('adpd'), and smaller models.

    python -m cxr_jax.main --config=configs/adpd.py:quick
    python -m cxr_jax.main --config=configs/adpd.py --config.init_from=DIR --workdir=DIR

| variant | what |
| --- | --- |
| (none) | the paper's Loc-ADPD, DenseNet-121 at 224 px; DIR: imported ImageNet weights |
| quick | a small model on phantoms of 112 px, ten minutes on two cores |
| cohen | the same on the lungs and zones of `brixia_cohen`, whose scores label them |
| cxr3 | the same on the lungs of `cxr_3class`, which a lungs run finds, by NIH's labels of films |
| smoke | two tiny steps |

Options, e.g. `configs/adpd.py:quick,method=mil` (Table 1 of the paper):

| option | what |
| --- | --- |
| `method=loc, mil, loc+mil` | labels of regions, of films, or both; `cohen` has loc, `cxr3` mil |
| `fusion=0` | boxes are not fused; `--mode=eval --config.fusion=0` does so with a trained run |
| `asl=mean, sum` | how ASL is reduced, see below |
| `cells=7, 14` | of all but the paper's: cells on a side of the last map |

ASL's weight. The paper averages ASL over regions and pathologies and weighs it by 0.01; its code
weighs by 0.01 a sum over them and over the batch of 128, and that is where the number belongs. Here
the loss is a mean over films, so 0.01 of the code's sum is 1.28 times a film's sum (`asl=sum`), or
1.28 times the number of labels times a film's mean (`asl=mean`, the default): 29 x 53 labels of a
film's regions make 1967, its 53 own make 67.8. The two differ only in films with fewer labels,
whose mean counts as much as any.

Reach. The paper's map has 7x7 cells, a seventh of the film each, and every cell sees the whole
film. `quick` keeps that: three dense blocks give 7x7 cells of 16 px that see 295 px of 112.
`cells=14` is one block less: cells of 8 px that see 95 px.

Of `quick`, ours: a learning rate of 3e-3, layer scales that start at 1 and 0.3 of ASL's weight over
regions, chosen on validation phantoms in single short trials. A network first learns the mean
regions and needs a thousand steps to leave them; phantoms' regions hold findings far more often
than real ones, so that ASL at the paper's weight would be most of the loss.
"""

import ml_collections

from configs import common
from cxr_jax.data import sources
from cxr_jax.data.class_mapping import NIH_BY_CHEST_IMAGENOME
from cxr_jax.data.records import FINDINGS, REGIONS
from cxr_jax.data.sources import chest_imagenome
from cxr_jax.data.zone_regions import LUNG_ROWS
from cxr_jax.errors import InputError
from cxr_jax.meanings import described
from cxr_jax.models.sizes import BACKBONES, LAST_TAP

OPTIONS = {"method": "", "fusion": 0.03, "asl": "mean", "cells": 7}
KNOWN = {"method": ("", "loc", "mil", "loc+mil"), "asl": ("mean", "sum"), "cells": (7, 14)}
# Width, learning rate and decay of a method [paper, Sec. 3.3]; Loc with MIL is trained as Loc.
METHODS = {
    "loc": (512, 3e-5, 1e-5),
    "mil": (256, 1e-4, 1e-4),
    "loc+mil": (512, 3e-5, 1e-5),
}
# 0.01 of a sum over a batch of 128 as a part of a mean over films  [PAPERS, 4]
FILM_SUM_WEIGHT = 0.01 * 128
PLACED = FINDINGS[1:]  # 'no finding' has no place
SMALL_LOC_SHARE = 0.3  # of ASL over regions, in small models  [see the module]
STEPS_AN_UPDATE = 8  # 8 x 16 films
MEANINGS = {
    "method": "what pathologies are learned from: loc, labels of regions; mil, of films; loc+mil",
    "regions": "those that the training set has; (): all 29",
    "regions_from": "boxes of regions: record, or lungs: the eight that lung masks give",
    "asl_reduction": "of ASL over the labels of a film: mean or sum",
    "asl_weight.loc": "of ASL over regions; 1.28 times the labels for mean, 1.28 for sum",
    "asl_weight.mil": "of ASL over films, likewise",
    "asl.gamma_neg": "ASL's exponent of negatives; 0, as for both and clip 0: cross-entropy",
    "asl.gamma_pos": "ASL's exponent of positives",
    "asl.clip": "a negative whose probability is below it costs nothing",
    "mil_sharpness": "of log-sum-exp over regions: small is their mean, 10 near their maximum",
    "mil_over": "log-sum-exp is the mean over the regions that are present, or over all",
    "balanced_presence": "weighs presence by how often the batch has each region",
    "threshold": "a region has a finding whose probability is above it",
    "fusion": "IoU above which boxes of a finding are fused; 0: none are",
}


def paper(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """Loc- or MIL-ADPD as in Sec. 3."""
    width, lr, decay = METHODS[options["method"]]
    config.task = "adpd"
    config.method = options["method"]
    config.data = sources.block("chest_imagenome_nih")  # [paper, Sec. 3.4]
    config.update(common.detector(chest_imagenome.FINDINGS))
    config.class_mapping = tuple(NIH_BY_CHEST_IMAGENOME.items())
    config.regions = ()
    config.regions_from = "record"
    config.lungs = dict(masks="record", workdir="")  # read if regions_from is lungs
    config.asl_reduction = options["asl"]
    config.asl = dict(gamma_neg=4.0, gamma_pos=1.0, clip=0.05)  # [released code]
    config.mil_over = "present"  # [paper, Sec. 3.3]; the released code takes all
    config.mil_sharpness = 5.0  # [released code]
    config.balanced_presence = False  # [released code, whose weights cancel]
    config.threshold = 0.5  # [released code]
    config.fusion = options["fusion"]  # 0.03 [paper, Sec. 3.2]
    # 224 [paper, Sec. 3.4], which crops the middle first; ours stretches. NIH's films are square.
    config.preprocess.update(size=224, order=("resize",))
    config.preprocess.update(mean=0.505 * 255, std=0.248 * 255)  # [released code]
    config.augment.update(rotate_deg=2.0, shift=0.02, scale=0.0, shrink=0.05)  # [released code]
    config.augment.update(brightness=0.0, gain=0.2, contrast=0.2, blur=0.5)  # [released code]
    config.augment.crop = 0.1  # 0.9 to 1 of the area, with all boxes  [PAPERS, 4]
    config.batch_size = 16  # 128 [paper] by accumulation; batch norm sees 16
    # At most 25 epochs of 234,307 films [released code], in updates of 128.
    config.total_steps = STEPS_AN_UPDATE * 45_763
    config.eval_every = STEPS_AN_UPDATE * 500  # [released code]
    config.checkpoint_every = STEPS_AN_UPDATE * 500
    # On the boxes of the validation split [released code]; 20,000 steps [paper, Sec. 3.3].
    config.early_stopping.update(metric="map", patience=STEPS_AN_UPDATE * 20_000)
    config.optimizer.update(name="adamw", lr=lr, weight_decay=decay, clip_norm=5.0)
    config.optimizer.update(schedule="cosine", warmup_steps=STEPS_AN_UPDATE * 3000)
    config.optimizer.accumulate = STEPS_AN_UPDATE
    config.model = dict(
        backbone=BACKBONES["densenet121"] | dict(tap=LAST_TAP["densenet"]),
        width=width,
        num_layers=1,  # [paper, Sec. 3.1]
        num_heads=8,  # the rest of the decoder: [released code]
        mlp_factor=4,
        dropout=0.3,
        drop_path=0.2,
        layer_scale=0.1,
        freeze_norms=False,
    )


def small(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """Phantoms, from random numbers: a quarter of the width, little dropout, as many cells."""
    config.data = sources.block("phantom_cxr", train=1500, val=128, test=256)
    config.classes = PLACED
    config.class_mapping = ()
    config.preprocess.size = 112
    config.model.backbone.update(growth_rate=12, block_sizes=(2, 4, 6), init_features=16)
    if options["cells"] == 14:
        config.model.backbone.block_sizes = (2, 4)
    config.model.width //= 4
    config.model.update(dropout=0.1, drop_path=0.0, layer_scale=1.0)
    config.total_steps = 2400
    config.batch_size = 16
    config.eval_every = 0
    config.checkpoint_every = 100
    config.eval_steps = (2200, 2300, 2400)
    config.early_stopping.update(metric="", patience=0)
    common.small_optimizer(config, warmup_steps=100, lr=3e-3)
    config.optimizer.update(clip_norm=5.0, accumulate=1)


def real(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """Some hundred real films: regions of lungs, a stronger augmentation."""
    del options
    config.regions_from = "lungs"
    common.strong_augmentation(config)
    config.augment.update(scale=0.0, shrink=0.15)


def cohen(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """Six zones with Brixia scores: opacity alone is learned."""
    if options["method"] != "loc":
        raise InputError(f"method={options['method']}: brixia_cohen labels zones, so loc alone")
    config.data = sources.block("brixia_cohen")
    config.classes = ("lung opacity",)
    config.lungs.masks = "record_or_predicted"


def cxr3(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """NIH's labels of films; 120 of the films have a box of pneumonia."""
    if options["method"] != "mil":
        raise InputError(f"method={options['method']}: cxr_3class labels no regions, so mil alone")
    config.data = sources.block("cxr_3class")
    config.lungs.masks = "predicted"  # needs config.lungs.workdir


def smoke(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """Two tiny steps."""
    del options
    common.smoke(config)
    config.model.backbone.update(growth_rate=4, block_sizes=(1, 1), init_features=8)
    config.model.update(width=16, num_heads=2)
    config.eval_steps = (1, 2)


VARIANTS = {
    "": (),
    "quick": (small,),
    "cohen": (small, real, cohen),
    "cxr3": (small, real, cxr3),
    "smoke": (small, smoke),
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config of a variant with its options; see the module.

    Raises:
      InputError: an unknown variant, option or value.
    """
    base, options = common.read_variant(variant, VARIANTS, OPTIONS)
    common.check_options(options, KNOWN)
    if options["cells"] != OPTIONS["cells"] and not base:
        raise InputError(f"cells={options['cells']} is no option of the paper's network")
    options["method"] = options["method"] or ("mil" if base == "cxr3" else "loc")
    config = common.get_config()
    paper(config, options)
    for change in VARIANTS[base]:
        change(config, options)
    regions = len(LUNG_ROWS) if config.regions_from == "lungs" else len(REGIONS)
    config.asl_weight = weights_of(options["asl"], len(config.classes), regions)
    if base:
        config.asl_weight.loc *= SMALL_LOC_SHARE
    return config.lock()


def weights_of(reduction: str, findings: int, regions: int = len(REGIONS)) -> dict[str, float]:
    """The weights that give 0.01 of the sum over 128 films, see the module."""
    labels = {"loc": regions * findings, "mil": findings}
    return {
        part: FILM_SUM_WEIGHT * (count if reduction == "mean" else 1)
        for part, count in labels.items()
    }


def meanings() -> dict[str, str]:
    """Path -> what the field means, of all fields but `data` and `second`. Imports JAX."""
    from cxr_jax.data.lungs import LungMasks
    from cxr_jax.models.adpd import ADPD

    return (
        common.meanings()
        | common.BACKBONE_MEANINGS
        | common.DETECTOR_MEANINGS
        | described("model", ADPD)
        | described("lungs", LungMasks)
        | MEANINGS
    )
