"""CT volumes from files: NIfTI and DICOM series to Hounsfield units in one orientation.

A volume comes out as [S, H, W]:

- S from the feet to the head: slice k + 1 lies above slice k;
- H from front to back: the spine is at the bottom of a slice, the breastbone at the top;
- W from the patient's right to the left: the patient's right is on the image's left.

Axes are exchanged and turned round by what the header says, to the nearest axis; nothing is
resampled, so a slice of a tilted gantry stays tilted. A header that does not say where the axes
point is refused: right and left would be a guess.

Files are hostile, as in `readers`: sizes are checked from the header before memory is asked for,
no more is inflated from a .gz than the header announces, and every mistake of a file is one
`InputError` that names it.
"""

import contextlib
import gzip
import os
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import nibabel
import numpy as np
from nibabel import orientations
from nibabel.spatialimages import HeaderDataError

from cxr_jax.data import readers, zones
from cxr_jax.errors import InputError

MAX_SLICES = 2000
MAX_SIDE = 4096  # pixels of a slice's side
MAX_VOXELS = 2**29  # 2000 slices of 512 x 512 are 2^28.97
MAX_BYTES = 2**31  # of stored values in a file
_MAX_OFFSET = 2**24  # bytes of NIfTI extensions before the values
_SLAB = 2**22  # voxels converted at once
_GZIP = b"\x1f\x8b"
_ONE_SLICE = "one slice is no volume; export the whole series"
# Of the step between slices: more than this many steps, and a slice is missing in between.
_GAP, _OVERLAP = 1.5, 0.67
_APART = 10.0  # mm: a mask of other axes that begins further from its volume is not its mask
_HEADERS = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}

_HIGHEST_AIR = -200.0  # HU; a chest holds air
LUNG_WINDOW = (-600.0, 1500.0)  # centre and width in HU


class Volume(NamedTuple):
    """A volume in the orientation of the module's docstring.

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
      shape: (S, H, W) in the orientation of the module's docstring.
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


class _Bad(Exception):
    """What is wrong with a file; becomes an InputError where the path is known."""


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


def outline(path: str | Path) -> Outline:
    """Shape and slice numbers of a NIfTI file or of a folder with a DICOM series.

    Raises:
      InputError: see `read_nifti` and `read_dicom_series`; only headers are looked at.
    """
    path = Path(path)
    if path.is_dir():
        return _series(path).outline()
    with _naming(path), _open(path) as stream:
        return _outline(_read_header(stream), None, as_stored=False)


def read(path: str | Path) -> Volume:
    """Reads a NIfTI file, or a folder with a DICOM series.

    Raises:
      InputError: see `read_nifti` and `read_dicom_series`.
    """
    path = Path(path)
    return read_dicom_series(path) if path.is_dir() else read_nifti(path)


def volumes_in(paths: Iterable[str | Path]) -> list[Path]:
    """Expands folders to the volumes in them.

    Args:
      paths: NIfTI files; folders with a DICOM series; folders with NIfTI files.

    Raises:
      InputError: a path that does not exist, or a folder without a file.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; check the path")
        files = sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else []
        if path.is_dir() and not files:
            raise InputError(
                f"{path}: no file in this folder{_folders_in(path)}; give a folder with one series"
            )
        scans = [f for f in files if f.name.lower().endswith((".nii", ".nii.gz"))]
        found += scans or [path]
    return list(dict.fromkeys(found))


def _folders_in(folder: Path) -> str:
    inner = sorted(f.name for f in folder.iterdir() if f.is_dir())
    return f", which has folders in it ({', '.join(inner[:3])}, ...)" if inner else ""


