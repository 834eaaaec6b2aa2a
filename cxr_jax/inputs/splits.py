"""Opens the splits that a config names, with every field that the task needs."""

import contextlib
import functools
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import ml_collections
import numpy as np

from cxr_jax.data import pipeline, sources
from cxr_jax.data.preprocess import Preprocess
from cxr_jax.data.sources import combine
from cxr_jax.data.sources.base import stored_side
from cxr_jax.errors import InputError, one_line
from cxr_jax.inputs.lungs import PredictedLungs
from cxr_jax.tasks import Task


class Completion(Protocol):
    """Gives a field to records that lack it."""

    @property
    def adds(self) -> bool:
        """False where it only leaves out the records without the field."""

    @property
    def way_out(self) -> str:
        """What a user can set where it adds nothing, for a message."""

    def apply(self, source: sources.Source, cache_dir: pathlib.Path) -> sources.Source:
        """`source` with the field in every record."""


# Field -> what completes it where a task reads it and it is no label; its settings are the config's
# field of that name.
COMPLETIONS: dict[str, Callable[[ml_collections.ConfigDict], Completion]] = {
    "lungs": PredictedLungs.from_config
}


def open_split(
    task: Task,
    config: ml_collections.ConfigDict,
    split: str,
    *,
    workdir: pathlib.Path,
    data: ml_collections.ConfigDict | None = None,
    hidden: frozenset[str] = frozenset(),
    training: bool = False,
) -> sources.Source:
    """A split of a data set with all the fields the task needs but the `hidden` ones.

    What is left out of it, and why, is printed.

    Args:
      task: says which fields.
      config: names the data set and, where other runs complete its records, these.
      split: 'train', 'val' or 'test'.
      workdir: of the run; what is made of the records once is kept there.
      data: the block that names the data set; None is `config.data`.
      hidden: fields that are taken away.
      training: what is trained on, which a task may adapt otherwise than what is evaluated.

    Raises:
      InputError: the data set lacks a field, which is named, or cannot be opened.
    """
    source = sources.open_source(config.data if data is None else data, split)
    _tell(source)
    tell_reduced(source, config)
    if hidden:
        source = combine.Hidden(source, hidden)
    fields = task.data.fields - (task.data.only_evaluated if training else frozenset())
    read = fields - task.data.labels
    completions = {name: COMPLETIONS[name](config) for name in COMPLETIONS if name in read}
    needed = fields - hidden
    added = {name for name, completion in completions.items() if completion.adds}
    # What can be added is checked after it has been; the rest before that costs anything.
    ways_out = {name: completion.way_out for name, completion in completions.items()}
    pipeline.check_fields(source, needed - added, ways_out)
    adapt = functools.partial(task.data.adapt, training=training)
    completing = [
        functools.partial(completion.apply, cache_dir=workdir / "cache")
        for completion in completions.values()
    ]
    for step in [*completing, adapt] if task.data.completed_first else [adapt, *completing]:
        before, source = source, step(source)
        if source is not before:
            _tell(source)
    pipeline.check_fields(source, needed)
    return source


def _tell(source: sources.Source) -> None:
    """Prints the notes of a source."""
    for note in getattr(source, "notes", ()):
        _say_once(one_line(f"{source.name} ({source.split}): {note}"))


def tell_reduced(source: sources.Source, config: ml_collections.ConfigDict) -> None:
    """Prints that films were stored too small for steps that come before the resize."""
    side = stored_side(source)
    if not side or "preprocess" not in config:
        return
    preprocess = Preprocess(**config.preprocess)
    steps, wanted = preprocess.full_size_steps, 2 * preprocess.size
    if steps and side < wanted:
        _say_once(
            f"{source.name} ({source.split}): warning: its films were reduced to {side} px when "
            f"they were prepared, and config.preprocess.order has {', '.join(steps)} before the "
            f"resize to {preprocess.size} px; prepare them with --max_side={wanted} or more"
        )


@functools.lru_cache(maxsize=1000)
def _say_once(line: str) -> None:
    """A training opens its data more than once."""
    print(line, flush=True)


def open_training(
    task: Task, config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> sources.Source:
    """The training films of `config.data`, and those of `config.second` behind them.

    Raises:
      InputError: as `open_split`; a second set that is the first.
    """
    source = open_split(task, config, "train", workdir=workdir, training=True)
    second = config.second
    if not second.name:
        return source
    hidden = task.data.labels if second.labels == "hidden" else frozenset()
    joining = open_split(
        task, config, "train", workdir=workdir, data=second, hidden=hidden, training=True
    )
    if _identity(joining) == _identity(source):
        raise InputError(
            f"config.second names the films of config.data ({source.name!r}, {source.version}); "
            "choose another data set, split or seed"
        )
    return combine.Joined(source, joining)


def check_second(config: ml_collections.ConfigDict) -> None:
    """Refuses a second data set that cannot be meant; opens nothing.

    Raises:
      InputError: labels that are neither given nor hidden, or another fold of the first set.
    """
    first, second = config.data, config.second
    if not second.name:
        return
    if second.labels not in ("given", "hidden"):
        raise InputError(f"config.second.labels={second.labels!r}; expected given or hidden")
    for fold, split in (("fold", "validation"), ("test_fold", "test")):
        if second.name == first.name and first.get(fold) != second.get(fold):
            raise InputError(
                f"config.data.{fold}={first[fold]} and config.second.{fold}={second[fold]} of one "
                f"data set {first.name!r}: films of the {split} fold would be trained on; set both "
                "alike"
            )


def _identity(source: sources.Source) -> tuple[str, str, int]:
    return source.name, source.version, len(source)


def example_batch(task: Task, source: sources.Source) -> dict[str, np.ndarray]:
    """One example as a batch, for its shapes."""
    batches = pipeline.eval_batches(source, task.data.transforms, batch_size=1, threads=0)
    with contextlib.closing(batches):
        return {k: v for k, v in next(batches).items() if v.dtype.kind not in "US"}


def provenance(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Where completed fields came from, for results.json; None where a config has no such field."""
    return {name: config[name].to_dict() if name in config else None for name in COMPLETIONS}
