"""What a data set's file builds on: the door `Source`, CT slices, and subsets of records.

A source gives standard records (`cxr_jax/data/records.py`) by number. A source of CT gives single
slices, and a table says how they lie in volumes.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from cxr_jax.data import splits
from cxr_jax.data.records import DIAGNOSES, FINDINGS, SCHEMA, Record
from cxr_jax.errors import InputError

SPLITS = ("train", "val", "test")
GREATEST_SEVERITY = 18  # six zones of 0..3
VIEWS = tuple(view for view in SCHEMA["view"].values if view)
NAMES = {"findings": FINDINGS, "diagnoses": DIAGNOSES}  # where a set has none of its own


class Source(Protocol):
    """One split of a data set: records by number. It pickles, for spawned workers.

    Attributes:
      name: the data set.
      version: says whether two runs saw the same data.
      split: 'train', 'val' or 'test'.
      fields: what its records have.
      partial: those of `fields` that some records lack (a film without a lung mask).
      notes: where there is any, lines for the user on what was not used or left out.

    A set whose findings are not `records.FINDINGS` has their names as `findings`, one whose
    diagnoses are not `records.DIAGNOSES` theirs as `diagnoses`; `names_of` gives them.
    """

    name: str
    version: str
    split: str
    fields: frozenset[str]
    partial: frozenset[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class SliceTable(NamedTuple):
    """Where each record of a CT source lies; known without reading a picture.

    Attributes:
      volume: int [N], the number of the record's volume.
      position: int [N], the slice's number in it, the record's `slice`; two records are neighbours
        in the body where these differ by 1.
      label: float32 [N], the record's `slice_label`: 1, 0 or NaN.
    """

    volume: np.ndarray
    position: np.ndarray
    label: np.ndarray


class SliceSource(Source, Protocol):
    """A source of slices: its records have `volume`, `slice` and `slice_label`."""

    def slice_table(self) -> SliceTable:
        """Where the records lie, in their order."""
        ...


@dataclasses.dataclass(frozen=True)
class PreparedOptions:
    """Of a prepared set whose three splits are given.

    Attributes:
      data_dir: where it was prepared; empty: $CXR_DATA_DIR, else ~/cxr_jax_data
    """

    data_dir: str = ""


@dataclasses.dataclass(frozen=True)
class FoldedOptions(PreparedOptions):
    """Of a prepared set whose training films are dealt to folds.

    Attributes:
      fold: 0, 1, ...: this fold of the training films validates; -1: none does
    """

    fold: int = -1


@dataclasses.dataclass(frozen=True)
class GradedOptions(FoldedOptions):
    """Of one whose films have severity scores.

    Attributes:
      min_severity: least global score (0..18) of a training film
      max_severity: greatest global score of a training film
    """

    min_severity: int = 0
    max_severity: int = GREATEST_SEVERITY


class Subset:
    """Some records of a source, in the order of `indices`, under the source's name and split."""

    def __init__(self, source: Source, indices: list[int], *, partial: frozenset[str]):
        self.source = source
        self.indices = list(indices)
        self.name, self.split = source.name, source.split
        self.version = source.version + splits.selection(self.indices, len(source))
        self.fields, self.partial = source.fields, partial
        self.findings, self.diagnoses = names_of(source, "findings"), names_of(source, "diagnoses")
        self.notes: tuple[str, ...] = tuple(getattr(source, "notes", ()))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.source[self.indices[index]]

    def has(self, index: int, field: str) -> bool:
        """Whether record `index` has `field`."""
        return has(self.source, self.indices[index], field)

    def peek(self, index: int, field: str) -> Any:
        """See the function."""
        return peek(self.source, self.indices[index], field)

    def stored(self, index: int) -> bytes:
        """The film as it is stored, where the source is `of_files`."""
        return self.source.stored(self.indices[index])

    def stored_size(self, index: int) -> int:
        """Bytes of `stored`."""
        return self.source.stored_size(self.indices[index])


def stored_side(source: Source) -> int:
    """The longest side that its films were reduced to when they were stored; 0: not known."""
    while source is not None:
        if side := getattr(source, "max_side", 0):
            return side
        source = getattr(source, "source", None)
    return 0


