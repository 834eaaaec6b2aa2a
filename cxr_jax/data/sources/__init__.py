"""Data sets behind one door: `open_source(config.data, split)`.

A source gives standard records (`cxr_jax/data/records.py`) by number. To add a data set, write a
file beside this one and one line in `open_source`.
"""

from typing import Any, Protocol

from cxr_jax.data import splits
from cxr_jax.data.records import Record
from cxr_jax.errors import InputError

SPLITS = ("train", "val", "test")
GREATEST_SEVERITY = 18  # six zones of 0..3


class Source(Protocol):
    """One split of a data set: records by number. It pickles, for spawned workers.

    Attributes:
      name: the data set.
      version: says whether two runs saw the same data.
      split: 'train', 'val' or 'test'.
      fields: what its records have.
      partial: those of `fields` that some records lack (a film without a lung mask).
    """

    name: str
    version: str
    split: str
    fields: frozenset[str]
    partial: frozenset[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class Subset:
    """Some records of a source, in the order of `indices`, under the source's name and split."""

    def __init__(self, source: Source, indices: list[int], *, partial: frozenset[str]):
        self.source = source
        self.indices = list(indices)
        self.name, self.split = source.name, source.split
        self.version = source.version + splits.selection(self.indices, len(source))
        self.fields, self.partial = source.fields, partial

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.source[self.indices[index]]


class SliceSubset(Subset):
    """Some slices of a CT source; see `slices.SliceSource`."""

    def slice_table(self) -> Any:
        """The rows of the source's `SliceTable` that are chosen here."""
        table = self.source.slice_table()
        return type(table)(*(column[self.indices] for column in table))


def open_source(data: Any, split: str) -> Source:
    """Opens one split of the data set that a config names.

    Args:
      data: the config's `data`: `name` and what that data set reads. phantom_cxr: `seed`, `size`,
        `appearance`, `heavy`, `diseased`, their `test_` forms and the number of films `train`,
        `val`, `test`. phantom_ct: `seed`, `size`, `heavy`, `slices`, `positive`, `label_every`, the
        number of volumes `train`, `val`, `test`. brixia_cohen: `data_dir` (may be empty), `fold`,
        `min_severity` and `max_severity`, the global scores 0..18 between which its training films
        are taken; brixia the same. jsrt_scr, montgomery, shenzhen: `data_dir` and `fold`. chexpert:
        these two, `uncertain` and `blank`; nih_cxr14: these two and `split_by`; cxr_3class: these
        two and `leave_out_overlap`. ct_lesions: `data_dir`, `fold` and `halves`; covid19_ct_seg:
        `data_dir` and `fold`. manifest: `path`, the CSV file; ct_volume: `path`, the folder that
        `prepare ct_volume` made of one.
      split: 'train', 'val' or 'test'.

    Raises:
      InputError: an unknown data set or split, or data that are not prepared (with the command).
    """
    openers = {
        "phantom_cxr": _phantom_cxr,
        "phantom_ct": _phantom_ct,
        "brixia_cohen": _brixia_cohen,
        "manifest": _manifest,
        "chexpert": _chexpert,
        "nih_cxr14": _nih_cxr14,
        "cxr_3class": _cxr_3class,
        "brixia": _brixia,
        "jsrt_scr": _lung_masks,
        "montgomery": _lung_masks,
        "shenzhen": _lung_masks,
        "ct_lesions": _ct_lesions,
        "covid19_ct_seg": _covid19_ct_seg,
        "ct_volume": _ct_volume,
    }
    if data.name not in openers:
        raise InputError(f"data.name={data.name!r}; expected one of {', '.join(openers)}")
    if split not in SPLITS:
        raise InputError(f"split {split!r}; expected one of {', '.join(SPLITS)}")
    return openers[data.name](data, split)


def only_with(source: Source, needed: set[str] | frozenset[str]) -> Source:
    """The records of `source` that have all of `needed`; `source` itself where all have them.

    Reads each record once where a needed field is among `source.partial`.
    """
    doubtful = source.partial & frozenset(needed)
    if not doubtful:
        return source
    has = getattr(source, "has", None) or (lambda i, field: field in source[i])
    indices = [i for i in range(len(source)) if all(has(i, field) for field in doubtful)]
    kind = SliceSubset if hasattr(source, "slice_table") else Subset
    return kind(source, indices, partial=source.partial - doubtful)


def by_severity(source: Source, least: int, most: int) -> Source:
    """The films of `source` whose global severity score (0..18) lies in `least` .. `most`; `source`
    itself where that is all of them. Reads each record once.

    Raises:
      InputError: no score can lie there, or none of the films does.
    """
    if (least, most) == (0, GREATEST_SEVERITY):
        return source
    if not 0 <= least <= most <= GREATEST_SEVERITY:
        raise InputError(
            f"data.min_severity={least} and data.max_severity={most}; expected "
            f"0 <= min_severity <= max_severity <= {GREATEST_SEVERITY}"
        )
    records = (source[index] for index in range(len(source)))
    scores = [int((r["severity"] * r["severity_valid"]).sum()) for r in records]
    indices = [i for i, score in enumerate(scores) if least <= score <= most]
    if not indices:
        raise InputError(
            f"data set {source.name!r} (split {source.split!r}) has no film with a global severity "
            f"score in {least}..{most}; widen data.min_severity and data.max_severity"
        )
    return Subset(source, indices, partial=source.partial)


# Each opener imports its own file: TensorFlow Datasets takes seconds to import, phantoms need none.


def _phantom_cxr(data: Any, split: str) -> Source:
    from cxr_jax.data.sources import phantom_cxr

    counts = {"train": data.train, "val": data.val, "test": data.test}
    test = split != "train"
    return phantom_cxr.PhantomCXR(
        split=split,
        count=counts[split],
        seed=data.seed,
        size=data.size,
        appearance=(test and data.test_appearance) or data.appearance,
        heavy=data.test_heavy if test and data.test_heavy >= 0 else data.heavy,
        diseased=data.test_diseased if test and data.test_diseased >= 0 else data.diseased,
        first=0 if test else data.first,
    )


def _phantom_ct(data: Any, split: str) -> Source:
    from cxr_jax.data.sources import phantom_ct

    counts = {"train": data.train, "val": data.val, "test": data.test}
    return phantom_ct.PhantomCT(
        split=split,
        count=counts[split],
        seed=data.seed,
        size=data.size,
        slices=data.slices,
        positive=data.positive,
        heavy=data.test_heavy if split != "train" and data.test_heavy >= 0 else data.heavy,
        label_every=data.label_every,
    )


def _brixia_cohen(data: Any, split: str) -> Source:
    from cxr_jax.data.sources import brixia_cohen

    source = brixia_cohen.open_split(data.data_dir, split, fold=data.fold)
    if split != "train":
        return source
    return by_severity(source, data.min_severity, data.max_severity)


def _manifest(data: Any, split: str) -> Source:
    from cxr_jax.data.sources import manifest

    return manifest.open_split(data.path, split)


def _brixia(data: Any, split: str) -> Source:
    from cxr_jax.data.sources import brixia

    source = brixia.open_split(data.data_dir, split, fold=data.fold)
    if split != "train":
        return source
    return by_severity(source, data.min_severity, data.max_severity)


def _lung_masks(data: Any, split: str) -> Source:
    from cxr_jax.data.sources import lung_masks

    return lung_masks.open_split(data.name, data.data_dir, split, fold=data.fold)


def _chexpert(data: Any, split: str) -> Source:
    from cxr_jax.data.sources import chexpert

    return chexpert.open_split(
        data.data_dir, split, fold=data.fold, uncertain=data.uncertain, blank=data.blank
    )


def _nih_cxr14(data: Any, split: str) -> Source:
    from cxr_jax.data.sources import nih_cxr14

    return nih_cxr14.open_split(data.data_dir, split, fold=data.fold, split_by=data.split_by)


def _cxr_3class(data: Any, split: str) -> Source:
    from cxr_jax.data.sources import cxr_3class

    return cxr_3class.open_split(
        data.data_dir, split, fold=data.fold, leave_out_overlap=data.leave_out_overlap
    )


def _ct_lesions(data: Any, split: str) -> Source:
    from cxr_jax.data.sources import ct_lesions

    return ct_lesions.open_split(data.data_dir, split, fold=data.fold, halves=data.halves)


def _covid19_ct_seg(data: Any, split: str) -> Source:
    from cxr_jax.data.sources import covid19_ct_seg

    return covid19_ct_seg.open_split(data.data_dir, split, fold=data.fold)


def _ct_volume(data: Any, split: str) -> Source:
    from cxr_jax.data.sources import ct_volume

    return ct_volume.open_split(data.path, split)
