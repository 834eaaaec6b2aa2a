"""What sets of single CT slices share, each with a class and no volume: a row, and the builder.

Such a slice is a record like a film: an 8-bit picture, whose patient `group` is, and its
`diagnosis`. Of what window it is the picture nobody says.
"""

import dataclasses
import pathlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from cxr_jax.data import preprocess, readers
from cxr_jax.data.records import DIAGNOSES, Record
from cxr_jax.data.sources import prepared
from cxr_jax.data.sources.base import told_classes
from cxr_jax.errors import InputError

FIELDS = frozenset({"image", "id", "group", "diagnosis"})
COVID_OR_NOT = ("non-covid", "covid-19")  # of sets that do not say what the others have
LEAST_BOX = 16  # px, of a side of what is cut out


@dataclasses.dataclass(frozen=True, slots=True)
class ClassedSlice:
    """One slice; `diagnosis` is a number of the set's classes, `box` what is stored of the picture,
    x0, y0, x1, y1 half-open in its pixels; None: all of it."""

    path: pathlib.Path
    id: str
    group: str
    diagnosis: int
    box: tuple[int, int, int, int] | None = None


B = TypeVar("B", bound=prepared.RecordBuilder)


def classed_builder(
    kind: type[B],
    parts: Mapping[str, Sequence[ClassedSlice]],
    *,
    tables: Iterable[pathlib.Path] = (),
    folds: Mapping[str, Sequence[int]] | None = None,
    diagnoses: tuple[str, ...] = DIAGNOSES,
    data_dir: str,
    max_side: int,
    notes: Sequence[str],
) -> B:
    """The builder of such a set; reads no picture yet.

    Args:
      kind: the set's own builder.
      parts: split -> its slices.
      tables: from which they were taken.
      folds: split -> the fold of each of its slices.
      diagnoses: names of the classes.
      data_dir, max_side: as the `prepare` command has them.
      notes: for the user; how many slices there are of each class is added.
    """
    every = [one for part in parts.values() for one in part]
    files = [*tables, *(one.path for one in every)]
    told = told_classes((one.diagnosis for one in every), diagnoses)
    return prepared.film_builder(
        kind,
        parts,
        read=read_slice,
        fields=FIELDS,
        folds=folds,
        columns=lambda part: prepared.film_columns(diagnoses=(one.diagnosis for one in part)),
        fingerprint=prepared.fingerprint(None, files, _told(every), max_side),
        data_dir=data_dir,
        max_side=max_side,
        notes=[*notes, f"slices of {told}"],
        diagnoses=diagnoses,
    )


def _told(every: Sequence[ClassedSlice]) -> int:
    """Of all that is said of the slices, so that other splits or classes are another set."""
    text = "\n".join(f"{one.id} {one.group} {one.diagnosis} {one.box}" for one in every)
    return zlib.crc32(text.encode())


def read_slice(one: ClassedSlice, max_side: int) -> Record:
    """The record of a slice.

    Raises:
      InputError: a picture that cannot be read or is of one colour only, as a black slice, or a box
        that leaves it.
    """
    image = readers.read_film(one.path)
    if one.box is not None:
        x0, y0, x1, y1 = one.box
        height, width = image.shape
        if x1 > width or y1 > height:
            raise InputError(
                f"{one.path}: the box {one.box} leaves the slice of {width}x{height} px"
            )
        image = image[y0:y1, x0:x1].copy()
    record = {"image": image, "id": one.id, "group": one.group, "diagnosis": one.diagnosis}
    return preprocess.shrink(record, max_side)
