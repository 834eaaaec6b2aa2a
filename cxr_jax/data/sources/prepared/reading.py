"""Reads a prepared set: a split, or a fold of it, as a source of records."""

import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from cxr_jax import small_files
from cxr_jax.data import readers, splits
from cxr_jax.data.file_errors import kind_of
from cxr_jax.data.records import DIAGNOSES, FINDINGS, SCHEMA, TEXT, Record
from cxr_jax.data.sources.base import SliceTable
from cxr_jax.data.sources.prepared import layout
from cxr_jax.data.sources.prepared.layout import FOLDS, SLICE_COLUMNS, VERSION
from cxr_jax.errors import InputError

# What array_record raises on a missing or damaged file.
_UNREADABLE = (OSError, RuntimeError, ValueError)


def open_folded(
    data_dir: str,
    name: str,
    split: str,
    *,
    fold: int,
    source: str,
    folds: int = FOLDS,
    test_fold: int | None = None,
    column: str = "fold",
    stored: str = "",
    where: Mapping[str, Collection[int]] | None = None,
    kind: type["Prepared"] | None = None,
    **options: Any,
) -> "Prepared":
    """Opens a prepared set whose training films are dealt to folds; its test films have fold -1.

    Args:
      data_dir: where it was prepared; empty: the default folder.
      name: of the data set.
      split: 'test' is the test films. With `fold` k, 'val' is fold k of the training films and
        'train' the others.
      fold: 0 .. folds - 1, or -1: all training films are 'train' and there is no 'val'.
      source: what --source is, for the message when the set is missing.
      folds: how many there are.
      test_fold: where any fold may test: which, 0 .. folds. The test films in the files are fold
        `folds`; if another one tests, they are trained on. None: they test.
      column: where a film's fold is.
      stored: the split in the files; by default 'test' or 'train', and both where another fold
        tests.
      where, options: of `Prepared`, besides these.
      kind: `Prepared` by default, or `PreparedSlices`.

    Raises:
      InputError: not prepared (with the command), a fold outside its range, 'val' without a fold.
    """
    tested = folds if test_fold is None else test_fold
    _check_folds(fold, tested, folds)
    if split == "val" and fold < 0:
        raise InputError(
            f"data set {name!r} has no validation split with data.fold=-1 (all its training "
            f"films are trained on); set data.fold to 0..{folds - (tested == folds)}"
        )
    trained = set(range(folds + 1)) - {fold, tested}
    chosen = {"train": trained, "val": {fold}, "test": {tested}}[split]
    if tested != folds:
        stored = "train+test"
    return open_whole(
        data_dir,
        name,
        split,
        source=source,
        kind=kind,
        stored=stored or ("test" if split == "test" else "train"),
        where={**(where or {}), column: {-1 if k == folds else k for k in chosen}},
        **options,
    )


def open_whole(
    data_dir: str,
    name: str,
    split: str,
    *,
    source: str,
    kind: type["Prepared"] | None = None,
    **options: Any,
) -> "Prepared":
    """Opens a split of a prepared set as it is stored.

    Args:
      data_dir, name, split, source, kind: as of `open_folded`.
      options: of `Prepared`, besides these.

    Raises:
      InputError: not prepared (with the command), or what `Prepared` raises.
    """
    at = f" --data_dir={data_dir}" if data_dir else ""
    return (kind or Prepared)(
        layout.data_folder(data_dir) / name / VERSION,
        name=name,
        split=split,
        prepare=f"python -m cxr_jax.data.prepare {name} --source=FOLDER{at} (FOLDER: {source})",
        **options,
    )


def _check_folds(fold: int, test_fold: int, folds: int) -> None:
    """Refuses folds that are not there, and one that would validate and test."""
    if not 0 <= test_fold <= folds:
        raise InputError(f"data.test_fold={test_fold}; expected 0..{folds}")
    if test_fold == folds and not -1 <= fold < folds:
        raise InputError(f"data.fold={fold}; expected 0..{folds - 1}, or -1 for no validation")
    if not -1 <= fold <= folds or fold == test_fold:
        raise InputError(
            f"data.fold={fold}; expected 0..{folds} but not data.test_fold={test_fold}, or -1 for "
            "no validation"
        )


