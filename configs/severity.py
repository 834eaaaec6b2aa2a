r"""Severity scoring and lesion maps: Kim et al. 2021 ('severity_vit'), and models for two cores.

    python -m cxr_jax.main --config=configs/severity.py:quick
    python -m cxr_jax.main --config=configs/severity.py --config.init_from=DIR --workdir=DIR
    python -m cxr_jax.main --config=configs/severity.py:cohen --config.lungs.workdir=DIR \
        --config.init_from=DIR

| variant | what |
| --- | --- |
| (none) | the paper's model and training; the corpus is frozen, so it needs `init_from` |
| quick | a small model on phantoms, trained whole from scratch, minutes on two cores |
| phantoms | the same for longer, on phantoms of varied appearance: a start for real films |
| cohen | the same on the real films of `brixia_cohen`, from a run of `phantoms` |
| fewlabels | Table 3 on phantoms: 64 labelled films, 474 of another scanner; with `regime=` |
| hospitals | the same where films without labels should help; with `regime=` |
| smoke | two tiny steps |

Options, e.g. `configs/severity.py:quick,pool=mean`:

| option | what |
| --- | --- |
| `pool=max, mean` | Eq. 9, or the ablation |
| `regime=labelled, supervised, progressive, one_step` | Table 3; second set: `config.second` |
| `backbone=NAME,vit=0` | CNN baselines of Table 2, an entry of `BACKBONES`, trained whole: from |
| | random numbers unless `init_from` (the papers: from ImageNet's weights) |
| `backbone=none`, `backbone=resnet50_hybrid` | ViT and hybrid ViT of Park et al. 2021, Table 8 |
| `paper=corpus` | the severity model of Park et al. 2021: 512 px, last map; needs `init_from` |
| `paper=corpus,trained=1` | the same, its corpus trained too |

Results: RESULTS.md.
"""

import ml_collections

from configs import common
from cxr_jax.data import sources
from cxr_jax.errors import InputError
from cxr_jax.meanings import described
from cxr_jax.models.sizes import BACKBONES, LAST_TAP, SMALL, SMOKE, VIT_B16

OPTIONS = {
    "pool": "max",
    "backbone": "densenet121",
    "vit": 1,
    "regime": "labelled",
    "paper": "severity",
    "trained": 0,
}
KNOWN = {"backbone": (*BACKBONES, "none"), "paper": ("severity", "corpus"), "trained": (0, 1)}
MEANINGS = {
    "pool": "a zone's probability from its cells: max [paper, Eq. 9] or mean",
    "levels": "1: zones are negative or positive; 3: maps of score >= 1, >= 2 and >= 3",
    "model.train_backbone": "False: the corpus is frozen",
    "model.freeze_norms": "True keeps all batch norm in inference mode",
    "model.head_blocks": "of the map head, each of which doubles the map's sides",
}


def paper(config: ml_collections.ConfigDict, *, backbone: str) -> None:
    """The severity model of Kim et al. 2021, on phantoms: its films are not public."""
    config.task = "severity"
    config.levels = 1  # [paper]
    config.lungs = dict(masks="record", workdir="")
    config.total_steps = 12_000  # [paper, Sec. 3]
    config.batch_size = 8  # [paper]
    config.checkpoint_every = 500
    config.eval_steps = (11_000, 11_500, 12_000)  # the ensemble [paper]
    config.optimizer.update(name="sgd", lr=0.004, momentum=0.9)  # [paper]
    config.model = dict(
        # DenseNet-121 before transition 3: 16x16x1024 at 256 px [paper, Sec. 2.2]
        backbone=BACKBONES.get(backbone, dict(name="none")),
        train_backbone=False,  # [paper]
        freeze_norms=False,
        vit=VIT_B16,  # on the cells of the corpus
        head_blocks=4,  # [paper]
    )
    if backbone == "none":  # on raw patches
        config.model.vit.patch_size = 16  # [PAPERS]


