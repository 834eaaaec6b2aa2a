"""Phantom radiographs as a data set: film i depends on (seed, i, size) and the kind of films only.

Nothing is stored.
"""

from cxr_jax.data import phantoms
from cxr_jax.data.records import FILM_FIELDS, Record
from cxr_jax.errors import InputError

VERSION = "1.0.0"  # changes when the phantoms change

# Each split has its own range of phantom numbers, so that no film is in two, whatever the counts.
# Films 2k and 2k + 1 are one patient: the range must be even.
RANGE = 1_000_000
FIRST = {"train": 0, "val": RANGE, "test": 2 * RANGE}
DISEASED = 0.65  # the usual share of films with an infection
MIXED = "mixed"  # every other patient is filmed on the other scanner


class PhantomCXR:
    """`count` phantoms of one split, with every field but a second reader.

    Args:
      split: 'train', 'val' or 'test'.
      count: number of films.
      seed: of the phantoms.
      size: height and width in pixels, 128..1024.
      appearance: 'standard' or 'shifted' (another scanner), or 'mixed', patients in turn.
      heavy: 0..1, raises how much of the infected lungs is covered and consolidated.
      diseased: 0..1, share of films with an infection of the lungs; the rest may still have
        another finding, such as an effusion.
      first: number of the first phantom within the split's range; even, as films 2k and 2k + 1 are
        one patient.

    Raises:
      InputError: count is outside 0 .. 1,000,000, an unknown appearance, heavy or diseased outside
        0..1; on reading, what `phantoms.phantom` raises.
    """

    name = "phantom_cxr"
    fields = FILM_FIELDS - {"severity_second"}
    partial = frozenset()

    def __init__(
        self,
        *,
        split: str,
        count: int,
        seed: int,
        size: int,
        appearance: str = "standard",
        heavy: float = 0.0,
        diseased: float = DISEASED,
        first: int = 0,
    ):
        if not 0 <= count <= RANGE:
            raise InputError(f"data.{split}={count} phantoms; expected 0 .. {RANGE:,}")
        if not 0 <= first <= RANGE - count or first % 2:
            raise InputError(f"data.first={first}; expected an even number 0 .. {RANGE - count:,}")
        self._first = FIRST[split] + first
        self.split, self.count, self.seed, self.size = split, count, seed, size
        names = phantoms.APPEARANCES if appearance == MIXED else (appearance,)
        shares = _shares(diseased)
        self._populations = [
            phantoms.Population(appearance=a, disease_extent=heavy, **shares) for a in names
        ]
        self.version = f"{VERSION}+seed{seed},{size}px,{appearance},heavy{heavy:g}"
        self.version += f",diseased{diseased:g}" if shares else ""
        self.version += f",from{first}" if first else ""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.count:
            raise IndexError(f"phantom {index} of {self.count}")
        population = self._populations[index // 2 % len(self._populations)]
        return phantoms.phantom(self.seed, self._first + index, self.size, population=population)


def _shares(diseased: float) -> dict[str, float]:
    """The shares of the three diagnoses, the two infections in their usual proportion; empty for
    the usual ones, so that these films stay what they were to the bit."""
    if not 0 <= diseased <= 1:
        raise InputError(f"data.diseased={diseased}; expected 0..1")
    if diseased == DISEASED:
        return {}
    usual = phantoms.Population()
    covid = diseased * usual.covid / (usual.covid + usual.other_infection)
    return {"normal": 1 - diseased, "covid": covid, "other_infection": diseased - covid}
