"""A hospital's own films, from a CSV file and no code.

Columns (case does not count; any order):

| column | |
| --- | --- |
| `image` | required: the film (PNG, JPEG, DICOM), its path from the CSV's folder |
| `group` | required: the patient; all films of one are in one split |
| `split` | required: train, val or test |
| `id` | the film's name in results; by default the text of `image` |
| `view` | PA, AP or empty |
| `lungs`, `lesion` | mask files (0 outside, anything else inside), the film's size; may be empty |
| `severity_A` .. `severity_F` | 0..3, or empty where not scored; zones as in `brixia_cohen` |
| `diagnosis` | normal, other infection or covid-19, or a class of `classes`; may be empty |
| one of the findings' names | 0, 1 or empty for unknown; names as in `records.FINDINGS` |

Other columns are ignored, and named on the terminal. The table is checked whole when it is opened,
and that the file of each film and mask is whole, by its header and its end; pictures are read when
they are needed. Cells may be parted by commas, semicolons or tabs, in UTF-8 or cp1252.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cxr_jax import small_files
from cxr_jax.data import preprocess, readers, splits
from cxr_jax.data.records import DIAGNOSES, FINDINGS, Record
from cxr_jax.data.sources import brixia_cohen, prepared, tables
from cxr_jax.data.sources.base import SPLITS, Source, told_classes
from cxr_jax.errors import InputError

NAME = "manifest"
_SEVERITY = tuple(f"severity_{zone}" for zone in "abcdef")
_REQUIRED = ("image", "group", "split")
_KNOWN = {"image", "group", "split", "id", "view", "lungs", "lesion", "diagnosis"}


@dataclasses.dataclass(frozen=True)
class Options:
    """What `config.data` has beside the name.

    Attributes:
      path: the CSV file that lists the films, or the folder that `prepare manifest` printed
      classes: names that diagnosis has, parted by commas; '': normal, other infection, covid-19
    """

    path: str = ""
    classes: str = ""


class Manifest:
    """The films of one split of a table, read from their own files each time.

    Args:
      path: the CSV file.
      split: which of its films.
      diagnoses: the names that a diagnosis may have; case does not count.

    Raises:
      InputError: names the file, row, column, value and rule of each mistake, of the first ten.
    """

    name = NAME

    def __init__(self, path: pathlib.Path, split: str, *, diagnoses: tuple[str, ...] = DIAGNOSES):
        self.path, self.split, self.diagnoses = pathlib.Path(path), split, diagnoses
        mistakes = tables.Mistakes(self.path)
        columns, rows = tables.read_table(
            self.path, _REQUIRED, separators=tables.SPREADSHEET, mistakes=mistakes
        )
        self._findings = [name for name in FINDINGS if name in columns]
        given = [column for column in _SEVERITY if column in columns]
        if given and len(given) < len(_SEVERITY):
            absent = next(column for column in _SEVERITY if column not in columns)
            raise InputError(
                f"{path}: column {absent!r} is missing beside {given[0]!r}; give all six severity "
                "columns, with empty cells where a zone was not scored"
            )
        self.notes = tables.unknown_columns(columns, (*_KNOWN, *_SEVERITY, *FINDINGS))
        fields = {"image", "id", "group"} | {"view", "lungs", "lesion", "diagnosis"} & set(columns)
        fields |= {"severity", "severity_valid"} if given else set()
        fields |= {"findings"} if self._findings else set()
        self.fields = frozenset(fields)
        # Severity and findings say themselves what is unknown.
        self.partial = frozenset(
            name
            for name in ("lungs", "lesion", "diagnosis")
            if name in fields and not all(row[name] for row in rows)
        )
        labels = [self._labels(row) for row in rows]
        mistakes.tell()
        splits.check_unique((label["id"] for label in labels), where=path)
        by_split = {s: [x for x in labels if x["split"] == s] for s in SPLITS}
        splits.check_disjoint(
            {s: [x["group"] for x in by_split[s]] for s in SPLITS}, where=str(path)
        )
        if not by_split[split]:
            raise InputError(f"{path}: no row has split {split!r}; give some films that split")
        self._films = by_split[split]
        files = [x[key] for x in labels for key in ("image", "lungs", "lesion") if key in x]
        own = () if diagnoses == DIAGNOSES else diagnoses  # other names are other labels
        self.version = prepared.fingerprint(self.path, files, *own)

    def __len__(self) -> int:
        return len(self._films)

    def __getitem__(self, index: int) -> Record:
        record = {key: value for key, value in self._films[index].items() if key != "split"}
        record["image"] = readers.read_film(record["image"])
        shape = record["image"].shape
        if "lungs" in record:
            record["lungs"] = brixia_cohen.lungs_of(record["lungs"], shape)
        if "lesion" in record:
            record["lesion"] = readers.read_mask(record["lesion"], shape=shape)
        return record

    def has(self, index: int, field: str) -> bool:
        """Whether record `index` has `field`; no picture is read."""
        return field in self._films[index]

    def peek(self, index: int, field: str) -> Any:
        """A field of record `index` that is no picture, None where it has none."""
        return self._films[index].get(field)

    def stored(self, index: int) -> bytes:
        """The film's file."""
        return self._films[index]["image"].read_bytes()

    def stored_size(self, index: int) -> int:
        """Bytes of the film's file."""
        return self._films[index]["image"].stat().st_size

    def _labels(self, row: tables.Row) -> dict[str, Any]:
        """Checks one row; pictures are still paths."""
        labels = {
            "image": row.file("image", readers.check_whole),
            "id": row["image"],
            "group": row.text("group"),
            "split": row.choice("split", SPLITS),
        }
        if "id" in self.fields and row.cells.get("id"):
            labels["id"] = row["id"]
        if "view" in self.fields:
            labels["view"] = row.choice("view", ("PA", "AP", ""))
        for name in {"lungs", "lesion"} & self.fields:
            if row[name]:
                labels[name] = row.file(name, readers.check_whole)
        if "severity" in self.fields:
            scores = [row.number(column, 0, 3) for column in _SEVERITY]
            known = np.array([score is not None for score in scores])
            labels["severity"] = np.array([s or 0 for s in scores], np.int8).reshape(2, 3).T
            labels["severity_valid"] = known.reshape(2, 3).T
        if "diagnosis" in self.fields and row["diagnosis"]:
            name = row.choice("diagnosis", (*self.diagnoses, ""))
            labels["diagnosis"] = self.diagnoses.index(name)
        if self._findings:
            findings = np.full(len(FINDINGS), np.nan, np.float32)
            for name in self._findings:
                value = row.number(name, 0, 1)
                findings[FINDINGS.index(name)] = np.nan if value is None else value
            labels["findings"] = findings
        return labels


