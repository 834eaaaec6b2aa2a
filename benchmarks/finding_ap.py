"""Average precision of one finding's boxes, of the folds of a sweep as one set of films.

    python benchmarks/finding_ap.py DIR/ROW [DIR/ROW ...] [--finding=pneumonia] [--output=x.json]

A mean over findings says little where one of them has sixty boxes and the others one each. Of every
row of a sweep whose seeds are folds: AP of the finding at an IoU of 0.1, 0.3 and 0.5, and the
localisation accuracy at these, with 95% bootstrap intervals over patients; the same of the
references of the first row's task, which need no network; and what the first row has more than each
other one, on the same films. The folds' scores are of different models and are put in one order as
they are.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import ml_collections
import numpy as np

from benchmarks.common import write_result
from cxr_jax import report, workdir
from cxr_jax.cli import run_command
from cxr_jax.data import sources
from cxr_jax.errors import InputError
from cxr_jax.metrics import detection
from cxr_jax.metrics.bootstrap import Rows, Value, bootstrap
from cxr_jax.tasks import make_task
from cxr_jax.tasks.detection import DetectionEvaluation

PER_FINDING = ("scores", "hits", "coco_hits", "targets", "known", "called", "located")
SHOWN = [n for n in DetectionEvaluation.columns if n != "mean_auc"]


def folds_of(row: pathlib.Path, split: str) -> list[tuple[Rows, ml_collections.ConfigDict]]:
    """Of each fold of a row what was evaluated, and its config."""
    runs = sorted(row.glob("seed-*"))
    if not runs:
        raise InputError(f"{row}: no folder seed-* of a sweep is in it")
    return [(report.read_rows(run, split), workdir.read_config(run)) for run in runs]


def references(folds: list[tuple[Rows, ml_collections.ConfigDict]]) -> dict[str, Rows]:
    """The task's references on the films of all folds, each fold's of its own training films."""
    parts = []
    for rows, config in folds:
        training = sources.open_source(config.data, "train")
        parts.append(make_task(config).evaluation.references(rows, training))
    return {name: report.joined([part[name] for part in parts]) for name in parts[0]}


def one_finding(rows: Rows, column: int) -> Rows:
    """The rows of one finding, [N, 1, ...] each, and whose they are."""
    names = {"id", "group"}
    return {n: rows[n] if n in names else rows[n][:, [column]] for n in (*names, *PER_FINDING)}


def precision(rows: Rows) -> dict[str, Value]:
    """The report of one finding: its means over findings are those of this one."""
    told = detection.detection_report(rows, ("",))
    return {name: told[name] for name in SHOWN}


def ahead(rows: Rows) -> dict[str, Value]:
    """mAP of the first of two methods less that of the second, which stand side by side as two
    findings of the same films would."""
    ap = detection.average_precision(rows["scores"], rows["hits"], rows["targets"])
    boxes = int(np.sum(rows["targets"][:, 0]))
    return {"map": Value(float(np.mean(ap[0]) - np.mean(ap[1])), boxes)}


def beside(first: Rows, second: Rows) -> Rows:
    """Two methods' rows of one finding, [N, 2, ...]."""
    if not np.array_equal(first["id"], second["id"]):
        raise InputError("two of these rows were evaluated on other films: they cannot be compared")
    names = ("scores", "hits", "targets")
    both = {name: np.concatenate([first[name], second[name]], axis=1) for name in names}
    return both | {"group": first["group"]}


def _interval(report: Callable[[Rows], dict[str, Value]], rows: Rows) -> dict[str, dict]:
    found = bootstrap(report, rows, rows["group"])
    return {name: dataclasses.asdict(metric) for name, metric in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="+", type=pathlib.Path, metavar="DIR/ROW")
    parser.add_argument("--finding", default="pneumonia")
    parser.add_argument("--split", default="test")
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    result: dict[str, dict] = {}
    first: Rows = {}
    for row in args.rows:
        folds = folds_of(row, args.split)
        findings = make_task(folds[0][1]).evaluation.classes
        if args.finding not in findings:
            raise InputError(f"--finding={args.finding}: {row} has {', '.join(findings)}")
        column = findings.index(args.finding)
        rows = one_finding(report.joined([rows for rows, _ in folds]), column)
        result[row.name] = _interval(precision, rows)
        if first:
            result[row.name]["map_the_first_has_more"] = _interval(ahead, beside(first, rows))[
                "map"
            ]
            continue
        first = rows
        for name, found in references(folds).items():
            result[name] = _interval(precision, one_finding(found, column))
    write_result({"finding": args.finding, "rows": result}, args.output)


if __name__ == "__main__":
    run_command(main)
