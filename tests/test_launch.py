"""The scripts of launch/: checked by tools of their kind, and run with stand-ins for a cluster."""

import os
import signal
import subprocess
import sys
import time

import kubernetes_validate
import pytest
import yaml

from cxr_jax import hosts
from tests.conftest import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
FLAGS = ("--config=configs/severity.py", "--config.data.path=a folder/films.csv", "--workdir=DIR")


def run(script, *flags, tools="", **environment):
    """The script's output, with `tools` (a folder) before all other commands."""
    path = f"{tools}:{os.environ['PATH']}" if tools else os.environ["PATH"]
    return subprocess.run(
        ["bash", str(LAUNCH / script), *flags],
        env=os.environ | {"PATH": path, "PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )


def tool(folder, name, text):
    """A stand-in for a command."""
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_no_complaint(script):
    shellcheck = os.path.join(os.path.dirname(sys.executable), "shellcheck")
    found = subprocess.run([shellcheck, str(script)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert os.access(script, os.X_OK)


def test_dry_runs_print_the_exact_commands():
    quoted = f"-m cxr_jax.main {FLAGS[0]} --config.data.path=a\\ folder/films.csv {FLAGS[2]}"
    single = run("gpu_single.sh", *FLAGS, DRY_RUN="1")
    assert single.stdout.strip() == f"{sys.executable} {quoted}"
    slurm = run("slurm.sbatch", *FLAGS, DRY_RUN="1")
    srun = f"srun --kill-on-bad-exit=1 {sys.executable} {quoted} --hosts=slurm"
    assert slurm.stdout.strip() == srun
    pod = run("tpu_pod.sh", "pod7", "us-east5-a", *FLAGS, DRY_RUN="1")
    assert pod.stdout.startswith("gcloud compute tpus tpu-vm ssh pod7 --zone=us-east5-a")
    assert "--hosts=tpu" in pod.stdout
    # What the far shell gets is the command with the flags that were given.
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {pod.stdout}"], capture_output=True, text=True
    ).stdout.splitlines()
    assert words[-1].removeprefix("--command=").startswith("cd cxr_jax && .venv/bin/python")
    assert "a\\ folder/films.csv" in words[-1]


@pytest.mark.parametrize("script", [s.name for s in SCRIPTS if s.suffix == ".sh"])
def test_help_is_told(script):
    told = run(script, "--help")
    assert told.returncode == 0
    assert f"launch/{script}" in told.stdout


def test_a_machine_without_gpus_is_told():
    told = run("gpu_single.sh", *FLAGS)
    assert told.returncode == 2
    assert told.stderr.startswith("error: this machine shows no GPU")


def test_one_machine_tries_again_but_not_after_a_mistake(tmp_path):
    tool(tmp_path, "nvidia-smi", "echo GPU 0")
    tool(tmp_path, "sleep", "exit 0")
    tool(tmp_path, "fails", f"echo try >> {tmp_path}/tries; exit $STATUS")
    settings = {"tools": tmp_path, "PYTHON": str(tmp_path / "fails"), "RETRIES": "2"}
    assert run("gpu_single.sh", *FLAGS, **settings, STATUS="1").returncode == 1
    assert (tmp_path / "tries").read_text().count("try") == 3
    assert run("gpu_single.sh", *FLAGS, **settings, STATUS="2").returncode == 2
    assert (tmp_path / "tries").read_text().count("try") == 4


def test_a_job_of_slurm_saves_and_goes_back_into_the_queue(tmp_path):
    tool(tmp_path, "scontrol", f'echo "$@" >> {tmp_path}/queue')
    # Ends a second after the signal, as a run that saves does.
    tool(
        tmp_path,
        "srun",
        f"trap 'sleep 1; echo saved > {tmp_path}/saved; exit 143' TERM; echo up > {tmp_path}/up\n"
        "for i in $(seq 300); do sleep 0.1; done",
    )
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    job = subprocess.Popen(
        ["bash", str(LAUNCH / "slurm.sbatch"), *FLAGS], env=os.environ | environment
    )
    while not (tmp_path / "up").exists():
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) == 143
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "queue").read_text() == "requeue 77\n"


def test_a_sweep_is_array_jobs_that_wait_for_each_other(tmp_path):
    (tmp_path / "list.toml").write_text(
        f'config = "{ROOT}/configs/findings.py:smoke"\nseeds = [0, 1]\n[[run]]\nname = "a"\n'
        '[[run]]\nname = "b"\noverrides = {init_from = "{dir:a}"}\n'
    )
    jobs = tmp_path / "jobs"
    tool(tmp_path, "sbatch", f'printf "%s|" "$@" >> {jobs}; echo >> {jobs}; echo 9')
    flags = (f"--list={tmp_path}/list.toml", f"--output={tmp_path}/out")
    told = run("sweep.sh", *flags, tools=tmp_path, SBATCH="sbatch --gpus=1")
    assert told.returncode == 0, told.stderr
    first, second, table = (line.split("|") for line in jobs.read_text().splitlines())
    assert first[:4] == ["--gpus=1", "--parsable", "--job-name=cxr_sweep", "--array=1-2"]
    assert second[3:5] == ["--array=3-4", "--dependency=afterany:9"]
    assert second[5].endswith("--run=$SLURM_ARRAY_TASK_ID")
    assert table[2:4] == ["--job-name=cxr_table", "--dependency=afterany:9"]
    assert "--run" not in table[4]
    dry = run("sweep.sh", *flags, tools=tmp_path, DRY_RUN="1")
    assert "--dependency=afterany:JOB2" in dry.stderr
    assert len(jobs.read_text().splitlines()) == 3


def test_the_jobset_is_one():
    jobset = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(jobset["spec"]) == {"network", "failurePolicy", "replicatedJobs"}
    (worker,) = jobset["spec"]["replicatedJobs"]
    assert set(worker) == {"name", "replicas", "template"}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{jobset['metadata']['name']}-{worker['name']}-0"},
        **worker["template"],
    }
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(job, version, strict=True)
    spec = worker["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    environment = {entry["name"]: entry.get("value", "x") for entry in container["env"]}
    assert spec["parallelism"] == spec["completions"] == int(environment["PROCESSES"])
    place = hosts.place("jobset", environment=environment | {"JOB_COMPLETION_INDEX": "1"})
    assert place.processes == spec["completions"]
    assert container["ports"][0]["containerPort"] == hosts.PORT


def test_the_image_copies_what_the_package_needs():
    lines = (LAUNCH / "Containerfile").read_text().splitlines()
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    assert {"pyproject.toml", "README.md", "LICENSE", "configs", "cxr_jax"} == set(copied)
