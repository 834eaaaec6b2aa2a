"""The whole way, walked by every config's smoke variant; and what a run must survive."""

import importlib
import itertools
import json
import pathlib
import re
import shutil
import subprocess
import sys
import types

import cv2
import jax
import nibabel
import numpy as np
import pydicom
import pytest

from cxr_jax import checkpoints, config_files, evaluate, predict, state, train, trained
from cxr_jax import workdir as workdirs
from cxr_jax.data import sources
from cxr_jax.data.phantoms import phantom
from cxr_jax.data.phantoms.ct import ct_slice
from cxr_jax.errors import InputError
from cxr_jax.inputs import splits
from cxr_jax.parallel import Parallel
from cxr_jax.tasks import make_task
from cxr_jax.tasks.base import Task
from tests.conftest import ROOT
from tests.data.dicom_films import film_file
from tests.processes import environment, run

CONFIGS = sorted(p for p in (ROOT / "configs").glob("[a-z]*.py") if p.stem != "common")


def load_config(path: pathlib.Path, variant: str):
    return importlib.import_module(f"configs.{path.stem}").get_config(variant)


@pytest.fixture(scope="session", params=CONFIGS, ids=lambda path: path.stem)
def smoke_run(request, tmp_path_factory):
    """A finished smoke run of each config: (config, workdir, metrics)."""
    config = load_config(request.param, "smoke").copy_and_resolve_references()
    config.devices = 1
    config.keep_last = 2  # both steps, for an ensemble
    workdir = tmp_path_factory.mktemp(request.param.stem)
    programs, compile_run = [], train.compile_run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            train, "compile_run", lambda run: programs.append(compile_run(run)) or programs[-1]
        )
        assert train.train(config, workdir)
    assert [program.step._cache_size() for program in programs] == [1]  # compiled once
    metrics = evaluate.evaluate(config, workdir)
    return config, workdir, metrics


def test_there_are_configs():
    assert {p.stem for p in CONFIGS} >= {"adpd", "severity", "lungs", "findings", "seam"}


def test_every_config_trains_and_reports(smoke_run):
    config, workdir, metrics = smoke_run
    names = {p.name for p in workdir.iterdir()}
    wanted = {"config.json", "checkpoints", "metrics.jsonl", "results.json", "figures"}
    assert wanted | {"tensorboard", "rows-test.npz"} <= names
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]
    assert steps == list(range(1, config.total_steps + 1))
    results = json.loads((workdir / "results.json").read_text())
    for key in ("seed", "data", "precision", "device", "wall_s", "code_version", "steps"):
        assert key in results
    assert results["metrics"].keys() == metrics.keys()
    slices = config.data.slices if sources.DATASETS[config.data.name].ct else 1
    if "bag" in config:  # at least one of each kind
        assert results["trained_on"]["train"] >= 2
    else:
        assert results["trained_on"]["train"] == config.data.train * slices
    for metric in results["metrics"].values():
        assert metric.keys() == {"value", "low", "high", "n"}
    assert len(list((workdir / "figures").glob("test-0*.png"))) == config.figures
    assert (workdir / "figures" / "training.png").stat().st_size > 0
    with np.load(workdir / "rows-test.npz") as rows:
        assert len(rows["id"]) == config.data.test * slices == results["data"]["examples"]


