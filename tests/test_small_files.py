import io
import json
import os
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from cxr_jax import cli, evaluate, report, small_files, weights, workdir
from cxr_jax.data.sources.prepared import layout
from cxr_jax.errors import InputError
from cxr_jax.figures import charts
from cxr_jax.inputs.outputs import OutputFolder

ROOT = pathlib.Path(__file__).resolve().parents[1]
LONG = "x" * 256
DEEP = "[" * 100_000 + "]" * 100_000
CONFIG = {"task": "severity", "data": {"name": "phantom_cxr", "seed": 0}, "total_steps": 1}
BROKEN = {
    "empty": b"",
    "cut": b'{"task": "seve',
    "a list": b"[1, 2]",
    "a number": b"3",
    "null": b"null",
    "deep lists": b'{"task": ' + DEEP.encode() + b"}",
    "deep objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "deeper than a walk": b'{"a":' * 100 + b"1" + b"}" * 100,
    "no UTF-8": b'{"task": "\xff\xfe"}',
    "UTF-16": json.dumps(CONFIG).encode("utf-16"),
    "NUL": b"\0" * 100,
    "NaN": b'{"task": NaN}',
    "too large": b'{"task": 1e999}',
    "many digits": b'{"task": ' + b"1" * 5000 + b"}",
    "many lists": b'{"a": [' + b"[]," * 300_000 + b"0]}",
}


def one_line(call, *arguments, words=()):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert len(text) < 700
    assert text.isprintable()
    for word in words:
        assert word in text


@pytest.mark.parametrize("what", BROKEN)
def test_broken_small_files_are_one_line_everywhere(tmp_path, what):
    names = ("config.json", "data.json", "results.json", "predictions.jsonl", "metrics.jsonl")
    for name in (*names, "weights.json", "metadata.json", "dataset_info.json"):
        (tmp_path / name).write_bytes(BROKEN[what])
    one_line(workdir.read_config, tmp_path, words=["config.json"])
    one_line(workdir.trained_on, tmp_path, words=["data.json"])
    one_line(layout.metadata, tmp_path, words=["metadata.json"])
    one_line(layout.check_description, tmp_path, words=["dataset_info.json"])
    results = tmp_path / "results.json"
    one_line(lambda: evaluate._read_results(results))
    assert results.read_bytes() == BROKEN[what]
    if BROKEN[what]:
        one_line(OutputFolder, tmp_path, [])
    assert charts._read_curves(tmp_path / "metrics.jsonl") == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": 3}, "a whole number as task, expected a text"),
        ({"data": []}, "a list as data, expected an object"),
        ({"data": {"name": None}}, "null as data.name, expected a text"),
        ({"data": {}}, "lacks data.name"),
        ({"total_steps": "12"}, "a text as total_steps, expected a whole number"),
        ({"seed": True}, "true or false as seed, expected a whole number"),
        ({"extra": 4}, "a whole number as extra, expected an object"),
        ({"eval_steps": {}}, "an object as eval_steps, expected a list"),
        ({"eval_steps": [[1]]}, "eval_steps are no list of whole numbers"),
    ],
)
def test_a_config_of_wrong_types_is_one_line(tmp_path, changes, words):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert workdir.read_config(tmp_path).task == "severity"
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
    one_line(workdir.read_config, tmp_path, words=[words, "config.json"])


def test_names_that_no_disk_holds_and_folders_in_a_files_place(tmp_path):
    for name in (LONG, "a\0b", LONG + "/config.json"):
        for call in (small_files.is_file, small_files.is_folder, small_files.exists):
            one_line(call, tmp_path / name)
        one_line(workdir.read_config, tmp_path / name)
        one_line(small_files.read_fields, tmp_path / name, "x")
        one_line(small_files.read_npz, tmp_path / name, "x")
        one_line(lambda path: list(small_files.scan_lines(path)), tmp_path / name)
    (tmp_path / "config.json").mkdir()
    one_line(workdir.read_config, tmp_path, words=["no work directory"])
    (tmp_path / "data.json").mkdir()
    one_line(workdir.trained_on, tmp_path, words=["is no file"])
    (tmp_path / "file").write_text("a work directory that is a file")
    one_line(workdir.read_config, tmp_path / "file", words=["no work directory"])
    assert not small_files.exists(tmp_path / "file" / "inside")


