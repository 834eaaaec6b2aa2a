"""Whether finished runs may stand in one table: their settings, their data, their starts.

Runs of one kind are repetitions: they may differ in the seed and in what goes with it. Where they
began with other runs (`init_from`), these must be repetitions of one another too.
"""

import pathlib
from collections.abc import Mapping, Sequence

import ml_collections

from cxr_jax import results, small_files, workdir
from cxr_jax.errors import InputError

# Other labelled phantoms and other folds are part of the seed.
MAY_DIFFER = ("seed", "data.first")
FOLDS = ("data.fold", "second.fold", "data.test_fold", "second.test_fold")
MAY_DIFFER += FOLDS
_START = "init_from"


def same_config(workdirs: Sequence[pathlib.Path], *free: str) -> list[ml_collections.ConfigDict]:
    """The configs of runs that are repetitions of one another but for the fields `free`.

    Raises:
      InputError: they are not: names the field, the training films or the start in which they
        differ.
    """
    configs = [workdir.read_config(folder) for folder in workdirs]
    for folder, config in zip(workdirs, configs):
        if (name := _difference(configs[0], config, free)) is not None:
            raise InputError(
                f"{folder} differs from {workdirs[0]} in config.{name}; runs of one kind may "
                f"differ in {', '.join((*MAY_DIFFER, *free))} only, and in starts that do. Compare "
                f"kinds as A={workdirs[0]} B={folder}"
            )
        _check_trained_on((workdirs[0], folder), (configs[0], config), free)
        _check_starts(folder, configs[0], config)
    return configs


def check_scored(workdirs: Sequence[pathlib.Path], split: str, *, pooled: bool = False) -> None:
    """Refuses runs that were scored on other data, or another version of it.

    Args:
      pooled: the runs are folds, so that the same set is enough.

    Raises:
      InputError: names the first two that differ, with both.
    """
    scored = {folder: found for folder in workdirs if (found := _scored(folder, split))}
    for folder, found in scored.items():
        first = next(iter(scored))
        end = 1 if pooled else 2
        if found[:end] != scored[first][:end]:
            there, here = (" ".join(one[:end]) for one in (scored[first], found))
            raise InputError(f"{first} was scored on {there}, and {folder} on {here}")


def notes(groups: Mapping[str, Sequence[pathlib.Path]]) -> list[str]:
    """Lines on what a reader of the table must know: training films that differ between kinds, and
    starts that differ between the runs of a kind."""
    told = []
    trained = {name: _trained_on(folders[0]) for name, folders in groups.items()}
    if len({films for films in trained.values() if films}) > 1:
        shown = "; ".join(f"{name}: {films or 'not recorded'}" for name, films in trained.items())
        told.append(f"Not trained on the same films. {shown}.")
    for name, folders in groups.items():
        starts = [workdir.read_config(folder).init_from for folder in folders]
        if len(set(starts)) > 1:
            checked = "repetitions of one another"
            if not all(_is_run(start) for start in starts):
                checked = "NOT COMPARED, since not all are runs that are still there"
            of = f" of {name}" if name else ""
            told.append(f"The runs{of} began with {', '.join(starts)}: {checked}.")
    return told


def _difference(a, b, free: Sequence[str] = ()) -> str | None:
    """The first field in which two configs differ and may not."""
    left, right = workdir.flatten(a), workdir.flatten(b)
    for name in sorted(left.keys() | right.keys()):
        if name not in (*MAY_DIFFER, _START, *free) and left.get(name) != right.get(name):
            return name
    return None


def _check_trained_on(
    folders: tuple[pathlib.Path, pathlib.Path],
    configs: tuple[ml_collections.ConfigDict, ml_collections.ConfigDict],
    free: Sequence[str],
) -> None:
    """Refuses two runs of one config whose training films are not of one version of the data."""
    fields = [workdir.flatten(config) for config in configs]
    chosen = [n for n in (*MAY_DIFFER, *free) if n.startswith(("data.", "second."))]
    if any(fields[0].get(name) != fields[1].get(name) for name in chosen):
        return  # other films on purpose
    there, here = map(_trained_on, folders)
    if there and here and there != here:
        raise InputError(f"{folders[0]} was trained on {there}, and {folders[1]} on {here}")


def _check_starts(folder: pathlib.Path, a, b) -> None:
    """Refuses two runs whose starts are not repetitions of one another, where that can be told."""
    if a[_START] == b[_START]:
        return
    if not (a[_START] and b[_START]):
        raise InputError(
            f"{folder} has config.init_from={b[_START]!r}, where the runs before it have "
            f"{a[_START]!r}; runs with a start and without one are two kinds"
        )
    if _is_run(a[_START]) and _is_run(b[_START]):
        try:
            same_config([pathlib.Path(a[_START]), pathlib.Path(b[_START])])
        except InputError as error:
            raise InputError(f"{folder} began otherwise (config.init_from): {error}") from error


def _is_run(start: str) -> bool:
    return bool(start) and small_files.is_file(pathlib.Path(start) / "config.json")


def _trained_on(folder: pathlib.Path) -> str:
    """'brixia_cohen 1.0.0+..., 107 films'; '' where it was not written."""
    data = workdir.trained_on(folder)
    return f"{data['name']} {data['version']}, {data['train']} records" if data else ""


def _scored(folder: pathlib.Path, split: str) -> tuple[str, str] | None:
    """Name and version of the data of an evaluation; None where it is not recorded."""
    path = folder / results.RESULTS
    if not small_files.is_file(path):
        return None
    fields = small_files.read_fields(path, "move it away and evaluate again")
    data = fields.fields("evaluations", {}).fields(split, {}).fields("data", {})
    return (data.get("name", str, ""), data.get("version", str, "")) if data.values else None
