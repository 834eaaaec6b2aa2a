"""Regions of lung masks: places, absent lungs, severity scores as labels, and flips."""

import numpy as np
import pytest

from cxr_jax.data import records, zone_regions
from cxr_jax.data.augment import Augment
from cxr_jax.data.records import FINDINGS, REGIONS
from cxr_jax.errors import InputError

NAN = float("nan")
OPACITY = FINDINGS.index("lung opacity")


def lungs(*, right=True, left=True):
    """uint8 [40, 64]: the right lung 24 rows high from row 8, the left one from row 4."""
    labels = np.zeros((40, 64), np.uint8)
    labels[8:32, 6:26] = 1 if right else 0
    labels[4:28, 36:60] = 2 if left else 0
    return labels


def row(name):
    return REGIONS.index(name)


def scored(**fields):
    record = {
        "image": lungs() * np.uint8(50),
        "id": "a",
        "group": "a",
        "lungs": lungs(),
        "severity": np.array([[0, 2], [0, 0], [0, 3]], np.int8),
        "severity_valid": np.ones((3, 2), bool),
    }
    return record | fields


def test_the_lungs_and_their_zones_are_boxed():
    boxes, present = zone_regions.zone_regions(lungs())
    assert sorted(np.flatnonzero(present)) == zone_regions.LUNG_ROWS.tolist()
    assert [REGIONS[i] for i in zone_regions.LUNG_ROWS] == [
        *("right lung", "left lung", "right upper lung zone", "left upper lung zone"),
        *("right mid lung zone", "left mid lung zone", "right lower lung zone"),
        "left lower lung zone",
    ]
    np.testing.assert_array_equal(np.isnan(boxes).any(axis=1), ~present)
    assert boxes[row("right lung")].tolist() == [6, 8, 26, 32]
    assert boxes[row("left lung")].tolist() == [36, 4, 60, 28]
    # Cut at 5/12 and 2/3 of the 23 rows between the first and the last one.
    assert boxes[row("right upper lung zone")].tolist() == [6, 8, 26, 18]
    assert boxes[row("right mid lung zone")].tolist() == [6, 18, 26, 24]
    assert boxes[row("right lower lung zone")].tolist() == [6, 24, 26, 32]
    assert boxes[row("left lower lung zone")].tolist() == [36, 20, 60, 28]


def test_no_lung_and_one_lung():
    boxes, present = zone_regions.zone_regions(np.zeros((8, 8), np.uint8))
    assert not present.any()
    assert np.isnan(boxes).all()
    record = zone_regions.with_zone_regions(scored(lungs=lungs(left=False)))
    right = [i for i in zone_regions.LUNG_ROWS if REGIONS[i].startswith("right")]
    assert np.flatnonzero(record["region_present"]).tolist() == right
    assert np.isnan(record["region_findings"][row("left lung")]).all()
    assert record["findings"][OPACITY] == 1  # the film was scored, whatever the mask shows
    records.check(record)


def test_a_lung_of_one_row_is_all_upper():
    boxes, present = zone_regions.zone_regions(np.repeat([[0, 1, 1, 0]], 1, axis=0))
    assert [REGIONS[i] for i in np.flatnonzero(present)] == ["right lung", "right upper lung zone"]
    assert boxes[row("right lung")].tolist() == [1, 0, 3, 1]


def test_scores_above_zero_are_opacity_of_their_region():
    record = zone_regions.with_zone_regions(scored())
    records.check(record)
    table = record["region_findings"]
    assert np.isnan(np.delete(table, OPACITY, axis=1)).all()
    labels = {REGIONS[i]: table[i, OPACITY] for i in zone_regions.LUNG_ROWS}
    positive = {name for name, label in labels.items() if label == 1}
    assert positive == {"left lung", "left upper lung zone", "left lower lung zone"}
    assert all(labels[name] == 0 for name in labels.keys() - positive)
    assert np.isnan(np.delete(table, zone_regions.LUNG_ROWS, axis=0)).all()
    assert record["findings"][OPACITY] == 1
    assert np.isnan(np.delete(record["findings"], OPACITY)).all()


@pytest.mark.parametrize(
    "scores, valid, lung", [([0, 0, 0], [1, 1, 1], 0), ([0, 0, 0], [1, 0, 1], NAN),
                            ([0, 0, 1], [1, 0, 1], 1), ([0, 3, 0], [1, 0, 1], NAN)]
)  # fmt: skip
def test_a_zone_that_was_not_scored_is_unknown(scores, valid, lung):
    severity = np.zeros((3, 2), np.int8)
    severity[:, 0] = scores
    table = zone_regions.zone_findings(severity, np.stack([valid, [1, 1, 1]], axis=1) == 1)
    np.testing.assert_array_equal(table[row("right lung"), OPACITY], lung)
    np.testing.assert_array_equal(table[row("left lung"), OPACITY], 0)
    zones = table[zone_regions.ZONE_ROWS[:, 0], OPACITY]
    np.testing.assert_array_equal(np.isnan(zones), np.array(valid) == 0)


def test_known_findings_stay_and_without_scores_nothing_is_known():
    findings = np.zeros(len(FINDINGS), np.float32)
    record = zone_regions.with_zone_regions(scored(findings=findings))
    assert record["findings"] is findings
    plain = {k: v for k, v in scored().items() if not k.startswith("severity")}
    record = zone_regions.with_zone_regions(plain)
    assert np.isnan(record["region_findings"]).all()
    assert "findings" not in record
    assert record["region_present"].sum() == 8


def test_a_flipped_film_has_the_flipped_regions():
    """Regions first or flip first: the same."""
    flip, seed = Augment(flip=True), 2  # a seed that flips
    first = zone_regions.with_zone_regions(scored())
    some = {name: first[name] for name in ("image", "regions", "region_findings")}
    flipped = flip(some, np.random.default_rng(seed))
    moved = flip({"image": first["image"], "lungs": lungs()}, np.random.default_rng(seed))
    again = zone_regions.with_zone_regions(
        scored(lungs=moved["lungs"], severity=scored()["severity"][:, ::-1])
    )
    assert not np.array_equal(again["regions"], first["regions"], equal_nan=True)
    np.testing.assert_array_equal(flipped["regions"], again["regions"])
    np.testing.assert_array_equal(flipped["region_findings"], again["region_findings"])


def test_scores_need_a_set_that_names_opacity():
    with pytest.raises(InputError, match=r"where 'lung opacity' is, but the findings are nodule, "):
        zone_regions.with_zone_regions(scored(), findings=("nodule", "mass"))
