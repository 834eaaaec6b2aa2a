"""Writes a prepared set: all of it, or nothing."""

import contextlib
import fcntl
import functools
import hashlib
import io
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from cxr_jax.data import readers, records
from cxr_jax.data.records import SCHEMA, TEXT, Record
from cxr_jax.data.sources.prepared import layout
from cxr_jax.errors import InputError

PART_BYTES = 2**29  # of pictures in one part of a split, at most: what preparing holds in memory


def fingerprint(table: pathlib.Path | None, files: Iterable[pathlib.Path], *options: Any) -> str:
    """Eight hex digits of what a set is made from: table, names and sizes of files, options."""
    digest = hashlib.sha256(table.read_bytes() if table else b"")
    for path in files:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
    digest.update(repr(options).encode())
    return digest.hexdigest()[:8]


F = TypeVar("F")
B = TypeVar("B", bound="RecordBuilder")


def film_builder(
    kind: type[B],
    parts: Mapping[str, Sequence[F]],
    *,
    read: Callable[[F, int], Record],
    fields: frozenset[str],
    partial: frozenset[str] = frozenset(),
    folds: Mapping[str, Sequence[int]] | None = None,
    columns: Callable[[Sequence[F]], Mapping[str, Sequence[int]]] = lambda part: {},
    fingerprint: str,
    data_dir: str,
    max_side: int,
    notes: Sequence[str] = (),
    diagnoses: tuple[str, ...] = records.DIAGNOSES,
) -> B:
    """The builder of a set from what its tables say of every film; reads no film yet.

    Args:
      kind: the set's own builder.
      parts: split -> its films.
      read: (a film, `max_side`) -> its record, of at most that side.
      fields, partial: as of `RecordBuilder`.
      folds: split -> the fold of each of its films; a split that is not there has none.
      columns: the films of a split -> name -> a number of each.
      fingerprint: of `fingerprint`.
      data_dir, max_side: as the `prepare` command has them.
      notes: for the user.
      diagnoses: as of `RecordBuilder`.
    """
    folds = folds or {}
    return kind(
        data_dir=layout.data_folder(data_dir),
        fields=fields,
        partial=partial,
        films={
            split: [functools.partial(read, film, max_side) for film in part]
            for split, part in parts.items()
        },
        film_fold={split: folds.get(split, [-1] * len(part)) for split, part in parts.items()},
        columns={split: columns(part) for split, part in parts.items()},
        metadata={"fingerprint": fingerprint, "max_side": max_side},
        notes=notes,
        diagnoses=diagnoses,
    )


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
      coded: fields that are stored under the set's own codes, which opening it settles; only their
        type and shape must be the schema's.
      findings: the names of the set's findings, where they are not `records.FINDINGS`; they are
        stored beside the records, and `Prepared.findings` tells them.
      diagnoses: the same of its diagnoses, where they are not `records.DIAGNOSES`.
    """

    VERSION = tfds.core.Version(layout.VERSION)
    description = ""
    citation = ""
    homepage = ""
    coded: frozenset[str] = frozenset()
    findings: tuple[str, ...] = records.FINDINGS

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
        diagnoses: tuple[str, ...] = records.DIAGNOSES,
        config: tfds.core.BuilderConfig | None = None,
    ):
        self.fields, self.partial, self.notes = fields, partial, notes
        self.diagnoses = diagnoses
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
        features = {name: _feature(name, len(self.findings)) for name in sorted(self.fields)}
        # TFDS has no "absent" for a picture: a blank one is stored beside a flag.
        features |= {f"has_{name}": tfds.features.Scalar(np.uint8) for name in self.partial}
        features["fold"] = tfds.features.Scalar(np.int32)
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.description,
            citation=self.citation,
            homepage=self.homepage,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(
                {
                    **self.metadata,
                    "columns": self.columns,
                    "findings": list(self.findings),
                    "diagnoses": list(self.diagnoses),
                }
            ),
            disable_shuffling=True,  # records keep the order of the table
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        pictures = len(layout.pictures(self.fields))
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
        self._check(record)
        example = {}
        for name in sorted(self.fields):
            if name in self.partial:
                example[f"has_{name}"] = np.uint8(name in record)
            example[name] = _encoded(name, record, len(self.findings))
        return example

    def _check(self, record: Record) -> None:
        """Holds what is stored of a record against the schema."""
        if absent := sorted(self.fields - self.partial - record.keys()):
            raise InputError(
                f"record {record.get('id', '')!r}: field {absent[0]!r} is absent; only "
                f"{', '.join(sorted(self.partial)) or 'no field'} may be"
            )
        kept = {name: record[name] for name in self.fields if name in record}
        records.check(kept, coded=self.coded, findings=self.findings, diagnoses=self.diagnoses)


def _feature(name: str, findings: int) -> tfds.features.FeatureConnector:
    field = SCHEMA[name]
    if layout.pictures([name]):
        return tfds.features.Image(shape=(None, None, 1), dtype=np.uint8, encoding_format="png")
    if field.kind == TEXT:
        return tfds.features.Text()
    known = {"K": findings}
    shape = [n if isinstance(n, int) else known.get(n) for n in field.shape]
    return tfds.features.Tensor(shape=tuple(shape), dtype=_stored_type(field))


def _stored_type(field: records.Field) -> type:
    return np.int32 if field.dtype is int else field.dtype


def _encoded(name: str, record: Record, findings: int) -> Any:
    """What TFDS is given for a field; zeros where the record lacks it."""
    field, value = SCHEMA[name], record.get(name)
    if value is None:
        height, width = record["image"].shape
        value = field.empty({"H": height, "W": width, "M": 0, "K": findings})
    if layout.pictures([name]):
        # An encoded file object: given an array, TFDS would import TensorFlow.
        return io.BytesIO(readers.encode_png(value))
    return value if field.kind == TEXT else np.asarray(value, _stored_type(field))


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
                if layout.metadata(folder).get("fingerprint") == builder.metadata["fingerprint"]:
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
