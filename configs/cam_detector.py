"""Boxes from class activation maps: the baselines of Table 1 of Müller et al. 2023 (ADPD).

    python -m cxr_jax.main --config=configs/cam_detector.py:quick,method=gap
    python -m cxr_jax.main --config=configs/cam_detector.py --config.init_from=DIR --workdir=DIR

| variant | what |
| --- | --- |
| (none) | CheXNet on `nih_cxr8`, DenseNet-121 at 224 px; DIR: imported ImageNet weights |
| quick | a small model on phantoms of 112 px, minutes on two cores |
| cxr3 | the same on `cxr_3class`, by NIH's labels of films |
| smoke | two tiny steps |

Options, e.g. `configs/cam_detector.py:quick,method=weldon`:

| option | what |
| --- | --- |
| `method=gap, lse, lse_map, weldon, multimap, stl, gradcam, agxnet` | of `cxr3` no agxnet |
| `cells=7, 14` | of all but the paper's: cells on a side of the last map |

The methods and their sources: `cxr_jax/models/cam_detector.py`. Encoder, films, augmentation and,
of the small variants, steps and optimizer are those of MIL-ADPD (`configs/adpd.py`), so that
results stand beside each other. The paper trains its baselines on the CXR8 training set and says no
more; its steps and optimizer are here those of the code that the first author released with another
paper [WSRPN, arXiv:2402.11985], 'the baselines' code'. AGXNet needs labels of regions: it is
trained on Chest ImaGenome (the paper: on MIMIC-CXR, then CXR8).

Evaluations of one run with another threshold: `--mode=eval --config.map_threshold=0.7`.
"""

import ml_collections

from configs import adpd, common
from cxr_jax.data import sources
from cxr_jax.data.sources import nih_cxr8
from cxr_jax.errors import InputError
from cxr_jax.meanings import described

# Method -> what its head has  [baselines' code, but for what says otherwise].
METHODS = {
    "gap": {},
    "lse": dict(sharpness=10.0, transition=0),  # [Wang et al.]; the code's sharpness is 5
    "lse_map": dict(sharpness=5.0),
    "weldon": dict(top_cells=3),
    "multimap": dict(maps_each=12, alpha=0.7),
    "stl": dict(hidden=512, sharpness=5.0),  # ours
    "gradcam": dict(hidden=512),  # ours
    "agxnet": dict(beta=0.1, drop_channels=0.1),  # [Yu et al., released code]
}
OPTIONS = {"method": "gap", "cells": 7}
KNOWN = {"method": tuple(METHODS), "cells": adpd.KNOWN["cells"]}
# What is as in ADPD.
SHARED = (
    *("batch_size", "total_steps", "eval_every", "checkpoint_every", "eval_steps"),
    *("early_stopping", "preprocess", "augment", "optimizer"),
)
MEANINGS = {
    "method": "gap, lse, lse_map, weldon, multimap, stl, gradcam or agxnet",
    "balanced": "weighs a finding's labels by how often the batch has each",
    "threshold": "a finding whose probability is above it has a box",
    "map_threshold": "of a map, stretched to 0..1: what is above it is the finding's",
    "component": "the box is that of peak, the component with the highest pixel, or largest",
    "stl.alpha": "of stl: weight of the localisation, at first and at last",
    "stl.steps": "of stl: steps between the two",
}


def paper(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """A baseline at full size."""
    config.data = sources.block("nih_cxr8")  # [paper, Sec. 4.1]
    config.classes, config.class_mapping = nih_cxr8.FINDINGS, ()
    if options["method"] == "agxnet":
        like = adpd.get_config()
        config.data = like.data.copy_and_resolve_references()
        config.classes, config.class_mapping = like.classes, like.class_mapping
    # 50,000 steps of 128, a constant rate, no warm-up  [baselines' code].
    config.total_steps = adpd.STEPS_AN_UPDATE * 50_000
    config.early_stopping.patience = adpd.STEPS_AN_UPDATE * 10_000
    config.optimizer.update(lr=3.6e-5, weight_decay=1e-6, clip_norm=5.0)
    config.optimizer.update(schedule="constant", warmup_steps=0)


def method(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """The task and its network, whatever the films."""
    config.task = "cam_detector"
    config.method = options["method"]
    config.update(common.detector(()))
    config.balanced = True  # [baselines' code; Wang et al. and Yu et al. in forms of their own]
    # Ours: every finding has a box, for AP ranks them. The baselines' code leaves out those below
    # 0.5, which in batches of 16 a rare finding never reaches, balanced or not.
    config.threshold = 0.0
    # Ours: Zhou et al. have 0.2 of the maximum; Wang et al. 60/255 and 180/255, of which the
    # baselines' code takes the box that its map of 'no finding' likes least.
    config.map_threshold = 0.5
    config.component = "peak"  # ours; Zhou et al. have the largest
    config.stl = dict(alpha=(0.1, 0.9), steps=adpd.STEPS_AN_UPDATE * 10_000)  # [baselines' code]
    config.model = dict(head=dict(METHODS[options["method"]]))


def small(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """ADPD's small films, network and steps; a quarter of the width."""
    del options
    config.classes = adpd.PLACED
    config.stl.steps = config.total_steps // 5  # as in the baselines' code
    if "hidden" in config.model.head:
        config.model.head.hidden //= 4


def cxr3(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """NIH's labels of films; 120 of the films have a box of pneumonia."""
    if options["method"] == "agxnet":
        raise InputError("method=agxnet: cxr_3class labels no regions; choose another method")


def smoke(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """Two tiny steps."""
    del options
    common.smoke(config)
    config.stl.steps = 1


VARIANTS = {
    "": (paper,),
    "quick": (small,),
    "cxr3": (small, cxr3),
    "smoke": (small, smoke),
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config of a variant with its options; see the module.

    Raises:
      InputError: an unknown variant, option or value.
    """
    base, options = common.read_variant(variant, VARIANTS, OPTIONS)
    common.check_options(options, KNOWN)
    theirs = [base, "method=mil", f"cells={options['cells']}"]
    like = adpd.get_config(",".join(filter(None, theirs))).copy_and_resolve_references()
    config = common.get_config()
    method(config, options)
    config.data = like.data
    config.model.backbone = like.model.backbone
    for name in SHARED:
        config[name] = like[name]
    for change in VARIANTS[base]:
        change(config, options)
    return config.lock()


def meanings() -> dict[str, str]:
    """Path -> what the field means, of all fields but `data` and `second`. Imports JAX."""
    from cxr_jax.models import cam_detector as models

    heads = (models.LseHead, models.WeldonHead, models.MultiMapHead, models.HiddenHead)
    found = common.meanings() | common.BACKBONE_MEANINGS | common.DETECTOR_MEANINGS | MEANINGS
    for head in (*heads, models.AGXNet):
        found |= described("model.head", head)
    return found
