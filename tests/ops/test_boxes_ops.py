"""Box arithmetic against the reference, and where areas vanish."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.ops import boxes

UNIT = st.floats(0, 1, width=32)
BOX = st.tuples(UNIT, UNIT, UNIT, UNIT).map(
    lambda b: [min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])]
)
IOUS = (jax.jit(boxes.iou), jax.jit(boxes.generalized_iou))


def test_generalized_iou_matches_reference(golden, assert_golden):
    arrays = golden("detr_box")
    predicted, target = (
        boxes.to_corners(arrays[f"in_{name}_boxes"]) for name in ("pred", "target")
    )
    # 1e-5 and 1e-6: the README's tolerance for this file.
    tolerance = dict(rtol=1e-5, atol=1e-6)
    assert_golden(predicted, arrays["out_corners"], **tolerance)
    assert_golden(boxes.generalized_iou(predicted, target), arrays["out_giou"], **tolerance)
    pairwise = boxes.generalized_iou(predicted[:, :, None], target[:, None])
    assert_golden(pairwise, arrays["out_giou_pairwise"], **tolerance)


def test_the_two_forms_are_each_others_inverse():
    centres = np.random.default_rng(0).random((50, 4), np.float32)
    np.testing.assert_allclose(boxes.to_centres(boxes.to_corners(centres)), centres, atol=3e-7)
    np.testing.assert_allclose(boxes.to_corners([0.5, 0.25, 0.2, 0.1]), [0.4, 0.2, 0.6, 0.3])


def test_iou_counts_what_is_shared():
    a, b = jnp.array([0.0, 0.0, 0.5, 0.5]), jnp.array([0.25, 0.0, 0.75, 0.5])
    assert boxes.iou(a, b) == pytest.approx(1 / 3)
    assert boxes.generalized_iou(a, b) == pytest.approx(1 / 3)  # the hull is the union
    apart = jnp.array([0.75, 0.0, 1.0, 0.5])
    assert boxes.iou(a, apart) == 0
    assert boxes.generalized_iou(a, apart) == pytest.approx(-0.25)


@hypothesis.given(a=BOX, b=BOX)
@hypothesis.settings(deadline=None, max_examples=100, database=None)
def test_ious_are_bounded_symmetric_and_do_not_mind_a_flip(a, b):
    a, b = np.array([a, b], np.float32)
    flipped = [np.stack([1 - x[2], x[1], 1 - x[0], x[3]]) for x in (a, b)]
    for function, lowest in zip(IOUS, (0, -1)):
        value = function(a, b)
        assert lowest <= value <= 1
        assert value == function(b, a)
        # 1 - x rounds to 6e-8, which a box thinner than that notices.
        if min(*(a[2:] - a[:2]), *(b[2:] - b[:2])) > 1e-2:
            assert function(*flipped) == pytest.approx(float(value), abs=1e-4)
    assert IOUS[1](a, b) <= IOUS[0](a, b) + 1e-6
    if (a[2:] > a[:2]).all() and np.prod(a[2:] - a[:2]) > boxes.LEAST:
        assert IOUS[0](a, a) == 1


@pytest.mark.parametrize("function", IOUS)
@pytest.mark.parametrize(
    "a, b",
    [
        ([0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]),  # twice the same point: not even a hull
        ([0.2, 0.2, 0.2, 0.8], [0.2, 0.3, 0.2, 0.9]),  # two lines on one line
        ([0.1, 0.1, 0.4, 0.4], [0.2, 0.2, 0.2, 0.2]),  # a point in a box
        ([0.1, 0.1, 0.4, 0.4], [0.4, 0.1, 0.7, 0.4]),  # boxes that touch
        ([0.0, 0.0, 1e-10, 1e-10], [0.0, 0.0, 0.0, 0.0]),  # an area without a float32 square
        ([0.0, 0.0, 1e-9, 1e-11], [0.0, 0.0, 1e-10, 1e-10]),  # twice
    ],
)
def test_vanishing_areas_give_finite_values_and_gradients(function, a, b):
    both = jax.jit(jax.value_and_grad(function, argnums=(0, 1)))
    value, grads = both(jnp.array(a), jnp.array(b))
    assert np.isfinite(value)
    assert np.isfinite(grads).all()
    assert function(jnp.array(a), jnp.array(b)) == function(jnp.array(b), jnp.array(a))


def test_a_box_that_is_not_there_meets_none():
    nothing, box = jnp.full(4, jnp.nan), jnp.array([0.1, 0.1, 0.4, 0.4])
    assert boxes.iou(nothing, box) == boxes.iou(box, nothing) == 0


def test_boxes_are_float32_whatever_comes_in():
    half = jnp.array([0.3, 0.3, 0.2, 0.2], jnp.bfloat16)
    assert boxes.iou(half, half).dtype == boxes.to_corners(half).dtype == jnp.float32
