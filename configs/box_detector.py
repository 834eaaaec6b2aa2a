"""A detector trained on boxed films: the supervised row of Table 1 of Müller et al. 2023 (ADPD).

    python -m cxr_jax.main --config=configs/box_detector.py:quick
    python -m cxr_jax.main --config=configs/box_detector.py --config.init_from=DIR --workdir=DIR

| variant | what |
| --- | --- |
| (none) | a RetinaNet on boxed films of `nih_cxr8`, DenseNet-121, 224 px; DIR: ImageNet weights |
| quick | a small model on 100 phantoms of 112 px |
| smoke | two tiny steps |

Option: `films=100`, how many phantoms `quick` is trained on; boxes are few, which is the point of
the row. The paper's Faster R-CNN has some 500 of NIH's 112,120 films, ADPD 234,307 others, and
`adpd.py:quick` 1500 phantoms.

Which films. The paper's 500 are training films that its own radiologists boxed, and nobody else has
them. Here NIH's own boxes are trained on, the validation half (441 films); the test half tests, as
for every method. So nothing is left to choose a checkpoint on: the last one is taken, whose step is
ours.

Which network. No Faster R-CNN in JAX or Flax is kept up; a RetinaNet finds boxes in one stage.
Films, augmentation and backbone, and the small variants' optimizer and steps, are those of
`adpd.py`, so that results stand beside each other.

Anchors, measured: of a smallest anchor of twice the stride 93% of NIH's boxes at 224 px have an
anchor with an IoU of at least 0.5 (levels of 8 to 128 px), and 83% of the phantoms' at 128 px
(levels of 4 to 64 px: half of those boxes are smaller than 16 px, a tenth than 6). With the paper's
four times the stride, which is for pictures of 600 px, it is 83% and 63%.
"""

import ml_collections

from configs import adpd, common
from cxr_jax.data import sources
from cxr_jax.data.sources import nih_cxr8
from cxr_jax.errors import InputError
from cxr_jax.meanings import described

OPTIONS = {"films": 100}
# What is as in ADPD.
SHARED = ("batch_size", "preprocess", "augment", "optimizer")
OF_SMALL = ("total_steps", "eval_steps", "checkpoint_every", "data", "classes")
MEANINGS = {
    "anchor_scale": "side of a level's smallest anchor, in units of its stride",
    "threshold": "an anchor whose probability of a finding is below is no box of it",
}


def paper(config: ml_collections.ConfigDict) -> None:
    """At full size, on half of NIH's boxes."""
    config.data = sources.block("nih_cxr8", boxed=True)
    config.update(common.detector(nih_cxr8.FINDINGS))
    config.threshold = 0.05  # [Lin et al., Sec. 4.1]
    config.anchor_scale = 2.0  # ours, see the module
    # Ours: 110 times the 441 films.
    config.total_steps = 3000
    config.optimizer.update(lr=1e-4, weight_decay=1e-4, warmup_steps=300, accumulate=1)
    config.model.width = 256  # this and the depth: [Lin et al., Sec. 4]
    config.model.depth = 4
    config.model.freeze_norms = False


def small(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """Phantoms, from random numbers: ADPD's small films and network, an eighth of the width."""
    like = adpd.get_config("quick")
    for name in (*OF_SMALL, *SHARED):
        config[name] = like[name]
    config.data.train = options["films"]
    config.model.backbone = like.model.backbone
    config.model.width //= 8
    config.model.depth = 1
    config.optimizer.lr = 1e-3


def smoke(config: ml_collections.ConfigDict, options: dict[str, object]) -> None:
    """Two tiny steps."""
    del options
    common.smoke(config)
    config.model.backbone.update(growth_rate=4, block_sizes=(1, 1), init_features=8)
    config.model.update(width=8, depth=1)
    config.eval_steps = (1, 2)


VARIANTS = {"": (), "quick": (small,), "smoke": (small, smoke)}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config of a variant with its options; see the module.

    Raises:
      InputError: an unknown variant, option or value.
    """
    base, options = common.read_variant(variant, VARIANTS, OPTIONS)
    if options["films"] < 1:
        raise InputError(f"films={options['films']}; expected at least 1")
    if options["films"] != OPTIONS["films"] and base != "quick":
        raise InputError(f"films={options['films']} is an option of quick, not of {base!r}")
    like = adpd.get_config().copy_and_resolve_references()
    config = common.get_config()
    config.task = "box_detector"
    for name in SHARED:
        config[name] = like[name]
    config.model = dict(backbone=like.model.backbone)
    paper(config)
    for change in VARIANTS[base]:
        change(config, options)
    return config.lock()


def meanings() -> dict[str, str]:
    """Path -> what the field means, of all fields but `data` and `second`. Imports JAX."""
    from cxr_jax.models.retina import RetinaNet

    return (
        common.meanings()
        | common.BACKBONE_MEANINGS
        | common.DETECTOR_MEANINGS
        | described("model", RetinaNet)
        | MEANINGS
    )
