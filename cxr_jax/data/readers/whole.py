"""Whether a picture's file is whole, by its header and its end: what a table asks of each film."""

import functools
import io
import struct
from pathlib import Path

from cxr_jax.data.file_errors import BadFile, naming
from cxr_jax.data.readers.checks import check_complete, read_head
from cxr_jax.data.readers.dicom_header import is_dicom, open_dicom, parsing
from cxr_jax.data.readers.jpeg import Jpeg
from cxr_jax.data.readers.pictures import gif_or_bmp, is_png_or_jpeg

_END = 2**12  # bytes in which a JPEG's end marker is looked for
_PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"
_SEQUENCE_END = b"\xfe\xff\xdd\xe0"  # behind compressed pixels


def check_whole(path: str | Path) -> None:
    """Refuses a film or a mask whose file ends early; no pixel is decoded, and little is read.

    A file that was looked at is not again until it changes.

    Raises:
        InputError: missing, no picture, or truncated.
    """
    path = Path(path)
    with naming(path):
        head = read_head(path)
        found = path.stat()
        _check(path, head, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=2**20)
def _check(path: Path, head: bytes, size: int, changed: int) -> None:
    """What is wrong is raised, and so looked at again."""
    del changed  # a part of the key
    with path.open("rb") as file:
        if is_dicom(head, path):
            _check_dicom(path, file, size)
        elif head[:1] == b"\x89" and is_png_or_jpeg(head):
            _check_png(file, size)
        elif is_png_or_jpeg(head):
            file.seek(max(size - _END, 0))
            if b"\xff\xd9" not in file.read():
                file.seek(0)
                Jpeg.of(file.read())
        elif not gif_or_bmp(head):
            raise BadFile("not an image this program knows; expected a PNG, JPEG or DICOM film")


def _check_png(file: io.BufferedIOBase, size: int) -> None:
    """The last chunk ends the file, or is found by going from chunk to chunk."""
    file.seek(max(size - len(_PNG_END), 0))
    if file.read() == _PNG_END:
        return
    position = 8
    while True:
        file.seek(position)
        start = file.read(8)
        check_complete(len(start) == 8)
        position += 12 + struct.unpack(">I", start[:4])[0]
        check_complete(position <= size)
        if start[4:] == b"IEND":
            return


def _check_dicom(path: Path, file: io.BufferedIOBase, size: int) -> None:
    """The file has room for its pixels; of compressed ones it has what ends them."""
    with parsing("the DICOM file cannot be read"):
        dataset = open_dicom(path, stop_before_pixels=True)
        if dataset.file_meta.TransferSyntaxUID.is_compressed:
            file.seek(max(size - _END, 0))
            end = file.read()
            if _SEQUENCE_END not in end:
                file.seek(0)
                check_complete(_SEQUENCE_END in file.read())
            return
        names = ("Rows", "Columns", "BitsAllocated")
        rows, columns, bits = (int(dataset.get(name) or 0) for name in names)
        check_complete(size > rows * columns * bits // 8)
