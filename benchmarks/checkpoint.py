"""What a checkpoint costs: writing, hashing, and whether the training step waits for them.

    python benchmarks/checkpoint.py --config=configs/severity.py [--batch_size=1] [--steps=6]

`hash_s` is the time to hash the files of one checkpoint, which a loading pays again. `save_s` is
how long the training is held up by `save` (a copy of the state; the rest is written and hashed
beside it until `written_and_hashed_s`). `step_s` is a step alone, `step_beside_hashing_s` one
beside which a checkpoint is hashed once, in turn. `check_us` is what it takes to look whether
the numbers of a step are finite.
"""

import argparse
import pathlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import grain
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import load_config, write_result
from benchmarks.step import prepare
from cxr_jax import manifests, writers
from cxr_jax.checkpoints import FOLDER, Checkpoints
from cxr_jax.finite import Steps


def main() -> None:
    args = _parser().parse_args()
    config = load_config(args.config)
    config.batch_size = args.batch_size
    step, train_state, batch = prepare(config)
    compiled = step.lower(train_state, batch).compile()

    def one_step() -> None:
        nonlocal train_state
        train_state, scalars = compiled(train_state, batch)
        assert np.isfinite(float(scalars["loss"]))

    # First some steps: the moments of a fresh state are zeros, which take no room.
    for _ in range(2):
        one_step()
    number = int(train_state.step)
    iterator = iter(grain.MapDataset.range(10).to_iter_dataset())
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = pathlib.Path(name)
        start = time.perf_counter()
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(train_state, iterator)
            save_s = time.perf_counter() - start
        written_s = time.perf_counter() - start
        place = folder / FOLDER / str(number)
        size = sum(p.stat().st_size for p in place.rglob("*") if p.is_file())

        def one_hashing() -> None:
            assert manifests.damage(place, number) is None

        hash_s = min(_seconds(one_hashing) for _ in range(3))
        alone, beside = [], []
        for _ in range(args.steps):
            alone.append(_seconds(one_step))
            thread = threading.Thread(target=one_hashing)
            thread.start()
            beside.append(_seconds(one_step))
            thread.join()
    parameters = sum(np.prod(x.shape) for x in jax.tree.leaves(train_state.params))
    result = {
        "config": args.config,
        "batch_size": config.batch_size,
        "parameters_M": round(parameters / 1e6, 2),
        "checkpoint_MB": round(size / 1e6, 1),
        "hash_s": round(hash_s, 2),
        "save_s": round(save_s, 2),
        "written_and_hashed_s": round(written_s, 2),
        "step_s": round(statistics.median(alone), 2),
        "step_beside_hashing_s": round(statistics.median(beside), 2),
        "check_us": round(1e6 * _check_s()),
        **writers.provenance(),
    }
    write_result(result, args.output)


def _check_s() -> float:
    """Of one step, as in the training loop, of numbers that have arrived."""
    steps, index = Steps([], None), np.zeros(1, np.int32)
    names = ("loss", "map", "grad_norm")
    made = [{name: jnp.float32(i) for name in names} for i in range(1000)]

    def checks() -> None:
        for number, scalars in enumerate(made):
            steps.add(number, scalars, index)
        steps.finish()

    return _seconds(checks) / len(made)


def _seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


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
