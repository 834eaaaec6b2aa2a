"""`cxr_jax.load` and what it gives; models as folders with a card."""

import json
import pathlib
import shutil
import subprocess
import sys

import cv2
import jax
import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

import cxr_jax
from configs import findings as findings_config
from configs import lesions as lesions_config
from cxr_jax import evaluate, initialise, model_files, packing, predict, train, weights
from cxr_jax.data.sources.phantom_cxr import PhantomCXR
from cxr_jax.errors import InputError
from cxr_jax.trained import TrainedRun

ABOUT = """title = "A test"
licence = "none"
commands = ["pytest"]
limits = ["two steps of training"]
"""


def trained(file, folder, **changes):
    config = file.get_config("smoke").copy_and_resolve_references()
    config.update(devices=1, figures=1, **changes)
    assert train.train(config, folder)
    return folder


@pytest.fixture(scope="module")
def films_run(tmp_path_factory):
    return trained(findings_config, tmp_path_factory.mktemp("films") / "run")


@pytest.fixture(scope="module")
def slices_run(tmp_path_factory):
    return trained(lesions_config, tmp_path_factory.mktemp("slices") / "run")


@pytest.fixture(scope="module")
def film():
    image = PhantomCXR(split="test", count=1, seed=0, size=128)[0]["image"].astype(float)
    low, high = image.min(), image.max()
    return np.rint((image - low) * (255 / (high - low))).astype(np.uint8)


