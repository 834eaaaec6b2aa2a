"""A box follows the mask of what it surrounds, whatever is done to the film."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from cxr_jax.data import boxes, records
from cxr_jax.data.augment import Augment
from cxr_jax.data.phantoms import phantom
from cxr_jax.data.preprocess import Preprocess, shrink
from cxr_jax.data.records import REGIONS
from cxr_jax.errors import InputError

# Where sides stay upright, the first and last pixel of a mask are those whose middle lies in the
# box: its edge is at most half a pixel off. OpenCV's fixed-point sums add a little.
UPRIGHT = 0.5 + 0.02
# A turned corner that points between two rows of pixel middles is missed by up to
# sin(a) cos(a) <= 1/2 of a pixel, and the last pixel's middle is within half of one.
TURNED = 1.0 + 0.02


@st.composite
def drawn(draw, least=12, margin=0):
    """A film with a rectangle as lesion mask and as box; its sides are at least `least` pixels."""
    height, width = draw(st.integers(48, 120)), draw(st.integers(48, 120))
    x0 = draw(st.integers(margin, width - margin - least))
    y0 = draw(st.integers(margin, height - margin - least))
    x1 = draw(st.integers(x0 + least, width - margin))
    y1 = draw(st.integers(y0 + least, height - margin))
    mask = np.zeros((height, width), np.uint8)
    mask[y0:y1, x0:x1] = 1
    box = np.array([[x0, y0, x1, y1]], np.float32)
    return {
        "image": mask * 200,
        "lesion": mask,
        "boxes": box,
        "box_label": np.array([2], np.int32),
    }


def box_of(mask):
    """float [1, 4] around the mask's pixels; NaN of an empty one."""
    if not mask.any():
        return np.full((1, 4), np.nan)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], float)


class Draws:
    """In place of a generator: these numbers."""

    def __init__(self, *draws, mirror=False):
        self.draws, self.mirror = draws, mirror

    def uniform(self, low, high, size):
        return np.array([*self.draws, *[0.0] * (size - len(self.draws))])

    def random(self):
        return 0.25 if self.mirror else 0.75


FLIP = Augment(flip=True)
MIRROR = Draws(mirror=True)
unit = st.floats(-1, 1)


@hypothesis.given(record=drawn(), max_side=st.integers(24, 130))
@hypothesis.settings(deadline=None)
def test_a_box_follows_its_mask_when_the_record_shrinks(record, max_side):
    small = shrink(record, max_side)
    assert max(small["image"].shape) == min(max_side, max(record["image"].shape))
    np.testing.assert_allclose(small["boxes"], box_of(small["lesion"]), atol=UPRIGHT)


@hypothesis.given(record=drawn(), size=st.integers(24, 200))
@hypothesis.settings(deadline=None)
def test_a_box_follows_its_mask_to_the_square(record, size):
    preprocess = Preprocess(size)
    box = preprocess.boxes(record["boxes"], record["image"].shape)
    assert box.dtype == np.float32
    np.testing.assert_allclose(box, box_of(preprocess.mask(record["lesion"])), atol=UPRIGHT)


@hypothesis.given(record=drawn())
@hypothesis.settings(deadline=None)
def test_a_box_follows_its_mask_when_the_film_is_flipped(record):
    out = FLIP(record, MIRROR)
    assert (out["lesion"] == record["lesion"][:, ::-1]).all()
    np.testing.assert_array_equal(out["boxes"], box_of(out["lesion"]))
    np.testing.assert_array_equal(out["box_label"], record["box_label"])


@hypothesis.given(record=drawn(), draws=st.tuples(unit, unit, unit), mirror=st.booleans())
@hypothesis.settings(deadline=None)
def test_a_box_follows_its_mask_when_the_film_is_shifted_and_scaled(record, draws, mirror):
    augment = Augment(shift=0.6, scale=0.3, flip=True)
    out = augment(record, Draws(0.0, *draws, mirror=mirror))
    (box,), (around,) = out["boxes"], box_of(out["lesion"])
    if np.isnan(around).any():
        # Less than half a pixel of the box, or nothing, is left on the film.
        assert np.isnan(box).all() or (box[2:] - box[:2]).min() <= UPRIGHT
    else:
        np.testing.assert_allclose(box, around, atol=UPRIGHT)
    assert (out["box_label"] == -1).all() == np.isnan(box).all()