class _Relabelled(Subset):
    """Some films of a set, their classes under other numbers."""

    def __init__(self, source: Source, indices: list[int], numbers: dict[int, int]):
        super().__init__(source, indices, partial=source.partial)
        self._numbers = numbers
        self.version += f",classes{'.'.join(map(str, numbers))}"

    def __getitem__(self, index: int) -> Record:
        record = super().__getitem__(index)
        return record | {"diagnosis": self._numbers[int(record["diagnosis"])]}

    def peek(self, index: int, field: str) -> Any:
        value = super().peek(index, field)
        return self._numbers[int(value)] if field == "diagnosis" else value


class SliceSubset(Subset):
    """Some slices of a CT source."""

    def slice_table(self) -> SliceTable:
        """The rows of the source's table that are chosen here."""
        table = self.source.slice_table()
        return SliceTable(*(column[self.indices] for column in table))


def names_of(source: Source, field: str) -> tuple[str, ...]:
    """The names behind the numbers of 'findings' or 'diagnoses', in their order."""
    return tuple(getattr(source, field, NAMES[field]))


def only_with(source: Source, needed: set[str] | frozenset[str]) -> Source:
    """The records of `source` that have all of `needed`; `source` itself where all have them.

    Reads each record once where a needed field is among `source.partial`.
    """
    doubtful = source.partial & frozenset(needed)
    if not doubtful:
        return source
    every = range(len(source))
    indices = [i for i in every if all(has(source, i, field) for field in doubtful)]
    kind = SliceSubset if hasattr(source, "slice_table") else Subset
    chosen = kind(source, indices, partial=source.partial - doubtful)
    if lacks := len(source) - len(indices):
        fields = " or ".join(sorted(doubtful))
        chosen.notes += (f"left out: {lacks} of {len(source)} records, which have no {fields}",)
    return chosen


def has(source: Source, index: int, field: str) -> bool:
    """Whether a record has a field; read it is only where the source has no way round that."""
    look = getattr(source, "has", None)
    return look(index, field) if look else field in source[index]


def whole(source: Source) -> Source:
    """What a source is a subset of; itself if it is none."""
    while isinstance(source, Subset):
        source = source.source
    return source


def of_files(source: Source) -> bool:
    """Whether its films are files, which `stored` gives; phantoms are not."""
    return hasattr(whole(source), "stored")


def peek(source: Source, index: int, field: str) -> Any:
    """A field of a record, None where it lacks it; no picture is read where the source has a way
    round that (its own `peek`)."""
    look = getattr(source, "peek", None)
    return look(index, field) if look else source[index].get(field)


def never_known(source: Source, fields: tuple[str, ...], names: np.ndarray) -> np.ndarray:
    """Which of the `names` (bool [K]) no record labels in any of the `fields` [..., K], NaN being
    unknown. Records are looked at until none is left."""
    waiting = names.copy()
    for index in range(len(source)):
        if not waiting.any():
            break
        for field in fields:
            if (known := peek(source, index, field)) is not None:
                waiting &= np.isnan(known).reshape(-1, len(names)).all(axis=0)
    return waiting


def by_severity(source: Source, least: int, most: int) -> Source:
    """The films of `source` whose global severity score (0..18) lies in `least` .. `most`; `source`
    itself where that is all of them. Reads each record once.

    Raises:
      InputError: no score can lie there, or none of the films does.
    """
    if (least, most) == (0, GREATEST_SEVERITY):
        return source
    if not 0 <= least <= most <= GREATEST_SEVERITY:
        raise InputError(
            f"data.min_severity={least} and data.max_severity={most}; expected "
            f"0 <= min_severity <= max_severity <= {GREATEST_SEVERITY}"
        )
    records = (source[index] for index in range(len(source)))
    scores = [int((r["severity"] * r["severity_valid"]).sum()) for r in records]
    indices = [i for i, score in enumerate(scores) if least <= score <= most]
    if not indices:
        raise InputError(
            f"data set {source.name!r} (split {source.split!r}) has no film with a global severity "
            f"score in {least}..{most}; widen data.min_severity and data.max_severity"
        )
    return Subset(source, indices, partial=source.partial)


