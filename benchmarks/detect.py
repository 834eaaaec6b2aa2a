"""Throughput of a detector's whole inference: films in, fused boxes out.

    python benchmarks/detect.py --config=configs/adpd.py [--films=64] [--side=1024]

Random weights of the config's network, phantoms of --side pixels in memory. Each part is timed
alone, one after the other: films to the network's size, the network, and its outputs to boxes. How
many boxes there are to fuse decides the last part, so it is timed on the outputs, on drawn
probabilities of which every region has every finding (the worst case), and on such of which 2%
are above the threshold. The compilation cache is off.
"""

import argparse
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np

from benchmarks.common import load_config, write_result
from cxr_jax import train, writers
from cxr_jax.data import sources
from cxr_jax.tasks import make_task

POSITIVE = {"every region has every finding": 1.0, "2% do": 0.02}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--films", type=int, default=64)
    parser.add_argument("--side", type=int, default=1024, help="pixels of a film's side")
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    config = load_config(args.config)
    task = make_task(config)
    source = sources.open_source(
        sources.block("phantom_cxr", test=args.films, size=args.side), "test"
    )
    films = [
        {"image": record["image"], "id": record["id"], "group": record["group"]}
        for record in (source[index] for index in range(args.films))
    ]

    start = time.perf_counter()
    examples = [task.data.transforms.finish(task.data.transforms.example(f), None) for f in films]
    seconds = {"films to the network's size": time.perf_counter() - start}

    size = config.eval_batch_size
    batches = [
        {"image": np.stack([e["image"] for e in examples[i : i + size]])}
        for i in range(0, args.films - size + 1, size)
    ]
    count = size * len(batches)
    variables = jax.jit(task.init)(jax.random.PRNGKey(0), batches[0])
    start = time.perf_counter()
    predict = jax.jit(task.predict).lower(variables, batches[0]).compile()
    compile_s = time.perf_counter() - start
    outputs = [jax.device_get(predict(variables, batches[0]))]  # touches fresh memory
    start = time.perf_counter()
    outputs = [jax.device_get(predict(variables, batch)) for batch in batches]
    seconds["the network"] = (time.perf_counter() - start) * args.films / count
    seconds["boxes of its outputs"] = _boxes_s(task, outputs) * args.films / count
    for name, share in POSITIVE.items():
        drawn = [_drawn(out, share, config.threshold) for out in outputs]
        seconds[f"boxes where {name}"] = _boxes_s(task, drawn) * args.films / count
    parts = list(seconds)[:3]
    result = {
        "config": args.config,
        "films": args.films,
        "film_side_px": args.side,
        "batch_size": size,
        "compile_s": round(compile_s, 1),
        "ms_a_film": {k: round(1000 * v / args.films, 2) for k, v in seconds.items()},
        "films_per_s": round(args.films / sum(seconds[part] for part in parts), 2),
        "peak_memory_GiB": round(train.peak_memory_mb() / 1024, 2),
        **writers.provenance(),
    }
    write_result(result, args.output)


def _boxes_s(task, outputs) -> float:
    start = time.perf_counter()
    for out in outputs:
        task.combine([out])
    return time.perf_counter() - start


def _drawn(out, share: float, threshold: float):
    """The outputs with all regions there and so many probabilities above the threshold."""
    rng = np.random.default_rng(0)
    shape = out["region_probs"].shape
    above = rng.random(shape) < share
    probs = np.where(above, threshold, 0) + rng.random(shape) * min(threshold, 1 - threshold) * 0.99
    return out | {
        "presence": np.ones_like(out["presence"]),
        "region_probs": probs.astype(np.float32),
    }


if __name__ == "__main__":
    main()
