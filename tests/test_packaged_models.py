"""The models that come along: their cards' numbers, recomputed where the data are at hand."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import cxr_jax
from cxr_jax import evaluate, model_files, safe_write, workdir
from cxr_jax.data import prepare, readers, sources
from cxr_jax.errors import InputError
from tests.conftest import ROOT
from tests.processes import run

NAMES = model_files.names()
TOLD = {"title", "licence", "commands", "limits", "task", "seeds", "trained_on", "metrics", "steps"}
MOST_BYTES = 12_000_000  # of all
MANY_SLICES = ("ct-lesions",)


def test_what_comes_along():
    assert {
        "lungs",
        "severity-cohen",
        "findings",
        "diagnosis",
        "adpd",
        "lesions",
        "ct-lesions",
    } <= set(NAMES)
    size = sum(path.stat().st_size for path in model_files.PACKAGED.rglob("*") if path.is_file())
    assert size < MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_its_card_tells_all_and_its_weights_are_those_of_the_hash(name):
    folder = model_files.PACKAGED / name
    card = model_files.read_card(folder)
    assert card.keys() >= TOLD
    assert card["sha256"] == safe_write.digest(folder / model_files.WEIGHTS)
    assert all(card[key] for key in ("title", "licence", "commands", "limits"))
    assert (ROOT / "configs" / "models" / f"{name}.toml").is_file()
    for metric in card["metrics"].values():
        assert metric.keys() >= {"value", "low", "high", "n"}
    if "brixia" in card["trained_on"]["name"]:
        assert "CC BY-NC-SA" in card["licence"]
    assert str(ROOT) not in (folder / "config.json").read_text() + json.dumps(card)


@pytest.fixture(scope="session")
def prepared(cxr_data, tmp_path_factory):
    """The real films that some cards are of, prepared."""
    folder = tmp_path_factory.mktemp("sets")
    prepare.main(["brixia_cohen", f"--source={cxr_data / 'brixia_cohen'}", f"--data_dir={folder}"])
    return folder


OPTIMISED = """
import pathlib, sys
from cxr_jax import cli, evaluate, workdir
cli.setup_jax()
folder = pathlib.Path(sys.argv[1])
config = workdir.read_config(folder)
with config.unlocked():
    config.update(figures=0, bootstrap=0, devices=1, threads=2)
evaluate.evaluate(config, folder)
"""


def assert_like_the_card(found, folder):
    """`found`: name -> (value, n)."""
    for key, metric in model_files.read_card(folder)["metrics"].items():
        value, count = found[f"test/{key}"]
        assert count == metric["n"], key
        if metric["value"] is not None:
            # Another processor rounds otherwise, and a film at a threshold goes to the other side.
            assert value == pytest.approx(metric["value"], abs=0.02), key


@pytest.mark.slow
@pytest.mark.parametrize("name", MANY_SLICES)
def test_the_numbers_of_many_slices_are_those_of_the_card(name, tmp_path):
    """Programs of the tests are unoptimised; some thousand slices need others."""
    folder = shutil.copytree(model_files.PACKAGED / name, tmp_path / name)
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    run = subprocess.run(
        [sys.executable, "-c", OPTIMISED, folder],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    results = json.loads((folder / "results.json").read_text())["metrics"]
    assert_like_the_card({key: (m["value"], m["n"]) for key, m in results.items()}, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in MANY_SLICES])
def test_its_numbers_are_those_of_its_card(name, tmp_path, request):
    folder = shutil.copytree(model_files.PACKAGED / name, tmp_path / name)
    config = workdir.read_config(folder)
    with config.unlocked():
        config.update(figures=0, bootstrap=0, devices=1, threads=2)
        if not config.data.name.startswith("phantom"):
            config.data.data_dir = str(request.getfixturevalue("prepared"))
        if "lungs" in config and config.lungs.workdir:
            config.lungs.workdir = str(model_files.find(config.lungs.workdir))
    found = evaluate.evaluate(config, folder)
    assert_like_the_card({key: (m.value, m.n) for key, m in found.items()}, folder)


def test_one_film_to_a_score_and_a_picture_in_one_line(tmp_path):
    film = sources.open_source(sources.block("phantom_cxr", size=256), "test")[0]
    path = tmp_path / "film.png"
    path.write_bytes(readers.encode_png(film["image"]))
    result = cxr_jax.load("severity-cohen")(path)
    assert result["probs"].shape[:2] == (3, 2)
    assert np.isfinite(result["probs"][result["zone_valid"] > 0.5]).all()
    said = json.loads(result.to_json())
    assert said["quality"]["usable"]
    result.save(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(InputError, match=r"the models that come along are .*severity-cohen"):
        cxr_jax.load("severity-cohn")


def test_damaged_weights_are_one_line(tmp_path):
    folder = shutil.copytree(model_files.PACKAGED / "findings", tmp_path / "findings")
    data = bytearray((folder / model_files.WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / model_files.WEIGHTS).write_bytes(data)
    with pytest.raises(InputError, match=r"is not what card\.json has the hash of"):
        cxr_jax.load(folder)


def test_what_is_installed_is_not_written_into():
    folder = model_files.PACKAGED / "adpd"
    before = sorted(folder.iterdir())
    done = run("--mode=eval", f"--workdir={folder}", check=False)
    assert done.returncode == 2
    assert "copy the folder and give the copy" in done.stderr
    assert sorted(folder.iterdir()) == before
