"""What writing and reading a prepared set agree on: its folder, its columns, its pictures."""

import json
import os
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from cxr_jax.data.records import IMAGE, MASK, SCHEMA

VERSION = "1.0.0"  # of the stored layout; part of the folder's name
FOLDS = 5  # of the training films, by patient

# Beside the records of a CT set: the volume's number, `slice`, and `slice_label` or -1 for NaN.
SLICE_COLUMNS = ("volume", "position", "label")


def data_folder(data_dir: str | os.PathLike) -> pathlib.Path:
    """The folder of prepared sets: `data_dir`, else CXR_DATA_DIR, else ~/cxr_jax_data."""
    chosen = str(data_dir) or os.environ.get("CXR_DATA_DIR") or "~/cxr_jax_data"
    return pathlib.Path(chosen).expanduser()


def metadata(folder: pathlib.Path) -> dict[str, Any]:
    """What lies beside the records of a set: fingerprint, max_side, columns."""
    return json.loads((folder / "metadata.json").read_text())


def pictures(fields: Collection[str]) -> list[str]:
    """Those of `fields` that are stored as PNG, in the order of the schema."""
    return [name for name, field in SCHEMA.items() if name in fields and field.kind in _PICTURES]


_PICTURES = (IMAGE, MASK)


def slice_columns(
    volumes: Sequence[int], positions: Sequence[int], labels: Sequence[float]
) -> dict[str, list[int]]:
    """`columns` of `RecordBuilder` for CT slices; labels are 1, 0 or NaN."""
    known = [-1 if np.isnan(label) else int(label) for label in labels]
    return dict(zip(SLICE_COLUMNS, (list(volumes), list(positions), known)))
