"""From the regions' probabilities to the film's, against the reference and at its edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.ops.bags import bag_logit
from cxr_jax.ops.pooling import region_lse

OVER = ("present", "all")


def logits_of(probs):
    probs = np.asarray(probs, np.float64)
    return (np.log(probs) - np.log1p(-probs)).astype(np.float32)


def assert_logits(got, want, *, what, high=0.3):
    """The README's tolerance: 1e-3 below 6, above it `high`."""
    error = np.abs(np.asarray(got) - want)
    assert error[np.abs(want) < 6].max() <= 1e-3, what
    assert error.max() <= high, what


@pytest.mark.parametrize("over, name", [("present", "lse_present"), ("all", "lse")])
def test_lse_over_regions_matches_reference(golden, assert_golden, over, name):
    arrays = golden("adpd_mil")
    r, mask = float(arrays["in_lse_r"]), arrays["in_mask"]
    value, logit = region_lse(logits_of(arrays["in_probs"]), mask, over=over, r=r)
    assert_golden(value, arrays[f"out_{name}"], rtol=1e-5, what=name)  # the README's tolerance
    # 2e-2: nothing cancels here; what is left is the rounding of the given probabilities.
    assert_logits(logit, arrays[f"out_{name}_logit"], what=name, high=2e-2)


def test_lse_of_all_regions_and_its_gradient_match_reference(golden, assert_golden):
    arrays = golden("adpd_mil")
    probs, mask = arrays["in_probs"], arrays["in_mask"]
    everywhere = np.ones_like(mask)
    for over in OVER:
        value, _ = region_lse(logits_of(probs), everywhere, over=over)
        assert_golden(value, arrays["out_lse_nomask"], rtol=1e-5, what=over)
    total = jax.jit(jax.grad(lambda z: region_lse(z, mask, over="all")[0].sum()))
    grad = total(logits_of(probs))
    p = probs.astype(np.float64)
    wanted = arrays["out_lse_grad"] * p * (1 - p)  # by the logit, not by the probability
    assert_golden(grad, wanted, rtol=1e-5, what="gradient")


def test_a_bag_of_regions_is_the_references_noisy_or(golden, assert_golden):
    """`bag_logit` of another paper's; here only to say that the two agree."""
    arrays = golden("adpd_mil")
    by_class = np.moveaxis(logits_of(arrays["in_probs"]), 2, 1)
    logit = bag_logit(by_class, np.broadcast_to(arrays["in_mask"][:, None], by_class.shape))
    assert_golden(jax.nn.sigmoid(logit), arrays["out_noisyor"], rtol=1e-5)
    clipped = np.clip(logit, *np.log([1e-7, 1e7]))  # as the reference's logits are
    assert_logits(clipped, arrays["out_noisyor_logit"], what="noisy-OR")


@pytest.mark.parametrize("over", OVER)
def test_absent_regions_take_no_part_whatever_they_hold(over):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 7, 3)).astype(np.float32)
    present = np.array([[1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0, 0]])

    @jax.jit
    def films(z):
        return region_lse(z, present, over=over)

    for filler in np.float32([50, np.nan, np.inf]):
        filled = np.where(present[..., None] == 1, logits, filler)
        np.testing.assert_array_equal(films(filled), films(logits))
        grad = jax.grad(lambda z: films(z)[1].sum())(filled)
        assert np.isfinite(grad).all()
        assert (grad[present == 0] == 0).all()
        assert (grad[0][present[0] == 1] > 0).all()


@pytest.mark.parametrize("over", OVER)
def test_a_film_without_regions_takes_no_part(over):
    logits = jnp.array([[[jnp.nan], [3.0]], [[0.5], [0.5]]])
    present = jnp.array([[0, 0], [1, 1]])

    def total(z):
        value, logit = region_lse(z, present, over=over)
        return jnp.sum(value + logit), (value, logit)

    grad, found = jax.jit(jax.grad(total, has_aux=True))(logits)
    with jax.debug_nans(True):  # nor is anything divided by its number of regions on the way
        region_lse(jnp.zeros((2, 2, 1)), present, over=over)
    assert all(array[0] == 0 for array in found)
    assert (grad[0] == 0).all()
    assert (grad[1] != 0).all()


def test_regions_are_a_set_and_one_region_is_itself():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, 9, 4)).astype(np.float32) * 4
    present = rng.random((3, 9)) < 0.7
    order = rng.permutation(9)
    value, logit = region_lse(logits, present, over="present")
    moved, moved_logit = region_lse(logits[:, order], present[:, order], over="present")
    np.testing.assert_allclose(moved, value, rtol=1e-6)  # float32 sums
    np.testing.assert_allclose(moved_logit, logit, rtol=1e-5, atol=1e-5)
    probs = jax.nn.sigmoid(np.where(present[..., None], logits, -np.inf))
    assert (value <= probs.max(1) + 1e-6).all()
    alone, its_logit = region_lse(logits[:, :1], np.ones((3, 1)), over="present")
    np.testing.assert_allclose(alone, jax.nn.sigmoid(logits[:, 0]), rtol=1e-6)
    np.testing.assert_allclose(its_logit, logits[:, 0], rtol=1e-5)


@pytest.mark.parametrize("over", OVER)
def test_extreme_regions_stay_finite(over):
    levels = np.float32([-1e4, -88.0, -40.0, -14.0, 14.0, 40.0, 88.0, 1e4])
    logits = np.tile(levels[:, None, None], (1, 29, 1))
    present = np.tile(np.arange(29) < 20, (len(levels), 1))

    @jax.jit
    def films(z):
        return region_lse(z, present, over=over)[1][:, 0]

    value, grad = films(logits), jax.grad(lambda z: films(z).sum())(logits)
    assert np.isfinite(grad).all()
    lowest, highest = np.log([1e-7, 1e7])
    if over == "present":
        # Regions that agree say it for the film, to the last digits: 1 - v is not what v leaves.
        np.testing.assert_allclose(value, np.clip(levels, lowest, highest), atol=1e-3)
        assert (grad[np.abs(levels) < 16, :20] > 0).all()
    else:  # below 0, which the clip catches
        np.testing.assert_allclose(value[levels < 0], lowest, atol=1e-3)


def test_lse_refuses_what_it_cannot_do():
    arrays = jnp.zeros((1, 2, 1)), jnp.ones((1, 2))
    with pytest.raises(ValueError, match="'present' or 'all'"):
        region_lse(*arrays, over="some")
    with pytest.raises(ValueError, match="r=20"):
        region_lse(*arrays, over="all", r=20)


def test_lse_is_float32_for_bfloat16_logits():
    found = region_lse(jnp.ones((1, 2, 1), jnp.bfloat16), jnp.ones((1, 2)), over="all")
    assert {array.dtype for array in found} == {jnp.dtype("float32")}