def second_set(config: ml_collections.ConfigDict, regime: str) -> None:
    """Table 3: how a second data set is used, and which."""
    config.regime = dict(
        name=regime,
        stage_steps=2000,  # [paper, Sec. 4]
        shares=5,  # [PAPERS: a further fifth a stage]
        pseudo_labels="hard",
        second_fraction=0.0,
        # The paper's teacher is the student as it is. Its corpus is frozen, statistics and all, and
        # it says nothing of the head's.
        refresh_batches=0,
        teacher_decay=0.0,
    )
    config.second.labels = "given" if regime == "supervised" else "hidden"
    if regime != "labelled":
        config.second = sources.second_block("brixia", labels=config.second.labels)  # [paper]
        config.lungs.masks = "record_or_predicted"  # it has none; needs config.lungs.workdir


def corpus(config: ml_collections.ConfigDict, *, trained: bool) -> None:
    """The severity model of Park et al. 2021: 512 px, the last map."""
    config.preprocess.size = 512  # [paper 2, Sec. 4.4]
    config.preprocess.order = ("equalize", "blur", "resize")  # [paper 2, Sec. 4.4; PAPERS]
    backbone = config.model.backbone
    if backbone == ml_collections.ConfigDict(BACKBONES["resnet50_hybrid"]):
        config.model.vit.stride = 2  # it has no later stage
        trained = True  # no corpus: a baseline, trained whole [paper 2, Sec. 5.4]
    elif backbone.name in LAST_TAP:
        backbone.tap = LAST_TAP[backbone.name]  # 16x16x1024, before PCAM [paper 2, Sec. 4.4]
    # Frozen as the severity paper's, which it is but for size, tap, rate and batch [PAPERS]. The
    # paper trains the corpus of its classifier (Sec. 5.5.3) and does not say for severity.
    config.model.train_backbone = trained
    # Ensemble, augmentation and regime stay as in the severity paper [PAPERS: the same model].
    config.batch_size = 4  # [paper 2, Sec. 4.4]
    config.optimizer.lr = 0.003  # [paper 2, Sec. 4.4]


def small(config: ml_collections.ConfigDict) -> None:
    """A third of a million parameters at 128 px, trained whole: there is no corpus to freeze.

    The tap at stride 8 gives the 16x16 cells that the paper has at 256 px; the map is 64x64.
    """
    config.preprocess.size = 128
    config.model.backbone.update(SMALL[config.model.backbone.name])
    if config.model.backbone.name == "none":
        config.model.vit.patch_size = 8
    config.model.train_backbone = True
    config.model.vit.update(num_layers=2, num_heads=2, width=96, mlp_dim=192)
    config.model.head_blocks = 2
    config.data.update(train=1500, val=64, test=256)
    config.total_steps = 450
    config.batch_size = 16
    config.checkpoint_every = 50
    config.eval_steps = (350, 400, 450)
    common.small_optimizer(config, warmup_steps=30)


def phantoms(config: ml_collections.ConfigDict) -> None:
    """Two scanners, heavier disease, strong augmentation: closer to the spread of real films."""
    config.levels = 3
    config.data.update(appearance="mixed", disease_extent=0.4, train=3000)
    common.strong_augmentation(config)
    config.total_steps = 800
    config.eval_steps = (700, 750, 800)


def cohen(config: ml_collections.ConfigDict) -> None:
    """107 training films: every setting here was chosen on its five folds, never on the test part.

    Brixia's 0..3 scores train three maps, of score >= 1, >= 2 and >= 3; the first is the paper's.
    """
    config.data = sources.block("brixia_cohen")
    config.lungs.masks = "record_or_predicted"
    config.levels = 3
    common.strong_augmentation(config)
    config.total_steps = 200
    config.eval_steps = (150, 175, 200)
    config.model.vit.dropout = 0.1
    config.optimizer.update(lr=3e-4, weight_decay=1e-2)


def six_stages(config: ml_collections.ConfigDict) -> None:
    """As many stages of self-training as in the paper."""
    config.regime.stage_steps = config.total_steps // 6


