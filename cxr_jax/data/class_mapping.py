"""From the findings a network learns to those of another set (ADPD, Sec. 3.4): a table in a config.

Two sets rarely name the same findings. A table says of each finding that is evaluated which trained
findings stand for it: its score is the mean of their probabilities. It is positive where that mean
is above the threshold, as the paper says, or where one of them is, as in the released code: then
its score may lie below the threshold.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cxr_jax.data.records import Record
from cxr_jax.data.sources.base import Source, Subset, names_of
from cxr_jax.errors import InputError

# PAPERS, 4: the findings of `nih_cxr8` by those of `chest_imagenome`. The released table spells
# pneumothorax with a capital, which it then does not find: there it is never predicted.
NIH_BY_CHEST_IMAGENOME = {
    "atelectasis": ("atelectasis",),
    "cardiomegaly": ("enlarged cardiac silhouette",),
    "effusion": ("pleural effusion",),
    "infiltration": ("infiltration", "lung opacity"),
    "mass": ("mass/nodule (not otherwise specified)", "multiple masses/nodules"),
    "nodule": ("mass/nodule (not otherwise specified)",),
    "pneumonia": ("pneumonia",),
    "pneumothorax": ("pneumothorax",),
}
_BY_FINDING = ("findings", "region_findings")  # the fields [..., K] of a record


@dataclasses.dataclass(frozen=True, eq=False)
class ClassMapping:
    """K trained findings -> the E that are evaluated.

    Attributes:
      names: of the E findings.
      members: int [E, L], the trained findings that stand for each; repeated where it has fewer.
      weights: float32 [E, L], one over their number; 0 where a member is a repetition.
      positive_by: 'mean' or 'any'.
    """

    names: tuple[str, ...]
    members: np.ndarray
    weights: np.ndarray
    positive_by: str = "mean"

    @property
    def known(self) -> np.ndarray:
        """bool [E]: some trained finding stands for it."""
        return (self.weights > 0).any(axis=1)

    def scores(self, probs: Any) -> Any:
        """Probabilities [..., K] -> [..., E], the mean over the members; NumPy or JAX."""
        return (probs[..., self.members] * self.weights).sum(axis=-1)

    def positive(self, probs: Any, threshold: float) -> Any:
        """Probabilities [..., K] -> bool [..., E], which are above the threshold; NumPy or JAX."""
        if self.positive_by == "mean":
            return (self.scores(probs) > threshold) & self.known
        return ((probs[..., self.members] > threshold) & (self.weights > 0)).any(axis=-1)


def class_mapping(
    table: Mapping[str, Sequence[str]],
    *,
    trained: Sequence[str],
    untrained: Sequence[str] = (),
    positive_by: str = "mean",
    field: str = "class_mapping",
) -> ClassMapping:
    """The mapping that a table says.

    Args:
      table: finding that is evaluated -> the trained findings that stand for it; empty: every
        trained finding stands for itself.
      trained: the K names of a network's outputs.
      untrained: those of them that were not trained after all; they stand for nothing.
      positive_by: 'mean' or 'any'.
      field: of the config, for messages.

    Raises:
      InputError: a finding that is not among `trained` (named, with those that are), one without a
        member or with one twice.
    """
    table = dict(table) or {name: (name,) for name in trained}
    _check(table, trained=trained, field=field)
    most = max(len(members) for members in table.values())
    members = np.zeros((len(table), most), np.int32)
    weights = np.zeros((len(table), most), np.float32)
    for row, standing in enumerate(table.values()):
        numbers = [list(trained).index(name) for name in standing if name not in untrained]
        members[row, : len(numbers)] = numbers
        members[row, len(numbers) :] = numbers[0] if numbers else 0
        weights[row, : len(numbers)] = 1 / max(len(numbers), 1)
    return ClassMapping(tuple(table), members, weights, positive_by)


def _check(table: Mapping[str, Sequence[str]], *, trained: Sequence[str], field: str) -> None:
    for name, members in table.items():
        where = f"config.{field}[{name!r}]"
        if isinstance(members, str) or not members or len(set(members)) < len(members):
            raise InputError(
                f"{where}={members!r}; expected one or more trained findings, each once, as a tuple"
            )
        for member in members:
            if member not in trained:
                raise InputError(
                    f"{where}: no trained finding is called {member!r}; they are {_some(trained)}"
                )


def numbered(source: Source, names: Sequence[str], *, all_of_them: bool, field: str) -> Source:
    """A set with its findings numbered as `names` are; others of it are left out, and what it does
    not name is unknown.

    Args:
      names: the findings.
      all_of_them: the set must name each.
      field: of the config, for messages.

    Raises:
      InputError: the set names none of them, or not all.
    """
    theirs = names_of(source, "findings")
    there = [name in theirs for name in names]
    if all_of_them and not all(there):
        raise InputError(
            f"config.{field}: data set {source.name!r} (split {source.split!r}) has no finding "
            f"{names[there.index(False)]!r}; it has {_some(theirs)}"
        )
    if not any(there):
        raise InputError(
            f"data set {source.name!r} (split {source.split!r}) has none of the findings of "
            f"config.{field} ({_some(names, 3)}); its findings are {_some(theirs)}; say in "
            "config.class_mapping which trained findings stand for them"
        )
    return _Numbered(source, theirs, tuple(names))


class _Numbered(Subset):
    """See `numbered`. Every record has `findings`."""

    def __init__(self, source: Source, theirs: tuple[str, ...], names: tuple[str, ...]):
        super().__init__(source, list(range(len(source))), partial=source.partial)
        self.findings = names
        self._columns = np.array([theirs.index(n) if n in theirs else -1 for n in names])
        if theirs != names:
            self.version += f",findings{'.'.join(map(str, self._columns))}"
        self._numbers = np.full(len(theirs) + 1, -1, np.int32)  # the last one is that of -1
        there = np.flatnonzero(self._columns >= 0)
        self._numbers[self._columns[there]] = there

    def __getitem__(self, index: int) -> Record:
        record = super().__getitem__(index)
        unknown = np.full(len(self.findings), np.nan, np.float32)
        ours = {name: self._renumbered(name, value) for name, value in record.items()}
        return {"findings": unknown} | ours

    def peek(self, index: int, field: str) -> Any:
        value = super().peek(index, field)
        return None if value is None else self._renumbered(field, value)

    def _renumbered(self, field: str, value: Any) -> Any:
        if field == "box_label":
            return self._numbers[value]
        if field in _BY_FINDING:
            chosen = np.asarray(value, np.float32)[..., self._columns]
            return np.where(self._columns < 0, np.float32(np.nan), chosen)
        return value


def _some(names: Iterable[str], most: int = 60) -> str:
    names = list(names)
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")
