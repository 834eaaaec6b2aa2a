"""Films and CT slices from DICOM files."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pydicom

from cxr_jax.data.file_errors import BadFile, known, naming
from cxr_jax.data.readers.checks import MAX_PIXELS, read_head
from cxr_jax.data.readers.dicom_grey import (
    GreyTable,
    is_padding,
    modality_values,
    stored_table,
    table_index,
)
from cxr_jax.data.readers.dicom_header import (
    FILM_MODALITIES,
    MODALITIES,
    Header,
    checked_header,
    is_dicom,
    open_dicom,
    parsing,
)

_GEOMETRY = {
    "Rows": 1,
    "Columns": 1,
    "PixelSpacing": 2,
    "ImageOrientationPatient": 6,
    "ImagePositionPatient": 3,
}
_LATERAL = ("LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT")
_AIR = -1024.0  # HU, of pixels outside the reconstruction


def read_dicom(path: Path, max_pixels: int) -> np.ndarray:
    """The film of a DICOM file, uint8 [H, W]."""
    with parsing("the DICOM file cannot be read"):
        dataset = open_dicom(path)
        header = checked_header(dataset, max_pixels)
        grey_table = None if header.samples == 3 else GreyTable.of(dataset, header)
    stored = _stored_values(dataset, header)
    if grey_table is None:
        film = cv2.cvtColor(np.ascontiguousarray(stored), cv2.COLOR_RGB2GRAY)
    else:
        film = grey_table.film(stored)
    with parsing("the DICOM header makes no sense"):
        mirrored = is_mirrored(dataset)
    return cv2.flip(film, 1) if mirrored else film


def is_mirrored(dataset: pydicom.Dataset) -> bool:
    """Whether a film says that it was stored mirrored: `read_film` turns it back."""
    return list(dataset.get("PatientOrientation") or ())[:2] == ["R", "F"]


def read_header(path: str | Path) -> pydicom.Dataset | None:
    """All elements of a DICOM file but its pixels; None of another file.

    Raises:
        InputError: missing, or its header cannot be read.
    """
    path = Path(path)
    with naming(path):
        if not is_dicom(read_head(path), path):
            return None
        with parsing("the DICOM header cannot be read"):
            return open_dicom(path, stop_before_pixels=True)


def check_view(path: Path) -> None:
    """Raises BadFile for another view than a frontal one, or another modality than a film's."""
    tags = ["Modality", "ViewPosition"]
    with parsing("the DICOM header cannot be read"):
        dataset = open_dicom(path, stop_before_pixels=True, specific_tags=tags)
        modality, view = (str(dataset.get(tag) or "").strip().upper() for tag in tags)
    if modality in MODALITIES - FILM_MODALITIES:
        raise BadFile(f"modality {modality!r}; this model reads frontal radiographs")
    if view in _LATERAL:
        raise BadFile(f"a lateral film (view position {view!r}); this model reads frontal ones")


def read_view(path: str | Path) -> str:
    """The view that a DICOM film states: 'PA', 'AP', or '' for any other and for none.

    Raises:
        InputError: missing, no DICOM file, or its header cannot be read.
    """
    path = Path(path)
    with naming(path):
        if not is_dicom(read_head(path), path):
            raise BadFile("not a DICOM file, which states its view")
        with parsing("the DICOM header cannot be read"):
            dataset = open_dicom(path, stop_before_pixels=True, specific_tags=["ViewPosition"])
            view = str(dataset.get("ViewPosition") or "").strip().upper()
    return view if view in ("PA", "AP") else ""


class SliceHeader(NamedTuple):
    """Where a CT slice lies, as its DICOM header says; mm in the patient's frame (x to the left,
    y to the back, z to the head).

    Attributes:
        series: its SeriesInstanceUID.
        size: (H, W).
        spacing: mm between rows, between columns.
        directions: float64 [2, 3], unit vectors along a row and down a column.
        position: float64 [3], of the first pixel.
        number: its InstanceNumber; None where there is none.
    """

    series: str
    size: tuple[int, int]
    spacing: tuple[float, float]
    directions: np.ndarray
    position: np.ndarray
    number: int | None


