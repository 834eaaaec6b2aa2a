"""Average precision of one finding's boxes, of the folds of a sweep as one set of films.

    python benchmarks/finding_ap.py DIR/ROW [DIR/ROW ...] [--finding=pneumonia] [--output=x.json]

A mean over findings says little where one of them has sixty boxes and the others one each. Of every
row of a sweep whose seeds are folds: AP of the finding at an IoU of 0.1, 0.3 and 0.5, and the
localisation accuracy at these, with 95% bootstrap intervals over patients; the same of the task's
references, which need no network; and what the first row has more than each other one, on the
same films. The folds' scores are of different models and are put in
one order as they are.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.common import write_result
from cxr_jax import report, workdir
from cxr_jax.cli import run_command
from cxr_jax.data import sources
from cxr_jax.errors import InputError
from cxr_jax.metrics import detection
from cxr_jax.metrics.bootstrap import Rows, Value, bootstrap
from cxr_jax.metrics.box_matches import THRESHOLDS
from cxr_jax.tasks import make_task

PER_FINDING = ("scores", "hits", "targets", "known", "called", "located", "probs", "labels")


def folds_of(row: pathlib.Path, split: str) -> tuple[dict[str, list[Rows]], tuple[str, ...]]:
    """Name -> the rows of each fold, of the row itself (its folder's name) and of its references;
    and the names of the findings."""
    runs = sorted(row.glob("seed-*"))
    if not runs:
        raise InputError(f"{row}: no folder seed-* of a sweep is in it")
    found: dict[str, list[Rows]] = {}
    for run in runs:
        rows, config = report.read_rows(run, split), workdir.read_config(run)
        evaluation = make_task(config).evaluation
        found.setdefault(row.name, []).append(rows)
        beside = evaluation.references(rows, sources.open_source(config.data, "train"))
        for name, values in beside.items():
            found.setdefault(name, []).append({**values, "id": rows["id"], "group": rows["group"]})
    return found, evaluation.classes


def one_finding(folds: list[Rows], column: int) -> Rows:
    """The folds' rows of one finding, [N, 1, ...] each, and the patients."""
    names = [name for name in PER_FINDING if all(name in rows for rows in folds)]
    joined = {name: np.concatenate([rows[name][:, [column]] for rows in folds]) for name in names}
    each = ("id", "group")
    return joined | {name: np.concatenate([rows[name] for rows in folds]) for name in each}


def precision(rows: Rows) -> dict[str, Value]:
    boxes = int(np.sum(rows["targets"]))
    films = int(np.sum(rows["known"]))
    ap = detection.average_precision(rows["scores"], rows["hits"], rows["targets"])[0]
    located = detection.localisation(rows)["accuracy"][0]
    told = {"map": Value(float(np.mean(ap)), boxes)}
    for limit in detection.SHOWN:
        at, name = THRESHOLDS.tolist().index(limit), f"iou{100 * limit:.0f}"
        told[f"ap_{name}"] = Value(float(ap[at]), boxes)
        told[f"loc_acc_{name}"] = Value(float(located[at]), films)
    return told


def ahead(rows: Rows) -> dict[str, Value]:
    """mAP of the first of two methods less that of the second, which stand side by side as two
    findings of the same films would."""
    ap = detection.average_precision(rows["scores"], rows["hits"], rows["targets"])
    return {
        "map": Value(float(np.mean(ap[0]) - np.mean(ap[1])), int(np.sum(rows["targets"][:, 0])))
    }


def beside(first: Rows, second: Rows) -> Rows:
    """Two methods' rows of one finding, [N, 2, ...]."""
    if not np.array_equal(first["id"], second["id"]):
        raise InputError("two of these rows were evaluated on other films: they cannot be compared")
    names = ("scores", "hits", "targets")
    return {name: np.concatenate([first[name], second[name]], axis=1) for name in names}


def _interval(report: Callable[[Rows], dict[str, Value]], rows: Rows, group: np.ndarray) -> dict:
    return {k: dataclasses.asdict(v) for k, v in bootstrap(report, rows, group).items()}


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
        found, findings = folds_of(row, args.split)
        if args.finding not in findings:
            raise InputError(f"--finding={args.finding}: {row} has {', '.join(findings)}")
        for name, folds in found.items():
            if name in result:
                continue  # a reference of an earlier row
            rows = one_finding(folds, findings.index(args.finding))
            result[name] = {"folds": len(folds)} | _interval(precision, rows, rows["group"])
            first = first or rows
            if name == row.name and rows is not first:
                less = _interval(ahead, beside(first, rows), rows["group"])
                result[name]["map_the_first_has_more"] = less["map"]
    write_result({"finding": args.finding, "rows": result}, args.output)


if __name__ == "__main__":
    run_command(main)
