"""Anchors: where they lie, what they learn, against plain NumPy, and boxes there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.ops import anchors as ops

SIZE, STRIDES = 64, (8, 16, 32, 64)
ANCHORS = ops.make_anchors(SIZE, STRIDES, scale=2.0)
K = 3
NOTHING = np.full((2, 4), np.nan), [-1, -1]
run = jax.jit(ops.match, static_argnames="findings")


def match(true, finding, findings=K):
    return jax.device_get(run(ANCHORS, np.float32(true), np.int32(finding), findings=findings))


def iou(a, b):
    """Of two boxes."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    meet = np.prod(np.maximum(high - low, 0))
    return meet / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - meet)


def plain_match(true, finding):
    """Anchor by anchor: labels, the number of the true box that it becomes (-1: none)."""
    overlap = np.array([[iou(anchor, box) for box in true] for anchor in ANCHORS])
    labels, chosen = np.zeros((len(ANCHORS), K)), np.full(len(ANCHORS), -1)
    forced = {t: int(np.argmax(overlap[:, t])) for t in range(len(true))}
    for a in range(len(ANCHORS)):
        own = [t for t, anchor in forced.items() if anchor == a]
        over = [t for t in range(len(true)) if overlap[a, t] >= 0.5]
        for k in range(K):
            if any(finding[t] == k for t in own + over):
                labels[a, k] = 1
            elif any(overlap[a, t] >= 0.4 for t in range(len(true)) if finding[t] == k):
                labels[a, k] = np.nan
        if own or over:
            chosen[a] = max(own or over, key=lambda t: overlap[a, t])
    return labels, chosen


def random_boxes(seed, count=6, smallest=0.05):
    rng = np.random.default_rng(seed)
    size = rng.uniform(smallest, 0.6, (count, 2))
    low = rng.uniform(0, 1 - size)
    return np.concatenate([low, low + size], 1).astype(np.float32), rng.integers(0, K, count)


def test_nine_anchors_a_cell_of_three_sizes_and_aspects():
    cells = [8, 4, 2, 1]
    assert ANCHORS.shape == (sum(9 * n * n for n in cells), 4)
    assert ANCHORS.dtype == np.float32
    px = ANCHORS * SIZE
    width, height = (px[:, 2:] - px[:, :2]).T
    start = 0
    for n, stride in zip(cells, STRIDES):
        level = slice(start, start := start + 9 * n * n)
        want = np.tile(2 * stride * np.repeat(2 ** (np.arange(3) / 3), 3), n * n)
        np.testing.assert_allclose(np.sqrt(width * height)[level], want, rtol=1e-5)
        np.testing.assert_allclose((height / width)[level], np.tile([0.5, 1, 2], 3 * n * n), 1e-5)
        centre = ((px[level, :2] + px[level, 2:]) / 2).reshape(n, n, 9, 2)
        np.testing.assert_allclose(centre[0, -1], [[SIZE - stride / 2, stride / 2]] * 9, atol=1e-3)
        np.testing.assert_allclose(centre[-1, 0], [[stride / 2, SIZE - stride / 2]] * 9, atol=1e-3)


def test_levels_that_do_not_divide_the_film_have_a_cell_more():
    assert len(ops.make_anchors(224, (32, 64, 128), scale=2.0)) == 9 * (7**2 + 4**2 + 2**2)


@pytest.mark.parametrize("seed", range(4))
def test_matching_is_that_of_plain_loops(seed):
    true, finding = random_boxes(seed, smallest=0.02)
    found, (labels, chosen) = match(true, finding), plain_match(true, finding)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.positive, chosen >= 0)
    np.testing.assert_array_equal(found.boxes, np.where(chosen[:, None] < 0, ANCHORS, true[chosen]))
    assert np.isnan(labels).any()
    # Every true box is learned, whatever its size, and its nearest anchor becomes it.
    for box, k in zip(true, finding):
        nearest = np.argmax([iou(anchor, box) for anchor in ANCHORS])
        assert found.labels[nearest, k] == 1


