"""Time and memory of the neighbourhood affinity, forward and backward, beside other ways to it.

    python benchmarks/affinity.py [--side=56] [--channels=448] [--batch_size=8] [--output=x.json]

All give the same loss, which is printed. `rows` is the one of ops/affinity.py: each row against the
radius rows below it. `pairs` multiplies all pairs of pixels and masks. `shifts` multiplies 80
shifted views one after the other. `gather` stacks the 80 shifted views first. Each runs in a
process of its own, because peak memory is a process's.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import write_result
from cxr_jax import train, writers
from cxr_jax.ops import affinity

RADIUS, FOREGROUND, BACKGROUND = 5, 0.1, 0.01  # the paper's
HIGHEST = jax.lax.Precision.HIGHEST


def offsets() -> list[tuple[int, int]]:
    """(dy, dx) of the 80 neighbours."""
    steps = range(-RADIUS, RADIUS + 1)
    return [(y, x) for y in steps for x in steps if 0 < y * y + x * x <= RADIUS**2]


def rows(unit: jax.Array, marks: jax.Array) -> jax.Array:
    return affinity.similarity_sums(unit, marks, radius=RADIUS, shape="euclid")


def pairs(unit: jax.Array, marks: jax.Array) -> jax.Array:
    batch, height, width, _ = unit.shape
    y, x = (a.ravel() for a in np.mgrid[:height, :width])
    squares = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    near = (squares > 0) & (squares <= RADIUS**2)
    flat = unit.reshape(batch, height * width, -1)
    cosine = jnp.einsum("bic,bjc->bij", flat, flat, precision=HIGHEST) * near
    sums = jnp.einsum("bij,bjm->bim", cosine, marks.reshape(batch, height * width, -1))
    return sums.reshape(marks.shape)


def shifted(x: jax.Array) -> list[jax.Array]:
    """The 80 views of [B, h, w, C], 0 beyond the border."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0)))
    return [
        padded[:, RADIUS + dy : RADIUS + dy + height, RADIUS + dx : RADIUS + dx + width]
        for dy, dx in offsets()
    ]


def shifts(unit: jax.Array, marks: jax.Array) -> jax.Array:
    views = zip(shifted(unit), shifted(marks))
    return sum(jnp.sum(unit * u, axis=-1, keepdims=True) * m for u, m in views)


def gather(unit: jax.Array, marks: jax.Array) -> jax.Array:
    neighbours, kinds = jnp.stack(shifted(unit), axis=3), jnp.stack(shifted(marks), axis=3)
    cosine = jnp.einsum("byxc,byxkc->byxk", unit, neighbours, precision=HIGHEST)
    return jnp.einsum("byxk,byxkm->byxm", cosine, kinds)


METHODS = {"rows": rows, "pairs": pairs, "shifts": shifts, "gather": gather}


def measure(method: str, *, side: int, channels: int, batch_size: int, steps: int) -> dict:
    """Compiles and times one method's loss and gradient, as a row of the result."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(batch_size, side, side, channels)).astype(np.float32)
    prob = rng.choice([0.001, 0.05, 0.6], size=features.shape[:3]).astype(np.float32)

    def loss(features: jax.Array, prob: jax.Array) -> jax.Array:
        marks = jnp.stack([prob > FOREGROUND, prob < BACKGROUND], axis=-1).astype(jnp.float32)
        sums = METHODS[method](affinity.unit_vectors(features), marks)
        counts = affinity.neighbour_counts(marks, radius=RADIUS, shape="euclid")
        terms = affinity.affinity_terms(sums, counts, marks, empty="count")
        return jnp.mean(terms["nfs"] + terms["nbs"] + 0.5 * terms["nfbd"])

    features, prob = jax.device_put((features, prob))
    before_mb = train.peak_memory_mb()
    lowered = jax.jit(jax.value_and_grad(loss)).lower(features, prob)
    start = time.perf_counter()
    compiled = lowered.compile()
    compile_s = time.perf_counter() - start
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        value, grad = jax.block_until_ready(compiled(features, prob))
        times.append(time.perf_counter() - start)
    return {
        "seconds": round(statistics.median(times[1:]), 3),  # the first one touches fresh memory
        "seconds_min_max": [round(min(times[1:]), 3), round(max(times[1:]), 3)],
        "compile_s": round(compile_s, 1),
        "temporaries_MiB": round(compiled.memory_analysis().temp_size_in_bytes / 2**20),
        "peak_memory_MiB": round(train.peak_memory_mb()),
        "peak_before_compiling_MiB": round(before_mb),
        "loss": round(float(value), 6),
        "gradient_norm": float(f"{jnp.linalg.norm(grad):.5g}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=56, help="448 px at stride 8")
    parser.add_argument("--channels", type=int, default=448, help="64 + 128 + 256")
    parser.add_argument("--batch_size", type=int, default=8, help="one bag")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--method", choices=METHODS, help="this one alone, in this process")
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    shape = dict(side=args.side, channels=args.channels, batch_size=args.batch_size)
    if args.method:
        print(json.dumps(measure(args.method, **shape, steps=args.steps)))
        return
    load = os.getloadavg()[0]
    methods = {}
    for method in METHODS:
        flags = [f"--{key}={value}" for key, value in shape.items()]
        command = [sys.executable, __file__, *flags, f"--steps={args.steps}", f"--method={method}"]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        methods[method] = json.loads(output.splitlines()[-1])
    result = {
        **shape,
        "radius": RADIUS,
        "steps": args.steps,
        "load_average_before": round(load, 1),
        "note": "other jobs shared the cores: times are upper bounds" if load > 1 else "",
        "methods": methods,
        **writers.provenance(),
    }
    write_result(result, args.output)


if __name__ == "__main__":
    main()
