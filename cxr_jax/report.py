"""Compare finished runs: mean and spread over seeds, beside readers and a constant.

    python -m cxr_jax.report DIR DIR DIR [--split=test]      runs that differ in the seed
    python -m cxr_jax.report --pool DIR DIR ... --split=val  folds: their films are pooled
    python -m cxr_jax.report A=DIR A=DIR B=DIR B=DIR         kinds of run side by side, any task
    python -m cxr_jax.report --tune=val A=DIR B=DIR          each run at its best threshold there
    python -m cxr_jax.report --against=affinity.foreground --metrics=all_dice --figure=F.png DIR ...
    python -m cxr_jax.report --html=OUT.html [NAME=]DIR ...  one page: numbers, curves, cases

Reads each run's rows-SPLIT.npz (written by cxr_jax.main). Where the task knows predictors that are
no model (a second reader, the constant of the training mean), they stand beside, on the same films.
Intervals are 95% bootstrap intervals over patients; +- is the standard deviation over runs.
Kinds of run are compared with the first named, run by run in the order given (the same seeds); of
volumes also by Wilcoxon's signed-rank test over the patients, each with the mean of its runs.
--against draws a metric against a field of the config in which the runs differ.
"""

import argparse
import dataclasses
import difflib
import pathlib

import ml_collections
import numpy as np
import scipy.stats

from cxr_jax import comparable, results, small_files, tables
from cxr_jax.cli import Parser, run_command
from cxr_jax.data import sources
from cxr_jax.errors import InputError
from cxr_jax.metrics.bootstrap import Value, bootstrap, numbers
from cxr_jax.tables import Line
from cxr_jax.tasks import make_task
from cxr_jax.tasks.base import Evaluation
from cxr_jax.workdir import flatten

Rows = dict[str, np.ndarray]


def main() -> int:
    args = _parser().parse_args()
    if bool(args.against) != bool(args.figure) or (args.against and not args.metrics):
        raise InputError("--against=FIELD, --metrics=NAME and --figure=FILE go together")
    named = [text.partition("=") for text in args.workdirs]
    if args.html:
        text = page(_groups(args.workdirs), args.split, args.html)
    elif args.against:
        folders = [pathlib.Path(text) for text in args.workdirs]
        text = against(
            folders,
            args.split,
            field=args.against,
            metric=args.metrics,
            output=args.figure,
            tune=args.tune,
        )
    elif all(equals for _, equals, _ in named) and not args.pool:
        metrics = tuple(filter(None, args.metrics.split(",")))
        text = compare(_groups(args.workdirs), args.split, metrics, tune=args.tune)
    elif args.pool and any(equals for _, equals, _ in named):
        raise InputError("--pool takes the folds of one kind of run, as DIR without a name")
    elif args.tune or args.metrics:
        option = "--tune" if args.tune else "--metrics"
        raise InputError(f"{option}: name the runs, as A=DIR")
    else:
        workdirs = [pathlib.Path(text) for text in args.workdirs]
        text = report(workdirs, args.split, pool=args.pool, resamples=args.resamples)
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m cxr_jax.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdirs", nargs="+", metavar="[NAME=]DIR")
    parser.add_argument("--split", default="test")
    parser.add_argument("--metrics", default="", help="columns of named runs, e.g. mse,mean_auc")
    parser.add_argument("--pool", action="store_true", help="the runs are folds of one data set")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--tune", default="", help="a split that chooses each run's threshold")
    parser.add_argument("--against", default="", help="a field of the config, e.g. affinity.radius")
    parser.add_argument("--html", type=pathlib.Path, help="writes a page there")
    parser.add_argument("--figure", type=pathlib.Path, help="where --against draws")
    return parser


def _groups(workdirs: list[str]) -> dict[str, list[pathlib.Path]]:
    """Name -> folders, of runs given as [NAME=]DIR; '' is the name of those without one."""
    groups: dict[str, list[pathlib.Path]] = {}
    for text in workdirs:
        name, equals, folder = text.partition("=")
        name, folder = (name, folder) if equals else ("", text)
        groups.setdefault(name, []).append(pathlib.Path(folder))
    return groups


def page(groups: dict[str, list[pathlib.Path]], split: str, output: pathlib.Path) -> str:
    """Writes the page of `report_page`; groups: name -> work directories."""
    from cxr_jax import report_page

    read = {
        name: [(folder, read_rows(folder, split)) for folder in folders]
        for name, folders in groups.items()
    }
    return report_page.write(read, split, output)