class Prepared:
    """One split of a prepared set as a source of records (see `sources.Source`).

    Args:
      folder: DATA_DIR/NAME/VERSION, as printed by the `prepare` command.
      name: of the data set.
      split: the split it is opened as.
      stored: the split in the files, or several joined by '+'; by default `split`.
      where: column -> the values its films have there; by default all films of the stored split.
      known: columns that count the known findings of a film. One that has none in any of them
        counts as a film without `findings` (its findings are all NaN), so that
        `sources.only_with` leaves it out where they are needed.
      change: what is done to a record that has been read, e.g. a rule for uncertain labels.
      prepare: the command that makes the set, for the message when it is missing.

    Raises:
      InputError: no such set (with the command to type), no such split, or a damaged file.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        name: str,
        split: str,
        stored: str = "",
        where: Mapping[str, Collection[int]] | None = None,
        known: Sequence[str] = (),
        change: Callable[[Record], Record] | None = None,
        prepare: str,
    ):
        self.folder, self.name, self.split = pathlib.Path(folder), name, split
        self._stored = stored or split
        if not small_files.is_file(self.folder / "dataset_info.json"):
            raise InputError(
                f"data set {name!r} is not prepared in {self.folder.parent}; run: {prepare}"
            )
        self._open()
        keys = set(self._features)
        self.partial = frozenset(key.removeprefix("has_") for key in keys if key[:4] == "has_")
        self.fields = frozenset(key for key in keys if key[:4] != "has_" and key != "fold")
        stored_facts = layout.metadata(self.folder)
        self.version = f"{VERSION}+{stored_facts.get('fingerprint', '')}"
        self.max_side = int(stored_facts.get("max_side", 0))
        self.findings = tuple(stored_facts.get("findings", FINDINGS))
        self.diagnoses = tuple(stored_facts.get("diagnoses", DIAGNOSES))
        self._beside_values: dict[str, list[Any] | None] = {}
        self._change = change
        self._raw(0)  # a damaged file should show before a model is compiled
        columns = self._columns() if where or known else {}
        keep = np.ones(len(self._records), bool)
        for column, values in (where or {}).items():
            keep &= np.isin(columns[column], list(values))
        self._indices = np.flatnonzero(keep).tolist()
        self.version += splits.selection(self._indices, len(keep))
        self._known = np.any([columns[column] for column in known], axis=0)[keep] if known else keep
        if known:
            some = int(self._known.sum())
            logging.info(
                "%s (%s): %d of %d films have a known finding", name, split, some, len(self)
            )
            self.partial |= {"findings"} if some < len(self) else set()

    def _open(self) -> None:
        layout.check_description(self.folder)
        try:
            builder = tfds.builder_from_directory(self.folder)
        except Exception as error:  # of any type, as TFDS and protobuf please
            raise self._damaged(f"its description, {type(error).__name__}") from error
        if builder.name != self.name:
            raise InputError(
                f"{self.folder} holds the prepared set {builder.name!r}, not {self.name!r}; set "
                "data.name to it, or give the folder that `prepare` printed"
            )
        present = list(builder.info.splits)
        self._parts = []
        for stored in self._stored.split("+"):
            parts = sorted(name for name in present if re.fullmatch(rf"{stored}(_\d+)?", name))
            if not parts:
                raise InputError(
                    f"{self.folder}: the set has no split {stored!r}; it has "
                    f"{', '.join(sorted({re.sub(r'_[0-9]+$', '', name) for name in present}))}"
                )
            self._parts += parts
        self._features = list(builder.info.features)
        # PNG bytes as they are: `readers` decodes what is asked for.
        skip = {name: tfds.decode.SkipDecoding() for name in layout.pictures(self._features)}
        try:
            self._records = builder.as_data_source("+".join(self._parts), decoders=skip)
        except _UNREADABLE as error:
            raise self._damaged(error) from error

    def _columns(self) -> dict[str, np.ndarray]:
        """A whole number of each stored record, by column."""
        columns = layout.metadata(self.folder).get("columns")
        if columns is None:  # prepared before columns were kept beside the records
            return {"fold": np.array([self._raw(i)["fold"] for i in range(len(self._records))])}
        try:
            tables = [columns[stored] for stored in self._stored.split("+")]
            joined = {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}
        except KeyError as error:
            raise self._damaged(f"metadata.json lacks {error}") from error
        if any(len(values) != len(self._records) for values in joined.values()):
            raise self._damaged("metadata.json has the columns of other records")
        return joined

    def _raw(self, stored_index: int) -> dict[str, Any]:
        try:
            raw = self._records[stored_index]
        except _UNREADABLE as error:
            raise self._damaged(error) from error
        # Of a truncated file array_record gives empty records without a word, TFDS None for each.
        if raw["fold"] is None:
            raise self._damaged("an empty record")
        return raw

    def _damaged(self, error: Exception | str) -> InputError:
        why = error if isinstance(error, str) else kind_of(error)
        return InputError(
            f"{self.folder}: a file of split {self._stored!r} is missing or damaged ({why}); "
            "remove that folder and prepare the set again"
        )

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        raw = self._raw(self._indices[index])
        there = [name for name in self.fields if raw.get(f"has_{name}", True)]
        record = {name: _decoded(name, raw[name]) for name in there}
        return self._change(record) if self._change else record

    def has(self, index: int, field: str) -> bool:
        """Whether record `index` has `field`; no picture is decoded."""
        if field not in self.partial:
            return field in self.fields
        if field == "findings":
            return bool(self._known[index])
        if (values := self._beside(field)) is not None:
            return values[index] is not None
        return bool(self._raw(self._indices[index])[f"has_{field}"])

    def peek(self, index: int, field: str) -> Any:
        """A field of record `index` that is no picture, None where it has none; no picture is
        decoded."""
        if (values := self._beside(field)) is not None:
            return values[index]
        raw = self._raw(self._indices[index])
        plain = self.fields - set(layout.pictures(self.fields))
        there = [name for name in plain if raw.get(f"has_{name}", True)]
        record = {name: _decoded(name, raw[name]) for name in there}
        return (self._change(record) if self._change else record).get(field)

    def _beside(self, field: str) -> list[Any] | None:
        """The values of a field that lies beside the records, None where a record has none; None
        for all if it does not lie there: another field, or a set prepared before it did."""
        if field not in layout.BESIDE or field not in self.fields:
            return None
        if field not in self._beside_values:
            columns = self._columns()
            names = SCHEMA["view"].values if field == "view" else range(len(self.diagnoses))
            known = {**dict(enumerate(names)), **({} if field == "view" else {-1: None})}
            numbers = columns[field][self._indices].tolist() if field in columns else None
            if numbers is not None and not set(numbers) <= known.keys():
                raise self._damaged(f"metadata.json has a {field} that is none")
            self._beside_values[field] = numbers and [known[number] for number in numbers]
        return self._beside_values[field]

    def stored(self, index: int) -> bytes:
        """The film as it is stored."""
        return self._raw(self._indices[index])["image"]

    def stored_size(self, index: int) -> int:
        """Bytes of `stored`."""
        return len(self.stored(index))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_records"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def _decoded(name: str, value: Any) -> Any:
    """What TFDS gives for a field, as the schema has it."""
    field = SCHEMA[name]
    if layout.pictures([name]):
        return readers.decode_png(value)
    if field.kind == TEXT:
        return value.decode()
    return value if field.shape else field.dtype(value)


class PreparedSlices(Prepared):
    """One split of a prepared set of CT slices, with the table of how they lie in volumes."""

    def slice_table(self) -> SliceTable:
        """Volume, position and label of each record; no record is read."""
        table = self.columns(*SLICE_COLUMNS)
        labels = table["label"].astype(np.float32)
        return SliceTable(
            volume=table["volume"],
            position=table["position"],
            label=np.where(labels < 0, np.float32(np.nan), labels),
        )

    def columns(self, *names: str) -> dict[str, np.ndarray]:
        """int64 [N] by name: what lies beside the records, of the records of this split."""
        columns = self._columns()
        return {name: np.asarray(columns[name], np.int64)[self._indices] for name in names}
