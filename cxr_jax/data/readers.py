"""Films from files: PNG, JPEG and DICOM to one grey picture, and mistakes to one clear line.

A film comes out as uint8 [H, W] as the reader sees it: air dark, bone light. What is not 8 bit grey
already is made so in one way, without options:

- Colour becomes luminance (0.299 R + 0.587 G + 0.114 B). Alpha and transparency are dropped.
- The EXIF orientation, where a file has one, is applied, as every viewer does.
- A 16-bit PNG carries no display window: its lowest..highest value is mapped to 0..255.
- DICOM: stored values -> modality LUT or rescale slope and intercept -> VOI LUT, else the first
  window, else lowest..highest (8-bit films that state none of these are taken as they are)
  -> padding black -> MONOCHROME1 inverted, last.
- A DICOM film that says it was stored mirrored (Patient Orientation R\\F) is mirrored back, so
  that the patient's right is on the image's left.

Files are hostile until proven otherwise. The kind is told from the first bytes, never from the
name; the size is read from the header and checked before anything is decoded; a file that ends
early is refused, although decoders like to fill the rest with grey. Every mistake of a file is an
`InputError` that names it.
"""

import contextlib
import io
import itertools
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import generate_frames

from cxr_jax.errors import InputError

MAX_PIXELS = 100_000_000  # a large detector has 15 million
MAX_FILE_BYTES = 512 * 2**20
SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")

_KINDS = "expected a PNG, JPEG or DICOM film"
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_GIF = (b"GIF87a", b"GIF89a")
_BMP = b"BM"
_JSRT_SIDE = 2048  # pixels
_DEFLATED = "1.2.840.10008.1.2.1.99"
_RLE = "1.2.840.10008.1.2.5"
_IMPLICIT_LITTLE, _EXPLICIT_LITTLE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"


class _Bad(Exception):
    """What is wrong with the content; becomes an InputError where the path is known."""


