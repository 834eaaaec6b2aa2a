"""Hit rates by hand and against a plain loop; clusters against the paper's Table 7."""

import numpy as np
import pytest

from cxr_jax.metrics import lesion_maps
from cxr_jax.metrics.bootstrap import numbers

NAN = np.nan
NONE = [NAN] * 4


def hits(boxes, points, lesions, **options):
    rows = lesion_maps.hit_rows(
        np.array([boxes], float).reshape(1, -1, 4),
        np.array([points], float).reshape(1, -1, 2),
        np.array([lesions], float).reshape(1, -1, 4),
        **options,
    )
    return rows["lesion_hit"][0].sum(-1).tolist()  # overlaps reached, of nine


LESION = [0, 0, 10, 10]


@pytest.mark.parametrize(
    "share, want",  # 50 of the lesion's 100, of the box's 150 and of the union's 200 pixels
    [("lesion", 5), ("map", 3), ("union", 2)],
)
def test_the_three_readings_of_an_overlap(share, want):
    assert hits([[5, 0, 20, 10]], [[6, 5]], [LESION], share=share) == [want]


@pytest.mark.parametrize(
    "point, want",
    [([6, 5], 5), ([12, 5], 0), ([5, 0], 5), ([10, 5], 0), ([4.9, 5], 0), ([NAN, NAN], 0)],
)
def test_the_highest_cell_must_lie_in_the_overlap(point, want):
    assert hits([[5, 0, 20, 10]], [point], [LESION]) == [want]


def test_one_box_does_and_what_is_not_there_does_not():
    found = [[5, 0, 20, 10], [0, 0, 9, 10], NONE]
    places = [[6, 5], [1, 1], [NAN, NAN]]
    assert hits(found, places, [LESION, [30, 30, 40, 40], NONE]) == [9, 0, 0]
    assert hits([], [], [LESION]) == [0]
    assert hits([LESION], [[1, 1]], []) == []
    # Overlap enough by one box and the place by another are no hit.
    assert hits([[0, 0, 9, 10], [9, 9, 20, 20]], [[50, 50], [9.5, 9.5]], [LESION]) == [0]


def test_shares_of_float32_reach_their_thresholds():
    """Tenths of a slice are no whole numbers; an overlap of 3 of 10 cells is 0.3."""
    for tenths in range(1, 10):
        lesion = np.float32([[[0, 0, 1, 0.7]]])
        box = np.float32([[[0, 0, tenths / 10, 0.7]]])
        rows = lesion_maps.hit_rows(box, np.float32([[[0.05, 0.05]]]), lesion)
        assert rows["lesion_hit"].sum() == tenths


def test_equals_a_plain_loop():
    rng = np.random.default_rng(0)

    def draw(count):
        corners = rng.integers(0, 12, (5, count, 2, 2))
        low, high = corners.min(2), corners.max(2) + 1
        drawn = np.concatenate([low, high], axis=-1).astype(float)
        drawn[rng.random((5, count)) < 0.2] = NAN
        return drawn

    boxes, lesions = draw(4), draw(3)
    points = boxes[..., :2] + rng.random((5, 4, 2)) * (boxes[..., 2:] - boxes[..., :2])
    total = 0
    for share in lesion_maps.SHARES:
        rows = lesion_maps.hit_rows(boxes, points, lesions, share=share)
        for b, t, k in np.ndindex(5, 3, 9):
            want = False
            for (x0, y0, x1, y1), (px, py) in zip(boxes[b], points[b]):
                a0, b0, a1, b1 = lesions[b, t]
                w, h = min(x1, a1) - max(x0, a0), min(y1, b1) - max(y0, b0)
                if np.isnan([x0, a0]).any() or w <= 0 or h <= 0:
                    continue
                inside = max(x0, a0) <= px < min(x1, a1) and max(y0, b0) <= py < min(y1, b1)
                mine, true = (x1 - x0) * (y1 - y0), (a1 - a0) * (b1 - b0)
                whole = {"lesion": true, "map": mine, "union": mine + true - w * h}[share]
                want |= inside and w * h / whole >= lesion_maps.OVERLAPS[k] - 1e-9
            assert rows["lesion_hit"][b, t, k] == want
            total += want
        np.testing.assert_array_equal(rows["lesion_true"], ~np.isnan(lesions[..., 0]))
    assert total > 20


