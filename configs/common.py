"""What every experiment shares. A config file changes what its paper says otherwise."""

from collections.abc import Collection, Mapping

import ml_collections

from cxr_jax.data import sources
from cxr_jax.data.augment import Augment
from cxr_jax.data.preprocess import Preprocess
from cxr_jax.errors import InputError
from cxr_jax.meanings import described

# What is computed.
RUN = dict(
    task="",
    seed=0,
    total_steps=1,
    batch_size=8,
    eval_batch_size=16,
    precision="float32",
    parallel="jit",
    devices=0,
    init_from="",
    init_include=(),
    init_exclude=(),
    init_rename=(),
    allow_random_frozen=False,
)
# How it is watched, kept and evaluated.
WATCH = dict(
    log_every=50,
    checkpoint_every=500,
    keep_last=2,
    keep_every=0,
    eval_every=0,
    eval_steps=(),
    bootstrap=1000,
    refresh_batches=0,
    figures=8,
    measure_explanations=False,
    threads=2,
    cache_mb=1024,
    hang_warning_s=1800,
    trackers="",
)
EARLY_STOPPING = dict(metric="", patience=0, highest=True)  # none
PREPROCESS = dict(
    size=256,
    order=("resize", "blur", "equalize"),
    mean=128.0,  # the PCAM network's (x - 128) / 64  [PAPERS, Preprocessing]
    std=64.0,
)
# Ours: the papers give no numbers (the PCAM authors do: docs/papers.md, section 2). Flip is off:
# left and right matter.
AUGMENT = dict(rotate_deg=5.0, shift=0.03, scale=0.1, brightness=0.1, contrast=0.2, flip=False)
OPTIMIZER = dict(
    name="sgd",
    lr=0.0,
    momentum=0.9,
    nesterov=False,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    schedule="constant",
    warmup_steps=0,
    decay_steps=1,
    decay_rate=1.0,
    clip_norm=0.0,
    accumulate=1,
    frozen=(),
    lr_factors=(),
)
# Those of `data` and `second` are the data sets' own, those of `preprocess` and `augment` in
# cxr_jax/data.
MEANINGS = {
    "task": "what is trained: a file of cxr_jax/tasks",
    "seed": "of initialisation, order and augmentation",
    "total_steps": "length of the training",
    "batch_size": "examples of a training step, all devices together",
    "eval_batch_size": "examples of an evaluation step, all devices together",
    "precision": "of the computation: float32 or bfloat16; parameters stay float32",
    "parallel": "jit, or pmap: per-device batch norm",
    "devices": "how many are used; 0: all there are",
    "init_from": "a work directory, or imported weights, in place of random numbers",
    "init_include": "patterns of the paths that are taken, e.g. 'backbone/.*'; (): all",
    "init_exclude": "patterns of paths that are not taken",
    "init_rename": "(pattern, replacement) pairs for the paths there",
    "allow_random_frozen": "True only to measure speed: frozen random parts",
    "log_every": "steps between lines of metrics.jsonl",
    "checkpoint_every": "steps between checkpoints",
    "keep_last": "how many of the last checkpoints are kept",
    "keep_every": "steps; 0: none is kept beside the last and eval_steps",
    "eval_every": "steps between validations; 0: never",
    "eval_steps": "checkpoints that the final evaluation combines; (): the last, or the best",
    "early_stopping.metric": "of a validation, by which the best checkpoint is kept and evaluated",
    "early_stopping.patience": "steps without a better one that end the run; 0: none do",
    "early_stopping.highest": "whether higher is better",
    "bootstrap": "resamples of the intervals",
    "refresh_batches": "training batches by which an evaluation renews batch statistics; 0: none",
    "figures": "films drawn in an evaluation",
    "measure_explanations": "an evaluation explains every film, and scores the explanations",
    "threads": "of the input pipeline",
    "cache_mb": "memory for preprocessed films",
    "trackers": "wandb, mlflow: get the numbers too, beside TensorBoard; '': none",
    "hang_warning_s": "stack dump if no step is logged for so long; 0: never",
    "optimizer.name": "sgd, adam or adamw",
    "optimizer.lr": "learning rate, at its highest",
    "optimizer.momentum": "of sgd",
    "optimizer.nesterov": "Nesterov's momentum, of sgd",
    "optimizer.b1": "decay of the first moment, of adam and adamw",
    "optimizer.b2": "decay of the second moment, of adam and adamw",
    "optimizer.eps": "added to the root of the second moment, of adam and adamw",
    "optimizer.weight_decay": "never on biases and norms; decoupled in adamw alone",
    "optimizer.schedule": "constant, linear, cosine (both to 0) or step",
    "optimizer.warmup_steps": "the learning rate first rises from 0 in so many steps",
    "optimizer.decay_steps": "of schedule step: steps between two falls",
    "optimizer.decay_rate": "of schedule step: factor of a fall",
    "optimizer.clip_norm": "largest norm of the gradient; 0: no clipping",
    "optimizer.accumulate": "steps whose mean gradient makes one update",
    "optimizer.frozen": "patterns of parameter paths that are not trained",
    "optimizer.lr_factors": "(pattern of parameter paths, factor of their learning rate) pairs",
}

