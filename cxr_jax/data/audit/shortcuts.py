"""How well a class can be told from trivial features: a forest, cross-validated by patient."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

FOLDS = 5
_RESAMPLES = 500


def told_by(
    features: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str],
    *,
    classes: Sequence[str],
    subsets: dict[str, list[int]],
    trees: int,
    reason: str = "",
) -> dict[str, Any]:
    """What each subset of the features tells of a label.

    Args:
      features: float32 [N, F].
      labels: int [N], a number of `classes`, or -1 where nobody knows.
      groups: the patient of each film; no patient is on both sides of a fold.
      classes: names.
      subsets: name -> columns of `features`.
      trees: of a forest.
      reason: why it is only to be counted.

    Returns:
      JSON: `films`, `classes` (name -> films), `patients` (name -> patients); `reason` why nothing
      can be measured, or None; then `chance` and `told`, subset -> the numbers of `_scores`, or
      None where all films are alike in it.
    """
    known = labels >= 0
    features, labels = features[known], labels[known]
    groups = np.unique(np.asarray(groups)[known], return_inverse=True)[1]
    present = [k for k in range(len(classes)) if (labels == k).any()]
    labels = np.searchsorted(present, labels)
    names = [classes[k] for k in present]
    patients = [len(np.unique(groups[labels == k])) for k in range(len(names))]
    counts = np.bincount(labels, minlength=len(names))
    result = {
        "films": len(labels),
        "classes": dict(zip(names, counts.tolist())),
        "patients": dict(zip(names, patients)),
        "reason": reason or _reason(names, patients),
        "chance": None,
        "told": None,
    }
    if result["reason"] is None:
        result["chance"] = {
            "accuracy": float(counts.max() / counts.sum()),
            "balanced_accuracy": 1 / len(names),
            "auc": 0.5,
        }
        folds = list(
            StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(
                features, labels, groups
            )
        )
        result["told"] = {
            name: _told(features[:, picked], labels, groups, folds=folds, trees=trees)
            for name, picked in subsets.items()
        }
    return result


def _reason(names: list[str], patients: list[int]) -> str | None:
    if len(names) < 2:
        return f"all films are of one class, {names[0]!r}" if names else "no film has this label"
    least = int(np.argmin(patients))
    if patients[least] < FOLDS:
        return (
            f"class {names[least]!r} has films of {patients[least]} patients; {FOLDS} folds by "
            f"patient need at least {FOLDS}"
        )
    return None


def _told(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, folds: "_Folds", trees: int
) -> dict[str, Any] | None:
    if not np.ptp(features, axis=0).any():
        return None
    return _scores(_probs(features, labels, folds, trees), labels, groups, folds)


_Folds = list[tuple[np.ndarray, np.ndarray]]


def _probs(features: np.ndarray, labels: np.ndarray, folds: _Folds, trees: int) -> np.ndarray:
    """float64 [N, K]: of each film by the forest that did not see its patient."""
    probs = np.zeros((len(labels), labels.max() + 1))
    for train, test in folds:
        forest = RandomForestClassifier(
            trees, class_weight="balanced", min_samples_leaf=2, random_state=0
        ).fit(features[train], labels[train])
        probs[np.ix_(test, forest.classes_)] = forest.predict_proba(features[test])
    return probs


def _scores(
    probs: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: _Folds
) -> dict[str, Any]:
    """JSON: accuracy and balanced accuracy over all films, the second with a 95% interval over
    patients; the mean one-vs-rest AUC over folds; `sd` of each over the folds in which every class
    is; `folds`, how many these are; None where there is none."""
    classes = probs.shape[1]
    right = probs.argmax(1) == labels
    whole = [test for _, test in folds if len(np.unique(labels[test])) == classes]
    accuracy = [right[test].mean() for test in whole]
    balanced = [_balanced(right[test], labels[test]) for test in whole]
    auc = [_auc(probs[test], labels[test]) for test in whole]
    low, high = _interval(right, labels, groups)
    return {
        "accuracy": {"value": float(right.mean()), "sd": _spread(accuracy)},
        "balanced_accuracy": {
            "value": _balanced(right, labels),
            "sd": _spread(balanced),
            "low": low,
            "high": high,
        },
        "auc": {"value": float(np.mean(auc)) if auc else None, "sd": _spread(auc)},
        "folds": len(whole),
    }


def _balanced(right: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(np.bincount(labels, weights=right) / np.bincount(labels)))


def _auc(probs: np.ndarray, labels: np.ndarray) -> float:
    each = [roc_auc_score(labels == k, probs[:, k]) for k in range(probs.shape[1])]
    return float(np.mean(each))


def _spread(values: list[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _interval(right: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """2.5% and 97.5% of the balanced accuracy when patients are drawn with replacement."""
    shape = (groups.max() + 1, labels.max() + 1)
    hits, films = np.zeros(shape), np.zeros(shape)
    np.add.at(hits, (groups, labels), right)
    np.add.at(films, (groups, labels), 1)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(shape[0], np.full(shape[0], 1 / shape[0]), size=_RESAMPLES)
    total = drawn @ films
    # A class that was not drawn has no share in the mean of this resample.
    recall = np.divide(drawn @ hits, total, out=np.full(total.shape, np.nan), where=total > 0)
    low, high = np.percentile(np.nanmean(recall, axis=1), [2.5, 97.5])
    return float(low), float(high)
