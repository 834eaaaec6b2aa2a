"""Severity scoring and lesion maps: Kim et al. 2021 ('severity_vit'), and models for two cores.

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
| fewlabels | Table 3 on phantoms: 64 labelled films, 1024 of another scanner; with `regime=` |
| smoke | two tiny steps |

Options, e.g. `configs/severity.py:quick,pool=mean`:

| option | what |
| --- | --- |
| `pool=max, mean` | Eq. 9, or the ablation |
| `regime=labelled, supervised, progressive, one_step` | Table 3; second set: `config.extra` |
| `backbone=NAME,vit=0` | CNN baselines of Table 2, an entry of `BACKBONES`, trained whole: from |
| | random numbers unless `init_from` (the papers: from ImageNet's weights) |
| `backbone=none`, `backbone=resnet50_hybrid` | ViT and hybrid ViT of Park et al. 2021, Table 8 |
| `paper=corpus` | the severity model of Park et al. 2021: 512 px, last map, trained whole |

Results: RESULTS.md.
"""

import ml_collections

from configs import common
from cxr_jax.errors import InputError
from cxr_jax.models.sizes import BACKBONES

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
PAPERS = ("severity", "corpus")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    base, options = common.read_variant(
        variant,
        ("quick", "phantoms", "cohen", "fewlabels", "smoke"),
        {
            "pool": "max",
            "backbone": "densenet121",
            "vit": 1,
            "regime": "labelled",
            "paper": "severity",
        },
    )
    for name, known in (("backbone", [*BACKBONES, "none"]), ("paper", PAPERS)):
        if options[name] not in known:
            raise InputError(f"{name}={options[name]!r}; expected one of {', '.join(known)}")
    if options["paper"] == "corpus" and base not in ("", "smoke"):
        raise InputError(f"variant {variant!r}: paper=corpus is a setting of its own, not {base!r}")
    config = common.get_config()
    config.task = "severity"
    config.pool = options["pool"]  # Eq. 9: the maximum; mean is the ablation
    config.levels = 1  # the paper's zones are negative or positive
    config.lungs = dict(masks="record", workdir="")
    config.regime = dict(  # Table 3; the second data set is config.extra
        name=options["regime"],
        stage_steps=2000,  # [paper, Sec. 4]
        shares=5,  # [PAPERS: a further fifth a stage]
        pseudo_labels="hard",
        extra_fraction=0.0,
    )
    config.extra.labels = "given" if options["regime"] == "supervised" else "hidden"
    if options["regime"] != "labelled":
        config.extra.name = "brixia"  # [paper, Table 3]
        config.lungs.masks = "record_or_predicted"  # it has none; needs config.lungs.workdir

    config.total_steps = 12_000  # [paper, Sec. 3]
    config.batch_size = 8  # [paper]
    config.checkpoint_every = 500
    config.eval_steps = (11_000, 11_500, 12_000)  # the ensemble [paper]
    config.optimizer.update(name="sgd", lr=0.004, momentum=0.9)  # [paper]
    config.model = dict(
        # DenseNet-121 before transition 3: 16x16x1024 at 256 px [paper, Sec. 2.2]
        backbone=BACKBONES.get(options["backbone"], dict(name="none")),
        train_backbone=False,  # [paper]
        freeze_norms=False,
        # B/16: on the cells of the corpus, or on raw patches where there is none
        vit=dict(
            num_layers=12,
            num_heads=12,
            width=768,
            mlp_dim=3072,
            dropout=0.0,
            patch_size=1,
            stride=1,
        ),
        head_blocks=4,  # [paper]
    )
    if options["paper"] == "corpus":
        _corpus(config)
    if options["backbone"] == "none":
        config.model.vit.patch_size = 16  # [PAPERS]
    if base in ("quick", "phantoms", "cohen"):
        _small(config)
    if base == "phantoms":
        _phantoms(config)
    if base == "cohen":
        _cohen(config)
    if base == "fewlabels":
        _small(config)
        _few_labels(config)
    if base == "smoke":
        _small(config)
        _smoke(config)
        if options["paper"] == "corpus" and config.model.backbone.name == "densenet":
            config.model.backbone.tap = "final"
    if base in ("quick", "phantoms", "cohen"):
        config.regime.stage_steps = config.total_steps // 6  # six stages, as in the paper
    if not options["vit"]:  # a CNN baseline of Table 2: the head on the backbone, trained whole
        config.model.vit.num_layers = 0
        config.model.train_backbone = True
        if base and base != "smoke" and config.model.backbone.name == "densenet":
            config.model.backbone.init_features = 20  # 100 channels: the head halves them twice
    return config.lock()


