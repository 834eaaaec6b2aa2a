"""What a checkpoint costs: writing, hashing, and whether the training step waits for them.

    python benchmarks/checkpoint.py --config=configs/severity.py [--batch_size=1] [--steps=6]

`hash_s` is the time to hash the files of one checkpoint, again at every loading. `save_s` is how
long the training is held up by `save` (a copy of the state; the rest is written beside it).
`step_s` is a step with nothing beside it, `step_beside_hashing_s` one while a thread hashes the
checkpoint over and over: the worst case, as an ordinary one is hashed once in `checkpoint_every`
steps.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import grain
import jax
import numpy as np

from benchmarks.common import load_config, write_result
from benchmarks.step import prepare
from cxr_jax import manifests, writers
from cxr_jax.checkpoints import FOLDER, Checkpoints


def main() -> None:
    args = _parser().parse_args()
    config = load_config(args.config)
    config.batch_size = args.batch_size
    step, train_state, batch = prepare(config)
    compiled = step.lower(train_state, batch).compile()
    iterator = iter(grain.MapDataset.range(10).to_iter_dataset())
    # First some steps: the moments of a fresh state are zeros, which take no room.
    alone, train_state = _times(compiled, train_state, batch, args.steps)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = pathlib.Path(name)
        start = time.perf_counter()
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(train_state, iterator)
            save_s = time.perf_counter() - start
        written_s = time.perf_counter() - start
        step_number = int(train_state.step)
        place = folder / FOLDER / str(step_number)
        hashes, done = [], threading.Event()
        thread = threading.Thread(target=_hash_until, args=(place, step_number, hashes, done))
        thread.start()
        beside, train_state = _times(compiled, train_state, batch, args.steps)
        done.set()
        thread.join()
        start = time.perf_counter()
        assert manifests.damage(place, step_number) is None
        hash_s = time.perf_counter() - start
        size = sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
    parameters = sum(np.prod(x.shape) for x in jax.tree.leaves(train_state.params))
    result = {
        "config": args.config,
        "batch_size": config.batch_size,
        "parameters_M": round(parameters / 1e6, 2),
        "checkpoint_MB": round(size / 1e6, 1),
        "hash_s": round(hash_s, 2),
        "hash_MB_per_s": round(size / 1e6 / hash_s),
        "save_s": round(save_s, 2),
        "written_and_hashed_s": round(written_s, 2),
        "step_s": round(statistics.median(alone), 2),
        "step_beside_hashing_s": round(statistics.median(beside), 2),
        "hashes_during_these_steps": len(hashes),
        **writers.provenance(),
    }
    write_result(result, args.output)


def _times(compiled, train_state, batch, steps: int):
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        train_state, scalars = compiled(train_state, batch)
        assert np.isfinite(float(scalars["loss"]))
        times.append(time.perf_counter() - start)
    return times[1:], train_state  # the first one touches fresh memory


def _hash_until(folder: pathlib.Path, step: int, times: list[float], done: threading.Event) -> None:
    while not done.is_set():
        start = time.perf_counter()
        assert manifests.damage(folder, step) is None
        times.append(time.perf_counter() - start)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--folder", help="where the checkpoint is written; default: the system's")
    parser.add_argument("--output", type=pathlib.Path)
    return parser


if __name__ == "__main__":
    main()