@pytest.mark.parametrize("smoke_run", [ROOT / "configs" / "seam.py"], ids=["seam"], indirect=True)
def test_a_volume_is_predicted_where_it_lies(smoke_run, tmp_path):
    _, workdir, _ = smoke_run
    affine = np.diag([-0.7, -0.7, 5.0, 1.0])
    values = np.full((64, 48, 11), -900, np.int16)
    values[20:30, 10:30] = 40
    nibabel.Nifti1Image(values, affine).to_filename(tmp_path / "scan.nii.gz")
    (tmp_path / "broken.nii").write_bytes(b"no volume")
    out = tmp_path / "out"
    inputs = [tmp_path / "scan.nii.gz", tmp_path / "broken.nii"]
    assert predict.predict(inputs, workdir, out, window=(-600, 1500), threshold=0.01) == 0
    lines = [json.loads(line) for line in (out / "predictions.jsonl").open()]
    scan, broken = lines
    assert "not a NIfTI file" in broken["error"]
    assert scan["slices"] == len(scan["slice_probs"]) == 11
    assert scan["slices_counted"] == "as a viewer shows them"
    assert list(scan["slice_probs"]) == [str(number) for number in range(1, 12)]
    mask = nibabel.load(out / scan["mask"])
    assert mask.shape == values.shape
    voxels = int(np.asanyarray(mask.dataobj).sum())
    np.testing.assert_allclose(scan["lesion_ml"], voxels * 0.7 * 0.7 * 5 / 1000, atol=1e-3)
    assert (out / scan["picture"]).stat().st_size > 0
    higher = tmp_path / "higher"
    predict.predict(inputs[:1], workdir, higher, window=(-600, 1500), threshold=0.99)
    (line,) = [json.loads(line) for line in (higher / "predictions.jsonl").open()]
    assert line["lesion_ml"] <= scan["lesion_ml"]
    with pytest.raises(InputError, match=r"config\.threshold=1\.5"):
        predict.predict(inputs[:1], workdir, higher, threshold=1.5)


@pytest.mark.parametrize(
    "smoke_run", [ROOT / "configs" / "lesions.py"], ids=["lesions"], indirect=True
)
def test_a_model_of_slices_reads_volumes_and_pictures(smoke_run, tmp_path):
    _, workdir, _ = smoke_run
    slices = [ct_slice(0, 3, k, size=64, slices=8) for k in range(8)]
    values = np.stack([one["image"] for one in slices], -1).astype(np.int16).transpose(1, 0, 2)
    scan = nibabel.Nifti1Image(values * 5 - 1000, np.diag([-0.7, -0.7, 5.0, 1.0]))
    scan.to_filename(tmp_path / "scan.nii.gz")
    cv2.imwrite(str(tmp_path / "slice.png"), slices[3]["image"])
    out = tmp_path / "out"
    assert predict.predict([tmp_path / "scan.nii.gz"], workdir, out) == 0
    (line,) = [json.loads(text) for text in (out / "predictions.jsonl").open()]
    assert line["slices"] == len(line["slice_probs"]) == 8
    mask = np.asanyarray(nibabel.load(out / line["mask"]).dataobj)
    assert mask.shape == values.shape
    assert bool(mask.any()) == bool(line["slices_with_lesion"])
    assert predict.predict([tmp_path / "slice.png"], workdir, tmp_path / "other") == 0
    (line,) = [json.loads(text) for text in (tmp_path / "other" / "predictions.jsonl").open()]
    assert set(line["probabilities"]) == {"normal", "covid-19"}


@pytest.mark.parametrize("smoke_run", [ROOT / "configs" / "lungs.py"], ids=["lungs"], indirect=True)
def test_a_film_of_dicom_gets_dicom_where_that_is_asked_for(smoke_run, tmp_path):
    _, workdir, _ = smoke_run
    film_file(tmp_path, PatientOrientation=["L", "F"])
    out = tmp_path / "out"
    assert predict.predict([tmp_path / "film.dcm"], workdir, out, dicom=True) == 0
    (line,) = [json.loads(text) for text in (out / "predictions.jsonl").open()]
    assert pydicom.dcmread(out / line["capture_dicom"]).PatientID == "P-1"
    with pytest.raises(InputError, match="reads films; --window is of CT volumes"):
        predict.predict([tmp_path / "film.dcm"], workdir, out, window="-600,1500")


DETECTORS = [ROOT / "configs" / f"{name}.py" for name in ("adpd", "box_detector")]


@pytest.mark.parametrize("smoke_run", DETECTORS, ids=lambda path: path.stem, indirect=True)
def test_boxes_of_a_film_are_predicted_in_its_own_pixels(smoke_run, tmp_path):
    _, workdir, _ = smoke_run
    cv2.imwrite(str(tmp_path / "film.png"), phantom(5, 0, 256)["image"][:, :200])
    out = tmp_path / "out"
    assert predict.predict([tmp_path / "film.png"], workdir, out, threshold=0.0) == 0
    (line,) = [json.loads(text) for text in (out / "predictions.jsonl").open()]
    assert len(line["findings"]) == 9
    regions = line.get("regions", {})
    for place in (*line["boxes"], *regions.values()):
        x0, y0, x1, y1 = place["xyxy_px"]
        assert 0 <= x0 <= x1 <= 200 and 0 <= y0 <= y1 <= 256  # noqa: PT018
    # Every finding is above the threshold, and so has a box where there is a place for one.
    assert bool(line["boxes"]) == (bool(regions) or "regions" not in line)
    assert (out / line["picture"]).stat().st_size > 10_000


