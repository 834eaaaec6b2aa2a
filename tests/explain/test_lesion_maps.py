"""Lesions of heat maps against the reference, a plain flood fill, and where there is nothing."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import skimage.measure

from cxr_jax.explain import gradcam, lesion_maps
from cxr_jax.explain.lesion_maps import find_lesions, lesion_rows


def test_every_stage_matches_reference(golden, assert_golden):
    arrays = golden("lam")
    features, gradients = arrays["in_features"], arrays["in_gradients"]
    scores = lambda x: jnp.sum(x * gradients, axis=(1, 2, 3))[:, None]  # noqa: E731
    classes = np.zeros(len(features), int)
    heat = jax.jit(lambda x: gradcam.grad_cam(scores, x, classes))(features)
    scaled = np.asarray(lesion_maps.scaled(heat))
    # alpha of one channel is the CAM of features that are 1 there and 0 elsewhere.
    alpha = jax.vmap(
        lambda one: gradcam.cam(scores, jnp.broadcast_to(one, features.shape), classes)[:, 0, 0],
        out_axes=1,
    )(np.eye(features.shape[-1], dtype=np.float32)) / np.prod(features.shape[1:3])
    lesions = find_lesions(scaled)
    vectors = lesions.features(features)
    scored = lesion_maps.lesion_scores(vectors, arrays["in_centroids"])
    count = np.bincount(lesions.slice_index, minlength=len(features))
    place = np.concatenate([np.arange(n) for n in count])

    def table(values, nothing=0.0):
        """One row a lesion -> the file's rows of one length."""
        room = arrays["out_locations"].shape[1]
        out = np.full((len(features), room, *values.shape[1:]), nothing)
        out[lesions.slice_index, place] = values
        return out

    got = {
        "out_alpha": alpha,
        "out_cam": heat,
        "out_heat": scaled,
        "out_threshold": lesions.thresholds,
        "out_mask": scaled > lesions.thresholds[:, None, None],  # single cells among them
        "out_n": count,
        "out_locations": table(lesions.cells, -1),
        "out_peak": table(lesions.peaks),
        "out_vectors": table(vectors),
        "out_distances": table(scored["distances"]),
        "out_softmax": table(scored["softmax"]),
        "out_score_min": table(scored["score"]),
    }
    assert set(got) == {name for name in arrays if name.startswith("out_")}
    for name, value in got.items():
        # The README's tolerances; a threshold is one of 256 bins.
        atol = 1e-4 if name == "out_threshold" else 0.0
        assert_golden(value, arrays[name], rtol=1e-5, atol=atol, what=name)
    nearest = arrays["out_distances"].argmin(-1)[lesions.slice_index, place]
    np.testing.assert_array_equal(scored["cluster"], nearest)


def heat_of(text):
    """Digits as tenths, row by row."""
    return np.array([[int(c) / 10 for c in row] for row in text.split()], np.float32)


MAP = heat_of("""
    000099
    080005
    880000
    000600
    000000
""")


def test_places_boxes_and_sizes_by_hand():
    lesions = find_lesions(MAP[None], cut=0.2)
    assert lesions.slice_index.tolist() == [0, 0]
    assert lesions.cells.tolist() == [[0, 4], [1, 1]]  # of equal cells the first
    assert lesions.sizes.tolist() == [3, 3]  # 6 stands alone
    np.testing.assert_allclose(lesions.peaks, [0.9, 0.8], rtol=1e-6)
    np.testing.assert_allclose(lesions.points * [6, 5], [[4.5, 0.5], [1.5, 1.5]], rtol=1e-6)
    np.testing.assert_allclose(
        lesions.boxes * [6, 5, 6, 5], [[4, 0, 6, 2], [0, 1, 2, 3]], rtol=1e-6
    )
    assert lesions.mask.sum() == 6
    assert len(find_lesions(MAP[None], cut=0.2, least=1)) == 3
    assert lesions.boxes.dtype == lesions.points.dtype == lesions.peaks.dtype == np.float32


def test_corners_that_touch_are_two_and_maps_are_apart():
    corner = heat_of("8800 8800 0077 0077")
    lesions = find_lesions(np.stack([corner, corner]), cut=0.5)
    assert lesions.slice_index.tolist() == [0, 0, 1, 1]
    assert lesions.sizes.tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize(
    "heat",
    [
        np.zeros((2, 4, 4)),
        np.full((2, 4, 4), 0.7),
        np.eye(4)[None],  # single cells, touching at corners
        np.zeros((0, 4, 4)),
    ],
)
def test_nothing_is_an_empty_result_of_the_usual_shapes(heat):
    lesions = find_lesions(np.asarray(heat, np.float32))
    assert len(lesions) == 0
    assert lesions.boxes.shape == (0, 4)
    assert lesions.cells.shape == lesions.points.shape == (0, 2)
    assert lesions.features(np.zeros((*heat.shape, 3))).shape == (0, 3)
    assert not lesions.mask.any()
    assert lesions.mask.shape == heat.shape
    rows = lesion_rows(lesions, most=3)
    assert rows["lesion_boxes"].shape == (len(heat), 3, 4)
    assert np.isnan(rows["lesion_boxes"]).all()
    assert not rows["lesion_count"].any()
    scores = lesion_maps.lesion_scores(
        lesions.features(np.zeros((*heat.shape, 3))), np.ones((2, 3))
    )
    assert scores["score"].shape == scores["cluster"].shape == (0,)
    assert scores["softmax"].shape == (0, 2)


