"""Trivial features of a film: what a model could go by instead of the lungs.

Six groups, each a fixed row of numbers. All are of the film as it is stored: a prepared set's
films are shrunk and encoded anew, so that size and file are no longer those of the download; only a
table of film files (`manifest`) still has its originals.
"""

import functools

import cv2
import numpy as np
from skimage.feature import local_binary_pattern

FLAT = 24  # grey levels between which a row counts as border: JPEG's noise is below
_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_MARK_SIDE = 384  # px, longest side on which text marks are looked for
_MARK_AREA = (4, 400)  # px there: a letter
_TEXTURE_SIDE = 256  # px
_PATTERN_RADII = (1, 2, 4)  # px
_PATTERNS = 10  # uniform patterns of eight neighbours, and one for all others
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 90]
_SIDES = ("top", "bottom", "left", "right")

GROUPS: dict[str, tuple[str, ...]] = {
    "size": ("width", "height", "aspect", "pixels"),
    "brightness": ("mean", "spread", *(f"p{p}" for p in _PERCENTILES), "black", "white"),
    "borders": (
        *(f"border_{side}" for side in _SIDES),
        *(f"corner_{number}" for number in range(4)),
        *(f"edge_mean_{side}" for side in _SIDES),
        *(f"edge_spread_{side}" for side in _SIDES),
    ),
    "text": ("marks_outside", "marks_inside", "mark_area_outside", "brightest_outside"),
    "file": (
        *("is_png", "is_jpeg", "is_dicom", "bytes_per_pixel"),
        *("jpeg_bytes_per_pixel", "jpeg_bytes_small"),
    ),
    "texture": tuple(f"pattern_{r}_{code}" for r in _PATTERN_RADII for code in range(_PATTERNS)),
}
NAMES = tuple(name for names in GROUPS.values() for name in names)


def columns(group: str) -> list[int]:
    """Where the features of a group stand in a row; of 'all' all of them."""
    names = NAMES if group == "all" else GROUPS[group]
    return [NAMES.index(name) for name in names]


def measure(film: np.ndarray, stored: bytes = b"") -> np.ndarray:
    """The row of one film.

    Args:
      film: uint8 [H, W].
      stored: its file, or b'' where there is none.

    Returns:
      float32 [len(NAMES)], finite. The last two of 'file' are bytes of the film encoded anew as
      JPEG, per pixel, and shrunk to 256 x 256: measures of texture, whatever the file was.
    """
    small = cv2.resize(film, (_TEXTURE_SIDE, _TEXTURE_SIDE), interpolation=cv2.INTER_AREA)
    groups = (
        *(_size(film), _brightness(film), _borders(film), _marks(film)),
        *(_file(film, small, stored), _texture(small)),
    )
    return np.concatenate(groups).astype(np.float32)


def _size(film: np.ndarray) -> list[float]:
    height, width = film.shape
    return [width, height, width / height, width * height]


def _brightness(film: np.ndarray) -> list[float]:
    counts = np.bincount(film.ravel(), minlength=256) / film.size
    levels = np.arange(256)
    mean = counts @ levels
    spread = np.sqrt(counts @ (levels - mean) ** 2)
    # Of the histogram: sorting all pixels would take most of the time.
    below = np.searchsorted(np.cumsum(counts), np.array(_PERCENTILES) / 100)
    return [mean, spread, *below, counts[0], counts[255]]


