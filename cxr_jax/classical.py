"""Slices classified without a deep network: the first rows of FeCNN's Table 3 (Wu et al. 2022).

Local binary patterns, or a histogram of 64 grey levels, and a support vector machine, or a
multi-layer perceptron of 25, 10 and as many units as there are classes (scikit-learn's: of two
classes one logistic unit, where the paper's two have tanh).

The paper says little more. Ours: the patterns are the uniform ones, the same after rotation, at
three distances (its reference, Zhang et al. 2004, takes them region by region of a face); the
machine has a Gaussian kernel and weighs the classes alike; both see standardised features, which
stand for the batch norm that the paper's perceptron has before every layer.
"""

from collections.abc import Iterable

import numpy as np
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from cxr_jax.data.audit.features import GROUPS, pattern_shares

LEVELS = 64  # of the histogram [paper, Sec. 5.1]
HIDDEN = (25, 10)  # of the perceptron [paper, Sec. 5.1]
PENALTY = 0.01  # of its weights [paper, Sec. 5.1]
FEATURES = ("lbp", "histogram")
CLASSIFIERS = ("svm", "mlp")


def slice_features(slices: Iterable[np.ndarray], kind: str) -> np.ndarray:
    """What is known of each slice.

    Args:
      slices: uint8 [H, W] each, of any size.
      kind: 'lbp', shares of patterns, or 'histogram', shares of grey levels.

    Returns:
      float32 [N, 30] or [N, 64]; each row's shares are of its own pixels.

    Raises:
      ValueError: an unknown kind.
    """
    if kind not in FEATURES:
        raise ValueError(f"kind={kind!r}; expected one of {', '.join(FEATURES)}.")
    patterns = (pattern_shares, len(GROUPS["texture"]))
    measure, width = patterns if kind == "lbp" else (_histogram, LEVELS)
    rows = [measure(one) for one in slices]
    return np.array(rows, np.float32).reshape(-1, width)


def _histogram(one: np.ndarray) -> np.ndarray:
    counts = np.bincount(one.ravel(), minlength=256).reshape(LEVELS, -1).sum(axis=1)
    return counts / one.size


def fit(features: np.ndarray, labels: np.ndarray, kind: str, *, seed: int = 0) -> Pipeline:
    """Fits a classifier.

    Args:
      features: [N, F].
      labels: int [N], of two classes or more.
      kind: 'svm' or 'mlp'.
      seed: of the perceptron's first weights and its batches.

    Raises:
      ValueError: an unknown kind, or slices of one class alone.
    """
    if kind not in CLASSIFIERS:
        raise ValueError(f"kind={kind!r}; expected one of {', '.join(CLASSIFIERS)}.")
    if len(found := np.unique(labels)) < 2:
        raise ValueError(f"slices of the classes {found.tolist()} alone; expected two or more.")
    if kind == "svm":
        model = SVC(class_weight="balanced", decision_function_shape="ovr")
    else:
        model = MLPClassifier(
            HIDDEN, activation="tanh", alpha=PENALTY, max_iter=1000, random_state=seed
        )
    return make_pipeline(StandardScaler(), model).fit(features, labels)


def class_scores(model: Pipeline, features: np.ndarray) -> np.ndarray:
    """How much each slice is of each class the model has seen, in their order: [N, F] -> float64
    [N, K]; what is highest is its class, and the order within a class is what AUC needs.

    Probabilities of the perceptron. Distances of the machine: with two classes to the one boundary,
    once with the other sign.
    """
    if isinstance(model[-1], MLPClassifier):
        return model.predict_proba(features)
    scores = model.decision_function(features)
    return np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores
