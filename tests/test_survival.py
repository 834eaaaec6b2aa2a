"""What a run must survive: kills, signals, a full disk."""

import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from cxr_jax import checkpoints
from tests.conftest import ROOT
from tests.processes import assert_same_state, command, environment, last_step, run

KILLS = 2


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_is_the_same_to_the_bit(tmp_path):
    """kill -9, twice, first in stage 2 of 4 of progressive self-training; then parameters,
    teacher, optimizer and every logged loss are those of an uninterrupted run, which also says
    that the data came in the same order."""
    overrides = dict(total_steps=28, checkpoint_every=4, eval_steps="(28,)", figures=0, bootstrap=0)
    overrides |= {"regime.stage_steps": 7, "regime.shares": 3}
    config = "--config=configs/severity.py:smoke,regime=progressive"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(config, f"--workdir={whole}", **overrides)
    rng, kills = random.Random(0), 0
    for _ in range(30):
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                command(config, f"--workdir={killed}", **overrides),
                cwd=ROOT,
                env=environment(),
                stdout=log,
                stderr=log,
            )
            target = last_step(killed) + rng.randint(1, 9) if kills else 10  # in steps 7..14
            while process.poll() is None and kills < KILLS:
                if last_step(killed) >= target:
                    time.sleep(rng.random() * 0.05)
                    process.send_signal(signal.SIGKILL)
                    kills += process.wait() == -signal.SIGKILL
                    break
                time.sleep(0.002)
            else:
                assert process.wait() == 0, (tmp_path / "log").read_text()
                break
    assert kills == KILLS
    assert_same_state(whole, killed)
    lines = [(d / "metrics.jsonl").read_text() for d in (whole, killed)]
    assert lines[0] == lines[1]


def test_sigterm_saves_and_ends_cleanly(tmp_path):
    overrides = dict(total_steps=100_000, checkpoint_every=100_000, eval_steps="(1,)")
    with subprocess.Popen(
        command("--config=configs/findings.py:smoke", f"--workdir={tmp_path}", **overrides),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        while last_step(tmp_path) < 3:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "saved" in output
    step = int(checkpoints.read_state(tmp_path)["step"])
    assert step == last_step(tmp_path)


LIMITED = """
import resource, sys
from cxr_jax import main
from cxr_jax.cli import run_command
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # bytes a file: 'the disk is full'
run_command(main.main)
"""


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    workdir = tmp_path / "run"
    args = command(
        "--config=configs/findings.py:smoke",
        f"--workdir={workdir}",
        total_steps=4,
        eval_steps="(4,)",
        keep_last=4,
        figures=0,
        bootstrap=0,
    )
    subprocess.run(args, cwd=ROOT, env=environment(), check=True, capture_output=True)
    whole = checkpoints.read_state(workdir)
    for step in (3, 4):
        shutil.rmtree(workdir / "checkpoints" / str(step), ignore_errors=True)
    full = subprocess.run(
        [sys.executable, "-c", LIMITED, *args[3:]],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert full.returncode == 2, full.stderr
    said = re.findall(
        r"error: \S+: could not write a checkpoint.*it resumes from step 2", full.stderr
    )
    assert len(said) == 1, full.stderr
    assert "Traceback" not in full.stderr
    subprocess.run(args, cwd=ROOT, env=environment(), check=True, capture_output=True)
    again = checkpoints.read_state(workdir)
    jax.tree.map(np.testing.assert_array_equal, again, whole)
