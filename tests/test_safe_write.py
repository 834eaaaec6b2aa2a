"""The one way outputs are written: through no link, over nothing, whole or not at all."""

import contextlib
import os

import pytest

from cxr_jax import figures, safe_write, writers
from cxr_jax.errors import InputError, one_line


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "results.json"
    writers.write_json(path, {"a": 1})
    with contextlib.suppress(KeyError), safe_write.replacing(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert os.listdir(tmp_path) == ["results.json"]


def test_no_link_is_followed(tmp_path):
    """Neither one in place of the file, nor one where a partial file was once written."""
    other = tmp_path / "other"
    other.write_text("precious")
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("a.json", "a.json.part", f".a.png.{os.getpid()}.part"):
        (folder / name).symlink_to(other)
    writers.write_json(folder / "a.json", {})
    figure = figures.style.Figure(figsize=(1, 1))
    figures.save(figure, folder / "a.png")
    assert other.read_text() == "precious"
    assert not (folder / "a.json").is_symlink()


def test_nothing_that_is_there_loses_its_name(tmp_path):
    path = tmp_path / "film.png"
    path.symlink_to("nowhere")  # a link without an end is there too
    with safe_write.fresh(path) as partial, pytest.raises(FileExistsError):
        safe_write.place(partial, path)
    assert os.readlink(path) == "nowhere"
    assert os.listdir(tmp_path) == ["film.png"]


def test_files_are_placed_without_hard_links_too(tmp_path, monkeypatch):
    def no_links(*args, **kwargs):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with safe_write.fresh(tmp_path / "a") as partial:
        partial.write_text("whole")
        safe_write.place(partial, tmp_path / "a")
    with safe_write.fresh(tmp_path / "a") as partial, pytest.raises(FileExistsError):
        safe_write.place(partial, tmp_path / "a")
    assert (tmp_path / "a").read_text() == "whole"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "out").write_text("x")
    for path in (tmp_path / "out", tmp_path / "out" / "deep"):
        with pytest.raises(InputError, match=r"--output=.* is no folder, a file is there"):
            safe_write.make_folder(path, "--output")


def test_a_message_cannot_steer_the_terminal():
    assert one_line("a\x1b[2J\0b\r\nc\u202ed\udc80") == r"a\x1b[2J\x00b c\u202ed\udc80"
    assert str(InputError("film\x1b]0;x\x07.png: no")) == r"film\x1b]0;x\x07.png: no"
    assert len(str(InputError("x" * 10**6))) < 2100
    assert one_line("Zürich 肺 é") == "Zürich 肺 é"


def test_what_a_killed_process_leaves_is_known(tmp_path):
    left = safe_write.create(tmp_path / "weights.safetensors")
    assert safe_write.is_left(left.name)
    assert not any(map(safe_write.is_left, ("a.part", ".hidden", "weights.safetensors", ".x.part")))
