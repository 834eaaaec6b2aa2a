"""From a source's records to batches, with Grain: shuffled and endless, or in order and padded.

An example is made in two halves, both given by the task (`Transforms`). `example` is deterministic
(decode, resize, blur, equalise, zones): its result is kept in memory while there is room. `finish`
is cheap and may be random (augment, normalise).

The order is position -> record: one global stream of positions, shuffled anew each epoch, cut into
batches that are dealt to the hosts in turn. So the batch of step k is the same set of films with
the same augmentation for any number of threads and any number of hosts, and the iterator's state is
one number: a run that resumes sees what it would have seen.
"""

import dataclasses
import functools
import threading
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import grain
import numpy as np

from cxr_jax.data.records import Record
from cxr_jax.data.sources.base import Source
from cxr_jax.errors import InputError

Example = dict[str, np.ndarray]
Batch = dict[str, np.ndarray]

# What the pipeline adds to a batch; an example must not use these names.
ADDED = ("index", "id", "group", "valid")


@dataclasses.dataclass(frozen=True)
class Transforms:
    """How a task turns a record into an example.

    Attributes:
      example: record -> arrays of fixed shape, the deterministic half; its result is cached and
        read-only.
      finish: (example, generator or None) -> example. The generator is given in training: augment,
        then normalise. None in evaluation: normalise only.
    """

    example: Callable[[Record], Example]
    finish: Callable[[Example, np.random.Generator | None], Example]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Which films are trained on from a step on, where a second data set joins the first.

    Attributes:
      first_step: the step it begins with; the first stage begins with 0.
      second_share: how much of the second set is in, 0..1. The films are drawn once, so that a
        larger share holds a smaller one.
      second_fraction: share of the second set in every batch; None: as the numbers of films are.
      refresh_batches: before the first step, so many of its batches bring the batch statistics up
        to the weights; the training then begins with the first of them. 0: none do.
    """

    first_step: int
    second_share: float = 1.0
    second_fraction: float | None = None
    refresh_batches: int = 0


class Entry(NamedTuple):
    """The deterministic half of one record, and whose it is."""

    index: int
    id: str
    group: str
    arrays: Example


class Examples:
    """`source` after `transforms.example`, by index, kept in memory up to `cache_mb` megabytes.

    Beyond that an example is made again each time. Safe to read from several threads. Pass one
    object to repeated evaluations of a split so that its films are decoded once.
    """

    def __init__(self, source: Source, transforms: Transforms, *, cache_mb: float = 1024):
        self.source = source
        self.transforms = transforms
        self.cache_mb = cache_mb
        self._lock = threading.Lock()
        self._cache: dict[int, Entry] = {}
        self._free_bytes = int(cache_mb * 2**20)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Entry:
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        entry = self._make(index)
        size = sum(array.nbytes for array in entry.arrays.values())
        with self._lock:
            if index not in self._cache and size <= self._free_bytes:
                self._cache[index] = entry
                self._free_bytes -= size
        return entry

    def __reduce__(self):
        # A spawned worker starts with an empty cache of its own.
        make = functools.partial(Examples, cache_mb=self.cache_mb)
        return make, (self.source, self.transforms)

    def _make(self, index: int) -> Entry:
        record = self.source[index]
        arrays = {key: np.asarray(a) for key, a in self.transforms.example(record).items()}
        if taken := sorted(set(arrays) & set(ADDED)):
            raise ValueError(f"the example has {taken}; these names are the pipeline's own {ADDED}")
        for array in arrays.values():
            array.flags.writeable = False  # shared by all epochs: nobody may change it in place
        return Entry(index, str(record["id"]), str(record["group"]), arrays)


def train_batches(
    source: Source,
    transforms: Transforms,
    *,
    batch_size: int,
    seed: int,
    threads: int = 2,
    cache_mb: float = 1024,
    shard: tuple[int, int] = (0, 1),
    stages: Sequence[Stage] = (Stage(0),),
) -> grain.DatasetIterator[Batch]:
    """An endless iterator of shuffled training batches.

    Every record comes once an epoch, in another order each epoch; a batch may straddle two epochs.
    The augmentation of an example depends on `seed` and its position in the stream only.
    `get_state()` and `set_state()` save and restore the position (a small JSON dict). Close the
    iterator when done, also after an exception (`contextlib.closing`): its threads may hold the
    process otherwise.

    Args:
      source: the training split.
      transforms: the task's; `finish` gets a generator.
      batch_size: examples in a batch of this host. With `shard=(i, n)` the n hosts' batches of one
        step, in order of i, are n successive batches of the stream of one host.
      seed: 0 .. 2**32 - 1; decides order and augmentation.
      threads: batches made at the same time; 0 makes them in the caller's thread. The stream does
        not depend on it.
      cache_mb: memory for the deterministic half.
      shard: (index, count) of this host.
      stages: which films are in from which step on. The default takes all from the start. Others
        need a source of two parts (`sources.combine.Joined`).

    Returns:
      Batches of `finish`'s arrays [B, ...] and `index` int32 [B], the records' numbers.

    Raises:
      InputError: batch_size is under 1, or the split is empty. Whatever reading a record raises
        comes out of `next`.
    """
    _check(source, batch_size, shard)
    if not 0 <= seed < 2**32:
        raise InputError(f"seed={seed}; it must lie in 0 .. 2**32 - 1")
    index, count = shard
    examples = Examples(source, transforms, cache_mb=cache_mb)
    stream = (
        _numbers(source, stages, seed, films_per_step=batch_size * count)
        .seed(seed)
        .map(examples.__getitem__)
        .random_map(functools.partial(_finish, transforms))
        # Batched here and not after the threads: otherwise the state depends on their number.
        .batch(batch_size, drop_remainder=True, batch_fn=functools.partial(_stack, source))
    )
    return _iterate(stream[index::count], threads)


def _numbers(
    source: Source, stages: Sequence[Stage], seed: int, *, films_per_step: int
) -> grain.MapDataset[int]:
    """Position in the stream -> record number: the stages one after the other, each endless
    but cut where the next begins."""
    firsts = [stage.first_step for stage in stages]
    if not stages or firsts[0] != 0 or firsts != sorted(set(firsts)):
        raise ValueError(f"stages begin with the steps {firsts}; expected 0 and then rising ones")
    first_part, second_part = getattr(source, "parts", (len(source), 0))
    joining = first_part + np.random.default_rng([seed, first_part]).permutation(second_part)
    parts = []
    for k, stage in enumerate(stages):
        ends = k + 1 < len(stages)
        steps = firsts[k + 1] - firsts[k] if ends else _ENDLESS // films_per_step
        second = joining[: round(stage.second_share * second_part)].tolist()
        numbers = _shuffled(
            list(range(first_part)), second, second_fraction=stage.second_fraction, seed=seed + k
        )
        parts.append(numbers[: steps * films_per_step])
    return parts[0] if len(parts) == 1 else grain.MapDataset.concatenate(parts)


# Positions of the last stage: more than any run takes, and few enough that sums stay whole numbers.
_ENDLESS = 2**48


def _shuffled(
    first: list[int], second: list[int], *, second_fraction: float | None, seed: int
) -> grain.MapDataset[int]:
    """Endless: every number once an epoch, in another order each epoch."""

    def endless(numbers: list[int], seed: int) -> grain.MapDataset[int]:
        return grain.MapDataset.source(numbers).seed(seed % 2**32).shuffle().repeat()

    if second_fraction is None or not second:
        return endless(first + second, seed)
    if not 0 < second_fraction < 1:
        raise InputError(f"second_fraction={second_fraction}; it must lie between 0 and 1")
    weights = [1 - second_fraction, second_fraction]
    streams = [endless(first, seed), endless(second, seed + 1)]
    return grain.MapDataset.mix([stream[:_ENDLESS] for stream in streams], weights)


def eval_batches(
    source: Source,
    transforms: Transforms,
    *,
    batch_size: int,
    threads: int = 2,
    shard: tuple[int, int] = (0, 1),
    examples: Examples | None = None,
) -> grain.DatasetIterator[Batch]:
    """An iterator over a whole split once, in order, in batches of one fixed shape.

    The last batch is filled up with copies of a film; `valid` says which rows count. All hosts get
    the same number of batches, `num_batches`, the last of which may have no valid row. Close the
    iterator when done (`contextlib.closing`).

    Args:
      source: the split.
      transforms: the task's; `finish` gets None, so nothing is random.
      batch_size: rows of a batch of this host.
      threads: as for `train_batches`.
      shard: (index, count) of this host; host i has batches i, i + n, i + 2n, ... of the split.
      examples: `Examples` of this source and these transforms, to decode once for many
        evaluations. By default nothing is kept.

    Returns:
      Batches of `finish`'s arrays [B, ...]; `valid` bool [B]; `id` and `group` str [B], empty in
      padding; `index` int32 [B], -1 in padding.

    Raises:
      InputError: batch_size is under 1, or the split is empty.
    """
    _check(source, batch_size, shard)
    if examples is None:
        examples = Examples(source, transforms, cache_mb=0)
    make = functools.partial(_eval_batch, examples, transforms, batch_size)
    total = shard[1] * num_batches(len(source), batch_size=batch_size, hosts=shard[1])
    return _iterate(grain.MapDataset.range(shard[0], total, shard[1]).map(make), threads)


def num_batches(examples: int, *, batch_size: int, hosts: int = 1) -> int:
    """Batches each host gets from `eval_batches` over a split of `examples` records."""
    return -(-examples // (batch_size * hosts))


def check_fields(
    source: Source, needed: Iterable[str], ways_out: Mapping[str, str] = types.MappingProxyType({})
) -> None:
    """Refuses a source that lacks a field the task needs, before anything is compiled.

    Args:
      ways_out: field -> what else could give it.

    Raises:
      InputError: names the data set, the first missing field and the fields it has.
    """
    for field in sorted(set(needed) - source.fields):
        raise InputError(
            f"data set {source.name!r} (split {source.split!r}) has no field {field!r}, which this "
            f"task needs; it has {', '.join(sorted(source.fields))}. Choose another data set, or "
            f"add the field to its files and prepare it again{ways_out.get(field, '')}"
        )


def _check(source: Source, batch_size: int, shard: tuple[int, int]) -> None:
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}; it must be at least 1")
    if not len(source):
        raise InputError(f"data set {source.name!r} has no films in split {source.split!r}")
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard={shard}; expected (index, count) with 0 <= index < count")


def _iterate(stream: grain.MapDataset, threads: int) -> grain.DatasetIterator[Batch]:
    # OpenCV's own threads beside ours only take cores from each other and from the training step.
    cv2.setNumThreads(1)
    # The buffer holds whole batches: one ready for the step beside those being made.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads and threads + 1)
    return iter(stream.to_iter_dataset(options))


def _finish(transforms: Transforms, entry: Entry, rng: np.random.Generator) -> Example:
    return {**transforms.finish(entry.arrays, rng), "index": np.int32(entry.index)}


def _stack(source: Source, examples: Sequence[Mapping[str, Any]]) -> Batch:
    """Examples -> batch; an example that is not like the first is named."""
    first = {key: np.shape(value) for key, value in examples[0].items()}
    for example in examples[1:]:
        if (shapes := {key: np.shape(value) for key, value in example.items()}) != first:
            key = next(k for k in {**first, **shapes} if first.get(k) != shapes.get(k))
            a, b = int(examples[0]["index"]), int(example["index"])
            raise InputError(
                f"data set {source.name!r}: {key!r} of film {source[b]['id']!r} is "
                f"{shapes.get(key, 'absent')}, that of {source[a]['id']!r} is "
                f"{first.get(key, 'absent')}; a batch needs one shape. Leave out the films "
                "without the field (data.sources.only_with) or mend the transforms"
            )
    return {key: np.stack([example[key] for example in examples]) for key in first}


def _eval_batch(
    examples: Examples, transforms: Transforms, batch_size: int, batch_index: int
) -> Batch:
    start = batch_index * batch_size
    rows = range(start, min(start + batch_size, len(examples)))
    entries = [examples[i] for i in rows]
    finished = [
        {**transforms.finish(e.arrays, None), "index": np.int32(e.index)}
        for e in (entries or [examples[0]])
    ]
    padding = batch_size - len(entries)
    finished += [finished[0]] * (batch_size - len(finished))
    batch = _stack(examples.source, finished)
    batch["index"] = np.array([*rows] + [-1] * padding, np.int32)
    batch["id"] = np.array([e.id for e in entries] + [""] * padding, dtype=np.str_)
    batch["group"] = np.array([e.group for e in entries] + [""] * padding, dtype=np.str_)
    batch["valid"] = np.arange(batch_size) < len(entries)
    return batch
