"""predict and weights on a finished smoke run; a bad film among good ones."""

import errno
import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

from configs import lungs as lungs_config
from configs import severity as severity_config
from cxr_jax import checkpoints, cli, evaluate, predict, train, weights, workdir, writers
from cxr_jax.data import sources
from cxr_jax.data.phantoms import phantom
from cxr_jax.errors import InputError
from cxr_jax.inputs import splits
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Finished smoke runs: (severity, lungs)."""
    found = []
    for module, name in ((severity_config, "severity"), (lungs_config, "lungs")):
        config = module.get_config("smoke").copy_and_resolve_references()
        config.devices = 1
        found.append(tmp_path_factory.mktemp(name))
        assert train.train(config, found[-1])
    return found


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder with two films and five that are none of the kind."""
    folder = tmp_path_factory.mktemp("films")
    for i in range(2):
        record = phantom(7, i, 128)
        cv2.imwrite(str(folder / f"good{i}.png"), record["image"])
    whole = (folder / "good0.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("not a picture")
    cv2.imwrite(str(folder / "one_colour.png"), np.full((64, 64), 80, np.uint8))
    return folder


def lines_of(output):
    lines = (output / "predictions.jsonl").read_text().splitlines()
    return {line["file"].rsplit("/", 1)[-1]: line for line in map(json.loads, lines)}


def test_bad_films_are_reported_and_the_others_go_on(workdirs, films, tmp_path):
    _, lungs = workdirs
    assert predict.predict([films], lungs, tmp_path) == 0
    lines = lines_of(tmp_path)
    assert len(lines) == 5
    for name in ("good0.png", "good1.png"):
        assert "error" not in lines[name]
        assert (tmp_path / lines[name]["picture"]).stat().st_size > 10_000
    for name in ("truncated.png", "text.png", "one_colour.png"):
        assert name in lines[name]["error"]
        assert "\n" not in lines[name]["error"]
        assert "picture" not in lines[name]


def test_severity_with_given_masks(workdirs, films, tmp_path):
    severity, _ = workdirs
    masks = tmp_path / "masks"
    masks.mkdir()
    record = phantom(7, 0, 128)
    cv2.imwrite(str(masks / "good0.png"), (record["lungs"] > 0).astype(np.uint8) * 255)
    cv2.imwrite(str(masks / "good1.png"), np.ones((20, 20), np.uint8) * 255)  # another size
    out = tmp_path / "out"
    assert predict.predict([films], severity, out, masks=masks) == 0
    lines = lines_of(out)
    table = np.array(lines["good0.png"]["severity"], float)
    assert table.shape == (3, 2)
    assert ((table >= 0) & (table <= 1)).all()
    assert lines["good0.png"]["global_soft"] == pytest.approx(table.sum(), abs=1e-3)
    assert "20" in lines["good1.png"]["error"]
    assert "128" in lines["good1.png"]["error"]


def test_severity_with_predicted_lungs(workdirs, films, tmp_path):
    severity, lungs = workdirs
    predict.predict([films / "good0.png"], severity, tmp_path, lungs=str(lungs))
    (line,) = lines_of(tmp_path).values()
    assert "severity" in line or "no lung was found" in line["error"]


def test_severity_needs_lungs(workdirs, films, tmp_path):
    with pytest.raises(InputError, match="--lungs=DIR"):
        predict.predict([films], workdirs[0], tmp_path)
    with pytest.raises(InputError, match="is a run of task 'severity'"):
        predict.predict([films], workdirs[0], tmp_path, lungs=str(workdirs[0]))


def test_all_films_bad_is_a_failure(workdirs, films, tmp_path, capsys):
    assert predict.predict([films / "text.png"], workdirs[1], tmp_path) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("not used: ")
    assert "text.png" in line


def test_predictions_of_other_films_are_not_replaced(workdirs, films, tmp_path):
    _, lungs = workdirs
    predict.predict([films / "good0.png", films / "text.png"], lungs, tmp_path)
    with pytest.raises(InputError, match=r"1 other files, e.g. .*text\.png; give another --output"):
        predict.predict([films / "good0.png"], lungs, tmp_path)
    assert len(lines_of(tmp_path)) == 2
    predict.predict([films], lungs, tmp_path)  # these and more
    assert len(lines_of(tmp_path)) == 5


def test_errors_alone_do_not_keep_a_folder(workdirs, films, tmp_path):
    _, lungs = workdirs
    assert predict.predict([films / "text.png"], lungs, tmp_path) == 1
    assert predict.predict([films / "good0.png"], lungs, tmp_path) == 0
    assert len(lines_of(tmp_path)) == 1


def test_a_threshold_is_for_models_that_have_one(workdirs, films, tmp_path):
    with pytest.raises(InputError, match="has no threshold to choose"):
        predict.predict([films], workdirs[1], tmp_path, threshold=0.2)


def test_what_is_wrong_with_the_model_is_said_once(workdirs, films, tmp_path):
    """Not once a film; and an earlier result stays."""
    _, lungs = workdirs
    tmp_path.joinpath("predictions.jsonl").write_text("earlier")
    with pytest.raises(InputError, match="no checkpoint of step 999"):
        predict.predict([films], lungs, tmp_path, steps=(999,))
    assert tmp_path.joinpath("predictions.jsonl").read_text() == "earlier"


def test_films_without_a_lesion_mask_among_films_with_one(workdirs, tmp_path):
    """A hospital's own CSV: lesion metrics are over the films that have a mask."""
    severity, _ = workdirs
    rows = [
        "image,group,split,lungs,lesion,severity_A,severity_B,severity_C,severity_D,severity_E,severity_F"
    ]
    for i in range(6):
        record = phantom(3, 2 * i, 128)
        cv2.imwrite(str(tmp_path / f"{i}.png"), record["image"])
        cv2.imwrite(str(tmp_path / f"{i}-lungs.png"), (record["lungs"] > 0) * np.uint8(255))
        cv2.imwrite(str(tmp_path / f"{i}-lesion.png"), record["lesion"] * np.uint8(255))
        lesion = f"{i}-lesion.png" if i % 2 and record["lesion"].any() else ""
        scores = ",".join(map(str, record["severity"].T.ravel()))
        split = "test" if i < 4 else "train"
        rows.append(f"{i}.png,patient{i},{split},{i}-lungs.png,{lesion},{scores}")
    (tmp_path / "films.csv").write_text("\n".join(rows))
    config = workdir.read_config(severity).copy_and_resolve_references()
    config.data = sources.block("manifest", path=str(tmp_path / "films.csv"))
    metrics = evaluate.evaluate(config, severity)  # an external test
    assert "manifest-test/mse" in metrics
    expected = sum(f",{i}-lesion" in row for i, row in enumerate(rows[1:5]))
    if expected:
        assert metrics["manifest-test/lesion_dice"].n == expected
    else:
        assert "manifest-test/lesion_dice" not in metrics


def test_no_external_test_takes_the_place_of_another_result(workdirs, tmp_path):
    """Neither of other options of the same source, nor of patients that were trained on."""
    _, lungs = workdirs
    own = evaluate.evaluate(workdir.read_config(lungs), lungs)
    other = workdir.read_config(lungs).copy_and_resolve_references()
    other.data.seed += 1
    before = {p.name: p.read_bytes() for p in (lungs / "figures").glob("test-*")}
    rows = (lungs / "rows-test.npz").read_bytes()
    metrics = evaluate.evaluate(other, lungs)
    (label,) = {name.split("/")[0] for name in metrics}
    assert label.startswith("phantom_cxr-")
    results = json.loads((lungs / "results.json").read_text())
    assert {"test", label} <= results["evaluations"].keys()
    for name, metric in own.items():
        assert results["metrics"][name]["value"] == metric.value
    assert (lungs / "rows-test.npz").read_bytes() == rows
    assert {p.name: p.read_bytes() for p in (lungs / "figures").glob("test-*")} == before
    other.data.seed -= 1
    other.data.train -= 2  # some of the training films
    with pytest.raises(InputError, match="were trained on, so this is no external test"):
        evaluate.evaluate(other, lungs, split="train")


def test_a_run_that_draws_masks_is_used_or_refused(workdirs, tmp_path):
    severity, lungs = workdirs
    config = severity_config.get_config("smoke").copy_and_resolve_references()
    config.devices, config.lungs.workdir = 1, str(lungs)
    with pytest.raises(InputError, match=r"is not used with config\.lungs\.masks='record'"):
        train.train(config, tmp_path)

    class Bare:
        name, version, split, partial = "bare", "1", "train", frozenset()
        fields = frozenset({"image", "severity", "id", "group"})

    completion = splits.COMPLETIONS["lungs"](workdir.read_config(severity))
    with pytest.raises(InputError, match=r"no field 'lungs'.*--config.lungs.masks=predicted"):
        splits.pipeline.check_fields(Bare(), {"lungs"}, {"lungs": completion.way_out})


def test_severity_learns_from_predicted_lungs(workdirs, tmp_path):
    """masks='predicted' never reads the record's own lungs."""
    _, lungs = workdirs
    config = severity_config.get_config("smoke").copy_and_resolve_references()
    config.lungs.update(masks="predicted", workdir=str(lungs))
    config.devices = 1
    task = train.make_task(config)
    source = sources.open_source(config.data, "test")
    completion = splits.COMPLETIONS["lungs"](config)
    assert task.data.inputs == {"image", "lungs"}
    adapted = completion.apply(source, tmp_path)
    segmenter = train.make_task(workdir.read_config(lungs))
    assert adapted[0]["lungs"].shape == adapted[0]["image"].shape
    (cache,) = tmp_path.glob("lungs-test-*.npy")
    masks = np.load(cache)
    assert masks.shape == (len(source), segmenter.preprocess.size, segmenter.preprocess.size)
    before = cache.stat().st_mtime_ns
    assert np.array_equal(completion.apply(source, tmp_path)[1]["lungs"], adapted[1]["lungs"])
    assert cache.stat().st_mtime_ns == before  # made once


def command(*args):
    return subprocess.run(
        [sys.executable, "-m", "cxr_jax.weights", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_weights_show_and_diff(workdirs):
    severity, lungs = workdirs
    shown = weights.show(weights.load(severity, None), 2)
    assert checkpoints.complete_steps(severity) == [1, 2]
    total = sum(x.size for n, x in weights.load(severity, 2).items() if n.startswith("params/"))
    assert f"{total:,} parameters" in shown
    text, same = weights.diff(weights.load(severity, 1), weights.load(severity, 2), 1)
    assert not same
    assert "they differ" in text
    text, same = weights.diff(weights.load(severity, 1), weights.load(severity, 1), 1)
    assert same
    assert command("show", lungs).returncode == 0
    assert command("diff", severity, severity).returncode == 0
    assert command("diff", severity, lungs).returncode == 1
    missing = command("show", severity, "--step=7")
    assert missing.returncode == 2
    assert "no checkpoint of step 7" in missing.stderr


def test_a_checkpoint_of_another_model_is_refused(workdirs, tmp_path):
    severity, lungs = workdirs
    shutil.copytree(severity, tmp_path / "mixed")
    shutil.rmtree(tmp_path / "mixed" / "checkpoints")
    shutil.copytree(lungs / "checkpoints", tmp_path / "mixed" / "checkpoints")
    config = workdir.read_config(tmp_path / "mixed")
    with pytest.raises(InputError, match="does not fit this model"):
        evaluate.evaluate(config, tmp_path / "mixed", steps=(2,))


def test_init_from_takes_the_other_runs_arrays(workdirs, tmp_path, capsys):
    severity, _ = workdirs
    config = severity_config.get_config("smoke").copy_and_resolve_references()
    config.update(devices=1, init_from=str(severity), total_steps=1, eval_steps=())
    config.optimizer.lr = 0.0
    assert train.train(config, tmp_path)
    assert "arrays taken" in capsys.readouterr().out
    a, b = weights.load(severity, None), weights.load(tmp_path, None)
    for name in a:
        if name.startswith("params/"):
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_metrics_lines_after_the_checkpoint_are_dropped_on_resume(tmp_path):
    with writers.Writer(tmp_path, total_steps=9) as writer:
        for step in (1, 2, 3):
            writer.scalars(step, {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    with writers.Writer(tmp_path, total_steps=9, first_step=2) as writer:
        writer.scalars(3, {"loss": float("nan")})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1]["loss"] is None  # NaN is no JSON


@pytest.mark.parametrize(
    "error, status, words",
    [
        (InputError("film.png: no"), 2, "error: film.png: no"),
        (OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl"), 2, "metrics.jsonl"),
        (OSError(errno.EPERM, "Operation not permitted", "out"), 2, "out cannot be written"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=["mistake", "full disk", "not allowed", "ctrl-c"],
)
def test_a_command_ends_with_one_line(error, status, words, capsys, monkeypatch):
    monkeypatch.setattr(os, "_exit", sys.exit)  # which would end the tests too

    def command():
        raise error

    with pytest.raises(SystemExit) as ended:
        cli.run_command(command)
    assert ended.value.code == status
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


def test_a_split_without_a_label_is_no_table():
    assert writers.metrics_table({}) == ""


def test_a_longer_run_says_which_checkpoints_it_is_scored_on(workdirs, capsys):
    severity, _ = workdirs
    config = workdir.read_config(severity)
    evaluate.evaluate(config, severity)
    out = capsys.readouterr().out
    assert f"evaluating {severity}: steps 1, 2\n" in out
    assert "later" not in out
    evaluate.evaluate(config, severity, steps=(1,))
    out = capsys.readouterr().out
    assert f"evaluating {severity}: steps 1\nthere is a later checkpoint, of step 2" in out


def test_our_own_bugs_keep_their_stack_trace():
    with pytest.raises(OSError, match="bug"):
        cli.run_command(lambda: (_ for _ in ()).throw(OSError(errno.EINVAL, "bug")))
