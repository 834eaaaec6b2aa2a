"""Volumes and masks from NIfTI files."""

import contextlib
import io
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import nibabel
import numpy as np
from nibabel import orientations
from nibabel.spatialimages import HeaderDataError

from cxr_jax.data.file_errors import BadFile, kind_of, naming
from cxr_jax.data.volumes import inflate
from cxr_jax.data.volumes.base import (
    MAX_VOXELS,
    ONE_SLICE,
    Outline,
    Volume,
    check_shape,
    size_text,
)
from cxr_jax.data.volumes.orientation import file_order, oriented, voxel_matrix

MAX_BYTES = 2**31  # of stored values in a file
_MAX_OFFSET = 2**24  # bytes of NIfTI extensions before the values
_SLAB = 2**22  # voxels converted at once
# What a volume may take in memory: so much always, else in proportion to its compressed file. A
# deflated file may become a thousand times as large; a CT becomes three times.
_MAX_SMALL, _MAX_INFLATING = 2**29, 32
_APART = 10.0  # mm: a mask of other axes that begins further from its volume is not its mask
_HEADERS = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
_NO_AXES = (
    "the header does not say where the axes point (qform_code and sform_code are 0, or the matrix "
    "is degenerate), so right and left are unknown; convert the scan from DICOM again"
)


def read_nifti(path: str | Path, *, like: Outline | None = None, as_stored: bool = False) -> Volume:
    """Reads a volume or a mask from a NIfTI-1 or NIfTI-2 file (.nii or .nii.gz, told by content).

    Args:
      path: the file; a fourth axis of length 1 is dropped.
      like: for a mask, that of its volume: the shape must be the same. A mask whose header does
        not say where its axes point has them as the volume's file; one whose axes are others must
        lie at the same place.
      as_stored: the voxels of mask and volume are in the same order in their files, whatever the
        mask's header says.

    Returns:
      The volume; slope and intercept of the header are applied.

    Raises:
      InputError: missing, not NIfTI, truncated or damaged, too large, not three-dimensional, of
        one slice, of a type that is no number, with values that are no numbers, without an
        orientation, or of another shape or at another place than `like`.
    """
    path = Path(path)
    with naming(path):
        with _open(path) as stream:
            header = _read_header(stream)
            lie = _outline(header, like, as_stored=as_stored)
            if like is None:  # a mask is as large as its volume, and shrinks to nothing
                _check_inflating(path, header)
            values = _read_values(stream, header).reshape(header.shape, order="F")
        return Volume(
            values=oriented(values, lie.axes),
            spacing_mm=tuple(header.zooms[axis] for axis in file_order(lie.axes)),
            outline=lie,
        )


def nifti_outline(path: Path) -> Outline:
    """What the header of a NIfTI volume says.

    Raises:
      InputError: as in `read_nifti`; the values are not looked at.
    """
    with naming(path), _open(path) as stream:
        return _outline(_read_header(stream), None, as_stored=False)


