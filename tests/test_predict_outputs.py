"""What predict writes, over nothing of others; what it reads, and what it says it left out.

The network is a stub: these are tests of files.
"""

import csv
import hashlib
import json
import os
import pathlib
import types

import cv2
import ml_collections
import nibabel
import numpy as np
import pytest
from matplotlib.figure import Figure

from cxr_jax import predict
from cxr_jax.errors import InputError
from cxr_jax.inputs import outputs
from cxr_jax.inputs.doors import Prediction
from cxr_jax.inputs.films import Films
from cxr_jax.inputs.volumes import Volumes
from cxr_jax.writers import code_version
from tests.data.dicom_films import film_dataset, grey_film


class StubRun:
    """A run that says of every film how bright it is; its pictures differ with that."""

    workdir, name, steps, card = "RUN", "RUN", (1,), {}

    def __init__(self, inputs=frozenset({"image"})):
        self.task = types.SimpleNamespace(
            data=types.SimpleNamespace(inputs=inputs),
            describe=self.describe,
            figure=lambda record, outputs: _figure(outputs["mean"]),
            layers=lambda record, outputs: dict(self.layers(record)),
        )
        self.config = ml_collections.ConfigDict({"threshold": 0.5})
        self.version = "0123456789abcdef" * 4

    def layers(self, record):
        return {}

    @staticmethod
    def describe(record, outputs):
        lungs = {"lung_pixels": int((record["lungs"] > 0).sum())} if "lungs" in record else {}
        return {"mean": float(outputs["mean"]), **lungs}

    def explain(self, record):
        return {"mean": record["image"].mean()}


def _figure(value):
    figure = Figure(figsize=(1, 1))
    figure.text(0.1, 0.5, f"{value:.3f}")
    return figure


@pytest.fixture
def run(monkeypatch):
    """`run(paths, output, masks=None)`: predict with the stub; its exit status."""

    def call(paths, output, **options):
        stub = StubRun()
        monkeypatch.setattr(predict, "_open", lambda *_, **__: (Films(stub, **options), stub))
        return predict.predict([pathlib.Path(p) for p in paths], pathlib.Path("RUN"), output)

    return call


def write_film(path, seed=0, size=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), grey_film(seed, size))
    return path


def lines_of(output):
    lines = (output / "predictions.jsonl").read_text().splitlines()
    return {line["file"]: line for line in map(json.loads, lines)}