@hypothesis.given(record=drawn(), draws=st.tuples(unit, unit, unit, unit), mirror=st.booleans())
@hypothesis.settings(deadline=None)
def test_the_box_of_a_turned_mask_is_the_upright_box_around_it(record, draws, mirror):
    augment = Augment(rotate_deg=45, shift=0.3, scale=0.3, flip=True)
    out = augment(record, Draws(*draws, mirror=mirror))
    (box,), (around,) = out["boxes"], box_of(out["lesion"])
    height, width = out["lesion"].shape
    if np.isnan(around).any():
        return
    # Of a rectangle that is cut by the film's edge the corners outside count too: the box is on
    # the film and around the mask, but need not be tight.
    assert (box[:2] <= around[:2] + UPRIGHT).all()
    assert (box[2:] >= around[2:] - UPRIGHT).all()
    assert (box >= 0).all()
    assert (box <= [width, height, width, height]).all()
    if (box[:2] > 0).all() and (box[2:] < [width, height]).all():
        np.testing.assert_allclose(box, around, atol=TURNED)


def test_a_quarter_turn_moves_a_box_exactly():
    mask = np.zeros((101, 101), np.uint8)
    mask[10:30, 40:90] = 1
    record = {"image": mask, "lesion": mask, "boxes": np.array([[40, 10, 90, 30]], np.float32)}
    out = Augment(rotate_deg=90)(record, Draws(1.0))
    np.testing.assert_allclose(box_of(out["lesion"]), [[71, 40, 91, 90]])
    np.testing.assert_allclose(out["boxes"], [[71, 40, 91, 90]], atol=1e-5)


# --- regions


@hypothesis.given(index=st.integers(0, 500), max_side=st.integers(64, 128))
@hypothesis.settings(deadline=None, max_examples=15)
def test_regions_and_masks_follow_a_film_that_shrinks(index, max_side):
    record = phantom(0, index, 128)
    # The box of the right lung, filled: the lung itself ends in a row of few pixels, of which the
    # nearest may all be passed over.
    row = REGIONS.index("right lung")
    x0, y0, x1, y1 = record["regions"][row].astype(int)
    record["lungs"] = np.zeros_like(record["lungs"])
    record["lungs"][y0:y1, x0:x1] = 1
    small = shrink(record, max_side)
    records.check(small)
    assert small["image"].shape == (max_side, max_side)
    np.testing.assert_array_equal(small["lesion"], small["lesion_type"] > 0)
    np.testing.assert_allclose([small["regions"][row]], box_of(small["lungs"] == 1), atol=UPRIGHT)


@hypothesis.given(index=st.integers(0, 500))
@hypothesis.settings(deadline=None, max_examples=15)
def test_regions_keep_their_names_when_a_film_is_flipped(index):
    record = phantom(0, index, 128)
    out = FLIP(record, MIRROR)
    for label, name in ((1, "right lung"), (2, "left lung")):
        box = out["regions"][REGIONS.index(name)]
        np.testing.assert_array_equal([box], box_of(out["lungs"] == label))
    # The right lung stays on the image's left.
    assert np.nonzero(out["lungs"] == 1)[1].max() < np.nonzero(out["lungs"] == 2)[1].min()
    for row, name in enumerate(REGIONS):
        side, _, part = name.partition(" ")
        other = {"right": f"left {part}", "left": f"right {part}"}.get(side, name)
        source = REGIONS.index(other) if other in REGIONS else row
        for field in ("region_present", "region_findings"):
            np.testing.assert_array_equal(out[field][row], record[field][source], err_msg=name)


@hypothesis.given(index=st.integers(0, 500))
@hypothesis.settings(deadline=None, max_examples=15)
def test_flipped_twice_is_the_film_as_it_was(index):
    record = phantom(0, index, 128)
    twice = FLIP(FLIP(record, MIRROR), MIRROR)
    assert twice.keys() == record.keys()
    for name, value in record.items():
        # width - x rounds in float32: to 2e-5 px at a width of 128, to nothing in whole pixels.
        atol = 2e-5 if records.SCHEMA[name].kind == records.BOXES else 0
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(twice[name], value, rtol=0, atol=atol, err_msg=name)
        else:
            assert twice[name] == value


@hypothesis.given(index=st.integers(0, 500), seed=st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=25)
def test_an_augmented_film_is_still_a_record(index, seed):
    record = phantom(0, index, 128)
    augment = Augment(rotate_deg=30, shift=0.5, scale=0.3, brightness=0.2, contrast=0.2, flip=True)
    out = augment(record, np.random.default_rng(seed))
    records.check(out)
    for name, value in record.items():
        assert np.shape(out[name]) == np.shape(value), name