# Kinds of run, side by side.


@dataclasses.dataclass(frozen=True)
class _Kind:
    """The runs of one name: their reports, their films, what is compared in pairs, averaged over
    the runs, and the names of what was chosen on another split."""

    reports: list[dict[str, float]]
    films: list[np.ndarray]
    paired: dict[str, np.ndarray]
    columns: tuple[str, ...]
    chosen: tuple[str, ...]


def compare(
    groups: dict[str, list[pathlib.Path]],
    split: str,
    metrics: tuple[str, ...] = (),
    *,
    tune: str = "",
) -> str:
    """Kinds of run side by side, as Markdown: mean and spread over each kind's runs, and the
    differences to the first kind, run by run.

    Args:
      groups: name -> work directories, whose configs differ in the seed only.
      metrics: columns; (): those of the task's table.
      tune: a split whose rows choose each run's threshold, a column then; '': as evaluated.

    Below the table: training films that differ between the kinds, starts between a kind's runs.

    Raises:
      InputError: runs of one name that differ in more than the seed, other films, an unknown
        metric, a threshold that would be chosen on the split that is reported.
    """
    kinds = {name: _kind(workdirs, split, tune) for name, workdirs in groups.items()}
    comparable.check_scored([folder for folders in groups.values() for folder in folders], split)
    _check_films(groups, kinds)
    first = next(iter(kinds.values()))
    lines = {name: tables.mean_and_sd(kind.reports) for name, kind in kinds.items()}
    tests = _add_tests(lines, kinds)
    lines |= _differences(kinds)
    known = list(first.reports[0])
    if unknown := [name for name in metrics if name not in known]:
        raise InputError(f"--metrics: {unknown[0]!r}; these runs report {', '.join(known)}")
    metrics = (*metrics, *first.chosen) if metrics else metrics
    names = list(metrics or [name for name in first.columns if name in known] or known)
    return "\n\n".join([tables.markdown(lines, [*names, *tests]), *comparable.notes(groups)])


def _kind(workdirs: list[pathlib.Path], split: str, tune: str) -> _Kind:
    evaluation = make_task(comparable.same_config(workdirs)[0]).evaluation
    rows, chosen = _fitted(evaluation, workdirs, split=split, tune=tune)
    units = [evaluation.units(r) for r in rows]
    reports = [numbers(evaluation.report(u)) for u in units]
    for values, fitted in zip(reports, chosen):
        values |= fitted
    each = [evaluation.paired_values(u) for u in units]
    return _Kind(
        reports=reports,
        films=[r["id"] for r in rows],
        paired={part: np.mean([e[part] for e in each], axis=0) for part in each[0]},
        columns=evaluation.columns,
        chosen=tuple(chosen[0]) if chosen else (),
    )


def _check_films(groups: dict[str, list[pathlib.Path]], kinds: dict[str, _Kind]) -> None:
    expected = next(iter(kinds.values())).films[0]
    for name, kind in kinds.items():
        for workdir, films in zip(groups[name], kind.films):
            if not np.array_equal(films, expected):
                raise InputError(f"{workdir} was scored on other films than the runs before it")


def _add_tests(lines: dict[str, Line], kinds: dict[str, _Kind]) -> list[str]:
    """Adds to the lines of the later kinds how likely their difference to the first is by chance;
    the columns' names."""
    first, *others = kinds
    tests = {part: f"Wilcoxon p, {part}" for part in kinds[first].paired if others}
    for name in others:
        for part in kinds[name].paired.keys() & tests.keys():
            pair = kinds[name].paired[part], kinds[first].paired[part]
            lines[name][tests[part]] = _wilcoxon(*pair)
    return list(tests.values())


def _differences(kinds: dict[str, _Kind]) -> dict[str, Line]:
    """Each later kind minus the first, run by run, where both have as many runs."""
    first, *others = kinds
    lines = {}
    for name in others:
        if len(kinds[name].reports) == len(kinds[first].reports):
            pairs = zip(kinds[name].reports, kinds[first].reports)
            chosen = (*kinds[name].chosen, *kinds[first].chosen)  # a setting, not a result
            apart = [{k: a[k] - b[k] for k in a if k in b and k not in chosen} for a, b in pairs]
            lines[f"{name} minus {first}"] = tables.mean_and_sd(apart)
    return lines


