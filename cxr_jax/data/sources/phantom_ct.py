"""Phantom CT volumes as a data set of slices: a slice depends on its volume's number and the
options only.

Nothing is stored.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from cxr_jax.data.phantoms import ct
from cxr_jax.data.records import CT_FIELDS, Record
from cxr_jax.data.sources.base import SliceTable
from cxr_jax.errors import InputError

VERSION = "1.0.0"  # changes when the phantoms change

# Each split has its own range of volume numbers, so that no patient is in two, whatever the counts.
RANGE = 1_000_000
FIRST = {"train": 0, "val": RANGE, "test": 2 * RANGE}


@dataclasses.dataclass(frozen=True)
class Options:
    """What `config.data` has beside the name; see `PhantomCT`.

    Attributes:
      seed: of the phantoms
      size: height and width, 64..512 px
      slices: of a volume, 8..512
      positive: 0..1, share of volumes with lesions
      other: 0..1, share of these that have another infection than COVID-19
      disease_extent: 0..1, how much wider and longer lesions are: at 1 twice
      test_disease_extent: of the val and test volumes; -1: as disease_extent
      label_every: training labels every n-th slice with a lesion; 1: all of them
      train: number of training volumes
      val: number of validation volumes
      test: number of test volumes
    """

    seed: int = 0
    size: int = 256
    slices: int = 32
    positive: float = 0.6
    other: float = 0.0
    disease_extent: float = 0.0
    test_disease_extent: float = -1.0
    label_every: int = 4
    train: int = 2048
    val: int = 128
    test: int = 256


def open_split(options: Options, split: str) -> "PhantomCT":
    """The slices of one split.

    Raises:
      InputError: what `PhantomCT` raises.
    """
    o, other = options, split != "train" and options.test_disease_extent >= 0
    return PhantomCT(
        split=split,
        count={"train": o.train, "val": o.val, "test": o.test}[split],
        seed=o.seed,
        size=o.size,
        slices=o.slices,
        positive=o.positive,
        other=o.other,
        disease_extent=o.test_disease_extent if other else o.disease_extent,
        label_every=o.label_every,
    )


class PhantomCT:
    """The slices of `count` phantom volumes of one split; slices of a volume lie in a row.

    Positive volumes (with lesions) and negative ones alternate, so that the first n volumes hold
    the share `positive` of positive ones for every n, to within one volume. Masks are exact in all
    splits. In the training split `slice_label` is what the paper's readers gave: they marked every
    fourth or fifth slice with a lesion, so of a positive volume the first lesion-bearing slice from
    above, and every `label_every`-th after it, is 1; its other slices are NaN, unknown, be there a
    lesion or not. Negative volumes are 0 throughout. With `label_every` 1, and in the other
    splits, every label is known. A slice of known label has a `diagnosis`, of its own: normal where
    it has no lesion, else the infection of its volume.

    Args:
      split: 'train', 'val' or 'test'.
      count: number of volumes, one patient each.
      seed: of the phantoms.
      size: height and width in pixels, 64..512.
      slices: of a volume, 8..512.
      positive: 0..1, share of positive volumes.
      other: 0..1, share of the positive ones that have another infection than COVID-19; they are
        spread as evenly.
      disease_extent: 0..1, how much wider and longer lesions are: at 1 twice.
      label_every: 1 or more.

    Raises:
      InputError: an argument outside its range.
    """

    name = "phantom_ct"
    fields = CT_FIELDS | {"image", "id", "group", "diagnosis", "lungs", "lesion", "lesion_type"}

    def __init__(
        self,
        *,
        split: str,
        count: int,
        seed: int,
        size: int,
        slices: int = 32,
        positive: float = 0.6,
        other: float = 0.0,
        disease_extent: float = 0.0,
        label_every: int = 4,
    ):
        if not 0 <= count <= RANGE:
            raise InputError(f"data.{split}={count} phantom volumes; expected 0 .. {RANGE:,}")
        if seed < 0:
            raise InputError(f"data.seed={seed} must not be negative")
        least, most = ct.MIN_SIZE, ct.MAX_SIZE
        if not least <= size <= most:
            raise InputError(f"data.size={size} px; CT phantoms have {least}..{most}")
        least, most = ct.MIN_SLICES, ct.MAX_SLICES
        if not least <= slices <= most:
            raise InputError(f"data.slices={slices} a volume; expected {least}..{most}")
        shares = {"positive": positive, "other": other, "disease_extent": disease_extent}
        for option, share in shares.items():
            if not 0 <= share <= 1:
                raise InputError(f"data.{option}={share}; expected 0..1")
        if label_every < 1:
            raise InputError(f"data.label_every={label_every}; expected 1 or more")
        self.split, self.count, self.seed, self.size = split, count, seed, size
        self.slices, self.positive, self.disease_extent = slices, positive, disease_extent
        self.other = other
        self.label_every = label_every if split == "train" else 1
        self.partial = frozenset({"diagnosis"} if self.label_every > 1 else ())
        # Labels by volume, made when first asked for. Threads that ask at once write the same.
        self._labels: dict[int, np.ndarray] = {}
        self.version = f"{VERSION}+seed{seed},{size}px,{slices}slices,positive{positive:g}"
        # `heavy`: its name when the first runs were trained, which compare this text.
        self.version += f",heavy{disease_extent:g}" if disease_extent else ""
        self.version += f",other{other:g}" if other else ""
        self.version += f",label{label_every}" if self.label_every > 1 else ""

    def __len__(self) -> int:
        return self.count * self.slices

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"slice {index} of {len(self)}")
        volume, position = divmod(index, self.slices)
        record = ct.ct_slice(
            self.seed,
            FIRST[self.split] + volume,
            position,
            size=self.size,
            slices=self.slices,
            positive=self._is_positive(volume),
            lobar=self._is_other(volume),
            disease_extent=self.disease_extent,
        )
        if self.label_every > 1:
            record["slice_label"] = self._volume_labels(volume)[position]
            if np.isnan(record["slice_label"]):
                del record["diagnosis"]
        return record

    def has(self, index: int, field: str) -> bool:
        """Whether a record has a field; draws none."""
        if field == "diagnosis":
            return self.peek(index, field) is not None
        return field in self.fields

    def peek(self, index: int, field: str) -> Any:
        """As `base.peek`; no slice is drawn for its diagnosis."""
        if field != "diagnosis":
            return self[index].get(field)
        volume, position = divmod(index, self.slices)
        label = self._volume_labels(volume)[position]
        return None if np.isnan(label) else ct.slice_diagnosis(label == 1, self._is_other(volume))

    def slice_table(self) -> SliceTable:
        """Draws the lesions of every positive volume on a small lattice, once: about 40 ms each."""
        labels = [self._volume_labels(volume) for volume in range(self.count)]
        return SliceTable(
            volume=np.repeat(np.arange(self.count), self.slices),
            position=np.tile(np.arange(self.slices), self.count),
            label=np.concatenate([np.zeros(0, np.float32), *labels]),
        )

    def _is_positive(self, volume: int) -> bool:
        return _count(volume + 1, self.positive) > _count(volume, self.positive)

    def _is_other(self, volume: int) -> bool:
        """Of the positive volumes every so-and-so-manieth, the first one not before its turn."""
        before = _count(volume, self.positive)
        turn = math.floor((before + 1) * self.other + 1e-9) > math.floor(before * self.other + 1e-9)
        return turn and self._is_positive(volume)

    def _volume_labels(self, volume: int) -> np.ndarray:
        """float32 [slices]: 1, 0 or NaN."""
        if not self._is_positive(volume):
            return np.zeros(self.slices, np.float32)
        if volume not in self._labels:
            number = FIRST[self.split] + volume
            lesion = ct.lesion_slices(
                self.seed,
                number,
                slices=self.slices,
                lobar=self._is_other(volume),
                disease_extent=self.disease_extent,
            )
            labels = lesion.astype(np.float32)
            if self.label_every > 1:
                labels[:] = np.nan
                labels[np.flatnonzero(lesion)[:: self.label_every]] = 1
            self._labels[volume] = labels
        return self._labels[volume]


def _count(volumes: int, share: float) -> int:
    """How many of the first volumes are of that share."""
    # A hair less, so that 15 * 0.2, which is a little over 3, counts as 3.
    return math.ceil(volumes * share - 1e-9)