@pytest.mark.parametrize("smoke_run", [ROOT / "configs" / "seam.py"], ids=["seam"], indirect=True)
def test_the_slice_of_a_volume_that_is_shown_is_explained(smoke_run, tmp_path, monkeypatch):
    config, workdir, _ = smoke_run
    kind, seen = type(make_task(config)), []
    explain = lambda self, variables, batch: {"why": batch["image"][:, 0, :2, :2, 0]}  # noqa: E731
    monkeypatch.setattr(kind, "explain", explain)
    drawn = kind.figure
    monkeypatch.setattr(
        kind, "figure", lambda self, r, out: (seen.append(out), drawn(self, r, out))[1]
    )
    nibabel.Nifti1Image(np.full((48, 48, 9), -900, np.int16), np.eye(4)).to_filename(
        tmp_path / "scan.nii.gz"
    )
    predict.predict([tmp_path / "scan.nii.gz"], workdir, tmp_path / "out", window=(-600, 1500))
    (outputs,) = seen
    assert outputs["why"].shape == (2, 2)
    assert "slice_prob" in outputs


def test_a_mistake_does_not_claim_the_work_directory(smoke_run, tmp_path):
    """The command that is put right afterwards runs in the same folder."""
    config, _, _ = smoke_run
    wrong = config.copy_and_resolve_references()
    wrong.optimizer.frozen = ("nothing/.*",)
    with pytest.raises(InputError, match="nothing"):
        train.train(wrong, tmp_path)
    workdirs.check_config(config, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_other_data_cannot_be_resumed(smoke_run):
    config, workdir, _ = smoke_run

    class Other:
        name, version = config.data.name, "another"

        def __len__(self):
            return config.data.train

    with pytest.raises(InputError, match="trained on other data"):
        workdirs.claim(config, workdir, Other())


def test_a_split_keeps_its_metrics_when_another_is_evaluated(smoke_run):
    config, workdir, _ = smoke_run
    before = json.loads((workdir / "results.json").read_text())
    evaluate.evaluate(config, workdir, split="val")
    after = json.loads((workdir / "results.json").read_text())
    assert {k: v for k, v in after["metrics"].items() if k.startswith("test/")} == before["metrics"]
    assert any(k.startswith("val/") for k in after["metrics"])
    assert after["evaluations"].keys() == {"test", "val"}
    (workdir / "results.json").write_text(json.dumps(before))


def test_a_frozen_part_must_come_from_somewhere(tmp_path):
    config = load_config(ROOT / "configs" / "severity.py", "smoke").copy_and_resolve_references()
    config.devices = 1
    config.model.train_backbone = False
    with pytest.raises(InputError, match=r"random numbers, e\.g\. params/backbone"):
        train.train(config, tmp_path / "random")
    config.allow_random_frozen = True
    assert train.train(config, tmp_path / "allowed")
    before = checkpoints.read_state(tmp_path / "allowed", 1)
    after = checkpoints.read_state(tmp_path / "allowed", 2)
    for part in ("params", "model_state"):
        for tree_a, tree_b in zip(
            jax.tree.leaves(_backbone(before[part])), jax.tree.leaves(_backbone(after[part]))
        ):
            np.testing.assert_array_equal(tree_a, tree_b)


def _backbone(tree):
    return tree.get("backbone") or tree["batch_stats"]["backbone"]


@pytest.mark.parametrize(
    "changes",
    [
        {"preprocess.size": 100},
        {"model.head_blocks": 6},
        {"model.vit.num_heads": 5},
        {"model.backbone.tap": "block9"},
    ],
    ids=str,
)
def test_parts_that_do_not_fit_are_one_line(changes, tmp_path):
    config = load_config(ROOT / "configs" / "severity.py", "smoke").copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match="config"):
        train.train(config, tmp_path)


