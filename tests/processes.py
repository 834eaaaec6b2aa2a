"""The command in a process of its own, and what it left."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np

from cxr_jax import checkpoints
from tests.conftest import ROOT, UNOPTIMISED


def command(*args, **overrides) -> list[str]:
    flags = [f"--config.{name}={value}" for name, value in overrides.items()]
    return [sys.executable, "-m", "cxr_jax.main", *map(str, args), *flags]


def run(*args, check=True, **overrides) -> subprocess.CompletedProcess:
    done = subprocess.run(
        command(*args, **overrides), cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def environment() -> dict[str, str]:
    # One device, as a user has; the tests' own process simulates eight.
    # TF_CPP_MIN_LOG_LEVEL: importing jax here has set it for all children.
    rest = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return rest | {"XLA_FLAGS": UNOPTIMISED}


def arrays(workdir: pathlib.Path, step: int | None = None):
    return jax.tree_util.tree_leaves_with_path(checkpoints.read_state(workdir, step))


def assert_same_state(a: pathlib.Path, b: pathlib.Path):
    """Parameters, batch statistics, optimizer state, step and key: equal to the bit."""
    left, right = arrays(a), arrays(b)
    assert [path for path, _ in left] == [path for path, _ in right]
    for (path, x), (_, y) in zip(left, right):
        np.testing.assert_array_equal(x, y, err_msg=str(path))


def last_step(workdir: pathlib.Path) -> int:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    try:
        return json.loads(lines[-1])["step"] if lines else 0
    except ValueError:
        return 0