def _borders(film: np.ndarray) -> list[float]:
    height, width = film.shape
    rows = _flat_ends(film.max(1), film.min(1))
    columns = _flat_ends(film.max(0), film.min(0))
    y, x = max(1, height // 20), max(1, width // 20)
    corners = (film[:y, :x], film[:y, -x:], film[-y:, :x], film[-y:, -x:])
    y, x = max(1, height // 50), max(1, width // 50)
    edges = (film[:y], film[-y:], film[:, :x], film[:, -x:])
    return [
        *(rows[0] / height, rows[1] / height, columns[0] / width, columns[1] / width),
        *(corner.mean() for corner in corners),
        *(edge.mean() for edge in edges),
        *(edge.std() for edge in edges),
    ]


def trimmed(film: np.ndarray) -> np.ndarray:
    """The film without rows and columns of one grey at its edges; the whole film where nothing of
    16 px or more would be left."""
    top, bottom = _flat_ends(film.max(1), film.min(1))
    left, right = _flat_ends(film.max(0), film.min(0))
    inside = film[top : film.shape[0] - bottom, left : film.shape[1] - right]
    return inside if min(inside.shape) >= 16 else film


def _flat_ends(highest: np.ndarray, lowest: np.ndarray) -> tuple[int, int]:
    """How many lines at the start and at the end are of one grey; all of them, if all are."""
    busy = np.flatnonzero(highest - lowest > FLAT)
    if not len(busy):
        return len(highest), len(highest)
    return int(busy[0]), int(len(highest) - 1 - busy[-1])


def _marks(film: np.ndarray) -> list[float]:
    """Thin bright spots of a letter's size, outside (in the outer fifth) and inside."""
    scale = _MARK_SIDE / max(film.shape)
    size = [max(9, round(side * scale)) for side in film.shape[::-1]]
    small = cv2.resize(film, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    # What an opening by 9 px takes away is thinner than ribs and clavicles.
    thin = cv2.morphologyEx(small, cv2.MORPH_TOPHAT, np.ones((9, 9), np.uint8))
    mask = ((thin > 70) & (small > 170)).astype(np.uint8)
    _, _, stats, centres = cv2.connectedComponentsWithStats(mask, connectivity=8)
    area = stats[1:, cv2.CC_STAT_AREA]
    place = np.abs(centres[1:] / np.array(size) - 0.5).max(1, initial=0)
    letter = (area >= _MARK_AREA[0]) & (area <= _MARK_AREA[1])
    outside = place > 0.3
    rim = small.copy()
    height, width = small.shape
    rim[height // 5 : -(height // 5), width // 5 : -(width // 5)] = 0
    return [
        (letter & outside).sum(),
        (letter & ~outside).sum(),
        area[letter & outside].sum() / small.size,
        rim.max(),
    ]


def _file(film: np.ndarray, small: np.ndarray, stored: bytes) -> list[float]:
    kinds = (stored[:4] == b"\x89PNG", stored[:2] == b"\xff\xd8", stored[128:132] == b"DICM")
    own, fixed = (len(cv2.imencode(".jpg", picture, _JPEG)[1]) for picture in (film, small))
    return [*kinds, len(stored) / film.size, own / film.size, fixed]


def _texture(small: np.ndarray) -> np.ndarray:
    """How sharp and how noisy the film is where no lung is: local binary patterns in the outer
    fifth, of equalised brightness."""
    return pattern_shares(cv2.equalizeHist(small), inside=_outer_fifth())


def pattern_shares(film: np.ndarray, *, inside: np.ndarray | None = None) -> np.ndarray:
    """Shares of the uniform local binary patterns, the same after rotation (Ojala et al. 2002), of
    eight neighbours at three distances.

    Args:
      film: uint8 [H, W].
      inside: bool [H, W], not empty, the pixels that count; None: all.

    Returns:
      float64 [30], ten patterns a distance, which sum to 1.
    """
    shares = []
    for radius in _PATTERN_RADII:
        codes = local_binary_pattern(film, 8, radius, "uniform")
        codes = codes.ravel() if inside is None else codes[inside]
        shares.append(np.bincount(codes.astype(int), minlength=_PATTERNS) / codes.size)
    return np.concatenate(shares)


@functools.cache
def _outer_fifth() -> np.ndarray:
    """bool [256, 256]: nearer to an edge than a fifth of the side."""
    inside = slice(_TEXTURE_SIDE // 5, -(_TEXTURE_SIDE // 5))
    outer = np.ones((_TEXTURE_SIDE, _TEXTURE_SIDE), bool)
    outer[inside, inside] = False
    return outer
