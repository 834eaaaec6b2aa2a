"""Films a second of the input pipeline, for any config: the first epoch and the cached ones.

    python benchmarks/input.py --config=configs/severity.py:quick [--films=512] [--threads=2]

The first epoch reads (or draws) and preprocesses every film; later ones come from memory and are
only augmented, normalised and batched.
"""

import argparse
import contextlib
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.common import load_config, write_result
from cxr_jax import writers
from cxr_jax.data import pipeline, sources
from cxr_jax.tasks import make_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--films", type=int, default=512, help="phantoms in the epoch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    config = load_config(args.config)
    config.data.train = args.films
    task, source = make_task(config), sources.open_source(config.data, "train")
    batches = pipeline.train_batches(
        source,
        task.data.transforms,
        batch_size=config.batch_size,
        seed=0,
        threads=args.threads,
        cache_mb=config.cache_mb,
    )
    steps = len(source) // config.batch_size
    rates = []
    with contextlib.closing(batches):
        for _ in range(3):
            start = time.perf_counter()
            for _ in range(steps):
                next(batches)
            rates.append(round(steps * config.batch_size / (time.perf_counter() - start), 1))
    result = {
        "config": args.config,
        "threads": args.threads,
        "films": len(source),
        "first_epoch_films_per_s": rates[0],
        "cached_films_per_s": rates[-1],
        **writers.provenance(),
    }
    write_result(result, args.output)


if __name__ == "__main__":
    main()
