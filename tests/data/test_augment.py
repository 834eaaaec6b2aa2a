import copy

import numpy as np
import pytest

from cxr_jax.data import zones
from cxr_jax.data.augment import Augment
from cxr_jax.errors import InputError

FULL = Augment(rotate_deg=10, shift=0.05, scale=0.1, brightness=0.2, contrast=0.2, flip=True)


def example(height=64, width=56):
    rng = np.random.default_rng(0)
    mask = np.zeros((height, width), np.uint8)
    mask[8:56, 6:24] = 1
    mask[10:54, 32:50] = 1
    lungs = zones.split_lungs(mask)
    zone_map, zone_valid = zones.zone_map(lungs)
    lesion = (zone_map == 3).astype(np.uint8)
    return {
        "image": rng.integers(0, 256, (height, width)).astype(np.uint8),
        "lungs": lungs,
        "zones": zone_map,
        "zone_valid": zone_valid,
        "lesion": lesion,
        "lesion_type": lesion * 2,
        "severity": np.array([[0, 1], [3, 0], [2, 1]], np.int8),
        "severity_second": np.array([[0, 2], [3, 1], [2, 0]], np.int8),
        "severity_valid": np.array([[1, 1], [1, 0], [1, 1]], bool),
        "id": "a",
        "diagnosis": 2,
    }


def flipped(record):
    """The first draw of a flipping augmentation that flips."""
    for seed in range(20):
        out = Augment(flip=True)(record, np.random.default_rng(seed))
        if (out["image"] != record["image"]).any():
            return out
    raise AssertionError("no flip in 20 draws")


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_zero_is_the_identity():
    assert_same(Augment()(example(), np.random.default_rng(1)), example())


def test_input_is_never_changed():
    record, before = example(), example()
    for array in record.values():
        if isinstance(array, np.ndarray):
            array.setflags(write=False)  # the pipeline's cache hands out shared arrays
    for seed in range(4):
        FULL(record, np.random.default_rng(seed))
    assert_same(record, before)


def test_same_seed_same_result_and_another_seed_another():
    first = FULL(example(), np.random.default_rng(5))
    assert_same(first, FULL(example(), np.random.default_rng(5)))
    other = FULL(example(), np.random.default_rng(6))
    assert (first["image"] != other["image"]).any()


def test_as_many_draws_for_every_setting():
    states = []
    for augment in (Augment(), FULL, Augment(flip=True), Augment(brightness=0.5)):
        rng = np.random.default_rng(3)
        augment(example(), rng)
        states.append(rng.random())
    assert len(set(states)) == 1


def test_types_shapes_and_labels_survive():
    record = example()
    for seed in range(8):
        out = FULL(record, np.random.default_rng(seed))
        for key, value in record.items():
            if isinstance(value, np.ndarray):
                assert out[key].dtype == value.dtype, key
                assert out[key].shape == value.shape, key
        assert set(np.unique(out["zones"])) <= set(range(7))
        assert set(np.unique(out["lungs"])) <= {0, 1, 2}
        # Every map is warped by the one matrix, so what belonged together still does.
        np.testing.assert_array_equal(out["zones"] > 0, out["lungs"] > 0)
        np.testing.assert_array_equal(out["lesion_type"], out["lesion"] * 2)
        odd = out["zones"] % 2 == 1
        np.testing.assert_array_equal(odd, out["lungs"] == zones.RIGHT)


def test_masks_stay_on_the_film():
    yy, xx = np.mgrid[:128, :128]
    disc = ((yy - 60) ** 2 + (xx - 50) ** 2 < 30**2).astype(np.uint8)
    record = {"image": disc * 200, "lesion": disc}
    augment = Augment(rotate_deg=15, shift=0.1, scale=0.2)
    for seed in range(10):
        out = augment(record, np.random.default_rng(seed))
        # Linear and nearest sampling agree but where a pixel is mixed from both sides.
        assert (out["lesion"][out["image"] > 150] == 1).all()
        assert (out["lesion"][out["image"] < 50] == 0).all()
        assert out["lesion"].sum() > 500


def test_rotation_is_about_the_centre_and_by_the_angle():
    image = np.zeros((101, 101), np.uint8)
    image[50, 90] = 255

    class Always:
        def uniform(self, low, high, size):
            return np.array([1.0, 0, 0, 0, 0, 0])

        def random(self):
            return 0.9

    out = Augment(rotate_deg=90)({"image": image}, Always())["image"]
    assert np.unravel_index(out.argmax(), out.shape) == (90, 50)
    assert out[90, 50] == 255


