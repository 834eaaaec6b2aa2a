"""Batches: order, resume, threads, hosts, padding, bad requests."""

import contextlib
import dataclasses
import itertools
import pickle

import numpy as np
import pytest

from cxr_jax.data import pipeline, sources
from cxr_jax.data.pipeline import Stage
from cxr_jax.errors import InputError


@dataclasses.dataclass
class Toy:
    """Records whose pixels say which record they are; counts how often each is read."""

    count: int = 10
    name: str = "toy"
    version: str = "1"
    split: str = "train"
    fields: frozenset = frozenset({"image", "id", "group"})
    partial: frozenset = frozenset()
    reads: list = dataclasses.field(default_factory=list)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(index)
        self.reads.append(index)
        return {
            "image": np.full((4, 6), index, np.uint8),
            "id": f"film-{'x' * index}",
            "group": f"p{index // 2}",
        }


def _example(record):
    return {"image": record["image"]}


def _finish(example, rng):
    noise = 0.0 if rng is None else rng.random()
    return {"image": example["image"] + np.float32(noise), "noise": np.float32(noise)}


TRANSFORMS = pipeline.Transforms(_example, _finish)


def _take(count, source=None, *, state=None, **options):
    options = {"batch_size": 4, "seed": 3} | options
    with contextlib.closing(
        pipeline.train_batches(source or Toy(), TRANSFORMS, **options)
    ) as batches:
        if state is not None:
            batches.set_state(state)
        return list(itertools.islice(batches, count)), batches.get_state()


def _same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_every_record_comes_once_an_epoch_and_epochs_differ():
    batches, _ = _take(10)  # 40 positions: four epochs of ten
    order = np.concatenate([b["index"] for b in batches]).reshape(4, 10)
    assert (np.sort(order, axis=1) == np.arange(10)).all()
    assert len({tuple(row) for row in order}) == 4
    assert batches[0]["image"].shape == (4, 4, 6)
    assert batches[0]["index"].dtype == np.int32


def test_augmentation_differs_by_position_and_follows_the_seed():
    batches, _ = _take(10)
    noise = np.concatenate([b["noise"] for b in batches])
    assert len(np.unique(noise)) == 40  # the same film is drawn anew each epoch
    _same(batches, _take(10)[0])
    other = _take(10, seed=4)[0]
    assert any((a["index"] != b["index"]).any() for a, b in zip(batches, other))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_the_stream_does_not_depend_on_threads(threads):
    _same(_take(8, threads=2)[0], _take(8, threads=threads)[0])


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_resume_in_mid_epoch_equals_the_uninterrupted_run(stop, threads):
    whole, _ = _take(9)
    _, state = _take(stop, threads=threads)
    rest, _ = _take(9 - stop, state=state, threads=2 - threads)
    _same(whole[stop:], rest)


def test_set_state_rewinds_an_iterator_that_has_run_ahead():
    with contextlib.closing(
        pipeline.train_batches(Toy(), TRANSFORMS, batch_size=4, seed=3)
    ) as batches:
        state = batches.get_state()
        first = list(itertools.islice(batches, 5))
        batches.set_state(state)
        _same(first, list(itertools.islice(batches, 5)))


def test_hosts_together_see_the_stream_of_one_host():
    whole, _ = _take(6, batch_size=2)
    hosts = [_take(2, batch_size=2, shard=(i, 3))[0] for i in range(3)]
    _same(whole, [hosts[i][step] for step in range(2) for i in range(3)])


def test_a_split_smaller_than_a_batch_still_trains():
    batches, _ = _take(2, Toy(count=1), batch_size=3)
    assert (batches[0]["index"] == 0).all()


def test_the_deterministic_half_is_made_once_while_there_is_room():
    source = Toy()
    _take(10, source, threads=0)
    assert sorted(source.reads) == list(range(10))
    source = Toy()
    _take(10, source, threads=0, cache_mb=0)
    assert len(source.reads) == 40
    source = Toy()  # room for three films of 24 bytes
    _take(10, source, threads=0, cache_mb=80 / 2**20)
    assert len(source.reads) == 3 + 4 * 7


def test_cached_examples_cannot_be_changed_in_place():
    def spoil(example, rng):
        example["image"] += 1
        return example

    spoiled = pipeline.Transforms(_example, spoil)
    with (
        contextlib.closing(pipeline.train_batches(Toy(), spoiled, batch_size=2, seed=0)) as batches,
        pytest.raises(ValueError, match="read-only"),
    ):
        next(batches)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10, 16])
