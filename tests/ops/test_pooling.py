"""Pooling against the reference vectors, and the lung zones at their edges."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.ops import pooling

MODES = ("max", "mean")


def test_pcam_matches_reference(golden, assert_golden):
    arrays = golden("pooling")
    features, logit_map = arrays["in_feat"], arrays["in_logit_map"]

    def cotangent_sum(features, logit_map):
        pooled = pooling.pcam_pool(features, logit_map)[:, 0]
        return jnp.sum(pooled * arrays["in_cotangent"]), pooled

    grads, pooled = jax.grad(cotangent_sum, argnums=(0, 1), has_aux=True)(features, logit_map)
    # 1e-5: the README's tolerance for this file; float32 sums of 63 pixels.
    assert_golden(pooled, arrays["out_pcam"], rtol=1e-5, what="pooled")
    assert_golden(grads[0], arrays["out_pcam_grad_feat"], rtol=1e-5, what="feature gradient")
    assert_golden(grads[1], arrays["out_pcam_grad_logit"], rtol=1e-5, what="logit gradient")


def test_other_pooling_matches_reference(golden, assert_golden):
    arrays = golden("pooling")
    low, high = (float(gamma) for gamma in arrays["in_gamma"])
    signed, features = arrays["in_signed_map"], arrays["in_feat"]
    got = {
        f"out_lse_g{low:g}".replace(".", "p"): pooling.lse_pool(signed, gamma=low),
        f"out_lse_g{high:g}".replace(".", "p"): pooling.lse_pool(signed, gamma=high),
        "out_exp": pooling.exp_pool(signed),
        "out_linear": pooling.linear_pool(features),
    }
    for name, value in got.items():
        assert_golden(value, arrays[name], rtol=1e-5, what=name)  # 1e-5: as above


def test_pcam_weights_sum_to_one_where_every_probability_underflows():
    weights = pooling.pcam_weights(jnp.full((1, 4, 5, 2), -120.0))
    # 1e-6: twenty float32 terms of 0.05.
    np.testing.assert_allclose(weights, 0.05, rtol=1e-6)


def test_zone_pool_matches_reference(golden, assert_golden):
    arrays = golden("zones")
    zones = arrays["out_zone_map"].astype(np.uint8)
    for mode in MODES:
        got = pooling.zone_pool(arrays["in_prob"], zones, mode=mode)
        # 1e-5 absolute: the README's tolerance for this file.
        assert_golden(got, arrays[f"out_{mode}"], rtol=0, atol=1e-5, what=mode)
    np.testing.assert_array_equal(pooling.zone_valid(zones), arrays["out_valid"] == 1)


@hypothesis.given(
    zones=hnp.arrays(np.uint8, (2, 5, 7), elements=st.integers(0, 6)),
    seed=st.integers(0, 1000),
)
@hypothesis.settings(deadline=None, max_examples=30, database=None)
def test_zone_pool_equals_loops_over_pixels(zones, seed):
    values = np.random.default_rng(seed).normal(size=zones.shape).astype(np.float32)
    want = {mode: np.zeros((2, 3, 2)) for mode in MODES}
    for b in range(2):
        for zone in range(6):
            inside = values[b][zones[b] == zone + 1]
            if inside.size:
                want["max"][b, zone // 2, zone % 2] = inside.max()
                want["mean"][b, zone // 2, zone % 2] = inside.mean()
    for mode in MODES:
        got = pooling.zone_pool(values, zones, mode=mode)
        np.testing.assert_allclose(got, want[mode], atol=1e-6)  # 35 float32 terms near 1


@pytest.mark.parametrize("mode", MODES)
def test_zone_log_probs_equal_the_pooled_probability(mode):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 8, 9)).astype(np.float32)
    zones = rng.integers(0, 7, size=logits.shape).astype(np.int32)
    log_p, log_1mp = pooling.zone_log_probs(logits, zones, mode=mode)
    probs = pooling.zone_pool(jax.nn.sigmoid(logits), zones, mode=mode)
    # 2e-6: p itself is rounded to 6e-8, and 1 - p is no smaller than 0.05 here.
    np.testing.assert_allclose(jnp.exp(log_p), probs, atol=2e-6)
    np.testing.assert_allclose(jnp.exp(log_1mp), 1 - probs, atol=2e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("logit", [-40.0, 40.0])
def test_zone_log_probs_hold_for_saturated_logits(mode, logit):
    zones = np.zeros((1, 6, 4), np.uint8)
    zones[0, :3, :2] = 1
    logits = jnp.full(zones.shape, logit)

    def loss(z):
        log_p, log_1mp = pooling.zone_log_probs(z, zones, mode=mode)
        wrong = log_1mp if logit > 0 else log_p
        return -wrong[0, 0, 0], wrong

    grad, wrong = jax.jit(jax.grad(loss, has_aux=True))(logits)
    # The wrong answer costs |z| nats and pulls with a total force of 1, as one logit's would.
    np.testing.assert_allclose(wrong[0, 0, 0], -40.0, rtol=1e-6)  # float32
    np.testing.assert_allclose(jnp.sum(grad), np.sign(logit), rtol=1e-5)  # six float32 terms
    assert (grad[zones == 0] == 0).all()


@pytest.mark.parametrize("mode", MODES)
def test_empty_zones_are_finite_and_have_no_gradient(mode):
    logits = jnp.linspace(-40.0, 40.0, 2 * 6 * 4).reshape(2, 6, 4)
    zones = np.zeros((2, 6, 4), np.uint8)
    zones[1, 0, 0] = 3  # middle right, of the second film only

    def total(z):
        return sum(jnp.sum(x) for x in pooling.zone_log_probs(z, zones, mode=mode))

    log_p, log_1mp = jax.jit(lambda z: pooling.zone_log_probs(z, zones, mode=mode))(logits)
    assert np.isfinite(log_p).all()
    assert np.isfinite(log_1mp).all()
    assert (log_p[0] == 0).all()
    assert log_p[1, 1, 0] != 0
    grad = np.asarray(jax.jit(jax.grad(total))(logits))
    assert np.isfinite(grad).all()
    assert np.count_nonzero(grad) == 1
    assert grad[1, 0, 0] != 0


def test_zone_max_sends_its_gradient_to_one_pixel_of_a_tie():
    zones = np.ones((1, 3, 3), np.uint8)
    grad = jax.grad(lambda v: pooling.zone_pool(v, zones, mode="max")[0, 0, 0])(
        jnp.zeros((1, 3, 3))
    )
    np.testing.assert_array_equal(np.sort(grad.ravel()), [0] * 8 + [1])


def test_unknown_zone_mode_is_refused():
    for function in (pooling.zone_pool, pooling.zone_log_probs):
        with pytest.raises(ValueError, match="'max' or 'mean'"):
            function(jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 2), jnp.int32), mode="sum")


# Of score maps: log-sum-exp, and the largest with the smallest cells.

EXTREME = np.array([-40.0, 40.0, 0.0, 1e-3, -40.0, 40.0], np.float32).reshape(1, 2, 3, 1)


@hypothesis.given(
    maps=hnp.arrays(np.float32, (2, 3, 4, 2), elements=st.floats(-40, 40, width=32)),
    cells=st.integers(1, 12),
    alpha=st.floats(0, 1),
)
@hypothesis.settings(deadline=None, max_examples=30, database=None)
def test_max_min_pool_is_two_means_of_sorted_cells(maps, cells, alpha):
    ordered = np.sort(maps.reshape(2, 12, 2).astype(np.float64), axis=1)
    want = ordered[:, -cells:].mean(axis=1) + alpha * ordered[:, :cells].mean(axis=1)
    got = pooling.max_min_pool(maps, cells=cells, alpha=alpha)
    np.testing.assert_allclose(got, want, atol=1e-4)  # float32 sums of 12 numbers up to 40


@hypothesis.given(
    maps=hnp.arrays(np.float32, (2, 3, 4, 2), elements=st.floats(-40, 40, width=32)),
    gamma=st.sampled_from([0.5, 5.0, 10.0]),
)
@hypothesis.settings(deadline=None, max_examples=30, database=None)
def test_lse_pool_is_the_logarithm_of_a_mean(maps, gamma):
    exact = np.exp(gamma * (maps.astype(np.float64) - maps.max(axis=(1, 2), keepdims=True)))
    want = maps.max(axis=(1, 2)) + np.log(exact.mean(axis=(1, 2))) / gamma
    got = np.asarray(pooling.lse_pool(maps, gamma=gamma))
    np.testing.assert_allclose(got, want, atol=1e-4)  # float32 near 400 in the exponent
    flat = maps.reshape(2, 12, 2)
    assert (flat.mean(axis=1) - 1e-3 <= got).all()
    assert (got <= flat.max(axis=1) + 1e-3).all()


POOLS = {
    "lse": lambda x: pooling.lse_pool(x, gamma=10.0),
    "max_min": lambda x: pooling.max_min_pool(x, cells=2, alpha=0.7),
}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_cells_are_a_set_and_their_gradients_finite(pool):
    grad = np.asarray(jax.grad(lambda x: pool(x).sum())(jnp.asarray(EXTREME)))
    assert np.isfinite(grad).all()
    order = [4, 0, 5, 3, 2, 1]
    moved = EXTREME.reshape(1, 6, 1)[:, order].reshape(EXTREME.shape)
    np.testing.assert_allclose(pool(moved), pool(EXTREME), rtol=1e-6)
    constant = np.full((1, 2, 3, 1), 3.0, np.float32)
    scale = 1.7 if pool is POOLS["max_min"] else 1.0
    np.testing.assert_allclose(pool(constant), 3 * scale, rtol=1e-6)


def test_the_chosen_cells_share_the_gradient():
    grad = jax.grad(lambda x: POOLS["max_min"](x).sum())(jnp.asarray(EXTREME))
    want = np.array([0.35, 0.5, 0, 0, 0.35, 0.5]).reshape(EXTREME.shape)
    np.testing.assert_allclose(grad, want, rtol=1e-6)


@pytest.mark.parametrize("cells", [0, 7])
def test_there_are_as_many_cells_as_are_asked_for(cells):
    with pytest.raises(ValueError, match=f"cells={cells}; expected 1 to 6"):
        pooling.max_min_pool(EXTREME, cells=cells)
