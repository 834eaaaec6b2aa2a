"""A work directory: whose run it is, and its config."""

import json
import pathlib
from typing import Any

import ml_collections

from cxr_jax import migrations
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
# What every evaluation may change beside: other data (an external test), and where it runs. A task
# adds what becomes of its outputs (`Evaluation.settings`).
FREE_IN_EVALUATION = (*FREE, "data", "devices", "parallel")


def read_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """The config of a work directory.

    Raises:
      InputError: no work directory, or config.json is broken.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise InputError(f"{workdir} is no work directory: it has no config.json")
    try:
        saved = migrations.migrate(json.loads(path.read_text(encoding="utf-8")))
        config = ml_collections.ConfigDict(_tuples(saved))
        _ = config.task, config.data.name
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a config of cxr_jax: {error}") from error
    return config.lock()


def check_config(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, free: tuple[str, ...] = FREE
) -> None:
    """Refuses a work directory that holds checkpoints of another config; writes nothing.

    Raises:
      InputError: names up to three fields that differ, with both values.
    """
    if not (workdir / "config.json").exists() or not complete_steps(workdir):
        return  # nothing there to protect
    there, here = flatten(read_config(workdir)), flatten(config)
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


def claim(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    source: Source,
    *,
    unlabelled: tuple[str, ...] = (),
) -> None:
    """Writes config.json and data.json, once all that could be wrong has been looked at.

    Args:
      config: of the run.
      workdir: of the run.
      source: that is trained on.
      unlabelled: outputs that it has no label for.

    Raises:
      InputError: the run that is there was trained on other data, or the folder is not writable.
    """
    data = {"name": source.name, "version": source.version, "train": len(source)}
    path, old = workdir / "data.json", trained_on(workdir)
    old = old and {name: old.get(name) for name in data}
    if complete_steps(workdir) and old not in (None, data):
        raise InputError(
            f"{workdir} was trained on other data ({old} there, {data} here), so it cannot be "
            "resumed to the same result; use another --workdir"
        )
    try:
        (workdir / "figures").mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", json.loads(config.to_json()))
        write_json(path, {**data, "unlabelled": list(unlabelled)})
    except OSError as error:
        raise InputError(f"{workdir} cannot be written: {error.strerror or error}") from error


def trained_on(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Name, version and number of films of the training set, and what none of them labels; None
    where it was not written."""
    path = workdir / "data.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _tuples(value: Any) -> Any:
    """JSON has lists where configs have tuples."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def changed(
    config: ml_collections.ConfigDict, trained: ml_collections.ConfigDict
) -> dict[str, Any]:
    """'threshold' -> its value in `config`, of the fields that an evaluation set otherwise."""
    there = flatten(trained)
    return {
        name: value
        for name, value in flatten(config).items()
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
