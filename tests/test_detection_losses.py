"""The losses of anatomy-driven detection against the references, and at their edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from cxr_jax import losses

COEFFICIENTS = {"l1": 5.0, "giou": 2.0}


def detr(predicted, logits, arrays, *, balanced):
    """The whole of DETR's loss on the reference's arrays, and its terms."""
    terms = losses.fixed_box_losses(predicted, arrays["in_target_boxes"], arrays["in_mask"])
    terms = {name: jnp.mean(value) for name, value in terms.items()}
    presence = losses.presence_loss(logits, arrays["in_mask"], balanced=balanced)
    terms["presence"] = jnp.mean(presence)
    return sum(COEFFICIENTS.get(name, 1.0) * value for name, value in terms.items()), terms


@pytest.mark.parametrize("balanced", [False, True])
def test_detr_loss_matches_reference(golden, assert_golden, balanced):
    arrays = golden("detr_box")
    gradient = jax.value_and_grad(detr, argnums=(0, 1), has_aux=True)
    gradient = jax.jit(gradient, static_argnames="balanced")
    inputs = (arrays["in_pred_boxes"], arrays["in_presence_logits"])
    (total, terms), grads = gradient(*inputs, arrays, balanced=balanced)
    suffix = "_weighted" if balanced else ""
    bce = "out_weighted_bce_2d" if balanced else "out_loss_presence"
    wanted = {
        "out_loss_l1": terms["l1"],
        "out_loss_giou": terms["giou"],
        bce: terms["presence"],
        f"out_total{suffix}": total,
    }
    for name, value in wanted.items():
        # 1e-5 (gradients 1e-4) and 1e-6: the README's tolerance for this file.
        assert_golden(value, arrays[name], rtol=1e-5, atol=1e-6, what=name)
    assert_golden(grads[0], arrays["out_grad_boxes"], rtol=1e-4, atol=1e-6, what="boxes")
    logits = arrays[f"out_grad_logits{suffix}"]
    assert_golden(grads[1], logits, rtol=1e-4, atol=1e-6, what="logits")


def test_absent_regions_take_no_part_whatever_their_box():
    rng = np.random.default_rng(0)
    predicted, targets = rng.random((2, 2, 5, 4)).astype(np.float32)
    present = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]])

    @jax.jit
    def total(boxes, targets):
        terms = losses.fixed_box_losses(boxes, targets, present)
        return jnp.mean(terms["l1"] + terms["giou"])

    for filler in np.float32([7, np.nan, np.inf]):
        filled = np.where(present[..., None] == 1, targets, filler)
        grad = jax.grad(total)(predicted, filled)
        assert total(predicted, filled) == total(predicted, targets)
        assert np.isfinite(grad).all()
        assert (grad[present == 0] == 0).all()
        assert (grad[present == 1] != 0).any(axis=-1).all()
    # The three boxes of the batch are divided by three, not by the films.
    l1 = np.abs(predicted - targets).sum(-1)[present == 1].mean()
    found = losses.fixed_box_losses(predicted, filled, present)["l1"].mean()
    np.testing.assert_allclose(found, l1, rtol=1e-6)


@pytest.mark.parametrize("logit", [-100.0, -40.0, -22.0, 40.0])
def test_box_losses_have_finite_gradients_at_extreme_logits(logit):
    """Of a region that is not there too, whose box nothing holds."""
    present, targets = np.array([[True, False]]), jnp.full((1, 2, 4), 0.3)

    def total(logits):
        terms = losses.fixed_box_losses(jax.nn.sigmoid(logits), targets, present)
        return sum(jnp.sum(v) for v in terms.values())

    grad = jax.jit(jax.grad(total))(jnp.full((1, 2, 4), logit))
    assert np.isfinite(grad).all()
    assert (grad[0, 1] == 0).all()


def test_a_batch_without_boxes_costs_nothing():
    nothing = jnp.zeros((2, 3), bool)
    targets = jnp.full((2, 3, 4), jnp.nan)

    def total(boxes):
        return sum(jnp.sum(v) for v in losses.fixed_box_losses(boxes, targets, nothing).values())

    value, grad = jax.jit(jax.value_and_grad(total))(jnp.full((2, 3, 4), 0.5))
    assert value == 0
    assert (grad == 0).all()


def test_box_losses_do_not_mind_the_order_of_regions_or_of_films():
    rng = np.random.default_rng(1)
    predicted, targets = rng.random((2, 3, 6, 4)).astype(np.float32)
    present = rng.random((3, 6)) < 0.6
    films, regions = rng.permutation(3), rng.permutation(6)
    plain = losses.fixed_box_losses(predicted, targets, present)
    moved = losses.fixed_box_losses(
        *(array[films][:, regions] for array in (predicted, targets, present))
    )
    for name, value in plain.items():
        np.testing.assert_allclose(moved[name], value[films], rtol=1e-6)  # float32 sums


@pytest.mark.parametrize("balanced", [False, True])
def test_unknown_presence_takes_no_part(balanced):
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(6, 4)).astype(np.float32)
    present = (rng.random((6, 4)) < 0.5).astype(np.float32)
    unknown = present.copy()
    unknown[:, 2] = np.nan  # a region of which nobody knows
    unknown[5] = np.nan  # and a film

    @jax.jit
    def loss(logits, present):
        return losses.presence_loss(logits, present, balanced=balanced)

    got = loss(logits, unknown)
    np.testing.assert_allclose(got[:5], loss(logits[:5][:, [0, 1, 3]], present[:5][:, [0, 1, 3]]))
    assert got[5] == 0
    grad = jax.grad(lambda z: loss(z, unknown).sum())(logits)
    np.testing.assert_array_equal(grad != 0, ~np.isnan(unknown))


def test_balancing_gives_rare_classes_their_weight():
    present = np.zeros((99, 1), np.float32)
    present[0] = 1
    grad = jax.grad(lambda z: losses.presence_loss(z, present, balanced=True).mean())(
        jnp.zeros((99, 1))
    )
    # 99 films, one positive: weights 100 / 2 and 100 / 99.
    np.testing.assert_allclose(grad[:2, 0] * 99, [-25.0, 50 / 99], rtol=1e-5)  # float32


def test_asl_matches_reference(golden, assert_golden):
    arrays = golden("asl")
    logits, labels = arrays["in_logits"], arrays["in_targets"]
    settings = {k: float(arrays[f"in_{k}"]) for k in ("gamma_neg", "gamma_pos", "clip")}

    @functools.partial(jax.jit, static_argnums=2)
    def loss(logits, labels, reduction):
        return losses.asymmetric_loss(logits, labels, reduction=reduction, **settings)

    each = loss(logits.reshape(-1, 1), labels.reshape(-1, 1), "sum").reshape(logits.shape)
    films = len(logits)
    wanted = {
        "out_elementwise": each,
        "out_batchmean": loss(logits, labels, "sum").mean(),
        "out_sum": films * loss(logits, labels, "sum").mean(),
        "out_adpd_coeff_0p01": 0.01 * films * loss(logits, labels, "sum").mean(),
        "out_mean": loss(logits, labels, "mean").mean(),
    }
    for name, value in wanted.items():
        # 1e-5 (the gradient 1e-4) and 1e-6: the README's tolerance for this file.
        assert_golden(value, arrays[name], rtol=1e-5, atol=1e-6, what=name)
    grad = jax.grad(lambda z: loss(z, labels, "sum").sum())(logits)
    assert_golden(grad, arrays["out_grad_of_sum"], rtol=1e-4, atol=1e-6, what="gradient")


@pytest.mark.parametrize("options", [{}, {"clip": 0.0}, {"gamma_neg": 0.0, "gamma_pos": 0.0}])
def test_asl_is_finite_at_extreme_logits(options):
    logits = jnp.array([-1e4, -88.0, -40.0, 40.0, 88.0, 1e4])
    logits, labels = map(jnp.ravel, jnp.meshgrid(logits, jnp.array([0.0, 1.0])))

    @jax.jit
    def each(z):
        return losses.asymmetric_loss(z[:, None], labels[:, None], reduction="sum", **options)

    value = each(logits)
    assert np.isfinite(jax.grad(lambda z: each(z).sum())(logits)).all()
    wrong = (logits > 0) != (labels == 1)
    # A wrong answer costs up to -log 1e-8; a clipped negative -0.95^4 log 0.05 = 2.44.
    assert (value[wrong] > 2.4).all()
    assert (value[wrong] < 18.5).all()
    assert (value[~wrong] < 1e-9).all()


def test_asl_without_weights_and_clip_is_the_cross_entropy():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(4, 3, 5)).astype(np.float32) * 3
    labels = (rng.random((4, 3, 5)) < 0.3).astype(np.float32)
    labels[0, 0], labels[1] = np.nan, np.nan
    plain = losses.asymmetric_loss(
        logits, labels, reduction="mean", gamma_neg=0.0, gamma_pos=0.0, clip=0.0
    )
    want = losses.masked_bce(logits.reshape(4, -1), labels.reshape(4, -1))
    np.testing.assert_allclose(plain, want, rtol=1e-5)  # float32 in another order
    assert plain[1] == 0


def test_asl_has_no_gradient_of_unknown_labels():
    labels = jnp.array([[1.0, jnp.nan, 0.0], [jnp.nan] * 3])
    for reduction, share in (("sum", 1), ("mean", 2)):

        @functools.partial(jax.jit, static_argnames="reduction")
        def loss(z, reduction=reduction):
            return losses.asymmetric_loss(z, labels, reduction=reduction).sum()

        grad = jax.grad(loss)(jnp.ones((2, 3)))
        np.testing.assert_array_equal(grad == 0, jnp.isnan(labels))
        p = scipy.special.expit(1.0)
        positive = p * (1 - p) * np.log(p) - (1 - p) ** 2  # of -(1 - p) log p
        np.testing.assert_allclose(grad[0, 0], positive / share, rtol=1e-5)  # float32


def test_asl_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="'mean' or 'sum'"):
        losses.asymmetric_loss(jnp.zeros((1, 1)), jnp.zeros((1, 1)), reduction="max")
    with pytest.raises(ValueError, match=r"0\.5"):
        losses.asymmetric_loss(jnp.zeros((1, 1)), jnp.zeros((1, 1)), reduction="sum", gamma_neg=0.5)


def test_detection_losses_are_float32_for_bfloat16():
    half = jnp.full((2, 3), 0.5, jnp.bfloat16)
    boxes = jnp.full((2, 3, 4), 0.5, jnp.bfloat16)
    every = [
        losses.presence_loss(half, half > 0),
        losses.asymmetric_loss(half, jnp.ones((2, 3)), reduction="mean"),
        *losses.fixed_box_losses(boxes, boxes, half > 0).values(),
    ]
    assert {value.dtype for value in every} == {jnp.dtype("float32")}