def test_a_config_of_another_version_is_one_line():
    config = load_config(ROOT / "configs" / "severity.py", "smoke").copy_and_resolve_references()
    with config.unlocked():
        del config.model.head_blocks
    with pytest.raises(InputError, match=r"lacks the field 'head_blocks'.*another version"):
        make_task(config)


@pytest.mark.parametrize("base", ["", "quick", "cohen", "smoke"])
@pytest.mark.parametrize("vit", [0, 1])
@pytest.mark.parametrize("pool", ["max", "mean"])
def test_every_combination_of_options_fits_together(base, vit, pool):
    variant = ",".join(filter(None, [base, f"vit={vit}", f"pool={pool}"]))
    config = load_config(ROOT / "configs" / "severity.py", variant).copy_and_resolve_references()
    config.lungs.masks = "record"
    task, size = make_task(config), config.preprocess.size
    example = {
        "image": np.zeros((1, size, size), np.float32),
        "lungs": np.zeros((1, size, size), np.uint8),
        "zones": np.zeros((1, size, size), np.uint8),
    }
    shapes = trained.variable_shapes(task, example)
    assert ("vit" in shapes["params"]) == bool(vit)


def test_a_finished_run_is_left_alone(smoke_run):
    config, workdir, _ = smoke_run
    before = (workdir / "metrics.jsonl").read_text()
    assert train.train(config, workdir)
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_variant_is_a_config(path):
    words = importlib.import_module(f"configs.{path.stem}").__doc__
    table = words.partition("| variant |")[2].partition("\n\n")[0]
    named = set(re.findall(r"^\| (\w+) \|", table, flags=re.MULTILINE))
    assert named >= {"quick", "smoke"}
    for variant in ("", *named):
        config = load_config(path, variant)
        assert config.is_locked
        train.check_numbers(config)
    with pytest.raises(InputError, match="nonsense"):
        load_config(path, "nonsense")


@pytest.mark.parametrize(
    "steps", ["([1],)", "('a',)", "(1.5,)", "(True,)", "(None,)", "(0,)", "(3,)"]
)
def test_eval_steps_of_another_kind_are_one_line(steps):
    file = str(ROOT / "configs" / "severity.py")
    config = config_files.resolved(f"{file}:smoke", [f"--config.eval_steps={steps}"])
    with pytest.raises(InputError, match=r"config\.eval_steps=\(.*is no step of 1\.\.config"):
        train.check_numbers(config)


def test_another_config_is_refused(smoke_run):
    config, workdir, _ = smoke_run
    other = config.copy_and_resolve_references()
    other.optimizer.lr = 0.123
    with pytest.raises(InputError, match=r"optimizer\.lr is .* there and 0\.123 here"):
        train.train(other, workdir)
    # What only changes how the run is watched is free.
    other = config.copy_and_resolve_references()
    other.log_every = 7
    workdirs.check_config(other, workdir)


def test_report_does_not_depend_on_batch_size(smoke_run):
    config, workdir, metrics = smoke_run
    config = config.copy_and_resolve_references()
    config.eval_batch_size = 3  # five films: the last batch is padded differently
    before = (workdir / "results.json").read_text()
    config_json = (workdir / "config.json").read_text()
    try:
        again = evaluate.evaluate(config, workdir)
    finally:
        (workdir / "results.json").write_text(before)
        (workdir / "config.json").write_text(config_json)
    for name, metric in metrics.items():
        assert again[name].n == metric.n
        if metric.value is None:
            assert again[name].value is None, name
        else:
            # float32 sums in another order, for another batch size
            assert again[name].value == pytest.approx(metric.value, abs=1e-4), name


@pytest.mark.parametrize(
    "errors, wanted",
    [
        (
            [0.1, 0.9, np.nan, 0.0, 0.5, 0.4],
            {
                **{11: "worst-1-0011", 14: "worst-2-0014"},
                **{13: "best-1-0013", 10: "best-2-0010"},
            },
        ),
        ([0.3, np.nan, np.nan, np.nan, 0.5, np.nan], {14: "worst-1-0014", 10: "worst-2-0010"}),
        ([np.nan] * 6, {}),
        (None, {}),
    ],
)
def test_the_worst_and_the_best_records_are_drawn_too(errors, wanted):
    evaluation = types.SimpleNamespace(
        case_errors=lambda rows: None if errors is None else np.array(errors)
    )
    run = types.SimpleNamespace(
        task=types.SimpleNamespace(evaluation=evaluation),
        config=types.SimpleNamespace(figures=8),
    )
    result = evaluate.Result({"index": np.arange(10, 16)}, {})
    assert evaluate._extremes(run, result) == wanted


