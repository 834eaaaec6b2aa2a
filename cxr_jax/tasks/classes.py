"""What tasks share that give one of several classes: their records and their evaluation."""

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from cxr_jax import figures
from cxr_jax.data.sources.base import Source, by_classes, names_of, peek
from cxr_jax.errors import InputError
from cxr_jax.metrics import diagnosis
from cxr_jax.tasks.base import Evaluation, Rows


def check_class_names(classes: Sequence[str]) -> None:
    """Refuses `config.classes` that cannot be meant."""
    classes = tuple(classes)
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise InputError(f"config.classes={classes}; expected at least two different names")


def of_classes(source: Source, classes: tuple[str, ...]) -> Source:
    """The records of the classes, numbered as these.

    Raises:
      InputError: a class that the set does not name.
    """
    names = names_of(source, "diagnoses")
    if unknown := [name for name in classes if name not in names]:
        raise InputError(
            f"config.classes has {unknown[0]!r}; data set {source.name!r} has the classes "
            f"{', '.join(names)}"
        )
    return by_classes(source, classes)


def check_classes(source: Source, classes: tuple[str, ...]) -> None:
    """Refuses a training set without a record of some class: looks at labels until every class has
    been seen."""
    missing = set(range(len(classes)))
    for index in range(len(source)):
        missing.discard(int(peek(source, index, "diagnosis")))
        if not missing:
            return
    names = ", ".join(classes[k] for k in sorted(missing))
    raise InputError(
        f"data set {source.name!r}: no training film is of class {names}; name the classes there "
        "are with --config.classes, or choose other data"
    )


@dataclasses.dataclass(frozen=True)
class ClassEvaluation(Evaluation):
    """Discrimination at thresholds and without (Tables 4, 7 and 9 of Park et al. 2021), and
    calibration; beside them the shares of the training records.

    Attributes:
      classes: their names.
      labelled: a source -> its records of these classes.
    """

    classes: tuple[str, ...]
    labelled: Callable[[Source], Source]
    fits = True
    columns = (
        *("accuracy", "balanced_accuracy", "mean_auc", "mean_sensitivity", "mean_specificity"),
        *("ece", "scaled_ece"),
    )
    mean_over_runs = ("probs",)
    fitted_rows = ("threshold", "temperature")
    compared_with_references = ("accuracy", "mean_auc")

    def report(self, units):
        return diagnosis.DiagnosisReport(self.classes)(units)

    def case_errors(self, rows):
        """1 minus the probability of the true class."""
        probs, labels = np.asarray(rows["probs"]), np.asarray(rows["label"], int)
        return 1 - probs[np.arange(len(labels)), labels]

    def fit(self, validation):
        return diagnosis.choose(validation["probs"], validation["label"], self.classes)

    def with_fit(self, rows, fitted):
        return diagnosis.with_choice(rows, fitted, self.classes)

    def references(self, rows: Rows, training: Source) -> dict[str, Rows]:
        """The classes' shares among the training records, the same for every one."""
        training = self.labelled(training)
        labels = collections.Counter(
            int(peek(training, index, "diagnosis")) for index in range(len(training))
        )
        shares = np.array([labels[k] for k in range(len(self.classes))], np.float64)
        probs = np.tile(shares / shares.sum(), (len(rows["label"]), 1))
        kept = {name: rows[name] for name in ("label", "group", "id")}
        return {"constant, training shares": kept | {"probs": probs}}

    def figures(self, rows):
        probs, labels = np.asarray(rows["probs"]), np.asarray(rows["label"], int)
        temperature = rows.get("temperature", np.array([np.nan]))[:1]
        return {
            "roc": figures.roc_chart(probs, labels, self.classes),
            "confusion": figures.confusion_chart(probs.argmax(axis=1), labels, self.classes),
            "reliability": figures.reliability_chart(probs, labels, float(temperature[0])),
        }
