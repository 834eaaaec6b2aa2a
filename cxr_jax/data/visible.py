"""What of a film a network gets to see: a part of it, with or without the lungs.

Sets whose classes come from different hospitals can be told apart by the films' shape, borders and
text. A crop takes away some of that; and a network that sees everything but the lungs says how much
of a result is not of the lungs at all.
"""

import dataclasses

import numpy as np

from cxr_jax.data.preprocess import resize_map
from cxr_jax.data.records import BOXES, IMAGE, MASK, SCHEMA, Field, Record
from cxr_jax.errors import InputError

CROPS = ("nothing", "square", "lungs")
HIDES = ("nothing", "lungs", "outside")
_MARGIN = 0.02  # around the box of the lungs, of its sides

Window = tuple[slice, slice]


@dataclasses.dataclass(frozen=True)
class Visible:
    """What is left of a film.

    Attributes:
        crop: 'nothing'; to the middle 'square', of the shorter side; to the box of the 'lungs'.
        hide: 'nothing'; the 'lungs', or what is 'outside' of them, is painted black, before the
            preprocessing, so that no histogram knows it. The outline of the lungs stays visible.
            Where the mask has one lung alone, 'lungs' gives a black film, for the other one would
            be shown, and 'outside' that lung; without any lung the film is black either way.
    """

    crop: str = "nothing"
    hide: str = "nothing"

    def __post_init__(self):
        for name, values in (("crop", CROPS), ("hide", HIDES)):
            if getattr(self, name) not in values:
                raise InputError(
                    f"config.visible.{name}={getattr(self, name)!r}; expected one of "
                    f"{', '.join(values)}"
                )

    @property
    def needs_lungs(self) -> bool:
        """Whether `lungs` must be among the record's fields."""
        return self.crop == "lungs" or self.hide != "nothing"

    def window(self, record: Record) -> Window:
        """Rows and columns of the film that are seen; never empty.

        Args:
            record: with `image`, and `lungs` where they are needed: of one lung alone its box,
                without any lung all is seen.
        """
        height, width = record["image"].shape
        if self.crop == "square":
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            return slice(top, top + side), slice(left, left + side)
        if self.crop == "lungs" and record["lungs"].any():
            return _box(record["lungs"] > 0)
        return slice(0, height), slice(0, width)

    def __call__(self, record: Record) -> Record:
        """The record with what is seen of its image and masks. Its boxes are left out."""
        window = self.window(record)
        seen = {name: value for name, value in record.items() if not _is_of_boxes(SCHEMA[name])}
        for name in seen:
            if SCHEMA[name].kind in (IMAGE, MASK):
                seen[name] = record[name][window]
        if self.hide != "nothing":
            lungs = seen["lungs"] > 0
            both = all((record["lungs"] == number).any() for number in (1, 2))
            seen["image"] = seen["image"] * (~lungs & both if self.hide == "lungs" else lungs)
        return seen

    def on_film(self, values: np.ndarray, record: Record) -> np.ndarray:
        """A map of what was seen, float32 [h, w], on the whole film [H, W]; 0 beside the window."""
        rows, columns = window = self.window(record)
        film = np.zeros(record["image"].shape, np.float32)
        shape = rows.stop - rows.start, columns.stop - columns.start
        film[window] = resize_map(np.asarray(values, np.float32), shape)
        return film


def _is_of_boxes(field: Field) -> bool:
    return field.kind == BOXES or bool(field.boxes)


def _box(mask: np.ndarray) -> Window:
    """The upright box around a mask, with a small margin, within the film."""
    found = []
    for axis in (1, 0):
        there = np.flatnonzero(mask.any(axis=axis))
        margin = round(_MARGIN * (there[-1] - there[0] + 1))
        stop = min(int(there[-1]) + 1 + margin, mask.shape[1 - axis])
        found.append(slice(max(int(there[0]) - margin, 0), stop))
    return found[0], found[1]
