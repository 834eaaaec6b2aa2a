"""CT volumes from files: NIfTI and DICOM series to Hounsfield units in one orientation.

A volume comes out as [S, H, W]:

- S from the feet to the head: slice k + 1 lies above slice k;
- H from front to back: the spine is at the bottom of a slice, the breastbone at the top;
- W from the patient's right to the left: the patient's right is on the image's left.

Axes are exchanged and turned round by what the header says, to the nearest axis; nothing is
resampled, so a slice of a tilted gantry stays tilted. A header that does not say where the axes
point is refused: right and left would be a guess.

`scans` tells files from folders; `nifti` and `series` read them, `masks` what is drawn on them.

Files are hostile, as in `readers`: sizes are checked from the header before memory is asked for,
no more is inflated from a .gz than the header announces, and every mistake of a file is one
`InputError` that names it.
"""

from cxr_jax.data.volumes.base import (
    LUNG_WINDOW,
    Outline,
    Volume,
    check_hounsfield,
    pictures,
    window,
)
from cxr_jax.data.volumes.latest import Latest
from cxr_jax.data.volumes.masks import both_lungs, read_mask, sided_lungs, write_mask
from cxr_jax.data.volumes.nifti import read_nifti
from cxr_jax.data.volumes.scans import find_volumes, holds_volume, outline, read, volumes_in
from cxr_jax.data.volumes.series import read_dicom_series, stored_series

__all__ = [
    "LUNG_WINDOW",
    "Latest",
    "Outline",
    "Volume",
    "both_lungs",
    "check_hounsfield",
    "find_volumes",
    "holds_volume",
    "outline",
    "pictures",
    "read",
    "read_dicom_series",
    "read_mask",
    "read_nifti",
    "sided_lungs",
    "stored_series",
    "volumes_in",
    "window",
    "write_mask",
]
