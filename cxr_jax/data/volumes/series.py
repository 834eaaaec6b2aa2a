"""Volumes from the DICOM files of one CT series, a file a slice."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from nibabel import orientations

from cxr_jax.data import readers
from cxr_jax.data.file_errors import BadFile, naming
from cxr_jax.data.volumes.base import (
    MAX_SIDE,
    MAX_SLICES,
    MAX_VOXELS,
    ONE_SLICE,
    Outline,
    Volume,
    check_shape,
    size_text,
)
from cxr_jax.data.volumes.orientation import file_order, oriented, stored, voxel_matrix

# Of the step between slices: more than this many steps, and a slice is missing in between.
_GAP, _OVERLAP = 1.5, 0.67


def read_dicom_series(folder: str | Path) -> Volume:
    """Reads the one CT series in a folder.

    Args:
      folder: with a DICOM file a slice, in any order and under any name; other files, hidden ones
        and folders in it are passed over.

    Returns:
      The volume in HU, float32.

    Raises:
      InputError: no folder or DICOM file in it; several series; another modality than CT; a slice
        without its place in the body; slices of different size, spacing or direction; two at one
        place; a missing slice; not axial; one slice alone; or a file that `read_hounsfield`
        refuses.
    """
    series = _series(Path(folder))
    values = np.empty((len(series.files), *series.headers[0].size), np.float32)
    for row, path in enumerate(series.files):
        values[row] = readers.read_hounsfield(path, max_pixels=MAX_SIDE**2)
    zooms = (*series.headers[0].spacing[::-1], series.step)
    order = file_order(series.axes)
    return Volume(
        values=oriented(values.transpose(2, 1, 0), series.axes),
        spacing_mm=tuple(float(zooms[axis]) for axis in order),
        outline=series.outline(),
    )


def series_outline(folder: Path) -> Outline:
    """What the headers of the series in a folder say.

    Raises:
      InputError: as in `read_dicom_series`; no pixels are looked at.
    """
    return _series(folder).outline()


def stored_series(folder: str | Path) -> "Series":
    """The slices of the series in a folder, and how they lie; no pixels are looked at.

    Raises:
      InputError: as in `read_dicom_series`.
    """
    return _series(Path(folder))


class Series(NamedTuple):
    """The slices of a series, sorted along their normal."""

    files: list[Path]
    headers: list[readers.SliceHeader]
    step: float  # mm
    axes: np.ndarray  # of the array [W, H, S]
    matrix: np.ndarray  # as `Outline`'s

    def as_stored(self, values: np.ndarray) -> np.ndarray:
        """[S, H, W] in the orientation of the package's docstring -> [S, H, W] as the files have
        it: slice k is that of file k, its rows and columns in their order."""
        return stored(values, self.axes).transpose(2, 1, 0)

    def outline(self) -> Outline:
        """What the headers say, without a look at the pixels."""
        shape = (len(self.files), *self.headers[0].size)
        numbers = [header.number for header in self.headers]
        if None in numbers or len(set(numbers)) < len(numbers):
            return Outline(shape, None, None, self.matrix)
        ranks = np.argsort(np.argsort(numbers)) + 1
        ascending = self.axes[2, 1] > 0
        return Outline(shape, ranks if ascending else ranks[::-1].copy(), None, self.matrix)


def _series(folder: Path) -> Series:
    with naming(folder):
        files = _slice_files(folder)
        headers = [readers.read_slice_header(file) for file in files]
        _check_one_series(files, headers)
        first = headers[0]
        normal = np.cross(*first.directions)
        depths = np.array([header.position @ normal for header in headers])
        order = np.argsort(depths, kind="stable")
        files, headers = [files[i] for i in order], [headers[i] for i in order]
        step = _step(files, depths[order])
        check_shape((len(files), *first.size))
        affine = _affine(first, normal * step, headers[0].position)
        axes = orientations.io_orientation(affine).astype(int)
        if axes[2, 0] != 2:
            raise BadFile(
                f"the slices are not axial (their normal is {np.round(normal, 2).tolist()}); give "
                "the axial series"
            )
        matrix = voxel_matrix(affine, axes, (first.size[1], first.size[0], len(files)))
        return Series(files=files, headers=headers, step=step, axes=axes, matrix=matrix)


def _slice_files(folder: Path) -> list[Path]:
    """By name; as many as a volume may have."""
    if not folder.is_dir():
        raise BadFile("no such folder; expected one with the DICOM files of a series")
    files = sorted(file for file in folder.iterdir() if is_slice(file))
    if not files:
        raise BadFile(
            f"no DICOM file in this folder{folders_in(folder)}; expected the slices of one CT "
            "series"
        )
    if len(files) == 1:
        raise BadFile(f"the folder has one DICOM file: {ONE_SLICE}")
    if len(files) > MAX_SLICES:
        raise BadFile(f"{len(files)} DICOM files; at most {MAX_SLICES} slices are read")
    return files


def is_slice(file: Path) -> bool:
    """Whether a file of a folder is read as a slice of the folder's series."""
    if file.name.startswith(".") or file.name.upper() == "DICOMDIR" or not file.is_file():
        return False
    if file.suffix.lower() in (".dcm", ".dicom"):
        return True
    try:
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _check_one_series(files: list[Path], headers: list[readers.SliceHeader]) -> None:
    """All slices are of one series and fit on each other; together they are not too large."""
    counts = Counter(header.series for header in headers)
    if len(counts) > 1:
        named = {header.series: file.name for file, header in zip(files, headers)}
        some = ", ".join(f"{n} files like {named[uid]}" for uid, n in counts.most_common(3))
        more = ", ..." if len(counts) > 3 else ""
        raise BadFile(
            f"{len(counts)} series in one folder ({some}{more}); give each its own folder"
        )
    first = headers[0]
    for file, header in zip(files, headers):
        _check_same(f"{files[0].name} and {file.name}", first, header)
    voxels = len(files) * first.size[0] * first.size[1]
    if voxels > MAX_VOXELS:
        raise BadFile(f"{voxels >> 20} million voxels; at most {MAX_VOXELS >> 20} are read")


