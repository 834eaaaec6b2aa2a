"""What every reader asks of a file before anything of it is decoded."""

from pathlib import Path

from cxr_jax.data.file_errors import BadFile

MAX_PIXELS = 100_000_000  # a large detector has 15 million
MAX_FILE_BYTES = 512 * 2**20
EXPECTED = "expected a PNG, JPEG or DICOM film"


def read_head(path: Path) -> bytes:
    """The first 132 bytes of an ordinary file of bearable size."""
    if not path.exists():
        raise BadFile("no such file; check the path")
    if not path.is_file():  # a folder; or a pipe or device, which would block
        raise BadFile(f"not a file; {EXPECTED}")
    size = path.stat().st_size
    if size == 0:
        raise BadFile("the file is empty; copy it again")
    if size > MAX_FILE_BYTES:
        raise BadFile(f"the file has {size >> 20} MiB; at most {MAX_FILE_BYTES >> 20} MiB are read")
    with path.open("rb") as stream:
        return stream.read(132)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises BadFile where a header says a picture without pixels, or one of too many."""
    if width < 1 or height < 1:
        raise BadFile(f"the header says {width}x{height} px; export the film again")
    if width * height > max_pixels:
        raise BadFile(
            f"{width}x{height} px are over the limit of {max_pixels / 1e6:g} megapixels; "
            "shrink the film first"
        )


def check_complete(condition: bool) -> None:
    """Raises BadFile where what says that the whole file is there does not hold."""
    if not condition:
        raise BadFile("the file is truncated; copy or export it again")
