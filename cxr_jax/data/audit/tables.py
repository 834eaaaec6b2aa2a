"""Counts: how classes lie over splits, views and sizes, and over patients."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats.contingency import association

from cxr_jax.data.audit.films import Films, Label

_SIZES = 5  # the most frequent ones are named


def cross_tables(films: Films, label: Label) -> dict[str, Any]:
    """JSON: by `split`, `view` and `size` the films of each class, what they are by, and how
    strongly both go together (Cramér's V: 0 not at all, 1 one tells the other; None where one of
    them does not vary)."""
    common = Counter(map(tuple, films.shapes.tolist())).most_common(_SIZES)
    sizes = {shape: f"{shape[1]}x{shape[0]}" for shape, _ in common}
    by = {
        "split": films.splits,
        "view": [view or "unknown" for view in films.views],
        "size": [sizes.get(tuple(shape), "other") for shape in films.shapes.tolist()],
    }
    return {name: _table(label, values) for name, values in by.items()}


def _table(label: Label, by: Sequence[str]) -> dict[str, Any]:
    known = label.values >= 0
    names, column = np.unique(np.asarray(by)[known], return_inverse=True)
    counts = np.zeros((len(label.classes), len(names)), int)
    np.add.at(counts, (label.values[known], column), 1)
    there = counts[counts.sum(1) > 0]
    varies = there.ndim == 2 and min(there.shape) > 1
    return {
        "columns": names.tolist(),
        "rows": {name: row.tolist() for name, row in zip(label.classes, counts)},
        "cramers_v": float(association(there, method="cramer")) if varies else None,
    }


def patients(films: Films, labels: dict[str, Label]) -> dict[str, Any]:
    """JSON: how many patients, films of a patient (how many patients have so many), and of each
    label the patients with films of several classes."""
    counts = Counter(films.groups)
    several = {}
    for name, label in labels.items():
        classes = defaultdict(set)
        for group, value in zip(films.groups, label.values.tolist()):
            if value >= 0:
                classes[group].add(value)
        several[name] = sum(len(found) > 1 for found in classes.values())
    return {
        "patients": len(counts),
        "films_per_patient": {str(n): k for n, k in sorted(Counter(counts.values()).items())},
        "patients_in_several_classes": several,
    }