def _corpus(config: ml_collections.ConfigDict) -> None:
    """The severity model of Park et al. 2021: 512 px, the last map, all of it trained."""
    config.preprocess.size = 512  # [Sec. 4.6]
    config.preprocess.order = ("equalize", "blur", "resize")  # [Sec. 4.6; PAPERS]
    backbone = config.model.backbone
    if backbone == ml_collections.ConfigDict(BACKBONES["resnet50_hybrid"]):
        config.model.vit.stride = 2  # it has no later stage
    elif backbone.name in LAST_TAP:
        backbone.tap = LAST_TAP[backbone.name]  # 16x16x1024, before PCAM [Sec. 4.6]
    config.model.train_backbone = True  # [PAPERS]
    # Ensemble, augmentation and regime stay as in the severity paper [PAPERS: the same model].
    config.batch_size = 4  # [Sec. 4.6]
    config.optimizer.lr = 0.003  # [Sec. 4.6]


def _small(config: ml_collections.ConfigDict) -> None:
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
    config.optimizer.update(
        name="adamw", lr=2e-3, weight_decay=1e-4, schedule="cosine", warmup_steps=30, clip_norm=1.0
    )


def _phantoms(config: ml_collections.ConfigDict) -> None:
    """Two scanners, heavier disease, strong augmentation: closer to the spread of real films."""
    config.levels = 3
    config.data.update(appearance="mixed", heavy=0.4, train=3000)
    common.strong_augmentation(config)
    config.total_steps = 800
    config.eval_steps = (700, 750, 800)


def _few_labels(config: ml_collections.ConfigDict) -> None:
    """Table 3 on phantoms: 64 labelled films of one scanner, 1024 of another; tested on both.

    64 px, so that five seeds of four regimes take an hour on two cores. Six stages and a constant
    learning rate as in the paper; the first stage is 25 rounds through the labelled films (there
    35: 2,000 steps of 8, 452 films), and the ensemble is of the last stage. Which films are
    labelled: `--config.data.first`.
    """
    config.preprocess.size = 64
    config.data.update(train=64, test=256, test_appearance="mixed", size=128, seed=12)
    config.lungs.masks = "record"
    if config.regime.name != "labelled":
        config.extra.name = "phantom_cxr"
        config.extra.update(train=1024, appearance="shifted", size=128, seed=1_000_012)
    common.strong_augmentation(config)
    config.optimizer.update(schedule="constant", lr=1e-3)
    config.total_steps = 600
    config.regime.stage_steps = 100
    config.eval_steps = (550, 575, 600)
    config.checkpoint_every = 25


def _cohen(config: ml_collections.ConfigDict) -> None:
    """107 training films: every setting here was chosen on its five folds, never on the test part.

    Brixia's 0..3 scores train three maps, of score >= 1, >= 2 and >= 3; the first is the paper's.
    """
    config.data.name = "brixia_cohen"
    config.lungs.masks = "record_or_predicted"
    config.levels = 3
    common.strong_augmentation(config)
    config.total_steps = 200
    config.eval_steps = (150, 175, 200)
    config.model.vit.dropout = 0.1
    config.optimizer.update(lr=3e-4, weight_decay=1e-2)


def _smoke(config: ml_collections.ConfigDict) -> None:
    common.smoke(config)
    config.model.backbone.update(SMOKE[config.model.backbone.name])
    if config.model.backbone.name == "none":
        config.model.vit.patch_size = 16
    config.model.head_blocks = 4
    config.model.vit.update(num_layers=1, num_heads=2, width=32, mlp_dim=32)
    config.lungs.masks = "record"
    if config.regime.name != "labelled":
        config.extra.update(name="phantom_cxr", size=128, train=8)
        config.regime.update(stage_steps=1, shares=1)
    config.eval_steps = (1, 2)