def test_a_set_that_names_types_of_its_own_is_refused(tmp_path):
    (tmp_path / "dataset_info.json").write_text('{"name": "manifest"}')
    kind = "tensorflow_datasets.core.features.text_feature.Text"
    for name, good in ((kind, True), ("antigravity.fly", False)):
        features = {"featuresDict": {"features": {"id": {"pythonClassName": name}}}}
        (tmp_path / "features.json").write_text(json.dumps(features))
        if good:
            layout.check_description(tmp_path)
        else:
            one_line(layout.check_description, tmp_path, words=["antigravity"])


def npy(header, data=b""):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + data


def test_rows_that_are_none_are_one_line(tmp_path):
    rows = {"id": np.array(["a", "b"]), "group": np.array(["p", "q"]), "x": np.arange(2.0)}
    path = tmp_path / "rows-test.npz"

    def refused(*words, **changed):
        np.savez_compressed(path, **{k: v for k, v in (rows | changed).items() if v is not None})
        one_line(report.read_rows, tmp_path, "test", words=[*words, "--mode=eval"])

    np.savez_compressed(path, **rows)
    assert report.read_rows(tmp_path, "test")["x"].tolist() == [0, 1]
    refused("has no id", id=None)
    refused("x is", x=np.arange(3.0))
    refused("x is", x=np.array(["a", "b"]))
    refused("group is", group=np.arange(2))
    refused("a pickle", x=np.array([{}, {}], object))
    for shape, dtype in (((10**12,), "<f4"), ((2,), "|O"), ((10**9,), "|S0"), ((-2, -2), "<f4")):
        with zipfile.ZipFile(path, "w") as archive:
            header = {"descr": dtype, "fortran_order": False, "shape": shape}
            archive.writestr("id.npy", npy(header, b"\0" * 16))
        one_line(report.read_rows, tmp_path, "test")
    for packing in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", packing) as archive:
            archive.writestr("id.npy", b"\0" * 1000)
        one_line(report.read_rows, tmp_path, "test", words=["packed in another way"])
    path.write_bytes(b"PK\x03\x04 and no more")
    one_line(report.read_rows, tmp_path, "test")


def test_weights_json_of_other_types_is_one_line(tmp_path):
    (tmp_path / weights.ABOUT).write_text('{"kind": 3, "sha256": "x"}')
    about = {"sha256": "x", "kind": "vit", "prefix": "vit"}
    one_line(weights._check_folder, tmp_path, about, words=["weights.json", "as kind"])


def test_a_path_that_cannot_be_is_one_line_of_a_command(tmp_path, capsys):
    """A work directory or output that is a file, and names that no disk holds."""
    (tmp_path / "file").write_text("x")
    for call in (
        (tmp_path / "file").mkdir,
        (tmp_path / "file" / "inside").mkdir,
        (tmp_path / LONG).stat,
        lambda: tmp_path.read_text(),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.run_command(call)
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "FILE"],
        ["report", "LONG"],
        ["weights", "show", "LONG"],
        ["weights", "import", "LONG", "out"],
        ["weights", "import", "FILE", "LONG"],
        ["main", "--workdir=FILE", "--mode=show"],
        ["main", "--workdir=LONG", "--mode=show"],
        ["main", "--config=LONG"],
        ["predict", "--workdir=LONG", "--output=o", "FILE"],
        ["data.prepare", "manifest", "--source=LONG"],
    ],
)
def test_commands_end_in_one_line(arguments, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    filled = [a.replace("FILE", "file").replace("LONG", LONG) for a in arguments]
    done = subprocess.run(
        [sys.executable, "-m", f"cxr_jax.{filled[0]}", *filled[1:]],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
