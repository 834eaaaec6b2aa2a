"""What writing and reading a prepared set agree on: its folder, its columns, its pictures."""

import os
import pathlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from cxr_jax import small_files
from cxr_jax.data.records import IMAGE, MASK, SCHEMA
from cxr_jax.errors import InputError

VERSION = "1.0.0"  # of the stored layout; part of the folder's name
FOLDS = 5  # of the training films, by patient

# Fields that also lie beside the records of films, so that films are chosen by them without being
# read: the number of the view in `records.SCHEMA`; the diagnosis, or -1 for none.
BESIDE = ("view", "diagnosis")
# Beside the records of a CT set: the volume's number, `slice`, and `slice_label` or -1 for NaN.
SLICE_COLUMNS = ("volume", "position", "label")
_REMEDY = "remove that folder and prepare the set again"


def data_folder(data_dir: str | os.PathLike) -> pathlib.Path:
    """The folder of prepared sets: `data_dir`, else CXR_DATA_DIR, else ~/cxr_jax_data."""
    chosen = str(data_dir) or os.environ.get("CXR_DATA_DIR") or "~/cxr_jax_data"
    return pathlib.Path(chosen).expanduser()


def metadata(folder: pathlib.Path) -> dict[str, Any]:
    """What lies beside the records of a set: fingerprint, max_side, columns."""
    fields = small_files.read_fields(folder / "metadata.json", _REMEDY)
    fields.get("fingerprint", str, "")
    for names in ("findings", "diagnoses"):
        if not all(isinstance(name, str) for name in fields.get(names, list, [])):
            raise InputError(f"{fields.path}: {names} are no list of names; {_REMEDY}")
    for split, columns in fields.get("columns", dict, {}).items():
        for name, values in fields.fields("columns").get(split, dict).items():
            whole = isinstance(values, list) and all(type(n) is int for n in values)
            if not whole or len(values) != len(next(iter(columns.values()))):
                raise InputError(
                    f"{fields.path}: column {name[:40]!r} of {split[:40]!r} is no list of as many "
                    f"whole numbers as the others; {_REMEDY}"
                )
    return fields.values


def check_description(folder: pathlib.Path) -> None:
    """Refuses a set whose description TFDS would trip over, or that names types of its own: TFDS
    imports whatever module a feature names.

    Raises:
      InputError: names the file.
    """
    info = small_files.read_fields(folder / "dataset_info.json", _REMEDY)
    info.get("name", str)
    features = small_files.read_fields(folder / "features.json", _REMEDY)
    level = [features.values]
    while level:
        for entry in level:
            kind = entry.get("pythonClassName", "")
            if kind and not str(kind).startswith("tensorflow_datasets.core.features."):
                raise InputError(
                    f"{features.path} names the type {str(kind)[:80]!r}, which no set here has; "
                    f"{_REMEDY}"
                )
        level = [x for entry in level for x in entry.values() if isinstance(x, dict)]


def pictures(fields: Collection[str]) -> list[str]:
    """Those of `fields` that are stored as PNG, in the order of the schema."""
    return [name for name, field in SCHEMA.items() if name in fields and field.kind in _PICTURES]


_PICTURES = (IMAGE, MASK)


def film_columns(
    *, views: Iterable[str] | None = None, diagnoses: Iterable[int | None] | None = None
) -> dict[str, list[int]]:
    """`columns` of `RecordBuilder` for what films are chosen by; None: the films have none."""
    columns = {}
    if views is not None:
        columns["view"] = [SCHEMA["view"].values.index(view) for view in views]
    if diagnoses is not None:
        columns["diagnosis"] = [-1 if number is None else number for number in diagnoses]
    return columns


def slice_columns(
    volumes: Sequence[int], positions: Sequence[int], labels: Sequence[float]
) -> dict[str, list[int]]:
    """`columns` of `RecordBuilder` for CT slices; labels are 1, 0 or NaN."""
    known = [-1 if np.isnan(label) else int(label) for label in labels]
    return dict(zip(SLICE_COLUMNS, (list(volumes), list(positions), known)))
