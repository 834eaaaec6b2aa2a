"""The full Brixia COVID-19 set: about 4,700 films in DICOM, six zone scores each.

Source: brixia.github.io (on registration); Signoroni et al., Medical Image Analysis 2021,
doi 10.1016/j.media.2021.102046. All films of COVID-19 patients of one month in Brescia, AP and PA,
each scored once by the radiologist on shift.

Layout, below --source or its `data/`:

- `dicom_clean/*.dcm`
- `metadata_global_v2.csv` (or `_v1`), separated by semicolons or commas: `Filename`, `BrixiaScore`
  (six digits 0..3 of the zones A..F, as in `brixia_cohen`), `Subject`; where there is
  `BrixiaScoreGlobal` it must be their sum. A table that a spreadsheet has saved lacks the leading
  zeros of all scores: they are put back. Where any score of the table has them, a short one is a
  mistake.
- `metadata_consensus_v1.csv`: `Filename`, `ModeA`..`ModeF`: of 150 films the score most often given
  by five radiologists.

The consensus films are the test split: `severity` is the published mode, `severity_second` the
score of the radiologist on shift, who is one of the five (so their agreement is not that of two
independent readers). All other films are for training, but not those of a patient of the test
split: they are left out. The training films have no second score and are dealt to five folds by
patient, balanced by global score. Lungs are not drawn: they are predicted.

`view` is the DICOM header's, where it states PA or AP. The `diagnosis` of every film is covid-19,
as in Park et al. 2021 (1,929 PA films in its Table 1, 2,384 AP films in Table 2).
"""

import dataclasses
import pathlib
import re

import numpy as np

from cxr_jax.data import preprocess, readers, splits
from cxr_jax.data.records import DIAGNOSES, Record
from cxr_jax.data.sources import prepared, tables
from cxr_jax.data.sources.base import GradedOptions, Source, by_severity
from cxr_jax.data.sources.brixia_cohen import GLOBAL_CLASSES
from cxr_jax.errors import InputError

NAME = "brixia"
Options = GradedOptions
FIELDS = frozenset({"image", "id", "group", "view", "diagnosis"}) | {
    *("severity", "severity_second", "severity_valid")
}
COVID = DIAGNOSES.index("covid-19")
CONSENSUS = "metadata_consensus_v1.csv"
SOURCE = "the download of brixia.github.io"
_SEPARATORS = ";,"
_MODES = tuple(f"mode{zone}" for zone in "abcdef")


@dataclasses.dataclass(frozen=True)
class Film:
    """One row of the table: `severity` int8 [3, 2], `second` the same in the test split."""

    path: pathlib.Path
    id: str
    group: str
    split: str
    severity: np.ndarray
    second: np.ndarray | None = None
    fold: int = -1  # of the training films; -1 in the test split


class Brixia(prepared.RecordBuilder, skip_registration=True):
    """Writes the set to DATA_DIR/brixia/1.0.0."""

    name = NAME
    description = "Brixia severity scores on chest radiographs of COVID-19 patients."
    homepage = "https://brixia.github.io"
    citation = (
        "Signoroni et al., BS-Net: learning COVID-19 pneumonia severity on a large chest X-ray "
        "dataset. Medical Image Analysis 71, 2021. doi:10.1016/j.media.2021.102046"
    )


def builder(source: pathlib.Path, *, data_dir: str, max_side: int) -> Brixia:
    """The builder of the set; reads the tables, no film yet.

    Raises:
      InputError: see `read_index`.
    """
    table, consensus = _tables(source)
    films, left_out = read_index(source)
    by_split = {name: [f for f in films if f.split == name] for name in ("train", "test")}
    views = {film.id: readers.read_view(film.path) for film in films}
    return prepared.film_builder(
        Brixia,
        by_split,
        read=lambda film, side: read_film_record(film, side, view=views[film.id]),
        fields=FIELDS,
        partial=frozenset({"severity_second"}),
        folds={split: [film.fold for film in part] for split, part in by_split.items()},
        columns=lambda part: prepared.film_columns(
            views=(views[film.id] for film in part), diagnoses=[COVID] * len(part)
        ),
        # 'view', 'diagnosis': a set prepared before it had these fields is another one.
        fingerprint=prepared.fingerprint(
            table,
            [film.path for film in films],
            consensus.read_bytes(),
            (max_side, "view", "diagnosis"),
        ),
        data_dir=data_dir,
        max_side=max_side,
        notes=[f"left out: {left_out} films of patients of the test split"],
    )


def open_split(options: Options, split: str) -> Source:
    """Opens the prepared set; arguments and errors as of `brixia_cohen.open_split`."""
    source = prepared.open_folded(options.data_dir, NAME, split, fold=options.fold, source=SOURCE)
    if split != "train":
        return source
    return by_severity(source, options.min_severity, options.max_severity)


