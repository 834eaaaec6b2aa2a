"""A work directory: whose run it is, and its config."""

import json
import os
import pathlib
from typing import Any

import ml_collections

from cxr_jax import migrations, small_files
from cxr_jax.checkpoints import complete_steps
from cxr_jax.data.sources.base import Source
from cxr_jax.errors import InputError
from cxr_jax.writers import write_json

# Fields that change how or where a run is watched, not what it computes.
FREE = (
    "bootstrap",
    "cache_mb",
    "checkpoint_every",
    "data.data_dir",
    "data.path",
    "eval_batch_size",
    "eval_every",
    "figures",
    "hang_warning_s",
    "keep_every",
    "keep_last",
    "log_every",
    "threads",
)
# What all configs have, by kind: what the loops read, and blocks of today and of older configs.
_BLOCKS = ("data", "second", "extra", "regime", "teaching")
_KINDS = {
    **dict.fromkeys(("task", "init_from", "precision", "parallel"), str),
    **dict.fromkeys(("seed", "threads", "total_steps", "batch_size", "eval_batch_size"), int),
    **dict.fromkeys(("log_every", "eval_every", "checkpoint_every", "image_size"), int),
    **dict.fromkeys(("keep_every", "keep_last", "bootstrap", "figures", "devices"), int),
    **dict.fromkeys(("eval_steps", "init_include", "init_exclude", "init_rename"), list),
    "optimizer": dict,
}
_REMEDY = "take the file from a copy of the run, or train it again"
# What every evaluation may change beside: other data (an external test), and where it runs. A task
# adds what becomes of its outputs (`Evaluation.settings`).
FREE_IN_EVALUATION = (*FREE, "data", "devices", "parallel")


def read_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """The config of a work directory.

    Raises:
      InputError: no work directory, or config.json is broken.
    """
    path = workdir / "config.json"
    if not small_files.is_file(path):
        raise InputError(f"{workdir} is no work directory: it has no config.json")
    fields = small_files.read_fields(path, _REMEDY)
    for block in _BLOCKS:
        fields.fields(block, {}).get("name", str, "")
    config = small_files.Fields(path, migrations.migrate(fields.values), _REMEDY)
    config.fields("data").get("name", str)
    for name, kind in _KINDS.items():
        config.get(name, kind, *(() if name == "task" else (None,)))
    try:
        return ml_collections.ConfigDict(_tuples(config.values)).lock()
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is not a config of cxr_jax: {reason}; {_REMEDY}") from error


def check_config(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, free: tuple[str, ...] = FREE
) -> None:
    """Refuses a work directory that holds checkpoints of another config; writes nothing.

    Raises:
      InputError: names up to three fields that differ, with both values.
    """
    if not small_files.exists(workdir / "config.json") or not complete_steps(workdir):
        return  # nothing there to protect
    there, here = flatten(settled(read_config(workdir))), flatten(settled(config))
    names = sorted(
        name
        for name in there.keys() | here.keys()
        if there.get(name) != here.get(name) and not _is_among(name, free)
    )
    if names:
        shown = "; ".join(
            f"{n} is {there.get(n, 'absent')!r} there and {here.get(n, 'absent')!r} here"
            for n in names[:3]
        )
        more = f"; {len(names) - 3} more" if len(names) > 3 else ""
        raise InputError(
            f"{workdir} holds a run of another config ({shown}{more}); use another --workdir"
        )


def claim(config: ml_collections.ConfigDict, workdir: pathlib.Path, source: Source) -> None:
    """Writes config.json and data.json, once all that could be wrong has been looked at.

    Raises:
      InputError: the run that is there was trained on other data, or the folder is not writable.
    """
    data = {"name": source.name, "version": source.version, "train": len(source)}
    path, old = workdir / "data.json", trained_on(workdir)
    if complete_steps(workdir) and old not in (None, data):
        raise InputError(
            f"{workdir} was trained on other data ({old} there, {data} here), so it cannot be "
            "resumed to the same result; use another --workdir"
        )
    try:
        (workdir / "figures").mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", json.loads(settled(config).to_json()))
        write_json(path, data)
    except OSError as error:
        raise InputError(f"{workdir} cannot be written: {error.strerror or error}") from error


def settled(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with the places of its data sets from the root, so that it means the same from
    every folder. A copy; a place that the config leaves open stays so."""
    made = ml_collections.ConfigDict(config)
    with made.unlocked():
        for block in ("data", "second"):
            for name in ("path", "data_dir"):
                if block in made and made[block].get(name):
                    place = pathlib.Path(made[block][name]).expanduser()
                    made[block][name] = os.path.abspath(place)
    return made.lock()


def trained_on(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Name, version and number of films of the training set; None where it was not written."""
    path = workdir / "data.json"
    if not small_files.exists(path):
        return None
    data = small_files.read_fields(path, "use another --workdir, or take the file from a copy")
    for name, kind in {"name": str, "version": str, "train": int}.items():
        data.get(name, kind)
    return data.values


def _tuples(value: Any) -> Any:
    """JSON has lists where configs have tuples."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def changed(
    config: ml_collections.ConfigDict, trained: ml_collections.ConfigDict
) -> dict[str, Any]:
    """'threshold' -> its value in `config`, of the fields that an evaluation set otherwise."""
    there = flatten(settled(trained))
    return {
        name: value
        for name, value in flatten(settled(config)).items()
        if there.get(name) != value and not _is_among(name, FREE)
    }


def _is_among(name: str, fields: tuple[str, ...]) -> bool:
    """Whether `name` is one of the fields, or lies under one."""
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def flatten(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """'optimizer.lr' -> value; lists where configs have tuples."""
    return _flat(json.loads(config.to_json()))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            name: leaf
            for key, item in value.items()
            for name, leaf in _flat(item, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: value}
