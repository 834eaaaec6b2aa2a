"""Discrimination and agreement of labels: AUROC, average precision, operating points, kappa.

Labels are 0 or 1; NaN is an unknown label and the example takes no part. Functions return a float:
NaN where the number is undefined (a class is missing); nothing is invented.
"""

import numpy as np
import scipy.stats


def _known(scores, labels) -> tuple[np.ndarray, np.ndarray]:
    """Scores and boolean labels of the examples whose label is known, [M] each."""
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if scores.shape != labels.shape:
        raise ValueError(f"scores are {scores.shape} and labels {labels.shape}; must be equal.")
    known = ~np.isnan(labels)
    scores, labels = scores[known], labels[known]
    if not np.isin(labels, (0.0, 1.0)).all():
        bad = labels[~np.isin(labels, (0.0, 1.0))][0]
        raise ValueError(f"label {bad:g} is not 0, 1 or NaN; binarise the labels first.")
    return scores, labels == 1


def auroc(scores, labels) -> float:
    """Area under the ROC curve: P(score of a positive > of a negative), ties count one half.

    Args:
        scores: [N] larger means more positive; only the order counts.
        labels: [N] 0, 1 or NaN (unknown).

    Returns:
        0..1; NaN where a class is missing or a score is NaN.
    """
    scores, positive = _known(scores, labels)
    num_pos = int(positive.sum())
    num_neg = positive.size - num_pos
    if num_pos == 0 or num_neg == 0 or np.isnan(scores).any():
        return float("nan")
    ranks = scipy.stats.rankdata(scores)  # ties get their mean rank
    wins = ranks[positive].sum() - num_pos * (num_pos + 1) / 2
    return float(wins / (num_pos * num_neg))


def average_precision(scores, labels) -> float:
    """Area under the precision-recall curve, by its steps: scores and labels as `auroc`; of a
    scorer that knows nothing it is the share of positives. NaN as there."""
    import sklearn.metrics  # takes a second

    scores, positive = _known(scores, labels)
    if not positive.any() or positive.all() or np.isnan(scores).any():
        return float("nan")
    return float(sklearn.metrics.average_precision_score(positive, scores))


def threshold_at_sensitivity(scores, labels, sensitivity: float = 0.8) -> float:
    """The highest threshold t for which `scores >= t` reaches the sensitivity.

    Choose it on the validation split and apply it to the test split.

    Args:
        scores: [N] larger means more positive.
        labels: [N] 0, 1 or NaN (unknown).
        sensitivity: wanted share of the positives found, in (0, 1].

    Returns:
        One of the positives' scores; NaN where there is no positive.

    Raises:
        ValueError: `sensitivity` is not in (0, 1].
    """
    if not 0.0 < sensitivity <= 1.0:
        raise ValueError(f"sensitivity={sensitivity}; must be in (0, 1].")
    scores, positive = _known(scores, labels)
    found = np.sort(scores[positive])[::-1]
    if found.size == 0:
        return float("nan")
    # Less a hair, so that 0.8 * 5 = 4.000000000000001 asks for 4 positives, not 5.
    needed = max(int(np.ceil(sensitivity * found.size - 1e-9)), 1)
    return float(found[needed - 1])


def operating_point(scores, labels, threshold: float) -> dict[str, float]:
    """Sensitivity, specificity and accuracy of `scores >= threshold`.

    Args:
        scores: [N] larger means more positive.
        labels: [N] 0, 1 or NaN (unknown).
        threshold: in the units of `scores`.

    Returns:
        `sensitivity`, `specificity`, `accuracy`, each 0..1; NaN without positives, without
        negatives, without examples; all NaN where the threshold is.
    """
    scores, positive = _known(scores, labels)
    called = scores >= threshold

    def share(hits: np.ndarray) -> float:
        undefined = hits.size == 0 or np.isnan(threshold)
        return float("nan") if undefined else float(hits.mean())

    return {
        "sensitivity": share(called[positive]),
        "specificity": share(~called[~positive]),
        "accuracy": share(called == positive),
    }


def cohen_kappa(a, b, *, num_classes: int, quadratic: bool = False) -> float:
    """Cohen's kappa: agreement of two readers beyond chance, at most 1.

    1 - sum(w O) / sum(w E), with O the table of both readers' classes, E the product of its
    margins, w = 1 off the diagonal, or (i - j)^2 if `quadratic`.

    Args:
        a: [...] integer classes in 0..num_classes-1 by the first reader.
        b: [...] the same by the second.
        num_classes: number of classes.
        quadratic: weigh a disagreement by its squared distance.

    Returns:
        Kappa; NaN where both readers use one and the same class only, or there is no example.

    Raises:
        ValueError: a class is out of range.
    """
    a, b = np.asarray(a).ravel().astype(np.int64), np.asarray(b).ravel().astype(np.int64)
    for classes in (a, b):
        if classes.size and (classes.min() < 0 or classes.max() >= num_classes):
            raise ValueError(
                f"classes span {classes.min()}..{classes.max()}; must be in 0..{num_classes - 1}."
            )
    table = np.bincount(a * num_classes + b, minlength=num_classes**2)
    table = table.reshape(num_classes, num_classes).astype(np.float64)
    distance = np.subtract.outer(np.arange(num_classes), np.arange(num_classes))
    weights = distance**2 if quadratic else (distance != 0)
    expected = np.outer(table.sum(1), table.sum(0))
    chance = np.sum(weights * expected)
    if chance == 0:
        return float("nan")
    return float(1.0 - np.sum(weights * table) * table.sum() / chance)
