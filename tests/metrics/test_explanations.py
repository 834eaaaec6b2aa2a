"""Pointing and energy of heat maps against plain loops, and their edges."""

import numpy as np
import pytest

from cxr_jax.metrics import explanations

RNG = np.random.default_rng(0)


def test_pointing_equals_a_plain_loop():
    heat = RNG.random((40, 3, 4)).astype(np.float32)
    lesion = RNG.random((40, 12, 20)) < 0.4
    rows = explanations.pointing(heat, lesion)
    for b in range(40):
        y, x = np.unravel_index(heat[b].argmax(), (3, 4))
        assert rows["pointing_hit"][b] == lesion[b, 4 * y + 2, 5 * x + 2]
        middles = [lesion[b, 4 * y + 2, 5 * x + 2] for y, x in np.ndindex(3, 4)]
        np.testing.assert_allclose(rows["pointing_chance"][b], np.mean(middles), rtol=1e-6)
    assert rows["pointing_valid"].all()
    assert 0 < rows["pointing_hit"].mean() < 1


def test_energy_equals_a_plain_loop():
    heat = RNG.normal(size=(10, 3, 4)).astype(np.float32)
    lesion = RNG.random((10, 12, 20)) < 0.4
    rows = explanations.energy(heat, lesion)
    for b in range(10):
        pixels = np.kron(np.maximum(heat[b], 0), np.ones((4, 5)))
        want = pixels[lesion[b]].sum() / pixels.sum()
        np.testing.assert_allclose(rows["energy_inside"][b], want, rtol=1e-5)
        np.testing.assert_allclose(rows["energy_chance"][b], lesion[b].mean(), rtol=1e-5)
    assert rows["energy_valid"].all()


@pytest.mark.parametrize("value", [0.0, 0.3, -1.0, 1e-40, 3e38])
def test_a_flat_map_scores_chance(value):
    """0.5 of the film is lesion, and 6 of 16 cells have their middle in it."""
    lesion = np.zeros((1, 16, 16))
    lesion[0, :8, :13] = 1
    lesion[0, 15, :] = lesion[0, 8, :8] = 1
    flat = np.full((1, 4, 4), value, np.float32)
    pointing, energy = explanations.pointing(flat, lesion), explanations.energy(flat, lesion)
    np.testing.assert_allclose(pointing["pointing_hit"], [6 / 16])
    np.testing.assert_allclose(pointing["pointing_chance"], [6 / 16])
    np.testing.assert_allclose(energy["energy_inside"], [0.5], rtol=1e-6)
    np.testing.assert_allclose(energy["energy_chance"], [0.5])


def test_two_highest_cells_are_half_a_hit_each():
    heat, lesion = np.zeros((1, 2, 2), np.float32), np.zeros((1, 4, 4))
    heat[0, 0, 0] = heat[0, 1, 1] = 1
    lesion[0, :2, :2] = 1
    assert explanations.pointing(heat, lesion)["pointing_hit"][0] == 0.5
    assert explanations.energy(heat, lesion)["energy_inside"][0] == 0.5


def test_a_film_without_a_lesion_takes_no_part_and_nan_is_not_the_highest():
    heat, lesion = np.ones((2, 2, 2), np.float32), np.zeros((2, 4, 4))
    heat[1, 0, 0], heat[1, 1, 1] = np.nan, 2
    lesion[1, 2:, 2:] = 1
    rows = explanations.pointing(heat, lesion)
    np.testing.assert_array_equal(rows["pointing_valid"], [False, True])
    np.testing.assert_array_equal(rows["pointing_hit"], [0, 1])
    np.testing.assert_array_equal(rows["pointing_chance"], [0, 0.25])
    rows = explanations.energy(np.ones((2, 2, 2), np.float32), lesion)
    np.testing.assert_array_equal(rows["energy_valid"], [False, True])
    np.testing.assert_array_equal(rows["energy_inside"], [0, 0.25])


def test_a_map_of_nothing_but_nan_is_no_hit():
    heat = np.full((1, 2, 2), np.nan, np.float32)
    assert explanations.pointing(heat, np.ones((1, 4, 4)))["pointing_hit"][0] == 0


@pytest.mark.parametrize("metric", [explanations.pointing, explanations.energy])
@pytest.mark.parametrize("shape", [(1, 5, 4), (1, 4, 6), (2, 4, 4)])
def test_cells_must_divide_the_mask(metric, shape):
    with pytest.raises(ValueError, match=r"heat is \(1, 2, 4\), lesion"):
        metric(np.ones((1, 2, 4), np.float32), np.ones(shape))
