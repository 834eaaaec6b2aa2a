"""How well the two views of a film find one another among all films of a split.

Rows of `retrieval_report`: `own`, the cosine of a film's two views; `others`, the mean cosine of
its first view with the other films' second views; `found`, whether no other second view is nearer
than its own; `chance`, one over the number of films. `retrieval` makes them of the projections.
"""

from collections.abc import Mapping

import numpy as np

from cxr_jax.metrics.bootstrap import Value
from cxr_jax.metrics.regression import mean

_CHUNK = 1024  # films at a time


def retrieval(first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
    """The rows of the report, of unit vectors [N, D] of the two views; NaN where N is 1."""
    count = len(first)
    first, second = np.asarray(first, np.float32), np.asarray(second, np.float32)
    own, nearest, others = np.full((3, count), np.nan, np.float32)
    for start in range(0, count, _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, count))
        cosines = first[rows] @ second.T
        own[rows] = cosines[rows - start, rows]
        if count > 1:
            others[rows] = (cosines.sum(axis=1) - own[rows]) / (count - 1)
            cosines[rows - start, rows] = -np.inf
            nearest[rows] = cosines.max(axis=1)
    found = np.where(np.isnan(nearest), np.nan, own > nearest)
    chance = np.full(count, 1 / count if count > 1 else np.nan)
    return {"own": own, "others": others, "found": found, "chance": chance}


def retrieval_report(units: Mapping[str, np.ndarray]) -> dict[str, Value]:
    """`retrieval`, the share of films whose own second view is the nearest, and its `chance`;
    `agreement` and `other_agreement`, mean cosines of like and of unlike views."""
    names = {
        "retrieval": "found",
        "retrieval_chance": "chance",
        "agreement": "own",
        "other_agreement": "others",
    }
    count = len(units["own"])
    reason = "" if count and not np.isnan(units["found"]).all() else "there is one film alone"
    values = {name: mean(np.asarray(units[row], np.float64)) for name, row in names.items()}
    return {name: Value(v, count, reason if np.isnan(v) else "") for name, v in values.items()}
