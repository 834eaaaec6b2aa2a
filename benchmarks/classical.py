"""The rows of FeCNN's Table 3 that need no deep network, on the slices of a config.

    python benchmarks/classical.py --config=configs/lesions.py:covid_ct [--seeds=0,1,2]

Local binary patterns or 64 grey levels, with a support vector machine or a perceptron
(`cxr_jax/classical.py`), of what the config's crop leaves of each slice at the config's size;
fitted on its training slices, scored on its test slices. The seed is the perceptron's.
"""

import argparse
import itertools
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from benchmarks.common import load_config, write_result
from cxr_jax import classical, writers
from cxr_jax.inputs import splits
from cxr_jax.metrics.slices import positives_report
from cxr_jax.tasks import make_task


def slices_of(task, config, split: str) -> tuple[list[np.ndarray], np.ndarray]:
    """What is seen of the slices of a split, uint8, and their classes."""
    with tempfile.TemporaryDirectory() as folder:
        source = splits.open_split(
            task, config, split, workdir=pathlib.Path(folder), training=split == "train"
        )
        examples = (task.data.transforms.example(source[k]) for k in range(len(source)))
        found = [
            (example["image"], int(example["diagnosis"]))
            for example in tqdm(examples, split, len(source), disable=None)
        ]
    return [image for image, _ in found], np.array([label for _, label in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    config = load_config(args.config)
    task = make_task(config)
    train, test = (slices_of(task, config, split) for split in ("train", "test"))
    rows = {}
    for kind, method in itertools.product(classical.FEATURES, classical.CLASSIFIERS):
        seen, unseen = (classical.slice_features(part[0], kind) for part in (train, test))
        seeds = [int(seed) for seed in args.seeds.split(",")] if method == "mlp" else [0]
        reports = []
        for seed in seeds:
            model = classical.fit(seen, train[1], method, seed=seed)
            scores = classical.class_scores(model, unseen)
            told = positives_report(scores, test[1], task.positive)
            reports.append(
                {"accuracy": float(np.mean(scores.argmax(axis=1) == test[1]))}
                | {name: told[name].value for name in ("f1", "auc", "average_precision")}
            )
        rows[f"{kind} + {method}"] = {
            name: [
                round(float(np.mean([report[name] for report in reports])), 3),
                round(float(np.std([report[name] for report in reports], ddof=1)), 3)
                if len(reports) > 1
                else 0.0,
            ]
            for name in reports[0]
        }
    result = {
        "config": args.config,
        "slices": {"train": len(train[1]), "test": len(test[1])},
        "mean and sd over seeds": rows,
        **writers.provenance(),
    }
    write_result(result, args.output)


if __name__ == "__main__":
    main()
