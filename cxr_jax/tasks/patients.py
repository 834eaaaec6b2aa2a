"""The evaluation of tasks that segment CT volumes slice by slice: numbers per patient."""

import dataclasses
from typing import ClassVar

import numpy as np

from cxr_jax import figures
from cxr_jax.data.sources.base import Source
from cxr_jax.metrics import lesion_baselines, patients
from cxr_jax.metrics.bootstrap import Value
from cxr_jax.tasks.base import Evaluation, Rows, evenly


@dataclasses.dataclass(frozen=True)
class PatientsEvaluation(Evaluation):
    """Numbers per patient, of whose slices the rows are; beside them what needs no learning.

    Attributes:
      threshold: of the lesion map, as evaluated.
      gates: probabilities of its own that a slice may need to have a lesion, the one that is
        evaluated first.
      fits: threshold, gate and the baselines' thresholds are chosen on the validation split.
    """

    threshold: float
    gates: tuple[float, ...]
    fits: bool
    free_settings: ClassVar[tuple[str, ...]] = (
        *("threshold", "gate", "tune"),
        *("scales", "mirror", "normalize_map"),
    )
    columns: ClassVar[tuple[str, ...]] = (
        *("positive_dice", "positive_recall", "positive_precision", "negative_dice", "all_dice"),
        *("slice_auc", *(f"{name}_dice" for name in lesion_baselines.NAMES)),
    )

    def units(self, rows):
        """One row a patient; `NAME_dice` is that of a baseline."""
        beside = {
            f"{name}_dice": patients.per_patient(found)["dice"]
            for name, found in lesion_baselines.found_by(rows).items()
        }
        return patients.per_patient(rows) | beside

    def report(self, units):
        """`patients_report`, and the mean Dice of positive patients of each baseline."""
        positive = patients.parts(units)["positive"]
        told = patients.patients_report(units)
        for name in lesion_baselines.NAMES:
            if f"{name}_dice" in units:
                dice = np.asarray(units[f"{name}_dice"])[positive]
                value = float(np.mean(dice)) if len(dice) else np.nan
                told[f"{name}_dice"] = Value(value, len(dice))
        return told

    def paired_values(self, units):
        of = patients.parts(units)
        return {name: units["dice"][of[name]] for name in ("positive", "all")}

    def fit(self, validation: Rows) -> dict[str, float]:
        """`gate`, `threshold`, and those of the baselines by their names."""
        gate = patients.best_gate(validation, self.gates)
        threshold = patients.THRESHOLDS[patients.best_threshold(_with_gate(validation, gate))]
        chosen = {"threshold": float(threshold), "gate": gate}
        return chosen | lesion_baselines.best_levels(validation)

    def with_fit(self, rows: Rows, fitted: dict[str, float]) -> Rows:
        index = int(np.searchsorted(patients.THRESHOLDS, fitted["threshold"] - 1e-6))
        rows = patients.at_threshold(_with_gate(rows, fitted["gate"]), index)
        return lesion_baselines.at_levels(rows, fitted)

    def references(self, rows: Rows, training: Source) -> dict[str, Rows]:
        """The baselines, on the same slices."""
        del training
        found = lesion_baselines.found_by(rows)
        return {f"without learning, {name}": baseline for name, baseline in found.items()}

    def figures(self, rows):
        """The histogram of the maps, and Dice against the threshold."""
        units = patients.per_patient(rows)
        of = patients.parts(units)
        if not of["all"].any():
            return {}
        names = {"positive": "patients with lesions", "negative": "patients without", "all": "all"}
        dice = {
            f"{name} ({of[part].sum()})": units["dice_at"][of[part]].mean(0)
            if of[part].any()
            else np.full(len(patients.THRESHOLDS), np.nan)
            for part, name in names.items()
        }
        histogram = np.asarray(rows["histogram"])[np.asarray(rows["known"], bool)].sum(0)
        return {
            "thresholds": figures.threshold_chart(
                patients.THRESHOLDS, dice, histogram=histogram, chosen=self.threshold
            )
        }

    def figure_indices(self, source: Source, count: int) -> np.ndarray:
        """Three quarters of them slices with a lesion, where these are known."""
        sick = source.slice_table().label == 1
        lesions = evenly(np.flatnonzero(sick), count - count // 4)
        others = evenly(np.flatnonzero(~sick), count - len(lesions))
        return np.sort(np.concatenate([lesions, others]))


def _with_gate(rows: Rows, gate: float) -> Rows:
    return rows | {"gate": np.full(len(rows["group"]), gate)}
