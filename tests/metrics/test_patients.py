"""Numbers per patient, against sums by hand."""

import numpy as np
import pytest

from cxr_jax.errors import InputError
from cxr_jax.metrics import classification, patients
from cxr_jax.metrics.bootstrap import numbers
from tests import conftest


def rows(maps, lesions, groups, *, area=None, prob=None, threshold=0.5):
    n = len(maps)
    found = patients.slice_rows(
        np.asarray(maps, np.float32),
        np.asarray(lesions, np.uint8),
        np.ones(n, np.float32) if area is None else np.asarray(area, np.float32),
        threshold,
    )
    return {k: np.asarray(v) for k, v in found.items()} | {
        "group": np.array(groups),
        "id": np.array([f"{g}-{i}" for i, g in enumerate(groups)]),
        "known": np.ones(n, bool),
        "label": np.asarray(lesions).reshape(n, -1).any(1).astype(np.float32),
        "slice_prob": np.ones(n) if prob is None else np.asarray(prob),
    }


def square(*on):
    grid = np.zeros((2, 2))
    for y, x in on:
        grid[y, x] = 1
    return grid


def test_slices_are_summed_before_the_ratio():
    # a: found 1 of 2 and 2 of 1: both 1 + 1, found 1 + 2, true 2 + 1. b has no lesion.
    maps = [square((0, 0)), square((0, 0), (1, 1)), square()]
    lesions = [square((0, 0), (0, 1)), square((1, 1)), square()]
    units = patients.per_patient(rows(maps, lesions, ["a", "a", "b"]))
    assert units["id"].tolist() == ["a", "b"]
    assert units["positive"].tolist() == [True, False]
    np.testing.assert_allclose(units["dice"], [2 * 2 / (3 + 3), 1.0])
    np.testing.assert_allclose(units["recall"], [2 / 3, np.nan])
    np.testing.assert_allclose(units["precision"], [2 / 3, np.nan])


def test_a_patient_without_a_lesion_scores_one_or_nothing():
    maps = [square((0, 0)), square()]
    units = patients.per_patient(rows(maps, [square(), square()], ["a", "b"]))
    assert units["dice"].tolist() == [0.0, 1.0]


def test_silence_about_a_lesion_has_no_precision():
    units = patients.per_patient(rows([square()], [square((0, 0))], ["a"]))
    assert (units["dice"][0], units["recall"][0], units["precision"][0]) == (0, 0, 0)


def test_a_slice_below_its_gate_finds_nothing():
    maps, lesions = [square((0, 0))] * 2, [square((0, 0))] * 2
    found = rows(maps, lesions, ["a", "a"], prob=[0.6, 0.4])
    for gate, recall in ((0.5, 0.5), (0.4, 1.0), (0.0, 1.0), (0.7, 0.0)):
        units = patients.per_patient(found | {"gate": np.full(2, gate)})
        np.testing.assert_allclose(units["recall"], [recall])
        np.testing.assert_allclose(units["dice_at"][0, 0], 2 * recall / (1 + recall))
    np.testing.assert_allclose(patients.per_patient(found)["recall"], [1.0])  # of an older version


def test_the_best_gate_tells_slices_apart():
    lesions = [square((0, 0))] * 3 + [square()] * 3
    found = rows(lesions, lesions, list("aabbcc"), prob=[0.3, 0.2, 0.1, 0.07, 0.05, 0.6])
    assert patients.best_gate(found, (0.5, 0.083, 0.0)) == 0.083
    assert patients.best_gate(found, (0.9, 0.95)) == 0.9  # neither does: the first
    ill = {name: np.asarray(values)[:3] for name, values in found.items()}
    assert patients.best_gate(ill, (0.5, 0.0)) == 0.5


def test_rows_of_other_thresholds_are_one_line():
    found = rows([square((0, 0))], [square((0, 0))], ["a"])
    older = found | {name: found[name][:, 4:] for name in ("found_at", "both_at")}
    with pytest.raises(InputError, match="19 thresholds and not 23"):
        patients.best_threshold(older)


def test_areas_weigh_the_slices():
    maps, lesions = [square((0, 0)), square()], [square((0, 0)), square((0, 0))]
    units = patients.per_patient(rows(maps, lesions, ["a", "a"], area=[3, 1]))
    np.testing.assert_allclose(units["recall"], [0.75])


def test_thresholds_are_swept():
    graded = np.array([[0.2, 0.45], [0.7, 0.99]])
    units = patients.per_patient(rows([graded], [np.ones((2, 2))], ["a"]))
    by_hand = [2 * (graded > t).sum() / ((graded > t).sum() + 4) for t in patients.THRESHOLDS]
    np.testing.assert_allclose(units["dice_at"][0], by_hand)
    np.testing.assert_allclose(units["dice"][0], 2 * 2 / 6)


def test_the_best_threshold_is_that_of_patients_with_lesions():
    sick, healthy = np.array([[0.42, 0.1], [0.1, 0.1]]), np.full((2, 2), 0.6)
    both = rows([sick, healthy], [square((0, 0)), square()], ["a", "b"])
    index = patients.best_threshold(both)
    assert patients.THRESHOLDS[index] == 0.1  # the first that leaves the lesion alone
    tuned = patients.at_threshold(both, index)
    np.testing.assert_array_equal(patients.per_patient(tuned)["dice"], [1, 0])
    alone = {name: np.asarray(values)[1:] for name, values in both.items()}
    assert patients.THRESHOLDS[patients.best_threshold(alone)] == 0.6