class ManifestBuilder(prepared.RecordBuilder, skip_registration=True):
    """Writes a table's films to DATA_DIR/manifest/NAME_OF_THE_CSV/1.0.0."""

    name = NAME
    description = "Films listed in a CSV file."


def builder(
    source: pathlib.Path, *, data_dir: str, max_side: int, classes: str = ""
) -> ManifestBuilder:
    """The builder that copies a table's films, reduced, into ArrayRecord files.

    Args:
      classes: as of `Options`.

    Raises:
      InputError: see `Manifest` and `class_names`.
    """
    diagnoses, by_split = class_names(classes), {}
    for split in _splits_of(source):
        by_split[split] = Manifest(source, split, diagnoses=diagnoses)
    some = next(iter(by_split.values()))
    return ManifestBuilder(
        data_dir=prepared.data_folder(data_dir),
        config=tfds.core.BuilderConfig(name=_slug(source), description=str(source.name)),
        fields=some.fields,
        partial=some.partial,
        films={
            split: [functools.partial(_small, films, i, max_side) for i in range(len(films))]
            for split, films in by_split.items()
        },
        film_fold={split: [-1] * len(films) for split, films in by_split.items()},
        columns={split: _columns(films) for split, films in by_split.items()},
        diagnoses=diagnoses,
        metadata={"fingerprint": f"{some.version}-{max_side}", "max_side": max_side},
        notes=[
            *some.notes,
            *_lacking(list(by_split.values()), some.partial),
            *(_classes_of(films) for films in by_split.values() if "diagnosis" in some.fields),
        ],
    )


def class_names(classes: str) -> tuple[str, ...]:
    """The names of `Options.classes`.

    Raises:
      InputError: an empty name, one that comes twice whatever its case, or only one.
    """
    if not classes.strip():
        return DIAGNOSES
    names = tuple(name.strip() for name in classes.split(","))
    twice = splits.repeated(name.casefold() for name in names)
    if twice is not None or len(names) < 2:
        raise InputError(
            f"data.classes={classes[:200]!r}; expected two names or more, parted by commas, each "
            "once, in any case of letters"
        )
    if "" in names:
        raise InputError(f"data.classes={classes[:200]!r} has an empty name; take a comma out")
    return names


def _columns(films: Manifest) -> dict[str, list[int]]:
    views, diagnoses = (
        [films.peek(i, f) for i in range(len(films))] for f in ("view", "diagnosis")
    )
    return prepared.film_columns(views=[view or "" for view in views], diagnoses=diagnoses)


def _classes_of(films: Manifest) -> str:
    labels = (films.peek(i, "diagnosis") for i in range(len(films)))
    return f"diagnosis ({films.split}): {told_classes(labels, films.diagnoses)}"


def _lacking(splits_of: list[Manifest], fields: frozenset[str]) -> list[str]:
    """How many films have no mask or diagnosis, of those that others have."""
    total = sum(map(len, splits_of))
    lines = []
    for field in sorted(fields):
        lacks = sum(not films.has(i, field) for films in splits_of for i in range(len(films)))
        lines.append(f"{lacks} of {total} films have no {field}: what needs it leaves them out")
    return lines


def open_split(options: Options, split: str) -> Source:
    """Opens the films of a CSV file, or of the folder that `prepare manifest` made of it.

    Raises:
      InputError: no path, no such file, a mistake in the table, no film in the split, or classes
        that are not those of the prepared folder.
    """
    diagnoses = class_names(options.classes)
    if not options.path:
        raise InputError("data.path is empty; give the CSV file that lists the films")
    path = pathlib.Path(options.path).expanduser()
    if small_files.is_folder(path):
        command = "python -m cxr_jax.data.prepare manifest --source=FILMS.csv"
        opened = prepared.Prepared(path, name=NAME, split=split, prepare=command)
        if options.classes and opened.diagnoses != diagnoses:
            raise InputError(
                f"data.classes={options.classes[:200]!r}, but {path} was prepared with the classes "
                f"{', '.join(opened.diagnoses)}; leave data.classes empty, or prepare the table "
                "again with --classes"
            )
        return opened
    return Manifest(path, split, diagnoses=diagnoses)


def _small(films: Manifest, index: int, max_side: int) -> Record:
    return preprocess.shrink(films[index], max_side)


def _splits_of(path: pathlib.Path) -> list[str]:
    _, rows = tables.read_table(path, _REQUIRED, separators=tables.SPREADSHEET)
    present = {row.choice("split", SPLITS) for row in rows}
    return [split for split in SPLITS if split in present]


def _slug(path: pathlib.Path) -> str:
    return "".join(c if c.isalnum() else "_" for c in path.stem.lower()) or "films"
