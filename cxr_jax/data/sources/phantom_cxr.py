"""Phantom radiographs as a data set: film i depends on (seed, i, size) only, nothing is stored."""

from cxr_jax.data import phantoms
from cxr_jax.data.records import FIELDS, Record
from cxr_jax.errors import InputError

VERSION = "1.0.0"  # changes when the phantoms change

# Each split has its own range of phantom numbers, so that no film is in two, whatever the counts.
# Films 2k and 2k + 1 are one patient: the range must be even.
RANGE = 1_000_000
FIRST = {"train": 0, "val": RANGE, "test": 2 * RANGE}


class PhantomCXR:
    """`count` phantoms of one split, with every field but a second reader.

    Args:
      split: 'train', 'val' or 'test'.
      count: number of films.
      seed: of the phantoms.
      size: height and width in pixels, 128..1024.

    Raises:
      InputError: count is outside 0 .. 1,000,000; on reading, what `phantoms.phantom` raises.
    """

    name = "phantom_cxr"
    version = VERSION
    fields = FIELDS - {"severity_second"}
    partial = frozenset()

    def __init__(self, *, split: str, count: int, seed: int, size: int):
        if not 0 <= count <= RANGE:
            raise InputError(f"data.{split}={count} phantoms; expected 0 .. {RANGE:,}")
        self.split, self.count, self.seed, self.size = split, count, seed, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.count:
            raise IndexError(f"phantom {index} of {self.count}")
        return phantoms.phantom(self.seed, FIRST[self.split] + index, self.size)
