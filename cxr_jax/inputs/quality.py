"""Whether a film is one that a model of frontal films can be asked about.

A model says something of every picture. Here a few plain measures of the picture, and of the lungs
where a mask of them is at hand, are held against the range that films have; what lies outside is
told as a reason. Nothing is refused: the score stands beside the reason, and the picture is marked.

The picture is compared with the mean film, 32x32 cells of which only the order of brightness
counts: so neither exposure nor window matter, and a film that is turned or inverted is more like
the mean film when it is turned back. Mean film and ranges come from `benchmarks/film_quality.py`,
which writes `cxr_jax/packaged/film_quality.json` and says what share of good films is kept and what
share of wrong ones is caught. None of it is of the papers.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from cxr_jax import small_files

FILE = pathlib.Path(__file__).parents[1] / "packaged" / "film_quality.json"
CELLS = 32
# Measure -> what is said of a film below and above its range; '' where that is no fault.
REASONS = {
    "likeness": ("does not look like a frontal chest film", ""),
    "turned": ("", "looks turned, by 90 or 180 degrees"),
    "inverted": ("", "looks inverted: air light, bone dark"),
    "coloured": ("", "is a colour picture"),
    "contrast": ("has almost no contrast", ""),
    "dark": ("", "is black in large parts: underexposed, cropped or no film"),
    "light": ("", "is white in large parts: overexposed, or the field is not the chest"),
    "lung_area": ("has implausibly small lungs", "has implausibly large lungs"),
    "lung_balance": ("shows one lung, or one that is far smaller", ""),
    "lung_height": ("has lungs that are too flat", "has lungs that are too narrow"),
    "lung_air": ("has lungs that are not darker than what surrounds them", ""),
}


class Quality(NamedTuple):
    """What is to be said of a film before its scores.

    Attributes:
      reasons: why it should not be scored; () where nothing speaks against it.
      measures: name -> number, of those that could be taken.
    """

    reasons: tuple[str, ...]
    measures: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """For `predictions.jsonl`."""
        measures = {name: round(value, 3) for name, value in self.measures.items()}
        return {"usable": not self.reasons, "reasons": list(self.reasons), "measures": measures}


class Standard(NamedTuple):
    """What films are held against.

    Attributes:
      mean_film: float32 [32, 32], of mean 0 and norm 1.
      ranges: measure -> (lowest, highest); None is open.
      slice_likeness: what is more like the mean film than this is no slice of a CT.
    """

    mean_film: np.ndarray
    ranges: dict[str, tuple[float | None, float | None]]
    slice_likeness: float


@functools.cache
def standard() -> Standard:
    """The packaged one.

    Raises:
      InputError: its file is damaged.
    """
    fields = small_files.read_fields(FILE, "install the package again")
    ranges = fields.get("ranges", dict)
    return Standard(
        mean_film=_normed(np.array(fields.get("mean_film", list), np.float32)),
        ranges={name: tuple(ranges.get(name, (None, None))) for name in REASONS},
        slice_likeness=fields.get("slice_likeness", float),
    )


def judge(
    film: np.ndarray,
    *,
    lungs: np.ndarray | None = None,
    coloured: float = 0.0,
    by: Standard | None = None,
) -> Quality:
    """Measures a film and says what speaks against it.

    Args:
      film: uint8 [H, W].
      lungs: labels [H, W], 0, 1 the patient's right, 2 the left; None where nobody drew them.
      coloured: mean difference of the colours, 0..255, of what the film was made of.
      by: another standard than the packaged one.
    """
    by = by or standard()
    found = {"coloured": coloured} | measures(film, by.mean_film, lungs=lungs)
    return Quality(reasons_of(found, by.ranges), found)


def judge_slice(image: np.ndarray, *, by: Standard | None = None) -> Quality:
    """What speaks against a picture that a model of CT slices is asked about.

    Args:
      image: uint8 [H, W].
      by: as `judge`.
    """
    by = by or standard()
    like = likeness(image, by.mean_film)
    film = ("looks like a chest film, not like a slice of a CT",)
    return Quality(film if like > by.slice_likeness else (), {"likeness": like})


def reasons_of(
    found: Mapping[str, float], ranges: Mapping[str, Sequence[float | None]]
) -> tuple[str, ...]:
    """What speaks against a film of these measures.

    Args:
      found: measure -> number.
      ranges: measure -> (lowest, highest); None is open.
    """
    reasons = {}
    for name, value in found.items():
        low, high = ranges.get(name, (None, None))
        below, above = REASONS[name]
        if low is not None and value < low:
            reasons[name] = below
        if high is not None and value > high:
            reasons[name] = above
    if reasons.keys() >= {"turned", "inverted"}:
        like = -found["inverted"] / 2  # as it is; turned back and inverted back it is more so
        reasons.pop("inverted" if like + found["turned"] > -like else "turned")
    if reasons.keys() & {"turned", "inverted"}:  # they say why
        reasons.pop("likeness", None)
    return tuple(filter(None, reasons.values()))


def measures(
    film: np.ndarray, mean_film: np.ndarray, *, lungs: np.ndarray | None = None
) -> dict[str, float]:
    """Name -> number, of those in `REASONS` that need no file.

    Args:
      film: uint8 [H, W].
      mean_film: of a `Standard`.
      lungs: as `judge`.
    """
    cells = order_of_brightness(film)
    like = [float(np.sum(np.rot90(cells, k) * mean_film)) for k in range(4)]
    height, width = film.shape
    middle = film[height // 8 : height - height // 8, width // 8 : width - width // 8]
    low, high = np.percentile(middle if middle.size else film, (5, 95))
    found = {
        "likeness": like[0],
        # How much more like the mean film it is when turned back, or inverted back.
        "turned": max(like[1:]) - like[0],
        "inverted": -2 * like[0],
        "contrast": float(high - low),
        "dark": float(np.mean(middle <= 5)),
        "light": float(np.mean(middle >= 250)),
    }
    return found if lungs is None else found | _of_lungs(film, lungs)


def likeness(picture: np.ndarray, mean_film: np.ndarray) -> float:
    """How like the mean film a picture uint8 [H, W] is, -1..1."""
    return float(np.sum(order_of_brightness(picture) * mean_film))


def order_of_brightness(film: np.ndarray) -> np.ndarray:
    """float32 [32, 32] of mean 0 and norm 1: the ranks of the cells' mean brightness."""
    small = cv2.resize(film, (CELLS, CELLS), interpolation=cv2.INTER_AREA).astype(np.float32)
    ranks = np.empty(small.size, np.float32)
    ranks[np.argsort(small, axis=None, kind="stable")] = np.arange(small.size)
    return _normed(ranks.reshape(small.shape))


def _normed(cells: np.ndarray) -> np.ndarray:
    cells = cells - cells.mean()
    return cells / max(float(np.linalg.norm(cells)), 1e-6)


def _of_lungs(film: np.ndarray, lungs: np.ndarray) -> dict[str, float]:
    both = lungs > 0
    right, left = int((lungs == 1).sum()), int((lungs == 2).sum())
    found = {
        "lung_area": (right + left) / both.size,
        "lung_balance": min(right, left) / max(right, left, 1),
    }
    if not both.any():
        return found
    rows, columns = np.flatnonzero(both.any(1)), np.flatnonzero(both.any(0))
    tall, wide = (line[-1] - line[0] + 1 for line in (rows, columns))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    around = film[box][~both[box]]
    if around.size:
        found["lung_air"] = float(around.mean()) - float(film[both].mean())
    return found | {"lung_height": float(tall / wide)}
