"""Average precision of one finding's boxes, of the folds of a sweep as one set of films.

    python benchmarks/finding_ap.py DIR/ROW [DIR/ROW ...] [--finding=pneumonia] [--output=x.json]

A mean over findings says little where one of them has sixty boxes and the others one each. Of every
row of a sweep whose seeds are folds: AP of the finding at an IoU of 0.1, 0.3 and 0.5, and the
localisation accuracy at these, with 95% bootstrap intervals over patients; below the same of the
task's references, which need no network. The folds' scores are of different models and are put in
one order as they are.
"""

import argparse
import dataclasses
import pathlib
import sys

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
            found.setdefault(name, []).append({**values, "group": rows["group"]})
    return found, evaluation.classes


def one_finding(folds: list[Rows], column: int) -> Rows:
    """The folds' rows of one finding, [N, 1, ...] each, and the patients."""
    names = [name for name in PER_FINDING if all(name in rows for rows in folds)]
    joined = {name: np.concatenate([rows[name][:, [column]] for rows in folds]) for name in names}
    return joined | {"group": np.concatenate([rows["group"] for rows in folds])}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="+", type=pathlib.Path, metavar="DIR/ROW")
    parser.add_argument("--finding", default="pneumonia")
    parser.add_argument("--split", default="test")
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    result: dict[str, dict] = {}
    for row in args.rows:
        found, findings = folds_of(row, args.split)
        if args.finding not in findings:
            raise InputError(f"--finding={args.finding}: {row} has {', '.join(findings)}")
        for name, folds in found.items():
            if name in result:
                continue  # a reference of an earlier row
            rows = one_finding(folds, findings.index(args.finding))
            metrics = bootstrap(precision, rows, rows["group"])
            told = {k: dataclasses.asdict(metric) for k, metric in metrics.items()}
            result[name] = {"folds": len(folds)} | told
    write_result({"finding": args.finding, "rows": result}, args.output)


if __name__ == "__main__":
    run_command(main)