def test_flip_exchanges_every_side():
    record = example()
    out = flipped(record)
    np.testing.assert_array_equal(out["image"], record["image"][:, ::-1])
    np.testing.assert_array_equal(out["lesion"], record["lesion"][:, ::-1])
    np.testing.assert_array_equal(out["lungs"] == 1, (record["lungs"] == 2)[:, ::-1])
    for key in ("severity", "severity_second", "severity_valid", "zone_valid"):
        np.testing.assert_array_equal(out[key], record[key][:, ::-1])
    # What a flipped film would have been given had it been prepared so.
    labels = zones.split_lungs(record["lungs"][:, ::-1] > 0)
    np.testing.assert_array_equal(out["lungs"], labels)
    np.testing.assert_array_equal(out["zones"], zones.zone_map(labels)[0])
    assert_same(flipped(out), record)


def test_flip_happens_half_of_the_time():
    record = example()
    hits = sum(
        (Augment(flip=True)(record, np.random.default_rng(s))["image"] != record["image"]).any()
        for s in range(100)
    )
    assert 30 <= hits <= 70  # +-4 standard deviations of a fair coin


def test_brightness_and_contrast_touch_the_image_alone():
    record = example()
    out = Augment(brightness=0.3, contrast=0.3)(record, np.random.default_rng(0))
    assert (out["image"] != record["image"]).any()
    for key in record.keys() - {"image"}:
        np.testing.assert_array_equal(out[key], record[key])


def test_brightness_is_clipped():
    image = np.array([[0, 128, 255]], np.uint8).repeat(3, axis=0)
    outs = [Augment(brightness=1.0)({"image": image}, np.random.default_rng(s)) for s in range(8)]
    assert {int(out["image"][0, 2]) for out in outs} >= {255}
    for out in outs:
        assert (np.diff(out["image"][0].astype(int)) >= 0).all()  # no wrap-around


def test_a_zone_that_leaves_the_film_is_no_longer_valid():
    record = example()
    record["zones"] = np.where(record["zones"] == 1, 0, record["zones"]).astype(np.uint8)
    record["zones"][:, 0] = np.where(np.arange(64) < 20, 1, 0)  # one column at the very edge
    augment = Augment(shift=0.2)
    seen = set()
    for seed in range(10):
        out = augment(record, np.random.default_rng(seed))
        assert out["zone_valid"][0, 0] == (out["zones"] == 1).any()
        seen.add(bool(out["zone_valid"][0, 0]))
    assert seen == {True, False}


def test_missing_masks_are_fine():
    out = FULL({"image": example()["image"], "id": "b"}, np.random.default_rng(0))
    assert out.keys() == {"image", "id"}


@pytest.mark.parametrize("key", ["lungs", "zones", "lesion"])
def test_a_mask_of_another_size_is_refused(key):
    record = example()
    record[key] = record[key][:-1]
    with pytest.raises(ValueError, match=key):
        FULL(record, np.random.default_rng(0))


def padded(record):
    """The boxes of `record` are two and a row of padding: one at a corner, one in the middle."""
    missing = [np.nan] * 4
    record["boxes"] = np.array([[0, 0, 5, 4], [20, 22, 40, 50], missing], np.float32)
    record["box_label"] = np.array([2, 3, -1], np.int32)
    return record


def test_boxes_that_leave_the_film_are_nan_and_lose_their_label():
    record, seen = padded(example()), set()
    for seed in range(20):
        out = Augment(shift=0.2)(record, np.random.default_rng(seed))
        gone = np.isnan(out["boxes"]).all(axis=1)
        np.testing.assert_array_equal(np.isnan(out["boxes"]).any(axis=1), gone)
        np.testing.assert_array_equal(out["box_label"], np.where(gone, -1, record["box_label"]))
        assert not gone[1]
        assert gone[2]
        assert out["boxes"].dtype == np.float32
        seen.add(bool(gone[0]))
    assert seen == {True, False}


def test_boxes_without_labels_and_labels_without_boxes_are_fine():
    for name in ("boxes", "box_label"):
        record = padded(example())
        del record[name]
        assert FULL(record, np.random.default_rng(0)).keys() == record.keys()


def test_brightness_and_contrast_leave_boxes_where_they_are():
    record = padded(copy.copy(example()))
    out = Augment(brightness=0.1, contrast=0.1)(record, np.random.default_rng(0))
    for key in ("boxes", "box_label"):
        np.testing.assert_array_equal(out[key], record[key])


@pytest.mark.parametrize("fields", [dict(scale=-0.1), dict(scale=1.0), dict(rotate_deg=np.nan)])
def test_a_wrong_config_is_refused(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        Augment(**fields)
