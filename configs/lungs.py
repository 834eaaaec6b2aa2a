"""Lung segmentation: the U-Net of Kim et al. 2021 (Sec. 3), its semi-supervised fine-tuning, and
the AdaIN generator of Park et al. 2021 (Oh and Ye, arXiv:2104.05892).

    python -m cxr_jax.main --config=configs/lungs.py:quick
    python -m cxr_jax.main --config=configs/lungs.py:cohen,method=semi

| variant | what |
| --- | --- |
| (none) | the paper's training: Adam 1e-4, batch 1, 20,000 steps |
| quick | a small network on phantoms, minutes on two cores |
| healthy | the same, masks of healthy phantoms only; tested on heavily diseased ones |
| cohen | the small network on the 86 masked training films of `brixia_cohen` |
| cohen_mild | the same, masks of the milder half of them only (global score up to 7) |
| smoke | two tiny steps |

Options: `method=unet|semi|pairs|adain`; `opacities=1` shows unet, or adain, the synthetic
opacities and strong exposure that semi and pairs have: of unet it is their control, what they gain
without the films that have no masks. adain is Oh and Ye's generator, which learns adversarially
what a normal film looks like; pairs is ours in its place, which learns it from synthetic opacities.
semi, pairs and adain also learn from films without masks: with no variant, `shenzhen` beside
`jsrt_scr`; of quick and healthy, heavily diseased phantoms of another scanner; of cohen, all 107
training films; of cohen_mild, those that are not among the milder ones (told by their severity
scores, which are not trained on).
On a fold, set it for both sets: `--config.data.fold=0 --config.second.fold=0`. Results: RESULTS.md.
"""

import ml_collections

from configs import common
from cxr_jax.data import sources
from cxr_jax.data.augment import Augment
from cxr_jax.data.opacities import Opacities
from cxr_jax.errors import InputError
from cxr_jax.meanings import described

METHODS = ("unet", "semi", "pairs", "adain")
OPTIONS = {"method": "unet", "opacities": 0}
MEANINGS = {
    "method": "unet (masks alone), or with films without masks: semi, pairs or adain",
    "severe_from": "least global score (0..18) of the films that are also reported apart",
    "model.features": "channels of each level of the network, finest first",
    "pairs.code_size": "length of the code that says what the generator makes",
    "pairs.normalise_weight": "of the job 'normalise' beside the job 'segment'",
    "pairs.distil_weight": "of the job 'distil' beside the job 'segment'",
    "adain.trunk": "channels of each size of style encoder and discriminator, finest first",
    "adain.code_size": "length of a style",
    "adain.hidden": "width of the mapping network",
}


def paper(config: ml_collections.ConfigDict) -> None:
    """The supervised U-Net of Kim et al. 2021."""
    config.task = "lungs"
    config.severe_from = 11  # the top quartile of the training films of brixia_cohen
    config.total_steps = 20_000  # [paper, Sec. 3]
    config.batch_size = 1  # [paper]; its batch norm: docs/papers.md, Lung segmentation
    config.optimizer.update(name="adam", lr=1e-4)  # [paper]
    config.model = dict(features=(32, 64, 128, 256, 512))  # the paper names no size
    # What follows is ours: paper 1 gives no method of its semi-supervised fine-tuning.
    config.strong = dict(brightness=0.0, contrast=0.0)
    config.opacities = dict(chance=0.0, most=4, weakest=0.4, strongest=1.0, whole=0.1)
    config.teaching = dict(
        first_step=20_000,
        second_fraction=0.5,
        decay=0.999,  # [Oh and Ye, released code]
        weight=1.0,
        ramp_steps=1000,
        confidence=0.9,
        predict_with="teacher",
    )
    config.data = sources.block("jsrt_scr")  # [paper]; SCR's first fold: the paper took all films


def two_sets(config: ml_collections.ConfigDict) -> None:
    """Films without masks join: half tuberculosis [paper: 680 films of pneumonia and it]."""
    config.second = sources.second_block("shenzhen")
    config.total_steps = 40_000


def pairs(config: ml_collections.ConfigDict) -> None:
    """Ours in place of Oh and Ye's adversarial training."""
    config.pairs = dict(
        code_size=16,  # [Oh and Ye, released code]
        normalise_weight=1.0,
        distil_weight=1.0,
    )


