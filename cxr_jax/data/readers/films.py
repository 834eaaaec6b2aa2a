"""Which file is read how: films and masks told apart by their first bytes, films in folders."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cxr_jax.data.file_errors import BadFile, naming
from cxr_jax.data.found import Found
from cxr_jax.data.readers.checks import EXPECTED, MAX_PIXELS, read_head
from cxr_jax.data.readers.dicom import check_view, read_dicom
from cxr_jax.data.readers.dicom_header import is_dicom
from cxr_jax.data.readers.pictures import (
    colour_of,
    gif_or_bmp,
    is_png,
    is_png_or_jpeg,
    read_gif_or_bmp,
    read_png_or_jpeg,
    stretch,
)

_NO_FILM = "are no PNG, JPEG or DICOM"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")


def read_film(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads one film as the reader sees it.

    Args:
        path: a PNG (any depth and colour type), JPEG (any) or DICOM file (one frame; MONOCHROME1,
            MONOCHROME2, RGB or YBR; uncompressed, RLE, JPEG or JPEG 2000. Lossless JPEG and
            JPEG-LS where pydicom finds a decoder for them).
        max_pixels: films of more pixels are refused from their header, before they are decoded.

    Returns:
        uint8 [H, W], air dark. See the package's docstring for the grey scale.

    Raises:
        InputError: the file is missing, no such image, truncated, too large, of one colour only, of
            several frames, or its header makes no sense.
    """
    path = Path(path)
    with naming(path):
        head = read_head(path)
        if is_png_or_jpeg(head):
            grey = read_png_or_jpeg(path.read_bytes(), max_pixels)
            film = stretch(grey) if grey.dtype == np.uint16 else grey
        elif is_dicom(head, path):
            film = read_dicom(path, max_pixels)
        else:
            raise BadFile(f"not an image this program knows; {EXPECTED}")
        low, high = int(film.min()), int(film.max())
        if low == high:
            raise BadFile(f"every pixel is {low}, the film is of one colour; export it again")
    return film


def read_colour(path: str | Path) -> float:
    """How coloured the picture of a film is: the mean over its pixels of the largest difference
    between red, green and blue, 0..255; 0 of a DICOM file. For a file that `read_film` has read:
    nothing is checked again.
    """
    data = Path(path).read_bytes()
    return colour_of(data) if is_png_or_jpeg(data) else 0.0


def check_frontal(path: str | Path) -> None:
    """Refuses a DICOM file that says itself that it is no frontal radiograph; other files pass.

    Only Modality and ViewPosition are looked at. A film that states neither passes.

    Raises:
        InputError: a lateral film, another modality, or as in `read_film`.
    """
    path = Path(path)
    with naming(path):
        if is_dicom(read_head(path), path):
            check_view(path)


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
    with naming(path):
        head = read_head(path)
        if is_png_or_jpeg(head):
            grey = read_png_or_jpeg(path.read_bytes(), max_pixels)
        elif kind := gif_or_bmp(head):
            grey = read_gif_or_bmp(path.read_bytes(), kind, max_pixels)
        else:
            raise BadFile("not an image this program knows; expected a PNG, JPEG, GIF or BMP mask")
        _check_shape(grey, shape)
    highest = int(grey.max())
    return (grey > (0 if highest < 16 else highest / 2)).astype(np.uint8)


def read_labels(
    path: str | Path,
    shape: tuple[int, int] | None = None,
    *,
    most: int,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Reads a grey PNG whose values are labels.

    Args:
        path: the file.
        shape: (H, W) of its film.
        most: the highest label.
        max_pixels: as in `read_film`.

    Returns:
        uint8 [H, W], 0 .. `most`.

    Raises:
        InputError: as in `read_mask`; no PNG, whose values would be no labels any more; or a higher
            value.
    """
    path = Path(path)
    with naming(path):
        if not is_png(read_head(path)):
            raise BadFile("not a PNG; labels are kept by that alone: export them as PNG")
        labels = read_png_or_jpeg(path.read_bytes(), max_pixels)
        _check_shape(labels, shape)
        if (highest := int(labels.max())) > most:
            raise BadFile(f"it holds the value {highest}; its labels are 0..{most}")
    return labels.astype(np.uint8)


def _check_shape(mask: np.ndarray, shape: tuple[int, int] | None) -> None:
    if shape is not None and mask.shape != tuple(shape):
        raise BadFile(
            f"the mask has {mask.shape[1]}x{mask.shape[0]} px (width x height), its film "
            f"{shape[1]}x{shape[0]}; draw or export it on the film's own pixels"
        )


def films_in(paths: Iterable[str | Path]) -> list[Path]:
    """The films of `find_films`."""
    return find_films(paths).files


def find_films(paths: Iterable[str | Path]) -> Found:
    """Expands folders to the films below them.

    Args:
        paths: files, which are taken as they are (`read_film` judges them), and folders, searched
            to any depth for .png, .jpg, .jpeg, .dcm, .dicom and for DICOM files that end in .ima or
            have no suffix (a name that ends in the number of a UID counts as such). Hidden files
            and DICOMDIR are passed over.

    Returns:
        The films, sorted, each once; left out is every other file that is not hidden.

    Raises:
        InputError: a path that does not exist, or a folder without a film.
    """
    films: set[Path] = set()
    others: set[Path] = set()
    for path in map(Path, paths):
        with naming(path):
            found, seen = _films_at(path)
        films |= found
        others |= seen - found
    return Found(sorted(films), {_NO_FILM: sorted(others)} if others else {})


def _films_at(path: Path) -> tuple[set[Path], set[Path]]:
    """The films at a path, and all files that were looked at."""
    if not path.is_dir():
        if not path.exists():
            raise BadFile("no such file or folder; check the path")
        return {path}, set()
    seen = {file for file in path.rglob("*") if _is_shown(file, path)}
    found = {file for file in seen if _looks_like_a_film(file)}
    if not found:
        raise BadFile(f"no film in this folder; looked for {', '.join(_SUFFIXES)}")
    return found, seen


def _is_shown(file: Path, folder: Path) -> bool:
    """An ordinary file that is not hidden."""
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.name != "DICOMDIR" and file.is_file()


def _looks_like_a_film(file: Path) -> bool:
    if file.suffix.lower() in _SUFFIXES:
        return True
    if file.suffix.lower() != ".ima" and file.suffix and not file.suffix[1:].isdigit():
        return False
    try:
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False