def read_film(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads one film as the reader sees it.

    Args:
        path: a PNG (any depth and colour type), JPEG (any) or DICOM file (one frame; MONOCHROME1,
            MONOCHROME2, RGB or YBR; uncompressed, RLE, JPEG or JPEG 2000. Lossless JPEG and
            JPEG-LS where pydicom finds a decoder for them).
        max_pixels: films of more pixels are refused from their header, before they are decoded.

    Returns:
        uint8 [H, W], air dark. See the module's docstring for the grey scale.

    Raises:
        InputError: the file is missing, no such image, truncated, too large, of one colour only, of
            several frames, or its header makes no sense.
    """
    path = Path(path)
    with _naming(path):
        head = _head(path)
        if head.startswith((_PNG, _JPEG)):
            grey = _read_picture(path.read_bytes(), max_pixels)
            film = _stretch(grey) if grey.dtype == np.uint16 else grey
        elif _is_dicom(head, path):
            film = _read_dicom(path, max_pixels)
        else:
            raise _Bad(f"not an image this program knows; {_KINDS}")
        low, high = int(film.min()), int(film.max())
        if low == high:
            raise _Bad(f"every pixel is {low}, the film is of one colour; export it again")
    return film


def read_mask(
    path: str | Path, shape: tuple[int, int] | None = None, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Reads a mask from a PNG, JPEG, GIF or BMP.

    Masks come as 0/1, as small labels or as 0/255, some with grey edges: where the highest value is
    below 16, everything but 0 is inside; else what is above half of the highest value is.

    Args:
        path: the file.
        shape: (H, W) of its film.
        max_pixels: as in `read_film`.

    Returns:
        uint8 [H, W], 0 or 1. It may be all 0.

    Raises:
        InputError: as in `read_film`, or the mask has another size than `shape`.
    """
    path = Path(path)
    with _naming(path):
        head = _head(path)
        if head.startswith((_PNG, _JPEG)):
            grey = _read_picture(path.read_bytes(), max_pixels)
        elif head.startswith((*_GIF, _BMP)):
            kind = "GIF" if head.startswith(_GIF) else "BMP"
            grey = _read_by_pillow(path.read_bytes(), kind, max_pixels)
        else:
            raise _Bad("not an image this program knows; expected a PNG, JPEG, GIF or BMP mask")
        if shape is not None and grey.shape != tuple(shape):
            raise _Bad(
                f"the mask has {grey.shape[1]}x{grey.shape[0]} px (width x height), its film "
                f"{shape[1]}x{shape[0]}; draw or export it on the film's own pixels"
            )
    highest = int(grey.max())
    return (grey > (0 if highest < 16 else highest / 2)).astype(np.uint8)


def read_jsrt(path: str | Path) -> np.ndarray:
    """Reads a film of the JSRT database as it is distributed (`JPCLN001.IMG`).

    The file is 2048x2048 big-endian 16-bit words and nothing else. A word holds 12 bits and grows
    with the film's blackening, 0 is white: value v is shown as 255 - 255 v / 4095. Some films
    hold a few words just above 4095; they are as black as 4095.

    Args:
        path: the file.

    Returns:
        uint8 [2048, 2048], air dark.

    Raises:
        InputError: missing, not 8388608 bytes, more than a hundredth of its words above 4095 (so
            not big-endian, or no such film), or of one colour only.
    """
    path = Path(path)
    with _naming(path):
        _head(path)
        if (size := path.stat().st_size) != 2 * _JSRT_SIDE**2:
            raise _Bad(
                f"the file has {size} bytes; a raw JSRT film of {_JSRT_SIDE}x{_JSRT_SIDE} px has "
                f"{2 * _JSRT_SIDE**2}: unpack it from the archive again"
            )
        words = np.fromfile(path, ">u2").reshape(_JSRT_SIDE, _JSRT_SIDE)
        over = float(np.mean(words > 4095))
        if over > 0.01:
            raise _Bad(
                f"{over:.0%} of its words are above 4095; a raw JSRT film is big-endian with 12 "
                "bits: unpack it from the archive again"
            )
        if words.min() == words.max():
            raise _Bad(f"every pixel is {words.min()}, the film is of one colour; copy it again")
    shown = np.rint(255.0 - np.arange(4096) * (255.0 / 4095.0)).astype(np.uint8)
    return shown[np.minimum(words, 4095)]


def encode_png(array: np.ndarray) -> bytes:
    """uint8 [H, W] -> an 8-bit grey PNG, lossless."""
    if array.ndim != 2 or array.dtype != np.uint8 or array.size == 0:
        raise ValueError(f"got {array.dtype} {array.shape}; expected a non-empty uint8 [H, W]")
    return cv2.imencode(".png", array)[1].tobytes()


def decode_png(data: bytes) -> np.ndarray:
    """A PNG written by `encode_png` -> uint8 [H, W]; InputError where the bytes are damaged."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if picture is None or picture.ndim != 2 or picture.dtype != np.uint8:
        raise InputError(
            f"a stored picture ({len(data)} bytes) is no 8-bit grey PNG; the prepared data set is "
            "damaged: delete its folder and run cxr_jax.data.prepare again"
        )
    return picture


def films_in(paths: Iterable[str | Path]) -> list[Path]:
    """Expands folders to the films below them.

    Args:
        paths: files, which are taken as they are (`read_film` judges them), and folders, searched
            to any depth for .png, .jpg, .jpeg, .dcm, .dicom and for DICOM files without a suffix
            (a name that ends in the number of a UID counts as such). Hidden files and DICOMDIR
            are passed over.

    Returns:
        The films, sorted, each once.

    Raises:
        InputError: a path that does not exist, or a folder without a film.
    """
    films: set[Path] = set()
    for path in map(Path, paths):
        if not path.is_dir():
            if not path.exists():
                raise InputError(f"{path}: no such file or folder; check the path")
            films.add(path)
            continue
        found = {file for file in path.rglob("*") if _looks_like_a_film(file, path)}
        if not found:
            raise InputError(f"{path}: no film in this folder; looked for {', '.join(SUFFIXES)}")
        films |= found
    return sorted(films)


def _looks_like_a_film(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    if hidden or file.name == "DICOMDIR" or not file.is_file():
        return False
    if file.suffix.lower() in SUFFIXES:
        return True
    if file.suffix and not file.suffix[1:].isdigit():
        return False
    try:
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns what goes wrong with the file into an InputError that names it."""
    try:
        yield
    except _Bad as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _head(path: Path) -> bytes:
    """The first 132 bytes of an ordinary file of bearable size."""
    if not path.exists():
        raise _Bad("no such file; check the path")
    if not path.is_file():  # a folder; or a pipe or device, which would block
        raise _Bad(f"not a file; {_KINDS}")
    size = path.stat().st_size
    if size == 0:
        raise _Bad("the file is empty; copy it again")
    if size > MAX_FILE_BYTES:
        raise _Bad(f"the file has {size >> 20} MiB; at most {MAX_FILE_BYTES >> 20} MiB are read")
    with path.open("rb") as stream:
        return stream.read(132)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise _Bad(f"the header says {width}x{height} px; export the film again")
    if width * height > max_pixels:
        raise _Bad(
            f"{width}x{height} px are over the limit of {max_pixels / 1e6:g} megapixels; "
            "shrink the film first"
        )


def _check_complete(condition: bool) -> None:
    if not condition:
        raise _Bad("the file is truncated; copy or export it again")


def _stretch(grey: np.ndarray) -> np.ndarray:
    """uint16 [H, W] -> uint8 [H, W]: lowest..highest to 0..255."""
    low, high = int(grey.min()), int(grey.max())
    levels = (np.arange(2**16, dtype=np.float64) - low) * (255.0 / max(high - low, 1))
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)[grey]


