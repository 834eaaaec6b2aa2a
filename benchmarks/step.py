"""Time of a training step, of its compilation, and peak memory, for any config.

    python benchmarks/step.py --config=configs/severity.py [--steps=5] [--batch_size=8]
    python benchmarks/step.py --config=configs/severity.py:quick --output=benchmarks/results/x.json

The batch is of phantoms, prepared as the config says and loaded once: the input pipeline has its
own benchmark, input.py. The compilation cache is off. On a GPU the memory is the GPU's.
"""

import argparse
import functools
import pathlib
import statistics
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import ml_collections
import numpy as np

from benchmarks.common import load_config, write_result
from cxr_jax import optimizers, state, train, writers
from cxr_jax.data import pipeline, sources
from cxr_jax.inputs import splits
from cxr_jax.parallel import Parallel
from cxr_jax.tasks import make_task


def main() -> None:
    args = _parser().parse_args()
    config = load_config(args.config)
    config.batch_size = args.batch_size or config.batch_size
    config.precision = args.precision or config.precision
    write_result(measured(args, config), args.output)


def measured(args: argparse.Namespace, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The row of a config that `args` has changed."""
    step, train_state, batch = prepare(config)
    parameters = sum(np.prod(x.shape) for x in jax.tree.leaves(train_state.params))
    start = time.perf_counter()
    compiled = step.lower(train_state, batch).compile()
    compile_s = time.perf_counter() - start
    times = []
    for _ in range(args.steps + 1):
        start = time.perf_counter()
        train_state, scalars = compiled(train_state, batch)
        loss = float(scalars["loss"])
        times.append(time.perf_counter() - start)
    assert np.isfinite(loss)
    seconds = statistics.median(times[1:])  # the first one touches fresh memory
    return {
        "config": args.config,
        "batch_size": config.batch_size,
        "precision": config.precision,
        "parameters_M": round(parameters / 1e6, 2),
        "compile_s": round(compile_s, 1),
        "step_s": round(seconds, 4),
        "images_per_s": round(config.batch_size / seconds, 2),
        "peak_memory_GiB": round(_peak_memory(), 2),
        "loss_after": round(loss, 4),
        **writers.provenance(),
    }


def _peak_memory() -> float:
    """GiB: of the accelerator, or of the process where it computes on the CPU."""
    stats = jax.local_devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 2**30 if stats else train.peak_memory_mb() / 1024


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=0, help="0: the config's")
    parser.add_argument("--precision", default="", help="'': the config's")
    parser.add_argument("--output", type=pathlib.Path)
    return parser


def prepare(config: ml_collections.ConfigDict):
    """The jitted train step, a fresh state and a batch of phantoms: the step does not care whose
    films they are, and phantoms are always there."""
    parallel = Parallel.create(config.parallel)
    # Of films as many as have one of every class; volumes have many slices.
    ct = sources.DATASETS[config.data.name].ct
    count = max(8 if ct else 64, config.batch_size)
    config.data = sources.block("phantom_ct" if ct else "phantom_cxr", train=count)
    if "lungs" in config:
        config.lungs.masks = "record"
    if "crop" in config:
        config.crop.least_intensity = 0.0  # it reads every slice
    task = make_task(config)
    source = splits.open_split(task, config, "train", workdir=pathlib.Path(), training=True)
    example = splits.example_batch(task, source)
    shapes = jax.eval_shape(task.init, jax.random.PRNGKey(0), example)["params"]
    tx, trainable = optimizers.make_optimizer(
        config.optimizer, shapes, total_steps=config.total_steps, frozen=tuple(task.frozen)
    )
    create = functools.partial(state.create, task, tx, seed=0)
    train_state = jax.jit(create, out_shardings=parallel.replicated)(example)
    batches = pipeline.train_batches(
        source,
        task.data.transforms,
        batch_size=config.batch_size,
        seed=0,
        threads=0,
        stages=task.data.stages[:1],
    )
    batch = parallel.shard_batch(next(batches))
    batches.close()
    step = parallel.compile_train_step(state.make_train_step(task, tx, trainable))
    return step, train_state, batch


if __name__ == "__main__":
    main()
