import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from cxr_jax.data import zones


def two_lungs(height=64, width=64):
    mask = np.zeros((height, width), np.uint8)
    mask[height // 8 : 7 * height // 8, width // 8 : 3 * width // 8] = 1
    mask[height // 8 : 7 * height // 8, 5 * width // 8 : 7 * width // 8] = 1
    return mask


def test_golden_zone_maps_and_rows(golden):
    vectors = golden("zones")
    for i, mask in enumerate(vectors["in_mask"]):
        labels = zones.split_lungs(mask)
        zone_map, valid = zones.zone_map(labels)
        # README: of two lungs in one component, the one pixel of the cut may go to either.
        components = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)[0] - 1
        allowed = 1 if components == 1 and vectors["out_valid"][i].all() else 0
        different = int((zone_map != vectors["out_zone_map"][i]).sum())
        assert different <= allowed, f"mask {i}: {different} pixels differ"
        np.testing.assert_array_equal(valid, vectors["out_valid"][i].astype(bool))
        for column, label in enumerate((zones.RIGHT, zones.LEFT)):
            rows = np.flatnonzero((labels == label).any(axis=1))
            ends = [rows[0], rows[-1]] if rows.size else [-1, -1]
            np.testing.assert_array_equal(ends, vectors["out_rows"][i, column])


def test_right_lung_is_image_left():
    labels = zones.split_lungs(two_lungs())
    assert set(np.unique(labels[:, :32])) == {0, zones.RIGHT}
    assert set(np.unique(labels[:, 32:])) == {0, zones.LEFT}


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 48), (201, 97)])
def test_empty_mask_has_no_lung_and_no_valid_zone(shape):
    labels = zones.split_lungs(np.zeros(shape, bool))
    zone_map, valid = zones.zone_map(labels)
    assert labels.shape == zone_map.shape == shape
    assert not labels.any()
    assert not zone_map.any()
    assert not valid.any()


@pytest.mark.parametrize("side, label", [(0, zones.RIGHT), (1, zones.LEFT)])
def test_one_lung_goes_to_its_side(side, label):
    mask = two_lungs()
    mask[:, 32 * (1 - side) : 32 * (2 - side)] = 0
    labels = zones.split_lungs(mask)
    assert set(np.unique(labels)) == {0, label}
    assert zones.zone_map(labels)[1][:, label - 1].all()
    assert not zones.zone_map(labels)[1][:, 2 - label].any()


def test_touching_lungs_are_cut_at_the_bridge():
    mask = two_lungs()
    mask[30:32, 24:40] = 1  # the bridge joins them
    mask[31, 32] = 0  # its thinnest column
    labels = zones.split_lungs(mask)
    assert (labels > 0).sum() == mask.sum()
    assert labels[30, 31] == zones.RIGHT
    assert labels[30, 32] == zones.LEFT
    assert (labels[:, :32] == zones.LEFT).sum() == 0


def test_specks_are_dropped_and_a_small_lung_is_kept():
    mask = two_lungs()
    mask[0:3, 0:3] = 1
    mask[60:62, 40:42] = 1
    np.testing.assert_array_equal(zones.split_lungs(mask), zones.split_lungs(two_lungs()))
    small = np.zeros((64, 64), np.uint8)
    small[10:30, 5:25] = 1  # 400 pixels
    small[20:28, 50:55] = 1  # 40 pixels, just a tenth
    assert (zones.split_lungs(small) == zones.LEFT).sum() == 40
    small[20, 50] = 0  # 39: a speck
    assert (zones.split_lungs(small) == zones.LEFT).sum() == 0


def test_zone_heights_follow_the_paper():
    labels = np.zeros((121, 4), np.uint8)
    labels[:, :2] = zones.RIGHT
    zone_map, valid = zones.zone_map(labels)  # cuts at 120 * 5/12 = 50 and 120 * 2/3 = 80
    assert [int((zone_map[:, 0] == zone).sum()) for zone in (1, 3, 5)] == [50, 30, 41]
    assert valid[:, 0].all()


def test_lung_of_one_row_is_upper_only():
    labels = np.zeros((5, 8), np.uint8)
    labels[2, 1:4] = zones.RIGHT
    zone_map, valid = zones.zone_map(labels)
    assert zone_map[2, 2] == 1
    np.testing.assert_array_equal(valid, [[True, False], [False, False], [False, False]])


def test_bool_and_255_masks_are_the_same():
    mask = two_lungs()
    want = zones.split_lungs(mask)
    np.testing.assert_array_equal(zones.split_lungs(mask.astype(bool)), want)
    np.testing.assert_array_equal(zones.split_lungs(mask * 255), want)


@hypothesis.given(mask=npst.arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24))))
@hypothesis.settings(deadline=None, max_examples=80, database=None)
def test_any_mask_gives_consistent_zones(mask):
    labels = zones.split_lungs(mask)
    zone_map, valid = zones.zone_map(labels)
    assert not labels[~mask].any()  # nothing is invented
    np.testing.assert_array_equal(zone_map > 0, labels > 0)
    np.testing.assert_array_equal(zone_map[labels == zones.RIGHT] % 2, 1)
    np.testing.assert_array_equal((zone_map[labels == zones.LEFT] % 2), 0)
    np.testing.assert_array_equal(valid.ravel(), [(zone_map == z).any() for z in range(1, 7)])
    assert mask.any() == labels.any()


def test_lungs_from_probs_fills_holes_and_keeps_the_largest():
    mask = two_lungs()
    right, left = mask * 0.9, mask * 0.9
    right[:, 32:], left[:, :32] = 0.05, 0.05
    want = zones.split_lungs(mask)
    right[20:24, 12:16] = 0.2  # a hole
    right[0:4, 0:4] = 0.8  # a speck of the right lung
    left[62:64, 0:3] = 0.8  # a speck of the left lung on the wrong side
    np.testing.assert_array_equal(zones.lungs_from_probs(right, left), want)
    assert not zones.lungs_from_probs(right * 0.5, left * 0.5).any()
    assert zones.lungs_from_probs(right * 0.5, left * 0.5, threshold=0.4).any()


def test_lungs_from_probs_drops_a_lung_that_is_a_speck():
    right = np.zeros((64, 64))
    left = np.zeros((64, 64))
    right[8:56, 8:28] = 0.9
    left[30:33, 45:48] = 0.9
    assert set(np.unique(zones.lungs_from_probs(right, left))) == {0, zones.RIGHT}


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[H, W\]"):
        zones.split_lungs(np.zeros((2, 4, 4)))
    with pytest.raises(ValueError, match="left_prob"):
        zones.lungs_from_probs(np.zeros((4, 4)), np.zeros((4, 5)))