# Of `model.backbone`, an entry of `cxr_jax.models.sizes.BACKBONES`.
BACKBONE_MEANINGS = {
    "model.backbone.name": "densenet, resnet, resnet38, nasnet, or none: a ViT on raw patches",
    "model.backbone.tap": "the stage after which it is cut",
    "model.backbone.growth_rate": "of DenseNet: k, new channels a layer",
    "model.backbone.block_sizes": "layers (DenseNet) or blocks (ResNet) of each stage",
    "model.backbone.init_features": "channels of the stem",
    "model.backbone.bottleneck": "of ResNet: blocks of three convolutions; else of two",
    "model.backbone.width": "of ResNet-38: a share of the published channels",
    "model.backbone.dropout": "of ResNet-38: of b6 and b7",
    "model.backbone.stride": "of ResNet-38: of the last map: 8, 4 or 2",
    "model.backbone.dilations": "of ResNet-38: of b5, b6 and b7",
    "model.backbone.cells": "of NASNet: normal cells of a stage",
    "model.backbone.filters": "of NASNet: channels of the first stage's cells",
    "model.backbone.stem_filters": "of NASNet: channels of the stem",
}

# Of what gives boxes of findings (`cxr_jax.tasks.detection`).
DETECTOR_MEANINGS = {
    "classes": "the findings that are learned, by the names of the data set",
    "untrained": "those of them that the training set does not label",
    "class_mapping": "(finding of the evaluated set, classes that stand for it); (): themselves",
    "mapped_positive": "what several classes stand for is there by their mean, or where any is",
    "most_boxes": "of a finding on a film, the best first",
}


def get_config() -> ml_collections.ConfigDict:
    """Defaults of every field that the loops read."""
    config = ml_collections.ConfigDict(RUN | WATCH)
    config.early_stopping = dict(EARLY_STOPPING)
    config.data = sources.block("phantom_cxr")
    config.second = sources.second_block()
    config.preprocess = dict(PREPROCESS)
    config.augment = dict(AUGMENT)
    config.optimizer = dict(OPTIMIZER)
    return config


def meanings() -> dict[str, str]:
    """Path -> what the field means, of the fields of `get_config` but `data` and `second`."""
    return MEANINGS | described("preprocess", Preprocess) | described("augment", Augment)


def smoke(config: ml_collections.ConfigDict) -> None:
    """Two steps on eight phantoms, to see that everything runs."""
    config.preprocess.size = 64
    config.data.update(size=128, train=8, val=4, test=5)
    config.total_steps = config.batch_size = config.eval_batch_size = 2
    config.log_every = config.checkpoint_every = 1
    config.bootstrap = 20
    config.figures = 2


def detector(classes: tuple[str, ...]) -> dict[str, object]:
    """The fields of what gives boxes of findings."""
    # One box [ADPD, Sec. 4.1].
    return dict(
        classes=classes, untrained=(), class_mapping=(), mapped_positive="mean", most_boxes=1
    )


def strong_augmentation(config: ml_collections.ConfigDict) -> None:
    """For few films, or for films of many kinds."""
    config.augment.update(rotate_deg=10.0, shift=0.06, scale=0.15, brightness=0.15, contrast=0.3)


def small_optimizer(
    config: ml_collections.ConfigDict, *, warmup_steps: int, lr: float = 2e-3
) -> None:
    """For small networks from random numbers, in minutes."""
    config.optimizer.update(
        name="adamw",
        lr=lr,
        weight_decay=1e-4,
        schedule="cosine",
        warmup_steps=warmup_steps,
        clip_norm=1.0,
    )


def read_variant(
    variant: str, named: Collection[str], options: Mapping[str, object] | None = None
) -> tuple[str, dict[str, object]]:
    """'quick' -> ('quick', {}); 'cohen,levels=1' -> ('cohen', {'levels': 1}).

    Args:
      variant: what stands after the colon of --config.
      named: the variants of this file; the paper's setting is ''.
      options: name -> default; its type is the option's.

    Raises:
      InputError: an unknown variant or option, or a value of another type.
    """
    options = dict(options or {})
    base = ""
    for part in filter(None, variant.split(",")):
        name, equals, value = part.partition("=")
        if not equals and name in named and not base:
            base = name
        elif equals and name in options:
            kind = type(options[name])
            try:
                options[name] = kind(value)
            except ValueError as error:
                raise InputError(f"variant {part!r}: expected {kind.__name__}") from error
        else:
            known = [*filter(None, named), *(f"{option}=..." for option in options)]
            raise InputError(f"variant {part!r}; expected one of {', '.join(known)}")
    return base, options


def check_options(options: Mapping[str, object], known: Mapping[str, Collection[object]]) -> None:
    """Refuses an option's value that is none of those there are.

    Raises:
      InputError: names the option and what may stand there.
    """
    for name, values in known.items():
        if options[name] not in values:
            shown = ", ".join(str(value) for value in values if value != "")
            raise InputError(f"{name}={options[name]!r}; expected one of {shown}")
