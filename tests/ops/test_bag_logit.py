"""The bag logit and its loss against 80-digit arithmetic, and where float32 ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax import losses
from cxr_jax.ops.bags import bag_logit


def test_bag_logit_and_loss_match_reference(golden, assert_golden):
    arrays = golden("mil_loss")
    label, valid = arrays["in_label"], arrays["in_mask"]

    def total(logits):
        bag = bag_logit(logits, valid)
        value = losses.soft_margin(bag, label)
        return jnp.sum(value), (bag, value)

    grad, (bag, value) = jax.jit(jax.grad(total, has_aux=True))(arrays["in_logits"])
    # 1e-5 of itself, not of the largest: the README's request.
    np.testing.assert_allclose(bag, arrays["out_bag_logit"], rtol=1e-5)
    # 1e-5: the README's tolerance for this file.
    assert_golden(jax.nn.sigmoid(bag), arrays["out_bag_prob"], rtol=1e-5, what="probability")
    assert_golden(value, arrays["out_loss"], rtol=1e-5, what="loss")
    assert_golden(jnp.mean(value), arrays["out_loss_mean"], rtol=1e-5, what="mean loss")
    other = losses.soft_margin(bag, -label)
    assert_golden(other, arrays["out_loss_other_label"], rtol=1e-5, what="loss of -y")
    assert_golden(grad, arrays["out_grad_logits"], rtol=1e-5, what="gradient")


@pytest.mark.parametrize("logit", [-200.0, -100.0, -88.0, -14.0, -13.0, -1.0, 1.0, 40.0, 88.0])
def test_bag_of_one_has_its_instances_logit(logit):
    value, grad = jax.value_and_grad(lambda z: bag_logit(z, jnp.ones((1, 1)))[0])(
        jnp.full((1, 1), logit)
    )
    np.testing.assert_allclose(value, logit, rtol=1e-6)  # float32
    np.testing.assert_allclose(grad, [[1.0]], rtol=2e-6)  # and the hand-over at L = 1e-6


def test_gradient_is_the_instances_share_at_the_hand_over():
    # Two rare instances on either side of L = 1e-6: sigmoid(p) / (1 - P), in float64.
    for low in (-14.6, -14.5, -14.4, -13.9):
        p = np.array([[low, low - 1.0]])
        q = 1 / (1 + np.exp(-p))
        want = q / -np.expm1(np.sum(np.log1p(-q)))
        grad = jax.grad(lambda z: bag_logit(z, jnp.ones((1, 2)))[0])(jnp.asarray(p, jnp.float32))
        np.testing.assert_allclose(grad, want, rtol=3e-6)  # L itself, and float32


@pytest.mark.parametrize("filler", [0.0, 50.0, jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("level", [-100.0, 0.5])
def test_invalid_instances_take_no_part_whatever_they_hold(filler, level):
    logits = jnp.array([[level, filler, level - 1.0, filler]])
    valid = jnp.array([[1, 0, 1, 0]])
    value, grad = jax.jit(jax.value_and_grad(lambda z: bag_logit(z, valid)[0]))(logits)
    np.testing.assert_array_equal(value, bag_logit(logits[:, ::2], jnp.ones((1, 2)))[0])
    np.testing.assert_array_equal(grad[0, 1::2], 0)
    assert np.isfinite(grad).all()
    assert (grad[0, ::2] > 0).all()


def test_an_empty_bag_is_finite_and_has_no_gradient():
    valid = jnp.array([[0, 0], [1, 0]])

    def total(logits):
        bag = bag_logit(logits, valid)
        return jnp.sum(losses.soft_margin(bag, jnp.array([-1.0, 1.0]))), bag

    grad, bag = jax.grad(total, has_aux=True)(jnp.array([[jnp.nan, 3.0], [0.5, 0.5]]))
    assert np.isfinite(bag).all()
    assert bag[0] < -1e20
    np.testing.assert_array_equal(grad[0], 0)
    assert grad[1, 0] != 0


def test_more_instances_never_lower_the_bag():
    logits = jnp.asarray(np.random.default_rng(0).normal(scale=20, size=(50, 8)), jnp.float32)
    counts = [bag_logit(logits, (jnp.arange(8) < n)[None]) for n in range(1, 9)]
    steps = np.diff(np.stack(counts), axis=0)
    assert (steps >= -1e-6 * np.abs(counts[:-1])).all()  # float32
