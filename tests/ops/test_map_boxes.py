"""From heat maps to boxes: whole pixels by hand, scikit-image as the reference, and odd maps."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import skimage.measure
import skimage.transform

from cxr_jax.ops.map_boxes import COMPONENTS, map_boxes

SIZE = 12


def one(heat, *, size=None, threshold=0.5, component="peak"):
    """The box of a map [h, w], in pixels."""
    heat = np.asarray(heat, np.float32)
    size = size or len(heat)
    (found,) = map_boxes(
        heat[None, :, :, None], size=size, threshold=threshold, component=component
    )
    return (found[0] * size).tolist()


def two_spots():
    """A high cell alone, and a lower rectangle of six."""
    heat = np.zeros((8, 8), np.float32)
    heat[1, 6] = 1.0
    heat[4:6, 1:4] = 0.8
    return heat


def test_the_peaks_component_and_the_largest():
    assert one(two_spots()) == [6, 1, 7, 2]
    assert one(two_spots(), component="largest") == [1, 4, 4, 6]
    assert one(two_spots(), component="largest", threshold=0.8) == [6, 1, 7, 2]


def test_corners_that_touch_are_one_component():
    heat = np.diag(np.arange(1, 6)).astype(np.float32)
    assert one(heat, threshold=0.3) == [1, 1, 5, 5]  # 2 of 5 is above, 1 is not


def test_scale_and_offset_do_not_matter():
    want = one(two_spots(), size=32)
    for factor, offset in ((40.0, -40.0), (1e-6, 0.0), (3.0, 1000.0)):
        assert one(factor * two_spots() + offset, size=32) == want


def test_a_cell_is_where_it_lies_on_the_film():
    """Made eight times as large, a cell falls to half of its peak at its own edges."""
    heat = np.zeros((4, 4), np.float32)
    heat[1, 2] = 1.0
    assert one(heat, size=32) == [16, 8, 24, 16]


@hypothesis.given(
    heat=hnp.arrays(np.float32, (5, 7), elements=st.floats(-40, 40, width=16)),
    threshold=st.sampled_from([0.0, 60 / 255, 0.5, 180 / 255]),
    component=st.sampled_from(COMPONENTS),
)
@hypothesis.settings(deadline=None, max_examples=50, database=None)
def test_boxes_are_those_of_scikit_image(heat, threshold, component):
    (found,) = map_boxes(
        heat[None, :, :, None], size=SIZE, threshold=threshold, component=component
    )
    if np.ptp(heat) == 0:
        assert np.isnan(found).all()
        return
    # Bilinear by pixels' centres, the border repeated: OpenCV's, in another package.
    large = skimage.transform.resize(
        heat.astype(np.float64), (SIZE, SIZE), order=1, mode="edge", anti_aliasing=False
    )
    unit = (large - large.min()) / max(np.ptp(large), 1e-300)
    # Pixels whose side of the threshold, or whose rank, rounding decides say nothing.
    top = np.sort(unit.ravel())
    hypothesis.assume(np.abs(unit - threshold).min() > 1e-4 and top[-1] - top[-2] > 1e-4)
    labels = skimage.measure.label(unit > threshold, connectivity=2)
    parts = skimage.measure.regionprops(labels)
    areas = [part.area for part in parts]
    if component == "peak":
        chosen = labels[np.unravel_index(unit.argmax(), unit.shape)]
    else:
        hypothesis.assume(areas.count(max(areas)) == 1)
        chosen = parts[int(np.argmax(areas))].label
    y0, x0, y1, x1 = parts[chosen - 1].bbox
    np.testing.assert_allclose(found[0] * SIZE, [x0, y0, x1, y1], atol=1e-5)


def test_maps_that_say_of_no_place_have_no_box():
    maps = np.stack([two_spots()] * 6, axis=-1)[None]
    maps[..., 1] = 7.0
    maps[0, 3, 3, 2] = np.nan
    maps[0, 3, 3, 3] = np.inf
    wanted = np.array([[True, True, True, True, False, True]])
    found = map_boxes(maps, size=16, threshold=0.5, component="peak", wanted=wanted)
    assert found.dtype == np.float32
    assert np.isnan(found).all(axis=-1).tolist() == [[False, True, True, True, True, False]]
    np.testing.assert_array_equal(found[0, 0], found[0, 5])


def test_films_and_findings_keep_their_places():
    maps = np.random.default_rng(0).normal(size=(3, 4, 4, 5)).astype(np.float32)
    found = map_boxes(maps, size=16, threshold=0.5, component="largest")
    assert found.shape == (3, 5, 4)
    again = map_boxes(maps[[2, 0]][..., [4, 1]], size=16, threshold=0.5, component="largest")
    np.testing.assert_array_equal(again, found[[2, 0]][:, [4, 1]])
    assert (found >= 0).all()
    assert (found[..., :2] < found[..., 2:]).all()
    assert (found <= 1).all()


@pytest.mark.parametrize(
    "change, words", [({"component": "all"}, "'all'"), ({"threshold": 1.0}, "threshold=1.0")]
)
def test_what_cannot_be_meant_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        one(two_spots(), **change)