def _fitted(
    evaluation: Evaluation, workdirs: list[pathlib.Path], *, split: str, tune: str
) -> tuple[list[Rows], list[dict[str, float]]]:
    """The rows of each run, and what the split `tune` chose for them, if any."""
    rows = [read_rows(workdir, split) for workdir in workdirs]
    if not tune:
        return rows, []
    if tune == split:
        raise InputError(f"--tune={tune}: a threshold is not chosen on the films it is scored on")
    chosen = [evaluation.fit(read_rows(workdir, tune)) for workdir in workdirs]
    return [evaluation.with_fit(r, fitted) for r, fitted in zip(rows, chosen)], chosen


def _wilcoxon(a: np.ndarray, b: np.ndarray) -> str:
    """p of the two-sided signed-rank test of paired numbers, and how many pairs are not equal: it
    leaves out the others. 1 where all are equal."""
    if not len(a):
        return "-"
    unequal = int(np.sum(a != b))
    p = float(scipy.stats.wilcoxon(a, b).pvalue) if unequal else 1.0
    return f"{'< 0.001' if p < 0.001 else f'{p:.3f}'} ({unequal} of {len(a)} differ)"


# A metric against a setting.


def against(
    workdirs: list[pathlib.Path],
    split: str,
    *,
    field: str,
    metric: str,
    output: pathlib.Path,
    tune: str = "",
) -> str:
    """Draws `metric` against a field of the config, and gives the numbers as Markdown; `tune` as
    for `compare`.

    Raises:
      InputError: runs that differ in more than the field and the seed, a field that is not a
        number, an unknown metric.
    """
    from cxr_jax.figures import save, setting_chart

    configs = comparable.same_config(workdirs, field)
    values: dict[float, list[float]] = {}
    for workdir, config in zip(workdirs, configs):
        fields = flatten(config)
        if field not in fields:
            near = difflib.get_close_matches(field, fields, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"--against={field}: {workdir} has no such field{meant}")
        setting = fields[field]
        if isinstance(setting, bool) or not isinstance(setting, int | float):
            raise InputError(f"--against={field}: in {workdir} it is {setting!r}, not a number")
        evaluation = make_task(config).evaluation
        (rows,), _ = _fitted(evaluation, [workdir], split=split, tune=tune)
        found = numbers(evaluation.report(evaluation.units(rows)))
        if metric not in found:
            raise InputError(f"--metrics: {metric!r}; these runs report {', '.join(found)}")
        values.setdefault(setting, []).append(found[metric])
    save(setting_chart(values, field, f"{split}/{metric}"), output)
    lines = {
        f"{field} = {setting:g}": tables.mean_and_sd([{metric: v} for v in values[setting]])
        for setting in sorted(values)
    }
    return f"{tables.markdown(lines, [metric])}\n{output}"


# Runs of one kind, beside predictors that are no model.


def report(workdirs: list[pathlib.Path], split: str, *, pool: bool, resamples: int) -> str:
    """The table as Markdown: mean and spread of the runs, their mean prediction, the references.

    Args:
      workdirs: of runs that differ in the seed, or in the fold.
      split: that was evaluated.
      pool: the runs are folds; their films are one set.
      resamples: of the intervals.

    Raises:
      InputError: runs of several kinds or on other films; a task whose predictions have no mean.
    """
    configs = comparable.same_config(workdirs)
    task = make_task(configs[0])
    if not task.evaluation.mean_over_runs:
        raise InputError(
            f"a run of task {task.name!r}: its predictions have no mean over runs"
            f"{', and those of folds cannot be pooled' if pool else ''}; name the runs (python -m "
            f"cxr_jax.report A={workdirs[0]} ...) for a table of any task"
        )
    rows = [read_rows(workdir, split) for workdir in workdirs]
    comparable.check_scored(workdirs, split, pooled=pool)
    table = _Intervals(task.evaluation, resamples)
    make_lines = _pooled_lines if pool else _seed_lines
    lines = make_lines(table, configs, rows)
    names = [n for n in task.evaluation.columns if any(n in line for line in lines.values())]
    return "\n\n".join([tables.markdown(lines, names), *comparable.notes({"": workdirs})])