def test_the_histogram_counts_every_pixel_once():
    graded = np.array([[0.0, 1.0], [0.5, 0.011]])
    histogram = rows([graded], [square((0, 1))], ["a"])["histogram"][0]
    assert histogram.sum() == 4
    assert histogram[-1, 1] == 1  # the one pixel of 1.0 is the lesion
    assert histogram[:, 0].nonzero()[0].tolist() == [0, 25]


def test_the_report_is_mean_and_spread_over_patients():
    maps = [square((0, 0)), square((0, 0)), square((0, 0)), square()]
    lesions = [square((0, 0)), square((1, 1)), square(), square()]
    units = patients.per_patient(rows(maps, lesions, list("abcd"), prob=[0.9, 0.1, 0.6, 0.2]))
    found = patients.patients_report(units)
    report = numbers(found)
    assert report["positive_dice"] == 0.5
    assert report["negative_dice"] == 0.5
    assert report["all_dice"] == 0.5
    np.testing.assert_allclose(report["positive_dice_sd"], np.std([1, 0], ddof=1))
    assert (report["slice_sensitivity"], report["slice_specificity"]) == (0.5, 0.5)
    counts = conftest.counts(found)
    assert (counts["positive_dice"], counts["negative_dice_sd"], counts["all_dice"]) == (2, 2, 4)
    assert counts["slice_specificity"] == 2


def test_slice_numbers_are_those_of_the_pooled_slices():
    rng = np.random.default_rng(0)
    lesions = np.stack([square((0, 0)) if sick else square() for sick in rng.random(300) < 0.6])
    prob = 1 / (1 + np.exp(-rng.normal(0, 8, 300) - 4 * lesions.any((1, 2))))
    prob[:4] = 0.0, 1.0, 0.5, 0.5
    groups = [f"p{i % 7}" for i in range(300)]
    units = patients.per_patient(rows(lesions, lesions, groups, prob=prob))
    report = numbers(patients.patients_report(units))
    sick = lesions.any((1, 2))
    np.testing.assert_allclose(report["slice_auc"], classification.auroc(prob, sick), atol=2e-3)
    np.testing.assert_allclose(report["slice_sensitivity"], (prob[sick] >= 0.5).mean())
    np.testing.assert_allclose(report["slice_specificity"], (prob[~sick] < 0.5).mean())


def test_unknown_truth_is_left_out():
    known = {"known": np.array([True, False]), "label": np.array([0, np.nan])}
    found = rows([square()] * 2, [square()] * 2, ["a", "b"]) | known
    assert patients.per_patient(found)["id"].tolist() == ["a"]
    nothing = {"known": np.zeros(2, bool), "label": np.full(2, np.nan)}
    report = numbers(patients.patients_report(patients.per_patient(found | nothing)))
    assert all(np.isnan(value) for value in report.values())


@pytest.mark.parametrize(
    ("labels", "known", "positive", "dice"),
    [
        ([1, 0], [False, True], True, np.nan),  # ill, by ranges; nobody drew it
        ([1, 1], [False, True], True, 1.0),  # half drawn: what is drawn counts
        ([np.nan, 0], [False, True], False, np.nan),  # nobody knows whether he is healthy
        ([0, 0], [True, True], False, 0.0),
    ],
)
def test_an_ill_patient_without_a_mask_is_no_healthy_one(labels, known, positive, dice):
    truth = [
        square((0, 0)) if label == 1 and seen else square() for label, seen in zip(labels, known)
    ]
    found = rows([square((0, 0))] * 2, truth, ["a", "a"], prob=[0.9, 0.2])
    units = patients.per_patient(found | {"known": np.array(known), "label": np.array(labels)})
    assert units["positive"].tolist() == [positive]
    np.testing.assert_array_equal(units["dice"], [dice])
    told = patients.patients_report(units)
    report, counts = numbers(told), conftest.counts(told)
    np.testing.assert_array_equal(report["all_dice"], dice)
    assert counts["all_dice"] == int(not np.isnan(dice))
    labelled = np.isfinite(labels)
    assert counts["slice_auc"] == labelled.sum()
    if positive and not all(labels):
        assert report["slice_auc"] == 1.0


def test_a_lesion_too_small_for_the_map_is_not_found_by_silence():
    found = rows([square()], [square()], ["a"]) | {"label": np.array([1.0])}
    units = patients.per_patient(found)
    assert (units["dice"][0], units["recall"][0], units["dice_at"].max()) == (0, 0, 0)


def test_no_threshold_is_chosen_where_nothing_is_drawn():
    found = rows([square()], [square()], ["a"])
    with pytest.raises(InputError, match="no patient of the split has a known mask"):
        patients.best_threshold(found | {"known": np.zeros(1, bool), "label": np.ones(1)})


@pytest.mark.parametrize("count", [1, 3])
def test_the_order_of_the_slices_does_not_matter(count):
    rng = np.random.default_rng(count)
    maps, lesions = rng.random((6 * count, 5, 5)), rng.random((6 * count, 5, 5)) > 0.7
    groups = [f"p{i % 3}" for i in range(6 * count)]
    straight = rows(maps, lesions, groups)
    order = rng.permutation(6 * count)
    turned = {k: v[order] for k, v in straight.items()}
    a, b = patients.per_patient(straight), patients.per_patient(turned)
    for name in ("dice", "recall", "precision", "dice_at"):
        np.testing.assert_allclose(a[name], b[name])