def adain(config: ml_collections.ConfigDict) -> None:
    """Oh and Ye's generator at 256 px; what is not said otherwise is of their released code."""
    config.batch_size = 2  # a normal and an abnormal film: there one, and another for its style
    config.total_steps = 40_000
    # Of 40,000, all with distillation, it begins with a generator of an earlier run, which is not
    # given; here the first half is that run.
    config.teaching.update(first_step=20_000, decay=0.999)
    # There the rate falls to a tenth after 0.55 and 0.7 of the steps.
    config.optimizer.update(name="adam", lr=1e-4, b1=0.0, b2=0.99, weight_decay=1e-4)
    config.optimizer.lr_factors = (("mapping/.*", 0.01),)
    config.model.features = (64, 128, 256, 512, 512)
    config.adain = dict(
        trunk=(64, 128, 256, 512, 512, 512, 512),
        code_size=16,
        latent_size=4,
        hidden=512,
        segment_weight=5.0,
        style_weight=1.0,
        cycle_weight=2.0,
        diversity_weight=1.0,
        diversity_steps=40_000,
        r1_weight=1.0,
        distil_weight=10.0,
        distil_normal_weight=1.0,
    )


def opacities(config: ml_collections.ConfigDict) -> None:
    """Synthetic opacities and strong exposure."""
    config.strong.update(brightness=0.1, contrast=0.3)
    config.opacities.chance = 0.5


def small(config: ml_collections.ConfigDict) -> None:
    """A small network at 128 px, on phantoms."""
    config.preprocess.size = 128
    config.model.features = (16, 32, 64, 96)
    config.total_steps = 800
    config.batch_size = 8
    config.checkpoint_every = 200
    common.small_optimizer(config, warmup_steps=50)
    config.teaching.update(first_step=400, ramp_steps=100, decay=0.99)
    if config.method == "pairs":  # three jobs a film: each step costs three times as much
        config.total_steps = 400
        config.teaching.update(first_step=200, ramp_steps=50)
    if config.method == "adain":
        small_adain(config)
    config.data = sources.block("phantom_cxr")
    if config.method != "unet":
        config.second = sources.second_block(
            "phantom_cxr", diseased=1.0, disease_extent=1.0, appearance="shifted"
        )


def small_adain(config: ml_collections.ConfigDict) -> None:
    """Narrow networks for two cores. Adversarial training stays as it is published, but faster."""
    config.batch_size = 4
    config.model.features = (8, 16, 32, 48)
    config.adain.update(trunk=(8, 16, 32, 48, 48), hidden=64, diversity_steps=600)
    config.total_steps = 600
    config.teaching.update(first_step=300, ramp_steps=50)
    config.optimizer.update(name="adam", lr=1e-3, schedule="constant", clip_norm=0.0)
    config.optimizer.update(warmup_steps=0, lr_factors=(("mapping/.*", 0.1),))


def healthy(config: ml_collections.ConfigDict) -> None:
    """Masks of healthy phantoms only; tested on heavily diseased ones."""
    config.data.update(diseased=0.0, test_diseased=1.0, test_disease_extent=1.0)


def cohen(config: ml_collections.ConfigDict) -> None:
    """Chosen on the folds of the training films, never on the test part."""
    config.data = sources.block("brixia_cohen")
    common.strong_augmentation(config)
    if config.method != "unet":
        config.second = sources.second_block("brixia_cohen")


def mild(config: ml_collections.ConfigDict) -> None:
    """Masks of the milder half; films without masks are the others."""
    config.data.max_severity = 7
    if config.method != "unet":
        config.second.min_severity = 8


def smoke(config: ml_collections.ConfigDict) -> None:
    """Two tiny steps."""
    common.smoke(config)
    config.model.features = (4, 8)
    if config.method == "adain":
        config.adain.update(trunk=(4, 8), hidden=8)
    if config.method != "unet":
        config.second.update(size=128, train=8, val=4, test=5)
    config.teaching.update(first_step=1, ramp_steps=0)


VARIANTS = {
    "": (),
    "quick": (small,),
    "healthy": (small, healthy),
    "cohen": (small, cohen),
    "cohen_mild": (small, cohen, mild),
    "smoke": (small, smoke),
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config of a variant with its options; see the module.

    Raises:
      InputError: an unknown variant, option or value.
    """
    base, options = common.read_variant(variant, VARIANTS, OPTIONS)
    method = options["method"]
    if method not in METHODS:
        raise InputError(f"variant method={method!r}; expected one of {', '.join(METHODS)}")
    config = common.get_config()
    config.method = method
    paper(config)
    if method != "unet":
        two_sets(config)
    if method in ("semi", "pairs") or options["opacities"]:
        opacities(config)
    if method in ("pairs", "adain"):
        {"pairs": pairs, "adain": adain}[method](config)
    for change in VARIANTS[base]:
        change(config)
    return config.lock()


def meanings() -> dict[str, str]:
    """Path -> what the field means, of all fields but `data` and `second`. Imports JAX."""
    from cxr_jax.tasks.lungs import Teaching
    from cxr_jax.tasks.style_transfer import StyleTransfer

    return (
        common.meanings()
        | MEANINGS
        | described("strong", Augment)
        | described("opacities", Opacities)
        | described("teaching", Teaching)
        | described("adain", StyleTransfer)
    )
