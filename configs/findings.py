"""Ten findings: the corpus of Park et al. 2021 ('corpus_vit'), and models for two cores.

    python -m cxr_jax.main --config=configs/findings.py:quick
    python -m cxr_jax.main --config=configs/findings.py --workdir=DIR
    python -m cxr_jax.main --config=configs/findings.py:cxr3 --config.init_from=DIR

| variant | what |
| --- | --- |
| (none) | the paper's training on CheXpert (prepare it first): DenseNet-121, 512 px |
| quick | a small model on phantoms, minutes on two cores; `severity.py:quick` can start from it |
| cxr3 | the same on the real films of `cxr_3class`, without those that `brixia_cohen` has |
| smoke | two tiny steps |

Options: `pool=pcam|avg|max|lse|exp|linear`; `side=224` (of quick and cxr3) is the corpus of
`diagnosis.py:cxr3`; `paper=severity` trains the corpus on the masked 256 px
films that Kim et al. 2021 will show it (ours: their paper does not say), with masks from
`--config.lungs.workdir`. Example: `configs/findings.py:quick,pool=lse`. Results: RESULTS.md.
"""

import ml_collections

from configs import common
from cxr_jax.data import sources
from cxr_jax.errors import InputError
from cxr_jax.meanings import described

OPTIONS = {"pool": "pcam", "paper": "corpus", "side": 128}
MEANINGS = {
    "pool": "how maps become probabilities: pcam, avg, max, lse, exp or linear",
    "positive_weights": "factors on the positive labels of the ten findings; (): none",
    "untrained": "findings that the training set does not label",
    "mask_lungs": "whether films are multiplied with their lung masks",
    "model.lse_gamma": "sharpness of pool=lse",
}


def paper(config: ml_collections.ConfigDict) -> None:
    """The corpus of Park et al. 2021, on CheXpert."""
    config.task = "findings"
    config.pool = "pcam"  # [paper, Sec. 3.1]
    config.positive_weights = ()  # the paper names none
    config.untrained = ()
    config.mask_lungs = False  # neither paper says; whole films are what CheXpert has
    config.lungs = dict(masks="record", workdir="")  # read if mask_lungs
    config.data = sources.block("chexpert")  # frontal films [paper, Sec. 4.1]
    config.preprocess.size = 512  # [paper, Sec. 4.4]
    config.preprocess.order = ("equalize", "blur", "resize")  # [paper, Sec. 4.4]
    config.total_steps = 160_000  # [paper, Sec. 4.4]
    config.batch_size = 8  # [paper]
    config.checkpoint_every = 2000
    config.optimizer.update(name="adam", lr=1e-4)  # [paper]
    # The paper says 'step decay' only. The PCAM authors' configuration, which it builds on, divides
    # by ten after two of three epochs: once, after two thirds of the steps.
    config.optimizer.update(schedule="step", decay_rate=0.1, decay_steps=106_667)
    config.model = dict(
        backbone=dict(growth_rate=32, block_sizes=(6, 12, 24, 16), init_features=64),
        lse_gamma=0.5,  # the PCAM authors' configuration
    )


def masked_films(config: ml_collections.ConfigDict) -> None:
    """What the severity model will see: masked films of 256 px."""
    config.preprocess.update(size=256, order=("resize", "blur", "equalize"))
    config.mask_lungs = True
    config.lungs.masks = "predicted"


def small(config: ml_collections.ConfigDict) -> None:
    """The backbone of `severity.py:quick`, so that one can start from the other."""
    config.data = sources.block("phantom_cxr", train=1500, val=64, test=256)
    config.lungs.masks = "record"
    config.preprocess.size = 128
    config.preprocess.order = ("resize", "blur", "equalize")  # as severity's, which reads it
    config.model.backbone.update(growth_rate=12, block_sizes=(3, 6), init_features=16)
    config.total_steps = 800
    config.batch_size = 16
    config.checkpoint_every = 50
    config.eval_steps = (700, 750, 800)
    common.small_optimizer(config, warmup_steps=30)


def quick(config: ml_collections.ConfigDict) -> None:
    """One phantom in twenty has cardiomegaly, an effusion, ...: in so few steps their gradients
    drown in those of the opacities. The weights are the odds against a finding, up to ten."""
    config.positive_weights = (3.0, 10.0, 1.0, 10.0, 1.0, 1.0, 10.0, 10.0, 10.0, 5.0)


def cxr3(config: ml_collections.ConfigDict) -> None:
    """800 training films with NIH's labels, which do not name support devices."""
    config.untrained = ("support devices",)
    config.data = sources.block("cxr_3class", leave_out_overlap=True)
    config.lungs.masks = "predicted"  # read if mask_lungs
    common.strong_augmentation(config)
    config.total_steps = 500
    config.eval_steps = (400, 450, 500)
    config.optimizer.update(lr=1e-3, weight_decay=1e-2)


def larger(config: ml_collections.ConfigDict) -> None:
    """The backbone of `diagnosis.py:cxr3`, with the paper's four blocks: 7x7 cells."""
    config.preprocess.size = 224
    config.model.backbone.update(block_sizes=(2, 4, 6, 4))
    if config.data.name == "cxr_3class":
        config.data.fold = 3  # it validates there, and chooses thresholds: not trained on


def smoke(config: ml_collections.ConfigDict) -> None:
    """Two tiny steps."""
    common.smoke(config)
    config.model.backbone.update(growth_rate=4, block_sizes=(1, 1, 1), init_features=8)
    config.eval_steps = (1, 2)


VARIANTS = {
    "": (),
    "quick": (small, quick),
    "cxr3": (small, cxr3),
    "smoke": (small, smoke),
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config of a variant with its options; see the module.

    Raises:
      InputError: an unknown variant, option or value.
    """
    base, options = common.read_variant(variant, VARIANTS, OPTIONS)
    common.check_options(options, {"paper": ("corpus", "severity"), "side": (128, 224)})
    if options["side"] != OPTIONS["side"] and base not in ("quick", "cxr3"):
        raise InputError(f"side={options['side']} is an option of quick and cxr3, not of {base!r}")
    config = common.get_config()
    paper(config)
    config.pool = options["pool"]
    if options["paper"] == "severity":
        masked_films(config)
    for change in VARIANTS[base]:
        change(config)
    if options["side"] == 224:
        larger(config)
    return config.lock()


def meanings() -> dict[str, str]:
    """Path -> what the field means, of all fields but `data` and `second`. Imports JAX."""
    from cxr_jax.data.lungs import LungMasks
    from cxr_jax.models.densenet import DenseNet

    return (
        common.meanings()
        | MEANINGS
        | described("model.backbone", DenseNet)
        | described("lungs", LungMasks)
    )
