"""Normalised CAMs and the pixel correlation module against the reference, and at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.ops import pcm
from cxr_jax.ops.resize import resize_aligned


def conv1x1(x, weight):
    """A 1x1 convolution without bias, weight in torch layout."""
    return jnp.einsum("bhwc,kc->bhwk", x, weight)


def test_every_stage_matches_reference(golden, assert_golden):
    arrays = golden("pcm")
    raw_cam = conv1x1(arrays["in_conv6"], arrays["param_fc8"])
    cam = pcm.normalize_cam(raw_cam)
    image = resize_aligned(arrays["in_image"], raw_cam.shape[1:3])
    conv4 = jax.nn.relu(conv1x1(arrays["in_conv4"], arrays["param_f8_3"]))
    conv5 = jax.nn.relu(conv1x1(arrays["in_conv5"], arrays["param_f8_4"]))
    features = jnp.concatenate([image, conv4, conv5], axis=-1)
    embedding = conv1x1(features, arrays["param_f9"])
    revised = pcm.refine(cam, embedding)
    full = arrays["in_image"].shape[1:3]
    got = {
        "out_raw_cam": raw_cam,
        "out_cam_norm": cam,
        "out_features": features,
        "out_affinity": pcm.pixel_affinity(embedding),
        "out_revised_cam": revised,
        "out_cam_up": resize_aligned(raw_cam, full)[:, ::4, ::4],
        "out_revised_cam_up": resize_aligned(revised, full)[:, ::4, ::4],
    }
    assert set(got) == {name for name in arrays if name.startswith("out_")}
    for name, value in got.items():
        # 3e-5: the README's tolerance for this file.
        assert_golden(value, arrays[name], rtol=3e-5, what=name)


def test_refined_cams_stay_probabilities():
    rng = np.random.default_rng(0)
    cam = pcm.normalize_cam(jnp.asarray(rng.normal(size=(2, 6, 5, 3)), jnp.float32))
    revised = pcm.refine(cam, jnp.asarray(rng.normal(size=(2, 6, 5, 8)), jnp.float32))
    assert 0 <= cam.min() < cam.max() <= 1
    assert 0 <= revised.min() < revised.max() <= 1
    np.testing.assert_allclose(cam[..., 0], 1 - cam[..., 1:].max(-1), atol=1e-6)  # one subtraction


@pytest.mark.parametrize("at_once", [1, 700, 10**9])
def test_refined_in_parts_is_refined(at_once, monkeypatch):
    monkeypatch.setattr(pcm, "AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    cam = pcm.normalize_cam(jnp.asarray(rng.normal(size=(2, 6, 5, 3)), jnp.float32))
    embedding = rng.normal(size=(2, 6, 5, 8)).astype(np.float32)
    embedding[0, 2, 3] = 0  # gives and receives nothing
    got = pcm.refine_in_parts(cam, jnp.asarray(embedding))
    np.testing.assert_allclose(got, pcm.refine(cam, jnp.asarray(embedding)), atol=1e-6)


def test_one_class_a_pixel_and_ties_are_kept():
    cam = jnp.array([[[[9.0, 0.2, 0.7, 0.3], [9.0, 0.5, 0.1, 0.5]]]])
    want = [[[[0.3, 0, 0.7, 0], [0.5, 0.5, 0, 0.5]]]]
    np.testing.assert_allclose(pcm.strongest_class(cam), want, atol=1e-6)  # one subtraction


def test_no_gradient_goes_into_the_normalised_cam():
    x = jax.random.normal(jax.random.PRNGKey(0), (1, 4, 4, 2))
    embedding = jax.random.normal(jax.random.PRNGKey(1), (1, 4, 4, 5))
    weights = jax.random.normal(jax.random.PRNGKey(2), (1, 4, 4, 2))

    def total(raw, embedding):
        return jnp.sum(weights * pcm.refine(pcm.normalize_cam(raw), embedding))

    of_raw, of_embedding = jax.jit(jax.grad(total, argnums=(0, 1)))(x, embedding)
    assert not of_raw.any()
    assert of_embedding.any()


@pytest.mark.parametrize("zeros", ["one pixel", "all", "all but one", "tiny"])
def test_zero_embeddings_give_and_receive_nothing_and_have_finite_gradients(zeros):
    embedding = np.random.default_rng(1).normal(size=(1, 3, 4, 6)).astype(np.float32)
    silent = np.zeros((3, 4), bool)
    silent[1, 2] = True
    if zeros == "all but one":
        silent = ~silent
    elif zeros != "one pixel":
        silent[:] = True
    embedding[:, silent] = 1e-30 if zeros == "tiny" else 0.0  # the square of 1e-30 underflows
    cam = pcm.normalize_cam(jnp.ones((1, 3, 4, 2)))

    def total(embedding):
        revised = pcm.refine(cam, embedding)
        return jnp.sum(revised**2), revised

    grad, revised = jax.jit(jax.grad(total, has_aux=True))(embedding)
    assert np.isfinite(grad).all()
    np.testing.assert_array_equal(revised[:, silent], 0)
    affinity = np.asarray(pcm.pixel_affinity(embedding))[0]
    assert not affinity[silent.ravel()].any()
    assert not affinity[:, silent.ravel()].any()
    # 1e-4: each column is divided by its sum plus 1e-5, and the cosines by lengths plus 1e-5.
    np.testing.assert_allclose(affinity.sum(0)[~silent.ravel()], 1, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, -3.0, 2.0])
def test_constant_maps_stay_finite(value):
    maps = jnp.full((1, 4, 4, 2), value)
    assert np.isfinite(pcm.normalize_cam(maps)).all()
    stretched, pull = jax.vjp(pcm.min_max_normalize, maps)
    np.testing.assert_array_equal(stretched, 0)
    assert np.isfinite(pull(jnp.ones_like(maps))[0]).all()
