"""The AdaIN generator: what the codes do and do not change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.models import adain

B, SIZE = 3, 16


@pytest.fixture(scope="module")
def generator():
    """A tiny generator whose affine maps are no longer zero, with its variables and a film."""
    model = adain.AdaINGenerator(features=(4, 6), code_size=5)
    film = jnp.asarray(np.random.default_rng(0).normal(size=(B, SIZE, SIZE, 1)), jnp.float32)
    variables = model.init(jax.random.PRNGKey(0), film, jnp.zeros(B, jnp.int32))
    rng = np.random.default_rng(1)

    def moved(path, leaf):
        if "affine" not in jax.tree_util.keystr(path):
            return leaf
        return leaf + jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32)

    return model, jax.tree_util.tree_map_with_path(moved, variables), film


def jobs(number):
    return jnp.full(B, number, jnp.int32)


def test_adain_gives_the_mean_and_deviation_of_its_code():
    layer = adain.AdaIN()
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(5, 3, size=(2, 8, 6, 3)), jnp.float32)
    code = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
    kernel, bias = rng.normal(size=(4, 6)) * 0.3, rng.normal(size=6)
    params = {"affine": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}
    y = np.asarray(layer.apply({"params": params}, x, code))
    gamma, beta = np.split(np.asarray(code) @ kernel + bias, 2, axis=-1)
    # 1e-4: sums of 48 float32 numbers, and epsilon 1e-5 beside a variance of 9.
    np.testing.assert_allclose(y.mean((1, 2)), beta, atol=1e-4)
    np.testing.assert_allclose(y.std((1, 2)), np.abs(1 + gamma), atol=1e-4)


def test_a_fresh_generator_does_the_same_for_every_job():
    model = adain.AdaINGenerator(features=(4, 6))
    film = jnp.asarray(np.random.default_rng(0).normal(size=(B, SIZE, SIZE, 1)), jnp.float32)
    variables = model.init(jax.random.PRNGKey(0), film, jobs(0))
    a, b = (model.apply(variables, film, jobs(job))["logits"] for job in (0, 2))
    np.testing.assert_array_equal(a, b)


def test_codes_tell_the_jobs_apart(generator):
    model, variables, film = generator
    a, b = (model.apply(variables, film, jobs(job))["logits"] for job in (0, 2))
    assert np.abs(a - b).max() > 0.01


def test_each_example_has_its_own_job(generator):
    """A batch of mixed jobs gives what each job gives alone, and examples do not mix."""
    model, variables, film = generator
    order = jnp.asarray([2, 0, 1], jnp.int32)
    mixed = model.apply(variables, film, order)
    for i, job in enumerate(order):
        alone = model.apply(variables, film[i : i + 1], job[None])
        for name in ("logits", "image"):
            # 1e-5: float32 convolutions summed in another order for another batch size.
            np.testing.assert_allclose(mixed[name][i], alone[name][0], atol=1e-5, rtol=1e-5)


def test_contrast_of_a_film_changes_no_mask(generator):
    """The instance norm of the first level takes it out. (Added grey would stay at the border.)"""
    model, variables, film = generator
    before = model.apply(variables, film, jobs(0))["logits"]
    after = model.apply(variables, 3 * film, jobs(0))["logits"]
    # 1e-3: epsilon 1e-5 beside variances of the order of 1, through six norms.
    np.testing.assert_allclose(before, after, atol=1e-3, rtol=1e-3)


def test_only_the_code_of_the_job_has_a_gradient(generator):
    model, variables, film = generator

    def total(variables):
        return jnp.sum(model.apply(variables, film, jobs(adain.DISTIL))["logits"])

    codes = jax.grad(total)(variables)["params"]["codes"]
    assert np.all(np.asarray(codes[:2]) == 0)
    assert np.abs(codes[adain.DISTIL]).max() > 0


def test_a_size_that_does_not_halve_is_refused():
    model = adain.AdaINGenerator(features=(4, 4, 4))
    with pytest.raises(ValueError, match="multiples of 4"):
        jax.eval_shape(model.init, jax.random.PRNGKey(0), jnp.zeros((1, 10, 12, 1)), jobs(0)[:1])
