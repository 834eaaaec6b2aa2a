"""How well runs of different papers tell which zones of real films have opacity.

    python benchmarks/zone_auc.py RUN [RUN ...] [--split=test] [--output=x.json]

Severity runs say it of zones and ADPD runs of regions, of which six are the zones; the truth is
the same, a Brixia score above 0. Of films that all runs were evaluated on: `zone_auc`, the mean
over the six zones of each one's AUC, as severity's `mean_auc`; `pooled_auc`, of all zones together,
as ADPD's `region_auc` but without the two lungs; and what each run has more than the first one.
The last one is a constant, how often each zone has opacity on the first run's training films. All
with 95% bootstrap intervals over patients.
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
from cxr_jax.data.zone_regions import ZONE_ROWS
from cxr_jax.errors import InputError
from cxr_jax.metrics.bootstrap import Rows, Value, bootstrap
from cxr_jax.metrics.classification import auroc
from cxr_jax.metrics.regression import mean


def zones_of(rows: Rows, run: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels [N, 6] of the zones, labels NaN where they are not known."""
    if "region_probs" in rows:
        places = ZONE_ROWS.ravel()
        return rows["region_probs"][:, places, 0], rows["region_labels"][:, places, 0]
    if "valid" not in rows:
        raise InputError(f"{run}: neither a severity nor an ADPD run")
    n = len(rows["id"])
    labels = np.where(rows["valid"], rows["labels"], np.nan)
    return rows["probs"].reshape(n, 6), labels.reshape(n, 6)


def training_shares(run: pathlib.Path) -> np.ndarray:
    """[6], how often each zone scores above 0 on the films that a run was trained on."""
    training = sources.open_source(workdir.read_config(run).data, "train")
    records = [training[index] for index in range(len(training))]
    known = np.stack([record["severity_valid"] for record in records])
    positive = np.stack([record["severity"] for record in records]) > 0
    return ((positive & known).sum(axis=0) / known.sum(axis=0)).ravel()


def aucs(probs: np.ndarray, labels: np.ndarray) -> dict[str, Value]:
    """`zone_auc` and `pooled_auc`, and of how many zones they are."""
    known = ~np.isnan(labels)
    each = [auroc(probs[known[:, z], z], labels[known[:, z], z]) for z in range(6)]
    count = int(known.sum())
    return {
        "zone_auc": Value(mean(each), count),
        "pooled_auc": Value(auroc(probs[known], labels[known]), count),
    }


def compared(rows: Rows) -> dict[str, Value]:
    """Of every run `<run>/zone_auc`, ..., and `<run> less the first/...`."""
    runs = rows["probs"].shape[1]
    found = [aucs(rows["probs"][:, r], rows["labels"]) for r in range(runs)]
    told = {f"{r}/{name}": value for r in range(runs) for name, value in found[r].items()}
    for r in range(1, runs):
        for name, value in found[r].items():
            more = value.value - found[0][name].value
            told[f"{r} less the first/{name}"] = Value(more, value.count)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    read = [report.read_rows(run, args.split) for run in args.runs]
    shared = sorted(set.intersection(*(set(rows["id"]) for rows in read)))
    if not shared:
        raise InputError("no film was scored by all of these runs")
    probs, labels = [], []
    for rows, run in zip(read, args.runs):
        order = [list(rows["id"]).index(one) for one in shared]
        p, y = (values[order] for values in zones_of(rows, run))
        probs.append(p)
        labels.append(y)
    probs.append(np.broadcast_to(training_shares(args.runs[0]), probs[0].shape))
    names = [*map(str, args.runs), "constant: how often each zone has opacity in training"]
    # A zone counts where every run has an answer to it.
    truth = np.where(np.isnan(labels).any(axis=0), np.nan, labels[0])
    if any(np.any(y[~np.isnan(truth)] != truth[~np.isnan(truth)]) for y in labels):
        raise InputError("these runs were scored by other labels: they cannot be compared")
    groups = np.array([dict(zip(read[0]["id"], read[0]["group"]))[one] for one in shared])
    joined = {"probs": np.stack(probs, axis=1), "labels": truth}
    found = bootstrap(compared, joined, groups)
    write_result(
        {
            "runs": {str(r): name for r, name in enumerate(names)},
            "films": len(shared),
            "zones": {name: dataclasses.asdict(value) for name, value in found.items()},
        },
        args.output,
    )


if __name__ == "__main__":
    run_command(main)