@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_evaluation_gives_every_film_once_in_fixed_shapes(batch_size, hosts):
    source = Toy()
    seen = {}
    for i in range(hosts):
        with contextlib.closing(
            pipeline.eval_batches(source, TRANSFORMS, batch_size=batch_size, shard=(i, hosts))
        ) as batches:
            host = list(batches)
        assert len(host) == pipeline.num_batches(10, batch_size=batch_size, hosts=hosts)
        for batch in host:
            valid = batch["valid"]
            assert valid.dtype == bool
            assert batch["image"].shape == (batch_size, 4, 6)
            assert batch["index"].shape == batch["id"].shape == batch["group"].shape == valid.shape
            assert (batch["noise"] == 0).all()  # nothing is random
            assert (batch["index"][~valid] == -1).all()
            assert (batch["id"][~valid] == "").all()
            for row in np.flatnonzero(valid):
                index = int(batch["index"][row])
                assert index not in seen
                seen[index] = (str(batch["id"][row]), str(batch["group"][row]))
                assert (batch["image"][row] == index).all()
    assert seen == {i: (f"film-{'x' * i}", f"p{i // 2}") for i in range(10)}


def test_evaluation_reuses_examples_when_given():
    source = Toy()
    examples = pipeline.Examples(source, TRANSFORMS)
    for _ in range(3):
        with contextlib.closing(
            pipeline.eval_batches(source, TRANSFORMS, batch_size=4, threads=0, examples=examples)
        ) as batches:
            assert len(list(batches)) == 3
    assert sorted(source.reads) == list(range(10))


@pytest.mark.parametrize("make", [pipeline.train_batches, pipeline.eval_batches])
@pytest.mark.parametrize(
    "count, batch_size, words",
    [(10, 0, "batch_size=0"), (10, -1, "batch_size=-1"), (0, 4, "no films in split 'train'")],
)
def test_bad_requests_are_refused(make, count, batch_size, words):
    seed = {"seed": 0} if make is pipeline.train_batches else {}
    with pytest.raises(InputError, match=words):
        make(Toy(count=count), TRANSFORMS, batch_size=batch_size, **seed)


def test_an_unreadable_film_reaches_the_caller_as_one_line():
    class Broken(Toy):
        def __getitem__(self, index):
            if index == 7:
                raise InputError("seven.png: truncated")
            return super().__getitem__(index)

    with (
        contextlib.closing(
            pipeline.train_batches(Broken(), TRANSFORMS, batch_size=5, seed=0)
        ) as batches,
        pytest.raises(InputError, match=r"seven.png: truncated"),
    ):
        list(itertools.islice(batches, 2))


def test_examples_of_different_shape_are_named():
    class Uneven(Toy):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            return record | {"image": record["image"][: 4 - (index == 2)]}

    with (
        contextlib.closing(pipeline.eval_batches(Uneven(), TRANSFORMS, batch_size=5)) as batches,
        pytest.raises(InputError, match=r"'image' of film 'film-xx'"),
    ):
        next(batches)


def test_a_missing_field_is_refused_by_name():
    pipeline.check_fields(Toy(), {"image"})
    with pytest.raises(InputError, match=r"'toy'.*has no field 'lungs'"):
        pipeline.check_fields(Toy(), {"image", "lungs", "severity"})


def test_examples_pickle_without_their_cache():
    examples = pipeline.Examples(Toy(), TRANSFORMS, cache_mb=3)
    first = examples[4]
    again = pickle.loads(pickle.dumps(examples))
    assert again.cache_mb == 3
    np.testing.assert_array_equal(again[4].arrays["image"], first.arrays["image"])


def _phantoms(**changes):
    options = {"seed": 1, "size": 128, "train": 5, "val": 3, "test": 3}
    return sources.block("phantom_cxr", **options | changes)


