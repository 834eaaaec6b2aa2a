"""Checkpoints that were damaged, and work directories that two want to write."""

import fcntl
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time

import pytest

from configs import severity as severity_config
from cxr_jax import checkpoints, evaluate, initialise, manifests, train, trained
from cxr_jax import workdir as workdirs
from cxr_jax.errors import InputError
from tests.conftest import ROOT
from tests.processes import assert_same_state, command, environment

FLIPS = 160


def smoke(**changes):
    config = severity_config.get_config("smoke").copy_and_resolve_references()
    config.update(devices=1, total_steps=3, eval_steps=(), figures=0, bootstrap=0)
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of three steps, of which two have checkpoints."""
    workdir = tmp_path_factory.mktemp("whole")
    assert train.train(smoke(), workdir)
    assert checkpoints.complete_steps(workdir) == [2, 3]
    return workdir


@pytest.fixture
def run(whole, tmp_path):
    """A copy, to be damaged."""
    return shutil.copytree(whole, tmp_path / "run")


def files_of(workdir: pathlib.Path, step: int = 3) -> list[pathlib.Path]:
    found = (workdir / "checkpoints" / str(step)).rglob("*")
    return sorted(path for path in found if path.is_file())


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: pathlib.Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def flip_the_middle(path: pathlib.Path) -> None:
    flip(path, path.stat().st_size * 4)


def test_a_whole_checkpoint_loads(whole):
    assert checkpoints.newest_whole(whole) == 3
    assert int(checkpoints.read_state(whole)["step"]) == 3
    assert trained.TrainedRun.load(whole, (2, 3)).steps == (2, 3)
    for step in (2, 3):
        assert manifests.MANIFEST in {path.name for path in files_of(whole, step)}


def test_not_one_flipped_bit_is_silent(run):
    rng = random.Random(0)
    files = files_of(run)
    chosen = files + rng.choices(files, [f.stat().st_size for f in files], k=FLIPS - len(files))
    for path in chosen:
        bit = rng.randrange(path.stat().st_size * 8)
        flip(path, bit)
        with pytest.raises(InputError, match=r"checkpoints/3 is damaged: .*there are \[2\]"):
            checkpoints.read_state(run)
        flip(path, bit)
    assert int(checkpoints.read_state(run)["step"]) == 3


@pytest.mark.parametrize("damage", [pathlib.Path.unlink, cut, flip_the_middle])
def test_any_damaged_file_sets_the_checkpoint_aside(run, damage, capsys):
    folder = run / "checkpoints"
    kept = shutil.copytree(folder / "3", run / "kept")
    names = [path.relative_to(folder) for path in files_of(run)]
    assert len(names) > 10
    for number, name in enumerate(names, start=1):
        damage(folder / name)
        assert checkpoints.newest_whole(run) == 2
        (line,) = capsys.readouterr().out.splitlines()
        assert line.endswith(f"set aside as {folder}/damaged/3-{number}")
        # A changed hash is told as a change of its file.
        assert name.name in line or name.name == manifests.MANIFEST
        assert checkpoints.complete_steps(run) == [2]
        shutil.copytree(kept, folder / "3")


@pytest.mark.parametrize(
    "name, damage",
    [
        ("state/manifest.ocdbt", flip_the_middle),
        ("data/process_0-of-1.json", lambda path: path.write_text('{\n "next_index": 2\n}')),
        (manifests.MANIFEST, pathlib.Path.unlink),
    ],
    ids=["state", "position", "manifest"],
)
def test_a_damaged_run_resumes_from_the_one_before_to_the_bit(whole, run, name, damage, capsys):
    damage(run / "checkpoints" / "3" / name)
    if name == manifests.MANIFEST:  # one real training a test is dear
        assert checkpoints.newest_whole(run) == 2
        return
    assert train.train(smoke(), run)
    said = capsys.readouterr().out
    assert re.search(rf"checkpoints/3 is damaged: .*{name}.*set aside as .*damaged/3-1", said)
    assert "resuming" in said
    assert "from step 2" in said
    assert_same_state(whole, run)
    assert (whole / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()


def test_whoever_only_reads_sets_nothing_aside_and_says_so(run):
    flip_the_middle(files_of(run)[-1])
    readers = [
        lambda: trained.TrainedRun.load(run),
        lambda: trained.TrainedRun.load(run, (2, 3)),
        lambda: evaluate.evaluate(smoke(), run, steps=(3,)),
        lambda: initialise.read_arrays(run),
        lambda: initialise.read_arrays(run, 3),
    ]
    for read in readers:
        with pytest.raises(InputError, match=r"checkpoints/3 is damaged"):
            read()
    assert checkpoints.complete_steps(run) == [2, 3]
    assert trained.TrainedRun.load(run, (2,)).steps == (2,)


def test_a_checkpoint_under_another_number_is_damaged(run):
    (run / "checkpoints" / "3").rename(run / "checkpoints" / "4")
    with pytest.raises(InputError, match=r"its MANIFEST\.json is of step 3"):
        checkpoints.read_state(run)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": 3}', '{"step": 3, "files": 7}'])
def test_a_manifest_that_is_none_is_damage(run, text):
    (run / "checkpoints" / "3" / manifests.MANIFEST).write_text(text)
    with pytest.raises(InputError, match=r"checkpoints/3 is damaged: MANIFEST\.json is no man"):
        checkpoints.read_state(run)


def test_checkpoints_of_older_versions_load_and_are_told_of_once(run, capsys):
    for step in ("2", "3"):
        (run / "checkpoints" / step / manifests.MANIFEST).unlink()
    assert checkpoints.newest_whole(run) == 3
    assert trained.TrainedRun.load(run, (2, 3)).steps == (2, 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert "no MANIFEST.json (of an older version), so it is used unchecked" in line


@pytest.mark.parametrize("damage", [pathlib.Path.unlink, cut])
def test_a_damaged_checkpoint_without_hashes_is_one_line(run, damage):
    for step in ("2", "3"):
        (run / "checkpoints" / step / manifests.MANIFEST).unlink()
    for name in ("_METADATA", "manifest.ocdbt"):
        path = run / "checkpoints" / "3" / "state" / name
        before = path.read_bytes()
        damage(path)
        for read in (checkpoints.read_state, trained.TrainedRun.load):
            with pytest.raises(InputError, match=r"checkpoints/3"):
                read(run)
        path.write_bytes(before)


def test_hashing_does_not_hold_up_the_caller(whole, tmp_path, monkeypatch):
    """`save` comes back while the hashes are still being made; only the next one waits."""
    write, done = manifests.write, []

    def slowly(folder, step):
        time.sleep(1.0)
        write(folder, step)
        done.append(step)

    monkeypatch.setattr(manifests, "write", slowly)
    config = smoke()
    run = train.open_run(config, tmp_path, "test")
    batches = run.batches()
    program = train.compile_run(run)
    state = program.create()
    with checkpoints.Checkpoints(tmp_path) as folder:
        folder.save(state, batches)
        assert not done
        assert checkpoints.complete_steps(tmp_path) == []
    assert done == [0]
    assert checkpoints.complete_steps(tmp_path) == [0]
    batches.close()


# One writer.


def test_a_work_directory_has_one_writer(run):
    before = (run / "results.json").exists()
    with workdirs.only_writer(run):
        for use in (train.train, evaluate.evaluate):
            with pytest.raises(InputError, match=rf"pid {os.getpid()} on .*wait for it"):
                use(smoke(), run)
    assert (run / "results.json").exists() == before
    assert train.train(smoke(), run)  # free again


def test_a_work_directory_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="is no folder, a file is there"):
            train.train(smoke(), folder)


def test_a_command_that_is_refused_leaves_no_folder(tmp_path):
    config = smoke()
    config.data.train = 0
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "new", tmp_path / "there"):
        with pytest.raises(InputError):
            train.train(config, folder)
    assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "there").iterdir()] == [workdirs.LOCK]


def test_a_command_that_is_refused_takes_nothing_away(tmp_path):
    config = smoke()
    config.data.train = 0
    for folder in (tmp_path / "new", tmp_path / "below" / "new"):
        with workdirs.only_writer(folder):
            (folder / "note").write_text("mine")
        with pytest.raises(InputError):
            train.train(config, folder)
        assert (folder / "note").read_text() == "mine"


def test_a_lock_that_was_taken_away_is_none(tmp_path, monkeypatch):
    """Whoever opened the lock of a folder before it was left finds that it is no longer there."""
    locked = fcntl.flock

    def late(file, how):
        locked(file, how)
        (tmp_path / workdirs.LOCK).unlink()

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(InputError, match="another process"), workdirs.only_writer(tmp_path):
        pass


def test_checkpoints_without_a_config_are_refused(run):
    (run / "config.json").unlink()
    with pytest.raises(InputError, match=r"has checkpoints and no config\.json"):
        train.train(smoke(), run)
    assert not (run / "config.json").exists()


def start(workdir: pathlib.Path, **overrides) -> subprocess.Popen:
    overrides = dict(total_steps=600, checkpoint_every=5, eval_steps="()") | overrides
    return subprocess.Popen(
        command("--config=configs/severity.py:smoke", f"--workdir={workdir}", **overrides),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_checkpoint(process: subprocess.Popen, workdir: pathlib.Path, after: int = 0) -> int:
    """The first step after `after` that has a checkpoint, as soon as there is one."""
    while True:
        assert process.poll() is None, process.communicate()
        if later := [s for s in checkpoints.complete_steps(workdir) if s > after]:
            return later[0]
        time.sleep(0.02)


@pytest.mark.slow
def test_two_processes_never_share_a_work_directory(tmp_path):
    """The second ends in one line, of the same seed and of another; after kill -9 it starts."""
    both = [start(tmp_path, seed=0), start(tmp_path, seed=1)]
    while all(process.poll() is None for process in both):
        time.sleep(0.02)
    first, second = sorted(both, key=lambda process: process.poll() is not None)
    assert first.poll() is None
    assert second.returncode == 2
    (line,) = second.communicate()[1].splitlines()
    assert re.search(rf"error: .*pid {first.pid} on .*wait for it", line)
    step = wait_for_checkpoint(first, tmp_path)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    seed = json.loads((tmp_path / "config.json").read_text())["seed"]
    other, *_ = start(tmp_path, seed=1 - seed).communicate()[1:]
    (line,) = other.splitlines()
    assert "seed is" in line
    again = start(tmp_path, seed=seed)
    wait_for_checkpoint(again, tmp_path, after=step)
    again.send_signal(signal.SIGTERM)
    assert "resuming" in again.communicate()[0]
    assert again.returncode == 143
