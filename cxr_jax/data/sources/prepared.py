"""Prepared data sets: records in ArrayRecord files, written and read by TFDS without TensorFlow.

Pictures and masks are stored as PNG (lossless), resized once so that the longest side is at most
`max_side`; everything that depends on the task happens later. A set is written beside its final
folder and renamed when complete, so a folder `DATA_DIR/NAME/VERSION` is always whole.

Memory stays bounded however large the set: TFDS holds a split until it is complete (past 1 GB it
would write it elsewhere, with TensorFlow, and read that back whole), so a large split is stored in
parts, train_0000, train_0001, .... What decides which films are opened, such as the fold, lies
beside the records (`metadata.json`, 'columns'), so that opening a split reads no record but one.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from cxr_jax.data import readers, splits
from cxr_jax.data.records import FINDINGS, Record
from cxr_jax.data.sources.base import SliceTable
from cxr_jax.errors import InputError

VERSION = "1.0.0"  # of the stored layout; part of the folder's name
FOLDS = 5  # of the training films, by patient

# How each record field is stored. `image` and the masks are PNG.
_MASKS = ("lungs", "lesion")
_TEXTS = ("id", "group", "view", "volume")
_NUMBERS = {
    "severity": ((3, 2), np.int8),
    "severity_second": ((3, 2), np.int8),
    "severity_valid": ((3, 2), np.bool_),
    "diagnosis": ((), np.int32),
    "findings": ((len(FINDINGS),), np.float32),
    "boxes": ((None, 4), np.float32),
    "box_label": ((None,), np.int32),
    "slice": ((), np.int32),
    "slice_label": ((), np.float32),
    "pixel_area": ((), np.float32),
}
_SCALARS = ("slice", "slice_label", "pixel_area")
PART_BYTES = 2**29  # of pictures in one part of a split, at most: what preparing holds in memory

# What array_record raises on a missing or damaged file.
_UNREADABLE = (OSError, RuntimeError, ValueError)


def data_folder(data_dir: str | os.PathLike) -> pathlib.Path:
    """The folder of prepared sets: `data_dir`, else CXR_DATA_DIR, else ~/cxr_jax_data."""
    chosen = str(data_dir) or os.environ.get("CXR_DATA_DIR") or "~/cxr_jax_data"
    return pathlib.Path(chosen).expanduser()


def shrink(record: Record, max_side: int) -> Record:
    """The record with picture and masks reduced so that the longest side is at most `max_side`.

    Never enlarged; the shape is kept to the nearest pixel. Masks keep their labels (nearest);
    `boxes` and `pixel_area` follow.
    """
    height, width = record["image"].shape
    scale = max_side / max(height, width)
    if scale >= 1:
        return record
    size = max(1, round(width * scale)), max(1, round(height * scale))  # OpenCV: width first
    small = {"image": cv2.resize(record["image"], size, interpolation=cv2.INTER_AREA)}
    for name in _MASKS:
        if name in record:
            small[name] = cv2.resize(record[name], size, interpolation=cv2.INTER_NEAREST_EXACT)
    if "boxes" in record:
        small["boxes"] = scale_boxes(record["boxes"], (width, height), size)
    if "pixel_area" in record:
        small["pixel_area"] = record["pixel_area"] * (width * height) / (size[0] * size[1])
    return record | small


def scale_boxes(
    boxes: np.ndarray, frame: tuple[float, float], size: tuple[float, float]
) -> np.ndarray:
    """Boxes float32 [M, 4], xyxy in pixels of a picture of `frame` -> of one of `size`.

    Both are (width, height): the pixels' corners are what keeps its place.
    """
    factors = np.array(size, np.float64) / np.array(frame, np.float64)
    return (np.asarray(boxes, np.float64).reshape(-1, 4) * np.tile(factors, 2)).astype(np.float32)


def fingerprint(table: pathlib.Path | None, files: Iterable[pathlib.Path], *options: Any) -> str:
    """Eight hex digits of what a set is made from: table, names and sizes of files, options."""
    digest = hashlib.sha256(table.read_bytes() if table else b"")
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
    digest.update(repr(options).encode())
    return digest.hexdigest()[:8]


class RecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes standard records. A data set's own builder adds its description and its films.

    Attributes:
      fields: what the records have.
      partial: those of `fields` that may be absent from a record.
      films: split -> functions that each read one record, called one at a time.
      film_fold: split -> the fold of each of these films, -1 for none.
      columns: split -> name -> a whole number of each film, by which `Prepared` chooses films. The
        fold is one of them, always.
      metadata: JSON-able facts stored beside the records; `max_side` bounds a film's size.
      notes: lines on what was read and left out, for the user.
    """

    VERSION = tfds.core.Version(VERSION)
    description = ""
    citation = ""
    homepage = ""

    def __init__(
        self,
        *,
        data_dir: str | os.PathLike,
        fields: frozenset[str],
        partial: frozenset[str],
        films: Mapping[str, Sequence[Callable[[], Record]]],
        film_fold: Mapping[str, Sequence[int]],
        metadata: Mapping[str, Any],
        columns: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
        notes: Sequence[str] = (),
        config: tfds.core.BuilderConfig | None = None,
    ):
        self.fields, self.partial, self.notes = fields, partial, notes
        self.films, self.film_fold, self.metadata = films, film_fold, metadata
        self.columns = {}
        for split in films:
            named = {"fold": film_fold[split], **(columns or {}).get(split, {})}
            self.columns[split] = {name: [int(n) for n in values] for name, values in named.items()}
        self.on_film: Callable[[], Any] = lambda: None
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # TFDS warns of every set that is not one of its own
        try:
            super().__init__(data_dir=data_dir, config=config, file_format="array_record")
        finally:
            logging.set_verbosity(verbosity)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {name: _feature(name) for name in sorted(self.fields)}
        # TFDS has no "absent" for a picture: a blank one is stored beside a flag.
        features |= {f"has_{name}": tfds.features.Scalar(np.uint8) for name in self.partial}
        features["fold"] = tfds.features.Scalar(np.int32)
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.description,
            citation=self.citation,
            homepage=self.homepage,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict({**self.metadata, "columns": self.columns}),
            disable_shuffling=True,  # records keep the order of the table
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        pictures = 1 + len(self.fields.intersection(_MASKS))
        most = max(1, PART_BYTES // (self.metadata["max_side"] ** 2 * pictures))
        parts = {}
        for split, films in self.films.items():
            for part, start in enumerate(range(0, len(films), most)):
                name = split if len(films) <= most else f"{split}_{part:04d}"
                parts[name] = self._generate_examples(split, start, start + most)
        return parts

    def _generate_examples(
        self, split: str, start: int, stop: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        films, folds = self.films[split][start:stop], self.film_fold[split][start:stop]
        for number, (film, fold) in enumerate(zip(films, folds)):
            yield number, self._encode(film()) | {"fold": fold}
            self.on_film()

    def _encode(self, record: Record) -> dict[str, Any]:
        example = {}
        for name in sorted(self.fields):
            if name in self.partial:
                example[f"has_{name}"] = np.uint8(name in record)
            value = record.get(name)
            if name == "image" or name in _MASKS:
                value = np.zeros_like(record["image"]) if value is None else value
                # An encoded file object: given an array, TFDS would import TensorFlow.
                value = io.BytesIO(readers.encode_png(value))
            elif name in _NUMBERS:
                shape, dtype = _NUMBERS[name]
                empty = [length or 0 for length in shape]
                value = np.zeros(empty, dtype) if value is None else np.asarray(value, dtype)
            example[name] = value
        return example


def _feature(name: str) -> tfds.features.FeatureConnector:
    if name == "image" or name in _MASKS:
        return tfds.features.Image(shape=(None, None, 1), dtype=np.uint8, encoding_format="png")
    if name in _TEXTS:
        return tfds.features.Text()
    shape, dtype = _NUMBERS[name]
    return tfds.features.Tensor(shape=shape, dtype=dtype)


def build(builder: RecordBuilder, *, on_film: Callable[[], Any] = lambda: None) -> bool:
    """Writes the set, all or nothing.

    Args:
      builder: with its films.
      on_film: called after each film.

    Returns:
      False if the same set (by its `fingerprint`) is there already, and nothing was done.

    Raises:
      InputError: another set is in the folder, another run is writing it, or the disk refuses.
    """
    folder = pathlib.Path(builder.data_dir)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_writer(folder.parent):
            if (folder / "dataset_info.json").is_file():
                if _metadata(folder).get("fingerprint") == builder.metadata["fingerprint"]:
                    return False
                raise InputError(
                    f"{folder} holds a set prepared from other files or with other options; remove "
                    "that folder, or give another --data_dir (a CSV's set has its name: or rename "
                    "the CSV)"
                )
            for left in folder.parent.glob("incomplete.*"):  # of a run that was killed
                shutil.rmtree(left)
            builder.on_film = on_film
            tfds.disable_progress_bar()
            # TFDS announces a download on stdout; nothing is downloaded.
            with contextlib.redirect_stdout(io.StringIO()):
                builder.download_and_prepare(
                    # One file a part: every file of a split that is read stays open.
                    download_config=tfds.download.DownloadConfig(
                        try_download_gcs=False, num_shards=1
                    )
                )
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else _write_failure(error)
        if reason is None:
            raise
        raise InputError(
            f"{folder}: cannot be written ({reason}); free the disk or give another --data_dir"
        ) from error
    return True


def _write_failure(error: RuntimeError) -> str | None:
    """What the system said to array_record, which puts it inside a RuntimeError; else None."""
    failure = re.search(r"write\(\) failed: ([^;]+)", str(error))
    return failure and failure[1]


@contextlib.contextmanager
def _only_writer(folder: pathlib.Path) -> Iterator[None]:
    # The system drops the lock when its holder dies, however it dies.
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another `prepare` is writing there; wait for it") from None
        yield


def _metadata(folder: pathlib.Path) -> dict[str, Any]:
    return json.loads((folder / "metadata.json").read_text())


def open_folded(
    data_dir: str,
    name: str,
    split: str,
    *,
    fold: int,
    source: str,
    folds: int = FOLDS,
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
      column: where a film's fold is.
      stored: the split in the files; by default 'test' or 'train'.
      where, options: of `Prepared`, besides these.
      kind: `Prepared` by default, or `PreparedSlices`.

    Raises:
      InputError: not prepared (with the command), a fold outside its range, 'val' without a fold.
    """
    if not -1 <= fold < folds:
        raise InputError(f"data.fold={fold}; expected 0..{folds - 1}, or -1 for no validation")
    if split == "val" and fold < 0:
        raise InputError(
            f"data set {name!r} has no validation split with data.fold=-1 (all its training "
            f"films are trained on); set data.fold to 0..{folds - 1}"
        )
    chosen = {"train": set(range(folds)) - {fold}, "val": {fold}, "test": {-1}}[split]
    at = f" --data_dir={data_dir}" if data_dir else ""
    return (kind or Prepared)(
        data_folder(data_dir) / name / VERSION,
        name=name,
        split=split,
        stored=stored or ("test" if split == "test" else "train"),
        where={**(where or {}), column: chosen},
        prepare=f"python -m cxr_jax.data.prepare {name} --source=FOLDER{at} (FOLDER: {source})",
        **options,
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
        if not (self.folder / "dataset_info.json").is_file():
            raise InputError(
                f"data set {name!r} is not prepared in {self.folder.parent}; run: {prepare}"
            )
        self._open()
        keys = set(self._features)
        self.partial = frozenset(key.removeprefix("has_") for key in keys if key[:4] == "has_")
        self.fields = frozenset(key for key in keys if key[:4] != "has_" and key != "fold")
        self.version = f"{VERSION}+{_metadata(self.folder)['fingerprint']}"
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
        builder = tfds.builder_from_directory(self.folder)
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
        pictures = [name for name in ("image", *_MASKS) if name in self._features]
        # PNG bytes as they are: `readers` decodes what is asked for.
        skip = {name: tfds.decode.SkipDecoding() for name in pictures}
        try:
            self._records = builder.as_data_source("+".join(self._parts), decoders=skip)
        except _UNREADABLE as error:
            raise self._damaged(error) from error

    def _columns(self) -> dict[str, np.ndarray]:
        """A whole number of each stored record, by column."""
        columns = _metadata(self.folder).get("columns")
        if columns is None:  # prepared before columns were kept beside the records
            return {"fold": np.array([self._raw(i)["fold"] for i in range(len(self._records))])}
        tables = [columns[stored] for stored in self._stored.split("+")]
        return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}

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
        return InputError(
            f"{self.folder}: a file of split {self._stored!r} is missing or damaged ({error}); "
            "remove that folder and prepare the set again"
        )

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        raw = self._raw(self._indices[index])
        record = {}
        for name in self.fields:
            if not raw.get(f"has_{name}", True):
                continue
            value = raw[name]
            if name == "image" or name in _MASKS:
                value = readers.decode_png(value)
            elif name in _TEXTS:
                value = value.decode()
            elif name == "diagnosis":
                value = int(value)
            elif name in _SCALARS:
                value = np.asarray(value, _NUMBERS[name][1])[()]
            record[name] = value
        return self._change(record) if self._change else record

    def has(self, index: int, field: str) -> bool:
        """Whether record `index` has `field`; no picture is decoded."""
        if field not in self.partial:
            return field in self.fields
        if field == "findings":
            return bool(self._known[index])
        return bool(self._raw(self._indices[index])[f"has_{field}"])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_records"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


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


# Beside the records of a CT set: the volume's number, `slice`, and `slice_label` or -1 for NaN.
SLICE_COLUMNS = ("volume", "position", "label")


def slice_columns(
    volumes: Sequence[int], positions: Sequence[int], labels: Sequence[float]
) -> dict[str, list[int]]:
    """`columns` of `RecordBuilder` for CT slices; labels are 1, 0 or NaN."""
    known = [-1 if np.isnan(label) else int(label) for label in labels]
    return dict(zip(SLICE_COLUMNS, (list(volumes), list(positions), known)))
