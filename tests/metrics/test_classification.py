"""AUROC, operating points and kappa against scikit-learn."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import sklearn.metrics

from cxr_jax.metrics import classification


@hypothesis.given(num=st.integers(2, 40), levels=st.integers(1, 12), seed=st.integers(0, 10**6))
@hypothesis.settings(max_examples=60, deadline=None)
def test_auroc_equals_sklearn_with_ties(num, levels, seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, levels, num) / levels, rng.integers(0, 2, num)
    got = classification.auroc(scores, labels)
    if labels.min() == labels.max():
        assert np.isnan(got)
    else:
        # 1e-12: both are sums of float64 halves.
        np.testing.assert_allclose(got, sklearn.metrics.roc_auc_score(labels, scores), rtol=1e-12)


def test_auroc_leaves_unknown_labels_out():
    assert classification.auroc([0.1, 0.9, 0.5], [0, 1, np.nan]) == 1.0
    assert np.isnan(classification.auroc([np.nan, 0.9], [0, 1]))
    assert np.isnan(classification.auroc([], []))


def test_labels_that_are_not_binary_are_refused():
    with pytest.raises(ValueError, match="label 2 is not 0, 1 or NaN"):
        classification.auroc([0.1, 0.2], [0, 2])


@pytest.mark.parametrize("sensitivity", [0.05, 0.5, 0.8, 0.81, 1.0])
def test_threshold_reaches_the_sensitivity_and_no_higher_one_does(sensitivity):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 50)
    scores = np.round(rng.random(50), 1)  # ties
    threshold = classification.threshold_at_sensitivity(scores, labels, sensitivity)
    point = classification.operating_point(scores, labels, threshold)
    assert point["sensitivity"] >= sensitivity
    higher = classification.operating_point(scores, labels, np.nextafter(threshold, 2))
    assert higher["sensitivity"] < sensitivity
    called = scores >= threshold
    assert point["sensitivity"] == sklearn.metrics.recall_score(labels, called)
    assert point["specificity"] == sklearn.metrics.recall_score(labels, called, pos_label=0)
    assert point["accuracy"] == sklearn.metrics.accuracy_score(labels, called)


def test_threshold_is_not_moved_by_rounding():
    scores = np.arange(10) / 10
    assert classification.threshold_at_sensitivity(scores, np.ones(10), 0.7) == 0.3


def test_operating_point_of_one_class_is_undefined():
    threshold = classification.threshold_at_sensitivity([0.2, 0.3], [0, 0])
    assert np.isnan(threshold)
    assert all(np.isnan(v) for v in classification.operating_point([0.2], [0], threshold).values())
    point = classification.operating_point([0.2, 0.3], [0, 0], 0.25)
    assert np.isnan(point["sensitivity"])
    assert point["specificity"] == 0.5


def test_a_sensitivity_out_of_range_is_refused():
    with pytest.raises(ValueError, match="sensitivity=0"):
        classification.threshold_at_sensitivity([1.0], [1], 0)


@pytest.mark.parametrize("quadratic", [False, True])
def test_kappa_equals_sklearn(quadratic):
    rng = np.random.default_rng(1)
    a = rng.integers(0, 4, 200)
    b = np.clip(a + rng.integers(-1, 2, 200), 0, 3)
    want = sklearn.metrics.cohen_kappa_score(a, b, weights="quadratic" if quadratic else None)
    got = classification.cohen_kappa(a, b, num_classes=4, quadratic=quadratic)
    np.testing.assert_allclose(got, want, rtol=1e-12)  # float64 sums in another order


def test_kappa_of_one_class_or_nothing_is_undefined():
    assert np.isnan(classification.cohen_kappa([1, 1], [1, 1], num_classes=2))
    assert np.isnan(classification.cohen_kappa([], [], num_classes=2))


def test_kappa_refuses_a_class_out_of_range():
    with pytest.raises(ValueError, match=r"span 0\.\.2"):
        classification.cohen_kappa([0, 2], [0, 1], num_classes=2)