def few_labels(config: ml_collections.ConfigDict) -> None:
    """Table 3 on phantoms: 64 labelled films of one scanner, 474 of another; tested on both.

    In the paper's proportions: 11.9% are labelled (452 of 3,787), six stages at a constant rate, of
    which the first is 35 rounds through the labelled films and the last 4.2 through all (2,000
    steps of 8), the ensemble of the last stage, and a frozen corpus: it needs `init_from`, a run of
    `findings.py:quick` at 64 px. Small films, so that a run takes minutes. Which films are
    labelled: `--config.data.first`.
    """
    config.preprocess.size = 64
    config.data.update(train=64, test=256, test_appearance="mixed", size=128, seed=12)
    config.lungs.masks = "record"
    if config.regime.name != "labelled":
        config.second = sources.second_block(
            "phantom_cxr",
            labels=config.second.labels,
            train=474,
            appearance="shifted",
            size=128,
            seed=1_000_012,
        )
    common.strong_augmentation(config)
    config.optimizer.update(schedule="constant", lr=1e-3)
    config.model.train_backbone = False
    config.total_steps = 840
    config.regime.stage_steps = 140
    config.eval_steps = (770, 805, 840)
    config.checkpoint_every = 35


def hospitals(config: ml_collections.ConfigDict) -> None:
    """Few labels, and another hospital: where films without labels should help.

    32 labelled films of one hospital. 506 of another, filmed on another scanner, whose reader has a
    habit: he passes over what is slight, so that his labels (`regime=supervised`) teach something
    else [paper: Brixia's labels are made otherwise, Sec. 3, 4]. Tested on films of the other
    hospital as the first one's reader would read them.
    """
    config.data.update(train=32, test_appearance="shifted")
    if config.regime.name != "labelled":
        config.second.update(train=506, reader="strict")


def smoke(config: ml_collections.ConfigDict) -> None:
    """Two tiny steps."""
    common.smoke(config)
    config.model.backbone.update(SMOKE[config.model.backbone.name])
    if config.model.backbone.name == "none":
        config.model.vit.patch_size = 16
    config.model.head_blocks = 4
    config.model.vit.update(num_layers=1, num_heads=2, width=32, mlp_dim=32)
    config.lungs.masks = "record"
    if config.regime.name != "labelled":
        config.second = sources.second_block(
            "phantom_cxr", labels=config.second.labels, size=128, train=8
        )
        config.regime.update(stage_steps=1, shares=1)
    config.eval_steps = (1, 2)


def without_transformer(config: ml_collections.ConfigDict, *, shrunk: bool) -> None:
    """A CNN baseline of Table 2: the head on the backbone, trained whole."""
    config.model.vit.num_layers = 0
    config.model.train_backbone = True
    if shrunk and config.model.backbone.name == "densenet":
        config.model.backbone.init_features = 20  # 100 channels: the head halves them twice


VARIANTS = {
    "": (),
    "quick": (small, six_stages),
    "phantoms": (small, phantoms, six_stages),
    "cohen": (small, cohen, six_stages),
    "fewlabels": (small, few_labels),
    "hospitals": (small, few_labels, hospitals),
    "smoke": (small, smoke),
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config of a variant with its options; see the module.

    Raises:
      InputError: an unknown variant, option or value, or two that exclude each other.
    """
    base, options = common.read_variant(variant, VARIANTS, OPTIONS)
    common.check_options(options, KNOWN)
    is_corpus = options["paper"] == "corpus"
    if is_corpus and base not in ("", "smoke"):
        raise InputError(f"variant {variant!r}: paper=corpus is a setting of its own, not {base!r}")
    if options["trained"] and not is_corpus:
        raise InputError(f"variant {variant!r}: trained=1 is an option of paper=corpus")
    config = common.get_config()
    config.pool = options["pool"]
    paper(config, backbone=options["backbone"])
    second_set(config, options["regime"])
    if is_corpus:
        corpus(config, trained=bool(options["trained"]))
    for change in VARIANTS[base]:
        change(config)
    if is_corpus and base == "smoke" and config.model.backbone.name == "densenet":
        config.model.backbone.tap = LAST_TAP["densenet"]
    if not options["vit"]:
        without_transformer(config, shrunk=base not in ("", "smoke"))
    return config.lock()


def meanings() -> dict[str, str]:
    """Path -> what the field means, of all fields but `data` and `second`. Imports JAX."""
    from cxr_jax.data.lungs import LungMasks
    from cxr_jax.models.vit import ViT
    from cxr_jax.tasks.severity import Regime

    return (
        common.meanings()
        | common.BACKBONE_MEANINGS
        | MEANINGS
        | described("model.vit", ViT)
        | described("lungs", LungMasks)
        | described("regime", Regime)
    )
