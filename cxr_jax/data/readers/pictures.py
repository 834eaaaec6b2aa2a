"""Pictures: PNG and JPEG, GIF and BMP for masks, raw JSRT films, and PNG of prepared data."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cxr_jax.data.file_errors import BadFile, kind_of, naming
from cxr_jax.data.readers.checks import check_complete, check_size, read_head
from cxr_jax.data.readers.jpeg import Jpeg
from cxr_jax.errors import InputError

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_GIF = (b"GIF87a", b"GIF89a")
_BMP = b"BM"
_JSRT_SIDE = 2048  # pixels
_MAX_CHUNKS = 1_000_000  # of a PNG


def is_png(head: bytes) -> bool:
    """Whether a file that begins with `head` is a PNG."""
    return head.startswith(_PNG)


def is_png_or_jpeg(head: bytes) -> bool:
    """Whether a file that begins with `head` is one that `read_png_or_jpeg` reads."""
    return head.startswith((_PNG, _JPEG))


def gif_or_bmp(head: bytes) -> str | None:
    """'GIF' or 'BMP', as which `read_gif_or_bmp` reads a file that begins with `head`."""
    if head.startswith(_GIF):
        return "GIF"
    return "BMP" if head.startswith(_BMP) else None


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
    with naming(path):
        read_head(path)
        if (size := path.stat().st_size) != 2 * _JSRT_SIDE**2:
            raise BadFile(
                f"the file has {size} bytes; a raw JSRT film of {_JSRT_SIDE}x{_JSRT_SIDE} px has "
                f"{2 * _JSRT_SIDE**2}: unpack it from the archive again"
            )
        words = np.fromfile(path, ">u2").reshape(_JSRT_SIDE, _JSRT_SIDE)
        over = float(np.mean(words > 4095))
        if over > 0.01:
            raise BadFile(
                f"{over:.0%} of its words are above 4095; a raw JSRT film is big-endian with 12 "
                "bits: unpack it from the archive again"
            )
        if words.min() == words.max():
            raise BadFile(f"every pixel is {words.min()}, the film is of one colour; copy it again")
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


def stretch(grey: np.ndarray) -> np.ndarray:
    """uint16 [H, W] -> uint8 [H, W]: lowest..highest to 0..255."""
    low, high = int(grey.min()), int(grey.max())
    levels = (np.arange(2**16, dtype=np.float64) - low) * (255.0 / max(high - low, 1))
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)[grey]


# PNG and JPEG


def read_png_or_jpeg(data: bytes, max_pixels: int) -> np.ndarray:
    """PNG or JPEG bytes -> uint8 or uint16 [H, W], checked from end to end before decoding."""
    if data.startswith(_PNG):
        data = _checked_png(data, max_pixels)
    else:
        jpeg = Jpeg.of(data)
        check_size(jpeg.frame.width, jpeg.frame.height, max_pixels)
        jpeg.check_scans()
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_GRAYSCALE
    try:
        grey = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise BadFile("the picture cannot be decoded; export it again") from error
    if grey is None or grey.dtype not in (np.uint8, np.uint16):
        raise BadFile("the picture is damaged and cannot be decoded; export it again")
    return grey


def colour_of(data: bytes) -> float:
    """Mean over the pixels of the largest difference between the colours, 0..255; of PNG or JPEG
    bytes that `read_png_or_jpeg` has read."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_4)
    return 0.0 if picture is None else colourfulness(picture)


def colourfulness(picture: np.ndarray) -> float:
    """The same of a picture uint8 [H, W, 3]."""
    return float(np.mean(picture.max(axis=-1) - picture.min(axis=-1)))


def _checked_png(data: bytes, max_pixels: int) -> bytes:
    """The PNG with nothing but its header, palette, orientation and pixels, all of them intact.

    What is left out (colour profiles, texts, animations, transparency) changes no grey value here
    and is where decompression bombs hide.
    """
    kept, pixels_bytes, size = [_PNG], 0, None
    for kind, chunk in _png_chunks(data):
        if size is None:
            size = _png_size(kind, chunk[8:-4], max_pixels)
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"eXIf", b"IEND"):
            if zlib.crc32(chunk[4:-4]) != struct.unpack(">I", chunk[-4:])[0]:
                raise BadFile("the PNG is damaged (a checksum does not match); copy it again")
            kept.append(chunk)
            pixels_bytes += len(chunk) - 12 if kind == b"IDAT" else 0
    width, height, raw_bytes = size
    # Deflate never grows data by a tenth; interlacing adds a little. More than that is a bomb.
    if not 0 < pixels_bytes <= 1.5 * raw_bytes + 2**16:
        raise BadFile(
            f"the PNG has {pixels_bytes} bytes of pixels for {width}x{height} px; damaged"
        )
    return b"".join(kept)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and bytes of each chunk to the last, with its length, kind and checksum around it."""
    position, view = len(_PNG), memoryview(data)
    for _ in range(_MAX_CHUNKS):
        check_complete(position + 12 <= len(data))
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        check_complete(end <= len(data))
        yield kind, view[position:end]
        if kind == b"IEND":
            return
        position = end
    raise BadFile(f"the PNG has more than {_MAX_CHUNKS} chunks; export it again")


def _png_size(kind: bytes, header: memoryview, max_pixels: int) -> tuple[int, int, int]:
    """Width, height and bytes of the pixels unpacked, as the first chunk says."""
    if kind != b"IHDR" or len(header) != 13:
        raise BadFile("the PNG does not begin with its header; export it again")
    width, height, depth, colour = struct.unpack_from(">IIBB", header)
    check_size(width, height, max_pixels)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 4)
    return width, height, height * (1 + (width * samples * depth + 7) // 8)


# GIF and BMP, for masks


def read_gif_or_bmp(data: bytes, kind: str, max_pixels: int) -> np.ndarray:
    """The one picture of a GIF or BMP -> uint8 [H, W]. OpenCV before 4.11 knows no GIF."""
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as picture:
            check_size(*picture.size, max_pixels)
            grey = np.asarray(picture.convert("L"))
            if getattr(picture, "is_animated", False):
                raise BadFile(f"the {kind} holds several pictures; a mask is one: export it as one")
    except Image.DecompressionBombError as error:
        raise BadFile(f"the {kind} is over the limit of {max_pixels / 1e6:g} megapixels") from error
    except (OSError, EOFError, SyntaxError, ValueError, IndexError, struct.error) as error:
        raise BadFile(
            f"the {kind} is truncated or damaged ({kind_of(error)}); copy it again"
        ) from error
    return grey
