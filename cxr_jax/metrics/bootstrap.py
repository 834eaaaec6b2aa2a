"""Percentile bootstrap intervals over patients."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

Rows = dict[str, np.ndarray]
# The range of n values holds their median in 1 - 2^(1 - n) of all samples: five give no interval of
# 95% whatever is done with them.
FEWEST_GROUPS = 6


class Value(NamedTuple):
    """A number over the rows of a split, NaN where it is undefined, and how many films, zones,
    patients, ... it is computed from. `reason` is why it is undefined, where that can be told."""

    value: float
    count: int
    reason: str = ""


def numbers(report: Mapping[str, Value]) -> dict[str, float]:
    """The values of a report without their counts."""
    return {name: float(value.value) for name, value in report.items()}


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number with its 95% interval. `dataclasses.asdict` is what `results.json` holds.

    Attributes:
        value: the metric on all rows; None (null) where it is undefined.
        low: lower end of the interval; None where there is none.
        high: upper end, likewise.
        n: how many films, zones or lesions the value is computed from.
      reason: why the value is None, where that can be told.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    reason: str = ""


def bootstrap(
    fn: Callable[[Rows], Mapping[str, Value]],
    rows: Rows,
    groups: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Metric]:
    """Metrics of a split with 95% percentile intervals, resampling whole patients.

    A resample draws as many groups as there are, with replacement, and takes every row of each: two
    films of one patient are not two independent films. The result does not depend on the order of
    the rows (but for rounding).

    Args:
        fn: rows -> name -> value and count. It must return the same names for any choice of rows.
        rows: name -> [N, ...]; all of one length, padding dropped.
        groups: [N] the patient of each row.
        resamples: number of resamples; 0 gives no intervals.
        seed: of the resampling.

    Returns:
        name -> Metric. An undefined value is None and so is its interval. The interval is taken
        over the resamples in which the metric is defined; it is None where fewer than half are, or
        where there are fewer than `FEWEST_GROUPS` groups.

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
    found = fn(rows)
    samples = {name: np.full(resamples, np.nan) for name in found}
    for i, index in enumerate(_resampled(groups, resamples, seed)):
        for name, value in fn({name: array[index] for name, array in rows.items()}).items():
            samples[name][i] = value.value
    return {name: _metric(value, samples[name]) for name, value in found.items()}


def _resampled(groups: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """The rows of each resample, group by group; none where there are too few groups."""
    _, member = np.unique(groups, return_inverse=True)
    order = np.argsort(member, kind="stable")  # rows, group by group
    size = np.bincount(member)
    start = np.cumsum(size) - size
    rng = np.random.default_rng(seed)
    for _ in range(resamples if len(size) >= FEWEST_GROUPS else 0):
        drawn = rng.integers(len(size), size=len(size))
        taken = size[drawn]
        # Positions start..start+size of each drawn group, one after another, without a loop.
        within = np.arange(taken.sum()) - np.repeat(np.cumsum(taken) - taken, taken)
        yield order[np.repeat(start[drawn], taken) + within]


def _metric(found: Value, samples: np.ndarray) -> Metric:
    value, count = float(found.value), int(found.count)
    if not np.isfinite(value):
        return Metric(value=None, low=None, high=None, n=count, reason=found.reason)
    defined = samples[np.isfinite(samples)]
    if defined.size == 0 or defined.size < len(samples) / 2:
        return Metric(value=value, low=None, high=None, n=count)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Metric(value=value, low=float(low), high=float(high), n=count)
