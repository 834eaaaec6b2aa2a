import pickle

import cv2
import numpy as np
import pytest

from cxr_jax.data.preprocess import Preprocess
from cxr_jax.errors import InputError


def film(height=90, width=70, seed=0):
    grey = np.random.default_rng(seed).normal(110, 30, (height, width))
    return np.clip(grey, 20, 200).astype(np.uint8)


@pytest.mark.parametrize("shape", [(64, 64), (90, 70), (31, 200), (5, 5), (1, 1)])
@pytest.mark.parametrize(
    "order", [("resize",), ("resize", "blur", "equalize"), ("clahe", "resize")]
)
def test_film_is_a_uint8_square(shape, order):
    out = Preprocess(size=32, order=order).film(film(*shape))
    assert out.shape == (32, 32)
    assert out.dtype == np.uint8


def test_the_order_is_obeyed():
    image = film()
    resized = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)
    paper1 = cv2.equalizeHist(cv2.GaussianBlur(resized, (3, 3), 0))
    paper2 = cv2.resize(
        cv2.GaussianBlur(cv2.equalizeHist(image), (3, 3), 0), (32, 32), interpolation=cv2.INTER_AREA
    )
    np.testing.assert_array_equal(Preprocess(32).film(image), paper1)
    second = Preprocess(32, ("equalize", "blur", "resize"))
    np.testing.assert_array_equal(second.film(image), paper2)
    assert (paper1 != paper2).any()


def test_equalize_uses_the_whole_range():
    out = Preprocess(64, ("resize", "equalize")).film(film(64, 64))
    assert out.min() == 0
    assert out.max() == 255


def test_blur_is_the_binomial_kernel():
    image = np.zeros((9, 9), np.uint8)
    image[4, 4] = 160
    out = Preprocess(9, ("resize", "blur")).film(image)
    np.testing.assert_array_equal(out[3:6, 3:6], [[10, 20, 10], [20, 40, 20], [10, 20, 10]])


def test_shrinking_averages_also_where_the_other_side_grows():
    # OpenCV's INTER_AREA samples bilinearly once a side grows: fine stripes would alias.
    stripes = np.tile(np.array([0, 255], np.uint8), (10, 200))  # [10, 400]
    out = Preprocess(100, ("resize",)).film(stripes)
    # A factor of exactly 4: every output pixel is the mean of two whole stripes, 127.5.
    assert out.min() >= 127
    assert out.max() <= 128


def test_mask_keeps_its_labels_and_lies_on_the_film():
    lungs = np.zeros((99, 77), np.uint8)
    lungs[10:80, 8:30], lungs[10:80, 45:70] = 1, 2
    preprocess = Preprocess(40, ("resize",))
    out = preprocess.mask(lungs)
    assert set(np.unique(out)) == {0, 1, 2}
    grey = preprocess.film((lungs > 0).astype(np.uint8) * 200)
    # A pixel fully inside (or outside) on the resized film is so on the resized mask: no shift.
    assert (out[grey == 200] > 0).all()
    assert (out[grey == 0] == 0).all()


def test_mask_of_the_right_size_is_unchanged():
    mask = np.arange(64, dtype=np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(Preprocess(8).mask(mask), mask)


def test_one_grey_stays_finite():
    preprocess = Preprocess(16, ("resize", "blur", "equalize", "clahe"))
    out = preprocess.normalize(preprocess.film(np.full((20, 30), 77, np.uint8)))
    assert np.isfinite(out).all()
    assert out.dtype == np.float32


def test_normalize():
    out = Preprocess(8, mean=128, std=64).normalize(np.array([0, 128, 192], np.uint8))
    np.testing.assert_array_equal(out, np.array([-2, 0, 1], np.float32))


def test_input_is_not_changed():
    image, mask = film(), film() % 3
    before = image.copy(), mask.copy()
    preprocess = Preprocess(32)
    preprocess.film(image)
    preprocess.mask(mask)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(size=0), "size=0"),
        (dict(size=8, std=0), "std=0"),
        (dict(size=8, order=("resize", "sharpen")), "unknown step 'sharpen'"),
        (dict(size=8, order=("blur",)), "'resize' must be there"),
        (dict(size=8, order=("resize", "blur", "blur")), "no step twice"),
    ],
)
def test_a_wrong_config_is_refused(fields, words):
    with pytest.raises(InputError, match=words):
        Preprocess(**fields)


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4)), np.zeros((0, 4), np.uint8)]
)
def test_other_arrays_are_refused(bad):
    with pytest.raises(ValueError, match="expected a non-empty uint8"):
        Preprocess(8).film(bad)


def test_it_pickles_and_takes_a_list():
    preprocess = Preprocess(8, ["resize", "blur"])
    assert pickle.loads(pickle.dumps(preprocess)) == preprocess
    assert hash(preprocess) == hash(Preprocess(8, ("resize", "blur")))
