"""One table of the runs of a sweep: Markdown to read, CSV for machines."""

import collections
import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cxr_jax import manifests, results, safe_write, small_files, tables, writers
from cxr_jax import workdir as workdirs
from cxr_jax.checkpoints import FOLDER, complete_steps
from cxr_jax.early_stopping import EarlyStopping
from cxr_jax.errors import InputError, tell_once
from cxr_jax.sweep_rows import Run

NOTES = "sweep.json"  # in a run's folder: how long its processes took, what it began with
_NUMBER = (float, type(None))


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a run came to.

    Attributes:
      metrics: name, without the split -> value, low, high; None where undefined.
      code_version: of the evaluation.
      seconds: of its processes, training and evaluation; None if it was not run by a sweep.
    """

    run: Run
    metrics: dict[str, tuple[float | None, float | None, float | None]]
    code_version: str
    seconds: float | None


def finished(run: Run, split: str) -> Finished | None:
    """The results of a run; None where it is not trained to its end, not evaluated as its config
    says, or the evaluation's parts do not fit each other: the run then goes on from there.

    Raises:
      InputError: its folder holds a run of another config.
    """
    workdirs.check_config(run.config, run.folder, longer=True)
    path, rows = run.folder / results.RESULTS, results.rows_path(run.folder, split)
    newest = (complete_steps(run.folder) or [0])[-1]
    stopping = EarlyStopping.read(run.config, run.folder, until=newest)
    if not (stopping.complete(newest) and small_files.is_file(path) and small_files.is_file(rows)):
        return None
    try:
        results.check(run.folder, split)
        found = small_files.read_fields(path, "it is evaluated again")
        evaluation = found.fields("evaluations").fields(split)
        expected = sorted(run.config.eval_steps) or [stopping.best or newest]
        if evaluation.get("changed", dict, {}) or sorted(evaluation.get("steps", list)) != expected:
            return None
        return Finished(
            run=run,
            metrics=_metrics(found.fields("metrics"), f"{split}/"),
            code_version=evaluation.get("code_version", str),
            seconds=_seconds(run.folder),
        )
    except InputError as error:
        tell_once(f"{run.label} is evaluated again: {error}")
        return None


def _metrics(fields: small_files.Fields, prefix: str) -> dict[str, Any]:
    own = {name: fields.fields(name) for name in fields.values if name.startswith(prefix)}
    return {
        name.removeprefix(prefix): tuple(m.get(k, _NUMBER) for k in ("value", "low", "high"))
        for name, m in own.items()
    }


def _seconds(folder: pathlib.Path) -> float | None:
    return _notes(folder).get("seconds", (float, type(None)), None)


def add_seconds(folder: pathlib.Path, seconds: float) -> None:
    """Adds the time of one more process to a run's.

    Raises:
      InputError: the file of the earlier ones is broken.
    """
    total = (_seconds(folder) or 0) + seconds
    writers.write_json(folder / NOTES, _notes(folder).values | {"seconds": round(total, 1)})


def record_starts(run: Run) -> None:
    """Keeps which checkpoints of the runs that it needs a run begins with, if it begins now.

    Raises:
      InputError: the file of earlier processes is broken.
    """
    if run.starts and not complete_steps(run.folder):
        run.folder.mkdir(parents=True, exist_ok=True)
        starts = {name: _trained(folder) for name, folder in run.starts.items()}
        writers.write_json(run.folder / NOTES, _notes(run.folder).values | {"starts": starts})


def outdated(run: Run) -> str:
    """Why a run's checkpoints are of no use: it began with a run that has been trained anew since;
    '' where that is not so, or was not recorded.

    Raises:
      InputError: the file of earlier processes is broken.
    """
    if not complete_steps(run.folder):
        return ""
    began = _notes(run.folder).get("starts", dict, {})
    for name, folder in run.starts.items():
        if name in began and began[name] != _trained(folder):
            return (
                f"it began with {name!r} as that was before it was trained anew; remove "
                f"{run.folder}, to train it again"
            )
    return ""


def _trained(folder: pathlib.Path) -> str | None:
    """What the last checkpoint of a run holds; None without one."""
    steps = complete_steps(folder)[-1:]
    return manifests.digest(folder / FOLDER / str(steps[0])) if steps else None


def _notes(folder: pathlib.Path) -> small_files.Fields:
    """What earlier processes left of a run."""
    path = folder / NOTES
    there = small_files.is_file(path)
    return small_files.read_fields(path, "remove it") if there else small_files.Fields(path, {}, "")


# Files.


def write(
    output: pathlib.Path,
    runs: Sequence[Run],
    done: Iterable[Finished],
    metrics: Sequence[str],
    *,
    beside: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
) -> str:
    """Writes table.md and table.csv; gives the Markdown.

    Args:
      output: the sweep's folder.
      runs: all of them, finished or not.
      done: those that are.
      metrics: the columns; () are those that the tasks name, or all.
      beside: name of what is no model -> its metrics, on the films of each seed.
    """
    done, beside = list(done), beside or {}
    names = _columns(runs, done, metrics)
    text = markdown(runs, done, names, beside=beside)
    safe_write.write_text(output / "table.md", text)
    safe_write.write_text(output / "table.csv", _csv(done, names, beside))
    return text


def _columns(runs: Sequence[Run], done: Sequence[Finished], metrics: Sequence[str]) -> list[str]:
    if metrics:
        return list(metrics)
    reported = list(dict.fromkeys(name for one in done for name in one.metrics))
    named = {f.run.row.name: f.run.columns or tuple(f.metrics) for f in done}
    wanted = [name for run in runs for name in named.get(run.row.name, ())]
    return [name for name in dict.fromkeys(wanted) if name in reported]


def markdown(
    runs: Sequence[Run],
    done: Sequence[Finished],
    names: Sequence[str],
    *,
    beside: Mapping[str, Sequence[Mapping[str, float]]],
) -> str:
    """A line a row: mean +- standard deviation over its seeds, '-' where one is null; how many
    seeds, steps of the training, mean seconds; then those `beside`. Below, what a reader must
    know."""
    by_row: dict[str, list[Finished]] = {run.row.name: [] for run in runs}
    for one in done:
        by_row[one.run.row.name].append(one)
    planned = collections.Counter(run.row.name for run in runs)
    steps = {run.row.name: run.config.total_steps for run in runs}
    lines = {}
    for row, found in by_row.items():
        reports = [{name: _value(one, name) for name in names} for one in found]
        lines[row] = tables.mean_and_sd(reports) if found else {}
        every = len(found) == planned[row]
        lines[row]["seeds"] = str(len(found)) if every else f"{len(found)} of {planned[row]}"
        lines[row]["steps"] = str(steps[row])
        seconds = [one.seconds for one in found if one.seconds is not None]
        lines[row]["seconds"] = f"{np.mean(seconds):.0f}" if seconds else "-"
    for reference, found in beside.items():
        reports = [{name: values.get(name, float("nan")) for name in names} for values in found]
        lines[reference] = tables.mean_and_sd(reports)
    table = tables.markdown(lines, [*names, "seeds", "steps", "seconds"])
    return "\n\n".join([table, *_foot(runs, done, names)]) + "\n"


def _value(one: Finished, name: str) -> float:
    value = one.metrics.get(name, (None,))[0]
    return float("nan") if value is None else value


def _foot(runs: Sequence[Run], done: Sequence[Finished], names: Sequence[str]) -> list[str]:
    notes = ["Mean +- standard deviation over the seeds."]
    steps: dict[str, set[int]] = {}
    for run in runs:
        steps.setdefault(run.config.task, set()).add(run.config.total_steps)
    for task, found in steps.items():
        if len(found) > 1:
            shown = ", ".join(map(str, sorted(found)))
            notes.append(f"Not at equal steps: rows of {task} are trained for {shown} steps.")
    absent = [name for name in names if not any(name in one.metrics for one in done)]
    if absent and done:
        notes.append(f"No run reports {', '.join(absent)}.")
    versions = sorted({one.code_version for one in done})
    if len(versions) > 1:
        notes.append(f"Evaluated by several versions of the code: {', '.join(versions)}.")
    return notes


def _csv(
    done: Sequence[Finished],
    names: Sequence[str],
    beside: Mapping[str, Sequence[Mapping[str, float]]],
) -> str:
    """A line a run, and of what is beside them, of whose films; empty where undefined."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    columns = [f"{name}{part}" for name in names for part in ("", "_low", "_high")]
    table.writerow(["name", "seed", *columns, "wall_s", "steps", "commit"])
    for one in done:
        numbers = [x for name in names for x in one.metrics.get(name, (None,) * 3)]
        steps = one.run.config.total_steps
        table.writerow(
            [one.run.row.name, one.run.seed, *numbers, one.seconds, steps, one.code_version]
        )
    for reference, found in beside.items():
        for values in found:
            numbers = [x for name in names for x in (_known(values.get(name)), None, None)]
            table.writerow([reference, "", *numbers, "", "", ""])
    return text.getvalue()


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
