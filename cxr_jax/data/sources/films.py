"""The films of several prepared sets, without their labels: for self-supervised pre-training.

Each set gives its own split of that name, with its default options but for `fold`, so that no test
film of a set is trained on, and with a fold no film of it either: give the one on whose films a
later run chooses its thresholds. What sets share is left out or refused (docs/data_sets.md,
Overlaps):

- `cxr_3class` comes without the patients it shares with `brixia_cohen`, and where both are joined
  so does `brixia_cohen`: whichever is tested later, these patients were not seen.
- two of `nih_cxr14`, `nih_cxr8` and `cxr_3class`, which hold the same films, are refused.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from cxr_jax.data import sources
from cxr_jax.data.records import Record
from cxr_jax.data.sources import prepared
from cxr_jax.data.sources.base import Source, Subset, of_files, peek
from cxr_jax.errors import InputError

FIELDS = frozenset({"image", "id", "group", "view"})
OPTIONS = {"cxr_3class": {"leave_out_overlap": True}}  # other than the set's default
SAME_FILMS = {"cxr_3class", "nih_cxr14", "nih_cxr8"}


@dataclasses.dataclass(frozen=True)
class Options:
    """See the module.

    Attributes:
      sets: names of data sets, parted by commas
      fold: this fold of the sets that have folds is not trained on; -1: all are
      data_dir: where they were prepared; empty: $CXR_DATA_DIR, else ~/cxr_jax_data
    """

    sets: str = ""
    fold: int = -1
    data_dir: str = ""


def open_split(options: Options, split: str) -> "Films":
    """Opens that split of every set.

    Raises:
      InputError: no set, one that is unknown, named twice, of CT or not prepared (with the
        command), or two that hold the same films.
    """
    names = [name.strip() for name in options.sets.split(",") if name.strip()]
    _check(names, options.data_dir)
    opened = [_open(name, options.data_dir, split, fold=options.fold) for name in names]
    if {"cxr_3class", "brixia_cohen"} <= set(names):
        at = names.index("brixia_cohen")
        opened[at] = _without_shared(opened[at], options.data_dir)
    return Films(opened, split)


class Films:
    """The records of several sources, one set behind the other, reduced to `FIELDS`.

    Patients of two sets are two patients: `id` and `group` have the set's name before them.

    Attributes:
      parts: the sources.
    """

    def __init__(self, parts: Sequence[Source], split: str):
        self.parts = list(parts)
        self._starts = [0, *itertools.accumulate(map(len, parts))]
        self.name, self.split = "films", split
        self.version = "+".join(f"{part.name}:{part.version}" for part in parts)
        viewed = [part for part in parts if "view" in part.fields]
        self.fields = FIELDS if viewed else FIELDS - {"view"}
        doubtful = len(viewed) < len(parts) or any("view" in part.partial for part in viewed)
        self.partial = frozenset({"view"}) if viewed and doubtful else frozenset()
        counts = ", ".join(f"{part.name} {len(part)}" for part in parts)
        told = [note for part in parts for note in getattr(part, "notes", ())]
        self.notes = (f"films of {counts}", *told)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Record:
        part, at = self._place(index)
        record = {name: value for name, value in part[at].items() if name in FIELDS}
        return record | {name: f"{part.name}/{record[name]}" for name in ("id", "group")}

    def peek(self, index: int, field: str) -> Any:
        """See `base.peek`."""
        part, at = self._place(index)
        value = peek(part, at, field) if field in FIELDS else None
        return f"{part.name}/{value}" if field in ("id", "group") else value

    def stored(self, index: int) -> bytes:
        """The film as it is stored; its name where its set stores none."""
        part, at = self._place(index)
        return part.stored(at) if of_files(part) else self.peek(index, "id").encode()

    def stored_size(self, index: int) -> int:
        """Bytes of `stored`."""
        return len(self.stored(index))

    def _place(self, index: int) -> tuple[Source, int]:
        number = bisect.bisect_right(self._starts, index) - 1
        if not 0 <= number < len(self.parts):
            raise IndexError(index)
        return self.parts[number], index - self._starts[number]


def _check(names: Sequence[str], data_dir: str) -> None:
    if not names:
        there = ", ".join(_prepared_sets(data_dir)) or "none"
        raise InputError(
            f"data.sets is empty; name data sets, parted by commas; prepared in "
            f"{prepared.data_folder(data_dir)}: {there}"
        )
    for name in names:
        sources.find(name, "data.sets")
        if sources.DATASETS[name].ct:
            raise InputError(f"data.sets={','.join(names)!r}: {name!r} is of CT, not of films")
        if name == "films" or names.count(name) > 1:
            raise InputError(f"data.sets={','.join(names)!r} has {name!r} where it cannot be")
    if len(alike := sorted(SAME_FILMS & set(names))) > 1:
        raise InputError(
            f"data.sets has {' and '.join(alike)}, which hold the same films in other "
            "splits; leave one out"
        )


def _prepared_sets(data_dir: str) -> list[str]:
    """Those of films that lie in the folder."""
    every = sources.DATASETS.items()
    known = [name for name, e in every if e.source and not e.by_path and not e.ct]
    folder = prepared.data_folder(data_dir)
    return [name for name in known if (folder / name).is_dir()]


def _open(name: str, data_dir: str, split: str, **options: Any) -> Source:
    known = sources.option_names(name)
    asked = {key: x for key, x in {"data_dir": data_dir, **options}.items() if key in known}
    return sources.open_source(sources.block(name, **OPTIONS.get(name, {}) | asked), split)


def _without_shared(source: Source, data_dir: str) -> Source:
    """`brixia_cohen` without the patients one of whose films `cxr_3class` has, under its name."""
    shared: set[str] = set()
    for split in ("train", "test"):
        whole = _open("cxr_3class", data_dir, split, leave_out_overlap=False)
        shared |= {str(peek(whole, index, "id")) for index in range(len(whole))}
    names = [str(peek(source, index, "id")) for index in range(len(source))]
    groups = [str(peek(source, index, "group")) for index in range(len(source))]
    gone = {group for group, name in zip(groups, names) if name in shared}
    kept = [index for index, group in enumerate(groups) if group not in gone]
    if len(kept) == len(source):
        return source
    chosen = Subset(source, kept, partial=source.partial)
    left = len(source) - len(kept)
    chosen.notes = (f"left out: {left} films of brixia_cohen, of patients in cxr_3class too",)
    return chosen
