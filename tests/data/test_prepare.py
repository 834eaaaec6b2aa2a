"""The prepare command: whole or not at all, one line for a mistake, no TensorFlow."""

import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from fake_sets import brixia_config, draw_film, make_prepared, make_public, run_prepare

from cxr_jax.data import prepare, sources
from cxr_jax.data.sources import brixia_cohen, prepared
from cxr_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def command(*args, **options):
    return subprocess.run(
        [sys.executable, "-m", "cxr_jax.data.prepare", *map(str, args)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, **options,
    )  # fmt: skip


def test_command_prepares_the_public_layout_and_says_where(tmp_path):
    source = make_public(tmp_path / "source")
    done = command("brixia_cohen", f"--source={source}", f"--data_dir={tmp_path / 'data'}")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "data" / "brixia_cohen" / prepared.VERSION
    films = brixia_cohen.read_index(source)
    train = sum(film.split == "train" for film in films)
    assert done.stdout == (
        f"brixia_cohen: prepared {train} train, {26 - train} test films in {folder}\n"
    )
    opened = sources.open_source(brixia_config(tmp_path / "data"), "train")
    assert len(opened) == train
    assert [opened[i]["id"] for i in range(train)] == [f.id for f in films if f.split == "train"]


def test_running_again_changes_nothing_and_another_source_is_refused(tmp_path, capsys):
    source = make_prepared(tmp_path / "source")
    run_prepare("brixia_cohen", source, tmp_path / "data")
    folder = tmp_path / "data" / "brixia_cohen" / prepared.VERSION
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    run_prepare("brixia_cohen", source, tmp_path / "data")
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(InputError, match="from other files or with other options"):
        run_prepare("brixia_cohen", source, tmp_path / "data", "--max_side=64")
    draw_film(source / "images" / "f3.png", 99, (50, 50))
    with pytest.raises(InputError, match="from other files or with other options"):
        run_prepare("brixia_cohen", source, tmp_path / "data")
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_same_source_gives_the_same_bytes(tmp_path):
    source = make_prepared(tmp_path / "source")
    for name in ("a", "b"):
        run_prepare("brixia_cohen", source, tmp_path / name)
    read = [
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*array_record*")}
        for name in ("a", "b")
    ]
    assert read[0] == read[1]
    assert len(read[0]) == 2


def test_a_bad_film_leaves_no_half_data_set(tmp_path):
    source = make_prepared(tmp_path / "source")
    (source / "images" / "f7.png").write_bytes(b"not a picture")
    with pytest.raises(InputError, match=r"f7\.png"):
        run_prepare("brixia_cohen", source, tmp_path / "data")
    assert [p.name for p in (tmp_path / "data" / "brixia_cohen").iterdir()] == [".lock"]
    draw_film(source / "images" / "f7.png", 7)
    run_prepare("brixia_cohen", source, tmp_path / "data")
    assert len(sources.open_source(brixia_config(tmp_path / "data"), "train")) == 10


SLOW = """
import sys, time
from cxr_jax.data import prepare, readers
read = readers.read_film
def slow(path):
    print("reading", flush=True)
    time.sleep(30 if path.name == "f5.png" else 0)
    return read(path)
readers.read_film = slow
prepare.main(sys.argv[1:])
"""


def test_a_killed_run_leaves_no_half_data_set(tmp_path):
    source, data_dir = make_prepared(tmp_path / "source"), tmp_path / "data"
    args = ["brixia_cohen", f"--source={source}", f"--data_dir={data_dir}"]
    slow = subprocess.Popen(
        [sys.executable, "-c", SLOW, *args], cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 60
        while not list(data_dir.glob("brixia_cohen/incomplete.*")):
            assert slow.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        with pytest.raises(InputError, match="another `prepare` is writing there"):
            prepare.main(args)
    finally:
        os.killpg(slow.pid, signal.SIGKILL)
        slow.wait()
    with pytest.raises(InputError, match="is not prepared"):
        sources.open_source(brixia_config(data_dir), "train")
    prepare.main(args)
    assert len(sources.open_source(brixia_config(data_dir), "train")) == 10
    left = {path.name for path in (data_dir / "brixia_cohen").iterdir()}
    assert left == {".lock", prepared.VERSION}


@pytest.mark.parametrize(
    "args, words",
    [
        (["brixia_cohen", "--source={tmp}"], "found none of annotations.csv"),
        (["brixia_cohen", "--source={tmp}", "--max_side=0"], "--max_side=0"),
        (["manifest", "--source={tmp}/films.csv"], "films.csv: there is no such file"),
        (["cohen", "--source={tmp}"], "data set 'cohen'; expected one of bimcv_covid19, "),
    ],
)
def test_mistakes_are_one_line_and_status_2(tmp_path, args, words):
    done = command(*[a.format(tmp=tmp_path) for a in args], f"--data_dir={tmp_path}")
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    source = make_prepared(tmp_path / "source")
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="cannot be written"):
        run_prepare("brixia_cohen", source, tmp_path / "data")


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    def small_files():
        # Refused past this size as on a full disk; an ArrayRecord file has at least 64 KiB.
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    source = make_prepared(tmp_path / "source")
    done = command(
        "brixia_cohen", f"--source={source}", f"--data_dir={tmp_path}", preexec_fn=small_files
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written (File too large); free the disk" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert [p.name for p in (tmp_path / "brixia_cohen").iterdir()] == [".lock"]


def test_a_damaged_set_is_named(tmp_path):
    source = make_prepared(tmp_path / "source")
    run_prepare("brixia_cohen", source, tmp_path / "data")
    folder = tmp_path / "data" / "brixia_cohen" / prepared.VERSION
    file = next(folder.glob("*train.array_record*"))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="is missing or damaged"):
        np.array(sources.open_source(brixia_config(tmp_path / "data", fold=0), "train")[5])
    file.unlink()
    with pytest.raises(InputError, match="is missing or damaged"):
        sources.open_source(brixia_config(tmp_path / "data", fold=0), "train")


NO_TENSORFLOW = """
import sys
import cxr_jax.data.pipeline
import cxr_jax.data.sources
assert "tensorflow_datasets" not in sys.modules, "TFDS is for prepared sets only"
from cxr_jax.data import prepare, sources
prepare.main(["brixia_cohen", "--source=" + sys.argv[1], "--data_dir=" + sys.argv[2]])
data = sources.block("brixia_cohen", data_dir=sys.argv[2], fold=0)
assert sources.open_source(data, "train")[0]["image"].ndim == 2
assert "tensorflow" not in sys.modules
"""


def test_nothing_imports_tensorflow(tmp_path):
    source = make_prepared(tmp_path / "source")
    done = subprocess.run(
        [sys.executable, "-c", NO_TENSORFLOW, str(source), str(tmp_path / "data")],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_real_set(cxr_data, tmp_path):
    source = cxr_data / "brixia_cohen"
    run_prepare("brixia_cohen", source, tmp_path, "--max_side=96")
    for split, count, masked in (("train", 107, 86), ("test", 36, 28)):
        opened = sources.open_source(brixia_config(tmp_path), split)
        records = [opened[i] for i in range(len(opened))]
        assert len(records) == count
        assert max(max(record["image"].shape) for record in records) == 96
        with_lungs = [record for record in records if "lungs" in record]
        assert len(with_lungs) == masked == len(sources.only_with(opened, {"lungs"}))
        for record in with_lungs:
            right, left = record["lungs"] == 1, record["lungs"] == 2
            assert right.any(), record["id"]
            assert left.any(), record["id"]
            assert record["lungs"].shape == record["image"].shape
            assert np.nonzero(right)[1].mean() < np.nonzero(left)[1].mean()
            # A lung field holds air: on the stored film it is darker than its surroundings.
            inside = record["lungs"] > 0
            ring = cv2.dilate(inside.astype(np.uint8), np.ones((9, 9), np.uint8)) > inside
            record["darker"] = record["image"][inside].mean() < record["image"][ring].mean()
        # Not in each film: consolidated lungs are bright, and a ring may hold the black margin.
        assert np.mean([record["darker"] for record in with_lungs]) > 0.9


def test_help_answers():
    done = command("--help")
    assert done.returncode == 0
    assert "--max_side" in done.stdout
