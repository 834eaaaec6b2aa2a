"""The diagnosis report: how well classes are told apart, at which threshold, and how surely.

`DiagnosisReport` takes the rows of a whole split. Rows that it knows, K classes:

| row | shape | meaning |
| --- | --- | --- |
| `probs` | [N, K] | predicted probabilities, sum to one |
| `label` | [N] | the true class |
| `threshold` | [N, K] | of each class, chosen on validation films; folds have their own |
| `temperature` | [N] | likewise |
| `NAME_hit`, `_chance`, `_share`, `_valid`, `_deletion`, `_insertion` | [N] | of an explanation |

The last are there where explanations were measured (`explain.measured`). Without `threshold` and
`temperature` what needs them is undefined. Other rows are ignored.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from cxr_jax.metrics import calibration, classification, explanations, regression
from cxr_jax.metrics.bootstrap import Value

Rows = Mapping[str, np.ndarray]

SENSITIVITY = 0.8  # that a threshold must reach [Park et al. 2021, Sec. 4.4]
_AT_THRESHOLD = ("sensitivity", "specificity", "accuracy")
_NOT_CHOSEN = "no threshold was chosen on validation films"
_NO_TEMPERATURE = "no temperature was chosen on validation films"


def key(name: str) -> str:
    """A class's name in a metric's: 'covid-19' -> 'covid_19'."""
    return "".join(c if c.isalnum() else "_" for c in name.lower())


@dataclasses.dataclass(frozen=True)
class DiagnosisReport:
    """Every metric of the diagnosis task over one split.

    Attributes:
      classes: their K names.
    """

    classes: tuple[str, ...]

    def __call__(self, rows: Rows) -> dict[str, Value]:
        """`accuracy` and `balanced_accuracy` of the most probable class; `mean_auc`, one against
        the rest, and `auc_CLASS`; `recall_CLASS` and the confusion matrix `TRUE_called_OTHER`,
        shares of the films of the true class; `log_loss`, `brier` and `ece`; with a temperature
        `scaled_log_loss` and `scaled_ece`; with thresholds `CLASS_sensitivity`,
        `CLASS_specificity`, `CLASS_accuracy` and their means `mean_sensitivity`, ... (Tables 4, 7
        of Park et al. 2021).

        What is undefined is NaN, with the reason.
        """
        probs, labels = np.asarray(rows["probs"], np.float64), np.asarray(rows["label"], int)
        report = self._discrimination(probs, labels) | self._confusion(probs, labels)
        report |= _calibration(probs, labels, rows.get("temperature"))
        report |= self._operating_points(probs, labels, rows.get("threshold"))
        return report | explanations.means(rows)

    def _discrimination(self, probs: np.ndarray, labels: np.ndarray) -> dict[str, Value]:
        aucs, ranks = {}, _log_odds(probs)
        for k, name in enumerate(self.classes):
            auc = classification.auroc(ranks[:, k], labels == k)
            reason = self._lacking(labels, k)
            aucs[f"auc_{key(name)}"] = Value(auc, len(labels), reason)
        return {"mean_auc": _mean_of(aucs.values(), len(labels))} | aucs

    def _lacking(self, labels: np.ndarray, k: int) -> str:
        """Why a class cannot be told from the rest; '' where it can."""
        if not (labels == k).any():
            return f"no film is of class {self.classes[k]}"
        return f"all films are of class {self.classes[k]}" if (labels == k).all() else ""

    def _confusion(self, probs: np.ndarray, labels: np.ndarray) -> dict[str, Value]:
        called = probs.argmax(axis=1)
        recalls, shares = {}, {}
        for k, true in enumerate(self.classes):
            mine = called[labels == k]
            reason = "" if len(mine) else f"no film is of class {true}"
            for j, other in enumerate(self.classes):
                share = regression.mean((mine == j).astype(float))
                name = f"recall_{key(true)}" if j == k else f"{key(true)}_called_{key(other)}"
                (recalls if j == k else shares)[name] = Value(share, len(mine), reason)
        right = regression.mean((called == labels).astype(float))
        balanced = _mean_of(recalls.values(), len(labels))
        return {"accuracy": Value(right, len(labels)), "balanced_accuracy": balanced} | (
            recalls | shares
        )

    def _operating_points(
        self, probs: np.ndarray, labels: np.ndarray, thresholds: np.ndarray | None
    ) -> dict[str, Value]:
        values: dict[str, dict[str, Value]] = {name: {} for name in _AT_THRESHOLD}
        for k, name in enumerate(self.classes):
            threshold = np.full(len(labels), np.nan) if thresholds is None else thresholds[:, k]
            # By how much a film is above its own threshold: folds have their own.
            above = probs[:, k] - threshold
            chosen = not np.isnan(above).any()
            point = classification.operating_point(above, labels == k, 0.0 if chosen else np.nan)
            reason = self._lacking(labels, k) if chosen else _not_chosen(thresholds, name)
            positives = int((labels == k).sum())
            counts = {"sensitivity": positives, "specificity": len(labels) - positives}
            for what, value in point.items():
                told = reason if np.isnan(value) else ""
                count = counts.get(what, len(labels))
                values[what][f"{key(name)}_{what}"] = Value(value, count, told)
        means = {f"mean_{what}": _mean_of(values[what].values(), len(labels)) for what in values}
        return means | {name: value for each in values.values() for name, value in each.items()}


def _not_chosen(thresholds: np.ndarray | None, name: str) -> str:
    """Why a class has no threshold."""
    if thresholds is None:
        return _NOT_CHOSEN
    return f"no threshold was chosen: no validation film is {name}"


def _mean_of(values, count: int) -> Value:
    """The mean of all of them; undefined where one is, with its reason."""
    values = list(values)
    reason = next((value.reason for value in values if np.isnan(value.value)), "")
    return Value(float(np.mean([value.value for value in values])), count, reason)


def _log_odds(probs: np.ndarray) -> np.ndarray:
    """[N, K] log(p / sum of the other p), finite. A p near 1 is rounded to it in float32, and sure
    films would tie; the other p keep their order."""
    least = np.finfo(np.float32).tiny
    others = probs @ (1 - np.eye(probs.shape[1]))
    return np.log(np.maximum(probs, least)) - np.log(np.maximum(others, least))


def _calibration(
    probs: np.ndarray, labels: np.ndarray, temperature: np.ndarray | None
) -> dict[str, Value]:
    count = len(labels)
    report = {
        "log_loss": Value(calibration.log_loss(probs, labels), count),
        "brier": Value(calibration.brier(probs, labels), count),
        "ece": Value(calibration.expected_calibration_error(probs, labels), count),
    }
    loss = ece = chosen = float("nan")
    reason = told = _NO_TEMPERATURE
    if temperature is not None and not np.isnan(temperature).any():
        scaled = calibration.scale(probs, temperature)
        loss = calibration.log_loss(scaled, labels)
        ece = calibration.expected_calibration_error(scaled, labels)
        one = np.ptp(temperature) == 0
        chosen = float(temperature[0]) if one else chosen
        reason, told = "", "" if one else "each fold has its own"
    return report | {
        "scaled_log_loss": Value(loss, count, reason),
        "scaled_ece": Value(ece, count, reason),
        "temperature": Value(chosen, count, told),
    }


def choose(probs: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> dict[str, float]:
    """From validation films: `threshold_CLASS`, the highest at which the class is found with a
    sensitivity of at least 80%, of each class that there is, and `temperature`.

    Args:
        probs: [N, K] sum to one.
        labels: int [N].
        classes: their K names.
    """
    chosen = {"temperature": calibration.best_temperature(probs, labels)}
    for k, name in enumerate(classes):
        threshold = classification.threshold_at_sensitivity(probs[:, k], labels == k, SENSITIVITY)
        chosen[f"threshold_{key(name)}"] = threshold
    return {name: value for name, value in chosen.items() if not np.isnan(value)}


def with_choice(rows: Rows, chosen: Mapping[str, float], classes: tuple[str, ...]) -> dict:
    """The rows with `threshold` and `temperature`, NaN where nothing was chosen."""
    count = len(rows["label"])
    thresholds = [chosen.get(f"threshold_{key(name)}", np.nan) for name in classes]
    temperature = np.full(count, chosen.get("temperature", np.nan))
    return {**rows, "threshold": np.tile(thresholds, (count, 1)), "temperature": temperature}