@dataclasses.dataclass(frozen=True)
class _Intervals:
    """Lines of one set of rows, with 95% intervals."""

    evaluation: Evaluation
    resamples: int

    def line(self, rows: Rows) -> Line:
        """Every metric of the rows."""
        units = self.evaluation.units(rows)
        return self._texts(self.evaluation.report_of(units), units)

    def paired(self, other: Rows, ours: Rows) -> Line:
        """How much larger the errors of `other` are, on the same resampled patients."""

        reports = {"a": self.evaluation.report_of(other), "b": self.evaluation.report_of(ours)}

        def difference(both: Rows) -> dict[str, Value]:
            a, b = (
                report({k[1:]: v for k, v in both.items() if k.startswith(side)})
                for side, report in reports.items()
            )
            return {
                name: Value(a[name].value - b[name].value, a[name].count)
                for name in self.evaluation.compared_with_references
            }

        shared = [name for name in other if name in ours and name not in ("id", "group")]
        both = {f"a{name}": other[name] for name in shared}
        both |= {f"b{name}": ours[name] for name in shared}
        return self._texts(difference, both | {"group": other["group"]})

    def _texts(self, numbers_of, units: Rows) -> Line:
        found = bootstrap(numbers_of, units, units["group"], resamples=self.resamples)
        return {name: tables.with_interval(metric) for name, metric in found.items()}


def _seed_lines(table: _Intervals, configs: list, rows: list[Rows]) -> dict[str, Line]:
    for other in rows[1:]:
        if not np.array_equal(rows[0]["id"], other["id"]):
            raise InputError("the runs were scored on different films; for folds give --pool")
    evaluation = table.evaluation
    each = [numbers(evaluation.report(evaluation.units(r))) for r in rows]
    lines = {f"{len(rows)} run{'s, mean +- sd' if len(rows) > 1 else ''}": tables.mean_and_sd(each)}
    averaged = [name for name in evaluation.mean_over_runs if name in rows[0]]
    kept = {k: v for k, v in rows[0].items() if len(rows) == 1 or k not in evaluation.fitted_rows}
    mean = kept | {name: np.mean([r[name] for r in rows], axis=0) for name in averaged}
    lines["mean of the runs' predictions"] = table.line(mean)
    for name, reference in _references(evaluation, configs[0], rows[0]).items():
        lines[name] = table.line(reference)
        lines[f"{name} minus the runs' mean, paired"] = table.paired(reference, mean)
    return lines


def _pooled_lines(table: _Intervals, configs: list, rows: list[Rows]) -> dict[str, Line]:
    """The folds' films as one set; each fold's constant is its own training mean."""
    parts = [_references(table.evaluation, config, r) for config, r in zip(configs, rows)]
    lines = {"pooled folds": table.line(joined(rows))}
    for name in parts[0]:
        if all(name in part for part in parts):
            lines[name] = table.line(joined([part[name] for part in parts]))
    return lines


def _references(
    evaluation: Evaluation, config: ml_collections.ConfigDict, rows: Rows
) -> dict[str, Rows]:
    return evaluation.references(rows, sources.open_source(config.data, "train"))


def read_rows(workdir: pathlib.Path, split: str) -> Rows:
    """The rows of one evaluation; InputError where there are none, what is there is none, or rows,
    results, config and checkpoints do not fit each other."""
    path = results.rows_path(workdir, split)
    command = f"python -m cxr_jax.main --workdir={workdir} --mode=eval --split={split} writes it"
    if not small_files.is_file(path):
        raise InputError(f"{path} is missing; {command}")
    results.check(workdir, split)
    rows = small_files.read_npz(path, command)
    if absent := [name for name in ("id", "group") if name not in rows]:
        raise InputError(f"{path} has no {absent[0]} of its rows; {command}")
    for name, values in rows.items():
        kinds = "U" if name in ("id", "group") else "biuf"
        if values.ndim < 1 or len(values) != len(rows["id"]) or values.dtype.kind not in kinds:
            raise InputError(
                f"{path}: {name} is {values.dtype} of shape {values.shape}, beside "
                f"{len(rows['id'])} rows; {command}"
            )
    return rows


def joined(rows: list[Rows]) -> Rows:
    """The rows of folds as one set; InputError where a film is in two of them."""
    shared = set.intersection(*(set(r) for r in rows))
    joined = {name: np.concatenate([r[name] for r in rows]) for name in sorted(shared)}
    if len(set(joined["id"])) != len(joined["id"]):
        raise InputError("a film is in two of the runs; --pool is for folds, which share none")
    return joined


if __name__ == "__main__":
    run_command(main)