def test_rates_are_over_true_lesions():
    rows = {
        "lesion_true": np.array([[True, True, False], [True, False, False]]),
        "lesion_hit": np.zeros((2, 3, 9), bool),
    }
    rows["lesion_hit"][0, 0, :5] = True
    rows["lesion_hit"][1, 0, :1] = True
    rows["lesion_hit"][:, 2] = True  # no lesion
    report = lesion_maps.hit_rates(rows)
    assert list(report) == [f"hit_rate_{k}0" for k in range(1, 10)]
    np.testing.assert_allclose(report["hit_rate_10"].value, 2 / 3)
    np.testing.assert_allclose(report["hit_rate_50"].value, 1 / 3)
    assert report["hit_rate_60"] == (0.0, 3, "")
    nothing = lesion_maps.hit_rates({name: row[:0] for name, row in rows.items()})
    assert np.isnan(nothing["hit_rate_10"].value)
    assert nothing["hit_rate_10"].reason == "no slice has a lesion"


def test_wrong_shapes_and_shares_are_told():
    boxes, points = np.zeros((1, 2, 4)), np.zeros((1, 2, 2))
    for args, share in (((boxes, points[:, :1], boxes), "lesion"), ((boxes, points, boxes), "iou")):
        with pytest.raises(ValueError, match="expected"):
            lesion_maps.hit_rows(*args, share=share)


# Table 7: rows are the truth, columns the clusters, as it is headed.
TABLE_7 = np.array([[51, 3, 1], [2, 4, 1], [1, 2, 12]])
NAMES = ("ggo", "partial", "consolidation")


def lesions_of(counts):
    types, clusters = np.indices(counts.shape).reshape(2, -1)
    return np.repeat(clusters, counts.ravel()), np.repeat(types, counts.ravel())


def test_table_7_whatever_the_clusters_are_called():
    clusters, types = lesions_of(TABLE_7)
    for order in ([0, 1, 2], [2, 0, 1]):
        renamed = np.array(order)[clusters]
        report = numbers(lesion_maps.cluster_report(renamed, types, num_clusters=3, names=NAMES))
        # As the paper prints them under 'sensitivity': 94.44, 44 and 85.71%.
        printed = [report[f"precision_{name}"] for name in NAMES]
        np.testing.assert_allclose(printed, [51 / 54, 4 / 9, 12 / 14])
        found = [report[f"sensitivity_{name}"] for name in NAMES]
        np.testing.assert_allclose(found, [51 / 55, 4 / 7, 12 / 15])
        others = [report[f"specificity_{name}"] for name in NAMES]
        np.testing.assert_allclose(others, [19 / 22, 65 / 70, 60 / 62])
        np.testing.assert_allclose(report["mean_sensitivity"], np.mean(found))
        np.testing.assert_allclose(report["mean_specificity"], np.mean(others))
        np.testing.assert_allclose(report["cluster_accuracy"], 67 / 77)


def test_the_matching_is_the_best_of_all_not_greedy():
    counts = np.array([[10, 9], [8, 1]])  # greedy takes 10 + 1, the best is 9 + 8
    assert lesion_maps.match_clusters(counts).tolist() == [1, 0]
    assert lesion_maps.match_clusters(np.array([[1], [5], [2]])).tolist() == [-1, 0, -1]
    assert lesion_maps.match_clusters(np.zeros((0, 2), int)).tolist() == []


def test_more_clusters_than_types_and_fewer():
    clusters, types = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 0, 0, 1, 1, -1])
    report = lesion_maps.cluster_report(clusters, types, num_clusters=3, names=("a", "b"))
    assert report["sensitivity_a"] == (2 / 3, 3, "")  # cluster 1 has no type
    assert report["sensitivity_b"] == (1.0, 2, "")  # the last lesion's type is unknown
    assert report["cluster_accuracy"].value == pytest.approx(4 / 5)
    one = lesion_maps.cluster_report(0 * clusters, types, num_clusters=1, names=("a", "b"))
    assert one["sensitivity_b"] == (0.0, 2, "")
    assert one["specificity_b"] == (1.0, 3, "")
    assert np.isnan(one["precision_b"].value)
    assert one["precision_b"].reason == "no lesion is called b"


def test_no_lesions_are_undefined_with_a_reason():
    nothing = np.zeros(0, int)
    report = lesion_maps.cluster_report(nothing, nothing, num_clusters=2, names=("a", "b"))
    assert all(np.isnan(value.value) for value in report.values())
    assert all(value.reason for value in report.values())


def test_a_perfect_map_shows_the_share_of_each_cell_in_a_box():
    boxes = np.full((2, 3, 4), np.nan)
    boxes[0, 0] = 0.125, 0.5, 0.5, 1.0  # half of column 0, column 1; rows 2 and 3
    boxes[0, 1] = 0.25, 0.75, 0.5, 0.875  # inside the first
    heat = lesion_maps.perfect_heat(boxes, (4, 4))
    expected = np.zeros((4, 4))
    expected[2:, 0], expected[2:, 1] = 0.5, 1.0
    np.testing.assert_allclose(heat, [expected, np.zeros((4, 4))])
