"""Bags: runs of consecutive CT slices under one label (Tang et al. 2021, Sec. 2.3 and 3.1).

A network that reads three consecutive slices as channels sees of a bag of n slices n + 2: the slice
before and the one after belong to the record. At the end of a volume, or of a run of slices where
some were left out, the last slice stands in for its missing neighbour.
"""

import functools
from typing import Any

import numpy as np

from cxr_jax.data import splits
from cxr_jax.data.records import NEIGHBOURS, SCHEMA, Record
from cxr_jax.data.sources.base import SliceSource, SliceTable
from cxr_jax.errors import InputError

FIELDS = frozenset(name for name, field in SCHEMA.items() if field.of == NEIGHBOURS)
# Slices kept by `WithNeighbours`: a few threads that read in order ask for each three times.
NEAR = 32


class Bags:
    """Every run of `size` consecutive slices of a volume whose label is known, positive ones first.

    A bag is positive if a slice in it is positive, whatever is known of the others, and negative if
    all are negative; bags of other labels are left out. So with the paper's slices (positive and
    unknown ones in patients, negative ones in others) the positive bags are all those of one
    positive slice and seven more. A run of fewer slices is one bag that is filled up, and bags of
    one slice are labelled slices. The paper draws a positive slice and then seven more; here every
    run is as likely, however many positive slices are in it.

    A record has `id` (of the first slice, and the size), `group`, `volume`, `slice` (the first
    one's number), `slices` (size + 2 slice records, the neighbours first and last), `bag_label`
    (1 positive, -1 negative) and `instance_valid` bool [size], False where filled up.

    Args:
      source: slices.
      size: of a bag, 1 or more.
      hidden: fields that are taken out of every slice: masks that a weak method may not see.
      needed: a field without which a positive slice counts as not labelled.

    Attributes:
      parts: number of positive and of negative bags.

    Raises:
      InputError: size under 1; no positive or no negative bag.
    """

    def __init__(
        self,
        source: SliceSource,
        size: int,
        *,
        hidden: frozenset[str] = frozenset(),
        needed: str = "",
    ):
        if size < 1:
            raise InputError(f"config.bag={size}; a bag holds at least one slice")
        self._source, self._size, self._hidden = source, size, hidden
        self.name, self.split = source.name, source.split
        self.fields = (source.fields | FIELDS) - hidden
        self.partial = source.partial - hidden
        table = source.slice_table()
        self._before, self._after = _neighbours(table.volume, table.position)
        label = np.asarray(table.label, np.float32)
        lacks = []
        if needed in source.partial:
            has = getattr(source, "has", None) or (lambda i, field: field in source[i])
            lacks = [i for i in np.flatnonzero(label == 1).tolist() if not has(i, needed)]
            label = label.copy()
            label[lacks] = np.nan
        self._starts, self._lengths, labels = _windows(self._before, self._after, label, size)
        order = np.argsort(-labels, kind="stable")  # positive ones first
        self._starts, self._lengths, self._labels = (
            a[order] for a in (self._starts, self._lengths, labels)
        )
        self.parts = int((labels > 0).sum()), int((labels < 0).sum())
        positive = int((table.label == 1).sum())
        self.notes = (
            (f"left out: {len(lacks)} of {positive} positive slices, which have no {needed}",)
            if lacks
            else ()
        )
        for name, count in zip(("positive", "negative"), self.parts):
            if not count:
                raise InputError(
                    f"data set {source.name!r} (split {source.split!r}) has no {name} bag of "
                    f"{size} slices: {int((table.label == 1).sum())} slices are labelled positive"
                    f"{f' and {len(lacks)} of them have no {needed} mask' if lacks else ''}, "
                    f"{int((table.label == 0).sum())} negative; both kinds are needed to learn"
                )
        chosen = splits.selection(self._starts.tolist(), len(source))
        self.version = f"{source.version}+bags{size}{chosen}"

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Record:
        first, length = int(self._starts[index]), int(self._lengths[index])
        chain = [first]
        while len(chain) < length:
            chain.append(int(self._after[chain[-1]]))
        inside = chain + [chain[-1]] * (self._size - length)
        numbers = [int(self._before[first]), *inside, int(self._after[chain[-1]])]
        # Each slice is read once, however often it stands in the bag.
        read = {n: self._read(n) for n in dict.fromkeys(numbers)}
        slices = [read[n] for n in numbers]
        start = read[first]
        return {
            "id": f"{start['id']}+{self._size}",
            "group": start["group"],
            "volume": start["volume"],
            "slice": start["slice"],
            "slices": slices,
            "bag_label": float(self._labels[index]),
            "instance_valid": np.arange(self._size) < length,
        }

    def _read(self, number: int) -> dict[str, Any]:
        return {k: v for k, v in self._source[number].items() if k not in self._hidden}


class WithNeighbours:
    """Every slice of a source, with the slices before and after it: bags of one, in order.

    A record is that of the slice, and `slices` [3]. Read in order, a slice is decoded once.
    """

    def __init__(self, source: SliceSource):
        self._source = source
        self._read = functools.lru_cache(NEAR)(source.__getitem__)
        self.name, self.version, self.split = source.name, source.version, source.split
        self.fields = source.fields | {"slices"}
        self.partial = source.partial
        self._table = source.slice_table()
        self._before, self._after = _neighbours(self._table.volume, self._table.position)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        around = int(self._before[index]), int(index), int(self._after[index])
        slices = [self._read(n) for n in around]
        return {**slices[1], "slices": slices}

    def slice_table(self) -> SliceTable:
        """The source's, read once."""
        return self._table

    def __reduce__(self):
        # What was read is not sent to a spawned worker.
        return WithNeighbours, (self._source,)


def _neighbours(volume: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Record -> the records before and after it in the body; itself where there is none."""
    volume, position = np.asarray(volume), np.asarray(position)
    order = np.lexsort((position, volume))
    before = after = np.arange(len(volume))
    before, after = before.copy(), after.copy()
    first, second = order[:-1], order[1:]
    adjacent = (volume[first] == volume[second]) & (position[second] == position[first] + 1)
    after[first[adjacent]] = second[adjacent]
    before[second[adjacent]] = first[adjacent]
    return before, after


def _windows(
    before: np.ndarray, after: np.ndarray, label: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First record, number of slices and label (1, -1) of every labelled run of `size` slices."""
    starts, lengths, labels = [], [], []
    for head in np.flatnonzero(before == np.arange(len(before))):
        run = [head]
        while after[run[-1]] != run[-1]:
            run.append(after[run[-1]])
        known = np.asarray(label, np.float32)[run]
        for start in range(max(len(run) - size, 0) + 1):
            inside = known[start : start + size]
            if (inside == 1).any() or (inside == 0).all():
                starts.append(run[start])
                lengths.append(len(inside))
                labels.append(1 if (inside == 1).any() else -1)
    return np.array(starts, int), np.array(lengths, int), np.array(labels, int)
