"""DICOM files before their pixels: opened, and held against what one film can be.

Nothing of a header's text is ever passed on: not what pydicom says of it in its exceptions,
warnings and log, and in our own messages only words that a film's header can have.
"""

import contextlib
import io
import itertools
import logging
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pydicom
from pydicom.encaps import generate_frames

from cxr_jax.data.file_errors import BadFile, kind_of, known
from cxr_jax.data.readers.checks import check_complete, check_size
from cxr_jax.data.readers.jpeg import Frame, Jpeg

_RLE = "1.2.840.10008.1.2.5"
# Its warnings and log quote the values that it meets.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_PHOTOMETRIC = (*_GREY, *_COLOUR, "PALETTE COLOR", "ARGB", "CMYK", "HSV", "YBR_PARTIAL_420")
# PS3.3 C.7.3.1.1.1: films, and what is met in their place.
FILM_MODALITIES = frozenset({"CR", "DX", "RG", "RF", "OT", "SC"})
MODALITIES = FILM_MODALITIES | {
    *("CT", "MR", "PT", "NM", "US", "MG", "XA", "PX", "IO", "BMD", "ES", "XC", "ECG", "SR", "PR")
}
_IMPLICIT_LITTLE, _EXPLICIT_LITTLE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"


def is_dicom(head: bytes, path: Path) -> bool:
    """The magic word, or an old file that begins with its first element, named as DICOM."""
    bare = head[:4] in (
        b"\x08\x00\x05\x00",
        b"\x08\x00\x08\x00",
        b"\x08\x00\x00\x00",
        b"\x02\x00\x00\x00",
    )
    return head[128:] == b"DICM" or (bare and path.suffix.lower() in (".dcm", ".dicom", ""))


@contextlib.contextmanager
def parsing(what: str) -> Iterator[None]:
    """Around the calls of pydicom, which meets a broken file with exceptions of any type."""
    try:
        yield
    except (BadFile, OSError, MemoryError):
        raise
    except Exception as error:
        raise BadFile(f"{what} ({kind_of(error)}); export it again") from None


class _Bounded(io.BufferedReader):
    """The bytes of a file as pydicom may ask for them: never more than there are.

    It asks for all the rest at once only to inflate it, whatever that becomes: refused, by whatever
    way a file, with preamble or without, makes it do so.
    """

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path))
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """`size` bytes, or fewer at the end."""
        if size is None or size < 0:
            raise BadFile("the DICOM file is deflated as a whole; convert it with dcmconv +te")
        return super().read(min(size, max(self._size - self.tell(), 0)))


def open_dicom(path: Path, **options: Any) -> pydicom.Dataset:
    """The elements of a DICOM file; call it inside `parsing`."""
    with _Bounded(path) as stream:
        bare = stream.read(132)[128:] != b"DICM"
        stream.seek(0)
        dataset = pydicom.dcmread(stream, force=bare, **options)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        syntax = _IMPLICIT_LITTLE if implicit else _EXPLICIT_LITTLE
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    return dataset


class Header(NamedTuple):
    """How the one film or slice of a DICOM file is stored; width and height in pixels."""

    width: int
    height: int
    samples: int
    photometric: str
    bits: int  # stored
    signed: bool