def read_film_record(film: Film, max_side: int, *, view: str = "") -> Record:
    """Reads the film of one row, reduced to `max_side`; `view` as in `records.SCHEMA`.

    Raises:
      InputError: an unreadable film.
    """
    record = {
        "image": readers.read_film(film.path),
        "id": film.id,
        "group": film.group,
        "view": view,
        "diagnosis": COVID,
        "severity": film.severity,
        "severity_valid": np.ones((3, 2), bool),
    }
    if film.second is not None:
        record["severity_second"] = film.second
    return preprocess.shrink(record, max_side)


def read_index(folder: pathlib.Path) -> tuple[list[Film], int]:
    """The films of the table in its order, and how many were left out (see the module).

    Raises:
      InputError: a missing table, folder, column or film, a score that is not six digits 0..3 or
        not of the stated sum, a film listed twice, a consensus film that the table does not have.
    """
    table, consensus = _tables(folder)
    modes = _read_consensus(consensus)
    columns, rows = tables.read_table(
        table, ["Filename", "BrixiaScore", "Subject"], separators=_SEPARATORS
    )
    splits.check_unique((pathlib.PurePath(row.text("filename")).stem for row in rows), where=table)
    listed = {row["filename"] for row in rows}
    if unknown := [name for name in modes if name not in listed]:
        raise InputError(f"{consensus}: film {unknown[0]!r} is not in {table.name}; take it out")
    scores = _shift_scores(rows, checked="brixiascoreglobal" in columns)
    test_subjects = {row.text("subject") for row in rows if row["filename"] in modes}
    films = []
    for row, score in zip(rows, scores):
        name, subject = row["filename"], row.text("subject")
        if "consensustestset" in columns and name not in modes:
            _check_not_consensus(row)
        if name not in modes and subject in test_subjects:
            continue
        path = table.parent / "dicom_clean" / name
        if not path.is_file():
            raise row.error("filename", f"there is no file {path}; unpack the films again")
        if name in modes:
            film = Film(path, path.stem, subject, "test", severity=modes[name], second=score)
        else:
            film = Film(path, path.stem, subject, "train", severity=score)
        films.append(film)
    if not any(film.split == "train" for film in films):
        raise InputError(f"{table}: no film is left to train on; download the table again")
    return _dealt(films), len(rows) - len(films)


def _tables(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The table of all films and that of the consensus films, which lies beside it."""
    folder = pathlib.Path(folder)
    places = [f"{sub}metadata_global_v{version}.csv" for sub in ("", "data/") for version in (2, 1)]
    table = next((folder / place for place in places if (folder / place).is_file()), None)
    if table is None:
        raise InputError(f"{folder}: found none of {', '.join(places)}; --source is {SOURCE}")
    for needed in (CONSENSUS, "dicom_clean"):
        if not (table.parent / needed).exists():
            raise InputError(f"{table.parent / needed} is missing beside {table.name}; add it")
    return table, table.parent / CONSENSUS


def _read_consensus(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The modes int8 [3, 2] of each consensus film, by file name."""
    _, rows = tables.read_table(path, ["Filename", *_MODES], separators=_SEPARATORS)
    splits.check_unique((row.text("filename") for row in rows), where=path)
    modes = {}
    for row in rows:
        scores = [row.number(column, 0, 3) for column in _MODES if row.text(column)]
        modes[row["filename"]] = _zones(scores)
    return modes


def _shift_scores(rows: list[tables.Row], *, checked: bool) -> list[np.ndarray]:
    """The score int8 [3, 2] of each row; `checked`: the table states the sums too."""
    cells = [row["brixiascore"] for row in rows]
    zeros_kept = any(len(cell) == 6 and cell.startswith("0") for cell in cells)
    pattern = re.compile("[0-3]{6}" if zeros_kept else "[0-3]{1,6}")
    scores = []
    for row, cell in zip(rows, cells):
        if not pattern.fullmatch(cell):
            raise row.error("brixiascore", "expected six digits 0..3, of the zones A to F")
        score = [int(digit) for digit in cell.zfill(6)]
        if checked and row.number("brixiascoreglobal", 0, 18) not in (sum(score), None):
            raise row.error("brixiascoreglobal", f"the zones {cell} have the sum {sum(score)}")
        scores.append(_zones(score))
    return scores


def _zones(scores: list[int]) -> np.ndarray:
    # A, B, C go down the image's left (the right lung), D, E, F down its right.
    return np.array(scores, np.int8).reshape(2, 3).T


def _check_not_consensus(row: tables.Row) -> None:
    if row.choice("consensustestset", ("0", "1", "false", "true", "")) in ("1", "true"):
        raise row.error("consensustestset", f"but {CONSENSUS} does not have this film; add it")


def _dealt(films: list[Film]) -> list[Film]:
    """The films, those for training with their folds."""
    train = [film for film in films if film.split == "train"]
    folds = splits.balanced_folds(
        [film.group for film in train],
        [film.severity.sum() for film in train],
        folds=prepared.FOLDS,
        edges=GLOBAL_CLASSES,
    )
    fold_of = {film.id: int(fold) for film, fold in zip(train, folds)}
    return [dataclasses.replace(film, fold=fold_of.get(film.id, -1)) for film in films]
