"""Sets of films of one layout: some have a diagnosis, and nobody gave them splits.

All patients are dealt to five folds, balanced by class; the last is the test split, and 0..3 are
for training and validation.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np

from cxr_jax.data import preprocess, splits
from cxr_jax.data.records import Record
from cxr_jax.data.sources.base import FoldedOptions
from cxr_jax.data.sources.prepared import layout, reading, writing

DEALT_FIELDS = frozenset({"image", "id", "group", "view", "diagnosis"})
TEST_FOLD = layout.FOLDS - 1


@dataclasses.dataclass(frozen=True, slots=True)
class DealtFilm:
    """A film of such a set; `diagnosis` is None where it has none."""

    path: pathlib.Path
    id: str
    group: str
    view: str
    diagnosis: int | None


F = TypeVar("F", bound=DealtFilm)
B = TypeVar("B", bound=writing.RecordBuilder)


def dealt_builder(
    kind: type[B],
    films: Sequence[F],
    *,
    read_image: Callable[[F], np.ndarray],
    table: pathlib.Path,
    others: Iterable[pathlib.Path] = (),
    data_dir: str,
    max_side: int,
    notes: Sequence[str],
) -> B:
    """The builder of a set, its films dealt to the folds; reads no film yet.

    Args:
      kind: the set's own builder.
      films: all of them.
      read_image: a film's picture, uint8 [H, W].
      table: from which the films were taken.
      others: files beside the films that the set is made from.
      data_dir, max_side: as the `prepare` command has them.
      notes: for the user.
    """
    folds = splits.folds_by_class([f.group for f in films], [f.diagnosis for f in films])
    parts = {
        "train": [film for film, fold in zip(films, folds) if fold != TEST_FOLD],
        "test": [film for film, fold in zip(films, folds) if fold == TEST_FOLD],
    }
    files = [*(film.path for film in films), *others]
    return writing.film_builder(
        kind,
        parts,
        read=lambda film, side: preprocess.shrink(_record(film, read_image(film)), side),
        fields=DEALT_FIELDS,
        partial=frozenset({"diagnosis"}),
        folds={"train": [int(fold) for fold in folds if fold != TEST_FOLD]},
        columns=lambda part: layout.film_columns(
            views=(film.view for film in part), diagnoses=(film.diagnosis for film in part)
        ),
        fingerprint=writing.fingerprint(table, files, max_side),
        data_dir=data_dir,
        max_side=max_side,
        notes=notes,
    )


def _record(film: DealtFilm, image: np.ndarray) -> Record:
    record = {"image": image, "id": film.id, "group": film.group, "view": film.view}
    return record if film.diagnosis is None else record | {"diagnosis": film.diagnosis}


def open_dealt(options: FoldedOptions, name: str, split: str, *, source: str) -> reading.Prepared:
    """Opens the prepared set of that name.

    Args:
      options: `fold` is 0..3, or -1: folds 0..3 are all 'train' and there is no 'val'.
      split: 'test' is the last of five folds. With `fold` k, 'val' is fold k, 'train' the others.
      source: what --source is, for the message when the set is missing.

    Raises:
      InputError: what `open_folded` raises.
    """
    return reading.open_folded(
        options.data_dir, name, split, fold=options.fold, folds=TEST_FOLD, source=source
    )
