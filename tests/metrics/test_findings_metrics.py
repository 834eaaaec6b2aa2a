"""The pointing game against a plain loop, and AUCs where findings are rare or unknown."""

import numpy as np
import pytest

from cxr_jax.data.records import FINDINGS
from cxr_jax.metrics import findings
from cxr_jax.metrics.bootstrap import bootstrap, numbers
from cxr_jax.tasks.findings import FindingsEvaluation
from tests import conftest

K = len(FINDINGS)
NAN = np.nan


def padded(*boxes_and_labels):
    """Boxes and labels of one film, padded to five: [1, 5, 4], [1, 5]."""
    boxes, labels = np.full((1, 5, 4), NAN, np.float32), np.full((1, 5), -1, np.int32)
    for m, (box, label) in enumerate(boxes_and_labels):
        boxes[0, m], labels[0, m] = box, label
    return boxes, labels


def test_pointing_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    heat = rng.random((6, 5, 8, 3)).astype(np.float32)
    low, high = np.sort(rng.random((2, 6, 4, 2)), axis=0)
    boxes = np.concatenate([low, high], axis=-1).astype(np.float32)
    labels = rng.integers(0, 3, (6, 4))
    boxes[0, 1:], labels[0, 1:] = NAN, -1  # a film of one box
    rows = findings.pointing(heat, boxes, labels)
    seen = set()
    for b in range(6):
        for k in range(3):
            y, x = np.unravel_index(heat[b, :, :, k].argmax(), (5, 8))
            x, y = (x + 0.5) / 8, (y + 0.5) / 5
            mine = boxes[b][labels[b] == k]
            hit = any(x1 <= x < x2 and y1 <= y < y2 for x1, y1, x2, y2 in mine)
            assert rows["pointing_valid"][b, k] == (len(mine) > 0)
            assert rows["pointing_hit"][b, k] == hit
            seen.add((len(mine) > 0, hit))
    assert seen == {(True, True), (True, False), (False, False)}


def test_pointing_of_a_flat_map_is_chance():
    """Half of 4 x 4 cells under one box, a quarter of these under a second: counted once."""
    boxes, labels = padded(([0, 0, 1, 0.5], 1), ([0, 0, 0.5, 0.25], 1))
    rows = findings.pointing(np.full((1, 4, 4, 2), 0.3, np.float32), boxes, labels)
    np.testing.assert_allclose(rows["pointing_hit"], [[0, 0.5]])
    np.testing.assert_allclose(rows["pointing_chance"], [[0, 0.5]])
    np.testing.assert_array_equal(rows["pointing_valid"], [[False, True]])


def test_a_box_of_another_finding_or_without_a_cells_middle_is_no_hit():
    heat = np.zeros((1, 4, 4, 2), np.float32)
    heat[0, 1, 1, :] = 1.0  # its middle is at (0.375, 0.375)
    boxes, labels = padded(([0.26, 0.26, 0.49, 0.49], 0), ([0.26, 0.26, 0.37, 0.49], 1))
    rows = findings.pointing(heat, boxes, labels)
    np.testing.assert_array_equal(rows["pointing_hit"], [[1, 0]])
    np.testing.assert_array_equal(rows["pointing_valid"], [[True, True]])
    np.testing.assert_array_equal(rows["pointing_chance"], [[1 / 16, 0]])


def test_a_label_outside_the_findings_takes_no_part():
    boxes, labels = padded(([0, 0, 1, 1], 2), ([0, 0, 1, 1], -1))
    rows = findings.pointing(np.ones((1, 2, 2, 2), np.float32), boxes, labels)
    assert not rows["pointing_valid"].any()
    assert not rows["pointing_hit"].any()


@pytest.fixture
def rows():
    """Four films: finding 0 told apart, 1 the wrong way round, 2 has one class, 3 is unknown once,
    4 is never known, the others have neither class but the negative."""
    probs = np.tile(np.array([[0.1], [0.2], [0.3], [0.4]]), (1, K))
    labels = np.zeros((4, K))
    labels[:, 0] = [0, 0, 1, 1]
    labels[:, 1] = [1, 1, 0, 0]
    labels[:, 2] = 1
    labels[:, 3] = [0, 1, NAN, 0]
    labels[:, 4] = NAN
    return {"probs": probs, "labels": labels}


