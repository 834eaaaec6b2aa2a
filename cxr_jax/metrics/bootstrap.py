"""Percentile bootstrap intervals over patients."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

Rows = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number with its 95% interval. `dataclasses.asdict` is what `results.json` holds.

    Attributes:
        value: the metric on all rows; None (null) where it is undefined.
        low: lower end of the interval; None where there is none.
        high: upper end, likewise.
        n: how many films, zones or lesions the value is computed from.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


def bootstrap(
    fn: Callable[[Rows], Mapping[str, float]],
    rows: Rows,
    groups: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    counts: Callable[[Rows], Mapping[str, int]] | None = None,
) -> dict[str, Metric]:
    """Metrics of a split with 95% percentile intervals, resampling whole patients.

    A resample draws as many groups as there are, with replacement, and takes every row of each: two
    films of one patient are not two independent films. The result does not depend on the order of
    the rows (but for rounding).

    Args:
        fn: rows -> name -> float; NaN is "undefined here". It must return the same names for any
            choice of rows.
        rows: name -> [N, ...]; all of one length, padding dropped.
        groups: [N] the patient of each row.
        resamples: number of resamples; 0 gives no intervals.
        seed: of the resampling.
        counts: rows -> name -> n of that metric; by default n is the number of rows.

    Returns:
        name -> Metric. An undefined value is None and so is its interval. The interval is taken
        over the resamples in which the metric is defined; it is None where fewer than half are, or
        where there is only one group.

    Raises:
        ValueError: there are no rows, or the lengths differ.
    """
    rows = {name: np.asarray(values) for name, values in rows.items()}
    groups = np.asarray(groups)
    lengths = {name: len(values) for name, values in rows.items()} | {"groups": len(groups)}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"rows differ in length: {lengths}.")
    if len(groups) == 0:
        raise ValueError("no rows to evaluate; is the split empty?")

    values = fn(rows)
    num = {name: len(groups) for name in values} | dict(counts(rows) if counts else {})

    _, member = np.unique(groups, return_inverse=True)
    order = np.argsort(member, kind="stable")  # rows, group by group
    size = np.bincount(member)
    start = np.cumsum(size) - size

    samples = {name: np.full(resamples, np.nan) for name in values}
    rng = np.random.default_rng(seed)
    for i in range(resamples if len(size) > 1 else 0):
        drawn = rng.integers(len(size), size=len(size))
        taken = size[drawn]
        # Positions start..start+size of each drawn group, one after another, without a loop.
        within = np.arange(taken.sum()) - np.repeat(np.cumsum(taken) - taken, taken)
        index = order[np.repeat(start[drawn], taken) + within]
        for name, value in fn({name: array[index] for name, array in rows.items()}).items():
            samples[name][i] = value

    def metric(name: str) -> Metric:
        value = float(values[name])
        if not np.isfinite(value):
            return Metric(None, None, None, int(num[name]))
        defined = samples[name][np.isfinite(samples[name])]
        if defined.size == 0 or defined.size < resamples / 2:
            return Metric(value, None, None, int(num[name]))
        low, high = np.percentile(defined, [2.5, 97.5])
        return Metric(value, float(low), float(high), int(num[name]))

    return {name: metric(name) for name in values}
