"""Phantom radiographs as a data set: film i depends on (seed, i, size) and the kind of films only.

Nothing is stored.
"""

import dataclasses

import numpy as np

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
READERS = ("exact", "strict")


@dataclasses.dataclass(frozen=True)
class Options:
    """What `config.data` has beside the name.

    Attributes:
      seed: of the phantoms
      size: height and width, 128..1024 px
      appearance: standard, shifted (another scanner) or mixed (patients in turn)
      test_appearance: of the val and test films; empty: as appearance
      disease_extent: 0..1, raises how much of infected lungs is covered and consolidated
      test_disease_extent: of the val and test films; -1: as disease_extent
      diseased: 0..1, share of films with an infection of the lungs
      test_diseased: of the val and test films; -1: as diseased
      reader: whose zone scores they are: exact, or strict: one less, so that what is slight is none
      first: number of the first training film, even
      train: number of training films
      val: number of validation films
      test: number of test films
    """

    seed: int = 0
    size: int = 256
    appearance: str = "standard"
    test_appearance: str = ""
    disease_extent: float = 0.0
    test_disease_extent: float = -1.0
    diseased: float = DISEASED
    test_diseased: float = -1.0
    reader: str = "exact"
    first: int = 0
    train: int = 2048
    val: int = 128
    test: int = 256


def open_split(options: Options, split: str) -> "PhantomCXR":
    """The films of one split.

    Raises:
      InputError: what `PhantomCXR` raises.
    """
    o, test = options, split != "train"
    return PhantomCXR(
        split=split,
        count={"train": o.train, "val": o.val, "test": o.test}[split],
        seed=o.seed,
        size=o.size,
        appearance=(test and o.test_appearance) or o.appearance,
        disease_extent=(
            o.test_disease_extent if test and o.test_disease_extent >= 0 else o.disease_extent
        ),
        diseased=o.test_diseased if test and o.test_diseased >= 0 else o.diseased,
        reader=o.reader,
        first=0 if test else o.first,
    )


class PhantomCXR:
    """`count` phantoms of one split, with every field but a second reader.

    Args:
      split: 'train', 'val' or 'test'.
      count: number of films.
      seed: of the phantoms.
      size: height and width in pixels, 128..1024.
      appearance: 'standard' or 'shifted' (another scanner), or 'mixed', patients in turn.
      disease_extent: 0..1, raises how much of the infected lungs is covered and consolidated.
      diseased: 0..1, share of films with an infection of the lungs; the rest may still have
        another finding, such as an effusion.
      reader: 'exact', or 'strict', whose habit it is to give a zone a point less than it has: 0 for
        1, so that a zone is positive from score 2 on. Masks and findings stay exact.
      first: number of the first phantom within the split's range; even, as films 2k and 2k + 1 are
        one patient.

    Raises:
      InputError: count is outside 0 .. 1,000,000, an unknown appearance, disease_extent or diseased
        outside 0..1, an unknown reader; on reading, what `phantoms.phantom` raises.
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
        disease_extent: float = 0.0,
        diseased: float = DISEASED,
        reader: str = "exact",
        first: int = 0,
    ):
        if not 0 <= count <= RANGE:
            raise InputError(f"data.{split}={count} phantoms; expected 0 .. {RANGE:,}")
        if not 0 <= first <= RANGE - count or first % 2:
            raise InputError(f"data.first={first}; expected an even number 0 .. {RANGE - count:,}")
        if not 0 <= disease_extent <= 1:
            raise InputError(f"data.disease_extent={disease_extent}; expected 0..1")
        if reader not in READERS:
            raise InputError(f"data.reader={reader!r}; expected one of {', '.join(READERS)}")
        self._first, self._strict = FIRST[split] + first, reader == "strict"
        self.split, self.count, self.seed, self.size = split, count, seed, size
        names = phantoms.APPEARANCES if appearance == MIXED else (appearance,)
        shares = _shares(diseased)
        self._populations = [
            phantoms.Population(appearance=a, disease_extent=disease_extent, **shares)
            for a in names
        ]
        # `heavy`: its name when the first runs were trained, which compare this text.
        self.version = f"{VERSION}+seed{seed},{size}px,{appearance},heavy{disease_extent:g}"
        self.version += f",diseased{diseased:g}" if shares else ""
        self.version += ",strict" if self._strict else ""
        self.version += f",from{first}" if first else ""

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.count:
            raise IndexError(f"phantom {index} of {self.count}")
        population = self._populations[index // 2 % len(self._populations)]
        film = phantoms.phantom(self.seed, self._first + index, self.size, population=population)
        if self._strict:
            film["severity"] = np.maximum(film["severity"] - 1, 0).astype(np.int8)
        return film


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