def tree(folder):
    """Path -> bytes of all that is in a folder; of a link where it points to."""
    return {
        str(path.relative_to(folder)): os.readlink(path).encode()
        if path.is_symlink()
        else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture
def films(tmp_path):
    folder = tmp_path / "films"
    for k, name in enumerate(("film.png", "deep/film.png", "deep/FILM.png", "a b.png", "a_b.png")):
        write_film(folder / name, k)
    return folder


@pytest.mark.parametrize("where", ["beside", "into", "itself", "link"])
def test_the_films_have_the_same_bytes(run, films, tmp_path, where, capsys):
    """A first, a second and a third run, with one film more."""
    if where == "link":
        (tmp_path / "link").symlink_to(films)
    output = {
        "beside": tmp_path / "out",
        "into": films / "out",
        "itself": films,
        "link": tmp_path / "link",
    }[where]
    before = tree(films)
    for extra in (False, False, True):
        if extra:
            write_film(films / "0.png", 9)
            before = before | {"0.png": (films / "0.png").read_bytes()}
        assert run([films], output) == 0
        after = tree(films)
        assert {name: after[name] for name in before} == before
        lines = lines_of(output)
        assert sorted(lines) == sorted(str(films / name) for name in before)
        pictures = [line["picture"] for line in lines.values()]
        assert len({name.casefold() for name in pictures}) == len(before)
        for line in lines.values():
            content = (output / line["picture"]).read_bytes()
            assert line["written"] == {line["picture"]: hashlib.sha256(content).hexdigest()}
        told = capsys.readouterr().out
    among_films = 4 if where in ("itself", "link") else 0
    assert len(list(output.glob("*.png"))) == among_films + len(before)
    if where != "beside":
        assert "left out: 5 that an earlier prediction wrote (.png 5)" in told


def test_only_an_earlier_prediction_of_the_same_film_is_replaced(run, films, tmp_path):
    output = tmp_path / "out"
    film = films / "film.png"
    assert run([film], output) == 0
    assert run([film], output) == 0
    assert lines_of(output)[str(film)]["picture"] == "film.png"
    (output / "film.png").write_bytes(b"my notes")  # no longer what predict wrote
    assert run([film], output) == 0
    assert lines_of(output)[str(film)]["picture"] == "film-2.png"
    assert (output / "film.png").read_bytes() == b"my notes"
    assert run([film], output) == 0
    assert sorted(p.name for p in output.iterdir()) == [
        "film-2.png",
        "film.png",
        "predictions.csv",
        "predictions.jsonl",
    ]


def test_maps_lie_on_the_films_pixels_and_are_not_predicted_on(run, tmp_path, monkeypatch):
    monkeypatch.setattr(StubRun, "layers", lambda self, record: {"map": 255 - record["image"]})
    films = tmp_path / "films"
    film = write_film(films / "film.png")
    for _ in range(2):
        assert run([films], films) == 0
        assert sorted(path.name for path in films.iterdir()) == [
            *("film-2-map.png", "film-2.png", "film.png"),
            *("predictions.csv", "predictions.jsonl"),
        ]
    line = lines_of(films)[str(film)]
    assert line["map"] == "film-2-map.png"
    pixels = cv2.imread(str(film), cv2.IMREAD_UNCHANGED)
    written = cv2.imread(str(films / line["map"]), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(written, 255 - pixels)
    assert line["model"] == {
        "name": "RUN",
        "steps": [1],
        "version": "0123456789abcdef",
        "code_version": code_version(),
        "threshold": 0.5,
    }


def test_the_table_has_the_lines(run, tmp_path, monkeypatch):
    said = {"zones": {"A": 0.5, "B": None}, "boxes": [1, 2], "name": "=1+1", "number": -3.0}
    monkeypatch.setattr(StubRun, "describe", staticmethod(lambda record, outputs: said))
    good = write_film(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no film")
    assert run([good, tmp_path / "bad.png"], tmp_path / "out") == 0
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    row = rows[str(good)]
    assert (row["zones.A"], row["zones.B"], row["boxes"]) == ("0.5", "", "[1, 2]")
    assert (row["name"], row["number"]) == ("'=1+1", "-3.0")
    assert (row["model.name"], row["model.threshold"], row["error"]) == ("RUN", "0.5", "")
    assert "written" not in row
    assert (
        rows[str(tmp_path / "bad.png")]["error"]
        == (lines_of(tmp_path / "out")[str(tmp_path / "bad.png")]["error"])
    )


def test_a_table_of_somebody_else_is_one_line(run, films, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.csv").write_text("mine")
    with pytest.raises(InputError, match=r"predictions\.csv is no file of predict"):
        run([films / "film.png"], tmp_path / "out")
    assert (tmp_path / "out" / "predictions.csv").read_text() == "mine"


def test_links_are_not_followed(run, films, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    output = tmp_path / "out"
    output.mkdir()
    for name in ("predictions.jsonl.part", "film.png", ".predictions.jsonl.x.part.jsonl"):
        (output / name).symlink_to(precious)
    assert run([films / "film.png"], output) == 0
    assert precious.read_text() == "precious"
    assert lines_of(output)[str(films / "film.png")]["picture"] == "film-2.png"
    (output / "predictions.jsonl").unlink()
    (output / "predictions.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is a link or a folder"):
        run([films / "film.png"], output)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "content",
    ["earlier", "[]", "1", '{"file": 3}', '{"file": "a", "written": []}', "[" * 10**5, "\x80\n"],
)
def test_lines_that_are_not_predicts_are_one_line(run, films, tmp_path, content):
    output = tmp_path / "out"
    output.mkdir()
    (output / "predictions.jsonl").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"is broken, or no file of predict \(line 1\)"):
        run([films / "film.png"], output)
    assert os.listdir(output) == ["predictions.jsonl"]


def test_an_output_that_is_a_file_is_one_line(run, films, tmp_path):
    (tmp_path / "out").write_text("x")
    for output in (tmp_path / "out", tmp_path / "out" / "deep"):
        with pytest.raises(InputError, match="is no folder, a file is there"):
            run([films], output)


class Killed(BaseException):
    """As kill -9 does: nothing of predict goes on."""


def test_what_a_killed_run_wrote_is_known(run, films, monkeypatch, capsys):
    """Its pictures are not predicted on, and replaced by those of the next run."""
    stopped = Films.predict

    def some(self, path):
        if path.name == "film.png" and path.parent == films:
            raise Killed
        return stopped(self, path)

    monkeypatch.setattr(Films, "predict", some)
    with pytest.raises(Killed):
        run([films], films)
    left = [p.name for p in films.iterdir() if p.name.startswith(".")]
    assert len(left) == 1
    monkeypatch.setattr(Films, "predict", stopped)
    with next(films.glob(".*")).open("a") as file:
        file.write('{"file": "')  # the half of a line
    assert run([films], films) == 0
    assert "that an earlier prediction wrote (.png 4)" in capsys.readouterr().out
    lines = lines_of(films)
    assert len(lines) == 5
    assert not [p for p in films.iterdir() if p.name.startswith(".")]
    assert len(list(films.glob("*.png"))) == 3 + 5


def test_two_runs_at_once_do_not_lose_each_others_lines(run, films, monkeypatch, tmp_path):
    output, real = tmp_path / "out", Films.predict
    calls = []

    def and_another_run(self, path):
        if not calls:
            calls.append(path)
            assert run([films / "film.png"], output) == 0
        return real(self, path)

    monkeypatch.setattr(Films, "predict", and_another_run)
    with pytest.raises(InputError, match="was written by another run in the meantime"):
        run([films / "film.png"], output)
    assert len(lines_of(output)) == 1


def test_a_name_is_taken_while_it_runs(films, tmp_path):
    folder = outputs.OutputFolder(tmp_path, [films / "film.png"])
    (tmp_path / "film.png").write_text("new")
    found = Films(StubRun()).predict(films / "film.png")
    with folder.writing(), pytest.raises(InputError, match="came to be while predict ran"):
        folder.add(films / "film.png", found)
    assert (tmp_path / "film.png").read_text() == "new"


def test_what_is_not_looked_at_is_told(run, tmp_path, capsys):
    folder = tmp_path / "films"
    write_film(folder / "a.png")
    for name in ("b.tif", "c.tif", "d.bmp", "e.webp", "f.jp2", "notes", ".hidden.tif"):
        (folder / name).write_bytes(b"II*\0")
    film_dataset(Modality="DX").save_as(folder / "g.ima", enforce_file_format=True)
    assert run([folder], tmp_path / "out") == 0
    assert len(lines_of(tmp_path / "out")) == 2  # .ima is read
    told = capsys.readouterr().out
    words = "left out: 6 that are no PNG, JPEG or DICOM (.tif 2, .bmp 1, .webp 1, .jp2 1, no ending"
    assert words in told


def test_folders_beside_a_volume_are_told(tmp_path):
    for name in ("series1", "series2"):
        (tmp_path / name).mkdir()
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    image.to_filename(tmp_path / "scan.nii")
    (tmp_path / "x.dcm").write_bytes(b"x")
    found = Volumes.find(None, [tmp_path])
    assert [path.name for path in found.files] == ["scan.nii"]
    (line,) = found.told()
    assert line.startswith("left out: 3 that lie beside a volume")
    assert "folders 2" in line
    assert ".dcm 1" in line


def test_masks_go_by_the_films_place(run, tmp_path):
    films, masks = tmp_path / "films", tmp_path / "masks"
    sizes = {"one": 10, "two": 20}
    for name, height in sizes.items():
        write_film(films / name / "IM0001.png", height)
        mask = np.zeros((40, 40), np.uint8)
        mask[5 : 5 + height, 3:12] = mask[5 : 5 + height, 25:34] = 255
        (masks / name).mkdir(parents=True)
        cv2.imwrite(str(masks / name / "IM0001.png"), mask)
    assert run([films], tmp_path / "out", masks=masks) == 0
    lines = lines_of(tmp_path / "out")
    for name, height in sizes.items():
        assert lines[str(films / name / "IM0001.png")]["lung_pixels"] == height * 18
    (masks / "two" / "IM0001.png").rename(masks / "IM0001.png")
    assert run([films], tmp_path / "out", masks=masks) == 0
    lines = lines_of(tmp_path / "out")
    assert lines[str(films / "one" / "IM0001.png")]["lung_pixels"] == 180
    error = lines[str(films / "two" / "IM0001.png")]["error"]
    assert "2 films are called 'IM0001'" in error
    assert "two/IM0001.png" in error
    # Of one folder at a time the flat one can be meant.
    assert run([films / "two"], tmp_path / "out2", masks=masks) == 0
    assert lines_of(tmp_path / "out2")[str(films / "two" / "IM0001.png")]["lung_pixels"] == 360


@pytest.mark.parametrize(
    "elements, words",
    [
        ({"ViewPosition": "LL"}, "a lateral film (view position 'LL')"),
        ({"ViewPosition": "rl "}, "a lateral film (view position 'RL')"),
        ({"Modality": "CT"}, "modality 'CT'; this model reads frontal radiographs"),
        ({"Modality": "MR"}, "modality 'MR'"),
        ({"ViewPosition": "PA"}, None),
        ({"ViewPosition": "LLD"}, None),  # lying on the left side; the view is frontal
        ({"Modality": "OT"}, None),
        ({"Modality": None, "ViewPosition": None}, None),
        ({"Modality": "MUELLER"}, None),
    ],
)
def test_what_is_no_frontal_radiograph_gets_no_prediction(run, tmp_path, elements, words):
    path = tmp_path / "film.dcm"
    film_dataset(**elements).save_as(path, enforce_file_format=True)
    assert run([path], tmp_path / "out") == (1 if words else 0)
    error = lines_of(tmp_path / "out")[str(path)].get("error", "")
    assert (words in error) if words else not error


def test_names_of_any_kind(run, tmp_path, capsys):
    """Steering characters, bytes that are no text, the longest a disk takes."""
    folder = tmp_path / "films"
    names = ["esc\x1b[2J.png", "rtl\u202egnp.png", "broken\udc80.png", "x" * 251 + ".png", "..png"]
    for k, name in enumerate(names):
        write_film(tmp_path / "one.png", k).rename(folder.mkdir(exist_ok=True) or folder / name)
    (folder / "bad\x1b]0;x\x07.png").write_text("no picture")
    assert run([folder], tmp_path / "out") == 0
    told = "".join(capsys.readouterr())
    assert not set(told) & {"\x1b", "\x07", "\u202e", "\0"}
    assert len(list((tmp_path / "out").glob("*.png"))) == 4  # '..png' is hidden


def test_a_prediction_that_fails_later_leaves_its_picture_known(run, films):
    """Else it would be predicted on the next time."""
    film = films / "film.png"
    whole = film.read_bytes()
    assert run([films], films) == 0
    film.write_bytes(whole[:100])
    assert run([films], films) == 0
    assert "error" in lines_of(films)[str(film)]
    assert run([films], films) == 0
    assert len(lines_of(films)) == 5
    film.write_bytes(whole)
    assert run([films], films) == 0
    assert len(lines_of(films)) == 5
    assert len(list(films.glob("*.png"))) == 3 + 5


def test_masks_of_volumes_are_not_predicted_on(tmp_path, monkeypatch):
    """Of a folder of volumes that is the output too, three times."""
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    for name in ("scan.nii.gz", "scan-lesions.nii.gz"):  # the second is a user's own
        image.to_filename(tmp_path / name)
    before = tree(tmp_path)

    class Door:
        unit = "volume"

        def find(self, paths):
            return Volumes.find(None, paths)

        def predict(self, path):
            mask = ("-lesions.nii.gz", lambda out: image.to_filename(out))
            return Prediction(path.name.removesuffix(".nii.gz"), {}, _figure(1), {"mask": mask})

    monkeypatch.setattr(predict, "_open", lambda *_, **__: (Door(), StubRun()))
    for _ in range(3):
        assert predict.predict([tmp_path], pathlib.Path("RUN"), tmp_path) == 0
        after = tree(tmp_path)
        assert {name: after[name] for name in before} == before
        lines = lines_of(tmp_path)
        assert len(lines) == 2
        line = lines[str(tmp_path / "scan.nii.gz")]
        assert (line["picture"], line["mask"]) == ("scan-2.png", "scan-2-lesions.nii.gz")
        assert line["written"].keys() == {"scan-2.png", "scan-2-lesions.nii.gz"}


@pytest.mark.parametrize("find", [Films.find, Volumes.find], ids=["films", "volumes"])
def test_a_path_that_no_disk_takes_is_one_line(find, tmp_path):
    door = Films(StubRun()) if find is Films.find else None
    with pytest.raises(InputError, match=r"(?s)x: cannot be read \(File name too long\)"):
        find(door, [tmp_path / ("x" * 300)])
