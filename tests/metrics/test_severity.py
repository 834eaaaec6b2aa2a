"""The severity report against plain formulas, and what must not change it."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from cxr_jax.metrics import severity
from cxr_jax.metrics.bootstrap import bootstrap, numbers
from tests import conftest


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (40, 3, 2))
    labels = (scores > 0).astype(np.int8)
    nonempty = labels.any(axis=(1, 2)) & (np.arange(40) % 4 > 0)
    return {
        "probs": np.clip(labels * 0.3 + rng.random((40, 3, 2)) * 0.7, 0, 1).astype(np.float32),
        "labels": labels,
        "valid": np.ones((40, 3, 2), bool),
        "scores": scores,
        "score_pred": np.clip(scores + rng.normal(size=(40, 3, 2)), 0, 3),
        "lesion_dice": rng.random(40),
        "lesion_iou": rng.random(40),
        "lesion_precision": np.where(np.arange(40) % 5 == 0, np.nan, rng.random(40)),
        "lesion_recall": rng.random(40),
        "lesion_false_area": rng.random(40) / 10,
        "lesion_nonempty": nonempty,
        "pointing_hit": labels * rng.integers(0, 2, (40, 3, 2)).astype(np.float32),
        "pointing_valid": labels > 0,
        "lung_dice": rng.random(40),
        "lung_dice_right": rng.random(40),
        "lung_dice_left": rng.random(40),
    }


def test_report_equals_plain_formulas(rows):
    report = numbers(severity.severity_report(rows))
    true = rows["labels"].sum((1, 2))
    soft = rows["probs"].astype(np.float64).sum((1, 2))
    hard = (rows["probs"] >= 0.5).sum((1, 2))
    aucs = [
        sklearn.metrics.roc_auc_score(rows["labels"][:, r, c], rows["probs"][:, r, c])
        for r in range(3)
        for c in range(2)
    ]
    flat, called = rows["labels"].ravel(), (rows["probs"] >= 0.5).ravel()
    score, pred = rows["scores"], rows["score_pred"]
    nonempty = rows["lesion_nonempty"]
    want = {
        "mse": np.mean((soft - true) ** 2),
        "mae": np.mean(np.abs(soft - true)),
        "cc": scipy.stats.pearsonr(soft, true).statistic,
        "r2": sklearn.metrics.r2_score(true, soft),
        "hard_mse": np.mean((hard - true) ** 2),
        "hard_mae": np.mean(np.abs(hard - true)),
        "hard_cc": scipy.stats.pearsonr(hard, true).statistic,
        "hard_r2": sklearn.metrics.r2_score(true, hard),
        "mean_auc": np.mean(aucs),
        "zones_with_auc": 6,
        "auc_upper_right": aucs[0],
        "auc_upper_left": aucs[1],
        "auc_middle_right": aucs[2],
        "auc_middle_left": aucs[3],
        "auc_lower_right": aucs[4],
        "auc_lower_left": aucs[5],
        "zone_accuracy": np.mean(flat == called),
        "zone_kappa": sklearn.metrics.cohen_kappa_score(flat, called),
        "region_mae": np.mean(np.abs(score - pred)),
        "region_kappa": sklearn.metrics.cohen_kappa_score(
            score.ravel(), np.rint(pred).ravel(), weights="quadratic"
        ),
        "global_mae_18": np.mean(np.abs(score.sum((1, 2)) - pred.sum((1, 2)))),
        "global_mse_18": np.mean((score.sum((1, 2)) - pred.sum((1, 2))) ** 2),
        "global_cc_18": scipy.stats.pearsonr(score.sum((1, 2)), pred.sum((1, 2))).statistic,
        "lesion_dice": rows["lesion_dice"][nonempty].mean(),
        "lesion_iou": rows["lesion_iou"][nonempty].mean(),
        "lesion_precision": np.nanmean(rows["lesion_precision"][nonempty]),
        "lesion_recall": rows["lesion_recall"][nonempty].mean(),
        "lesion_false_area": rows["lesion_false_area"][~nonempty].mean(),
        "pointing": rows["pointing_hit"].sum() / rows["pointing_valid"].sum(),
        "lung_dice": rows["lung_dice"].mean(),
        "lung_dice_right": rows["lung_dice_right"].mean(),
        "lung_dice_left": rows["lung_dice_left"].mean(),
    }
    assert report.keys() == want.keys()
    for name, value in want.items():
        # 1e-9: float64 throughout, sums in another order.
        np.testing.assert_allclose(report[name], value, rtol=1e-9, err_msg=name)


def test_counts_name_every_metric(rows):
    rows["valid"][3, 1, 0] = False
    report = severity.severity_report(rows)
    counts = conftest.counts(report)
    assert counts.keys() == severity.severity_report(rows).keys()
    assert counts["mse"] == 40
    assert counts["auc_middle_right"] == 39
    assert counts["zone_accuracy"] == counts["region_mae"] == 239
    assert counts["lesion_dice"] == rows["lesion_nonempty"].sum()
    assert counts["lesion_precision"] < counts["lesion_dice"]
    assert counts["lesion_dice"] + counts["lesion_false_area"] == 40
    assert counts["pointing"] == (rows["labels"] > 0).sum()


def test_order_of_films_does_not_matter(rows):
    order = np.random.default_rng(1).permutation(40)
    a = numbers(severity.severity_report(rows))
    b = numbers(severity.severity_report({name: row[order] for name, row in rows.items()}))
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-12, err_msg=name)


def test_films_without_a_valid_zone_change_nothing(rows):
    only = ("probs", "labels", "valid", "scores", "score_pred")
    alone = {name: rows[name] for name in only}
    padded = {name: np.concatenate([rows[name], rows[name][:7] * 0]) for name in only}
    padded["probs"][40:], padded["score_pred"][40:] = np.nan, 3.0
    a, b = severity.severity_report(alone), severity.severity_report(padded)
    assert numbers(a) == pytest.approx(numbers(b), rel=1e-12)
    assert conftest.counts(a) == conftest.counts(b)


def test_invalid_zones_are_in_neither_sum():
    rows = {
        "probs": np.full((1, 3, 2), 0.75),
        "labels": np.ones((1, 3, 2)),
        "valid": np.array([[[True, False]] * 3]),
    }
    report = numbers(severity.severity_report(rows))
    assert report["mse"] == 0.75**2
    assert report["hard_mse"] == 0


def test_a_zone_of_one_class_is_undefined_and_counted_out(rows):
    rows["labels"][:, 2, 1] = 1
    report = numbers(severity.severity_report(rows))
    assert np.isnan(report["auc_lower_left"])
    others = [v for k, v in report.items() if k.startswith("auc_") and k != "zones_with_auc"]
    assert report["mean_auc"] == pytest.approx(np.nanmean(others))
    assert report["zones_with_auc"] == 5


def test_a_constant_predictor_has_no_correlation_and_an_auc_of_one_half(rows):
    rows["probs"] = np.full((40, 3, 2), 0.7, np.float32)
    report = numbers(severity.severity_report(rows))
    assert np.isnan(report["cc"])
    assert report["mean_auc"] == 0.5
    assert np.isfinite(report["r2"])


def test_one_film_all_negative_is_mostly_undefined_and_does_not_fail():
    rows = {name: np.zeros((1, 3, 2)) for name in ("probs", "labels")}
    rows["valid"] = np.ones((1, 3, 2), bool)
    metrics = bootstrap(severity.severity_report, rows, np.array(["p"]))
    assert metrics["mse"].value == 0
    for name in ("cc", "r2", "mean_auc", "zone_kappa"):
        assert metrics[name].value is None


def test_the_junior_reader_of_brixia_cohen_scores_as_the_data_readme_says(cxr_data):
    table = np.genfromtxt(
        cxr_data / "brixia_cohen" / "annotations.csv",
        delimiter=",",
        names=True,
        dtype=None,
        encoding="utf-8-sig",
    )
    table = table[table["split"] == "test"]

    def reader(letter):
        zones = np.stack([table[f"{letter}_{zone}"] for zone in "ABCDEF"], axis=-1)
        return zones.reshape(-1, 2, 3).transpose(0, 2, 1)  # A, B, C: the right lung, downwards

    senior, junior = reader("S"), reader("J")
    rows = {
        "probs": (junior > 0).astype(float),
        "labels": senior > 0,
        "valid": np.ones(senior.shape, bool),
        "scores": senior,
        "score_pred": junior,
    }
    report = numbers(severity.severity_report(rows))
    # The README rounds to two or three digits.
    assert report["mse"] == pytest.approx(2.69, abs=0.005)
    assert report["mae"] == pytest.approx(1.03, abs=0.005)
    assert report["zone_accuracy"] == pytest.approx(0.810, abs=0.0005)
    assert report["zone_kappa"] == pytest.approx(0.61, abs=0.005)
    assert report["region_kappa"] == pytest.approx(0.80, abs=0.005)
    assert report["global_mae_18"] == pytest.approx(1.75, abs=0.005)
    assert report["global_mse_18"] == pytest.approx(5.58, abs=0.005)
    assert report["global_cc_18"] == pytest.approx(0.92, abs=0.005)
