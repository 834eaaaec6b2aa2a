"""The table over seeds and folds, against numbers worked out by hand."""

import sys

import numpy as np
import pytest

from configs import severity as severity_config
from configs import simclr as simclr_config
from cxr_jax import report, workdir
from cxr_jax.data import sources
from cxr_jax.errors import InputError


def rows(probs, *, ids, second=None):
    """Three films whose true global scores are 0, 3 and 6."""
    labels = np.zeros((3, 3, 2), np.float32)
    labels[1, :, 0] = 1
    labels[2] = 1
    found = {
        "probs": np.full((3, 3, 2), probs, np.float32),
        "labels": labels,
        "scores": labels * 2,
        "valid": np.ones((3, 3, 2), bool),
        "id": np.array(list(ids)),
        "group": np.array(list(ids)),
    }
    return found | ({} if second is None else {"scores_second": second.astype(np.float32)})


@pytest.fixture
def runs(tmp_path):
    """Two evaluated runs that predict 0.5 and 0.7 everywhere; the second reader is right."""
    truth = rows(0.5, ids="abc")["labels"]
    for name, value in (("one", 0.5), ("two", 0.7)):
        config = severity_config.get_config("smoke")
        source = sources.open_source(config.data, "train")
        workdir.claim(config, tmp_path / name, source)
        np.savez(tmp_path / name / "rows-test.npz", **rows(value, ids="abc", second=truth))
    return tmp_path


def line(text, title):
    (found,) = [row for row in text.splitlines() if row.startswith(f"| {title}")]
    return [cell.strip() for cell in found.split("|")[2:]]


def test_seeds_are_averaged_and_readers_stand_beside_them(runs):
    text = report.report([runs / "one", runs / "two"], "test", pool=False, resamples=0)
    # 0.5: predicts 3 of 6: errors 3, 0, 3, MSE 6. 0.7: 4.2: errors 4.2, 1.2, 1.8, MSE 7.44.
    assert line(text, "2 runs")[0] == "6.720 +- 1.018"
    # The mean predicts 3.6: errors 3.6, 0.6, 2.4.
    assert line(text, "mean of")[0] == f"{(3.6**2 + 0.6**2 + 2.4**2) / 3:.3f}"
    assert line(text, "second reader |")[0] == "0.000"
    paired = line(text, "second reader minus the runs' mean")[0]
    assert paired == f"{-(3.6**2 + 0.6**2 + 2.4**2) / 3:.3f}"
    assert len(line(text, "constant, training mean |")) == len(line(text, "2 runs"))


def test_folds_are_pooled(runs, tmp_path):
    np.savez(runs / "two" / "rows-test.npz", **rows(0.7, ids="def"))
    text = report.report([runs / "one", runs / "two"], "test", pool=True, resamples=0)
    assert line(text, "pooled folds")[0] == "6.720"
    with pytest.raises(InputError, match="different films"):
        report.report([runs / "one", runs / "two"], "test", pool=False, resamples=0)


def test_a_film_in_two_folds_is_refused(runs):
    with pytest.raises(InputError, match="in two of the runs"):
        report.report([runs / "one", runs / "two"], "test", pool=True, resamples=0)


def test_runs_whose_predictions_cannot_be_pooled_are_refused(runs, tmp_path, monkeypatch):
    config = simclr_config.get_config("smoke")
    workdir.claim(config, tmp_path / "views", sources.open_source(config.data, "train"))
    with pytest.raises(InputError, match=r"'simclr'.*no mean.*folds cannot be pooled; name the ru"):
        report.report([tmp_path / "views"], "test", pool=True, resamples=0)
    monkeypatch.setattr(sys, "argv", ["report", "--pool", f"A={runs / 'one'}", f"A={runs / 'two'}"])
    with pytest.raises(InputError, match=r"--pool takes .* DIR without a name"):
        report.main()


def test_a_run_that_was_not_evaluated_is_named(runs):
    with pytest.raises(InputError, match=r"rows-val\.npz is missing.*--split=val"):
        report.report([runs / "one"], "val", pool=False, resamples=0)


def test_kinds_of_run_stand_side_by_side(runs):
    kinds = {"half": [runs / "one"], "more": [runs / "two"]}
    text = report.compare(kinds, "test", ("mse", "mae"))
    assert text.splitlines()[0] == "| | mse | mae |"
    assert line(text, "half |")[0] == "6.000"
    assert line(text, "more |")[0] == "7.440"
    assert line(text, "more minus half")[0] == "1.440"
    with pytest.raises(InputError, match="'msx'; these runs report mse"):
        report.compare(kinds, "test", ("msx",))
    np.savez(runs / "two" / "rows-test.npz", **rows(0.7, ids="abd"))
    with pytest.raises(InputError, match="two was scored on other films"):
        report.compare(kinds, "test")


