"""Compare finished runs: mean and spread over seeds, beside readers and a constant.

    python -m cxr_jax.report DIR DIR DIR [--split=test]      runs that differ in the seed
    python -m cxr_jax.report --pool DIR DIR ... --split=val  folds: their films are pooled
    python -m cxr_jax.report A=DIR A=DIR B=DIR B=DIR         kinds of run side by side, any task
    python -m cxr_jax.report --tune=val A=DIR B=DIR          each run at its best threshold there
    python -m cxr_jax.report --against=affinity.foreground --metrics=all_dice --figure=F.png DIR ...

Reads each run's rows-SPLIT.npz (written by cxr_jax.main). For severity it adds the second reader,
where the data set has one, and the constant predictor of the training mean, on the same films.
Intervals are 95% bootstrap intervals over patients; +- is the standard deviation over runs.
Kinds of run are compared with the first named, run by run in the order given (the same seeds); of
volumes also by Wilcoxon's signed-rank test over the patients, each with the mean of its runs.
--against draws a metric against a field of the config in which the runs differ.
"""

import argparse
import pathlib
from collections.abc import Sequence

import numpy as np
import scipy.stats
import tqdm

from cxr_jax.cli import Parser, run_command
from cxr_jax.errors import InputError
from cxr_jax.metrics.bootstrap import Metric, bootstrap
from cxr_jax.metrics.severity import severity_counts, severity_report
from cxr_jax.workdir import flatten, read_config

SEVERITY = ("mse", "mae", "cc", "r2", "hard_mse", "hard_mae", "mean_auc", "zone_accuracy")
# A start from another seed's run, or other labelled phantoms, are part of the seed.
MAY_DIFFER = ("seed", "data.fold", "data.first", "init_from")
SCORES = ("region_mae", "global_mae_18", "global_cc_18")

Rows = dict[str, np.ndarray]


