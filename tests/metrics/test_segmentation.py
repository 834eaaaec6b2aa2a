"""Overlap rows against scikit-learn, and their edges."""

import numpy as np
import pytest
import sklearn.metrics

from cxr_jax.metrics import segmentation


@pytest.mark.parametrize("shape", [(3, 1, 1), (4, 7, 5), (2, 16, 16)])
def test_rows_equal_sklearn_pixel_by_pixel(shape):
    rng = np.random.default_rng(0)
    pred, true = rng.random(shape) < 0.4, rng.random(shape) < 0.4
    pred[:, 0, 0] = true[:, 0, 0] = True
    rows = segmentation.overlap_rows(pred, true)
    for i in range(shape[0]):
        p, t = pred[i].ravel(), true[i].ravel()
        # 1e-6: one float32 division.
        np.testing.assert_allclose(rows["dice"][i], sklearn.metrics.f1_score(t, p), rtol=1e-6)
        np.testing.assert_allclose(rows["iou"][i], sklearn.metrics.jaccard_score(t, p), rtol=1e-6)
        want = sklearn.metrics.precision_score(t, p)
        np.testing.assert_allclose(rows["precision"][i], want, rtol=1e-6)
        np.testing.assert_allclose(rows["recall"][i], sklearn.metrics.recall_score(t, p), rtol=1e-6)
        np.testing.assert_allclose(rows["false_area"][i], np.mean(p & ~t), rtol=1e-6)
        assert rows["nonempty"][i]


def test_empty_masks():
    none, some = np.zeros((1, 4, 4)), np.zeros((1, 4, 4))
    some[0, 0, :2] = 1
    pred, true = np.concatenate([none, some, none]), np.concatenate([none, none, some])
    rows = {name: np.asarray(row) for name, row in segmentation.overlap_rows(pred, true).items()}
    np.testing.assert_array_equal(rows["dice"], [1, 0, 0])
    np.testing.assert_array_equal(rows["iou"], [1, 0, 0])
    np.testing.assert_array_equal(rows["precision"], [np.nan, 0, np.nan])
    np.testing.assert_array_equal(rows["recall"], [np.nan, np.nan, 0])
    np.testing.assert_array_equal(rows["false_area"], [0, 0.125, 0])
    np.testing.assert_array_equal(rows["nonempty"], [False, False, True])


def test_masks_of_0_and_255_count_as_masks():
    mask = np.array([[[0, 255], [255, 0]]], np.uint8)
    assert segmentation.overlap_rows(mask, mask > 0)["dice"][0] == 1


def test_padding_changes_no_row():
    rng = np.random.default_rng(1)
    pred, true = rng.random((5, 8, 8)) < 0.3, rng.random((5, 8, 8)) < 0.3
    alone = segmentation.overlap_rows(pred, true)
    pad = np.zeros((3, 8, 8), bool)
    padded = segmentation.overlap_rows(np.concatenate([pred, pad]), np.concatenate([true, pad]))
    for name, row in alone.items():
        np.testing.assert_array_equal(row, padded[name][:5])


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r"\(1, 4, 4\).*\(1, 4, 5\)"):
        segmentation.overlap_rows(np.zeros((1, 4, 4)), np.zeros((1, 4, 5)))


def test_lung_rows():
    true = np.zeros((4, 2, 4), np.uint8)
    true[:2, :, 0], true[0, :, 3] = 1, 2  # both lungs; right only; none; none
    pred = true.copy()
    pred[0, 0, 3] = 0  # half of the left lung is missed
    pred[1, :, 3] = 2  # a left lung is invented
    pred[3, 0, 0] = 1
    rows = segmentation.lung_rows(pred, true)
    # 1e-6: one float32 division.
    np.testing.assert_allclose(rows["lung_dice_right"], [1, 1, np.nan, 0], rtol=1e-6)
    np.testing.assert_allclose(rows["lung_dice_left"], [2 / 3, 0, np.nan, np.nan], rtol=1e-6)
    np.testing.assert_allclose(rows["lung_dice"], [5 / 6, 0.5, np.nan, 0], rtol=1e-6)


def test_swapped_lungs_score_nothing():
    true = np.array([[[1, 0, 2]]])
    swapped = np.array([[[2, 0, 1]]])
    assert segmentation.lung_rows(swapped, true)["lung_dice"][0] == 0
