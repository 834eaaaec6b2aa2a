"""Methods side by side: each compiled, timed and weighed in a process of its own.

Apart from `common`, whose importers are not all of JAX.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax

from benchmarks.common import write_result
from cxr_jax import train, writers


def timed(function: Callable, *arguments: Any, steps: int) -> tuple[dict[str, Any], Any]:
    """Compiles a function and runs it `steps` times and once before: times and memory as part of a
    row, and what it gave."""
    before_mb = train.peak_memory_mb()
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_s = time.perf_counter() - start
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        out = jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    return (
        {
            "seconds": round(statistics.median(times[1:]), 3),  # the first one touches fresh memory
            "seconds_min_max": [round(min(times[1:]), 3), round(max(times[1:]), 3)],
            "compile_s": round(compile_s, 1),
            "temporaries_MiB": round(compiled.memory_analysis().temp_size_in_bytes / 2**20),
            "peak_memory_MiB": round(train.peak_memory_mb()),
            "peak_before_compiling_MiB": round(before_mb),
        },
        out,
    )


def compare(
    file: str,
    title: str,
    methods: Collection[str],
    *,
    measure: Callable[..., dict[str, Any]],
    shape: Mapping[str, tuple[int, str]],
    steps: int,
) -> None:
    """The command that measures each method in a process of its own, because peak memory is a
    process's, and writes one result.

    Args:
      file: of the command, which the processes run with --method.
      title: for --help.
      methods: their names.
      measure: (method, steps=, and the sizes of `shape`) -> a row of the result.
      shape: name of a size -> (default, help).
      steps: by default.
    """
    parser = argparse.ArgumentParser(description=title)
    for name, (default, text) in shape.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--method", choices=methods, help="this one alone, in this process")
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    settings = {name: getattr(args, name) for name in (*shape, "steps")}
    if args.method:
        print(json.dumps(measure(args.method, **settings)))
        return
    load = os.getloadavg()[0]
    rows = {}
    for method in methods:
        flags = [f"--{name}={value}" for name, value in settings.items()]
        command = [sys.executable, file, *flags, f"--method={method}"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows[method] = json.loads(output.splitlines()[-1])
    result = {
        **settings,
        "load_average_before": round(load, 1),
        "note": "other jobs shared the cores: times are upper bounds" if load > 1 else "",
        "methods": rows,
        **writers.provenance(),
    }
    write_result(result, args.output)