def test_an_ensemble_is_what_the_task_makes_of_its_members(smoke_run):
    """The mean, unless the task says otherwise; each alone and then together is the same."""
    config, workdir, _ = smoke_run
    task, parallel = make_task(config), Parallel.create("jit", 1)
    source = splits.open_split(task, config, "test", workdir=workdir)
    run = trained.TrainedRun.load(workdir, (1, 2), config=config, sharding=parallel.replicated)
    members = run.ensemble
    score = evaluate.Scorer(task, source, parallel=parallel, config=config)
    films = frozenset({0, 3})
    single = [score([member], keep_outputs=films).outputs for member in members]
    both = score(members, keep_outputs=films).outputs
    assert both.keys() == films
    for film, name in itertools.product(films, both[0]):
        alone = [{k: v[None] for k, v in outputs[film].items()} for outputs in single]
        together = task.combine(alone)[name][0]
        np.testing.assert_allclose(both[film][name], together, atol=1e-6, err_msg=name)
        if type(task).combine is Task.combine:
            mean = (single[0][film][name] + single[1][film][name]) / 2
            np.testing.assert_allclose(together, mean, atol=1e-6, err_msg=name)
    assert any(not np.array_equal(single[0][0][name], single[1][0][name]) for name in both[0])


def test_too_little_space_is_said_before_anything_is_written(smoke_run, monkeypatch):
    _, workdir, _ = smoke_run
    usage = shutil.disk_usage(workdir)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    before = checkpoints.complete_steps(workdir)
    tree = {"step": np.int32(99), "x": np.zeros(250_000, np.float32)}
    words = r"3 MB are needed, 1 MB are free.*resumes from step 2"
    folder = checkpoints.Checkpoints(workdir)
    with folder, pytest.raises(InputError, match=words):
        folder.save(state.TrainState(tree["step"], tree, {}, {}, np.zeros(2, np.uint32)), None)
    assert checkpoints.complete_steps(workdir) == before


@pytest.mark.parametrize(
    "args, words",
    [
        (["--config=configs/nothing.py"], "nothing.py"),
        (["--config=configs/severity.py:nonsense"], "nonsense"),
        (
            ["--config=configs/severity.py:smoke", "--config.optimizer.lrr=1"],
            '--config.optimizer.lrr: the config has no such field. Did you mean "lr" instead of',
        ),
        (["--config", "configs/severity.py:smoke", "--config.batch_size=0"], "batch_size=0"),
        (
            ["--workdir=nowhere", "--mode=eval", "--config.threshold=0.2"],
            "--config.threshold changes a config: give --config=configs/NAME.py",
        ),
        (["--config=configs/severity.py:smoke", "--config.data.name=imagenet"], "imagenet"),
        (["--config=configs/severity.py:smoke", "--config.batch_size=0"], "batch_size=0"),
        (["--config=configs/severity.py:smoke", "--mode=guess"], "guess"),
        (["--config=configs/severity.py:smoke", "--config.parallel=fast"], "fast"),
        (["--config=configs/severity.py:smoke", "--config.init_from=nowhere"], "nowhere"),
        (["--workdir=nowhere", "--mode=eval"], "nowhere"),
        (["--config=configs/severity.py:smoke", "--mode=eval", "--steps=one"], "one"),
        ([], "--config"),
        (["stray"], "stray"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, str) else None,
)
def test_a_users_mistake_is_one_line(args, words, tmp_path):
    workdir = (
        []
        if any(a.startswith("--workdir") for a in args) or not args
        else [f"--workdir={tmp_path / 'run'}"]
    )
    done = run(*args, *workdir, check=False)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert words in lines[0]


def test_help_ends_with_zero():
    for module in ("main", "predict", "weights", "data.prepare"):
        done = subprocess.run(
            [sys.executable, "-m", f"cxr_jax.{module}", "--help"],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0
        assert f"cxr_jax.{module}" in done.stdout
