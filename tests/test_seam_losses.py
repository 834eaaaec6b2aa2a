"""SEAM's losses against the released code's numbers, and where their maps are empty."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax import losses
from cxr_jax.ops import pcm
from cxr_jax.ops.resize import resize_aligned

MAPS = ("cam1", "revised1", "cam2", "revised2")
PUBLISHED = 0.2  # the share of hard values in the released code


def views(maps):
    """in_cam1, in_revised1, in_cam2, in_revised2 as the two views."""
    return tuple(maps[:2]), tuple(maps[2:])


def class_logits(cam):
    return jnp.mean(cam, axis=(1, 2))[..., 1:]


def terms_of(maps, label, classification):
    """Each loss of the file by its name there, as the mean over the images; the total last."""
    large, small = views(maps)
    out = {}
    for view, (cam, revised) in (("1", large), ("2", small)):
        out[f"loss_cls{view}"] = classification(class_logits(cam))
        out[f"loss_rvmin{view}"] = losses.adaptive_min_pooling(revised, label)
    published = losses.equivariance_losses(large, small, label, hardest=PUBLISHED)
    every = losses.equivariance_losses(large, small, label)
    out["loss_er"] = published["er_cam"]
    out["loss_ecr1"], out["loss_ecr2"] = published["ecr_large"], published["ecr_small"]
    out["loss_ecr"] = out["loss_ecr1"] + out["loss_ecr2"]
    out["er_revised"] = every["er_revised"]
    out["ecr1_all"], out["ecr2_all"] = every["ecr_large"], every["ecr_small"]
    for name, value in out.items():
        assert value.shape == (label.shape[0],), name
    out = {name: jnp.mean(value) for name, value in out.items()}
    out["total"] = (
        (out["loss_cls1"] + out["loss_cls2"] + out["loss_rvmin1"] + out["loss_rvmin2"]) / 2
        + out["loss_er"]
        + out["loss_ecr"]
    )
    return out


def classification_of(arrays):
    """Binary: the soft margin of labels -1 and 1. 20 classes: cross-entropy of labels 0 and 1."""
    label = arrays["in_label"]
    if label.shape[1] == 1:
        return lambda logits: losses.soft_margin(logits[:, 0], label[:, 0])
    return lambda logits: losses.masked_bce(logits, label)


@pytest.mark.parametrize("name", ["seam_losses", "seam_losses_binary"])
def test_released_losses_and_gradients_match_reference(name, golden, assert_golden):
    # The binary file's plain arrays multiply the maps by the label -1, as the released code does.
    arrays = golden(name)
    label, maps = jnp.asarray(arrays["in_label"]), [arrays[f"in_{m}"] for m in MAPS]

    def total(maps):
        terms = terms_of(maps, label, classification_of(arrays))
        return terms["total"], terms

    grads, terms = jax.jit(jax.grad(total, has_aux=True))(maps)
    for key, value in terms.items():
        # 1e-5, gradients 1e-4: the README's tolerances for these files.
        assert_golden(value, arrays[f"out_{key}"], rtol=1e-5, what=key)
    for key, grad in zip(MAPS, grads):
        want = arrays[f"out_grad_{key}"]
        rows, columns = strides_of(grad.shape[1:3], want.shape[1:3])
        assert_golden(grad[:, ::rows, ::columns], want, rtol=1e-4, what=f"gradient of {key}")


def strides_of(full, kept):
    """Every how many-th row and column of a map was kept, by the sizes of both."""
    fitting = [
        [step for step in range(1, whole + 1) if -(-whole // step) == some]
        for whole, some in zip(full, kept)
    ]
    common = set(fitting[0]) & set(fitting[1])  # one step for both
    assert common, (full, kept)
    return (min(common),) * 2


@pytest.mark.parametrize("name", ["seam_losses", "seam_losses_binary"])
def test_maps_and_targets_match_reference(name, golden, assert_golden):
    arrays = golden(name)
    weights = np.concatenate([np.ones_like(arrays["in_label"][:, :1]), arrays["in_label"]], axis=1)
    size = arrays["in_cam2"].shape[1:3]
    for key in MAPS:
        maps = resize_aligned(pcm.min_max_normalize(arrays[f"in_{key}"]), size)
        maps = maps * weights[:, None, None, :]
        # 1e-5: the README's tolerance for these files.
        assert_golden(maps, arrays[f"out_norm_{key}"], rtol=1e-5, what=key)
        if key.startswith("cam"):
            target = pcm.strongest_class(maps)
            assert_golden(target, arrays[f"out_onehot_{key}"], rtol=1e-5, what=f"target {key}")
            logits = class_logits(arrays[f"in_{key}"])
            assert_golden(logits, arrays[f"out_logit{key[-1]}"], rtol=1e-5, what=f"logit {key}")


def test_labels_of_0_clear_the_maps_of_a_negative_image(golden, assert_golden):
    arrays = golden("seam_losses_binary")
    label = jnp.maximum(arrays["in_label"], 0.0)
    maps = [arrays[f"in_{m}"] for m in MAPS]
    terms = jax.jit(lambda maps: terms_of(maps, label, classification_of(arrays)))(maps)
    names = [key.removeprefix("out_mask01_") for key in arrays if key.startswith("out_mask01_loss")]
    assert names
    for key in names:
        # 1e-5: the README's tolerance for this file.
        assert_golden(terms[key], arrays[f"out_mask01_{key}"], rtol=1e-5, what=key)
    weights = jnp.concatenate([jnp.ones_like(label[:, :1]), label], axis=1)
    cam2 = pcm.min_max_normalize(maps[2]) * weights[:, None, None]
    want = arrays["out_mask01_onehot_cam2"]
    assert_golden(pcm.strongest_class(cam2), want, rtol=1e-5, what="target")


@pytest.mark.parametrize("hardest", [0.2, 1.0])
def test_empty_and_constant_maps_are_finite_with_finite_gradients(hardest):
    rng = np.random.default_rng(0)
    shapes = [(2, 8, 6, 3)] * 2 + [(2, 3, 2, 3)] * 2

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def function(maps, label):
        terms = losses.equivariance_losses(*views(maps), label, hardest=hardest)
        terms["rvmin"] = losses.adaptive_min_pooling(maps[1], label)
        return sum(jnp.sum(x) for x in terms.values()), terms

    for value, label in itertools.product((0.0, -1.0, 3.0, "random"), (0.0, 1.0)):
        noise = value == "random"
        maps = [rng.normal(size=s) if noise else np.full(s, value) for s in shapes]
        maps = [jnp.asarray(m, jnp.float32) for m in maps]
        grads, terms = function(maps, jnp.full((2, 2), label))
        for name, term in terms.items():
            assert np.isfinite(term).all(), name
            assert (term >= 0).all(), name
        for grad in grads:
            assert np.isfinite(grad).all()
            if label == 0.0:
                np.testing.assert_array_equal(grad[..., 1:], 0)
        if label == 0.0:
            np.testing.assert_array_equal(terms["er_cam"], 0)


def test_equal_views_have_no_equivariance_loss():
    maps = jax.random.normal(jax.random.PRNGKey(0), (2, 5, 5, 2))
    terms = losses.equivariance_losses((maps, maps), (maps, maps), jnp.ones((2, 1)))
    np.testing.assert_array_equal(terms["er_cam"], 0)
    np.testing.assert_array_equal(terms["er_revised"], 0)


def test_cross_terms_send_their_gradient_to_the_revised_maps_only():
    keys = jax.random.split(jax.random.PRNGKey(1), 4)
    maps = [jax.random.normal(k, (1, s, s, 2)) for k, s in zip(keys, (6, 6, 3, 3))]

    def cross(maps):
        terms = losses.equivariance_losses(*views(maps), jnp.ones((1, 1)))
        return jnp.sum(terms["ecr_large"] + terms["ecr_small"])

    has_gradient = [bool(g.any()) for g in jax.jit(jax.grad(cross))(maps)]
    assert has_gradient == [False, True, False, True]


def test_soft_margin_rewards_the_right_sign_and_is_finite_far_out():
    logits = jnp.array([90.0, -90.0, 1e30, -1e30, 0.0])
    value, pull = jax.vjp(lambda z: losses.soft_margin(z, jnp.ones(5)), logits)
    np.testing.assert_allclose(value, [0, 90, 0, 1e30, np.log(2)], rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(pull(jnp.ones(5))[0], [0, -1, 0, -1, -0.5], rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("hardest", [0.0, 1.5])
def test_a_share_outside_0_to_1_is_refused(hardest):
    maps = jnp.zeros((1, 4, 4, 2))
    with pytest.raises(ValueError, match="hardest="):
        losses.equivariance_losses((maps, maps), (maps, maps), jnp.ones((1, 1)), hardest=hardest)


def test_labels_that_do_not_fit_the_maps_are_refused():
    maps = jnp.zeros((2, 4, 4, 2))
    for label in (jnp.ones(2), jnp.ones((2, 2))):
        with pytest.raises(ValueError, match="labels"):
            losses.equivariance_losses((maps, maps), (maps, maps), label)
        with pytest.raises(ValueError, match="labels"):
            losses.adaptive_min_pooling(maps, label)
