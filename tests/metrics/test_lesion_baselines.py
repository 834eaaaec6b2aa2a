"""What finds lesions without learning, against sums by hand."""

import numpy as np
import pytest

from cxr_jax.metrics import lesion_baselines, patients
from tests.metrics.test_patients import rows as model_rows


@pytest.fixture
def slices():
    """Two slices of a patient with a bright square, and two of one without."""
    lesion = np.zeros((4, 16, 16), np.uint8)
    lesion[:2, 4:8, 4:8] = 1
    lungs = np.zeros_like(lesion)
    lungs[:, 2:14, 2:8] = 1
    brightness = 0.3 * lungs + 0.31 * lesion
    brightness[:, :, 12:] = 0.9  # the chest wall
    return {"brightness": brightness.astype(np.float32), "lungs": lungs, "lesion": lesion}


def baseline_rows(slices, **changes):
    found = lesion_baselines.slice_rows(
        slices["brightness"],
        lungs=slices["lungs"],
        true_lungs=changes.get("true_lungs", np.zeros_like(slices["lungs"])),
        lesion=slices["lesion"],
        pixel_area=np.ones(4, np.float32),
        cells=changes.get("cells", (4, 4)),
    )
    own = model_rows(np.zeros((4, 16, 16)), slices["lesion"], list("aabb"))
    return own | {name: np.asarray(value) for name, value in found.items()}


def dice(rows, name):
    units = patients.per_patient(lesion_baselines.found_by(rows)[name])
    return units["dice"].tolist()


def test_all_of_both_lungs_is_a_ratio_of_areas(slices):
    # Of a: 2 x 72 pixels of lung, 2 x 16 of lesion, all of it in them.
    assert dice(baseline_rows(slices), "lungs") == [pytest.approx(2 * 32 / (144 + 32)), 0]


def test_brightness_has_the_threshold_that_validation_chose(slices):
    rows = baseline_rows(slices, true_lungs=slices["lungs"])
    assert "brightness" not in lesion_baselines.found_by(rows)
    chosen = lesion_baselines.best_levels(rows)
    assert (chosen["brightness"], chosen["brightness_true_lungs"]) == (0.3, 0.3)
    rows = lesion_baselines.at_levels(rows, chosen | {"threshold": 0.5})
    assert dice(rows, "brightness") == dice(rows, "brightness_true_lungs") == [1, 1]
    above = lesion_baselines.at_levels(rows, {"brightness": 0.6, "brightness_true_lungs": 0.62})
    assert dice(above, "brightness") == [1, 1]
    assert dice(above, "brightness_true_lungs") == [0, 1]  # 0.61 is not above 0.62


def test_lungs_that_nobody_drew_are_not_scored(slices):
    assert lesion_baselines.best_levels(baseline_rows(slices)).keys() == {"brightness", "bound"}


def test_the_bound_is_what_the_cells_let_through(slices):
    def bound(cells):
        rows = baseline_rows(slices, cells=cells)
        return dice(lesion_baselines.at_levels(rows, lesion_baselines.best_levels(rows)), "bound")

    assert "bound" not in lesion_baselines.best_levels(baseline_rows(slices, cells=None))
    assert bound((16, 16)) == [1, 1]
    assert 0.3 < bound((4, 4))[0] < bound((8, 8))[0] <= 1
    full = lesion_baselines.through_cells(np.ones((1, 16, 16)), (5, 3))
    np.testing.assert_allclose(full, 1, rtol=1e-5)
    empty = lesion_baselines.through_cells(np.zeros((1, 16, 16)), (5, 3))
    np.testing.assert_array_equal(empty, 0)


def test_a_baseline_knows_no_gate(slices):
    rows = baseline_rows(slices) | {"gate": np.ones(4), "slice_prob": np.zeros(4)}
    assert dice(rows, "lungs")[0] > 0
    lungs = lesion_baselines.found_by(rows)["lungs"]
    assert lungs["slice_prob"].tolist() == [1, 1, 1, 1]
