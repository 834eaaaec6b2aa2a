"""Films that are copies of one another: to the bit, or changed in brightness, scale or crop.

Candidates are found without a look at single pairs: by a perceptual hash (signs of low frequencies
of the cosine transform, Hamming distance of packed bits), and, for crops, by the middle of each
film against many windows of every other one. Each candidate is then laid on its partner (the
middle of one is moved over the other at several scales): the correlation at the best place decides.
What is compared is the film without its flat borders, with local brightness and contrast evened
out, so that two chests are not alike for being chests.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from cxr_jax.data.audit.features import trimmed

# Chosen on phantoms: see tests/data/test_audit.py for what is found and what is not.
SAME_CORRELATION = 0.86
SAME_BITS = 16  # of 255
_NEAR_BITS = 40
_BITS_SIDE = 16
_SIDE = 96  # px, longest side of what is laid on one another
_PATCH = 16  # px, side of a patch that stands for a window
_MIDDLE = 0.6  # share of the shorter side
_SHARES = (0.5, 0.6, 0.7, 0.8)
_OFFSETS = (0.0, 0.25, 0.5, 0.75, 1.0)
_SCALES = (0.58, 0.62, 0.67, 0.72, 0.77, 0.82, 0.88, 0.94, 1.0, 1.07)
_PARTNERS = 3  # candidates of a film by its middle
_NEAR_MIDDLE = 0.45  # correlation from which one is a candidate
MOST_WINDOWED = 6000  # films; of more, crops are not looked for
_MOST_CANDIDATES = 20_000
_BLOCK = 256


class Print(NamedTuple):
    """What is kept of a film.

    Attributes:
      pixels: SHA-256 of size and pixels.
      bits: uint64 [4], the perceptual hash.
      plane: float16 [h, w], the evened film, its longest side 96 px.
      middle: float16 [256], the patch of its middle, mean 0 and length 1.
      windows: float16 [100, 256], the same of its windows.
    """

    pixels: bytes
    bits: np.ndarray
    plane: np.ndarray
    middle: np.ndarray
    windows: np.ndarray


class Pair(NamedTuple):
    """Two films that look like copies.

    Attributes:
      a, b: their numbers, a < b.
      bits: Hamming distance of the hashes, of 255.
      correlation: where they fit best, -1 .. 1.
      exact: the same pixels.
    """

    a: int
    b: int
    bits: int
    correlation: float
    exact: bool


def print_of(film: np.ndarray) -> Print:
    """The `Print` of a film, uint8 [H, W]."""
    digest = hashlib.sha256(np.array(film.shape, np.int64).tobytes() + film.tobytes()).digest()
    inside = trimmed(film)
    plane = _evened(inside)
    windows = np.stack(
        [_window(plane, share, y, x) for share in _SHARES for y in _OFFSETS for x in _OFFSETS]
    )
    middle = _window(plane, _MIDDLE, 0.5, 0.5)
    return Print(
        pixels=digest,
        bits=_hash(inside),
        plane=plane.astype(np.float16),
        middle=middle,
        windows=windows,
    )


def _hash(film: np.ndarray) -> np.ndarray:
    """uint64 [4]: which of the 255 lowest frequencies are above their median."""
    size = (4 * _BITS_SIDE, 4 * _BITS_SIDE)
    small = cv2.resize(film, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:_BITS_SIDE, :_BITS_SIDE].ravel()
    low[0] = np.median(low[1:])  # the mean says how bright the film is
    return np.packbits(low > low[0]).view(np.uint64)


def _evened(film: np.ndarray) -> np.ndarray:
    """float32 [h, w]: local mean 0, local spread near 1."""
    scale = _SIDE / max(film.shape)
    size = [max(_PATCH, round(side * scale)) for side in film.shape[::-1]]
    small = cv2.resize(film, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    detail = small - cv2.GaussianBlur(small, (0, 0), _SIDE / 24)
    # + 16: noise of four grey levels is not blown up.
    return detail / np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), _SIDE / 24) + 16)


def _window(plane: np.ndarray, share: float, down: float, right: float) -> np.ndarray:
    """float16 [256]: a square window as a patch."""
    side = max(2, round(min(plane.shape) * share))
    y, x = round((plane.shape[0] - side) * down), round((plane.shape[1] - side) * right)
    inside = np.ascontiguousarray(plane[y : y + side, x : x + side])
    patch = cv2.resize(inside, (_PATCH, _PATCH), interpolation=cv2.INTER_AREA).ravel()
    patch -= patch.mean()
    return (patch / (np.linalg.norm(patch) + 1e-6)).astype(np.float16)


def find(prints: Sequence[Print], places: Sequence[str]) -> list[Pair]:
    """The pairs that look like copies, the likest first.

    Args:
      prints: of N films.
      places: text of each film; two films of one place (patient and split) are no pair.

    Returns:
      Pairs of films of different places.
    """
    if len(prints) < 2:
        return []
    place = np.unique(np.asarray(places, object).astype(str), return_inverse=True)[1]
    bits = np.stack([p.bits for p in prints])
    pixels = np.unique([p.pixels.hex() for p in prints], return_inverse=True)[1]
    pairs = [*_near_bits(bits, place), *_exact(pixels, place)]
    if len(prints) <= MOST_WINDOWED:
        pairs += _near_middles(prints, place)
    found = []
    for a, b in sorted(set(pairs)):
        distance = int(np.bitwise_count(bits[a] ^ bits[b]).sum())
        exact = bool(pixels[a] == pixels[b])
        fit = 1.0 if exact else _correlation(prints[a].plane, prints[b].plane)
        if exact or fit >= SAME_CORRELATION or distance <= SAME_BITS:
            found.append(Pair(a, b, bits=distance, correlation=round(fit, 3), exact=exact))
    return sorted(found, key=lambda p: (not p.exact, -p.correlation, p.bits, p.a, p.b))


def _near_bits(bits: np.ndarray, place: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of few different bits, the fewest first, by blocks of the matrix of all pairs."""
    pairs, distances = [], []
    for start in range(0, len(bits), _BLOCK):
        block = slice(start, start + _BLOCK)
        # All pairs of the block at once: uint64 [block, N - start, 4].
        apart = np.bitwise_count(bits[block, None] ^ bits[None, start:]).sum(-1, dtype=np.uint16)
        near = (apart <= _NEAR_BITS) & (place[block, None] != place[None, start:])
        a, b = np.nonzero(np.triu(near, 1))
        pairs.append(np.stack([a, b], 1) + start)
        distances.append(apart[a, b])
    order = np.argsort(np.concatenate(distances), kind="stable")[:_MOST_CANDIDATES]
    return [tuple(pair) for pair in np.concatenate(pairs)[order].tolist()]