@pytest.fixture(scope="module")
def packed(films_run, tmp_path_factory):
    """The run as a model folder, its evaluation in the card."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "about.toml").write_text(ABOUT)
    argv = ["weights", "pack", str(films_run), f"--folder={folder / 'small'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*argv, f"--about={folder / 'about.toml'}"])
        assert weights.main() == 0
    return folder / "small"


def dicom_of(film):
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    data.Modality, data.PhotometricInterpretation = "DX", "MONOCHROME2"
    data.Rows, data.Columns = film.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.PixelData = film.tobytes()
    return data


def test_importing_the_package_does_not_import_jax():
    code = "import sys, cxr_jax; cxr_jax.available(); print({'jax', 'flax'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert told.stdout == "set()\n", told.stderr


def test_a_file_an_array_and_a_data_set_give_the_same(films_run, film, tmp_path):
    model = cxr_jax.load(films_run)
    path = tmp_path / "film.png"
    cv2.imwrite(str(path), film)
    wanted = model(path)
    colour = np.repeat(film[..., None], 3, axis=-1)
    wide = film.astype(np.float32)  # from 0 to 255: as it is
    assert (film.min(), film.max()) == (0, 255)
    for given in (str(path), film, colour, wide, wide / 255, dicom_of(film)):
        found = model(given)
        assert found.keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    two = model([film, path])
    assert [one.description for one in two] == [wanted.description] * 2


def test_a_result_is_arrays_text_and_a_picture(films_run, film, tmp_path):
    result = cxr_jax.load(films_run)(film)
    assert result["probs"].shape == (10,)
    assert json.loads(result.to_json()) == result.description
    assert set(result) == set(result.arrays)
    result.save(tmp_path / "picture.png")
    assert result._repr_png_() == (tmp_path / "picture.png").read_bytes()
    assert result._repr_png_().startswith(b"\x89PNG")
    assert "probs float32[10]" in repr(result)


def test_predict_says_the_same(films_run, film, tmp_path):
    cv2.imwrite(str(tmp_path / "film.png"), film)
    assert predict.predict([tmp_path / "film.png"], films_run, tmp_path / "out") == 0
    line = json.loads((tmp_path / "out" / "predictions.jsonl").read_text())
    description = cxr_jax.load(films_run)(film).description
    assert {name: line[name] for name in description} == description


def test_a_volume_is_an_array_with_spacing(slices_run):
    model = cxr_jax.load(slices_run)
    body = np.full((3, 64, 64), -1000, np.int16)
    body[:, 8:56, 8:56] = 40
    body[:, 20:44, 12:30] = body[:, 20:44, 34:52] = -850
    result = model(body, spacing_mm=(5, 1, 1))
    assert result["mask"].shape == body.shape
    assert result["slice_probs"].shape == (3,)
    assert result.description["slices"] == 3
    assert result._repr_png_().startswith(b"\x89PNG")
    one = model(np.uint8(np.linspace(0, 255, 64 * 64).reshape(64, 64)))  # a slice as a picture
    assert one["probs"].sum() == pytest.approx(1)


@pytest.mark.parametrize(
    "image, words",
    [
        (np.zeros(3, np.uint8), r"shape \[3\]; expected \[H, W\]"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \[4, 4, 2\]"),
        (np.full((4, 4), np.nan), "16 numbers that are not finite"),
        (np.ones((4, 4)), "is 1 everywhere"),
        (np.zeros((0, 4)), "0 numbers"),
        (np.zeros((4, 4), bool), "of bool"),
        (np.full((4, 4), "x"), "of <U1"),
        ("nowhere.png", "nowhere.png"),
        (3, "int is no image"),
        (pydicom.Dataset(), "data set"),
    ],
    ids=str,
)
def test_what_is_no_film_is_one_line(films_run, image, words):
    with pytest.raises(InputError, match=words):
        cxr_jax.load(films_run)(image)


@pytest.mark.parametrize(
    "values, spacing, words",
    [
        (np.zeros((3, 4, 4)), (1, 1), "three positive numbers"),
        (np.zeros((3, 4, 4)), (1, 0, 1), "three positive numbers"),
        (np.zeros((4, 4)), (1, 1, 1), r"shape \[4, 4\]"),
        (np.full((3, 4, 4), np.inf), (1, 1, 1), "48 numbers that are not finite"),
        (np.zeros((3, 4, 4)), (1, 1, 1), "not Hounsfield units"),
    ],
    ids=str,
)
def test_what_is_no_volume_is_one_line(slices_run, values, spacing, words):
    with pytest.raises(InputError, match=words):
        cxr_jax.load(slices_run)(values, spacing_mm=spacing)


def test_a_model_of_films_has_no_volumes(films_run):
    with pytest.raises(InputError, match="reads films"):
        cxr_jax.load(films_run)(np.zeros((3, 4, 4)), spacing_mm=(1, 1, 1))


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(InputError, match="no such folder and no such model; the models that come"):
        cxr_jax.load("severity-mars")


# Models as folders.


def test_a_packed_model_is_the_run(packed, films_run, film):
    model, run = cxr_jax.load(packed), cxr_jax.load(films_run)
    for name, array in run(film).items():
        np.testing.assert_array_equal(model(film)[name], array, err_msg=name)
    assert model.card["title"] == "A test"
    assert model.card["steps"] == [1, 2]
    assert model.card["limits"] == ["two steps of training"]
    assert run.card == {}


def test_the_card_has_what_the_model_measures(packed, films_run, tmp_path):
    card = model_files.read_card(packed)
    metrics = evaluate.evaluate(TrainedRun.load(films_run).config, films_run)
    assert card["metrics"].keys() == {name.removeprefix("test/") for name in metrics}
    for name, metric in metrics.items():
        assert card["metrics"][name.removeprefix("test/")]["value"] == metric.value, name
    assert not (packed / "results.json").exists()


def test_a_packed_model_is_begun_with_and_not_trained_on(packed, films_run, tmp_path, capsys):
    config = TrainedRun.load(films_run).config
    with pytest.raises(InputError, match="is a packed model and no run"):
        train.train(config, packed)
    arrays = initialise.read_arrays(packed)
    wanted = initialise.flatten(TrainedRun.load(packed).ensemble[0])
    assert {name: x for name, x in arrays.items() if not name.startswith("member-")}.keys() == (
        wanted.keys()
    )


def test_a_damaged_model_is_one_line(packed, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in packed.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    content = bytearray((copy / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "weights.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"is not what card\.json has the hash of"):
        cxr_jax.load(copy)
    (copy / "weights.safetensors").unlink()
    with pytest.raises(InputError, match=r"is not what card\.json has the hash of"):
        cxr_jax.load(copy)


def test_a_model_without_its_card_is_not_told_to_be_trained(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "copy")
    (tmp_path / "copy" / "card.json").unlink()
    with pytest.raises(InputError, match=r"has weights\.safetensors and no card\.json"):
        cxr_jax.load(tmp_path / "copy")


def test_a_list_names_the_image_and_a_picture_its_formats(films_run, film, tmp_path):
    model = cxr_jax.load(films_run)
    with pytest.raises(InputError, match="image 1 of 2, from 0: "):
        model([film, np.zeros((4, 4), np.uint8)])
    with pytest.raises(InputError, match="no format of pictures; expected one of"):
        model(film).save(tmp_path / "picture.txt")


def test_weights_of_another_config_are_one_line(packed, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in packed.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    config["model"]["backbone"]["growth_rate"] += 1
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="the config has float32"):
        cxr_jax.load(copy)


def test_an_ensemble_is_of_seeds(films_run, tmp_path):
    other = tmp_path / "seed-1"
    shutil.copytree(films_run, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"seed": 1}))
    (tmp_path / "about.toml").write_text(ABOUT)
    told = packing.pack(
        [films_run, other], tmp_path / "two", about=tmp_path / "about.toml", steps=(1, 2)
    )
    assert "4 members" in told
    assert model_files.read_card(tmp_path / "two")["seeds"] == [0, 1]
    wanted = TrainedRun.load(films_run, (1, 2)).ensemble
    found = TrainedRun.load(tmp_path / "two").ensemble
    for ours, theirs in zip(found, wanted * 2, strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_packing_what_is_no_ensemble_is_one_line(films_run, slices_run, tmp_path):
    (tmp_path / "about.toml").write_text(ABOUT)
    with pytest.raises(InputError, match="is no further seed of"):
        packing.pack([films_run, slices_run], tmp_path / "m", about=tmp_path / "about.toml")
    for text, words in (("title = 3", "title"), ("x = 1", "'x'"), ("][", "no TOML")):
        (tmp_path / "about.toml").write_text(text)
        with pytest.raises(InputError, match=words):
            packing.pack([films_run], tmp_path / "m", about=tmp_path / "about.toml")
    assert not (tmp_path / "m").exists()


def test_a_packaged_model_is_found_by_its_name(packed, film, tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "PACKAGED", packed.parent)
    monkeypatch.chdir(tmp_path)
    assert cxr_jax.available() == ["small"]
    wanted = cxr_jax.load(packed)(film).description
    assert cxr_jax.load("small")(film).description == wanted
    cv2.imwrite("film.png", film)
    monkeypatch.setattr(sys, "argv", ["predict", "--model=small", "--output=out", "film.png"])
    assert predict.main() == 0
    line = json.loads(pathlib.Path("out/predictions.jsonl").read_text())
    assert {name: line[name] for name in wanted} == wanted
    # A folder of that name is meant first; the scheme means the model.
    pathlib.Path("small").mkdir()
    with pytest.raises(InputError, match="no work directory"):
        cxr_jax.load("small")
    assert cxr_jax.load("model:small")(film).description == wanted
    for argv, words in (
        (["--model=large"], "come along are small"),
        ([], "give --workdir=DIR"),
        (["--model=small", f"--workdir={packed}"], "give --workdir=DIR"),
    ):
        monkeypatch.setattr(sys, "argv", ["predict", *argv, "--output=out", "film.png"])
        with pytest.raises(InputError, match=words):
            predict.main()
