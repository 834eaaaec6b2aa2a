"""Deletion and insertion against a plain loop, and how ties are broken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.explain import faithfulness

RNG = np.random.default_rng(0)
IMAGES = RNG.random((3, 8, 12)).astype(np.float32)
BASELINE = RNG.random((3, 8, 12)).astype(np.float32)
HEAT = RNG.random((3, 4, 6)).astype(np.float32)
WEIGHTS = RNG.random((8, 12)).astype(np.float32)


def probability(images):
    """Something that depends on every pixel, and not linearly."""
    return jax.nn.sigmoid((images**2 * WEIGHTS).sum((1, 2)) - 14)


def plain(images, baseline, heat, steps):
    """Curves [B, steps + 1] and areas [B], cell by cell."""
    curves, areas = [], []
    for image, base, hot in zip(images, baseline, heat):
        image, cells = image.copy(), sorted(np.ndindex(4, 6), key=lambda c: -hot[c])
        shares, curve, done = [], [], 0
        for step in range(steps + 1):
            until = round(24 * step / steps)
            for y, x in cells[done:until]:
                area = np.s_[2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
                image[area] = base[area]
            done = until
            shares.append(done / 24)
            curve.append(float(probability(image[None])[0]))
        curves.append(curve)
        areas.append(np.trapezoid(curve, shares))
    return np.array(curves), np.array(areas)


@pytest.mark.parametrize("steps", [1, 6, 16])
def test_equals_a_plain_loop(steps):
    for ours, pair in (
        (faithfulness.deletion, (IMAGES, BASELINE)),
        (faithfulness.insertion, (BASELINE, IMAGES)),
    ):
        got = ours(probability, IMAGES, BASELINE, heat=HEAT, steps=steps)
        curve, area = plain(*pair, HEAT, steps)
        np.testing.assert_allclose(got["curve"], curve, rtol=1e-4)
        np.testing.assert_allclose(got["score"], area, rtol=1e-4)


def test_a_map_that_is_right_beats_a_flat_one_and_that_a_wrong_one():
    """The network sees four cells; the other twelve are nothing to it."""
    seen = np.zeros((1, 8, 8), np.float32)
    seen[0, 2:6, 2:6] = 1
    images = np.ones((1, 8, 8), np.float32)
    share = lambda x: (x * seen).sum((1, 2)) / seen.sum()  # noqa: E731
    right = seen[:, ::2, ::2]
    scores = {
        name: [
            float(score(share, images, 0 * images, heat=heat)["score"][0])
            for heat in (right, 0 * right, -right)
        ]
        for name, score in (
            ("deletion", faithfulness.deletion),
            ("insertion", faithfulness.insertion),
        )
    }
    np.testing.assert_allclose(scores["deletion"][::2], [1 / 8, 7 / 8], rtol=1e-5)
    np.testing.assert_allclose(scores["insertion"][::2], [7 / 8, 1 / 8], rtol=1e-5)
    assert 0.3 < scores["deletion"][1] < 0.7
    assert 0.3 < scores["insertion"][1] < 0.7


@pytest.mark.parametrize("value", [0.0, 1.0, -np.inf, np.nan])
def test_a_flat_map_is_a_blind_order(value):
    """Every cell once; after half of them about half of each quarter of the film is gone."""
    flat = np.full((2, 16, 16), value, np.float32)
    flat[1, ::2] = -0.0 if value == 0 else value
    place = np.asarray(faithfulness.ranks(flat))
    np.testing.assert_array_equal(np.sort(place.ravel()), np.repeat(np.arange(256), 2))
    np.testing.assert_array_equal(place[0], place[1])
    quarters = (place[0] < 128).reshape(2, 8, 2, 8).mean((1, 3))
    assert (np.abs(quarters - 0.5) < 0.15).all()


def test_equal_cells_stand_between_hotter_and_colder_ones():
    heat = np.zeros((1, 3, 3), np.float32)
    heat[0, 0, 0], heat[0, 2, 2], heat[0, 1, 1] = 2, -1, np.nan
    place = np.asarray(faithfulness.ranks(heat))[0]
    assert (place[0, 0], place[2, 2], place[1, 1]) == (0, 7, 8)


def test_an_image_is_scored_alone_and_the_network_is_traced_once():
    traces = []

    def counted(images):
        traces.append(images.shape)
        return probability(images)

    score = jax.jit(lambda x, b, h: faithfulness.deletion(counted, x, b, heat=h)["score"])
    together = score(IMAGES, BASELINE, HEAT)
    assert traces == [(3, 8, 12)]
    order = np.array([2, 0, 1])
    shuffled = score(IMAGES[order], BASELINE[order], HEAT[order])
    np.testing.assert_allclose(shuffled, together[order], rtol=1e-5)
    broken = score(jnp.asarray(IMAGES).at[0].set(jnp.nan), BASELINE, HEAT)
    np.testing.assert_allclose(broken[1:], together[1:], rtol=1e-5)


def test_cells_must_divide_the_film():
    with pytest.raises(ValueError, match="heat is 3x6 cells, the film 8x12 px"):
        faithfulness.deletion(probability, IMAGES, BASELINE, heat=HEAT[:, :3])