def test_regions_that_leave_the_film_are_no_longer_present():
    record = phantom(0, 3, 128)
    assert record["region_present"].any()
    half = Augment(shift=0.6)(record, Draws(0, 0, 1.0, 0))  # to the right by 0.6 of the width
    gone = record["regions"][:, 0] + 0.6 * 128 >= 128
    assert gone.any()
    np.testing.assert_array_equal(half["region_present"], record["region_present"] & ~gone)
    np.testing.assert_array_equal(np.isnan(half["regions"][:, 0]), ~half["region_present"])
    # Nobody sees what is in a region that is not there; the others keep what is known of them.
    assert np.isnan(half["region_findings"][~half["region_present"]]).all()
    kept = half["region_present"]
    np.testing.assert_array_equal(half["region_findings"][kept], record["region_findings"][kept])
    right = half["regions"][REGIONS.index("right lung")]
    np.testing.assert_allclose([right], box_of(half["lungs"] == 1), atol=UPRIGHT)


# --- the functions


def test_boxes_of_a_film_without_any():
    none = np.zeros((0, 4), np.float32)
    for moved in (
        boxes.scale(none, (8, 8), (4, 4)),
        boxes.scale([], (8, 8), (4, 4)),
        boxes.flip(none, 8),
        boxes.warp(none, np.eye(2, 3), (8, 8)),
    ):
        assert moved.shape == (0, 4)
        assert moved.dtype == np.float32


@pytest.mark.parametrize(
    "move",
    [
        lambda x: boxes.scale(x, (8, 8), (4, 4)),
        lambda x: boxes.flip(x, 8),
        lambda x: boxes.warp(x, np.eye(2, 3), (8, 8)),
    ],
)
def test_a_box_that_is_not_there_stays_so(move):
    rows = np.array([[1, 2, 3, 4], [np.nan] * 4], np.float32)
    moved = move(rows)
    assert np.isfinite(moved[0]).all()
    assert np.isnan(moved[1]).all()


def test_the_identity_moves_nothing_and_a_far_shift_everything():
    rows = np.array([[1, 2, 3.5, 4], [0, 0, 8, 6]], np.float32)
    np.testing.assert_array_equal(boxes.warp(rows, np.eye(2, 3), (6, 8)), rows)
    far = np.array([[1, 0, 8], [0, 1, 0]], float)
    assert np.isnan(boxes.warp(rows, far, (6, 8))).all()
    near = np.array([[1, 0, 7], [0, 1, 0]], float)
    expected = np.array([[np.nan] * 4, [7, 0, 8, 6]], np.float32)
    np.testing.assert_array_equal(boxes.warp(rows, near, (6, 8)), expected)


def test_padded_to_one_length():
    rows, labels = np.array([[1, 2, 3, 4]], np.float32), np.array([7])
    padded, padded_labels = boxes.pad(rows, labels, length=3, film="a")
    assert padded.dtype == np.float32
    assert padded_labels.dtype == np.int32
    np.testing.assert_array_equal(padded, [[1, 2, 3, 4], [np.nan] * 4, [np.nan] * 4])
    np.testing.assert_array_equal(padded_labels, [7, -1, -1])
    padded, padded_labels = boxes.pad(np.zeros((0, 4)), (), length=2, film="a")
    assert np.isnan(padded).all()
    assert padded.shape == (2, 4)
    np.testing.assert_array_equal(padded_labels, [-1, -1])


def test_too_many_boxes_name_the_film_and_the_way_out():
    with pytest.raises(InputError) as error:
        boxes.pad(np.zeros((4, 4)), np.zeros(4), length=3, film="a")
    assert str(error.value) == (
        "film 'a' has 4 boxes of findings; at most 3 can be scored: merge some, or leave the film "
        "out"
    )


# --- clipped to their film


def test_boxes_are_kept_to_the_film_or_are_none():
    """The one rule of the sources: on a film of 80x60."""
    given = [
        [-5, -3, 10, 20],
        [70, 50, 95, 61],
        [0, 0, 80, 60],
        [80, 1, 90, 9],
        [5, 5, 5, 9],
        [9, 1, 5, 9],
        [np.nan, 1, 5, 9],
        [1, 1, np.inf, 9],
    ]
    nothing = [np.nan] * 4
    want = [[0, 0, 10, 20], [70, 50, 80, 60], [0, 0, 80, 60], *[nothing] * 5]
    np.testing.assert_array_equal(boxes.clip(given, (60, 80)), want)
    assert boxes.clip([], (60, 80)).shape == (0, 4)
