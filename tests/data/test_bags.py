"""Bags of slices: which runs there are, their labels, their neighbours."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from cxr_jax.data.bags import Bags, WithNeighbours
from cxr_jax.data.sources.base import SliceTable
from cxr_jax.errors import InputError

NAN = np.nan


class Slices:
    """Volumes as lists of labels; None is a slice that was left out. Slice k of volume v is all
    10 v + k."""

    name, version, split, partial = "fake", "1", "train", frozenset()
    fields = frozenset({"image", "id", "group", "volume", "slice", "slice_label", "lesion"})

    def __init__(self, *volumes, shuffled=False):
        self.rows = [
            (v, k, label)
            for v, labels in enumerate(volumes)
            for k, label in enumerate(labels)
            if label is not None
        ]
        if shuffled:
            np.random.default_rng(0).shuffle(self.rows)
        self.read = []

    def slice_table(self):
        volume, position, label = zip(*self.rows)
        return SliceTable(np.array(volume), np.array(position), np.array(label, np.float32))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.read.append(index)
        v, k, label = self.rows[index]
        v, k = int(v), int(k)
        image = np.full((4, 5), 10 * v + k, np.uint8)
        return {
            "image": image, "lesion": image, "id": f"v{v}-{k}", "group": f"p{v}",
            "volume": f"v{v}", "slice": k, "slice_label": label,
        }  # fmt: skip


def values(record):
    return [int(part["image"][0, 0]) for part in record["slices"]]


def test_runs_with_a_positive_slice_are_positive_and_runs_of_negatives_negative():
    bags = Bags(Slices([NAN, 1, NAN, NAN], [0, 0, 0]), 2)
    assert bags.parts == (2, 2)
    assert [values(bags[i]) for i in range(4)] == [
        [0, 0, 1, 2],  # the first slice has no neighbour before it
        [0, 1, 2, 3],
        [10, 10, 11, 12],
        [10, 11, 12, 12],
    ]
    assert [bags[i]["bag_label"] for i in range(4)] == [1, 1, -1, -1]
    assert all(bags[i]["instance_valid"].all() for i in range(4))
    assert bags[1]["id"] == "v0-1+2"
    assert bags[1]["group"] == "p0"


def test_a_run_of_fewer_slices_is_filled_up():
    bags = Bags(Slices([1, NAN], [0]), 3)
    assert bags.parts == (1, 1)
    assert values(bags[0]) == [0, 0, 1, 1, 1]
    assert bags[0]["instance_valid"].tolist() == [True, True, False]
    assert values(bags[1]) == [10] * 5
    assert bags[1]["instance_valid"].tolist() == [True, False, False]


def test_a_slice_that_was_left_out_ends_a_run():
    bags = Bags(Slices([1, 0, None, 0, 0]), 2)
    assert [values(bags[i]) for i in range(len(bags))] == [[0, 0, 1, 1], [3, 3, 4, 4]]
    assert [bags[i]["bag_label"] for i in range(2)] == [1, -1]


def test_bags_of_one_are_the_labelled_slices_with_their_neighbours():
    bags = Bags(Slices([NAN, 1, NAN, 0]), 1)
    assert [values(bags[i]) for i in range(len(bags))] == [[0, 1, 2], [2, 3, 3]]


def test_hidden_fields_are_gone_from_every_slice():
    bags = Bags(Slices([1, 0]), 1, hidden=frozenset({"lesion"}))
    assert "lesion" not in bags.fields
    assert not any("lesion" in part for part in bags[0]["slices"])


def test_a_slice_is_read_once_a_bag():
    source = Slices([1, NAN], [0, 0])
    Bags(source, 2)[0]
    assert sorted(source.read) == [0, 1]


@pytest.mark.parametrize(
    ("volumes", "size", "words"),
    [
        (([1, 1],), 1, "no negative bag of 1 slices: 2 slices are labelled positive, 0 negative"),
        (([0, NAN],), 2, "no positive bag of 2"),
        (([NAN],), 8, "no positive bag"),
        (([1], [0]), 0, "config.bag=0"),
    ],
)
def test_no_bag_of_a_kind_is_one_clear_line(volumes, size, words):
    with pytest.raises(InputError, match=words):
        Bags(Slices(*volumes), size)


def test_every_slice_has_its_neighbours_in_evaluation():
    source = WithNeighbours(Slices([1, 0, NAN], [0]))
    assert [values(source[i]) for i in range(4)] == [[0, 0, 1], [0, 1, 2], [1, 2, 2], [10] * 3]
    assert source[1]["lesion"][0, 0] == 1


def test_an_evaluation_in_order_reads_every_slice_once():
    slices = Slices([1, 0, NAN, 1], [0, 0])
    source = WithNeighbours(slices)
    for index in range(len(source)):
        source[index]
    assert sorted(slices.read) == list(range(6))


@hypothesis.given(
    st.lists(
        st.lists(st.sampled_from([0.0, 1.0, NAN, None]), min_size=1, max_size=9),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 4),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_bags_do_not_depend_on_the_order_of_the_records(volumes, size):
    def found(source):
        try:
            bags = Bags(source, size)
        except InputError:
            return None
        assert sum(bags.parts) == len(bags)
        records = [bags[i] for i in range(len(bags))]
        for record in records:
            inside = [part["slice_label"] for part in record["slices"][1:-1]][
                : int(record["instance_valid"].sum())
            ]
            assert (1 in inside) == (record["bag_label"] == 1)
            assert record["bag_label"] == 1 or set(inside) == {0}
        return sorted((r["id"], r["bag_label"], tuple(values(r))) for r in records)

    if any(label is not None for labels in volumes for label in labels):
        assert found(Slices(*volumes)) == found(Slices(*volumes, shuffled=True))
