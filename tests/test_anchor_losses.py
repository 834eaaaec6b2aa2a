"""The losses of a detector on anchors: by hand, at their edges, and a film at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cxr_jax import losses

focal = jax.jit(losses.focal_loss)
box_loss = jax.jit(losses.anchor_box_loss)


def anchors_of(films=3, count=7, findings=2, seed=0):
    """Logits, labels and which anchors have a box; the last film has none."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (films, count, findings)).astype(np.float32)
    labels = (rng.random(logits.shape) < 0.3).astype(np.float32)
    labels[-1] = 0
    return logits, labels, labels.any(-1)


def test_the_focal_loss_is_the_formula_over_the_films_own_anchors():
    logits, labels, positive = anchors_of()
    z = logits.astype(np.float64)
    right = np.where(labels == 1, z, -z)
    p = scipy.special.expit(right)
    weight = np.where(labels == 1, 0.25, 0.75)
    want = (-weight * (1 - p) ** 2 * scipy.special.log_expit(right)).sum((1, 2))
    counts = positive.sum(1)
    assert counts[0] > 1
    assert counts[-1] == 0  # divided by one
    np.testing.assert_allclose(focal(logits, labels, positive), want / np.maximum(counts, 1), 1e-5)


def test_of_unknown_labels_nothing_is_learned():
    logits, labels, positive = anchors_of()
    unknown = labels.copy()
    unknown[0, 2], unknown[1, :, 1] = np.nan, np.nan
    grad = jax.jit(jax.grad(lambda z: losses.focal_loss(z, unknown, positive).sum()))(logits)
    np.testing.assert_array_equal(grad == 0, np.isnan(unknown))
    kept = np.where(np.isnan(unknown), -1e4, logits)  # of which a negative costs nothing
    wanted = focal(kept, np.nan_to_num(unknown), positive)
    np.testing.assert_allclose(focal(logits, unknown, positive), wanted, rtol=1e-6)
    nothing = np.full_like(labels, np.nan)
    assert not np.any(focal(logits, nothing, positive))


def test_extremes_stay_finite_and_right():
    logits = jnp.array([-1e4, -88.0, -40.0, 0.0, 40.0, 88.0, 1e4])
    z, labels = map(jnp.ravel, jnp.meshgrid(logits, jnp.array([0.0, 1.0])))
    ones = jnp.ones((len(z), 1), bool)

    @jax.jit
    def each(z):
        return losses.focal_loss(z[:, None, None], labels[:, None, None], ones)

    value, grad = each(z), jax.jit(jax.grad(lambda z: each(z).sum()))(z)
    assert np.isfinite(value).all()
    assert np.isfinite(grad).all()
    right = (z > 0) == (labels == 1)
    far = jnp.abs(z) >= 40
    assert (value[far & right] < 1e-30).all()
    weight = jnp.where(labels == 1, 0.25, 0.75)
    np.testing.assert_allclose(value[far & ~right], (weight * jnp.abs(z))[far & ~right], rtol=1e-6)
    np.testing.assert_allclose(jnp.abs(grad)[far & ~right], weight[far & ~right], rtol=1e-6)


def test_smooth_l1_by_hand_and_without_boxes():
    deltas = jnp.array([[[0.05, 0, 0, 0], [1.0, -1, 0, 0], [9.0] * 4], [[9.0] * 4] * 3])
    targets = jnp.zeros((2, 3, 4)).at[0, 2].set(jnp.nan).at[1].set(jnp.inf)
    positive = np.array([[True, True, False], [False] * 3])
    # beta = 1/9: 0.05^2 * 9 / 2, and twice 1 - 1/18; of two anchors.
    want = (0.05**2 * 4.5 + 2 * (1 - 1 / 18)) / 2
    np.testing.assert_allclose(box_loss(deltas, targets, positive), [want, 0], rtol=1e-6)
    grad = jax.jit(jax.grad(lambda d: losses.anchor_box_loss(d, targets, positive).sum()))(deltas)
    np.testing.assert_allclose(grad[0, 1], [0.5, -0.5, 0, 0])
    assert not np.any(grad[~positive])


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 1, 0]])
def test_a_films_loss_is_its_own_whatever_the_order(order):
    logits, labels, positive = anchors_of()
    rng = np.random.default_rng(1)
    deltas, targets = rng.normal(size=(2, *positive.shape, 4)).astype(np.float32)
    anchors = rng.permutation(positive.shape[1])
    for loss, arrays in ((focal, (logits, labels)), (box_loss, (deltas, targets))):
        before = loss(*arrays, positive)
        moved = loss(*(x[order][:, anchors] for x in (*arrays, positive)))
        np.testing.assert_allclose(moved, before[np.array(order)], rtol=1e-5)  # float32 sums
        alone = loss(*(x[:1] for x in (*arrays, positive)))
        np.testing.assert_allclose(alone, before[:1], rtol=1e-5)


def test_they_are_float32_for_bfloat16():
    logits, labels, positive = anchors_of()
    deltas = jnp.ones((*positive.shape, 4), jnp.bfloat16)
    assert focal(logits.astype(jnp.bfloat16), labels, positive).dtype == jnp.float32
    assert box_loss(deltas, 0 * deltas, positive).dtype == jnp.float32
