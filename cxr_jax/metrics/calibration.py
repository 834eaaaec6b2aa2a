"""Whether probabilities of classes mean what they say, and temperature scaling.

Guo et al., 'On calibration of modern neural networks', ICML 2017: the expected calibration error
(Eq. 3) over equal bins of the confidence, the probability of the class that is called; temperature
scaling (Sec. 4.2), one number that divides the logits, chosen on validation films.
"""

import numpy as np
import scipy.optimize

BINS = 15  # as in the paper
_LEAST = np.finfo(np.float32).tiny  # of a probability whose logarithm is taken
_RANGE = (-3.0, 3.0)  # of the decimal logarithm of the temperature


def log_loss(probs: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the true classes; NaN without examples.

    Args:
        probs: [N, K] sum to one.
        labels: int [N].
    """
    if not len(labels):
        return float("nan")
    true = np.asarray(probs, np.float64)[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(true, _LEAST)).mean())


def brier(probs: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance of the probabilities from the true class's corner (Brier 1950): 0..2;
    NaN without examples."""
    if not len(labels):
        return float("nan")
    corner = np.eye(probs.shape[1])[labels]
    return float(((np.asarray(probs, np.float64) - corner) ** 2).sum(axis=1).mean())


def reliability(
    probs: np.ndarray, labels: np.ndarray, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bin by bin of the confidence: how many examples, their mean confidence, their accuracy.

    Args:
        probs: [N, K] sum to one.
        labels: int [N].
        bins: of equal width over 0..1; a confidence on a border belongs to the lower bin.

    Returns:
        counts int [bins], confidence [bins], accuracy [bins]; NaN in an empty bin.
    """
    probs = np.asarray(probs, np.float64)
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [
            np.bincount(place, weights=w, minlength=bins) / counts for w in (confidence, right)
        ]
    return counts, means[0], means[1]


def expected_calibration_error(probs: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Mean distance of accuracy and confidence over the bins, by their examples (Eq. 3): 0..1; NaN
    without examples."""
    if not len(labels):
        return float("nan")
    counts, confidence, accuracy = reliability(probs, labels, bins)
    there = counts > 0
    return float((counts * np.abs(accuracy - confidence))[there].sum() / counts.sum())


def scale(probs: np.ndarray, temperature: np.ndarray | float) -> np.ndarray:
    """softmax(logits / T), from probabilities, whose logarithms are the logits but for a constant.

    Args:
        probs: [N, K] sum to one.
        temperature: above 0; one number, or [N].
    """
    logits = np.log(np.maximum(np.asarray(probs, np.float64), _LEAST))
    logits = logits / np.reshape(temperature, (-1, 1))
    logits -= logits.max(axis=1, keepdims=True)
    unnormalised = np.exp(logits)
    return unnormalised / unnormalised.sum(axis=1, keepdims=True)


def best_temperature(probs: np.ndarray, labels: np.ndarray) -> float:
    """The temperature 0.001 .. 1000 with the least log loss; choose it on validation films. NaN
    without examples, and where every example is called right: then the surest would be the best.

    Args:
        probs: [N, K] sum to one.
        labels: int [N].
    """
    if (np.argmax(probs, axis=1) == labels).all():
        return float("nan")
    # In the logarithm of T the loss has one valley (it is convex in 1 / T).
    found = scipy.optimize.minimize_scalar(
        lambda power: log_loss(scale(probs, 10.0**power), labels),
        bounds=_RANGE,
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(10.0**found.x)
