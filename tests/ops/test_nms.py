"""Non-maximum suppression against plain loops, and the best boxes of findings."""

import jax
import numpy as np
import pytest

from cxr_jax.ops import anchors, nms
from tests.ops.test_anchors import iou

run = jax.jit(nms.suppress, static_argnames=("most", "threshold"))


def suppress(boxes, scores, *, most, threshold=0.5):
    found = run(np.float32(boxes), np.float32(scores), most=most, threshold=threshold)
    return tuple(map(np.asarray, found))


def plain(boxes, scores, threshold):
    """The numbers of the boxes that are kept, as torchvision's `nms` gives them."""
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        if all(iou(boxes[index], boxes[other]) <= threshold for other in kept):
            kept.append(index)
    return kept


def crowd(seed, count=40):
    """Boxes around three places."""
    rng = np.random.default_rng(seed)
    low = rng.choice([0.1, 0.3, 0.5], (count, 2)) + rng.normal(0, 0.03, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.15, 0.3, (count, 2))], 1)
    return boxes.astype(np.float32), rng.random(count).astype(np.float32)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_the_boxes_kept_are_those_of_plain_loops(threshold):
    groups = [crowd(seed) for seed in range(3)]
    boxes, scores = (np.stack(x) for x in zip(*groups))
    found, found_scores = suppress(boxes, scores, most=30, threshold=threshold)
    for g, group in enumerate(groups):
        kept = plain(*group, threshold)
        assert 3 < len(kept) < 30
        np.testing.assert_array_equal(found[g, : len(kept)], boxes[g, kept])
        np.testing.assert_array_equal(found_scores[g, : len(kept)], scores[g, kept])
        assert np.isnan(found[g, len(kept) :]).all()
        assert np.isnan(found_scores[g, len(kept) :]).all()
    # Fewer are asked for: the best of them.
    few, few_scores = suppress(boxes, scores, most=2, threshold=threshold)
    np.testing.assert_array_equal(few, found[:, :2])
    np.testing.assert_array_equal(few_scores, found_scores[:, :2])


def test_padding_and_order_change_nothing_and_boxes_without_area_are_none():
    boxes, scores = crowd(4)
    want = suppress(boxes, scores, most=50)
    order = np.random.default_rng(0).permutation(len(boxes))
    empty = np.float32([[0.2, 0.2, 0.2, 0.5], [0.5, 0.5, 0.4, 0.4], [np.nan] * 4, [0, 0, 1, 1]])
    more = np.concatenate([empty, boxes[order]])
    more_scores = np.concatenate([[0.99, 0.98, 0.97, np.nan], scores[order]])
    for one, other in zip(want, suppress(more, more_scores, most=50)):
        np.testing.assert_array_equal(one, other)


def test_of_equal_scores_the_first_is_kept_once():
    boxes = np.tile(np.float32([0.1, 0.1, 0.5, 0.5]), (3, 1))
    boxes[2] += 0.4
    found, scores = suppress(boxes, np.ones(3), most=3)
    np.testing.assert_array_equal(found[:2], boxes[[0, 2]])
    assert np.isnan(scores).tolist() == [False, False, True]


def test_a_threshold_of_one_keeps_every_box_once():
    boxes, scores = crowd(5)
    found, found_scores = suppress(boxes, scores, most=len(boxes), threshold=1.0)
    order = np.argsort(-scores)
    np.testing.assert_array_equal(found, boxes[order])
    np.testing.assert_array_equal(found_scores, scores[order])


def test_of_nothing_comes_nothing():
    found, scores = suppress(np.full((2, 5, 4), np.nan), np.full((2, 5), np.nan), most=2)
    assert np.isnan(found).all()
    assert np.isnan(scores).all()


def test_the_best_boxes_are_decoded_anchors_by_finding():
    grid = anchors.make_anchors(64, (16, 32), scale=1.0)
    rng = np.random.default_rng(2)
    scores = (rng.random((2, len(grid), 3)) * 0.9).astype(np.float32)
    deltas = rng.normal(0, 0.3, (2, len(grid), 4)).astype(np.float32)
    scores[1, :, 2] = 0.05  # nothing of this finding
    options = dict(most=4, candidates=50, least=0.1, threshold=0.5)
    found, found_scores = nms.best_boxes(scores, deltas, grid, **options)
    assert found.shape == (2, 3, 4, 4)
    decoded = np.asarray(anchors.decode(deltas, grid))
    for b in range(2):
        for k in range(3):
            there = scores[b, :, k] >= 0.1
            kept = plain(decoded[b][there], scores[b, there, k], 0.5)[:4]
            np.testing.assert_allclose(found[b, k][: len(kept)], decoded[b][there][kept], atol=1e-6)
            assert np.isnan(found_scores[b, k]).sum() == 4 - len(kept)
    assert np.isnan(found_scores[1, 2]).all()
    one, _ = nms.best_boxes(scores, deltas, grid, **options | {"most": 1, "candidates": 1})
    np.testing.assert_array_equal(one, found[:, :, :1])