# PNG and JPEG


def _read_picture(data: bytes, max_pixels: int) -> np.ndarray:
    """PNG or JPEG bytes -> uint8 or uint16 [H, W], checked from end to end before decoding."""
    if data.startswith(_PNG):
        data = _checked_png(data, max_pixels)
    else:
        frame = _jpeg_frame(data)
        _check_size(frame.width, frame.height, max_pixels)
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_GRAYSCALE
    try:
        grey = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise _Bad("the picture cannot be decoded; export it again") from error
    if grey is None or grey.dtype not in (np.uint8, np.uint16):
        raise _Bad("the picture is damaged and cannot be decoded; export it again")
    return grey


_MAX_CHUNKS = 1_000_000


def _checked_png(data: bytes, max_pixels: int) -> bytes:
    """The PNG with nothing but its header, palette, orientation and pixels, all of them intact.

    What is left out (colour profiles, texts, animations, transparency) changes no grey value here
    and is where decompression bombs hide.
    """
    kept, pixels_bytes, raw_bytes = [_PNG], 0, 0
    position = len(_PNG)
    view = memoryview(data)
    for _ in range(_MAX_CHUNKS):
        _check_complete(position + 12 <= len(data))
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        _check_complete(end <= len(data))
        if position == len(_PNG):
            if kind != b"IHDR" or length != 13:
                raise _Bad("the PNG does not begin with its header; export it again")
            width, height, depth, colour = struct.unpack_from(">IIBB", data, position + 8)
            _check_size(width, height, max_pixels)
            samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 4)
            raw_bytes = height * (1 + (width * samples * depth + 7) // 8)
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"eXIf", b"IEND"):
            if (
                zlib.crc32(view[position + 4 : end - 4])
                != struct.unpack_from(">I", data, end - 4)[0]
            ):
                raise _Bad("the PNG is damaged (a checksum does not match); copy it again")
            kept.append(view[position:end])
            pixels_bytes += length if kind == b"IDAT" else 0
        if kind == b"IEND":
            break
        position = end
    else:
        raise _Bad(f"the PNG has more than {_MAX_CHUNKS} chunks; export it again")
    # Deflate never grows data by a tenth; interlacing adds a little. More than that is a bomb.
    if not 0 < pixels_bytes <= 1.5 * raw_bytes + 2**16:
        raise _Bad(f"the PNG has {pixels_bytes} bytes of pixels for {width}x{height} px; damaged")
    return b"".join(kept)


class _Frame(NamedTuple):
    width: int
    height: int
    samples: int


