"""Grad-CAM against what it must be for a linear head, and what must hold for any."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.explain.gradcam import grad_cam

RNG = np.random.default_rng(0)
FEATURES = jnp.asarray(RNG.normal(size=(4, 3, 5, 6)), jnp.float32)
KERNEL = jnp.asarray(RNG.normal(size=(6, 2)), jnp.float32)


def linear(features):
    """Logits of a head on the mean of the cells."""
    return features.mean((1, 2)) @ KERNEL


def curved(features):
    """A head that is not linear in the cells, and treats their places differently."""
    place = jnp.arange(15.0).reshape(3, 5, 1)
    return jnp.tanh(features * place).sum((1, 2)) ** 2 @ KERNEL


def test_of_a_linear_head_it_is_the_class_activation_map():
    classes = np.array([0, 1, 1, 0])
    want = np.maximum(np.einsum("bhwc,cb->bhw", FEATURES, KERNEL[:, classes]), 0) / 15
    np.testing.assert_allclose(grad_cam(linear, FEATURES, classes), want, rtol=1e-4, atol=1e-6)
    assert (want == 0).any()


def test_alpha_is_the_mean_gradient():
    classes = np.array([0, 1, 1, 0])
    gradient = jax.grad(lambda f: curved(f)[np.arange(4), classes].sum())(FEATURES)
    want = np.maximum((FEATURES * gradient.mean((1, 2), keepdims=True)).sum(-1), 0)
    got = grad_cam(curved, FEATURES, classes)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * want.max())


def test_an_image_is_explained_alone():
    classes = jnp.array([0, 1, 1, 0])
    together = grad_cam(curved, FEATURES, classes)
    alone = grad_cam(curved, FEATURES[2:3], classes[2:3])
    broken = grad_cam(curved, FEATURES.at[0].set(jnp.nan), classes)
    scale = float(together.max())
    np.testing.assert_allclose(alone[0], together[2], atol=1e-5 * scale)
    np.testing.assert_allclose(broken[1:], together[1:], atol=1e-5 * scale)


def test_several_classes_and_none():
    classes = jnp.array([[0, 1], [1, 0], [1, -1], [0, 2]])
    both = jax.jit(lambda f, c: grad_cam(curved, f, c))(FEATURES, classes)
    assert both.shape == (4, 2, 3, 5)
    for n in range(2):
        one = grad_cam(curved, FEATURES, classes[:, n])
        np.testing.assert_allclose(both[:, n], one, rtol=1e-4, atol=1e-4)
    assert not both[2:, 1].any()  # no such class
    assert both[:2].any(axis=(2, 3)).all()


def test_its_sums_are_float32_of_whatever_the_features_are():
    classes, features = np.array([0, 1, 1, 0]), FEATURES.astype(jnp.bfloat16)
    gradient = jax.grad(lambda f: curved(f)[np.arange(4), classes].sum())(features)
    exact, gradient = (np.asarray(array, np.float64) for array in (features, gradient))
    want = np.maximum((exact * gradient.mean((1, 2), keepdims=True)).sum(-1), 0)
    got = grad_cam(curved, features, classes)
    np.testing.assert_allclose(got, want, atol=1e-5 * want.max())


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e6])
def test_extremes_are_finite_and_float32(scale):
    head = lambda f: 40 * jnp.tanh(f.mean((1, 2)) @ KERNEL.astype(f.dtype))  # noqa: E731
    features = (FEATURES * scale).astype(jnp.bfloat16)
    heat = grad_cam(head, features, jnp.zeros(4, int))
    assert heat.dtype == jnp.float32
    assert np.isfinite(heat).all()
