"""Neighbourhood affinity against loops over pixels, and its symmetries and edges."""

import functools
import itertools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from cxr_jax.ops import affinity

TERMS = ("nfs", "nbs", "nfbd")
PAPER = dict(foreground=0.1, background=0.01, radius=5)

paper_affinity = jax.jit(functools.partial(affinity.neighbourhood_affinity, **PAPER))


def example(shape=(3, 9, 8), channels=6, seed=0):
    """Probabilities of all three kinds, and features."""
    rng = np.random.default_rng(seed)
    prob = rng.choice([0.001, 0.05, 0.6], size=shape).astype(np.float32)
    return prob, rng.normal(size=(*shape, channels)).astype(np.float32)


@pytest.mark.parametrize("shape", ["euclid", "chebyshev"])
@pytest.mark.parametrize("empty", ["count", "drop"])
def test_affinity_matches_reference(golden, assert_golden, shape, empty):
    arrays = golden("nam")
    prob = jax.nn.sigmoid(arrays["in_map"])
    thresholds = dict(foreground=float(arrays["in_tfg"]), background=float(arrays["in_tbg"]))
    for name, kind in (
        ("foreground", prob > thresholds["foreground"]),
        ("background", prob < thresholds["background"]),
    ):
        np.testing.assert_array_equal(kind.sum((1, 2)), arrays[f"out_n_{name}"])
    function = functools.partial(
        affinity.neighbourhood_affinity,
        **thresholds,
        radius=int(arrays["in_radius"]),
        shape=shape,
        empty=empty,
    )

    def total(features):
        terms = function(prob, features)
        return sum(jnp.sum(terms[name]) for name in TERMS), terms

    grad, terms = jax.jit(jax.grad(total, has_aux=True))(arrays["in_features"])
    for name in TERMS:
        # 1e-5 and 1e-6: the README's tolerance for this file.
        want = arrays[f"out_{name}_{shape}_{empty}"]
        assert_golden(terms[name], want, rtol=1e-5, atol=1e-6, what=name)
    assert np.isfinite(grad).all()
    if (shape, empty) == ("euclid", "count"):
        want = arrays["out_grad_features_euclid_count"]
        assert_golden(grad, want, rtol=1e-5, atol=1e-6, what="gradient")


@pytest.mark.parametrize("empty", ["count", "drop"])
@pytest.mark.parametrize("radius", [1, 2, 20])
def test_affinity_equals_loops_over_pixels(radius, empty):
    prob, features = example((2, 4, 5), 3)
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    kinds = {"f": prob > 0.1, "b": prob < 0.01}

    def mean_cosine(image, outer, inner, of):
        """Mean of of(cos) over pixels of one kind and, inside, their neighbours of another."""
        means, pixels = [], np.argwhere(kinds[outer][image])
        for j in pixels:
            near = [
                of(unit[image][tuple(j)] @ unit[image][tuple(k)])
                for k in np.argwhere(kinds[inner][image])
                if 0 < np.hypot(*(j - k)) <= radius
            ]
            if near or empty == "count":
                means.append(np.mean(near) if near else 0.0)
        return np.mean(means) if means else 0.0

    got = affinity.neighbourhood_affinity(
        prob, features, foreground=0.1, background=0.01, radius=radius, empty=empty
    )
    for i in range(2):
        want = {
            "nfs": mean_cosine(i, "f", "f", lambda c: 1 - c),
            "nbs": mean_cosine(i, "b", "b", lambda c: 1 - c),
            "nfbd": mean_cosine(i, "f", "b", lambda c: c) + mean_cosine(i, "b", "f", lambda c: c),
        }
        for name in TERMS:
            np.testing.assert_allclose(got[name][i], want[name], atol=1e-6)  # float32 near 1


def test_gradient_equals_finite_differences():
    prob, features = example((1, 4, 5), 3)

    @jax.jit
    def total(features):
        terms = affinity.neighbourhood_affinity(prob, features, **PAPER)
        return terms["nfs"][0] + 2 * terms["nbs"][0] + 3 * terms["nfbd"][0]

    # Steps of 1e-2 in float32: the rounding 1e-7 / 1e-2 and the curvature both stay below 1e-2.
    jax.test_util.check_grads(
        total, (jnp.asarray(features),), order=1, modes=["rev"], eps=1e-2, atol=1e-2, rtol=1e-2
    )


def test_no_gradient_goes_through_the_thresholds():
    prob, features = example()

    def total(prob):
        terms = affinity.neighbourhood_affinity(prob, features, **PAPER)
        return sum(jnp.sum(x) for x in terms.values())

    grad = jax.jit(jax.grad(total))(prob)
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize("axis", [1, 2])
def test_flipped_maps_have_the_same_affinity(axis):
    prob, features = example()
    got = paper_affinity(np.flip(prob, axis), np.flip(features, axis))
    want = paper_affinity(prob, features)
    for name in TERMS:
        np.testing.assert_allclose(got[name], want[name], atol=1e-6)  # another order of sums