# A marker inside the compressed data: not a stuffed zero, not a restart marker, not padding. Bytes
# below C0 follow FF only in JPEG-LS, where they are data.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
_FILL = re.compile(rb"\xff+")  # a marker may be padded with more of its first byte
_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_MAX_SEGMENTS, _MAX_SCANS = 5000, 200


def _jpeg_frame(data: bytes) -> _Frame:
    """Walks a JPEG from its first to its last marker; its frame header.

    A decoder fills the missing part of a cut file with grey, and many say nothing. The end marker
    is looked for behind the compressed data, because an embedded preview has one of its own.
    """
    frame, scans, position = None, 0, 2
    for _ in range(_MAX_SEGMENTS):
        fill = _FILL.match(data, position)
        if fill is None and position < len(data):
            raise _Bad("the JPEG is damaged (no marker where one must be); export it again")
        _check_complete(fill is not None and fill.end() < len(data))
        position = fill.end() - 1
        marker = data[position + 1]
        if marker == 0xD9:
            if frame is None or scans == 0:
                raise _Bad("the JPEG holds no picture; export it again")
            return frame
        _check_complete(position + 4 <= len(data))
        (length,) = struct.unpack_from(">H", data, position + 2)
        _check_complete(position + 2 + length <= len(data))
        if marker in _FRAME_MARKERS:
            if frame is not None or length < 8:
                raise _Bad("the JPEG is damaged (its frame header); export it again")
            _, height, width, samples = struct.unpack_from(">BHHB", data, position + 4)
            frame = _Frame(width, height, samples)
        position += 2 + length
        if marker == 0xDA:
            scans += 1
            if scans > _MAX_SCANS:  # each scan may cost a pass over all pixels
                raise _Bad(f"the JPEG has more than {_MAX_SCANS} scans; export it again")
            found = _MARKER.search(data, position)
            _check_complete(found is not None)
            position = found.start()
    raise _Bad(f"the JPEG has more than {_MAX_SEGMENTS} segments; export it again")


# GIF and BMP, for masks


def _read_by_pillow(data: bytes, kind: str, max_pixels: int) -> np.ndarray:
    """The one picture of a GIF or BMP -> uint8 [H, W]. OpenCV before 4.11 knows no GIF."""
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as picture:
            _check_size(*picture.size, max_pixels)
            grey = np.asarray(picture.convert("L"))
            if getattr(picture, "is_animated", False):
                raise _Bad(f"the {kind} holds several pictures; a mask is one: export it as one")
    except Image.DecompressionBombError as error:
        raise _Bad(f"the {kind} is over the limit of {max_pixels / 1e6:g} megapixels") from error
    except (OSError, EOFError, SyntaxError, ValueError, IndexError, struct.error) as error:
        reason = " ".join(str(error).split())[:100]
        raise _Bad(f"the {kind} is truncated or damaged ({reason}); copy it again") from error
    return grey


# DICOM


def _is_dicom(head: bytes, path: Path) -> bool:
    """The magic word, or an old file that begins with its first element, named as DICOM."""
    bare = head[:4] in (
        b"\x08\x00\x05\x00",
        b"\x08\x00\x08\x00",
        b"\x08\x00\x00\x00",
        b"\x02\x00\x00\x00",
    )
    return head[128:] == b"DICM" or (bare and path.suffix.lower() in (".dcm", ".dicom", ""))