def _exact(pixels: np.ndarray, place: np.ndarray) -> list[tuple[int, int]]:
    """Of films of the same pixels, each with the first one of another place."""
    pairs = []
    for number in np.flatnonzero(np.bincount(pixels) > 1):
        films = np.flatnonzero(pixels == number)
        first, *rest = films.tolist()
        pairs += [(first, film) for film in rest if place[film] != place[first]]
    return pairs


def _near_middles(prints: Sequence[Print], place: np.ndarray) -> list[tuple[int, int]]:
    """Of each film the few others that it looks most like, as a part of them or they of it."""
    middle = np.stack([p.middle for p in prints]).astype(np.float32)
    windows = np.stack([p.windows for p in prints], 1)  # [windows, N, 256], float16
    alike = np.full((len(prints), len(prints)), -1, np.float32)
    for window in windows:
        np.maximum(alike, middle @ window.astype(np.float32).T, out=alike)
    np.maximum(alike, alike.T.copy(), out=alike)
    alike[place[:, None] == place[None]] = -1
    count = min(_PARTNERS, len(prints) - 1)
    partners = np.argpartition(-alike, count - 1, axis=1)[:, :count]
    films = np.repeat(np.arange(len(prints)), count)
    pairs = np.sort(np.stack([films, partners.ravel()], 1), axis=1)
    near = alike[pairs[:, 0], pairs[:, 1]] >= _NEAR_MIDDLE
    return [tuple(pair) for pair in np.unique(pairs[near], axis=0).tolist()]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """The best correlation of the middle two thirds of one plane with a place in the other."""
    best = -1.0
    for plane, other in ((a, b), (b, a)):
        height, width = plane.shape
        inside = plane[height // 6 : height - height // 6, width // 6 : width - width // 6]
        inside, other = inside.astype(np.float32), other.astype(np.float32)
        for scale in _SCALES:
            size = [max(4, round(side * scale)) for side in inside.shape[::-1]]
            if size[0] > other.shape[1] or size[1] > other.shape[0]:
                continue
            part = cv2.resize(inside, size, interpolation=cv2.INTER_AREA)
            if part.std() > 1e-3:  # of one grey it fits anywhere
                best = max(best, cv2.matchTemplate(other, part, cv2.TM_CCOEFF_NORMED).max())
    return float(best)