class _Header(NamedTuple):
    shape: tuple[int, int, int]  # in the order of the file
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    affine: np.ndarray | None  # None: the file states none
    zooms: tuple[float, float, float]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, inflated as they are read."""
    if not path.exists():
        raise BadFile("no such file; check the path")
    if not path.is_file():  # a pipe or a device would block
        raise BadFile("not a file; expected a NIfTI volume (.nii, .nii.gz)")
    with path.open("rb") as plain:
        compressed = plain.read(2) == inflate.MAGIC
    with io.BufferedReader(inflate.Inflated(path)) if compressed else path.open("rb") as stream:
        yield stream


def _read_header(stream: BinaryIO) -> _Header:
    kind, order, block = _read_block(stream)
    try:
        # Not `from_fileobj`, which would read the extensions, of any size, into memory.
        header = kind(block, endianness=order, check=False)
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
        stated = max(int(header["qform_code"]), int(header["sform_code"])) > 0
        affine = header.get_best_affine() if stated else None
    except (HeaderDataError, ValueError, KeyError, np.linalg.LinAlgError) as error:
        raise BadFile(
            f"the NIfTI header makes no sense ({kind_of(error)}); convert the scan again"
        ) from error
    sides = _sides(header)
    _check_values(sides, dtype)
    offset = float(header["vox_offset"])
    if not kind.sizeof_hdr <= offset <= _MAX_OFFSET:  # false for NaN too
        raise BadFile(f"the header says that the values begin at byte {offset:g}; convert it again")
    return _Header(
        shape=sides,
        dtype=dtype,
        offset=int(offset),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        affine=affine,
        zooms=tuple(
            np.abs(header["pixdim"][1:4]).tolist()
            if affine is None
            else np.linalg.norm(affine[:3, :3], axis=0).tolist()
        ),
    )


def _read_block(stream: BinaryIO) -> tuple[type[nibabel.Nifti1Header], str, bytes]:
    """NIfTI-1 or NIfTI-2, '<' or '>' for its byte order, and the bytes of the header."""
    block = stream.read(4)
    # The header's first field is its own size; whichever order makes it one is the file's.
    found = [
        (order, _HEADERS[size])
        for order in "<>"
        if len(block) == 4 and (size := struct.unpack(f"{order}i", block)[0]) in _HEADERS
    ]
    if not found:
        dicom = len(block) == 4 and stream.read(128)[124:] == b"DICM"
        raise BadFile(
            "a DICOM file; give the folder that its whole series lies in"
            if dicom
            else "not a NIfTI file; expected a volume as .nii or .nii.gz"
        )
    order, kind = found[0]
    block += stream.read(kind.sizeof_hdr - 4)
    if len(block) < kind.sizeof_hdr:
        raise BadFile("the file is truncated inside its header; copy it again")
    return kind, order, block


def _sides(header: nibabel.Nifti1Header) -> tuple[int, int, int]:
    """Voxels along each axis of the file, of a header that makes sense."""
    if bytes(header["magic"].item())[:2] != b"n+":
        raise BadFile(
            "the header of a .hdr/.img pair, or no NIfTI; save the volume as one .nii file"
        )
    count = int(header["dim"][0])
    if not 1 <= count <= 7 or np.isinf([header["scl_slope"], header["scl_inter"]]).any():
        raise BadFile(
            f"the NIfTI header makes no sense ({count} dimensions, slope {header['scl_slope']:g}, "
            f"intercept {header['scl_inter']:g}); convert the scan again"
        )
    sides = [int(side) for side in header["dim"][1 : count + 1]]
    while len(sides) > 3 and sides[-1] == 1:
        sides.pop()
    if len(sides) == 2 and min(sides) > 0:
        raise BadFile(f"the picture has two dimensions ({size_text(sides)}); {ONE_SLICE}")
    if len(sides) != 3:
        raise BadFile(
            f"the file has {len(sides)} dimensions ({size_text(sides)}); a volume has three: save "
            "one phase or channel alone"
        )
    if min(sides) < 1:
        raise BadFile(f"the header says {size_text(sides)} voxels; convert the scan again")
    return tuple(sides)


def _check_values(sides: tuple[int, int, int], dtype: np.dtype) -> None:
    """They are numbers, and not too many."""
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise BadFile(f"values of type {dtype}; expected integers or floating-point numbers")
    voxels = sides[0] * sides[1] * sides[2]
    if voxels > MAX_VOXELS or voxels * dtype.itemsize > MAX_BYTES:
        raise BadFile(
            f"{size_text(sides)} values of {dtype.itemsize} bytes are over the limit of "
            f"{MAX_VOXELS >> 20} million voxels or {MAX_BYTES >> 20} MiB; cut the volume"
        )


def _check_inflating(path: Path, header: _Header) -> None:
    """Refuses a volume that is large where its file is small."""
    needed = math.prod(header.shape) * _kept_type(header).itemsize
    if needed > max(_MAX_SMALL, _MAX_INFLATING * path.stat().st_size):
        raise BadFile(
            f"its header says {size_text(header.shape)} voxels, {needed >> 20} MiB, of a file of "
            f"{path.stat().st_size >> 10} KiB; no volume shrinks so much: convert the scan again"
        )


def _kept_type(header: _Header) -> np.dtype:
    """Integers of 8 or 16 bits without scaling stay; all else becomes float32."""
    plain = (header.slope, header.intercept) == (1.0, 0.0)
    if plain and header.dtype.kind in "iu" and header.dtype.itemsize <= 2:
        return header.dtype.newbyteorder("=")
    return np.dtype(np.float32)


def _read_values(stream: BinaryIO, header: _Header) -> np.ndarray:
    """The values, one-dimensional; stored ones are never all in memory beside them."""
    count = math.prod(header.shape)
    size = count * header.dtype.itemsize
    plain = not isinstance(getattr(stream, "raw", None), inflate.Inflated)
    if plain:
        there = os.fstat(stream.fileno()).st_size - header.offset
        if there < size:
            raise BadFile(_short(there, size))
    left = header.offset - stream.tell()
    while left > 0 and (skipped := len(stream.read(min(left, 2**20)))):
        left -= skipped
    values = np.empty(count, _kept_type(header))
    for start in range(0, count, _SLAB):
        stored = np.empty(min(_SLAB, count - start), header.dtype)
        filled = stream.readinto(stored.view(np.uint8))
        if filled < stored.nbytes:
            raise BadFile(_short(start * header.dtype.itemsize + filled, size))
        _convert(stored, values[start : start + _SLAB], header, start)
    # At the end of a .gz its checksum is compared.
    if not plain and len(stream.read(2**20)) == 2**20:
        raise BadFile("the file goes on far behind its values; it is damaged: copy it again")
    return values


def _short(there: int, size: int) -> str:
    return f"the file is truncated ({max(there, 0)} of {size} bytes of values); copy it again"


def _convert(stored: np.ndarray, values: np.ndarray, header: _Header, start: int) -> None:
    """Stored values [n] -> `values` [n], of which the first is the file's number `start`."""
    if (header.slope, header.intercept) != (1.0, 0.0):
        stored = stored * np.float64(header.slope) + header.intercept
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        values[:] = stored
    wrong = np.flatnonzero(~np.isfinite(values)) if values.dtype.kind == "f" else ()
    if len(wrong):
        at = np.unravel_index(start + wrong[0], header.shape, order="F")
        raise BadFile(
            f"the value at voxel {tuple(int(i) for i in at)} (counted from 0 in the file) "
            "is not a number; replace such values, e.g. by -1024 HU, and save it again"
        )


