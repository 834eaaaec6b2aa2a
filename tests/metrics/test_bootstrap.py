"""The bootstrap: groups, seeds, undefined values, coverage, speed."""

import dataclasses
import json
import time

import numpy as np
import pytest
import scipy.stats

from cxr_jax.metrics import severity
from cxr_jax.metrics.bootstrap import Metric, Value, bootstrap


def mean_x(rows):
    return {"mean": Value(float(rows["x"].mean()), len(rows["x"]))}


def test_interval_of_a_mean_equals_scipy():
    x = np.random.default_rng(0).normal(size=80)
    got = bootstrap(mean_x, {"x": x}, np.arange(80), resamples=2000)["mean"]
    want = scipy.stats.bootstrap(
        (x,), np.mean, method="percentile", n_resamples=2000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert got.value == pytest.approx(x.mean())
    assert got.n == 80
    # Two independent draws of 2000: an end has a Monte Carlo error near 0.006 (0.11 / sqrt(2000)
    # times 2.7); 0.03 is five times that.
    np.testing.assert_allclose([got.low, got.high], want, atol=0.03)


def test_resampling_is_by_group():
    # Ten films of each of ten patients, all alike: ten independent values, not a hundred.
    patient = np.random.default_rng(0).normal(size=10)
    whole = bootstrap(mean_x, {"x": patient}, np.arange(10), seed=3)["mean"]
    many = bootstrap(mean_x, {"x": np.repeat(patient, 10)}, np.repeat(np.arange(10), 10), seed=3)
    # The same groups are drawn, so only the rounding of the means differs.
    np.testing.assert_allclose([many["mean"].low, many["mean"].high], [whole.low, whole.high])


def test_a_group_comes_whole():
    rows = {"x": np.arange(1.0, 10)}
    groups = np.array(["a", "b", "a", "c", "b", "a", "d", "e", "f"])
    whole = {"a": {1, 3, 6}, "b": {2, 5}, "c": {4}, "d": {7}, "e": {8}, "f": {9}}
    seen = []

    def check(rows):
        counts = dict(zip(*np.unique(rows["x"], return_counts=True)))
        drawn = 0
        for members in whole.values():
            times = {counts.get(x, 0) for x in members}
            assert len(times) == 1
            drawn += times.pop()
        assert drawn == 6
        seen.append(tuple(rows["x"]))
        return {"n": Value(float(len(rows["x"])), 6)}

    bootstrap(check, rows, groups, resamples=50)
    assert len(set(seen)) > 5


def test_order_of_rows_does_not_matter():
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=30), rng.integers(0, 12, 30)
    order = rng.permutation(30)
    a = bootstrap(mean_x, {"x": x}, groups, seed=5)["mean"]
    b = bootstrap(mean_x, {"x": x[order]}, groups[order], seed=5)["mean"]
    # Equal draws; sums in another order.
    np.testing.assert_allclose(dataclasses.astuple(a)[:4], dataclasses.astuple(b)[:4], rtol=1e-12)
    assert a.reason == b.reason == ""


def test_the_seed_decides():
    x = np.random.default_rng(0).normal(size=20)
    first, again, other = (
        bootstrap(mean_x, {"x": x}, np.arange(20), seed=s)["mean"] for s in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_undefined_is_null_and_never_invented():
    got = bootstrap(lambda rows: {"auc": Value(float("nan"), 4)}, {"x": np.zeros(4)}, np.arange(4))[
        "auc"
    ]
    assert got == Metric(None, None, None, 4)
    assert json.loads(json.dumps(dataclasses.asdict(got)))["value"] is None


def test_an_interval_needs_half_of_the_resamples():
    def rare(rows):  # defined on all rows, but in few resamples
        return {"v": Value(1.0 if len(np.unique(rows["x"])) == 6 else float("nan"), 6)}

    got = bootstrap(rare, {"x": np.arange(6)}, np.arange(6), resamples=200)["v"]
    assert got == Metric(1.0, None, None, 6)


@pytest.mark.parametrize(
    "groups, resamples", [(np.zeros(5), 100), (np.arange(5), 100), (np.arange(5), 0)]
)
def test_too_few_patients_or_no_resample_gives_no_interval(groups, resamples):
    got = bootstrap(mean_x, {"x": np.arange(5.0)}, groups, resamples=resamples)["mean"]
    assert got == Metric(2.0, None, None, 5)


def test_counts_name_their_n():
    got = bootstrap(lambda rows: {"mean": Value(1.0, 2)}, {"x": np.ones(3)}, np.arange(3))
    assert got["mean"].n == 2


def test_empty_and_ragged_rows_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        bootstrap(mean_x, {"x": np.zeros(0)}, np.zeros(0))
    with pytest.raises(ValueError, match="differ in length"):
        bootstrap(mean_x, {"x": np.zeros(3)}, np.zeros(2))


def test_severity_intervals_of_500_films_are_quick():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (500, 3, 2))
    rows = {
        "probs": np.clip(labels * 0.3 + rng.random((500, 3, 2)) * 0.7, 0, 1),
        "labels": labels,
        "valid": rng.random((500, 3, 2)) < 0.95,
        "pointing_hit": rng.random((500, 3, 2)),
        "pointing_valid": labels > 0,
    }
    start = time.process_time()
    bootstrap(severity.severity_report, rows, rng.integers(0, 300, 500), resamples=200)
    # 1000 resamples are to take less than 10 s of one core; here a fifth of them.
    assert time.process_time() - start < 2.0