@contextlib.contextmanager
def _parsing(what: str) -> Iterator[None]:
    """Around the calls of pydicom, which meets a broken file with exceptions of any type."""
    try:
        yield
    except (_Bad, OSError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise _Bad(f"{what} ({reason}); export it again") from error


def _open_dicom(path: Path, **options: bool) -> pydicom.Dataset:
    """The elements of a DICOM file; call it inside `_parsing`."""
    with path.open("rb") as stream:
        bare = stream.read(132)[128:] != b"DICM"
    if not bare:
        meta = pydicom.filereader.read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == _DEFLATED:
            # pydicom would inflate it whole, whatever its size.
            raise _Bad("the DICOM file is deflated as a whole; convert it with dcmconv +te")
    dataset = pydicom.dcmread(path, force=bare, **options)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        syntax = _IMPLICIT_LITTLE if implicit else _EXPLICIT_LITTLE
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    return dataset


def _stored_values(dataset: pydicom.Dataset, header: "_Header") -> np.ndarray:
    """The pixels as they are stored: [H, W], or [H, W, 3] of a colour film."""
    with _parsing("the pixels of the DICOM file cannot be decoded"):
        stored = pydicom.pixels.pixel_array(dataset, index=0)
    shape = (header.height, header.width, 3)[: 3 if header.samples == 3 else 2]
    if stored.shape != shape:
        raise _Bad(f"the pixels decode to {stored.shape}, the header says {shape}; export it again")
    return stored


def _read_dicom(path: Path, max_pixels: int) -> np.ndarray:
    """The film of a DICOM file, uint8 [H, W]."""
    with _parsing("the DICOM file cannot be read"):
        dataset = _open_dicom(path)
        header = _checked_header(dataset, max_pixels)
        grey_table = None if header.samples == 3 else _GreyTable.of(dataset, header)
    stored = _stored_values(dataset, header)
    if grey_table is None:
        film = cv2.cvtColor(np.ascontiguousarray(stored), cv2.COLOR_RGB2GRAY)
    else:
        film = grey_table.film(stored)
    with _parsing("the DICOM header makes no sense"):
        mirrored = list(dataset.get("PatientOrientation") or ())[:2] == ["R", "F"]
    return cv2.flip(film, 1) if mirrored else film


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
    with _naming(path):
        if not _is_dicom(_head(path), path):
            raise _Bad("not a DICOM file; expected a slice of a CT series")
        with _parsing("the DICOM header cannot be read"):
            dataset = _open_dicom(path, stop_before_pixels=True)
            modality = str(dataset.get("Modality") or "unknown")
            if modality != "CT":
                raise _Bad(f"modality {modality!r}; expected CT")
            frames = int(dataset.get("NumberOfFrames") or 1)
            if frames != 1:
                raise _Bad(f"the file has {frames} frames; export the series as a file a slice")
            geometry = {}
            for name, count in _GEOMETRY.items():
                value = dataset.get(name)
                values = [] if value in (None, "") else np.atleast_1d(value)
                if len(values) != count:
                    raise _Bad(
                        f"the DICOM header has {len(values)} numbers in {name}, expected {count}; "
                        "without them the slice has no place in the body"
                    )
                geometry[name] = np.array([float(number) for number in values])
                if not np.isfinite(geometry[name]).all():
                    raise _Bad(f"the DICOM element {name} is {geometry[name].tolist()}")
            directions = geometry["ImageOrientationPatient"].reshape(2, 3)
            if np.abs(directions @ directions.T - np.eye(2)).max() > 0.01:
                raise _Bad(
                    f"ImageOrientationPatient {directions.ravel().tolist()} is not two directions "
                    "at right angles; export it again"
                )
            spacing = geometry["PixelSpacing"]
            if not (spacing > 0).all():
                raise _Bad(f"PixelSpacing {spacing.tolist()}; expected two positive numbers")
            number = dataset.get("InstanceNumber")
            return SliceHeader(
                series=str(dataset.get("SeriesInstanceUID") or ""),
                size=(int(geometry["Rows"][0]), int(geometry["Columns"][0])),
                spacing=(float(spacing[0]), float(spacing[1])),
                directions=directions,
                position=geometry["ImagePositionPatient"],
                number=None if number in (None, "") else int(number),
            )


_GEOMETRY = {
    "Rows": 1,
    "Columns": 1,
    "PixelSpacing": 2,
    "ImageOrientationPatient": 6,
    "ImagePositionPatient": 3,
}
_AIR = -1024.0  # HU, of pixels outside the reconstruction


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
    with _naming(path):
        if not _is_dicom(_head(path), path):
            raise _Bad("not a DICOM file; expected a slice of a CT series")
        with _parsing("the DICOM file cannot be read"):
            dataset = _open_dicom(path)
            header = _checked_header(dataset, max_pixels)
            if header.samples != 1:
                raise _Bad(f"photometric interpretation {header.photometric!r}; a CT slice is grey")
            rescale = [dataset.get(f"Rescale{part}") for part in ("Slope", "Intercept")]
            if not dataset.get("ModalityLUTSequence") and not all(
                value not in (None, "") for value in rescale
            ):
                raise _Bad("no RescaleSlope and RescaleIntercept: its values are not in HU")
            stored = _stored_table(header)
            modality = _modality(dataset, header, stored)
            padding = _padding(dataset, header, stored)
        values = np.where(padding, _AIR, modality).astype(np.float32)
        return values[_table_index(_stored_values(dataset, header), header)]


class _Header(NamedTuple):
    width: int
    height: int
    samples: int
    photometric: str
    bits: int  # stored
    signed: bool


def _checked_header(dataset: pydicom.Dataset, max_pixels: int) -> _Header:
    """What the decoder will be asked for, refused here if it cannot be one film."""
    if "PixelData" not in dataset:
        modality = str(dataset.get("Modality", "") or "unknown")
        raise _Bad(f"the DICOM file holds no picture, or is truncated (modality {modality})")
    missing = [
        name
        for name in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation")
        if dataset.get(name) in (None, "")
    ]
    if missing:
        raise _Bad(f"the DICOM header lacks {', '.join(missing)}; export it again")
    width, height = int(dataset.Columns), int(dataset.Rows)
    _check_size(width, height, max_pixels)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise _Bad(f"the DICOM file has {frames} frames; a film has one: export it as one")
    photometric = str(dataset.PhotometricInterpretation)
    colour = photometric in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
    if not colour and photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise _Bad(f"photometric interpretation {photometric!r}; expected MONOCHROME1 or 2, or RGB")
    samples = int(dataset.get("SamplesPerPixel") or (3 if colour else 1))
    allocated = int(dataset.BitsAllocated)
    bits = int(dataset.get("BitsStored") or allocated)
    high_bit = dataset.get("HighBit")
    high_bit = bits - 1 if high_bit is None else int(high_bit)
    if (
        samples != (3 if colour else 1)
        or allocated not in ((8,) if colour else (8, 16))
        or not 1 <= bits <= allocated
        or high_bit != bits - 1
    ):
        raise _Bad(
            f"{photometric} with {samples} samples per pixel, {allocated} bits allocated, {bits} "
            f"stored and high bit {high_bit}; films have 8 or 16 bits grey, or 3x8 bits colour"
        )
    signed = bool(int(dataset.get("PixelRepresentation") or 0))
    header = _Header(width, height, samples, photometric, bits, signed)
    _check_pixel_bytes(dataset, header, allocated // 8)
    return header


def _check_pixel_bytes(dataset: pydicom.Dataset, header: _Header, sample_bytes: int) -> None:
    """The pixel data are all there, and no embedded picture is larger than the header says."""
    expected = header.width * header.height * header.samples * sample_bytes
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        if header.photometric == "YBR_FULL_422":
            expected = expected * 2 // 3
        _check_complete(len(dataset.PixelData) >= expected)
        return
    if not pydicom.pixels.get_decoder(syntax).is_available:
        raise _Bad(
            f"compressed as {syntax.name}, for which no decoder is installed; decompress the file, "
            "or pip install python-gdcm"
        )
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1), b"")
    _check_complete(len(frame) > 0)
    if syntax == _RLE:
        _check_rle(frame, expected)
        return
    if frame[:2] == b"\xff\xd8":
        inside = _jpeg_frame(frame)
    else:
        # JPEG 2000, bare or in a JP2 box: SOC and SIZ, then Lsiz, Rsiz, X, Y, XO, YO, ..., Csiz.
        at = frame.find(b"\xff\x4f\xff\x51")
        _check_complete(at >= 0 and at + 42 <= len(frame))
        right, bottom, left, top = struct.unpack_from(">4I", frame, at + 8)
        (samples,) = struct.unpack_from(">H", frame, at + 40)
        inside = _Frame(right - left, bottom - top, samples)
        _check_complete(b"\xff\xd9" in frame[-4:])  # end of codestream, perhaps padded
    if inside != (header.width, header.height, header.samples):
        raise _Bad(
            f"the picture inside is {inside.width}x{inside.height}x{inside.samples}, the DICOM "
            f"header says {header.width}x{header.height}x{header.samples}; export it again"
        )