def write_mask(path: str | Path, mask: np.ndarray, volume: Volume) -> None:
    """Writes a mask uint8 [S, H, W] of `volume` as NIfTI, in the volume's place.

    That of a NIfTI file has the file's own voxels in the file's own order. Where the volume's
    header does not say where it lies, its first voxel is put at 0, 0, 0.
    """
    slices, rows, columns = volume.spacing_mm
    # Of [W, H, S], the usual order: columns run to the left, rows to the back, slices to the head.
    affine = np.diag([-columns, -rows, slices, 1.0])
    if volume.outline.matrix is not None:
        affine = volume.outline.matrix[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(np.ascontiguousarray(mask.transpose(2, 1, 0)), affine)
    if volume.outline.axes is not None:
        now = orientations.io_orientation(affine)
        turn = orientations.ornt_transform(now, volume.outline.axes)
        image = image.as_reoriented(turn)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)


# NIfTI

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
    with _naming(path):
        with _open(path) as stream:
            header = _read_header(stream)
            lie = _outline(header, like, as_stored=as_stored)
            stored = _read_values(stream, header)
        values = _scaled(stored, header).reshape(header.shape, order="F")
        return Volume(
            values=_turned(values, lie.axes),
            spacing_mm=tuple(header.zooms[axis] for axis in _order(lie.axes)),
            outline=lie,
        )


class _Header(NamedTuple):
    shape: tuple[int, int, int]  # in the order of the file
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    affine: np.ndarray | None  # None: the file states none
    zooms: tuple[float, float, float]


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns what goes wrong with the file into an InputError that names it."""
    try:
        yield
    except _Bad as error:
        raise InputError(f"{path}: {error}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        # Before OSError, of which BadGzipFile is one.
        reason = " ".join(str(error).split())[:100]
        raise InputError(
            f"{path}: the compressed file is truncated or damaged ({reason}); copy it again"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


@contextlib.contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, inflated as they are read."""
    if not path.exists():
        raise _Bad("no such file; check the path")
    if not path.is_file():  # a pipe or a device would block
        raise _Bad("not a file; expected a NIfTI volume (.nii, .nii.gz)")
    with path.open("rb") as plain:
        magic = plain.read(2)
        plain.seek(0)
        if magic != _GZIP:
            yield plain
            return
        with gzip.GzipFile(fileobj=plain) as inflated:
            yield inflated


def _read_header(stream: BinaryIO) -> _Header:
    block = stream.read(4)
    # The header's first field is its own size; whichever order makes it one is the file's.
    found = [
        (order, _HEADERS[size])
        for order in "<>"
        if len(block) == 4 and (size := struct.unpack(f"{order}i", block)[0]) in _HEADERS
    ]
    if not found:
        dicom = len(block) == 4 and stream.read(128)[124:] == b"DICM"
        raise _Bad(
            "a DICOM file; give the folder that its whole series lies in"
            if dicom
            else "not a NIfTI file; expected a volume as .nii or .nii.gz"
        )
    order, kind = found[0]
    block += stream.read(kind.sizeof_hdr - 4)
    if len(block) < kind.sizeof_hdr:
        raise _Bad("the file is truncated inside its header; copy it again")
    try:
        # Not `from_fileobj`, which would read the extensions, of any size, into memory.
        header = kind(block, endianness=order, check=False)
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
        stated = max(int(header["qform_code"]), int(header["sform_code"])) > 0
        affine = header.get_best_affine() if stated else None
    except (HeaderDataError, ValueError, KeyError, np.linalg.LinAlgError) as error:
        reason = " ".join(str(error).split())[:100]
        raise _Bad(f"the NIfTI header makes no sense ({reason}); convert the scan again") from error
    if bytes(header["magic"].item())[:2] != b"n+":
        raise _Bad("the header of a .hdr/.img pair, or no NIfTI; save the volume as one .nii file")
    count = int(header["dim"][0])
    if not 1 <= count <= 7 or np.isinf([header["scl_slope"], header["scl_inter"]]).any():
        raise _Bad(
            f"the NIfTI header makes no sense ({count} dimensions, slope {header['scl_slope']:g}, "
            f"intercept {header['scl_inter']:g}); convert the scan again"
        )
    sides = [int(side) for side in header["dim"][1 : count + 1]]
    while len(sides) > 3 and sides[-1] == 1:
        sides.pop()
    if len(sides) == 2 and min(sides) > 0:
        raise _Bad(f"the picture has two dimensions ({_by(sides)}); {_ONE_SLICE}")
    if len(sides) != 3:
        raise _Bad(
            f"the file has {len(sides)} dimensions ({_by(sides)}); a volume has three: save one "
            "phase or channel alone"
        )
    if min(sides) < 1:
        raise _Bad(f"the header says {_by(sides)} voxels; convert the scan again")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise _Bad(f"values of type {dtype}; expected integers or floating-point numbers")
    voxels = sides[0] * sides[1] * sides[2]
    if voxels > MAX_VOXELS or voxels * dtype.itemsize > MAX_BYTES:
        raise _Bad(
            f"{_by(sides)} values of {dtype.itemsize} bytes are over the limit of "
            f"{MAX_VOXELS >> 20} million voxels or {MAX_BYTES >> 20} MiB; cut the volume"
        )
    offset = float(header["vox_offset"])
    if not kind.sizeof_hdr <= offset <= _MAX_OFFSET:  # false for NaN too
        raise _Bad(f"the header says that the values begin at byte {offset:g}; convert it again")
    slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    return _Header(
        shape=tuple(sides),
        dtype=dtype,
        offset=int(offset),
        slope=float(slope),
        intercept=float(intercept),
        affine=affine,
        zooms=tuple(
            np.abs(header["pixdim"][1:4]).tolist()
            if affine is None
            else np.linalg.norm(affine[:3, :3], axis=0).tolist()
        ),
    )


