"""Calibration against plain loops, at its extremes, and a temperature that is known."""

import numpy as np
import pytest
import sklearn.metrics

from cxr_jax.metrics import calibration


def softmax(logits):
    unnormalised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return unnormalised / unnormalised.sum(axis=1, keepdims=True)


@pytest.fixture
def films():
    """Probabilities of three classes and labels drawn from them."""
    rng = np.random.default_rng(0)
    probs = softmax(rng.normal(0, 2, (4000, 3)))
    labels = (rng.random((4000, 1)) > probs.cumsum(axis=1)).sum(axis=1)
    return probs, np.minimum(labels, 2)


def test_ece_equals_a_plain_loop(films):
    probs, labels = films
    total = 0.0
    for b in range(15):
        inside = [i for i, p in enumerate(probs) if b / 15 < p.max() <= (b + 1) / 15]
        if inside:
            accuracy = np.mean([probs[i].argmax() == labels[i] for i in inside])
            confidence = np.mean([probs[i].max() for i in inside])
            total += len(inside) / len(probs) * abs(accuracy - confidence)
    assert calibration.expected_calibration_error(probs, labels) == pytest.approx(total, rel=1e-9)


def test_log_loss_and_brier_are_those_of_scikit_learn(films):
    probs, labels = films
    wanted = sklearn.metrics.log_loss(labels, probs)
    assert calibration.log_loss(probs, labels) == pytest.approx(wanted, rel=1e-9)
    binary = probs[:, :2] / probs[:, :2].sum(axis=1, keepdims=True)
    wanted = 2 * sklearn.metrics.brier_score_loss(labels == 1, binary[:, 1])
    assert calibration.brier(binary, (labels == 1).astype(int)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_found(films, true):
    """Labels are drawn from the probabilities: those of logits times T are too sure by T."""
    probs, labels = films
    sure = softmax(np.log(probs) * true)
    found = calibration.best_temperature(sure, labels)
    assert found == pytest.approx(true, rel=0.06)
    scaled = calibration.scale(sure, found)
    assert calibration.expected_calibration_error(scaled, labels) < 0.03
    assert (scaled.argmax(axis=1) == sure.argmax(axis=1)).all()


def test_extremes_stay_finite():
    probs = softmax(np.array([[40.0, -40.0, 0.0], [-40.0, 40.0, 0.0]])).astype(np.float32)
    labels = np.array([1, 1])  # one surely wrong
    assert np.isfinite(calibration.log_loss(probs, labels))
    temperature = calibration.best_temperature(probs, labels)
    assert 1e-3 <= temperature <= 1e3
    scaled = calibration.scale(probs, temperature)
    assert np.isfinite(scaled).all()
    np.testing.assert_allclose(scaled.sum(axis=1), 1)
    assert calibration.expected_calibration_error(np.eye(3)[[0, 1]], np.array([0, 1])) == 0


def test_films_that_are_all_called_right_choose_no_temperature():
    probs = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    assert np.isnan(calibration.best_temperature(probs, np.array([0, 1])))
    assert calibration.best_temperature(probs, np.array([0, 0])) > 0


def test_nothing_is_undefined():
    none = np.zeros((0, 3)), np.zeros(0, int)
    for metric in (
        calibration.log_loss,
        calibration.brier,
        calibration.expected_calibration_error,
        calibration.best_temperature,
    ):
        assert np.isnan(metric(*none))
