"""Regression metrics against scikit-learn and SciPy."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from cxr_jax.metrics import regression

scores = hnp.arrays(
    np.float64, st.integers(3, 30), elements=st.integers(0, 60).map(lambda i: i / 10)
)


@hypothesis.given(pred=scores, seed=st.integers(0, 100))
@hypothesis.settings(max_examples=40, deadline=None)
def test_against_oracles(pred, seed):
    true = np.random.default_rng(seed).integers(0, 7, len(pred)).astype(float)
    # 1e-10: float64 in another order of summation.
    np.testing.assert_allclose(
        regression.mse(pred, true), sklearn.metrics.mean_squared_error(true, pred), rtol=1e-10
    )
    np.testing.assert_allclose(
        regression.mae(pred, true), sklearn.metrics.mean_absolute_error(true, pred), rtol=1e-10
    )
    if np.ptp(true) == 0:
        assert np.isnan(regression.r2(pred, true))
    else:
        np.testing.assert_allclose(
            regression.r2(pred, true), sklearn.metrics.r2_score(true, pred), rtol=1e-8, atol=1e-10
        )
    if np.ptp(true) == 0 or np.ptp(pred) == 0:
        assert np.isnan(regression.cc(pred, true))
    else:
        want = scipy.stats.pearsonr(pred, true).statistic
        np.testing.assert_allclose(regression.cc(pred, true), want, atol=1e-9)


@pytest.mark.parametrize("name", ["mse", "mae", "cc", "r2"])
def test_no_example_is_undefined(name):
    assert np.isnan(getattr(regression, name)([], []))


@pytest.mark.parametrize("name", ["cc", "r2"])
def test_one_example_has_no_correlation(name):
    assert np.isnan(getattr(regression, name)([1.0], [2.0]))


def test_float32_rounding_is_no_variation():
    constant = np.float32(0.3) + np.array([0, 3e-8, -3e-8, 0], np.float32)
    assert np.isnan(regression.cc(constant, [1, 2, 3, 4]))


def test_the_mean_predictor_has_r2_of_zero():
    true = np.array([0.0, 1, 5, 6])
    assert regression.r2(np.full(4, 3.0), true) == 0


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2,\).*\(2, 1\)"):
        regression.mse(np.zeros(2), np.zeros((2, 1)))


def test_mean_skips_nan():
    assert regression.mean([1.0, np.nan, 3.0]) == 2
    assert np.isnan(regression.mean([np.nan]))
