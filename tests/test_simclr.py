"""SimCLR: its loss, its two views, the joined set, and a run that a diagnosis starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax import losses

# The loss.


def slow_nt_xent(first, second, temperature):
    """Eq. 1 as it is printed, in loops: l of every view against every other one."""
    views = np.concatenate([first, second]).astype(np.float64)
    count = len(first)

    def cosine(a, b):
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))

    def loss(i, j):
        above = np.exp(cosine(views[i], views[j]) / temperature)
        below = sum(
            np.exp(cosine(views[i], views[k]) / temperature) for k in range(2 * count) if k != i
        )
        return -np.log(above / below)

    return np.array([(loss(i, i + count) + loss(i + count, i)) / 2 for i in range(count)])


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(5, 7)).astype(np.float32)
    return first, (first + rng.normal(size=(5, 7))).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_is_eq_1(pair, temperature):
    got = losses.nt_xent(*pair, temperature=temperature)
    assert (got.shape, got.dtype) == ((5,), jnp.float32)
    np.testing.assert_allclose(got, slow_nt_xent(*pair, temperature), rtol=1e-5)


def test_nt_xent_knows_no_order_of_views_or_examples(pair):
    first, second = pair
    got = np.asarray(losses.nt_xent(first, second, temperature=0.5))
    np.testing.assert_allclose(losses.nt_xent(second, first, temperature=0.5), got, rtol=1e-5)
    order = np.array([3, 0, 4, 1, 2])
    moved = losses.nt_xent(first[order], second[order], temperature=0.5)
    np.testing.assert_allclose(moved, got[order], rtol=1e-5)
    other = losses.nt_xent(first, second[order], temperature=0.5)  # not a pair any more
    assert float(other.mean()) > got.mean()


def test_nt_xent_is_stable(pair):
    """Zero vectors, cosines of 1 over a temperature of 1/40, and lengths far from 1."""
    first, second = pair
    tell = lambda a, b: losses.nt_xent(a, b, temperature=0.025).sum()  # noqa: E731
    zeros = np.zeros_like(first)
    np.testing.assert_allclose(
        losses.nt_xent(zeros, zeros, temperature=0.5), np.log(9.0), rtol=1e-6
    )
    for one, two in ((zeros, zeros), (first, first), (first, -first), (zeros, second)):
        value, gradients = jax.value_and_grad(tell, argnums=(0, 1))(one, two)
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in gradients)
    far = losses.nt_xent(first * 1e25, second * 1e-8, temperature=0.5)
    np.testing.assert_allclose(far, losses.nt_xent(*pair, temperature=0.5), rtol=1e-4)
    half = losses.nt_xent(first.astype(jnp.bfloat16), second, temperature=0.5)
    assert half.dtype == jnp.float32


def test_nt_xent_needs_a_negative(pair):
    first, second = pair
    for one, two in ((first[:1], second[:1]), (first, second[:4]), (first[0], second[0])):
        with pytest.raises(ValueError, match="B > 1"):
            losses.nt_xent(one, two, temperature=0.5)
