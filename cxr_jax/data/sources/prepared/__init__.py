"""Prepared data sets: records in ArrayRecord files, written and read by TFDS without TensorFlow.

Pictures and masks are stored as PNG (lossless), resized once so that the longest side is at most
`max_side`; everything that depends on the task happens later. How a field is stored follows from
its kind in `records.SCHEMA`. A set is written beside its final folder and renamed when complete, so
a folder `DATA_DIR/NAME/VERSION` is always whole.

Memory stays bounded however large the set: TFDS holds a split until it is complete (past 1 GB it
would write it elsewhere, with TensorFlow, and read that back whole), so a large split is stored in
parts, train_0000, train_0001, .... What decides which films are opened, such as the fold, lies
beside the records (`metadata.json`, 'columns'), so that opening a split reads no record but one.
"""

from cxr_jax.data.sources.prepared.dealt import (
    DEALT_FIELDS,
    DealtFilm,
    dealt_builder,
    open_dealt,
)
from cxr_jax.data.sources.prepared.layout import (
    FOLDS,
    VERSION,
    data_folder,
    film_columns,
    slice_columns,
)
from cxr_jax.data.sources.prepared.reading import (
    Prepared,
    PreparedSlices,
    open_folded,
    open_whole,
)
from cxr_jax.data.sources.prepared.writing import (
    RecordBuilder,
    build,
    film_builder,
    fingerprint,
)

__all__ = [
    "DEALT_FIELDS",
    "FOLDS",
    "VERSION",
    "DealtFilm",
    "Prepared",
    "PreparedSlices",
    "RecordBuilder",
    "build",
    "data_folder",
    "dealt_builder",
    "film_builder",
    "film_columns",
    "fingerprint",
    "open_dealt",
    "open_folded",
    "open_whole",
    "slice_columns",
]