def test_mixed_phantoms_are_of_both_scanners_by_patient():
    by_appearance = {
        name: sources.open_source(_phantoms(appearance=name), "train")
        for name in ("standard", "shifted", "mixed")
    }
    assert len({source.version for source in by_appearance.values()}) == 3
    for i in range(5):
        expected = by_appearance["standard" if i // 2 % 2 == 0 else "shifted"][i]["image"]
        np.testing.assert_array_equal(by_appearance["mixed"][i]["image"], expected)
    assert not np.array_equal(
        by_appearance["standard"][0]["image"], by_appearance["shifted"][0]["image"]
    )
    with pytest.raises(InputError, match="appearance='film'"):
        sources.open_source(_phantoms(appearance="film"), "train")
    with pytest.raises(InputError, match="disease_extent"):
        sources.open_source(_phantoms(disease_extent=2.0), "train")


def test_phantom_splits_share_no_film():
    ids, groups = [], []
    for split in sources.SPLITS:
        source = pickle.loads(pickle.dumps(sources.open_source(_phantoms(), split)))
        assert source.split == split
        assert len(source) == _phantoms()[split]
        records = [source[i] for i in range(len(source))]
        assert all(source.fields <= record.keys() for record in records)
        ids += [record["id"] for record in records]
        groups.append({record["group"] for record in records})
    assert len(set(ids)) == len(ids) == 11
    assert sum(map(len, groups)) == len(set().union(*groups))  # no patient in two splits
    with pytest.raises(InputError, match=r"data.train=-1"):
        sources.open_source(_phantoms(train=-1), "train")


def test_unknown_data_set_and_split():
    with pytest.raises(InputError, match=r"data.name='cohen'.*brixia_cohen"):
        sources.open_source({**_phantoms(), "name": "cohen"}, "train")
    with pytest.raises(InputError, match="split 'dev'"):
        sources.open_source(_phantoms(), "dev")


def test_healthy_phantoms_have_no_infection_and_the_usual_ones_stay():
    usual = sources.open_source(_phantoms(), "train")
    healthy = sources.open_source(_phantoms(diseased=0.0, test_diseased=1.0), "train")
    sickest = {"diseased": 0.0, "test_diseased": 1.0, "test_disease_extent": 1.0}
    sick = sources.open_source(_phantoms(**sickest), "test")
    assert "diseased" not in usual.version
    assert len({usual.version, healthy.version, sick.version}) == 3
    assert all(healthy[i]["severity"].sum() == 0 for i in range(5))
    assert all(sick[i]["severity"].sum() > 0 for i in range(3))
    with pytest.raises(InputError, match="diseased"):
        sources.open_source(_phantoms(diseased=1.5), "train")


def test_films_join_in_stages_that_hold_one_another():
    films = Numbers(14, parts=(4, 10))
    stages = (Stage(0, 0.0), Stage(2, 0.3), Stage(4, 0.6), Stage(6, 1.0, second_fraction=0.5))

    def numbers(steps, start=None, **options):
        options = {"batch_size": 4, "seed": 3, "threads": 0, "stages": stages} | options
        batches = pipeline.train_batches(films, NUMBERED, **options)
        with contextlib.closing(batches):
            if start:
                batches.set_state(start)
            got = [next(batches)["x"].tolist() for _ in range(steps)]
            return got, batches.get_state()

    got, _ = numbers(30)
    rows = np.array(got)  # [step, film]
    assert sorted(rows[:2].ravel()) == sorted([*range(4)] * 2)  # two rounds of the first set
    joined = [set(rows[a:b].ravel()) - set(range(4)) for a, b in ((0, 2), (2, 4), (4, 6), (6, 30))]
    limits = [0, 3, 6, 10]
    assert all(len(films) <= limit for films, limit in zip(joined, limits))
    assert joined[1]
    assert joined[3] == set(range(4, 14))
    order = 4 + np.random.default_rng([3, 4]).permutation(10)
    assert joined[1] <= set(order[:3])
    assert joined[2] <= set(order[:6])
    assert all(sum(x < 4 for x in batch) == 2 for batch in got[6:])  # half of every batch
    # Any number of threads and hosts, and a stop in stage 2, give the same stream.
    assert numbers(10, threads=2)[0] == got[:10]
    hosts = [numbers(10, batch_size=2, shard=(k, 2))[0] for k in (0, 1)]
    assert [a + b for a, b in zip(*hosts)] == got[:10]
    head, state = numbers(3)
    assert head + numbers(7, start=state)[0] == got[:10]


@pytest.mark.parametrize("firsts", [(), (1,), (0, 2, 2), (0, 4, 2)])
def test_stages_must_rise_from_zero(firsts):
    with pytest.raises(ValueError, match="expected 0 and then rising ones"):
        pipeline.train_batches(
            Numbers(4), NUMBERED, batch_size=2, seed=0, stages=[Stage(first) for first in firsts]
        )


def test_selections_of_as_many_films_are_different_data():
    films = Numbers(6)
    halves = [sources.Subset(films, part, partial=frozenset()) for part in ([0, 1, 2], [3, 4, 5])]
    everything = sources.Subset(films, list(range(6)), partial=frozenset())
    assert len({films.version, *(half.version for half in halves)}) == 3
    assert everything.version == films.version


class Numbers:
    """Records that are their own number."""

    name, version, split = "numbers", "1", "train"
    fields, partial = frozenset({"image"}), frozenset()

    def __init__(self, count, parts=None):
        self._count = count
        self.parts = parts or (count, 0)

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return {"id": str(index), "group": str(index), "x": index}


NUMBERED = pipeline.Transforms(
    example=lambda record: {"x": np.int32(record["x"])}, finish=lambda example, rng: example
)
