"""Losses against plain formulas, and the edges where masks bite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from cxr_jax import losses


def test_zone_cross_entropy_equals_sklearn():
    rng = np.random.default_rng(0)
    probs = rng.uniform(0.01, 0.99, (4, 3, 2))
    labels = rng.integers(0, 2, (4, 3, 2))
    valid = rng.random((4, 3, 2)) < 0.7
    valid[:, 0, 0] = True
    got = losses.binary_cross_entropy_from_log_probs(
        jnp.log(probs), jnp.log1p(-probs), labels, valid
    )
    want = [
        sklearn.metrics.log_loss(y[v], p[v], labels=[0, 1]) for p, y, v in zip(probs, labels, valid)
    ]
    np.testing.assert_allclose(got, want, rtol=1e-5)  # float32 logarithms against float64


def test_invalid_zones_have_no_loss_and_no_gradient_whatever_they_hold():
    log_p = jnp.array([[[-0.5, -jnp.inf], [jnp.nan, -1.0], [-2.0, -3.0]], [[-1.0, -1.0]] * 3])
    labels = jnp.array([[[1.0, 1.0], [jnp.nan, -1.0], [0.0, 0.0]], [[1.0, 1.0]] * 3])
    valid = jnp.array([[[True, False], [False, False], [False, False]], [[False] * 2] * 3])

    def total(log_p):
        return losses.binary_cross_entropy_from_log_probs(log_p, log_p, labels, valid).sum()

    value, grad = jax.value_and_grad(total)(log_p)
    assert value == 0.5
    want = np.zeros((2, 3, 2))
    want[0, 0, 0] = -1.0
    np.testing.assert_array_equal(grad, want)


def test_examples_do_not_see_each_other():
    # The mean over devices must equal the mean over the batch: rows split anywhere give one result.
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(4, 16, 16, 2)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, (4, 16, 16)))
    labels = labels.at[1].set(0).at[2].set(1)
    whole = losses.segmentation_loss(logits, labels)
    one_by_one = [losses.segmentation_loss(logits[i : i + 1], labels[i : i + 1]) for i in range(4)]
    # Only the order of float32 sums may differ.
    np.testing.assert_allclose(whole, jnp.concatenate(one_by_one), rtol=1e-6)


def test_segmentation_loss_equals_the_plain_formula():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(2, 8, 8, 2))
    labels = rng.integers(0, 3, (2, 8, 8))
    labels[1][labels[1] == 2] = 0  # the second film has no left lung
    want = []
    for z, y in zip(logits, labels):
        bce, dice = 0.0, []
        for lung in (0, 1):
            p, t = 1 / (1 + np.exp(-z[..., lung])), (y == lung + 1).astype(float)
            bce += -np.mean(t * np.log(p) + (1 - t) * np.log(1 - p)) / 2
            if t.any():
                dice.append(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
        want.append(bce + np.mean(dice))
    got = losses.segmentation_loss(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    np.testing.assert_allclose(got, want, rtol=1e-5)  # float32 against float64


@pytest.mark.parametrize("label", [0, 1, 2])
def test_segmentation_loss_is_near_zero_and_finite_at_the_right_answer(label):
    labels = jnp.full((1, 32, 32), label)
    right = jnp.stack([labels == 1, labels == 2], axis=-1)
    logits = jnp.where(right, 40.0, -40.0)
    value, grad = jax.value_and_grad(lambda z: losses.segmentation_loss(z, labels).sum())(logits)
    assert 0 <= value < 1e-3
    assert jnp.isfinite(grad).all()
    assert losses.segmentation_loss(-logits, labels)[0] >= 40  # and the wrong answer is dear


def test_segmentation_loss_learns_to_clear_an_empty_film():
    labels = jnp.zeros((1, 8, 8), jnp.uint8)
    grad = jax.grad(lambda z: losses.segmentation_loss(z, labels).sum())(jnp.zeros((1, 8, 8, 2)))
    assert (grad > 0).all()


def test_segmentation_loss_is_float32_for_bfloat16_logits():
    logits = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
    assert losses.segmentation_loss(logits, jnp.ones((1, 4, 4), jnp.uint8)).dtype == jnp.float32


def test_segmentation_loss_names_both_shapes():
    with pytest.raises(ValueError, match=r"\(1, 4, 4, 1\).*\(1, 4, 4\)"):
        losses.segmentation_loss(jnp.zeros((1, 4, 4, 1)), jnp.zeros((1, 4, 4)))


def test_unknown_findings_have_no_loss_and_no_gradient():
    labels = jnp.array([[1.0, jnp.nan], [jnp.nan, jnp.nan]])
    value, grads = jax.value_and_grad(lambda z: losses.masked_bce(z, labels).sum())(
        jnp.zeros((2, 2))
    )
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)  # one float32 logarithm
    np.testing.assert_array_equal(grads, [[-0.5, 0.0], [0.0, 0.0]])