def _check_rle(frame: bytes, expected: int) -> None:
    """A run of two bytes becomes up to 128: the sum is checked before it is unpacked."""
    _check_complete(len(frame) > 64)
    count, *offsets = struct.unpack_from("<16I", frame)
    if not 1 <= count <= 15 or len(frame) > 2 * expected + 2**16:
        raise _Bad("the RLE data of the DICOM file are damaged; export it again")
    share = expected // count  # each segment holds one byte of every sample
    bounds = [*offsets[:count], len(frame)]
    for start, stop in itertools.pairwise(bounds):
        _check_complete(64 <= start < stop <= len(frame))
        position, unpacked = start, 0
        while position + 1 < stop and unpacked <= share + 256:
            code = frame[position]
            unpacked += code + 1 if code < 128 else (257 - code if code > 128 else 0)
            position += code + 2 if code < 128 else (2 if code > 128 else 1)
        if not share <= unpacked <= share + 256:  # some encoders pad a segment
            raise _Bad(
                f"an RLE segment of the DICOM file unpacks to {unpacked} bytes or more, expected "
                f"{share}; export it again"
            )


def _stored_table(header: _Header) -> np.ndarray:
    """int [2^bits]: the stored value of each bit pattern."""
    stored = np.arange(2**header.bits)
    if header.signed:
        stored = np.where(stored < 2 ** (header.bits - 1), stored, stored - 2**header.bits)
    return stored