def checked_header(dataset: pydicom.Dataset, max_pixels: int) -> Header:
    """What the decoder will be asked for, refused here if it cannot be one film."""
    _check_present(dataset)
    width, height = int(dataset.Columns), int(dataset.Rows)
    check_size(width, height, max_pixels)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise BadFile(f"the DICOM file has {frames} frames; a film has one: export it as one")
    photometric = str(dataset.PhotometricInterpretation)
    colour = photometric in _COLOUR
    if not colour and photometric not in _GREY:
        raise BadFile(
            f"photometric interpretation {known(photometric, _PHOTOMETRIC)}; expected MONOCHROME1 "
            "or 2, or RGB"
        )
    samples, allocated, bits = _sample_layout(dataset, photometric, colour)
    signed = bool(int(dataset.get("PixelRepresentation") or 0))
    if colour and signed:
        raise BadFile("colour of signed values (PixelRepresentation 1); export it again")
    header = Header(
        width=width,
        height=height,
        samples=samples,
        photometric=photometric,
        bits=bits,
        signed=signed,
    )
    _check_pixel_bytes(dataset, header, allocated // 8)
    return header


def _check_present(dataset: pydicom.Dataset) -> None:
    """There is a picture, and every element without which it cannot be decoded."""
    if "PixelData" not in dataset:
        modality = known(dataset.get("Modality", ""), MODALITIES)
        raise BadFile(f"the DICOM file holds no picture, or is truncated (modality {modality})")
    missing = [
        name
        for name in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation")
        if dataset.get(name) in (None, "")
    ]
    if missing:
        raise BadFile(f"the DICOM header lacks {', '.join(missing)}; export it again")


def _sample_layout(
    dataset: pydicom.Dataset, photometric: str, colour: bool
) -> tuple[int, int, int]:
    """Samples per pixel, bits allocated and bits stored."""
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
        raise BadFile(
            f"{photometric} with {samples} samples per pixel, {allocated} bits allocated, {bits} "
            f"stored and high bit {high_bit}; films have 8 or 16 bits grey, or 3x8 bits colour"
        )
    return samples, allocated, bits


def _check_pixel_bytes(dataset: pydicom.Dataset, header: Header, sample_bytes: int) -> None:
    """The pixel data are all there, and no embedded picture is larger than the header says."""
    expected = header.width * header.height * header.samples * sample_bytes
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        if header.photometric == "YBR_FULL_422":
            expected = expected * 2 // 3
        check_complete(len(dataset.PixelData) >= expected)
        return
    if not pydicom.pixels.get_decoder(syntax).is_available:
        raise BadFile(
            f"compressed as {syntax.name}, for which no decoder is installed; decompress the file, "
            "or pip install 'cxr_jax[dicom]'"
        )
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1), b"")
    check_complete(len(frame) > 0)
    if syntax == _RLE:
        _check_rle(frame, expected)
        return
    jpeg = Jpeg.of(frame) if frame[:2] == b"\xff\xd8" else None
    inside = jpeg.frame if jpeg else _jpeg_2000_frame(frame)
    if inside != (header.width, header.height, header.samples):
        raise BadFile(
            f"the picture inside is {inside.width}x{inside.height}x{inside.samples}, the DICOM "
            f"header says {header.width}x{header.height}x{header.samples}; export it again"
        )
    if jpeg:
        jpeg.check_scans()


def _jpeg_2000_frame(data: bytes) -> Frame:
    # Bare or in a JP2 box: SOC and SIZ, then Lsiz, Rsiz, X, Y, XO, YO, ..., Csiz.
    at = data.find(b"\xff\x4f\xff\x51")
    check_complete(at >= 0 and at + 42 <= len(data))
    right, bottom, left, top = struct.unpack_from(">4I", data, at + 8)
    (samples,) = struct.unpack_from(">H", data, at + 40)
    check_complete(b"\xff\xd9" in data[-4:])  # end of codestream, perhaps padded
    return Frame(right - left, bottom - top, samples)


def _check_rle(frame: bytes, expected: int) -> None:
    """A run of two bytes becomes up to 128: the sum is checked before it is unpacked."""
    check_complete(len(frame) > 64)
    count, *offsets = struct.unpack_from("<16I", frame)
    if not 1 <= count <= 15 or len(frame) > 2 * expected + 2**16:
        raise BadFile("the RLE data of the DICOM file are damaged; export it again")
    share = expected // count  # each segment holds one byte of every sample
    bounds = [*offsets[:count], len(frame)]
    for start, stop in itertools.pairwise(bounds):
        check_complete(64 <= start < stop <= len(frame))
        position, unpacked = start, 0
        while position + 1 < stop and unpacked <= share + 256:
            code = frame[position]
            unpacked += code + 1 if code < 128 else (257 - code if code > 128 else 0)
            position += code + 2 if code < 128 else (2 if code > 128 else 1)
        if not share <= unpacked <= share + 256:  # some encoders pad a segment
            raise BadFile(
                f"an RLE segment of the DICOM file unpacks to {unpacked} bytes or more, expected "
                f"{share}; export it again"
            )