def read_slice_header(path: str | Path) -> SliceHeader:
    """Reads where a CT slice lies; no pixels.

    Args:
        path: a DICOM file of one axial CT slice.

    Raises:
        InputError: missing, no DICOM file, not of modality CT, or without its place in the body.
    """
    path = Path(path)
    with naming(path):
        if not is_dicom(read_head(path), path):
            raise BadFile("not a DICOM file; expected a slice of a CT series")
        with parsing("the DICOM header cannot be read"):
            return _slice_header(open_dicom(path, stop_before_pixels=True))


def _slice_header(dataset: pydicom.Dataset) -> SliceHeader:
    modality = str(dataset.get("Modality") or "")
    if modality != "CT":
        raise BadFile(f"modality {known(modality, MODALITIES)}; expected CT")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise BadFile(f"the file has {frames} frames; export the series as a file a slice")
    geometry = {name: _numbers(dataset, name, count) for name, count in _GEOMETRY.items()}
    directions = geometry["ImageOrientationPatient"].reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > 0.01:
        raise BadFile(
            f"ImageOrientationPatient {directions.ravel().tolist()} is not two directions "
            "at right angles; export it again"
        )
    spacing = geometry["PixelSpacing"]
    if not (spacing > 0).all():
        raise BadFile(f"PixelSpacing {spacing.tolist()}; expected two positive numbers")
    number = dataset.get("InstanceNumber")
    return SliceHeader(
        series=str(dataset.get("SeriesInstanceUID") or ""),
        size=(int(geometry["Rows"][0]), int(geometry["Columns"][0])),
        spacing=(float(spacing[0]), float(spacing[1])),
        directions=directions,
        position=geometry["ImagePositionPatient"],
        number=None if number in (None, "") else int(number),
    )


def _numbers(dataset: pydicom.Dataset, name: str, count: int) -> np.ndarray:
    """float64 [count]: all the values of an element."""
    value = dataset.get(name)
    values = [] if value in (None, "") else np.atleast_1d(value)
    if len(values) != count:
        raise BadFile(
            f"the DICOM header has {len(values)} numbers in {name}, expected {count}; "
            "without them the slice has no place in the body"
        )
    numbers = np.array([float(number) for number in values])
    if not np.isfinite(numbers).all():
        raise BadFile(f"the DICOM element {name} is {numbers.tolist()}")
    return numbers


def read_hounsfield(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads the values of one CT slice.

    Args:
        path: a DICOM file, compressed in any way that `read_film` reads.
        max_pixels: as in `read_film`.

    Returns:
        float32 [H, W] in Hounsfield units (modality LUT, else rescale slope and intercept);
        padding is -1024.

    Raises:
        InputError: as in `read_film`; or colour, or nothing says how stored values become HU.
    """
    path = Path(path)
    with naming(path):
        if not is_dicom(read_head(path), path):
            raise BadFile("not a DICOM file; expected a slice of a CT series")
        with parsing("the DICOM file cannot be read"):
            dataset = open_dicom(path)
            header = checked_header(dataset, max_pixels)
            if header.samples != 1:
                raise BadFile(
                    f"photometric interpretation {header.photometric}; a CT slice is grey"
                )
            rescale = [dataset.get(f"Rescale{part}") for part in ("Slope", "Intercept")]
            rescaled = all(value not in (None, "") for value in rescale)
            if not dataset.get("ModalityLUTSequence") and not rescaled:
                raise BadFile("no RescaleSlope and RescaleIntercept: its values are not in HU")
            stored = stored_table(header)
            modality = modality_values(dataset, header, stored)
            padding = is_padding(dataset, header, stored)
        values = np.where(padding, _AIR, modality).astype(np.float32)
        return values[table_index(_stored_values(dataset, header), header)]


def _stored_values(dataset: pydicom.Dataset, header: Header) -> np.ndarray:
    """The pixels as they are stored: [H, W], or [H, W, 3] of a colour film."""
    with parsing("the pixels of the DICOM file cannot be decoded"):
        stored = pydicom.pixels.pixel_array(dataset, index=0)
    shape = (header.height, header.width, 3)[: 3 if header.samples == 3 else 2]
    if stored.shape != shape:
        raise BadFile(
            f"the pixels decode to {stored.shape}, the header says {shape}; export it again"
        )
    return stored