def main() -> int:
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
    parser.add_argument("--figure", type=pathlib.Path, help="where --against draws")
    args = parser.parse_args()
    if bool(args.against) != bool(args.figure) or (args.against and not args.metrics):
        raise InputError("--against=FIELD, --metrics=NAME and --figure=FILE go together")
    if args.against:
        folders = [pathlib.Path(text) for text in args.workdirs]
        print(against(folders, args.split, args.against, args.metrics, args.figure, tune=args.tune))
        return 0
    named = [text.partition("=") for text in args.workdirs]
    if all(equals for _, equals, _ in named) and not args.pool:
        groups: dict[str, list[pathlib.Path]] = {}
        for name, _, folder in named:
            groups.setdefault(name, []).append(pathlib.Path(folder))
        metrics = tuple(filter(None, args.metrics.split(",")))
        print(compare(groups, args.split, metrics, tune=args.tune))
        return 0
    if args.tune:
        raise InputError("--tune: name the runs, as A=DIR")
    workdirs = [pathlib.Path(text) for text in args.workdirs]
    print(report(workdirs, args.split, pool=args.pool, resamples=args.resamples))
    return 0


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
      metrics: columns; (): all that the task reports, severity its table.
      tune: a split whose rows choose each run's threshold, a column then; '': as evaluated.

    Raises:
      InputError: runs of one name that differ in more than the seed, other films, an unknown
        metric, a threshold that would be chosen on the split that is reported.
    """
    from cxr_jax.tasks import make_task

    reports, films, lines, paired = {}, None, {}, {}
    for name, workdirs in groups.items():
        task = make_task(_same_config(workdirs)[0])
        rows, chosen = _tuned(task, workdirs, split, tune)
        for r, workdir in zip(rows, workdirs):
            films = r["id"] if films is None else films
            if not np.array_equal(films, r["id"]):
                raise InputError(f"{workdir} was scored on other films than the runs before it")
        units = [task.units(r) for r in rows]
        reports[name] = [task.report(u) for u in units]
        for numbers, threshold in zip(reports[name], chosen):
            numbers["threshold"] = threshold
        lines[name] = _mean_and_sd(reports[name])
        each = [task.compared(u) for u in units]
        paired[name] = {part: np.mean([e[part] for e in each], axis=0) for part in each[0]}
    first, *others = reports
    tests = {part: f"Wilcoxon p, {part}" for part in paired[first] if others}
    for name in others:
        for part in paired[name].keys() & tests.keys():
            lines[name][tests[part]] = _wilcoxon(paired[name][part], paired[first][part])
    for name in others:
        if len(reports[name]) == len(reports[first]):
            pairs = zip(reports[name], reports[first])
            apart = [{k: a[k] - b[k] for k in a.keys() & b.keys()} for a, b in pairs]
            lines[f"{name} minus {first}"] = _mean_and_sd(apart)
    known = list(reports[first][0])
    if unknown := [name for name in metrics if name not in known]:
        raise InputError(f"--metrics: {unknown[0]!r}; these runs report {', '.join(known)}")
    metrics = (*metrics, "threshold") if metrics and tune else metrics
    names = list(metrics or [n for n in (*SEVERITY, *SCORES) if n in known] or known)
    return _table(lines, [*names, *tests.values()])


def _tuned(
    task, workdirs: list[pathlib.Path], split: str, tune: str
) -> tuple[list[Rows], list[float]]:
    """The rows of each run, and the threshold that the split `tune` chose for them, if any."""
    rows = [read_rows(workdir, split) for workdir in workdirs]
    if not tune:
        return rows, []
    if tune == split:
        raise InputError(f"--tune={tune}: a threshold is not chosen on the films it is scored on")
    pairs = [task.tuned(r, read_rows(w, tune)) for r, w in zip(rows, workdirs)]
    return [r for r, _ in pairs], [threshold for _, threshold in pairs]


def _wilcoxon(a: np.ndarray, b: np.ndarray) -> str:
    """p of the two-sided signed-rank test of paired numbers, and how many pairs are not equal: it
    leaves out the others. 1 where all are equal."""
    if not len(a):
        return "-"
    unequal = int(np.sum(a != b))
    p = float(scipy.stats.wilcoxon(a, b).pvalue) if unequal else 1.0
    return f"{'< 0.001' if p < 0.001 else f'{p:.3f}'} ({unequal} of {len(a)} differ)"


def against(
    workdirs: list[pathlib.Path],
    split: str,
    field: str,
    metric: str,
    output: pathlib.Path,
    *,
    tune: str = "",
) -> str:
    """Draws `metric` against a field of the config, and gives the numbers as Markdown; `tune` as
    for `compare`.

    Raises:
      InputError: runs that differ in more than the field and the seed, a field that is not a
        number, an unknown metric.
    """
    from cxr_jax.figures import save, setting_chart
    from cxr_jax.tasks import make_task

    configs = _same_config(workdirs, field)
    values: dict[float, list[float]] = {}
    for workdir, config in zip(workdirs, configs):
        setting = flatten(config).get(field)
        if isinstance(setting, bool) or not isinstance(setting, int | float):
            raise InputError(f"--against={field}: in {workdir} it is {setting!r}, not a number")
        task = make_task(config)
        (rows,), _ = _tuned(task, [workdir], split, tune)
        numbers = task.report(task.units(rows))
        if metric not in numbers:
            raise InputError(f"--metrics: {metric!r}; these runs report {', '.join(numbers)}")
        values.setdefault(setting, []).append(numbers[metric])
    save(setting_chart(values, field, f"{split}/{metric}"), output)
    lines = {
        f"{field} = {s:g}": _mean_and_sd([{metric: v} for v in values[s]]) for s in sorted(values)
    }
    return f"{_table(lines, [metric])}\n{output}"


def report(workdirs: list[pathlib.Path], split: str, *, pool: bool, resamples: int) -> str:
    """The table as Markdown."""
    configs = _same_config(workdirs)
    if others := {config.task for config in configs} - {"severity"}:
        raise InputError(
            f"a run of task {min(others)!r}: this table is for severity; name the runs "
            f"(python -m cxr_jax.report A={workdirs[0]} ...) for one of any task"
        )
    rows = [read_rows(workdir, split) for workdir in workdirs]
    if pool:
        return _table(
            {"pooled folds": _severity(_joined(rows), resamples)}
            | _fold_rows(configs, rows, resamples)
        )
    for other in rows[1:]:
        if not np.array_equal(rows[0]["id"], other["id"]):
            raise InputError("the runs were scored on different films; for folds give --pool")
    each = [severity_report(r) for r in rows]
    lines = {f"{len(rows)} run{'s, mean +- sd' if len(rows) > 1 else ''}": _mean_and_sd(each)}
    mean = dict(rows[0])
    for name in ("probs", "score_pred"):
        if name in mean:
            mean[name] = np.mean([r[name] for r in rows], axis=0)
    lines["mean of the runs' predictions"] = _severity(mean, resamples)
    for name, reference in _reference_rows(configs[0], rows[0]).items():
        lines[name] = _severity(reference, resamples)
        lines[f"{name} minus the runs' mean, paired"] = _paired(reference, mean, resamples)
    return _table(lines)


def _same_config(workdirs: list[pathlib.Path], *free: str) -> list:
    """The configs of runs that are repetitions of one another but for the fields `free`;
    InputError where they are not."""
    configs = [read_config(workdir) for workdir in workdirs]
    for workdir, config in zip(workdirs, configs):
        if (name := _difference(configs[0], config, free)) is not None:
            raise InputError(
                f"{workdir} differs from {workdirs[0]} in config.{name}; runs of one kind may "
                f"differ in {', '.join((*MAY_DIFFER, *free))} only. Compare kinds as "
                f"A={workdirs[0]} B={workdir}"
            )
    return configs


def _difference(a, b, free: tuple[str, ...]) -> str | None:
    """The first field in which two configs differ and may not."""
    left, right = flatten(a), flatten(b)
    for name in sorted(left.keys() | right.keys()):
        if name not in (*MAY_DIFFER, *free) and left.get(name) != right.get(name):
            return name
    return None


def read_rows(workdir: pathlib.Path, split: str) -> Rows:
    """The rows of one evaluation; InputError where there is none."""
    path = workdir / f"rows-{split}.npz"
    if not path.is_file():
        raise InputError(
            f"{path} is missing; python -m cxr_jax.main --workdir={workdir} --mode=eval "
            f"--split={split} writes it"
        )
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _fold_rows(configs, rows: list[Rows], resamples: int) -> dict[str, dict[str, str]]:
    """Reference lines over pooled folds; each fold's constant is its own training mean."""
    parts = [_reference_rows(config, r) for config, r in zip(configs, rows)]
    return {
        name: _severity(_joined([part[name] for part in parts]), resamples)
        for name in parts[0]
        if all(name in part for part in parts)
    }


