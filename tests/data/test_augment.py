import copy

import cv2
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


def a_slice():
    """Of CT: no zones."""
    record = padded(example())
    named = ("zones", "zone_valid", "severity", "severity_second", "severity_valid")
    return {name: value for name, value in record.items() if name not in named}


def test_a_vertical_flip_turns_a_slice_over_and_exchanges_nothing():
    record, seen = a_slice(), 0
    height = len(record["image"])
    for seed in range(40):
        out = Augment(flip_vertical=True)(record, np.random.default_rng(seed))
        if (out["image"] == record["image"]).all():
            assert_same(out, record)
            continue
        seen += 1
        for name in ("image", "lungs", "lesion", "lesion_type"):
            np.testing.assert_array_equal(out[name], record[name][::-1])
        x0, y0, x1, y1 = record["boxes"].T
        np.testing.assert_array_equal(out["boxes"].T, [x0, height - y1, x1, height - y0])
        np.testing.assert_array_equal(out["box_label"], record["box_label"])
    assert 10 <= seen <= 30


@pytest.mark.parametrize("name", ["zones", "zone_valid", "severity", "regions", "region_findings"])
def test_a_film_is_not_turned_over(name):
    record = {**example(), "regions": np.zeros((29, 4)), "region_findings": np.zeros((29, 10))}
    record = {"image": record["image"], name: record[name]}
    over, plain = Augment(flip_vertical=True), a_slice()
    turns = lambda seed: (over(plain, np.random.default_rng(seed))["image"] != plain["image"]).any()  # noqa: E731
    seed = next(filter(turns, range(20)))
    with pytest.raises(ValueError, match=f"flip_vertical would turn '{name}' upside down"):
        over(record, np.random.default_rng(seed))


def test_the_papers_augmentation_of_slices_moves_masks_along():
    """Wu et al. 2021: any rotation, both flips, scale 0.05, brightness +-50%, contrast +-30%."""
    augment = Augment(
        rotate_deg=180, flip=True, flip_vertical=True, scale=0.05, gain=0.5, contrast=0.3
    )
    yy, xx = np.mgrid[:96, :96]
    disc = ((yy - 40) ** 2 + (xx - 60) ** 2 < 12**2).astype(np.uint8)
    record = {"image": disc * 120, "lesion": disc, "lungs": disc * 2}
    places, angles, greys, sides = [], [], [], set()
    for seed in range(60):
        out = augment(record, np.random.default_rng(seed))
        bright = out["image"] > out["image"].max() / 2
        np.testing.assert_array_equal(out["lesion"] > 0, out["lungs"] > 0)
        assert (bright != (out["lesion"] > 0)).sum() < 40  # of 440: the rim
        sides |= set(np.unique(out["lungs"]).tolist())
        y, x = np.argwhere(out["lesion"]).mean(axis=0) - 47.5
        places.append(np.hypot(y, x))
        angles.append(np.arctan2(y, x))
        greys.append(int(out["image"].max()))
    assert np.histogram(angles, bins=4, range=(-np.pi, np.pi))[0].min() >= 5
    radius = np.hypot(40 - 47.5, 60 - 47.5)
    np.testing.assert_allclose(places, radius, rtol=0.08)
    assert min(greys) < 80 < 160 < max(greys)
    assert sides == {0, 1, 2}


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


# Crop, shrink, gain and blur, which draw further numbers.

ADPD = Augment(rotate_deg=2, shift=0.02, shrink=0.05, gain=0.2, contrast=0.2, crop=0.1, blur=0.5)


@pytest.mark.parametrize("augment", [Augment(), FULL], ids=["nothing", "all"])
def test_who_asks_for_none_of_them_gets_what_there_was(augment):
    """To the bit: the film, and the numbers that whoever shares the generator draws next."""
    record = example()
    for seed in range(6):
        rng, plain = np.random.default_rng(seed), np.random.default_rng(seed)
        out = augment(record, rng)["image"]
        draws, mirror = plain.uniform(-1.0, 1.0, size=6), plain.random() < 0.5
        assert rng.bit_generator.state == plain.bit_generator.state
        film = record["image"]
        if augment is FULL:
            film = cv2.flip(film, 1) if mirror else film
            height, width = film.shape
            angle, factor = np.deg2rad(10 * draws[0]), 1.0 + 0.1 * draws[1]
            turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
            linear = factor * np.array(turn)
            centre = np.array([(width - 1) / 2, (height - 1) / 2])
            moved = centre + 0.05 * np.array([width * draws[2], height * draws[3]])
            matrix = np.concatenate([linear, (moved - linear @ centre)[:, None]], axis=1)
            film = cv2.warpAffine(film, matrix, (width, height), flags=cv2.INTER_LINEAR)
            mean = cv2.mean(film)[0]
            levels = (np.arange(256.0) - mean) * (1.0 + 0.2 * draws[5]) + mean
            levels += 255.0 * 0.2 * draws[4]
            film = cv2.LUT(film, np.clip(np.rint(levels), 0, 255).astype(np.uint8))
        np.testing.assert_array_equal(out, film)


