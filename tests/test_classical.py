"""Patterns and histograms with a support vector machine and a perceptron."""

import numpy as np
import pytest

from cxr_jax import classical


def slices(count, seed=0):
    """Class 0: fine noise; 1: coarse noise of the same greys; 2: brighter fine noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    made = []
    for label in labels:
        small = rng.integers(60, 160, (12, 14) if label == 1 else (48, 56))
        side = 4 if label == 1 else 1
        made.append((small.repeat(side, 0).repeat(side, 1) + 60 * (label == 2)).astype(np.uint8))
    return made, labels


def test_features_are_shares():
    made, _ = slices(4)
    histogram = classical.slice_features(made, "histogram")
    assert histogram.shape == (4, 64)
    want = [np.mean(made[0] // 4 == level) for level in range(64)]
    np.testing.assert_allclose(histogram[0], want, rtol=1e-6)
    patterns = classical.slice_features(made, "lbp")
    assert patterns.shape == (4, 30)
    np.testing.assert_allclose(patterns.reshape(4, 3, 10).sum(-1), 1, rtol=1e-6)
    assert classical.slice_features([], "lbp").shape == (0, 30)


def test_patterns_do_not_see_quarter_turns_or_brightness():
    made, _ = slices(2)
    turned = [np.rot90(one).copy() for one in made]
    brighter = [one + np.uint8(20) for one in made]
    want = classical.slice_features(made, "lbp")
    np.testing.assert_allclose(classical.slice_features(turned, "lbp"), want, atol=0.02)
    np.testing.assert_allclose(classical.slice_features(brighter, "lbp"), want, atol=0.01)


@pytest.mark.parametrize("kind", classical.CLASSIFIERS)
@pytest.mark.parametrize("classes", [2, 3])
def test_scores_rank_the_classes(kind, classes):
    rows = []
    for seed in (0, 1):
        made, labels = slices(36, seed)
        features = [classical.slice_features(made, feature) for feature in classical.FEATURES]
        rows.append((np.concatenate(features, axis=1), labels))
    (seen, labels), (new, truth) = [(x[y < classes], y[y < classes]) for x, y in rows]
    model = classical.fit(seen, labels, kind)
    scores = classical.class_scores(model, new)
    assert scores.shape == (len(new), classes)
    np.testing.assert_array_equal(scores.argmax(1), model.predict(new))
    assert np.mean(scores.argmax(1) == truth) > 0.9
    again = classical.class_scores(classical.fit(seen, labels, kind), new)
    np.testing.assert_array_equal(again, scores)


def test_the_perceptron_is_the_papers():
    made, labels = slices(12)
    model = classical.fit(classical.slice_features(made, "histogram"), labels > 0, "mlp")
    assert [kernel.shape for kernel in model[-1].coefs_] == [(64, 25), (25, 10), (10, 1)]
    assert (model[-1].activation, model[-1].alpha) == ("tanh", 0.01)


def test_what_is_unknown_or_cannot_be_learnt_is_told():
    made, labels = slices(6)
    features = classical.slice_features(made, "histogram")
    with pytest.raises(ValueError, match="kind='sift'; expected one of lbp, histogram"):
        classical.slice_features(made, "sift")
    with pytest.raises(ValueError, match="kind='tree'; expected one of svm, mlp"):
        classical.fit(features, labels, "tree")
    with pytest.raises(ValueError, match=r"classes \[0\] alone"):
        classical.fit(features, 0 * labels, "svm")
