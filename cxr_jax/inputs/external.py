"""External tests: what an evaluation of other data is called, and that it is of other patients.

The run's own splits keep their names: `test/...` is of the data that the run was trained with. Any
other data get a label of their own, so that no result ever takes the place of another one's.
"""

import hashlib
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from cxr_jax import workdir as workdirs
from cxr_jax.data import sources
from cxr_jax.errors import InputError

_PLACES = ("path", "data_dir")  # where data lie says nothing of what they are


def label(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    split: str,
    earlier: Mapping[str, Any],
) -> str:
    """What the results of a split are called: SPLIT of the run's own data, DATA-SPLIT of another
    data set; with a digest of the data in it where that name is another evaluation's.

    Args:
      config: of the evaluation.
      workdir: of the run.
      split: 'train', 'val' or 'test'.
      earlier: label -> an earlier evaluation of the run, as results.json has it.
    """
    trained = workdirs.read_config(workdir)
    same_set = config.data.name == trained.data.name
    plain = split if same_set else f"{config.data.name}-{split}"
    source = sources.open_source(config.data, split)
    if plain in earlier:
        fits = _is_of(earlier[plain], source)
    else:
        fits = not same_set or is_own(config, workdir)
    if fits:
        return plain
    text = f"{_options(config.data)}|{source.version}|{len(source)}"
    return f"{config.data.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}-{split}"


def is_own(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> bool:
    """Whether an evaluation is of the data set that the run was trained with, as it was then."""
    if _options(config.data) != _options(workdirs.read_config(workdir).data):
        return False
    known = workdirs.trained_on(workdir)
    if known is None:
        return True
    try:
        training = sources.open_source(config.data, "train")
    except InputError:
        return False  # a table without training films is another table
    # What a task makes of the films adds to the version.
    return str(known["version"]).startswith(training.version)


def described(config: ml_collections.ConfigDict, split: str) -> dict[str, Any]:
    """The data set as it was opened, for results.json."""
    source = sources.open_source(config.data, split)
    return {"version": source.version, "examples": len(source)}


def check_unseen(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, *, split: str, allowed: bool
) -> dict[str, int]:
    """Looks for patients and films of an external test among those that were trained on.

    Args:
      config: of the evaluation.
      workdir: of the run.
      split: that is evaluated.
      allowed: they are counted and not refused.

    Returns:
      How many patients and films of the test were trained on; {} where the training set is not
      there to be looked at, which is printed.

    Raises:
      InputError: some were.
    """
    trained = workdirs.read_config(workdir)
    test = sources.open_source(config.data, split)
    try:
        training = [sources.open_source(trained.data, "train")]
        if trained.get("second", {}).get("name"):
            training.append(sources.open_source(trained.second, "train"))
    except InputError as error:
        print(f"not looked whether these patients were trained on: {error}")
        return {}
    patients = _patients(test) & set().union(*map(_patients, training))
    films = _same_files(test, training)
    if (patients or films) and not allowed:
        some = f", e.g. {min(patients)!r}" if patients else ""
        raise InputError(
            f"{len(patients)} patients{some} and {films} films of {test.name!r} ({split}) were "
            "trained on, so this is no external test; leave them out, or give --allow_seen"
        )
    return {"patients": len(patients), "films": films}


def check_start(config: ml_collections.ConfigDict, *, split: str) -> None:
    """Looks whether the run of `config.init_from` was trained on what this run will be tested on:
    patients of the same data set, film files of any. Phantoms are not looked at: their splits are.

    Args:
      config: of a training.
      split: that is tested at its end.

    Raises:
      InputError: it was.
    """
    start = pathlib.Path(config.init_from or "")
    if not config.init_from or not (start / "config.json").is_file():
        return
    data = workdirs.read_config(start).data
    test = sources.open_source(config.data, split)
    try:
        training = sources.open_source(data, "train")
    except InputError as error:
        print(f"not looked whether init_from was trained on the {split} films: {error}")
        return
    if not hasattr(test, "stored"):
        return
    patients = _patients(test) & _patients(training) if data.name == config.data.name else set()
    films = _same_files(test, [training])
    if patients or films:
        raise InputError(
            f"config.init_from={start} was trained on {len(patients)} patients and {films} films "
            f"of what this run is tested on ({test.name!r}, {split}); start from a run that was "
            "not, e.g. of the same folds"
        )


def _is_of(evaluation: Mapping[str, Any], source: sources.Source) -> bool:
    """Whether an earlier evaluation was of this source."""
    opened = evaluation.get("source")
    if opened is not None:
        return opened == {"version": source.version, "examples": len(source)}
    return str(evaluation["data"]["version"]).startswith(source.version)  # of an older run


def _options(data: ml_collections.ConfigDict) -> dict[str, Any]:
    return {name: data[name] for name in sorted(data) if name not in _PLACES}


def _patients(source: sources.Source) -> set[str]:
    return {str(sources.peek(source, index, "group")) for index in range(len(source))}


def _same_files(test: sources.Source, training: Iterable[sources.Source]) -> int:
    """How many films of the test are, to the byte, one that was trained on; 0 where either set is
    not of files."""
    if not hasattr(test, "stored"):
        return 0
    digests = [hashlib.sha256(test.stored(index)).digest() for index in range(len(test))]
    sizes = {test.stored_size(index) for index in range(len(test))}
    seen = {
        hashlib.sha256(source.stored(index)).digest()
        for source in training
        if hasattr(source, "stored")
        for index in range(len(source))
        if source.stored_size(index) in sizes
    }
    return sum(digest in seen for digest in digests)