def test_report(rows):
    report = numbers(findings.findings_report(rows))
    assert [report[f"auc_{n}"] for n in ("no_finding", "cardiomegaly")] == [1.0, 0.0]
    assert report["auc_edema"] == 0.5  # 0.2 lies between 0.1 and 0.4
    assert np.isnan(report["auc_lung_opacity"])
    assert np.isnan(report["auc_pleural_effusion"])
    assert report["mean_auc"] == 0.5
    assert report["findings_with_auc"] == 3
    counts = conftest.counts(findings.findings_report(rows))
    assert [counts[f"auc_{n}"] for n in ("no_finding", "edema", "consolidation")] == [4, 3, 0]
    assert counts["mean_auc"] == 4
    assert set(report) == set(counts)


def test_one_class_only_is_null_in_the_results(rows):
    labels = np.where(np.isnan(rows["labels"]), NAN, 0.0)
    found = bootstrap(
        findings.findings_report,
        rows | {"labels": labels},
        np.arange(4),
        resamples=10,
    )
    assert found["mean_auc"].value is None
    assert found["auc_edema"].value is found["auc_edema"].low is None
    assert found["auc_edema"].n == 3
    assert found["findings_with_auc"].value == 0


def test_pointing_is_averaged_over_films_with_a_box_then_over_findings(rows):
    hit, valid = np.zeros((4, K)), np.zeros((4, K), bool)
    hit[:2, 1], valid[:, 1] = 1, True  # 2 of 4
    hit[0, 7], valid[0, 7] = 1, True  # 1 of 1
    rows |= {"pointing_hit": hit, "pointing_valid": valid, "pointing_chance": valid * 0.2}
    found = findings.findings_report(rows)
    report, counts = numbers(found), conftest.counts(found)
    assert report["pointing_cardiomegaly"] == 0.5
    assert report["pointing_pneumothorax"] == 1.0
    assert np.isnan(report["pointing_edema"])
    assert report["mean_pointing"] == 0.75
    assert report["mean_pointing_chance"] == pytest.approx(0.2)
    assert counts["pointing_cardiomegaly"] == counts["mean_pointing"] == 4
    assert counts["pointing_pneumothorax"] == 1
    assert set(report) == set(counts)


def test_the_set_of_a_mean_is_fixed_over_resamples(rows):
    over = findings.measured(rows)
    assert over.auc.nonzero()[0].tolist() == [0, 1, 3]
    part = {name: values[[0, 2]] for name, values in rows.items()}  # finding 3 is unknown in film 2
    assert findings.findings_report(part)["mean_auc"].value == 0.5  # of 0 and 1 alone
    report = findings.findings_report(part, over)
    assert np.isnan(report["mean_auc"].value)
    assert report["findings_with_auc"].value == 2
    valid = np.zeros((4, K), bool)
    valid[:2, 1] = valid[3, 7] = True
    rows |= {"pointing_hit": valid * 1.0, "pointing_valid": valid, "pointing_chance": valid * 0.2}
    over = findings.measured(rows)
    part = {name: values[:2] for name, values in rows.items()}
    assert findings.findings_report(part)["mean_pointing"].value == 1.0
    assert np.isnan(findings.findings_report(part, over)["mean_pointing"].value)


def test_the_interval_is_of_the_mean_over_one_set():
    """Finding 0 is always told apart and 1 never, but 0 has one positive film of twenty: over the
    changing set, resamples without that film have a mean of 0."""
    labels = np.full((20, K), NAN)
    labels[:, 0], labels[:, 1] = np.arange(20) == 0, np.arange(20) % 2
    probs = np.zeros((20, K))
    probs[:, 0], probs[:, 1] = labels[:, 0], 1 - labels[:, 1]
    rows = {"probs": probs, "labels": labels}
    changing = bootstrap(findings.findings_report, rows, np.arange(20), resamples=200)
    report = FindingsEvaluation().report_of(rows)
    fixed = bootstrap(report, rows, np.arange(20), resamples=200)
    assert changing["mean_auc"].low == 0
    assert fixed["mean_auc"].low == fixed["mean_auc"].high == fixed["mean_auc"].value == 0.5
