"""What a volume is, how large it may be, and how its values become a picture."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cxr_jax.data.file_errors import BadFile
from cxr_jax.errors import InputError

MAX_SLICES = 2000
MAX_SIDE = 4096  # pixels of a slice's side
MAX_VOXELS = 2**29  # 2000 slices of 512 x 512 are 2^28.97
ONE_SLICE = "one slice is no volume; export the whole series"
_HIGHEST_AIR = -200.0  # HU; a chest holds air
LUNG_WINDOW = (-600.0, 1500.0)  # centre and width in HU


class Volume(NamedTuple):
    """A volume in the orientation of the package's docstring.

    Attributes:
      values: [S, H, W]: of a NIfTI file the stored type where that is an integer of 8 or 16 bits
        without scaling, else float32; of a series float32. HU where the file is in HU. May be a
        view with any strides.
      spacing_mm: between slices, rows, columns.
      outline: what the headers say.
    """

    values: np.ndarray
    spacing_mm: tuple[float, float, float]
    outline: "Outline"


class Outline(NamedTuple):
    """What a volume's headers say; no values are read for it.

    Attributes:
      shape: (S, H, W) in the orientation of the package's docstring.
      numbers: int [S], the number from 1 under which a viewer shows each slice. Of a NIfTI file:
        in the order of the file, as ITK-SNAP counts. Of a series: in the order of InstanceNumber,
        as radiology viewers count; None where files lack it or share one.
      axes: how the axes of a NIfTI file lie (nibabel's orientation); None of a series.
      matrix: float [4, 4], voxel (s, h, w, 1) -> its place in mm to the right, front and head;
        None where a mask's header does not say it.
    """

    shape: tuple[int, int, int]
    numbers: np.ndarray | None
    axes: np.ndarray | None
    matrix: np.ndarray | None


def window(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """HU of any shape -> uint8: centre - width / 2 and below is 0, centre + width / 2 is 255.

    Linear in between, rounded to the nearest (DICOM's LINEAR_EXACT).
    """
    if not width > 0:
        raise InputError(f"a window of width {width:g}; expected more than 0 HU")
    scaled = (np.asarray(values, np.float32) - np.float32(centre - width / 2)) * np.float32(
        255 / width
    )
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def check_hounsfield(volume: Volume, path: str | Path, remedy: str) -> None:
    """Refuses a volume that cannot be in HU: without a value below -200, where air is -1000.

    Raises:
      InputError: with `remedy`, what to state instead.
    """
    lowest, highest = float(volume.values.min()), float(volume.values.max())
    if lowest > _HIGHEST_AIR:
        raise InputError(
            f"{path}: values {lowest:g}..{highest:g} are not Hounsfield units, in which air is "
            f"-1000; convert the scan again, or {remedy} in its own units (127.5 and 255 for a "
            "picture of 0..255)"
        )


def pictures(volume: Volume, centre: float, width: float) -> np.ndarray:
    """All slices through one `window`: uint8 [S, H, W], no larger copy in between."""
    shown = np.empty(volume.values.shape, np.uint8)
    for row, values in enumerate(volume.values):
        shown[row] = window(values, centre, width)
    return shown


def check_shape(shape: tuple[int, ...]) -> None:
    """Refuses an (S, H, W) that is no volume, or too large, with a `BadFile`."""
    slices, *sides = shape
    if slices == 1:
        raise BadFile(f"the volume is {size_text(shape)} (slices x rows x columns): {ONE_SLICE}")
    if slices > MAX_SLICES or max(sides) > MAX_SIDE:
        raise BadFile(
            f"{size_text(shape)} (slices x rows x columns); at most {MAX_SLICES} slices of "
            f"{MAX_SIDE}x{MAX_SIDE} px are read"
        )
    if min(sides) < 2:
        raise BadFile(f"{size_text(shape)} (slices x rows x columns); a slice has at least 2x2 px")


def size_text(sides: Iterable[int]) -> str:
    """(30, 512, 512) -> '30x512x512'."""
    return "x".join(str(side) for side in sides)
