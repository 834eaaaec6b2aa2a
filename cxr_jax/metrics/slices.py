"""The report of classified CT slices and of the lesions their maps find (Wu et al. 2022).

Rows of a split, N slices, K classes, T lesions at most:

| row | shape | meaning |
| --- | --- | --- |
| those of `metrics.diagnosis` | | |
| `lesion_true` | [N, T] | there is such a lesion |
| `lesion_chance` | [N, T] | see `lesion_maps.chance_hits` |
| `NAME_SHARE_hit` | [N, T, 9] | it is hit by the map NAME, see `lesion_maps.hit_rows` |
| `NAME_count` | [N] | lesions that the map NAME has |
"""

from collections.abc import Mapping, Sequence

import numpy as np

from cxr_jax.metrics import classification, lesion_maps
from cxr_jax.metrics.bootstrap import Value

Rows = Mapping[str, np.ndarray]


def positives_report(probs: np.ndarray, labels: np.ndarray, positive: int) -> dict[str, Value]:
    """How well one class is told from the others together (Sec. 4.3.1).

    Args:
      probs: [N, K].
      labels: int [N].
      positive: the class; a slice is called so where it is the most probable one.

    Returns:
      `precision`, `recall`, `f1`, `average_precision` and `auc`, NaN with a reason where one is
      undefined.
    """
    is_it, called = labels == positive, probs.argmax(axis=1) == positive
    right = float((is_it & called).sum())
    none = "no slice is positive" if not is_it.any() else "no slice is called positive"
    one_class = "" if is_it.any() and not is_it.all() else "all slices are of one class"
    # Twice the right ones over all called and all true: defined wherever there is either.
    f1 = _ratio(2 * right, is_it.sum() + called.sum())
    scores = probs[:, positive]
    return {
        "precision": Value(_ratio(right, called.sum()), int(called.sum()), _told(called, none)),
        "recall": Value(_ratio(right, is_it.sum()), int(is_it.sum()), _told(is_it, none)),
        "f1": Value(f1, len(labels), "" if np.isfinite(f1) else none),
        "average_precision": Value(
            classification.average_precision(scores, is_it), len(labels), one_class
        ),
        "auc": Value(classification.auroc(scores, is_it), len(labels), one_class),
    }


def maps_report(rows: Rows, maps: Sequence[str]) -> dict[str, Value]:
    """Hit rates of each map at overlaps 0.1 .. 0.9 of the lesion's box (Table 5), at 0.5 of the
    other two readings of 'overlap', and how many lesions it has a slice; `chance_hit_rate`."""
    report = {}
    for name in maps:
        for share in lesion_maps.SHARES:
            hits = {"lesion_hit": rows[f"{name}_{share}_hit"], "lesion_true": rows["lesion_true"]}
            rates = lesion_maps.hit_rates(hits)
            if share == lesion_maps.SHARES[0]:
                report |= {f"{name}_{key}": value for key, value in rates.items()}
            else:
                report[f"{name}_hit_rate_50_of_{share}"] = rates["hit_rate_50"]
        counts = np.asarray(rows[f"{name}_count"], np.float64)
        report[f"{name}_lesions"] = Value(float(counts.mean()), len(counts))
    true = np.asarray(rows["lesion_true"], bool)
    chance = np.asarray(rows["lesion_chance"], np.float64)[true]
    reason = "" if len(chance) else "no slice has a lesion"
    rate = float(chance.mean()) if len(chance) else np.nan
    return report | {"chance_hit_rate": Value(rate, len(chance), reason)}


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _told(there: np.ndarray, reason: str) -> str:
    return "" if there.any() else reason