def test_a_crop_keeps_the_boxes_whole_and_makes_them_no_smaller():
    record = example(100, 80) | {"regions": np.full((29, 4), np.nan, np.float32)}
    record["regions"][[0, 24]] = [[8, 6, 40, 70], [30, 50, 76, 97]]
    record["region_present"] = ~np.isnan(record["regions"][:, 0])
    before = (record["regions"][:, 2:] - record["regions"][:, :2])[record["region_present"]]
    factors = []
    for seed in range(40):
        out = Augment(crop=0.5)(record, np.random.default_rng(seed))
        np.testing.assert_array_equal(out["region_present"], record["region_present"])
        after = (out["regions"][:, 2:] - out["regions"][:, :2])[record["region_present"]]
        factors.append(after / before)
        np.testing.assert_allclose(factors[-1], factors[-1][0, 0], rtol=1e-4)  # nothing is cut
    # The boxes take 91% of the height: at most so much is gained, whatever is asked for.
    assert np.min(factors) > 1 - 1e-4
    assert 1.05 < np.max(factors) < 1 / 0.91 + 1e-3


def test_a_crop_without_boxes_lies_anywhere_and_has_the_area_that_is_asked_for():
    image = np.zeros((90, 90), np.uint8)
    image[::9, ::9] = 255
    yy, xx = np.mgrid[:90, :90]
    lefts, sides = [], []
    for seed in range(60):
        record = {"image": image, "boxes": np.array([[0, 0, 90, 90]], np.float32)}
        whole = Augment(crop=0.36)(record, np.random.default_rng(seed))
        np.testing.assert_array_equal(whole["image"], image)  # a box as large as the film
        # Where a pixel goes tells the window: x' = (x - left) / share.
        ramp = {"image": (xx * 2).astype(np.uint8), "lesion": (yy * 2).astype(np.uint8)}
        out = Augment(crop=0.36)(ramp, np.random.default_rng(seed))
        x = out["image"][45].astype(float) / 2
        sides.append((x[80] - x[10]) / 70)
        lefts.append(x[0])
    assert 0.8 - 0.02 < np.min(sides) < 0.83
    assert 0.97 < np.max(sides) < 1.02
    assert np.min(lefts) < 3
    assert np.max(lefts) > 12


def test_shrink_makes_smaller_alone_and_gain_scales_the_grey_levels():
    record = padded(example()) | {"image": np.full((64, 56), 100, np.uint8)}
    widths, greys = [], []
    for seed in range(40):
        out = Augment(shrink=0.2)(record, np.random.default_rng(seed))
        widths.append(out["boxes"][1, 2] - out["boxes"][1, 0])
        grey = Augment(gain=0.2)(record, np.random.default_rng(seed))["image"]
        assert grey.min() == grey.max()
        greys.append(int(grey.max()))
    assert 16 <= np.min(widths) < 17
    assert 19.3 < np.max(widths) <= 20 + 1e-4
    assert 80 <= np.min(greys) < 86
    assert 114 < np.max(greys) <= 120


def test_the_blur_comes_as_often_as_asked_for_and_moves_nothing():
    record = padded(example())
    hits = 0
    for seed in range(100):
        out = Augment(blur=0.5)(record, np.random.default_rng(seed))
        hits += (out["image"] != record["image"]).any()
        assert out["image"].std() <= record["image"].std() + 1e-9
        np.testing.assert_array_equal(out["boxes"], record["boxes"])
    # A deviation of 0.1 to 0.2 px changes no grey level: a ninth of the blurs.
    assert 25 <= hits <= 65


def test_as_many_further_draws_for_every_setting_of_them():
    states = []
    for augment in (ADPD, Augment(crop=0.1), Augment(blur=1.0), Augment(gain=0.1)):
        rng = np.random.default_rng(3)
        augment(example(), rng)
        states.append(rng.random())
    assert len(set(states)) == 1


@pytest.mark.parametrize("fields", [dict(crop=1.0), dict(shrink=-0.1), dict(blur=1.5)])
def test_a_wrong_setting_of_them_is_refused(fields):
    with pytest.raises(InputError, match=f"augment.{next(iter(fields))}"):
        Augment(**fields)


def test_masks_of_slices_move_as_each_would_alone():
    """Three masks under five slices: turned, mirrored both ways, their sides exchanged."""
    draw = np.random.default_rng(0)
    masks = draw.integers(0, 3, (3, 24, 24), dtype=np.uint8)
    slices = draw.integers(0, 255, (5, 24, 24), dtype=np.uint8)
    change = Augment(rotate_deg=20.0, shift=0.1, flip=True, flip_vertical=True)
    for seed in range(8):
        together = change({"image": slices, "lungs": masks}, np.random.default_rng(seed))
        for k in range(3):
            alone = change({"image": slices, "lungs": masks[k]}, np.random.default_rng(seed))
            np.testing.assert_array_equal(together["lungs"][k], alone["lungs"])
    with pytest.raises(ValueError, match="'lungs'"):
        change({"image": slices[0], "lungs": masks}, np.random.default_rng(0))