@hypothesis.given(
    hnp.arrays(np.float32, (2, 5, 6), elements=st.sampled_from(np.float32([0, 0.2, 0.5, 0.9, 1])))
)
@hypothesis.settings(deadline=None, max_examples=60)
def test_components_are_scikit_images_in_order_of_their_first_cell(heat):
    lesions = find_lesions(heat, cut=0.4)
    want = []
    for index, one in enumerate(heat):
        found = skimage.measure.regionprops(
            skimage.measure.label(one > 0.4, connectivity=1), intensity_image=one
        )
        for region in sorted(found, key=lambda r: min(map(tuple, r.coords.tolist()))):
            if region.area > 1:
                values = one[tuple(region.coords.T)]
                place = min(map(tuple, region.coords[values == values.max()].tolist()))
                want.append((index, place, region.area, values.max(), region.bbox))
    assert len(lesions) == len(want)
    side = [6, 5, 6, 5]
    for k, (index, place, area, peak, (y0, x0, y1, x1)) in enumerate(want):
        assert lesions.slice_index[k] == index
        assert tuple(lesions.cells[k]) == place
        assert lesions.sizes[k] == area
        assert lesions.peaks[k] == peak
        np.testing.assert_allclose(lesions.boxes[k] * side, [x0, y0, x1, y1], rtol=1e-5)


def test_rows_keep_the_highest_in_their_own_order():
    spots = heat_of("50806090 50806090 00000000")
    lesions = find_lesions(np.stack([spots, 0 * spots, spots[:, ::-1]]), cut=0.1)
    rows = lesion_rows(lesions, most=2)
    assert rows["lesion_count"].tolist() == [4, 0, 4]
    np.testing.assert_allclose(rows["lesion_peaks"][[0, 2]], [[0.8, 0.9], [0.9, 0.8]], rtol=1e-6)
    assert np.isnan(rows["lesion_peaks"][1]).all()
    np.testing.assert_allclose(rows["lesion_points"][0, 0] * [8, 3], [2.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(rows["lesion_boxes"][2, 1] * [8, 3, 8, 3], [5, 0, 6, 2], rtol=1e-6)
    roomy = lesion_rows(lesions, most=6)
    np.testing.assert_allclose(roomy["lesion_peaks"][0, :4], [0.5, 0.8, 0.6, 0.9], rtol=1e-6)
    assert np.isnan(roomy["lesion_peaks"][:, 4:]).all()


@pytest.mark.parametrize(
    "heat, want",
    [
        ([[3.0, 1.0], [2.0, 1.0]], [[1, 0], [0.5, 0]]),
        ([[2.0, 2.0], [2.0, 2.0]], [[0, 0], [0, 0]]),
        ([[np.nan, 1.0], [2.0, 3.0]], [[0, 0], [0, 0]]),
        ([[np.inf, 1.0], [2.0, 3.0]], [[0, 0], [0, 0]]),
        ([[1e-30, 0.0], [0.0, 0.0]], [[1, 0], [0, 0]]),
        ([[3e38, -3e38], [0.0, 0.0]], [[0, 0], [0, 0]]),  # a spread beyond float32
    ],
)
def test_scaled_by_hand(heat, want):
    np.testing.assert_allclose(lesion_maps.scaled(np.array([heat])), [want], atol=1e-6)


def test_log_odds_are_those_of_the_softmax():
    logits = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32) * 3
    probs = scipy.special.softmax(np.float64(logits), axis=1)
    np.testing.assert_allclose(
        lesion_maps.log_odds(logits), np.log(probs / (1 - probs)), rtol=1e-4, atol=1e-5
    )
    sure = np.array([[200.0, -200.0], [-200.0, 200.0]])
    np.testing.assert_allclose(lesion_maps.log_odds(sure), 2 * sure, rtol=1e-6)
    gradient = jax.jacobian(lesion_maps.log_odds)(jnp.array([[200.0, -200.0]]))
    np.testing.assert_allclose(gradient[0, :, 0], [[1, -1], [-1, 1]], atol=1e-6)


RNG = np.random.default_rng(1)
CELLS = np.maximum(RNG.normal(size=(3, 4, 5, 6)), 0).astype(np.float32)
KERNEL = RNG.normal(size=(6, 3)).astype(np.float32)


def classify(cells, sharpness=1.0):
    return sharpness * jnp.tanh(cells @ KERNEL).mean((1, 2))


@pytest.mark.parametrize("method", [gradcam.grad_cam, gradcam.cam, gradcam.norm_grad])
def test_the_map_is_that_of_the_probability(method):
    """Eq. 6 has the probability's gradient; with it the three maps are the same after scaling."""
    probs = lambda cells: jax.nn.softmax(classify(cells))  # noqa: E731
    want = lesion_maps.scaled(method(probs, CELLS, np.full(3, 1)))
    got = jax.jit(
        lambda cells: lesion_maps.lesion_heat(classify, cells, positive=1, method=method)
    )(CELLS)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert float(got.max()) == 1


def test_a_saturated_probability_still_has_a_map():
    sure = functools.partial(classify, sharpness=1e3)
    probs = lambda cells: jax.nn.softmax(sure(cells))  # noqa: E731
    classes = np.full(3, int(np.argmax(sure(CELLS)[0])))
    assert not lesion_maps.scaled(gradcam.grad_cam(probs, CELLS, classes))[0].any()
    assert lesion_maps.lesion_heat(sure, CELLS, positive=int(classes[0]))[0].any()


def test_one_cluster_has_it_all_and_scores_do_not_underflow():
    scores = lesion_maps.lesion_scores(np.zeros((2, 3)), np.ones((1, 3)))
    np.testing.assert_array_equal(scores["score"], [1, 1])
    far = lesion_maps.lesion_scores(np.zeros((1, 2)), np.array([[0.0, 0], [300.0, 400.0]]))
    np.testing.assert_allclose(far["score"], np.exp(-500), rtol=1e-9)
    assert far["cluster"].tolist() == [0]