def _reference_rows(config, rows: Rows) -> dict[str, Rows]:
    """Rows of predictors that are no model: the second reader, the training mean."""
    from cxr_jax.data import sources

    found = {}
    keep = {name: rows[name] for name in ("labels", "scores", "valid", "group", "id")}
    if "scores_second" in rows:
        second = rows["scores_second"]
        found["second reader"] = keep | {
            "probs": (second > 0).astype(np.float32),
            "score_pred": second,
        }
    source = sources.open_source(config.data, "train")
    scores, valid = [], []
    for i in tqdm.tqdm(range(len(source)), "training films", unit="film", disable=None):
        record = source[i]
        scores.append(np.asarray(record["severity"], np.float64))
        valid.append(np.asarray(record.get("severity_valid", np.ones((3, 2))), bool))
    scores, valid = np.stack(scores), np.stack(valid)
    count = np.maximum(valid.sum(axis=0), 1)
    shape = rows["labels"].shape
    found["constant, training mean"] = keep | {
        "probs": np.broadcast_to(((scores > 0) * valid).sum(axis=0) / count, shape),
        "score_pred": np.broadcast_to((scores * valid).sum(axis=0) / count, shape),
    }
    return found


def _severity(rows: Rows, resamples: int) -> dict[str, str]:
    metrics = bootstrap(
        severity_report, rows, rows["group"], resamples=resamples, counts=severity_counts
    )
    return {name: _text(metric) for name, metric in metrics.items()}


def _paired(other: Rows, ours: Rows, resamples: int) -> dict[str, str]:
    """How much larger the errors of `other` are, on the same resampled patients."""

    def difference(rows: Rows) -> dict[str, float]:
        a = severity_report({name: rows[name] for name in ("probs", "labels", "valid")})
        b = severity_report(
            {"probs": rows["ours"], "labels": rows["labels"], "valid": rows["valid"]}
        )
        return {name: a[name] - b[name] for name in ("mse", "mae")}

    both = {name: other[name] for name in ("probs", "labels", "valid")} | {"ours": ours["probs"]}
    found = bootstrap(difference, both, other["group"], resamples=resamples)
    return {name: _text(metric) for name, metric in found.items()}


def _text(metric: Metric) -> str:
    if metric.value is None:
        return "-"
    interval = "" if metric.low is None else f" [{metric.low:.3f}, {metric.high:.3f}]"
    return f"{metric.value:.3f}{interval}"


def _mean_and_sd(reports: list[dict[str, float]]) -> dict[str, str]:
    texts = {}
    for name in reports[0]:
        values = np.array([r[name] for r in reports])
        spread = f" +- {values.std(ddof=1):.3f}" if len(values) > 1 else ""
        texts[name] = "-" if np.isnan(values).any() else f"{values.mean():.3f}{spread}"
    return texts


def _joined(rows: list[Rows]) -> Rows:
    shared = set.intersection(*(set(r) for r in rows))
    joined = {name: np.concatenate([r[name] for r in rows]) for name in sorted(shared)}
    if len(set(joined["id"])) != len(joined["id"]):
        raise InputError("a film is in two of the runs; --pool is for folds, which share none")
    return joined


def _table(lines: dict[str, dict[str, str]], names: Sequence[str] = ()) -> str:
    names = names or [n for n in (*SEVERITY, *SCORES) if any(n in li for li in lines.values())]
    text = [f"| | {' | '.join(names)} |", f"|---{'|---' * len(names)}|"]
    for title, line in lines.items():
        text.append(f"| {title} | {' | '.join(line.get(name, '-') for name in names)} |")
    return "\n".join(text)


if __name__ == "__main__":
    run_command(main)
