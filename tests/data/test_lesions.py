"""The lesions of a slice: components, boxes and kinds, by hand and of phantoms."""

import numpy as np
import pytest

from cxr_jax.data.lesions import UNKNOWN, lesions_of
from cxr_jax.data.phantoms.ct import ct_slice


@pytest.fixture
def record():
    """Three lesions: ground glass, one of 16 pixels a quarter of which is consolidated, a speck."""
    lesion, kind = np.zeros((2, 20, 24), np.uint8)
    lesion[2:5, 3:13] = 1
    kind[2:5, 3:13] = 1
    lesion[10:14, 4:8] = 1
    kind[10:14, 4:8] = 1
    kind[10, 4:8] = 2
    lesion[14, 8] = 1  # touches the second by a corner only
    kind[14, 8] = 2
    return {"image": np.zeros((20, 24), np.uint8), "lesion": lesion, "lesion_type": kind}


def test_each_has_its_box_and_kind_the_largest_first(record):
    found = lesions_of(record)
    assert found.boxes.tolist() == [[3, 2, 13, 5], [4, 10, 8, 14], [8, 14, 9, 15]]
    assert found.boxes.dtype == np.float32
    assert found.pixels.tolist() == [30, 16, 1]
    assert found.kinds.tolist() == [1, 2, 2]
    for number, (x0, y0, x1, y1) in enumerate(found.boxes.astype(int), 1):
        rows, columns = np.nonzero(found.labels == number)
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)
    record["lesion_type"][10, 4] = 1
    assert lesions_of(record).kinds.tolist() == [1, 1, 2]


def test_small_ones_are_left_out(record):
    found = lesions_of(record, least=2)
    assert found.pixels.tolist() == [30, 16]
    assert found.labels.max() == 2
    assert not found.labels[14, 8]


def test_without_kinds_nothing_is_guessed(record):
    del record["lesion_type"]
    assert lesions_of(record).kinds.tolist() == [UNKNOWN] * 3


def test_no_lesion_is_an_empty_result(record):
    record["lesion"][:] = 0
    found = lesions_of(record)
    assert found.boxes.shape == (0, 4)
    assert found.kinds.shape == found.pixels.shape == (0,)
    assert not found.labels.any()


def test_phantoms_have_both_kinds():
    kinds, sick = set(), 0
    for number in range(6):
        for index in range(12, 30, 4):
            record = ct_slice(0, number, index, size=64)
            found = lesions_of(record)
            assert found.pixels.sum() == record["lesion"].sum()
            np.testing.assert_array_equal(found.labels > 0, record["lesion"] > 0)
            kinds |= set(found.kinds.tolist())
            sick += len(found.kinds) > 0
    assert kinds == {1, 2}
    assert sick > 5


def test_boxes_are_those_of_4_connected_components_largest_first():
    masks = np.zeros((3, 6, 8), np.uint8)
    masks[0, 1:3, 2:5] = 1
    masks[0, 4, 7] = 1
    masks[0, 3, 5] = 1  # touches the first by a corner
    masks[2, 0, 0] = 1
    found = [lesions_of({"lesion": mask}).boxes for mask in masks]
    np.testing.assert_allclose(found[0][:2], [[2, 1, 5, 3], [5, 3, 6, 4]])
    assert len(found[0]) == 3
    assert found[1].shape == (0, 4)
    np.testing.assert_allclose(found[2], [[0, 0, 1, 1]])
    assert [len(lesions_of({"lesion": mask}, least=2).boxes) for mask in masks] == [1, 0, 0]
