"""From the findings a network learns to those of another set (ADPD, Sec. 3.4): a table in a config.

Two sets rarely name the same findings. A table says of each finding of the set that evaluates which
trained findings stand for it: its score is the mean of their probabilities, and it is positive
where one of them is, as in the released code.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

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


@dataclasses.dataclass(frozen=True, eq=False)
class ClassMapping:
    """K trained findings -> the E that are evaluated.

    Attributes:
      names: of the E findings, in the order of the set that evaluates.
      columns: int [E], the number of each in that set.
      members: int [E, L], the trained findings that stand for each; repeated where it has fewer.
      weights: float32 [E, L], one over their number; 0 where a member is a repetition.
    """

    names: tuple[str, ...]
    columns: np.ndarray
    members: np.ndarray
    weights: np.ndarray

    def scores(self, probs: Any) -> Any:
        """Probabilities [..., K] -> [..., E], the mean over the members; NumPy or JAX."""
        return (probs[..., self.members] * self.weights).sum(axis=-1)

    def positive(self, found: Any) -> Any:
        """bool [..., K] -> bool [..., E], any member; NumPy or JAX."""
        return found[..., self.members].any(axis=-1)

    def labels(self, numbers: np.ndarray) -> np.ndarray:
        """Findings by the evaluating set's number [M] (-1: none) -> int32 [M] by the number in
        `names`; -1 where the table does not have one."""
        numbers = np.asarray(numbers)[:, None]
        found = numbers == self.columns  # [M, E]
        return np.where(found.any(axis=1), found.argmax(axis=1), -1).astype(np.int32)


def class_mapping(
    table: Mapping[str, Sequence[str]],
    *,
    trained: Sequence[str],
    evaluated: Sequence[str],
    field: str = "class_mapping",
) -> ClassMapping:
    """The mapping that a table says.

    Args:
      table: finding of the evaluating set -> the trained findings that stand for it; empty: every
        finding of both sets stands for itself. A finding that is not in the table takes no part.
      trained: the K names.
      evaluated: those of the set that evaluates.
      field: of the config, for messages.

    Raises:
      InputError: a finding that a set does not have (named, with the likely ones), one without a
        member or with one twice; an empty table for sets without a finding in common.
    """
    table = table or {name: (name,) for name in evaluated if name in trained}
    if not table:
        raise InputError(
            f"config.{field} is empty, and no finding of the evaluating set ({_some(evaluated)}) "
            f"is one of the trained ones ({_some(trained)}); say which of these stand for it"
        )
    _check(table, trained=trained, evaluated=evaluated, field=field)
    names = tuple(name for name in evaluated if name in table)
    most = max(len(table[name]) for name in names)
    members = np.zeros((len(names), most), np.int32)
    weights = np.zeros((len(names), most), np.float32)
    for row, name in enumerate(names):
        numbers = [list(trained).index(member) for member in table[name]]
        members[row] = numbers + numbers[:1] * (most - len(numbers))
        weights[row, : len(numbers)] = 1 / len(numbers)
    columns = np.array([list(evaluated).index(name) for name in names], np.int32)
    return ClassMapping(names, columns, members, weights)


def _check(
    table: Mapping[str, Sequence[str]],
    *,
    trained: Sequence[str],
    evaluated: Sequence[str],
    field: str,
) -> None:
    for name, members in table.items():
        where = f"config.{field}[{name!r}]"
        if name not in evaluated:
            raise InputError(
                f"{where}: the evaluating set has no finding {name!r}; it has {_some(evaluated)}"
            )
        if isinstance(members, str) or not members or len(set(members)) < len(members):
            raise InputError(
                f"{where}={members!r}; expected one or more trained findings, each once, as a tuple"
            )
        for member in members:
            if member not in trained:
                raise InputError(
                    f"{where}: no trained finding is called {member!r}; they are {_some(trained)}"
                )


def _some(names: Iterable[str], most: int = 60) -> str:
    names = list(names)
    return ", ".join(map(str, names[:most])) + (", ..." if len(names) > most else "")