def _table_index(stored: np.ndarray, header: _Header) -> np.ndarray:
    """Stored values [H, W] -> where they are in tables of [2^bits]."""
    # As unsigned, cut to the stored bits: the rest may hold an overlay, or copies of the sign.
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    return stored.view(f"u{stored.dtype.itemsize}") & (2**header.bits - 1)


def _modality(dataset: pydicom.Dataset, header: _Header, stored: np.ndarray) -> np.ndarray:
    """float64 [2^bits]: what each stored value measures."""
    if luts := dataset.get("ModalityLUTSequence"):
        little = dataset.original_encoding[1] is not False
        return _Lut.of(luts[0], header.signed, little, "modality").look_up(stored)
    slope = _number(dataset, "RescaleSlope", 1.0)
    return slope * stored + _number(dataset, "RescaleIntercept", 0.0)


def _padding(dataset: pydicom.Dataset, header: _Header, stored: np.ndarray) -> np.ndarray:
    """bool [2^bits]: the stored value stands for no tissue."""
    if dataset.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, bool)
    ends = [_padding_value(dataset, "PixelPaddingValue", header)] * 2
    if dataset.get("PixelPaddingRangeLimit") is not None:
        ends[1] = _padding_value(dataset, "PixelPaddingRangeLimit", header)
    return (stored >= min(ends)) & (stored <= max(ends))


class _GreyTable(NamedTuple):
    """How each stored value is shown.

    All of DICOM's grey pipeline is a function of the stored value, of at most 65536: it is
    computed once for each value instead of once for each pixel.
    """

    shown: np.ndarray | None  # float64 [2^bits], 0..1; None: lowest..highest of the film
    modality: np.ndarray  # float64 [2^bits], after the modality LUT
    padding: np.ndarray  # bool [2^bits]
    header: _Header

    @classmethod
    def of(cls, dataset: pydicom.Dataset, header: _Header) -> "_GreyTable":
        stored = _stored_table(header)
        modality = _modality(dataset, header, stored)
        rescaled = bool(dataset.get("ModalityLUTSequence")) or not np.array_equal(modality, stored)
        little = dataset.original_encoding[1] is not False
        window = _window(dataset)
        if luts := dataset.get("VOILUTSequence"):
            lut = _Lut.of(luts[0], bool(modality.min() < 0), little, "VOI")
            # Its own lowest..highest, as descriptors state 16 bits over data of 12.
            low, high = lut.entries.min(), lut.entries.max()
            shown = (lut.look_up(modality) - low) / max(high - low, 1)
        elif window is not None:
            shown = _windowed(modality, *window)
        elif header.bits == 8 and not header.signed and not rescaled:
            shown = stored / 255.0
        else:
            shown = None
        return cls(shown, modality, _padding(dataset, header, stored), header)

    def film(self, stored: np.ndarray) -> np.ndarray:
        """Stored values [H, W] -> uint8 [H, W]."""
        index, shown = _table_index(stored, self.header), self.shown
        if shown is None:
            there = np.zeros(self.modality.shape, bool)
            there[index] = True
            values = self.modality[there & ~self.padding]
            if values.size == 0:
                raise _Bad("every pixel is padding; export the film again")
            shown = (self.modality - values.min()) / max(np.ptp(values), 1e-12)
        levels = np.clip(np.rint(255.0 * np.clip(shown, 0, 1)), 0, 255).astype(np.uint8)
        if self.header.photometric == "MONOCHROME1":
            levels = 255 - levels
        levels[self.padding] = 0
        return levels[index]


