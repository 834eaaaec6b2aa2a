"""Configs of older runs, in today's words."""

import copy
from collections.abc import Mapping
from typing import Any

from cxr_jax.data import sources

# Path in a config.json of that time -> today's; in order, one after the other.
RENAMED = {
    "extra": "second",
    "data.heavy": "data.disease_extent",
    "data.test_heavy": "data.test_disease_extent",
    "second.heavy": "second.disease_extent",
    "second.test_heavy": "second.test_disease_extent",
    "regime.extra_fraction": "regime.second_fraction",
    "teaching.extra_fraction": "teaching.second_fraction",
}

# Path of a field that runs of before did not have -> what they did.
ADDED: dict[str, Any] = {
    "measure_explanations": False,
    "early_stopping": {"metric": "", "patience": 0, "highest": True},
    "refresh_batches": 0,
    "trackers": "",
    "regime.refresh_batches": 0,
    "regime.teacher_decay": 0.0,
}

# The same for the configs of a task: task -> path -> what it was.
ADDED_TO_TASK: dict[str, dict[str, Any]] = {
    "adpd": {
        "asl": {"gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05},
        "mil_sharpness": 5.0,
        "mapped_positive": "any",
    },
    "box_detector": {"mapped_positive": "any"},
    "cam_detector": {"mapped_positive": "any"},
    "seam": {
        "model.stride": 8,
        "model.dilations": [2, 4, 4],
        "losses.bag": "noisy_or",
        "affinity.similarity": "cosine",
        "lungs": {"use": "none", "masks": "morphology", "workdir": ""},
        "tune": False,
    },
}

# The same for the options of a data set, in whichever block names it: (set, option) -> what it was.
ADDED_OPTIONS: dict[tuple[str, str], Any] = {
    ("cxr_3class", "test_fold"): 4,
    ("manifest", "classes"): "",
    ("films", "fold"): -1,
    ("nih_cxr8", "boxed"): False,
    ("phantom_ct", "other"): 0.0,
    ("phantom_cxr", "reader"): "exact",
}


def migrate(config: Mapping[str, Any]) -> dict[str, Any]:
    """The dict of a config.json as today's code would have written it.

    A config of the time when `data` held the options of every data set keeps those of its own. A
    config of today comes back as it is.

    Args:
      config: as read; it is left as it is.
    """
    one_bag = "extra" in config  # of that time
    config = copy.deepcopy(dict(config))
    _rename_pairs(config)
    for old, new in RENAMED.items():
        _rename(config, old.split("."), new.split(".")[-1])
    for path, value in ADDED.items():
        _add(config, path.split("."), value)
    if config.get("task") == "seam":
        _one_scale(config)
    for path, value in ADDED_TO_TASK.get(config.get("task"), {}).items():
        _add(config, path.split("."), value)
    for (name, option), value in ADDED_OPTIONS.items():
        for block in ("data", "second"):
            if config.get(block, {}).get("name") == name:
                config[block].setdefault(option, value)
    blocks = ("data", "second") if one_bag else ()
    return config | {path: _reduced(config[path]) for path in blocks if path in config}


def _rename_pairs(config: dict[str, Any]) -> None:
    """What is `method=pairs` of lungs was called adain, and every lungs run had its block."""
    if "normalise_weight" not in config.get("adain", {}):
        return
    block = config.pop("adain")
    if config.get("method") == "adain":
        config |= {"method": "pairs", "pairs": block}


def _one_scale(config: dict[str, Any]) -> None:
    """A run of the time when scales were multiscale_cam's alone, and PCM as wide as the rest."""
    if "mirror" in config:
        return
    many = config.get("method") == "multiscale_cam"
    config["mirror"] = many
    config["scales"] = config["scales"] if many else [1.0]
    config["model"].setdefault("pcm_width", config["model"].get("width", 1.0))


def _rename(config: dict[str, Any], path: list[str], new: str) -> None:
    *blocks, old = path
    for block in blocks:
        config = config.get(block, {})
    if old in config:
        config[new] = config.pop(old)


def _add(config: dict[str, Any], path: list[str], value: Any) -> None:
    *blocks, name = path
    for block in blocks:
        config = config.get(block, {})
    config.setdefault(name, copy.deepcopy(value))


def _reduced(block: dict[str, Any]) -> dict[str, Any]:
    """A block without the options of other data sets; one of an unknown data set as it is."""
    name = block.get("name")
    if name and name not in sources.DATASETS:
        return block
    own = sources.option_names(name) if name else []
    return {key: block[key] for key in (*sources.NOT_OPTIONS, *own) if key in block}