def _read_values(stream: BinaryIO, header: _Header) -> np.ndarray:
    """The stored values, one-dimensional, in the machine's byte order."""
    count = header.shape[0] * header.shape[1] * header.shape[2]
    size = count * header.dtype.itemsize
    if not isinstance(stream, gzip.GzipFile):
        there = os.fstat(stream.fileno()).st_size - header.offset
        if there < size:
            raise _Bad(_short(there, size))
    left = header.offset - stream.tell()
    while left > 0 and (skipped := len(stream.read(min(left, 2**20)))):
        left -= skipped
    values = np.empty(count, header.dtype)
    view, filled = values.view(np.uint8), 0
    while filled < size and (read := stream.readinto(view[filled : filled + 2**20])):
        filled += read
    if filled < size:
        raise _Bad(_short(filled, size))
    # At the end of a .gz its checksum is compared.
    if isinstance(stream, gzip.GzipFile) and len(stream.read(2**20)) == 2**20:
        raise _Bad("the file goes on far behind its values; it is damaged: copy it again")
    return values.astype(header.dtype.newbyteorder("="), copy=False)


def _short(there: int, size: int) -> str:
    return f"the file is truncated ({max(there, 0)} of {size} bytes of values); copy it again"


def _scaled(stored: np.ndarray, header: _Header) -> np.ndarray:
    """Stored values [n] -> values [n], without a second large copy in double precision."""
    plain = (header.slope, header.intercept) == (1.0, 0.0)
    if plain and stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2:
        return stored
    values = np.empty(stored.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        for start in range(0, len(stored), _SLAB):
            slab = stored[start : start + _SLAB]
            if not plain:
                slab = slab * np.float64(header.slope) + header.intercept
            values[start : start + _SLAB] = slab
            wrong = np.flatnonzero(~np.isfinite(values[start : start + _SLAB]))
            if wrong.size:
                at = np.unravel_index(start + wrong[0], header.shape, order="F")
                raise _Bad(
                    f"the value at voxel {tuple(int(i) for i in at)} (counted from 0 in the file) "
                    "is not a number; replace such values, e.g. by -1024 HU, and save it again"
                )
    return values


# Orientation


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
        raise _Bad(_NO_AXES)
    shape = tuple(np.array(header.shape)[_order(axes)].tolist())
    _check_shape(shape)
    if like is not None and shape != like.shape:
        raise _Bad(
            f"the mask is {_by(shape)} (slices x rows x columns), its volume {_by(like.shape)}; "
            "draw it on the volume's own grid"
        )
    matrix = None if stated is None else _matrix(header.affine, axes, header.shape)
    turned = like is not None and not np.array_equal(axes, like.axes)
    if (
        turned
        and like.matrix is not None
        and np.linalg.norm((matrix - like.matrix)[:3, 3]) > _APART
    ):
        raise _Bad(
            f"the mask's axes are not its volume's, and its first voxel is at {_mm(matrix)} mm, "
            f"that of its volume at {_mm(like.matrix)} mm; save the mask with the volume's header"
        )
    return Outline(shape, _numbers(axes, shape[0]), axes, matrix)


def _matrix(affine: np.ndarray, axes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`Outline.matrix`, from the matrix of the file's own order."""
    matrix = np.array(affine, np.float64)
    for axis, ((world, flip), side) in enumerate(zip(axes, shape)):
        # Ours begin at the right, the front and the feet: where x and y end and z begins.
        if (world == 2) != (flip > 0):
            matrix[:, 3] += matrix[:, axis] * (side - 1)
            matrix[:, axis] *= -1
    return matrix[:, [*_order(axes), 3]]


def _mm(matrix: np.ndarray) -> str:
    return f"({', '.join(f'{number:.0f}' for number in matrix[:3, 3])})"


def _order(axes: np.ndarray) -> list[int]:
    """Which of the file's axes are S, H and W."""
    return [int(np.flatnonzero(axes[:, 0] == world)[0]) for world in (2, 1, 0)]


def _turned(values: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """The file's array -> a view [S, H, W] of it as the module's docstring says."""
    # Canonical is right, front, head: x and y run against W and H.
    canonical = orientations.apply_orientation(values, axes)
    return canonical.transpose(2, 1, 0)[:, ::-1, ::-1]


def _numbers(axes: np.ndarray, slices: int) -> np.ndarray:
    """The number of each slice in the order of the file, from 1."""
    ascending = axes[_order(axes)[0], 1] > 0
    numbers = np.arange(1, slices + 1)
    return numbers if ascending else numbers[::-1].copy()


def _check_shape(shape: tuple[int, ...]) -> None:
    slices, *sides = shape
    if slices == 1:
        raise _Bad(f"the volume is {_by(shape)} (slices x rows x columns): {_ONE_SLICE}")
    if slices > MAX_SLICES or max(sides) > MAX_SIDE:
        raise _Bad(
            f"{_by(shape)} (slices x rows x columns); at most {MAX_SLICES} slices of "
            f"{MAX_SIDE}x{MAX_SIDE} px are read"
        )
    if min(sides) < 2:
        raise _Bad(f"{_by(shape)} (slices x rows x columns); a slice has at least 2x2 px")


def _by(sides: Any) -> str:
    return "x".join(str(side) for side in sides)


# DICOM series


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
    order = _order(series.axes)
    return Volume(
        values=_turned(values.transpose(2, 1, 0), series.axes),
        spacing_mm=tuple(float(zooms[axis]) for axis in order),
        outline=series.outline(),
    )


class _Series(NamedTuple):
    """The slices of a series, sorted along their normal."""

    files: list[Path]
    headers: list[readers.SliceHeader]
    step: float  # mm
    axes: np.ndarray  # of the array [W, H, S]
    matrix: np.ndarray  # as `Outline`'s

    def outline(self) -> Outline:
        shape = (len(self.files), *self.headers[0].size)
        numbers = [header.number for header in self.headers]
        if None in numbers or len(set(numbers)) < len(numbers):
            return Outline(shape, None, None, self.matrix)
        ranks = np.argsort(np.argsort(numbers)) + 1
        ascending = self.axes[2, 1] > 0
        return Outline(shape, ranks if ascending else ranks[::-1].copy(), None, self.matrix)


def _series(folder: Path) -> _Series:
    with _naming(folder):
        if not folder.is_dir():
            raise _Bad("no such folder; expected one with the DICOM files of a series")
        files = sorted(file for file in folder.iterdir() if _is_slice(file))
        if not files:
            raise _Bad(
                f"no DICOM file in this folder{_folders_in(folder)}; expected the slices of one CT "
                "series"
            )
        if len(files) == 1:
            raise _Bad(f"the folder has one DICOM file: {_ONE_SLICE}")
        if len(files) > MAX_SLICES:
            raise _Bad(f"{len(files)} DICOM files; at most {MAX_SLICES} slices are read")
        headers = [readers.read_slice_header(file) for file in files]
        counts = Counter(header.series for header in headers)
        if len(counts) > 1:
            some = ", ".join(f"{uid or 'none'} ({n} files)" for uid, n in counts.most_common(3))
            raise _Bad(
                f"{len(counts)} series in one folder (SeriesInstanceUID {some}"
                f"{', ...' if len(counts) > 3 else ''}); give each its own folder"
            )
        first = headers[0]
        for file, header in zip(files, headers):
            _check_same(files[0], first, file, header)
        voxels = len(files) * first.size[0] * first.size[1]
        if voxels > MAX_VOXELS:
            raise _Bad(f"{voxels >> 20} million voxels; at most {MAX_VOXELS >> 20} are read")
        normal = np.cross(*first.directions)
        depths = np.array([header.position @ normal for header in headers])
        order = np.argsort(depths, kind="stable")
        files, headers = [files[i] for i in order], [headers[i] for i in order]
        step = _step(files, depths[order])
        _check_shape((len(files), *first.size))
        # The patient's frame of DICOM runs to the left and back, nibabel's to the right and front.
        columns = np.stack(
            [first.directions[0] * first.spacing[1], first.directions[1] * first.spacing[0]]
            + [normal * step],
            axis=1,
        )
        affine = np.eye(4)
        affine[:3] = np.diag([-1.0, -1.0, 1.0]) @ np.column_stack([columns, headers[0].position])
        axes = orientations.io_orientation(affine).astype(int)
        if axes[2, 0] != 2:
            raise _Bad(
                f"the slices are not axial (their normal is {np.round(normal, 2).tolist()}); give "
                "the axial series"
            )
        matrix = _matrix(affine, axes, (first.size[1], first.size[0], len(files)))
        return _Series(files, headers, step, axes, matrix)


def _is_slice(file: Path) -> bool:
    if file.name.startswith(".") or file.name.upper() == "DICOMDIR" or not file.is_file():
        return False
    if file.suffix.lower() in (".dcm", ".dicom"):
        return True
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _check_same(first: Path, a: readers.SliceHeader, other: Path, b: readers.SliceHeader) -> None:
    """Slices of one volume differ in their position only."""
    both = f"{first.name} and {other.name}"
    if a.size != b.size:
        raise _Bad(f"slices of different size: {both} have {_by(a.size)} and {_by(b.size)} px")
    if not np.allclose(a.spacing, b.spacing, rtol=1e-3):
        raise _Bad(f"slices of different pixel spacing: {both} have {a.spacing} and {b.spacing} mm")
    if not np.allclose(a.directions, b.directions, atol=1e-2):
        raise _Bad(
            f"slices in different directions: {both} have ImageOrientationPatient "
            f"{a.directions.ravel().tolist()} and {b.directions.ravel().tolist()}; leave out scouts"
        )


def _step(files: list[Path], depths: np.ndarray) -> float:
    """mm between neighbours, sorted; refused where it is uneven."""
    steps = np.diff(depths)
    closest = int(np.argmin(steps))
    if steps[closest] < 1e-2:
        raise _Bad(
            f"two slices at one place ({depths[closest]:.2f} mm): {files[closest].name} and "
            f"{files[closest + 1].name}; leave one"
        )
    step = float(np.median(steps))
    widest = int(np.argmax(steps))
    if steps[widest] > _GAP * step:
        raise _Bad(
            f"a slice is missing between {files[widest].name} and {files[widest + 1].name} "
            f"({steps[widest]:.2f} mm apart, the others {step:.2f} mm); export the whole series"
        )
    if steps[closest] < _OVERLAP * step:
        raise _Bad(
            f"uneven slices: {files[closest].name} and {files[closest + 1].name} are "
            f"{steps[closest]:.2f} mm apart, the others {step:.2f} mm; give one reconstruction"
        )
    return step


# What every source of volumes needs


def both_lungs(mask: np.ndarray) -> np.ndarray:
    """Labels the lungs of one axial slice; every pixel of the mask is kept.

    `zones.split_lungs` finds the two lungs; on a slice a lung often has further parts, which it
    leaves out: each goes to the lung whose mean column is nearer, or to the image half it is in
    where there is one lung.

    Args:
      mask: [H, W], nonzero inside the lungs.

    Returns:
      uint8 [H, W]: 0 outside, 1 right lung (image left), 2 left lung.
    """
    labels = zones.split_lungs(mask)
    rest = (mask != 0) & (labels == 0)
    if rest.any():
        columns = [np.nonzero(labels == lung)[1] for lung in (zones.RIGHT, zones.LEFT)]
        known = [float(column.mean()) for column in columns if column.size]
        middle = float(np.mean(known)) if len(known) == 2 else (mask.shape[1] - 1) / 2
        _, parts, _, centres = zones.components(rest)
        side = np.where(centres[:, 0] < middle, zones.RIGHT, zones.LEFT).astype(np.uint8)
        labels[rest] = side[parts[rest] - 1]
    return labels


def sided_lungs(masks: np.ndarray) -> np.ndarray:
    """Labels the lungs of a volume: [S, H, W] of 0 and labels -> uint8, 1 right and 2 left lung.

    Of exactly two labels each is a lung, and the one further left in the image is the right one,
    whatever their numbers are. Any other mask is split slice by slice (`both_lungs`).
    """
    columns = np.arange(masks.shape[2])
    present = np.zeros(256, bool)
    for mask in masks:
        present[np.unique(mask)] = True
    labels = np.flatnonzero(present[1:]) + 1
    lungs = np.zeros(masks.shape, np.uint8)
    if len(labels) != 2:
        for row, mask in enumerate(masks):
            lungs[row] = both_lungs(mask)
        return lungs
    means = []
    for label in labels:
        per_column = sum((mask == label).sum(0) for mask in masks)
        means.append(float(per_column @ columns / per_column.sum()))
    right, left = labels[np.argsort(means, kind="stable")]
    lungs[masks == right], lungs[masks == left] = zones.RIGHT, zones.LEFT
    return lungs


def read_mask(
    path: str | Path, like: Outline, *, most: int = 255, as_stored: bool = False
) -> np.ndarray:
    """Reads a mask of small whole numbers.

    Args:
      path: a NIfTI file.
      like: of its volume.
      most: the highest label.
      as_stored: as in `read_nifti`.

    Returns:
      uint8 [S, H, W], values 0 .. `most`.

    Raises:
      InputError: as in `read_nifti`; or a value that is no label.
    """
    values = read_nifti(path, like=like, as_stored=as_stored).values
    for row, mask in enumerate(values):
        wrong = (mask < 0) | (mask > most) | (mask != np.rint(mask))
        if wrong.any():
            raise InputError(
                f"{path}: the value {mask[wrong][0]:g} in slice {row + 1} from the feet; a mask "
                f"has whole numbers 0..{most}"
            )
    return values.astype(np.uint8, copy=False)


class Latest:
    """The latest of what `read` gave, so that a volume is read once for all its slices.

    What was read before is let go first: there is never more than one.
    """

    def __init__(self, read: Callable[[Any], Any]):
        self._read, self._key, self._value = read, None, None

    def __call__(self, key: Hashable) -> Any:
        if self._key is None or key != self._key:
            self._key = self._value = None
            self._value = self._read(key)
            self._key = key
        return self._value
