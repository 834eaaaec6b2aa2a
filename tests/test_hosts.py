"""Two real processes over loopback are one run; what becomes of it when one of them dies."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from cxr_jax import checkpoints, hosts
from cxr_jax.errors import InputError
from cxr_jax.initialise import flatten
from tests.conftest import UNOPTIMISED

STEPS = 48
PATIENCE_S = 300  # for anything that must come; none of it is a measurement


def _command(workdir, *more):
    return [
        *(sys.executable, "-m", "cxr_jax.main", "--config=configs/findings.py:smoke"),
        f"--config.total_steps={STEPS}",
        f"--config.eval_steps=({STEPS},)",
        *("--config.checkpoint_every=12", "--config.log_every=4", "--config.data.test=5"),
        *(f"--workdir={workdir}", *more),
    ]


def _start(workdir, *more, devices=1, log=None, environment=None):
    flags = f"--xla_force_host_platform_device_count={devices} {UNOPTIMISED}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"} | (environment or {})
    with (log or pathlib.Path(os.devnull)).open("w") as out:
        return subprocess.Popen(
            _command(workdir, *more), env=environment, stdout=out, stderr=subprocess.STDOUT
        )


def _free_port():
    with socket.socket() as trial:
        trial.bind(("", 0))
        return trial.getsockname()[1]


def _by_flags(port, i):
    return (f"--coordinator=localhost:{port}", "--processes=2", f"--process={i}"), {}


def _by_slurm(port, i):
    """What srun sets. JAX takes the port of the coordinator from the number of the job."""
    del port
    return ("--hosts=slurm",), {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(i),
        "SLURM_LOCALID": str(i),
    }


class Pair:
    """Two processes of one run, with what each says."""

    def __init__(self, workdir, logs, told=_by_flags):
        port = _free_port()
        logs.mkdir(exist_ok=True)
        self.logs = [logs / f"{i}.txt" for i in range(2)]
        self.processes = []
        for i in range(2):
            flags, environment = told(port, i)
            process = _start(workdir, *flags, log=self.logs[i], environment=environment)
            self.processes.append(process)

    def ended(self):
        """Exit statuses, when both have ended."""
        return [process.wait(PATIENCE_S) for process in self.processes]

    def said(self, i):
        return self.logs[i].read_text()

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()


def _until(condition, pair):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, [pair.said(i)[-2000:] for i in range(2)]
        assert all(p.poll() is None for p in pair.processes), pair.said(0)[-2000:]
        time.sleep(0.02)


def _steps(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A run of two hosts: one is killed, both come again; one is asked to stop, both come again,
    and reach the end. Beside it one process with two devices."""
    folder = tmp_path_factory.mktemp("hosts")
    alone = _start(folder / "alone", devices=2, log=folder / "alone.txt")
    workdir, told = folder / "pair", {}

    pair = Pair(workdir, folder / "killed")
    _until(lambda: checkpoints.complete_steps(workdir), pair)
    pair.processes[1].kill()
    began = time.monotonic()
    told["killed"] = pair.ended(), pair.said(0), time.monotonic() - began

    pair = Pair(workdir, folder / "stopped", _by_slurm)
    first = len(_steps(workdir))
    _until(lambda: len(_steps(workdir)) > first + 1, pair)
    pair.processes[1].send_signal(signal.SIGTERM)
    told["stopped"] = pair.ended(), pair.said(0), checkpoints.complete_steps(workdir)

    pair = Pair(workdir, folder / "ended")
    told["ended"] = pair.ended(), pair.said(0), pair.said(1)
    assert alone.wait(PATIENCE_S) == 0, (folder / "alone.txt").read_text()[-2000:]
    yield {"pair": workdir, "alone": folder / "alone", "folder": folder, **told}
    pair.close()


@pytest.mark.slow
def test_a_host_that_dies_ends_the_run_with_one_line_within_a_minute(story):
    statuses, said, seconds = story["killed"]
    assert statuses == [1, -signal.SIGKILL]
    lines = [line for line in said.splitlines() if "error" in line.lower()]
    assert len(lines) == 1, said
    assert "host 1 of 2" in lines[0]
    assert "resumes" in lines[0]
    assert "Traceback" not in said
    assert seconds < 60


