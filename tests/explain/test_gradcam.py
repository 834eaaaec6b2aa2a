"""Grad-CAM against what it must be for a linear head, and what must hold for any."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.explain import gradcam
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


def gradient_of(classes):
    return jax.grad(lambda f: curved(f)[np.arange(4), classes].sum())(FEATURES)


@pytest.mark.parametrize("head", [linear, curved])
def test_cam_is_that_of_zhou_for_a_linear_head_and_signed(head):
    classes = np.array([0, 1, 1, 0])
    got = gradcam.cam(head, FEATURES, classes)
    if head is linear:
        want = np.einsum("bhwc,cb->bhw", FEATURES, KERNEL[:, classes])
    else:
        want = (FEATURES * gradient_of(classes).sum((1, 2), keepdims=True)).sum(-1)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    assert (want < 0).any()


def test_grad_cam_plus_plus_by_its_equations():
    """Eq. 19 with the derivatives of exp(score), in float64."""
    classes = np.array([0, 1, 1, 0])
    features = np.maximum(np.asarray(FEATURES, np.float64), 0)
    gradient = np.asarray(
        jax.grad(lambda f: curved(f)[np.arange(4), classes].sum())(
            jnp.asarray(features, jnp.float32)
        ),
        np.float64,
    )
    total = features.sum((1, 2), keepdims=True)
    rising = gradient > 0
    below = np.where(rising, 2 * gradient**2 + total * gradient**3, 1)
    weights = (gradient**3 / below * rising).sum((1, 2), keepdims=True)
    want = np.maximum((weights * features).sum(-1), 0)
    got = gradcam.grad_cam_plus_plus(curved, jnp.asarray(features, jnp.float32), classes)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * want.max())
    assert want.any()


def test_norm_grad_is_the_length_of_the_gradient_of_a_convolution_that_copies():
    """Of a 1x1 convolution's weights at one cell: the Frobenius norm of gradient x features."""
    classes = np.array([0, 1, 1, 0])
    outer = np.einsum("bhwc,bhwd->bhwcd", gradient_of(classes), FEATURES)
    want = np.sqrt((outer**2).sum((-2, -1)))
    got = gradcam.norm_grad(curved, FEATURES, classes)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * want.max())


@pytest.mark.parametrize("method", gradcam.METHODS.values(), ids=gradcam.METHODS)
def test_every_method_is_finite_alone_and_float32(method):
    classes = jnp.array([0, 1, 1, -1])
    run = jax.jit(lambda f, c: method(curved, f, c))
    for scale in (0.0, 1e-20, 1e4):
        heat = run((scale * FEATURES).astype(jnp.bfloat16), classes)
        assert heat.dtype == jnp.float32
        assert np.isfinite(heat).all()
        assert not heat[3].any()  # no such class
    together = run(FEATURES, classes)
    broken = run(FEATURES.at[0].set(jnp.nan), classes)
    np.testing.assert_allclose(broken[1:], together[1:], rtol=1e-4, atol=1e-5)
    assert together[:3].any(axis=(1, 2)).all()