@pytest.fixture
def ct_runs(tmp_path):
    """Two runs of each of two kinds on six patients; `good` finds more, and they differ in T_fg."""
    from configs import seam as seam_config

    rng = np.random.default_rng(0)
    true = rng.uniform(50, 100, 6)
    for kind, share in (("poor", 0.4), ("good", 0.8)):
        for seed in (0, 1):
            config = seam_config.get_config("smoke").copy_and_resolve_references()
            config.seed = seed
            config.affinity.foreground = share
            folder = tmp_path / f"{kind}-{seed}"
            workdir.claim(config, folder, sources.open_source(config.data, "train"))
            both = true * share * rng.uniform(0.9, 1.1, 6)
            patients = np.array(list("abcdef"))
            np.savez(
                folder / "rows-test.npz",
                id=patients, group=patients, known=np.ones(6, bool), label=np.ones(6),
                slice_prob=np.ones(6), true=true, found=both, both=both,
                found_at=np.tile(both[:, None], 23), both_at=np.tile(both[:, None], 23),
                histogram=np.zeros((6, 50, 2)),
            )  # fmt: skip
    return tmp_path


def test_runs_on_volumes_are_compared_patient_by_patient(ct_runs):
    groups = {kind: [ct_runs / f"{kind}-{seed}" for seed in (0, 1)] for kind in ("poor", "good")}
    text = report.compare(groups, "test", ("positive_dice", "positive_recall"))
    # All six patients are better: the smallest two-sided p of six pairs is 2 / 2^6.
    assert "Wilcoxon p, positive | Wilcoxon p, all" in text
    assert line(text, "good |")[-3:-1] == ["0.031 (6 of 6 differ)"] * 2
    assert line(text, "poor")[-3:-1] == ["-", "-"]
    same = {"one": groups["good"], "two": groups["good"]}
    assert line(report.compare(same, "test"), "two |")[-2] == "1.000 (0 of 6 differ)"


def test_each_run_is_scored_at_the_threshold_of_another_split(ct_runs):
    folder = ct_runs / "good-0"
    with np.load(folder / "rows-test.npz") as arrays:
        rows = {name: arrays[name] for name in arrays.files}
    columns = np.zeros((6, 23))
    columns[:, 7] = rows["true"]  # 0.2 finds all there is, and nothing besides
    np.savez(folder / "rows-val.npz", **(rows | {"found_at": columns, "both_at": columns}))
    half = columns / 2
    half[:, 13] = rows["true"]  # on the test split 0.5 would be better: it must not matter
    np.savez(folder / "rows-test.npz", **(rows | {"found_at": half, "both_at": half}))
    text = report.compare({"good": [folder]}, "test", ("positive_dice",), tune="val")
    # The gate of bags of three slices, which all of these pass.
    assert line(text, "good")[-4:-1] == ["0.667", "0.200", "0.206"]
    picture = ct_runs / "chart.png"
    drawn = report.against(
        [folder],
        "test",
        field="affinity.radius",
        metric="positive_dice",
        output=picture,
        tune="val",
    )
    assert line(drawn, "affinity.radius")[-2] == "0.667"
    with pytest.raises(InputError, match="not chosen on the films it is scored on"):
        report.compare({"good": [folder]}, "test", tune="test")
    with pytest.raises(InputError, match=r"rows-val\.npz is missing"):
        report.compare({"good": [ct_runs / "good-1"]}, "test", tune="val")


def test_a_metric_is_drawn_against_a_setting(ct_runs):
    runs = [ct_runs / f"{kind}-{seed}" for kind in ("poor", "good") for seed in (0, 1)]
    picture = ct_runs / "chart.png"
    text = report.against(
        runs, "test", field="affinity.foreground", metric="all_dice", output=picture
    )
    assert picture.stat().st_size > 0
    assert [row.split("|")[1].strip() for row in text.splitlines()[2:4]] == [
        "affinity.foreground = 0.4",
        "affinity.foreground = 0.8",
    ]
    with pytest.raises(InputError, match=r"config\.affinity\.foreground"):
        report.against(runs, "test", field="affinity.radius", metric="all_dice", output=picture)
    with pytest.raises(InputError, match="not a number"):
        report.against(runs[:2], "test", field="method", metric="all_dice", output=picture)
    with pytest.raises(InputError, match=r"no such field; did you mean affinity\.radius"):
        report.against(runs[:2], "test", field="affinity.radios", metric="all_dice", output=picture)
    with pytest.raises(InputError, match="'dice'"):
        report.against(runs[:2], "test", field="affinity.radius", metric="dice", output=picture)