@pytest.mark.slow
def test_what_one_host_is_told_both_do_at_the_same_step(story):
    statuses, said, steps = story["stopped"]
    assert statuses == [128 + signal.SIGTERM] * 2, said
    assert f"stopped by SIGTERM at step {steps[-1]}, saved" in said
    assert steps[-1] < STEPS


@pytest.mark.slow
def test_the_same_parameters_as_one_process_with_two_devices(story):
    statuses, said, other = story["ended"]
    assert statuses == [0, 0], said + other
    assert "resuming" in said
    pair, alone = (
        flatten(checkpoints.read_state(story[name])["params"]) for name in ("pair", "alone")
    )
    assert pair.keys() == alone.keys()
    for name, array in pair.items():
        np.testing.assert_allclose(array, alone[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_one_host_writes_and_what_it_writes_is_of_all_films(story):
    results = {
        name: json.loads((story[name] / "results.json").read_text()) for name in ("pair", "alone")
    }
    assert results["pair"]["hosts"] == 2
    assert results["pair"]["data"]["examples"] == 5  # no multiple of a batch of either host
    for name, metric in results["alone"]["metrics"].items():
        assert results["pair"]["metrics"][name]["n"] == metric["n"]
        if metric["value"] is not None:
            found = results["pair"]["metrics"][name]["value"]
            assert found == pytest.approx(metric["value"], abs=1e-4), name
    assert _steps(story["pair"]) == list(range(4, STEPS + 1, 4))
    ids = np.load(story["pair"] / "rows-test.npz")["id"]
    assert ids.tolist() == np.load(story["alone"] / "rows-test.npz")["id"].tolist()
    assert "Research software" not in story["ended"][2]


@pytest.mark.slow
def test_one_host_goes_on_with_what_two_left(story):
    log = story["folder"] / "longer.txt"
    last = f"--config.total_steps={STEPS + 4}"
    run = _start(story["pair"], last, f"--config.eval_steps=({STEPS + 4},)", devices=2, log=log)
    assert run.wait(PATIENCE_S) == 0, log.read_text()[-2000:]
    assert f"resuming {story['pair']} from step {STEPS}" in log.read_text()
    assert _steps(story["pair"])[-1] == STEPS + 4


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_clear_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = (f"--coordinator=localhost:{port}", "--processes=2", "--process=0")
        run = subprocess.run(_command(tmp_path / "run", *flags), capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: --coordinator=localhost:{port}: port {port} of this")
    assert run.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_no_flags_are_one_process():
    assert hosts.place() is None


def test_the_place_of_flags():
    found = hosts.place(coordinator="node7:999", processes=4, process=3)
    assert found == hosts.Place("node7:999", 4, 3)


def test_the_place_in_a_jobset():
    environment = {
        "JOBSET_NAME": "cxr",
        "REPLICATED_JOB_NAME": "worker",
        "JOB_COMPLETION_INDEX": "2",
        "PROCESSES": "4",
    }
    found = hosts.place("jobset", environment=environment)
    assert found == hosts.Place(f"cxr-worker-0-0.cxr:{hosts.PORT}", 4, 2)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"cluster": "pbs"}, "expected one of slurm"),
        ({"cluster": "slurm"}, "SLURM_JOB_ID"),
        ({"cluster": "jobset"}, "JOBSET_NAME"),
        ({"cluster": "tpu", "processes": 2}, "leave out --coordinator"),
        ({"processes": 2, "process": 0}, "HOST:PORT"),
        ({"coordinator": "node7", "processes": 2, "process": 0}, "HOST:PORT"),
        ({"coordinator": "node7:99999", "processes": 2, "process": 0}, "HOST:PORT"),
        ({"coordinator": "node7:9", "processes": 2, "process": 2}, "0 to one less"),
        ({"coordinator": "node7:9", "processes": 2}, "0 to one less"),
    ],
)
def test_flags_that_name_no_place(flags, words):
    cluster = flags.pop("cluster", "")
    with pytest.raises(InputError, match=words):
        hosts.place(cluster, environment={}, **flags)
