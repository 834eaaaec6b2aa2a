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

Options: `method=unet|semi|adain`; `opacities=1` gives the U-Net the synthetic opacities and strong
exposure that the others have: their gain without the films that have no masks. semi and adain also
learn from films without masks: with no variant, `shenzhen` beside `jsrt_scr`; of quick and healthy,
heavily diseased phantoms of another scanner; of cohen, all 107 training films; of cohen_mild, those
that are not among the milder ones (told by their severity scores, which are not trained on).
On a fold, set it for both sets: `--config.data.fold=0 --config.extra.fold=0`. Results: RESULTS.md.
"""

import ml_collections

from configs import common
from cxr_jax.errors import InputError

METHODS = ("unet", "semi", "adain")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    base, options = common.read_variant(
        variant,
        ("quick", "healthy", "cohen", "cohen_mild", "smoke"),
        {"method": "unet", "opacities": 0},
    )
    method = options["method"]
    if method not in METHODS:
        raise InputError(f"variant method={method!r}; expected one of {', '.join(METHODS)}")
    config = common.get_config()
    config.task = "lungs"
    config.method = method
    config.severe_from = 11  # the top quartile of the training films of brixia_cohen, of 0..18
    config.total_steps = 20_000  # [paper, Sec. 3]
    config.batch_size = 1  # [paper]
    config.optimizer.update(name="adam", lr=1e-4)  # [paper]
    config.model = dict(features=(32, 64, 128, 256, 512))  # the paper names no size
    # What follows is ours: paper 1 gives no method of its semi-supervised fine-tuning.
    config.strong = dict(brightness=0.0, contrast=0.0)
    config.opacities = dict(chance=0.0, most=4, weakest=0.4, strongest=1.0, whole=0.1)
    config.teaching = dict(
        first_step=20_000,
        extra_fraction=0.5,
        decay=0.999,  # [Oh and Ye, released code]
        weight=1.0,
        ramp_steps=1000,
        confidence=0.9,
        predict_with="teacher",
    )
    config.adain = dict(
        code_size=16,  # [Oh and Ye, released code]
        normalise_weight=1.0,
        distil_weight=1.0,
    )
    config.data.name = "jsrt_scr"  # [paper]; SCR's first fold: the paper took all 247 films
    if method != "unet":
        config.extra.name = "shenzhen"  # half tuberculosis [paper: 680 films of pneumonia and it]
        config.total_steps = 40_000
    if method != "unet" or options["opacities"]:
        config.strong.update(brightness=0.1, contrast=0.3)
        config.opacities.chance = 0.5
    if base:
        _small(config)
    if base in ("cohen", "cohen_mild"):
        _cohen(config, mild=base == "cohen_mild")
    if base == "healthy":
        config.data.update(diseased=0.0, test_diseased=1.0, test_heavy=1.0)
    if base == "smoke":
        _smoke(config)
    return config.lock()


def _small(config: ml_collections.ConfigDict) -> None:
    """A small network at 128 px, on phantoms."""
    config.preprocess.size = 128
    config.model.features = (16, 32, 64, 96)
    config.total_steps = 800
    config.batch_size = 8
    config.checkpoint_every = 200
    config.optimizer.update(name="adamw", lr=2e-3, weight_decay=1e-4, clip_norm=1.0)
    config.optimizer.update(schedule="cosine", warmup_steps=50)
    config.teaching.update(first_step=400, ramp_steps=100, decay=0.99)
    if config.method == "adain":  # three jobs a film: each step costs three times as much
        config.total_steps = 400
        config.teaching.update(first_step=200, ramp_steps=50)
    config.data.name = "phantom_cxr"
    if config.method != "unet":
        config.extra.name = "phantom_cxr"
        config.extra.update(diseased=1.0, heavy=1.0, appearance="shifted")


def _cohen(config: ml_collections.ConfigDict, *, mild: bool) -> None:
    """Chosen on the folds of the training films, never on the test part."""
    config.data.name = "brixia_cohen"
    config.data.max_severity = 7 if mild else 18
    common.strong_augmentation(config)
    if config.method != "unet":
        config.extra.name = "brixia_cohen"
        config.extra.min_severity = 8 if mild else 0


def _smoke(config: ml_collections.ConfigDict) -> None:
    common.smoke(config)
    config.model.features = (4, 8)
    config.extra.update(size=128, train=8, val=4, test=5)
    config.teaching.update(first_step=1, ramp_steps=0)