def by_view(source: Source, view: str) -> Source:
    """The films of `source` of one view, 'PA' or 'AP'; `source` itself where that is all of them,
    or where `view` is empty. No picture is decoded.

    Raises:
      InputError: no such view, a set that does not know its views, or no film is left (with the
        views there are).
    """
    if not view:
        return source
    who = f"data set {source.name!r} (split {source.split!r})"
    if view not in VIEWS:
        raise InputError(f"view={view!r}; expected {', '.join(VIEWS)} or '' for all films")
    if "view" not in source.fields:
        raise InputError(f"{who} does not say which view its films are; set view to ''")
    views = [peek(source, index, "view") or "" for index in range(len(source))]
    indices = [i for i, found in enumerate(views) if found == view]
    others = Counter(found or "unknown" for found in views if found != view)
    there = ", ".join(f"{name} {count}" for name, count in sorted(others.items()))
    if not indices:
        raise InputError(f"{who} has no film of view {view!r}; it has {there or 'no film at all'}")
    if not others:
        return source
    kind = SliceSubset if hasattr(source, "slice_table") else Subset
    chosen = kind(source, indices, partial=source.partial)
    chosen.notes += (
        f"left out: {others.total()} of {len(views)} films, which are no {view} ({there})",
    )
    return chosen


def by_classes(source: Source, classes: Sequence[str]) -> Source:
    """The films of some of the classes that a set names, numbered as they stand here; `source`
    itself where that is all of them, in the set's order. No picture is decoded.

    Args:
      source: whose films all have a `diagnosis`.
      classes: names, all of them the set's.

    Raises:
      InputError: there is no such film.
    """
    names = names_of(source, "diagnoses")
    if tuple(classes) == names:
        return source
    numbers = {names.index(name): k for k, name in enumerate(classes)}
    indices = [i for i in range(len(source)) if int(peek(source, i, "diagnosis")) in numbers]
    if not indices:
        raise InputError(
            f"data set {source.name!r} (split {source.split!r}) has no film of the classes "
            f"{', '.join(classes)}; name the classes there are"
        )
    chosen = _Relabelled(source, indices, numbers)
    if left := len(source) - len(indices):
        chosen.notes += (f"left out: {left} of {len(source)} films, of other classes",)
    chosen.diagnoses = tuple(classes)
    return chosen


class _ByLesion(SliceSubset):
    """Slices whose class is whether a lesion is in them."""

    def __init__(self, source: SliceSource, indices: list[int], names: tuple[str, str]):
        super().__init__(source, indices, partial=source.partial)
        self.fields = source.fields | {"diagnosis"}
        self.version += "+bylesion"
        self.diagnoses = tuple(names)
        self._labels = source.slice_table().label[indices].astype(int).tolist()

    def __getitem__(self, index: int) -> Record:
        return super().__getitem__(index) | {"diagnosis": self._labels[index]}

    def has(self, index: int, field: str) -> bool:
        return field == "diagnosis" or super().has(index, field)

    def peek(self, index: int, field: str) -> Any:
        return self._labels[index] if field == "diagnosis" else super().peek(index, field)


def by_lesion(source: Source, names: tuple[str, str]) -> Source:
    """The slices of a set of volumes with a `diagnosis`, its `slice_label`: no lesion or one;
    `source` itself where it has diagnoses of its own. Slices of which nobody knows are left out.

    Args:
      names: of the two classes, no lesion first.

    Raises:
      InputError: a set that has neither, or no slice of which it is known.
    """
    if "diagnosis" in source.fields:
        return source
    who = f"data set {source.name!r} (split {source.split!r})"
    if not hasattr(source, "slice_table"):
        raise InputError(f"{who} has neither diagnoses nor CT slices with a label")
    known = np.flatnonzero(~np.isnan(source.slice_table().label)).tolist()
    if not known:
        raise InputError(f"{who} has no slice of which it is known whether a lesion is in it")
    chosen = _ByLesion(source, known, names)
    if left := len(source) - len(known):
        chosen.notes += (f"left out: {left} of {len(source)} slices, of unknown label",)
    return chosen


def told_classes(labels: Iterable[int | None], names: Sequence[str] = DIAGNOSES) -> str:
    """How many films there are of each class, for the user.

    Args:
      labels: the `diagnosis` of each film; None where it has none.
      names: of the classes.

    Returns:
      'normal 3, other infection 0, covid-19 2; 1 film without a diagnosis', and what cannot be
      learned from so few classes.
    """
    counts = Counter(labels)
    unknown = counts.pop(None, 0)
    told = ", ".join(f"{name} {counts[number]}" for number, name in enumerate(names))
    if unknown:
        told += f"; {unknown} film{'s' * (unknown > 1)} without a diagnosis"
    if len(counts) == 1:
        told += "; one class alone can be neither learned nor scored"
    return told
