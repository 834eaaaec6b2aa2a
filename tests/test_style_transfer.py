"""The adversarial generator of lung masks: each loss by hand, and whom its gradient moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax import losses, teacher
from cxr_jax.models import stargan
from cxr_jax.tasks import make_task, style_transfer
from tests.test_lungs import B, batch_of, tiny

PARTS = ("generator", "mapping", "style", "discriminator", "distil_code")


# By hand.


def test_the_adversarial_loss_by_hand_and_at_extremes():
    logits = jnp.array([0.0, np.log(3.0), 1e4])
    real, made = (losses.adversarial_loss(logits, real=real) for real in (True, False))
    np.testing.assert_allclose(real, [np.log(2), np.log(4 / 3), 0], rtol=1e-6)
    np.testing.assert_allclose(made, [np.log(2), np.log(4), 1e4], rtol=1e-6)
    for real in (True, False):
        slope = jax.grad(lambda z, r=real: losses.adversarial_loss(z, real=r).sum())(-logits)
        assert np.isfinite(slope).all()


def test_r1_is_half_the_squared_slope_of_each_film():
    films = jnp.array([[[1.0, 2.0]], [[3.0, 0.0]]])
    judge = lambda x: jnp.sum(x**2, axis=(1, 2)) / 2  # its slope is the film  # noqa: E731
    np.testing.assert_allclose(losses.r1_penalty(judge, films), [2.5, 4.5])
    # and it can be learned from: d/dw of w^2 |x|^2 / 2
    slope = jax.grad(lambda w: losses.r1_penalty(lambda x: w * judge(x), films).sum())(2.0)
    np.testing.assert_allclose(slope, 2 * (5.0 + 9.0))


def test_the_l1_distance_is_a_mean_an_example():
    a, b = jnp.array([[[1.0, 2.0]], [[0.0, 0.0]]]), jnp.array([[[0.0, 4.0]], [[0.0, 0.0]]])
    np.testing.assert_array_equal(losses.l1_distance(a, b), [1.5, 0.0])
    assert np.isfinite(jax.grad(lambda x: losses.l1_distance(x, b).sum())(a)).all()


def test_the_weighted_sum_by_hand():
    transfer = make_task(
        tiny("adain", **{"adain.diversity_steps": 10, "adain.r1_weight": 3.0})
    ).transfer
    names = ("fool", "style", "cycle", "diversity", "real", "made", "r1")
    terms = {name: jnp.array([float(10**i)]) for i, name in enumerate(names)}
    at = [float(transfer.loss(terms, jnp.int32(step))[0]) for step in (0, 5, 10, 99)]
    rest = 1 + 10 + 2 * 100 + 1e4 + 1e5 + 3e6
    assert at == [rest - 1000, rest - 500, rest, rest]
    np.testing.assert_array_equal(transfer.distillation(jnp.array([True, False])), [1.0, 10.0])


def test_a_reference_is_a_film_of_the_wanted_domain():
    films, domain = jnp.arange(4.0).reshape(4, 1, 1), jnp.array([0, 0, 1, 1])
    seen = set()
    for seed in range(20):
        rng = jax.random.PRNGKey(seed)
        found, there = style_transfer.references(films, domain, wanted=1 - domain, rng=rng)
        assert there.all()
        assert set(np.ravel(found)[:2]) <= {2, 3}
        assert set(np.ravel(found)[2:]) <= {0, 1}
        seen |= set(np.ravel(found).tolist())
    assert seen == {0, 1, 2, 3}
    _, there = style_transfer.references(films, jnp.ones(4, int), wanted=jnp.zeros(4, int), rng=rng)
    assert not there.any()


def test_the_released_sizes():
    """Of the code of Oh and Ye at 256 px, counted layer by layer: the generator without the second
    input and the codes of `distilled`, which are ours by other means."""
    model = stargan.StarGAN((64, 128, 256, 512, 512), (64, 128, 256, 512, 512, 512, 512))
    shapes = jax.eval_shape(
        model.init, jax.random.PRNGKey(0), jnp.zeros((1, 256, 256)), jnp.zeros((1, 4)),
        jnp.zeros(1, int),
    )["params"]  # fmt: skip
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731

    def block(i, o):
        return 9 * i * i + i + 9 * i * o + o + (i * o if i != o else 0)

    widths = [(64, 128), (128, 256), (256, 512), (512, 512), (512, 512), (512, 512)]
    trunk = 9 * 64 + 64 + sum(block(i, o) for i, o in widths) + 16 * 512 * 512 + 512
    assert count(shapes["discriminator"]) == trunk + 2 * 512 + 2
    assert count(shapes["style"]) == trunk + 32 * 512 + 32
    dense = lambda i, o: i * o + o  # noqa: E731
    own = 3 * dense(512, 512) + dense(512, 16)
    assert count(shapes["mapping"]) == dense(4, 512) + 3 * dense(512, 512) + 2 * own
    up = shapes["generator"]["up0"]
    assert up["conv0"]["kernel"].shape == (3, 3, 128, 64)
    assert up["norm1_code"]["affine"]["kernel"].shape == (16, 128)


# Whom a gradient moves.


@pytest.fixture(scope="module")
def task():
    changes = {"adain.trunk": (3,), "adain.hidden": 4, "teaching.first_step": 4}
    changes["model.features"] = (3,)  # no other size: it compiles faster
    return make_task(tiny("adain", **changes))


@pytest.fixture(scope="module")
def variables(task):
    return [dict(jax.jit(task.init)(jax.random.PRNGKey(seed), batch_of())) for seed in (0, 1)]


@pytest.fixture(scope="module")
def slopes(task, variables):
    """(weights of the terms, step) -> the largest slope of each part, and of the teacher."""
    model, size = task.model, task.transfer.latent_size
    batch = batch_of()
    films = batch["clean_image"], batch["labelled"].astype(int)

    def terms(variables, step):
        params, rng = variables["params"], jax.random.PRNGKey(3)
        found, made = style_transfer.generator_terms(
            model, params, films, rng=rng, step=step, latent_size=size
        )
        found |= style_transfer.discriminator_terms(model, params, films, made=made)
        found["distil"] = style_transfer.distil_terms(
            model, params, batch["image"], teacher=variables["teacher"]["params"], batch=films,
            rng=rng, latent_size=size,
        )  # fmt: skip
        return {name: jnp.mean(value) for name, value in found.items()}

    moved = jax.jit(jax.jacrev(terms))
    both = variables[0] | {teacher.COLLECTION: variables[1][teacher.COLLECTION]}

    def largest(tree):
        return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))

    def of(step):
        return {
            name: {part: largest(slope["params"][part]) for part in PARTS}
            | {"teacher": largest(slope["teacher"])}
            for name, slope in moved(both, jnp.int32(step)).items()
        }

    return {step: of(step) for step in (0, 1)}


def movers(slopes, step, term):
    return {part for part, slope in slopes[step][term].items() if slope > 0}


def test_the_generators_losses_leave_the_discriminator(slopes):
    assert movers(slopes, 0, "fool") == {"generator", "mapping"}
    assert movers(slopes, 0, "style") == {"generator", "mapping", "style"}
    assert movers(slopes, 0, "cycle") == {"generator", "mapping", "style"}
    assert movers(slopes, 0, "diversity") == {"generator", "mapping"}


def test_styles_of_films_move_the_generator_alone(slopes):
    for term in ("fool", "style", "cycle", "diversity"):
        assert movers(slopes, 1, term) == {"generator"}


def test_the_discriminators_losses_move_it_alone(slopes):
    for step in (0, 1):
        for term in ("real", "made", "r1"):
            assert movers(slopes, step, term) == {"discriminator"}, term


def test_distillation_moves_what_segments_at_once(slopes):
    assert movers(slopes, 0, "distil") == {"generator", "distil_code"}


def test_the_whole_loss(task, variables):
    """Masks of normal films alone are read; distillation begins at its step; all is finite."""
    batch = batch_of()

    @jax.jit
    def loss(batch, step):
        return task.loss(variables[0], batch, rng=jax.random.PRNGKey(0), step=step)

    value, (state, terms) = loss(batch, 3)
    assert np.isfinite(float(value))
    assert float(terms["distil"]) == 0 < float(loss(batch, 4)[1][1]["distil"])
    hidden = batch | {"lungs": batch["lungs"].at[2:].set(0)}
    known = batch | {"lungs": batch["lungs"].at[:2].set(0)}
    assert float(loss(hidden, 3)[0]) == float(value) != float(loss(known, 3)[0])
    assert state.keys() == {teacher.COLLECTION}
    assert terms.keys() >= {"fool", "style", "cycle", "diversity", "real", "made", "r1", "segment"}
    one_kind = batch | {"labelled": jnp.ones(B, bool)}  # no film to take a style from
    assert np.isfinite(float(loss(one_kind, 5)[0]))


def test_films_without_masks_are_there_from_the_start(task):
    (stage,) = task.data.stages
    assert (stage.first_step, stage.second_share, stage.second_fraction) == (0, 1.0, 0.5)
    assert not task.opacities.chance  # as published


def test_the_masks_at_once_predict(task, variables):
    chosen = variables[0]
    probs = jax.jit(task.predict)(chosen, batch_of())["lung_probs"]
    params = chosen[teacher.COLLECTION]["params"]
    logits = task.model.apply(
        {"params": params}, batch_of()["image"], distilled=True, method="segment"
    )
    # float32, compiled apart
    np.testing.assert_allclose(probs, jax.nn.sigmoid(logits), atol=1e-5)