class _Lut(NamedTuple):
    """A lookup table of DICOM (PS3.3 C.11.1, C.11.2): entry i is for the value first + i."""

    first: int
    entries: np.ndarray  # float64 [n]

    @classmethod
    def of(cls, item: pydicom.Dataset, signed: bool, little: bool, name: str) -> "_Lut":
        descriptor = [int(value) for value in (item.get("LUTDescriptor") or ())]
        data = item.get("LUTData")
        if len(descriptor) != 3 or data is None:
            raise _Bad(f"the {name} LUT of the DICOM file is broken (descriptor {descriptor})")
        count, first, _ = descriptor
        count = count % 2**16 or 2**16  # 0 stands for 65536, which does not fit
        # Written unsigned or signed by an encoding that need not be that of the pixels.
        first = first - 2**16 if signed and first >= 2**15 else first
        first = first + 2**16 if not signed and first < 0 else first
        if isinstance(data, bytes):
            # One byte an entry, perhaps padded to even; the descriptor may still say 16 bits.
            packed = len(data) in (count, count + 1)
            kind = np.dtype(np.uint8 if packed else "<u2" if little else ">u2")
            entries = np.frombuffer(data, kind, count=len(data) // kind.itemsize)
        else:
            entries = np.atleast_1d(np.asarray(data, np.float64))
        entries = entries[:count].astype(np.float64)  # padding and wrong counts: what is there
        if entries.size < 2:
            raise _Bad(f"the {name} LUT of the DICOM file has {entries.size} entries")
        return cls(first, entries)

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """Values below and above the table get its first and last entry."""
        index = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1)
        return self.entries[index.astype(np.int64)]


def _number(dataset: pydicom.Dataset, name: str, default: float) -> float:
    """The first value of an element; `default` where it is absent or empty."""
    value = dataset.get(name)
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if len(value) else None
    number = default if value is None or value == "" else float(value)
    if not np.isfinite(number) or abs(number) > 1e9:
        raise _Bad(f"the DICOM element {name} is {number:g}; export the film again")
    return number


def _window(dataset: pydicom.Dataset) -> tuple[float, float, str] | None:
    """Centre, width and function of the first window; None where there is none that can be."""
    if dataset.get("WindowCenter") in (None, "") or dataset.get("WindowWidth") in (None, ""):
        return None
    centre, width = _number(dataset, "WindowCenter", 0.0), _number(dataset, "WindowWidth", 0.0)
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise _Bad(f"VOI LUT function {function!r}; expected LINEAR, LINEAR_EXACT or SIGMOID")
    # A width that the standard forbids (0 is seen in the wild) states no window.
    return (centre, width, function) if width >= (1 if function == "LINEAR" else 1e-9) else None


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3: values [n] -> 0..1."""
    if function == "SIGMOID":
        # tanh is the same curve and does not overflow.
        return 0.5 + 0.5 * np.tanh(2.0 * (values - centre) / width)
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0.0, 1.0)
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def _padding_value(dataset: pydicom.Dataset, name: str, header: _Header) -> int:
    """The value as a stored one: it is written as US or SS, whatever the pixels are."""
    value = int(_number(dataset, name, 0.0)) % 2**header.bits
    return value - 2**header.bits if header.signed and value >= 2 ** (header.bits - 1) else value