def _check_same(both: str, a: readers.SliceHeader, b: readers.SliceHeader) -> None:
    """Slices of one volume differ in their position only."""
    if a.size != b.size:
        raise BadFile(
            f"slices of different size: {both} have {size_text(a.size)} and {size_text(b.size)} px"
        )
    if not np.allclose(a.spacing, b.spacing, rtol=1e-3):
        raise BadFile(
            f"slices of different pixel spacing: {both} have {a.spacing} and {b.spacing} mm"
        )
    if not np.allclose(a.directions, b.directions, atol=1e-2):
        raise BadFile(
            f"slices in different directions: {both} have ImageOrientationPatient "
            f"{a.directions.ravel().tolist()} and {b.directions.ravel().tolist()}; leave out scouts"
        )


def _affine(header: readers.SliceHeader, step: np.ndarray, position: np.ndarray) -> np.ndarray:
    """float [4, 4]: (column, row, slice, 1) -> mm to the right, front and head.

    Args:
      header: of any slice.
      step: [3], mm in DICOM's frame from a slice to the next.
      position: [3], of the first slice.
    """
    row, column = header.directions
    columns = np.stack([row * header.spacing[1], column * header.spacing[0], step], axis=1)
    affine = np.eye(4)
    # The patient's frame of DICOM runs to the left and back, nibabel's to the right and front.
    affine[:3] = np.diag([-1.0, -1.0, 1.0]) @ np.column_stack([columns, position])
    return affine


def _step(files: list[Path], depths: np.ndarray) -> float:
    """mm between neighbours, sorted; refused where it is uneven."""
    steps = np.diff(depths)
    closest = int(np.argmin(steps))
    if steps[closest] < 1e-2:
        raise BadFile(
            f"two slices at one place ({depths[closest]:.2f} mm): {files[closest].name} and "
            f"{files[closest + 1].name}; leave one"
        )
    step = float(np.median(steps))
    widest = int(np.argmax(steps))
    if steps[widest] > _GAP * step:
        raise BadFile(
            f"a slice is missing between {files[widest].name} and {files[widest + 1].name} "
            f"({steps[widest]:.2f} mm apart, the others {step:.2f} mm); export the whole series"
        )
    if steps[closest] < _OVERLAP * step:
        raise BadFile(
            f"uneven slices: {files[closest].name} and {files[closest + 1].name} are "
            f"{steps[closest]:.2f} mm apart, the others {step:.2f} mm; give one reconstruction"
        )
    return step


def folders_in(folder: Path) -> str:
    """For a message: the folders in a folder without files; '' where there are none."""
    inner = sorted(f.name for f in folder.iterdir() if f.is_dir())
    return f", which has folders in it ({', '.join(inner[:3])}, ...)" if inner else ""
