"""Synthetic opacities: what they must never do, for any film, mask and seed."""

import time

import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from cxr_jax.data import phantoms
from cxr_jax.data.opacities import Opacities
from cxr_jax.errors import InputError


def film_and_lungs(seed, height, width, *, empty=False):
    rng = np.random.default_rng(seed)
    film = rng.integers(0, 256, size=(height, width), dtype=np.uint8)
    lungs = np.zeros_like(film)
    if not empty:
        for label, x in ((1, 0.3), (2, 0.7)):
            centre, axes = (int(x * width), height // 2), (width // 7, height // 3)
            cv2.ellipse(lungs, centre, axes, 0, 0, 360, label, cv2.FILLED)
    return film, lungs


@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(24, 90),
    width=st.integers(24, 90),
    mask=st.sampled_from(["lungs", "empty", "none"]),
    whole=st.sampled_from([0.0, 0.5, 1.0]),
    strongest=st.floats(0, 1),
)
@hypothesis.settings(max_examples=60, deadline=None)
def test_any_film(seed, height, width, mask, whole, strongest):
    """uint8 in and out, only ever brighter, the arguments untouched, the same for the same seed."""
    film, lungs = film_and_lungs(seed, height, width, empty=mask == "empty")
    given_lungs = None if mask == "none" else lungs
    before = film.copy(), lungs.copy()
    draw = Opacities(chance=1.0, strongest=strongest, whole=whole)
    drawn = draw(film, given_lungs, np.random.default_rng(seed))
    assert drawn.dtype == np.uint8
    assert drawn.shape == film.shape
    assert (drawn >= film).all()
    np.testing.assert_array_equal(film, before[0])
    np.testing.assert_array_equal(lungs, before[1])
    np.testing.assert_array_equal(draw(film, given_lungs, np.random.default_rng(seed)), drawn)


@pytest.mark.parametrize("setting", [{"chance": 0.0}, {"chance": 1.0, "strongest": 0.0}])
def test_nothing_drawn_is_the_identity(setting):
    film, lungs = film_and_lungs(0, 64, 64)
    for seed in range(20):
        drawn = Opacities(**setting)(film, lungs, np.random.default_rng(seed))
        np.testing.assert_array_equal(drawn, film)


@pytest.fixture(scope="module")
def phantom():
    record = phantoms.phantom(0, 0, 256)
    return record["image"], record["lungs"]


def test_a_white_out_makes_the_lung_as_bright_as_what_lies_around(phantom):
    film, lungs = phantom
    drawn = Opacities(chance=1.0, weakest=1.0, whole=1.0, most=6)(
        film, lungs, np.random.default_rng(1)
    )
    inside = lungs > 0
    around = (cv2.dilate(lungs, np.ones((33, 33), np.uint8)) > 0) & ~inside
    lungs_before, lungs_after = film[inside].mean(), drawn[inside].mean()
    wall = film[around].mean()
    # The tissue's grey is drawn above the median of what lies around; an opacity is uneven.
    assert lungs_before < 0.75 * wall < lungs_after


def test_only_the_lungs_and_a_narrow_border_change(phantom):
    film, lungs = phantom
    near = cv2.dilate(lungs, np.ones((41, 41), np.uint8)) > 0  # 20 px: the blur ends there
    seen = np.zeros(film.shape, bool)
    for seed in range(30):
        drawn = Opacities(chance=1.0)(film, lungs, np.random.default_rng(seed))
        np.testing.assert_array_equal(drawn[~near], film[~near])
        seen |= drawn != film
    # Thirty films: no part of a lung that is darker than its wall is left out by the shapes.
    assert seen[lungs > 0].mean() > 0.9


def test_texture_stays(phantom):
    """Half the contrast of the fine structure, not a flat patch."""
    film, lungs = phantom
    draw = Opacities(chance=1.0, weakest=1.0, whole=1.0, most=6)
    drawn = draw(film, lungs, np.random.default_rng(3))
    core = cv2.erode((lungs > 0).astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
    fine = [f.astype(float) - cv2.GaussianBlur(f.astype(float), (0, 0), 2) for f in (film, drawn)]
    ratio = fine[1][core].std() / fine[0][core].std()
    assert 0.3 < ratio < 1.0


def test_bad_settings_are_named():
    with pytest.raises(InputError, match=r"opacities\.chance=1\.5"):
        Opacities(chance=1.5)
    with pytest.raises(InputError, match=r"opacities\.most=0"):
        Opacities(most=0)
    film, lungs = film_and_lungs(0, 64, 64)
    with pytest.raises(ValueError, match="expected uint8"):
        Opacities(chance=1.0)(film, lungs[:32], np.random.default_rng(0))


def test_it_is_cheap(phantom):
    film, lungs = phantom
    draw = Opacities(chance=1.0)
    best = np.inf
    for seed in range(40):
        start = time.perf_counter()
        draw(film, lungs, np.random.default_rng(seed))
        best = min(best, time.perf_counter() - start)
    assert best < 3e-3  # under 1 ms on a quiet machine; the training step takes hundreds