def test_a_box_too_small_for_every_anchor_is_learned_by_the_nearest():
    found = match([[0.5, 0.5, 0.53, 0.53]], [1])
    assert np.flatnonzero(found.positive).size == 1
    assert np.nansum(found.labels) == found.labels[found.positive, 1] == 1


def test_the_nearest_anchor_of_a_box_becomes_it_though_it_overlaps_another_more():
    small = np.array([0.5, 0.5, 0.53, 0.53])
    nearest = np.argmax([iou(anchor, small) for anchor in ANCHORS])
    larger = 0.3 * ANCHORS[nearest] + 0.7 * ANCHORS[nearest + 3]  # nearer to the next size
    found = match([larger, small], [0, 1])
    np.testing.assert_allclose(found.boxes[[nearest, nearest + 3]], [small, larger], rtol=1e-6)
    assert found.labels[nearest].tolist() == [1, 1, 0]


def test_boxes_that_lie_alike_are_learned_by_the_same_anchors():
    box = [0.2, 0.2, 0.5, 0.6]
    found = match([box, box], [0, 2])
    np.testing.assert_array_equal(found.labels[:, 0], found.labels[:, 2])
    assert found.labels[:, 0][found.positive].all()
    assert not found.labels[:, 1].any()


def test_a_film_without_boxes_is_all_background():
    found = match(*NOTHING)
    assert not found.positive.any()
    assert not found.labels.any()
    np.testing.assert_array_equal(found.boxes, ANCHORS)


def test_a_box_of_the_whole_film_has_an_anchor():
    found = match([[0, 0, 1, 1]], [2])
    assert (found.labels[:, 2] == 1).sum() >= 1
    assert np.isfinite(ops.encode(found.boxes, ANCHORS)).all()


def test_padding_and_boxes_of_no_finding_change_nothing():
    true, finding = random_boxes(5)
    padded = np.full((20, 4), np.nan, np.float32)
    padded[3:9], labels = true, np.full(20, -1)
    labels[3:9] = finding
    padded[12:14], labels[12:14] = [0.1, 0.1, 0.4, 0.5], [-1, K]  # of a finding that is not learned
    labels[15] = 1  # without a box
    for one, other in zip(match(true, finding), match(padded, labels)):
        np.testing.assert_array_equal(one, other)


def test_the_order_of_true_boxes_does_not_matter():
    true, finding = random_boxes(6, count=12)
    order = np.random.default_rng(0).permutation(12)
    for one, other in zip(match(true, finding), match(true[order], finding[order])):
        np.testing.assert_array_equal(one, other)


def test_decoding_is_the_inverse_of_encoding():
    true, _ = random_boxes(7, count=500, smallest=0.005)
    anchors = ANCHORS[np.random.default_rng(1).integers(0, len(ANCHORS), 500)]
    deltas = jax.jit(ops.encode)(true, anchors)
    np.testing.assert_allclose(jax.jit(ops.decode)(deltas, anchors), true, atol=2e-6)
    assert not np.asarray(ops.encode(anchors, anchors)).any()
    # By hand: half a width to the right, twice as high.
    moved = ops.encode(jnp.array([0.2, 0.0, 0.4, 0.4]), jnp.array([0.1, 0.1, 0.3, 0.3]))
    np.testing.assert_allclose(moved, [0.5, 0, 0, np.log(2)], atol=1e-6)


def test_decoded_boxes_stay_on_the_film_and_finite():
    wild = np.float32([[0, 0, 1e4, 1e4], [50, 0, 0, 0], [0, 0, -1e4, 0], [1e30, -1e30, 90, 90]])
    value = np.asarray(ops.decode(wild, ANCHORS[:4]))
    assert np.isfinite(value).all()
    assert 0 <= value.min() <= value.max() <= 1
    assert value[1, 0] == value[1, 2] == 1  # it has left the film: no area
    limit = ops.decode(jnp.array([0, 0, 9.0, 0.0]), jnp.array([0.499, 0.4, 0.501, 0.6]))
    np.testing.assert_allclose(limit[2] - limit[0], 0.002 * 1000 / 16, rtol=1e-3)