def test_images_do_not_see_each_other():
    prob, features = example()
    order = np.array([2, 0, 1])
    got = paper_affinity(prob[order], features[order])
    want = paper_affinity(prob, features)
    for name in TERMS:
        np.testing.assert_allclose(got[name], want[name][order], atol=1e-6)  # float32 sums


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 7), (1, 7, 1), (1, 3, 4)])
def test_maps_of_one_kind(shape):
    features = np.random.default_rng(3).normal(size=(*shape, 4)).astype(np.float32)
    features[:, 0, 0] = 0.0  # an all-zero feature: cosine 0, no gradient

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def function(features, prob):
        terms = {
            empty: affinity.neighbourhood_affinity(prob, features, **PAPER, empty=empty)
            for empty in ("count", "drop")
        }
        return sum(jnp.sum(x) for x in jax.tree.leaves(terms)), terms

    for value, kind in ((0.0, "nbs"), (0.05, None), (1.0, "nfs")):
        grad, terms = function(features, np.full(shape, value, np.float32))
        assert np.isfinite(grad).all()
        np.testing.assert_array_equal(grad[:, 0, 0], 0)
        for empty, name in itertools.product(terms, TERMS):
            term = terms[empty][name]
            assert np.isfinite(term).all()
            # A lone pixel has no neighbour of any kind.
            assert (term != 0).all() == (name == kind and shape != (1, 1, 1)), (empty, name)


def test_equal_features_are_alike_and_opposite_ones_are_apart():
    prob = np.zeros((1, 6, 6), np.float32)
    prob[:, :, 3:] = 1.0
    features = np.where(prob[..., None] > 0, 1.0, -1.0) * np.ones(4)
    got = paper_affinity(prob, jnp.asarray(features, jnp.float32))
    for name, want in {"nfs": 0.0, "nbs": 0.0, "nfbd": -2.0}.items():
        np.testing.assert_allclose(got[name], want, atol=1e-6)  # float32 near 1


def test_the_papers_neighbourhood_has_80_pixels():
    counts = affinity.neighbour_counts(jnp.ones((1, 13, 13, 1)), radius=5, shape="euclid")
    assert counts[0, 6, 6, 0] == 80


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(radius=0), "at least 1"),
        (dict(background=0.5), "would be both"),
        (dict(shape="disc"), "'euclid' or 'chebyshev'"),
        (dict(empty="skip"), "'count' or 'drop'"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        affinity.neighbourhood_affinity(*example(), **{**PAPER, **wrong})


@pytest.mark.parametrize("radius", [1, 2, 5])
def test_the_released_affinity_equals_loops_over_pairs(radius):
    prob, features = example()
    found = jax.jit(
        functools.partial(affinity.exp_l1_affinity, foreground=0.7, background=0.3, radius=radius)
    )(prob, features)
    prob, features = np.asarray(prob, np.float64), np.asarray(features, np.float64)
    for b in range(len(prob)):
        pixels = list(np.ndindex(prob.shape[1:]))
        sums = {name: [] for name in ("nfs", "nbs", "nfbd")}
        for j, k in itertools.combinations(pixels, 2):
            if (j[0] - k[0]) ** 2 + (j[1] - k[1]) ** 2 >= radius**2:
                continue
            a = np.exp(-np.abs(features[b][j] - features[b][k]).mean())
            one, two = prob[b][j], prob[b][k]
            if one >= 0.7 and two >= 0.7:
                sums["nfs"].append(-np.log(a + 1e-5))
            elif one < 0.3 and two < 0.3:
                sums["nbs"].append(-np.log(a + 1e-5))
            elif max(one, two) >= 0.7 and min(one, two) < 0.3:
                sums["nfbd"].append(-np.log(1 + 1e-5 - a))
        for name, values in sums.items():
            expected = np.mean(values) if values else 0.0
            np.testing.assert_allclose(found[name][b], expected, rtol=1e-4, err_msg=name)


def test_the_released_affinity_is_finite_where_features_are_equal_or_far_apart():
    prob = jnp.linspace(0, 1, 24).reshape(1, 4, 6)

    def total(features):
        terms = affinity.exp_l1_affinity(prob, features, foreground=0.6, background=0.4, radius=3)
        return sum(jnp.sum(term) for term in terms.values())

    for features in (
        jnp.ones((1, 4, 6, 3)),
        1e4 * jax.random.normal(jax.random.key(0), (1, 4, 6, 3)),
    ):
        value, grad = jax.value_and_grad(total)(features)
        assert np.isfinite(value)
        assert np.isfinite(grad).all()
