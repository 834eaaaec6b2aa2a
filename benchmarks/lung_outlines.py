"""What the place and size of the lungs in the film tell of its diagnosis, without a grey level.

    python benchmarks/lung_outlines.py FOLD-0 FOLD-1 ... [--output=x.json]

The work directories of diagnosis runs that saw lung masks, one a fold: their test films are taken
together. A random forest is given six numbers of each film's lung mask: its share of the film (of
the middle square, where the run saw that), the box around it, and how much of that box it fills. It
is scored on each fold, fitted on the others.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from benchmarks.common import write_result
from cxr_jax import workdir, writers
from cxr_jax.data.visible import Visible
from cxr_jax.inputs import splits
from cxr_jax.tasks import make_task

NUMBERS = ("share", "top", "bottom", "left", "right", "filling")


def outline(lungs: np.ndarray) -> list[float]:
    """`NUMBERS` of a mask [H, W], shares of its sides; zeros without a lung."""
    if not lungs.any():
        return [0.0] * len(NUMBERS)
    rows, columns = np.flatnonzero(lungs.any(axis=1)), np.flatnonzero(lungs.any(axis=0))
    height, width = lungs.shape
    box = (rows[-1] + 1 - rows[0]) * (columns[-1] + 1 - columns[0])
    edges = rows[0] / height, (rows[-1] + 1) / height, columns[0] / width, (columns[-1] + 1) / width
    return [lungs.mean(), *edges, lungs.sum() / box]


def films_of(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Outlines [N, 6] and diagnoses [N] of a run's test films, and the classes' names."""
    config = workdir.read_config(folder)
    task = make_task(config)
    source = splits.open_split(task, config, "test", workdir=folder)
    if "lungs" not in task.data.inputs:
        raise SystemExit(f"{folder}: this run saw no lung mask; take one of hide= or crop=lungs")
    crop = config.visible.crop
    visible = Visible(crop="nothing" if crop == "lungs" else crop)
    records = tqdm((source[k] for k in range(len(source))), str(folder), len(source), disable=None)
    found = [(outline(visible(r)["lungs"] > 0), r["diagnosis"]) for r in records]
    return *map(np.array, zip(*found)), tuple(config.classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    folds = [films_of(folder) for folder in args.runs]
    classes = folds[0][2]
    rows = []
    for k, (features, labels, _) in enumerate(folds):
        others = [fold for j, fold in enumerate(folds) if j != k]
        forest = RandomForestClassifier(500, min_samples_leaf=3, random_state=0)
        forest.fit(*(np.concatenate([fold[i] for fold in others]) for i in (0, 1)))
        probs = forest.predict_proba(features)
        aucs = [roc_auc_score(labels == c, probs[:, c]) for c in range(len(classes))]
        rows.append([np.mean(probs.argmax(axis=1) == labels), np.mean(aucs), *aucs])
    rows = np.array(rows)
    names = ["accuracy", "mean_auc", *(f"auc {name}" for name in classes)]
    every, labels = (np.concatenate([fold[i] for fold in folds]) for i in (0, 1))
    result = {
        "films": len(labels),
        "mean and sd over folds": {
            name: [round(float(x), 3) for x in (column.mean(), column.std(ddof=1))]
            for name, column in zip(names, rows.T)
        },
        "mean outline": {
            name: dict(zip(NUMBERS, every[labels == c].mean(axis=0).round(3).tolist()))
            for c, name in enumerate(classes)
        },
        **writers.provenance(),
    }
    write_result(result, args.output)


if __name__ == "__main__":
    main()
