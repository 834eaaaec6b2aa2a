"""CT as slices: a source's records are single slices, and a table says how they lie in volumes."""

from typing import NamedTuple, Protocol

import numpy as np

from cxr_jax.data.sources import Source


class SliceTable(NamedTuple):
    """Where each record of a CT source lies; known without reading a picture.

    Attributes:
      volume: int [N], the number of the record's volume.
      position: int [N], the slice's number in it, the record's `slice`; two records are neighbours
        in the body where these differ by 1.
      label: float32 [N], the record's `slice_label`: 1, 0 or NaN.
    """

    volume: np.ndarray
    position: np.ndarray
    label: np.ndarray


class SliceSource(Source, Protocol):
    """A source of slices: its records have `volume`, `slice` and `slice_label`."""

    def slice_table(self) -> SliceTable:
        """Where the records lie, in their order."""
        ...
