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

Options: `pool=max|mean`, `backbone=densenet121|densenet201`, `vit=0|1`,
`regime=labelled|supervised|progressive|one_step` (Table 3). Example:
`configs/severity.py:quick,pool=mean`. Results: README.
"""

import ml_collections

from configs import common
from cxr_jax.errors import InputError

BACKBONES = {"densenet121": (6, 12, 24, 16), "densenet201": (6, 12, 48, 32)}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    base, options = common.read_variant(
        variant,
        ("quick", "phantoms", "cohen", "fewlabels", "smoke"),
        {"pool": "max", "backbone": "densenet121", "vit": 1, "regime": "labelled"},
    )
    if options["backbone"] not in BACKBONES:
        raise InputError(
            f"backbone={options['backbone']!r}; expected one of {', '.join(BACKBONES)}"
        )
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

    config.total_steps = 12_000  # [paper, Sec. 3]
    config.batch_size = 8  # [paper]
    config.checkpoint_every = 500
    config.eval_steps = (11_000, 11_500, 12_000)  # the ensemble [paper]
    config.optimizer.update(name="sgd", lr=0.004, momentum=0.9)  # [paper]
    config.model = dict(
        backbone=dict(
            growth_rate=32,
            block_sizes=BACKBONES[options["backbone"]],
            init_features=64,
            tap="block3",  # before transition 3: 16x16x1024 at 256 px [paper, Sec. 2.2]
        ),
        train_backbone=False,  # [paper]
        freeze_norms=False,
        vit=dict(num_layers=12, num_heads=12, width=768, mlp_dim=3072, dropout=0.0),  # B/16
        head_blocks=4,  # [paper]
    )
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
    if base and options["backbone"] != "densenet121":
        raise InputError(f"variant {variant!r}: backbone= is for the paper's size, not {base!r}")
    if not options["vit"]:  # a CNN baseline of Table 2: the head on the backbone, trained whole
        config.model.vit.num_layers = 0
        config.model.train_backbone = True
        if base and base != "smoke":
            config.model.backbone.init_features = 20  # 100 channels: the head halves them twice
    return config.lock()


def _small(config: ml_collections.ConfigDict) -> None:
    """A third of a million parameters at 128 px, trained whole: there is no corpus to freeze.

    The tap at stride 8 gives the 16x16 cells that the paper has at 256 px; the map is 64x64.
    """
    config.preprocess.size = 128
    config.model.backbone.update(growth_rate=12, block_sizes=(3, 6), init_features=16, tap="block2")
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
    _strong_augmentation(config)
    config.total_steps = 800
    config.eval_steps = (700, 750, 800)


def _few_labels(config: ml_collections.ConfigDict) -> None:
    """Table 3 on phantoms: 64 labelled films of one scanner, 1024 of another; tested on both.

    The schedule is the paper's divided by 30: six stages of 67 steps.
    """
    config.data.update(train=64, test=512, test_appearance="mixed")
    if config.regime.name != "labelled":
        config.extra.name = "phantom_cxr"
        config.extra.update(train=1024, appearance="shifted")
    _strong_augmentation(config)
    config.total_steps = 400
    config.batch_size = 8
    config.regime.stage_steps = 67
    config.eval_steps = (360, 380, 400)
    config.checkpoint_every = 100


def _cohen(config: ml_collections.ConfigDict) -> None:
    """107 training films: every setting here was chosen on its five folds, never on the test part.

    Brixia's 0..3 scores train three maps, of score >= 1, >= 2 and >= 3; the first is the paper's.
    """
    config.data.name = "brixia_cohen"
    config.lungs.masks = "record_or_predicted"
    config.levels = 3
    _strong_augmentation(config)
    config.total_steps = 200
    config.eval_steps = (150, 175, 200)
    config.model.vit.dropout = 0.1
    config.optimizer.update(lr=3e-4, weight_decay=1e-2)


def _strong_augmentation(config: ml_collections.ConfigDict) -> None:
    config.augment.update(rotate_deg=10.0, shift=0.06, scale=0.15, brightness=0.15, contrast=0.3)


def _smoke(config: ml_collections.ConfigDict) -> None:
    config.preprocess.size = 64
    config.model.backbone.update(
        growth_rate=4, block_sizes=(1, 1, 1), init_features=36, tap="block3"
    )
    config.model.head_blocks = 4
    config.model.vit.update(num_layers=1, num_heads=2, width=32, mlp_dim=32)
    config.data.update(size=128, train=8, val=4, test=5)
    if config.regime.name != "labelled":
        config.extra.update(name="phantom_cxr", size=128, train=8)
        config.regime.update(stage_steps=1, shares=1)
    config.total_steps = 2
    config.batch_size = 2
    config.eval_batch_size = 2
    config.log_every = 1
    config.checkpoint_every = 1
    config.eval_steps = (1, 2)
    config.bootstrap = 20
    config.figures = 2