def _axes(header: _Header) -> np.ndarray | None:
    """nibabel's orientation of the file's axes; None where the header does not say it."""
    affine = header.affine
    if affine is None or not np.isfinite(affine).all():
        return None
    axes = orientations.io_orientation(affine)
    return None if np.isnan(axes).any() else axes.astype(int)


def _outline(header: _Header, like: Outline | None, *, as_stored: bool) -> Outline:
    stated = axes = _axes(header)
    if like is not None and like.axes is not None and (as_stored or stated is None):
        axes = like.axes
    if axes is None:
        raise BadFile(_NO_AXES)
    shape = tuple(np.array(header.shape)[file_order(axes)].tolist())
    check_shape(shape)
    if like is not None and shape != like.shape:
        raise BadFile(
            f"the mask is {size_text(shape)} (slices x rows x columns), its volume "
            f"{size_text(like.shape)}; draw it on the volume's own grid"
        )
    matrix = None if stated is None else voxel_matrix(header.affine, axes, header.shape)
    turned = like is not None and not np.array_equal(axes, like.axes)
    if turned and like.matrix is not None and _distance(matrix, like.matrix) > _APART:
        raise BadFile(
            f"the mask's axes are not its volume's, and its first voxel is at {_mm(matrix)} mm, "
            f"that of its volume at {_mm(like.matrix)} mm; save the mask with the volume's header"
        )
    return Outline(shape, _numbers(axes, shape[0]), axes, matrix)


def _distance(matrix: np.ndarray, other: np.ndarray) -> float:
    """mm between the first voxels of two volumes."""
    return float(np.linalg.norm((matrix - other)[:3, 3]))


def _mm(matrix: np.ndarray) -> str:
    return f"({', '.join(f'{number:.0f}' for number in matrix[:3, 3])})"


def _numbers(axes: np.ndarray, slices: int) -> np.ndarray:
    """The number of each slice in the order of the file, from 1."""
    ascending = axes[file_order(axes)[0], 1] > 0
    numbers = np.arange(1, slices + 1)
    return numbers if ascending else numbers[::-1].copy()
