"""External tests: what an evaluation of other data is called, and that it is of other patients.

The run's own splits keep their names: `test/...` is of the data that the run was trained with. Any
other data get a label of their own, so that no result ever takes the place of another one's.
"""

import contextlib
import hashlib
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from cxr_jax import model_files
from cxr_jax import workdir as workdirs
from cxr_jax.data import sources
from cxr_jax.errors import InputError

_LONGEST_CHAIN = 10  # of runs that began with one another
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
    test = sources.open_source(config.data, split)
    try:
        training = _learned_from(workdirs.read_config(workdir))
    except InputError as error:
        print(f"not looked whether these patients were trained on: {error}")
        return {}
    if sources.of_files(test):  # no film is a phantom
        training = [source for source in training if sources.of_files(source)]
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
    """Looks whether the run of `config.init_from`, or one that it began with, was trained on what
    this run will be tested on. That it was on validation films is printed.

    Files are compared, and patients of public data sets, whose names are the same in all of them;
    those of a table of one's own only with the same kind of table. Phantoms are not looked at:
    their splits are disjoint by construction.

    Args:
      config: of a training.
      split: that is tested at its end.

    Raises:
      InputError: it was.
    """
    start = _config_of(config.get("init_from", ""))
    if start is None or not sources.of_files(test := sources.open_source(config.data, split)):
        return
    try:
        training = [source for source in _learned_from(start) if sources.of_files(source)]
    except InputError as error:
        print(f"not looked whether init_from was trained on the {split} films: {error}")
        return
    patients, films = _seen_by(test, training)
    if patients or films:
        raise InputError(
            f"config.init_from={config.init_from} was trained on {patients} patients and {films} "
            f"films of what this run is tested on ({test.name!r}, {split}); start from a run that "
            "was not, e.g. of the same folds"
        )
    with contextlib.suppress(InputError):  # there need be no validation films
        patients, films = _seen_by(sources.open_source(config.data, "val"), training)
        if patients or films:
            print(
                f"config.init_from={config.init_from} was trained on {patients} patients and "
                f"{films} films of the validation split: what is chosen there is chosen too well"
            )


def _learned_from(config: ml_collections.ConfigDict) -> list[sources.Source]:
    """The training films of a run, of its second set, and of the runs that it began with; of
    joined sets each by itself, where patients have their own names.

    Raises:
      InputError: a set is not there.
    """
    found = []
    for _ in range(_LONGEST_CHAIN):
        found.append(sources.open_source(config.data, "train"))
        if config.get("second", {}).get("name"):
            found.append(sources.open_source(config.second, "train"))
        if (config := _config_of(config.get("init_from", ""))) is None:
            break
    return [part for source in found for part in getattr(source, "parts", (source,))]


def _config_of(init_from: str) -> ml_collections.ConfigDict | None:
    """The config of the run that another one starts from; None where it is of no run."""
    start = model_files.place(init_from or "")
    there = bool(init_from) and (start / "config.json").is_file()
    return workdirs.read_config(start) if there else None


def _seen_by(test: sources.Source, training: list[sources.Source]) -> tuple[int, int]:
    """How many patients and how many film files of a test were trained on."""
    public = not _is_own_table(test)
    known = [s for s in training if s.name == test.name or (public and not _is_own_table(s))]
    patients = _patients(test) & set().union(*map(_patients, known))
    return len(patients), _same_files(test, training)


def _is_own_table(source: sources.Source) -> bool:
    return source.name in sources.DATASETS and sources.DATASETS[source.name].by_path


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
    if not sources.of_files(test):
        return 0
    digests = [hashlib.sha256(test.stored(index)).digest() for index in range(len(test))]
    sizes = {test.stored_size(index) for index in range(len(test))}
    seen = {
        hashlib.sha256(source.stored(index)).digest()
        for source in training
        if sources.of_files(source)
        for index in range(len(source))
        if source.stored_size(index) in sizes
    }
    return sum(digest in seen for digest in digests)
