"""Agreement of predicted and true scores: MSE, MAE, CC and R2 (Kim et al. 2021, Table 2).

All functions take arrays of equal shape, any number of axes, flatten them, compute in float64 and
return a float: NaN where the number is undefined.
"""

import numpy as np

from cxr_jax.metrics.bootstrap import Value

# Eight float32 ulps: a spread this small beside the values is rounding, not variation.
_CONSTANT = 1e-6


def _pair(pred, true) -> tuple[np.ndarray, np.ndarray]:
    pred, true = np.asarray(pred, np.float64), np.asarray(true, np.float64)
    if pred.shape != true.shape:
        raise ValueError(f"predictions are {pred.shape} and truth is {true.shape}; must be equal.")
    return pred.ravel(), true.ravel()


def _is_constant(values: np.ndarray) -> bool:
    return values.size < 2 or np.ptp(values) <= _CONSTANT * np.abs(values).max()


def mean(values) -> float:
    """Mean of the values that are not NaN; NaN where there is none."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def mean_of_known(values) -> Value:
    """`mean`, and how many values it is of."""
    known = ~np.isnan(np.asarray(values, np.float64))
    return Value(mean(values), int(known.sum()))


def mse(pred, true) -> float:
    """Mean squared error, in squared score units; NaN for no example."""
    pred, true = _pair(pred, true)
    return float(np.mean((pred - true) ** 2)) if pred.size else float("nan")


def mae(pred, true) -> float:
    """Mean absolute error, in score units; NaN for no example."""
    pred, true = _pair(pred, true)
    return float(np.mean(np.abs(pred - true))) if pred.size else float("nan")


def cc(pred, true) -> float:
    """Pearson's correlation, -1..1; NaN where either side is constant or has one example."""
    pred, true = _pair(pred, true)
    if _is_constant(pred) or _is_constant(true):
        return float("nan")
    pred, true = pred - pred.mean(), true - true.mean()
    r = np.sum(pred * true) / np.sqrt(np.sum(pred**2) * np.sum(true**2))
    return float(np.clip(r, -1.0, 1.0))  # rounding can pass 1 by an ulp


def r2(pred, true) -> float:
    """1 - sum (pred - true)^2 / sum (true - mean)^2, at most 1; NaN where truth is constant."""
    pred, true = _pair(pred, true)
    if _is_constant(true):
        return float("nan")
    return float(1.0 - np.sum((pred - true) ** 2) / np.sum((true - true.mean()) ** 2))
