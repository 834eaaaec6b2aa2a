"""A work directory: whose run it is, and its config."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import ml_collections

from cxr_jax import hosts, migrations, safe_write, small_files
from cxr_jax.checkpoints import complete_steps
from cxr_jax.data.sources.base import Source
from cxr_jax.errors import InputError
from cxr_jax.writers import code_version, write_json

LOCK = ".lock"
HISTORY = "history.json"

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
    "measure_explanations",
    "threads",
    "trackers",
)
# What may follow where a run is made longer.
FREE_IF_LONGER = ("eval_steps", "optimizer.decay_steps", "total_steps")
# What all configs have, by kind: what the loops read, and blocks of today and of older configs.
_BLOCKS = ("data", "second", "extra", "regime", "teaching")
_KINDS = {
    **dict.fromkeys(("task", "init_from", "precision", "parallel"), str),
    **dict.fromkeys(("seed", "threads", "total_steps", "batch_size", "eval_batch_size"), int),
    **dict.fromkeys(("log_every", "eval_every", "checkpoint_every", "image_size"), int),
    **dict.fromkeys(("keep_every", "keep_last", "bootstrap", "figures", "devices"), int),
    **dict.fromkeys(("eval_steps", "init_include", "init_exclude", "init_rename"), list),
    **dict.fromkeys(("optimizer", "early_stopping"), dict),
}
_RULE = {"metric": str, "patience": int, "highest": bool}  # of early_stopping
_REMEDY = "take the file from a copy of the run, or train it again"
# What every evaluation may change beside: other data (an external test), where it runs, and whether
# batch statistics are renewed. A task adds what becomes of its outputs (`Evaluation.settings`).
FREE_IN_EVALUATION = (*FREE, "data", "devices", "parallel", "refresh_batches")


@contextlib.contextmanager
def only_writer(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the folder, and holds it: nobody else trains or evaluates there meanwhile. Of several
    hosts the first one does.

    Raises:
      InputError: another process holds it, it cannot be written, or not all hosts see it.
    """
    if not hosts.is_main():
        hosts.wait("work directory")
        hosts.check_shared(workdir / LOCK)
        yield
        return
    before = workdir.exists()
    safe_write.make_folder(workdir, "--workdir")
    try:
        (workdir / LOCK).touch()
    except OSError as error:
        raise InputError(f"{workdir} cannot be written: {error.strerror or error}") from error
    with (workdir / LOCK).open("r+", encoding="utf-8") as lock:
        try:
            # The system drops the lock when its holder dies, however it dies.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(lock.fileno()), os.stat(workdir / LOCK)):
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError):
            raise InputError(
                f"{workdir}: another process ({lock.read(40).strip() or 'unknown'}) trains or "
                "evaluates there; wait for it, or use another --workdir"
            ) from None
        except OSError as error:
            raise InputError(
                f"{workdir} is on a disk that has no locks ({error.strerror}); use another "
                "--workdir: two runs there would spoil each other"
            ) from error
        lock.truncate()
        lock.write(f"pid {os.getpid()} on {os.uname().nodename[:20]}")
        lock.flush()
        hosts.wait("work directory")
        try:
            yield
        except InputError:
            if not before and [path.name for path in workdir.iterdir()] == [LOCK]:
                # A command that was refused leaves nothing. Who has opened this lock in the
                # meantime finds that it is no longer there.
                (workdir / LOCK).unlink()
                workdir.rmdir()
            raise


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
    if any(type(step) is not int for step in config.get("eval_steps", list, [])):
        raise InputError(f"{path}: eval_steps are no list of whole numbers; {_REMEDY}")
    for name, kind in _RULE.items():
        config.fields("early_stopping").get(name, kind)
    try:
        return ml_collections.ConfigDict(_tuples(config.values)).lock()
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is not a config of cxr_jax: {reason}; {_REMEDY}") from error


def check_config(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    free: tuple[str, ...] = FREE,
    *,
    longer: bool = False,
) -> None:
    """Refuses a work directory that holds checkpoints of another config; writes nothing.

    Args:
      free: fields that may differ.
      longer: `total_steps` may be higher than it is there.

    Raises:
      InputError: names up to three fields that differ, with both values; or nobody knows of which
        config the checkpoints are.
    """
    if not complete_steps(workdir):
        return  # nothing there to protect
    if not small_files.exists(workdir / "config.json"):
        raise InputError(
            f"{workdir} has checkpoints and no config.json, so whose they are is not known; put "
            "that file back, or use another --workdir"
        )
    there, here = flatten(settled(read_config(workdir))), flatten(settled(config))
    if longer and here["total_steps"] > there["total_steps"]:
        free = (*free, *FREE_IF_LONGER)
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
    """Writes config.json and data.json, once all that could be wrong has been looked at; of several
    hosts the first one does.

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
    if not hosts.is_main():
        return
    try:
        (workdir / "figures").mkdir(parents=True, exist_ok=True)
        _record_longer(config, workdir)
        write_json(workdir / "config.json", json.loads(settled(config).to_json()))
        write_json(path, {**data, "unlabelled": list(unlabelled)})
    except OSError as error:
        raise InputError(f"{workdir} cannot be written: {error.strerror or error}") from error


def _record_longer(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Adds to the history that a run with checkpoints goes on to a later step than was planned."""
    steps = complete_steps(workdir)
    if not steps or not (workdir / "config.json").exists():
        return
    there, here = flatten(read_config(workdir)), flatten(config)
    changes = {
        name: [there.get(name), here.get(name)]
        for name in FREE_IF_LONGER
        if there.get(name) != here.get(name)
    }
    if changes:
        entry = {"from_step": steps[-1], "changes": changes, "code_version": code_version()}
        write_json(workdir / HISTORY, [*history(workdir), entry])
        print(f"{workdir} is trained longer than it was begun for; noted in {HISTORY}", flush=True)


def history(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """How a run was made longer after its beginning: from which step, and each change of a field,
    [before, after].

    Raises:
      InputError: the file is broken.
    """
    path = workdir / HISTORY
    try:
        entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        return [dict(entry) for entry in entries]
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is broken ({type(error).__name__}); move it away") from error


def settled(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with the places of its data sets from the root, so that it means the same from
    every folder. A copy; a place that the config leaves open stays so."""
    made = config.copy_and_resolve_references()
    with made.unlocked():
        for block in ("data", "second"):
            for name in ("path", "data_dir"):
                if block in made and made[block].get(name):
                    place = pathlib.Path(made[block][name]).expanduser()
                    made[block][name] = os.path.abspath(place)
    return made.lock()


def trained_on(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Name, version and number of films of the training set, and what none of them labels; None
    where it was not written."""
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


def is_free(name: str) -> bool:
    """Whether a field only says how or where a run is watched."""
    return _is_among(name, FREE)


def _is_among(name: str, fields: tuple[str, ...]) -> bool:
    """Whether `name` is one of the fields, or lies under one."""
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def as_written(workdir: pathlib.Path) -> dict[str, Any]:
    """'optimizer.lr' -> value, as config.json has it: without the fields that later versions added.

    Raises:
      InputError: it is missing or broken.
    """
    return _flat(small_files.read_fields(workdir / "config.json", _REMEDY).values)


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
