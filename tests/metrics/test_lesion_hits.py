"""Pointing against a plain loop, and its edges."""

import numpy as np
import pytest

from cxr_jax.metrics import lesion_hits

ZONES = np.zeros((12, 8), np.uint8)
for _zone in range(6):
    _row, _column = divmod(_zone, 2)
    ZONES[1 + 3 * _row : 4 + 3 * _row, 1 + 3 * _column : 4 + 3 * _column] = _zone + 1


def test_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    prob = rng.random((5, 12, 8)).astype(np.float32)
    zones = np.stack([ZONES] * 5)
    zones[1][zones[1] % 2 == 0] = 0  # no left lung
    lesion = rng.random((5, 12, 8)) < 0.5
    severity = rng.integers(0, 4, (5, 3, 2))
    rows = lesion_hits.pointing(prob, zones, lesion, severity)
    for b in range(5):
        for zone in range(6):
            where = divmod(zone, 2)
            pixels = np.argwhere(zones[b] == zone + 1)
            valid = len(pixels) > 0 and severity[b][where] > 0
            assert rows["pointing_valid"][b][where] == valid
            if valid:
                y, x = max(pixels, key=lambda p: prob[b][tuple(p)])
                assert rows["pointing_hit"][b][where] == lesion[b, y, x]


def test_a_hot_pixel_outside_the_zone_does_not_count():
    prob, lesion = np.zeros((1, 12, 8), np.float32), np.zeros((1, 12, 8))
    prob[0, 0, 0] = 1.0  # outside the lungs
    prob[0, 2, 2] = 0.3
    lesion[0, 2, 2] = 1
    severity = np.array([[[1, 0], [0, 0], [0, 0]]])
    rows = lesion_hits.pointing(prob, ZONES[None], lesion, severity)
    assert rows["pointing_hit"][0, 0, 0] == 1
    assert rows["pointing_valid"].sum() == 1


def test_a_flat_map_scores_as_a_blind_guess_from_either_side():
    lesion = np.zeros((1, 12, 8))
    lesion[0, 1, 1:4] = 1  # 3 of the 9 pixels of the upper right zone, among them its first
    severity = np.array([[[1, 0], [0, 0], [0, 0]]])
    flat = np.full((1, 12, 8), 0.5, np.float32)
    for view in (slice(None), slice(None, None, -1)):
        rows = lesion_hits.pointing(flat[:, view], ZONES[None, view], lesion[:, view], severity)
        np.testing.assert_allclose(rows["pointing_hit"][0, 0, 0], 1 / 3, rtol=1e-6)


def test_invalid_scores_take_no_part():
    severity = np.array([[[np.nan, 0], [-1, 0], [0, 0]]])
    ones = np.ones((1, 12, 8), np.float32)
    rows = lesion_hits.pointing(ones, ZONES[None], ones, severity)
    assert not rows["pointing_valid"].any()
    assert not rows["pointing_hit"].any()


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="resize the map"):
        lesion_hits.pointing(np.zeros((1, 6, 4)), ZONES[None], ZONES[None], np.zeros((1, 3, 2)))
