"""CT phantoms: exact truth, pictures that show it, and their slices as a data set."""

import itertools
import multiprocessing
import pickle
import threading

import cv2
import numpy as np
import pytest

from cxr_jax.data import sources
from cxr_jax.data.phantoms import ct
from cxr_jax.data.phantoms.ct import ct_slice, draw_slice, lesion_slices
from cxr_jax.data.phantoms.ct_disease import LESION_CUT
from cxr_jax.data.records import LESION_TYPES
from cxr_jax.data.sources.phantom_ct import FIRST, RANGE, PhantomCT
from cxr_jax.errors import InputError

SLICES = 24
VOLUMES = range(4)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k], equal_nan=False) for k in a)


def corr(a, b) -> float:
    return np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1]


@pytest.fixture(scope="module")
def whole():
    """Every slice of some positive volumes, small."""
    return [[draw_slice(0, v, k, size=64, slices=SLICES) for k in range(SLICES)] for v in VOLUMES]


@pytest.fixture(scope="module")
def sick():
    """The slices with lesions of some volumes, in HU, with and without their lesions."""
    pairs = []
    for v in VOLUMES:
        for k in np.flatnonzero(lesion_slices(2, v, slices=16)):
            bare = draw_slice(2, v, int(k), size=128, slices=16, show_lesions=False)
            pairs.append((draw_slice(2, v, int(k), size=128, slices=16), bare))
    return pairs


def test_has_its_fields_with_their_types():
    record = ct_slice(0, 1, 9, size=96, slices=SLICES)
    for key in ("image", "lungs", "lesion", "lesion_type"):
        assert record[key].dtype == np.uint8, key
        assert record[key].shape == (96, 96), key
    assert record["slice"] == 9
    assert record["slice"].dtype == np.int32
    assert record["slice_label"].dtype == record["pixel_area"].dtype == np.float32
    assert record["pixel_area"] == 1
    assert record["group"] == record["volume"] != ct_slice(0, 2, 9, size=96)["volume"]
    assert record["id"] != ct_slice(0, 1, 10, size=96)["id"]
    assert PhantomCT.fields == set(record)
    assert set(np.unique(record["lungs"])) == {0, 1, 2}


def test_depends_on_its_arguments_only():
    first = ct_slice(3, 5, 11, size=64, slices=SLICES)
    for k in range(12):  # drives volume 5 out of the cache
        ct_slice(3, 6 + k, 1, size=64, slices=SLICES)
    assert same(first, ct_slice(3, 5, 11, size=64, slices=SLICES))
    for other in (
        ct_slice(4, 5, 11, size=64, slices=SLICES),
        ct_slice(3, 4, 11, size=64, slices=SLICES),
    ):
        assert not np.array_equal(first["image"], other["image"])


def test_is_the_same_in_another_process():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        other = pool.apply(ct_slice, (3, 5, 11), {"size": 64})
    assert same(other, ct_slice(3, 5, 11, size=64))


def test_threads_see_the_same_volume():
    expected = [ct_slice(7, 3, k, size=64)["image"] for k in range(8, 16)]
    ct.ct_volume.cache_clear()
    found = {}

    def read(k):
        found[k] = ct_slice(7, 3, k, size=64)["image"]

    threads = [threading.Thread(target=read, args=(k,)) for k in range(8, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, image in zip(range(8, 16), expected):
        np.testing.assert_array_equal(found[k], image)


@pytest.mark.parametrize("size", [64, 100, 448, 512])
def test_sizes_show_the_same_slice(size):
    for v, k in ((0, 11), (1, 15), (2, 19)):
        small, record = (
            ct_slice(2, v, k, size=256, slices=SLICES),
            ct_slice(2, v, k, size=size, slices=SLICES),
        )
        assert record["slice_label"] == small["slice_label"]
        shape, cross = (min(size, 256),) * 2, np.ones((3, 3), np.uint8)
        for key in ("lungs", "lesion"):
            a, b = (
                cv2.resize((r[key] > 0) * np.float32(1), shape, interpolation=cv2.INTER_LINEAR)
                for r in (small, record)
            )
            a, b = ((x >= 0.5).astype(np.uint8) for x in (a, b))
            # Outlines are rounded to pixels of the coarser picture: off by one at most.
            assert not (a & (1 - cv2.dilate(b, cross))).any(), key
            assert not (b & (1 - cv2.dilate(a, cross))).any(), key
        a, b = (
            cv2.resize(r["image"], (64, 64), interpolation=cv2.INTER_AREA) for r in (small, record)
        )
        # A pixel drawn at 64 px has its own grain and is sharper than the mean of 4 x 4.
        assert corr(a, b) > (0.96 if size < 256 else 0.98)


@pytest.mark.parametrize("size", [64, 71, 300])
def test_label_and_mask_agree_at_every_size(size):
    for v in range(3):
        labels = lesion_slices(5, v, slices=12)
        for k in range(12):
            assert draw_slice(5, v, k, size=size, slices=12).lesion.any() == labels[k], (v, k)


def test_every_positive_volume_has_a_lesion_and_no_negative_one():
    for slices, count in ((ct.MIN_SLICES, 30), (SLICES, 6)):
        for v in range(count):
            assert lesion_slices(1, v, slices=slices).any(), (slices, v)
    assert not lesion_slices(1, 0, positive=False).any()
    for k in range(0, SLICES, 3):
        record = ct_slice(1, 0, k, size=64, slices=SLICES, positive=False)
        assert not record["lesion"].any()
        assert not record["lesion_type"].any()
        assert record["slice_label"] == 0


def test_positive_and_negative_volumes_share_anatomy_and_distractors():
    for k in (6, 12, 20):
        bare = draw_slice(1, 3, k, size=64, slices=SLICES, show_lesions=False)
        negative = draw_slice(1, 3, k, size=64, slices=SLICES, positive=False)
        np.testing.assert_array_equal(bare.hu, negative.hu)
        np.testing.assert_array_equal(bare.lungs, negative.lungs)


def test_neighbouring_slices_are_alike(whole):
    # Measured at 32 slices: 0.93 at least between neighbours, 0.7 at most across the chest.
    for volume in whole:
        pictures = [np.clip(s.hu, -1350, 150) for s in volume]
        near = [corr(a, b) for a, b in itertools.pairwise(pictures)]
        assert min(near) > 0.88
        assert corr(pictures[3], pictures[-3]) < min(near)
        areas = np.array([(s.lungs > 0).mean() for s in volume])
        assert np.abs(np.diff(areas)).max() < 0.3 * areas.max()
        assert areas[SLICES // 2] > 0.12
        assert areas.max() > 1.5 * max(areas[0], areas[-1])


def test_lungs_lie_on_their_sides_and_hold_air(whole):
    for volume in whole:
        s = volume[SLICES // 2]
        right, left = (np.argwhere(s.lungs == side).mean(axis=0) for side in (1, 2))
        assert right[1] < left[1]
        assert np.median(s.hu[s.lungs > 0]) < -700
        around = cv2.dilate((s.lungs > 0).astype(np.uint8), np.ones((7, 7), np.uint8)) == 1
        assert np.median(s.hu[around & (s.lungs == 0)]) > -300


def test_lesions_lie_in_lungs_and_have_a_type(whole):
    for volume in whole:
        for s in volume:
            assert not (s.lesion & (s.lungs == 0)).any()
            np.testing.assert_array_equal(s.lesion_type > 0, s.lesion)
            np.testing.assert_array_equal(s.lesion, s.opacity >= LESION_CUT)
            assert s.lesion_type.max(initial=0) < len(LESION_TYPES)


def test_lesions_span_slices(whole):
    spans = [np.array([s.lesion.any() for s in volume]).sum() for volume in whole]
    assert np.median(spans) >= 3


def test_every_kind_of_lesion_occurs():
    options = {"slices": 16, "positive": True, "lobar": False, "disease_extent": 0.0}
    lesions = [x for v in range(40) for x in ct.ct_volume(1, v, **options).lesions]
    kinds = {(x.kind, x.net) for x in lesions}
    assert kinds == {(1, False), (1, True), (2, False)}
    assert {x.bronchograms for x in lesions if x.kind == 2} == {False, True}


def test_without_opacity_a_lesion_changes_nothing(sick):
    for shown, bare in sick:
        changed = np.abs(shown.hu - bare.hu) > 1e-3
        # The kernel's blur and sharpening carry a change a few pixels further.
        reach = cv2.dilate((shown.opacity > 0).astype(np.uint8), np.ones((17, 17), np.uint8))
        assert not (changed & (reach == 0)).any()


def test_lesions_are_denser_than_the_lung_they_replace(sick):
    gains = {1: [], 2: []}
    for shown, bare in sick:
        for kind, found in gains.items():
            mask = shown.lesion_type == kind
            if mask.sum() >= 20:
                found.append((shown.hu - bare.hu)[mask].mean())
    assert min(gains[1]) > 40
    assert 100 < np.median(gains[1]) < 350
    assert np.median(gains[2]) > 450


def test_lesions_stand_out_but_are_not_all_that_is_bright(sick):
    brighter = []
    for shown, _ in sick:
        inside, lung = shown.lesion == 1, (shown.lungs > 0) & (shown.opacity == 0)
        if inside.sum() >= 20 and lung.sum() >= 100:
            brighter.append(shown.hu[inside].mean() > shown.hu[lung].mean() + 50)
    assert np.mean(brighter) > 0.9
    # Healthy lung has vessels and dependent density of the same HU, which are no lesion.
    shares = [(s.hu[(s.lungs > 0) & (s.opacity == 0)] > -650).mean() for s, _ in sick]
    assert np.median(shares) > 0.03


def test_vessels_are_no_lesion():
    lungs_bright = 0
    for k in range(4, 12):
        s = draw_slice(2, 0, k, size=256, slices=16, positive=False)
        deep = cv2.erode((s.lungs > 0).astype(np.uint8), np.ones((15, 15), np.uint8)) == 1
        lungs_bright += (s.hu[deep] > -300).sum()
        assert not s.lesion.any()
    assert lungs_bright > 400


def test_airways_are_dark():
    darkest = []
    for v in range(4):
        s = draw_slice(2, v, 5, size=256, slices=16, positive=False)
        middle = cv2.resize(s.hu, (64, 64), interpolation=cv2.INTER_AREA)[24:40, 26:38]
        darkest.append(middle.min())
    assert max(darkest) < -800  # the trachea, in the mediastinum


def test_a_window_maps_its_ends():
    hu = draw_slice(0, 0, 12, size=64).hu
    lung, narrow = ct_slice(0, 0, 12, size=64), ct_slice(0, 0, 12, size=64, window_hu=(0.0, 200.0))
    expected = np.clip((hu + 600) / 1500 + 0.5, 0, 1) * 255
    assert np.abs(lung["image"] - expected).max() <= 1
    assert (narrow["image"][hu < -110] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((-1, 0, 0), {}, "must not be negative"),
        ((0, -1, 0), {}, "must not be negative"),
        ((0, 0, 0), {"size": 63}, "size=63 px"),
        ((0, 0, 0), {"size": 513}, "size=513 px"),
        ((0, 0, 32), {}, "slice 32 of a volume of 32"),
        ((0, 0, 0), {"slices": 4}, "4 slices a volume"),
        ((0, 0, 0), {"window_hu": (0.0, 0.0)}, "width must be positive"),
    ],
)
def test_bad_arguments_are_named(arguments, options, message):
    with pytest.raises(InputError, match=message) as error:
        ct_slice(*arguments, **options)
    assert "\n" not in str(error.value)


# The data set ------------------------------------------------------------------------------------


def opened(split="train", **options):
    options = {"count": 5, "seed": 0, "size": 64, "slices": 12, **options}
    return PhantomCT(split=split, **options)


@pytest.mark.parametrize("positive", [0.0, 0.2, 0.5, 0.6, 1.0])
def test_every_prefix_is_balanced(positive):
    source = opened(count=0, positive=positive)
    chosen = [source._is_positive(v) for v in range(100)]
    for n in range(1, 101):
        assert abs(sum(chosen[:n]) - n * positive) < 1
    assert sum(chosen) == round(100 * positive)


@pytest.mark.parametrize(("split", "every"), [("train", 1), ("train", 3), ("val", 3), ("test", 4)])
def test_table_agrees_with_the_records(split, every):
    source = opened(split, count=3, label_every=every)
    table = source.slice_table()
    assert len(source) == len(table.volume) == len(table.position) == len(table.label) == 36
    assert table.label.dtype == np.float32
    names = []
    for i in range(len(source)):
        record = source[i]
        np.testing.assert_equal(record["slice_label"], table.label[i])
        assert record["slice_label"].dtype == np.float32
        assert record["slice"] == table.position[i]
        names.append(record["volume"])
        if every == 1 or split != "train":
            assert record["slice_label"] == record["lesion"].any()
    assert len(set(zip(names, table.volume))) == len(set(names)) == 3


@pytest.mark.parametrize("positive, other", [(0.6, 0.5), (1.0, 0.25), (0.5, 1.0), (0.7, 0.0)])
def test_other_infections_are_spread_over_the_positive_volumes(positive, other):
    source = opened(count=0, positive=positive, other=other)
    sick = [v for v in range(100) if source._is_positive(v)]
    lobar = [v for v in range(100) if source._is_other(v)]
    assert set(lobar) <= set(sick)
    assert len(lobar) == int(len(sick) * other + 1e-9)
    for n in range(1, len(sick)):
        assert abs(sum(v in lobar for v in sick[:n]) - n * other) < 1


def test_another_infection_is_one_consolidation_without_ground_glass():
    options = {"slices": 12, "size": 64, "lobar": True}
    for number in range(4):
        drawn = [ct_slice(2, number, k, **options) for k in range(12)]
        label = lesion_slices(2, number, slices=12, lobar=True)
        assert label.any()
        for record, sick in zip(drawn, label):
            assert record["lesion"].any() == sick == record["slice_label"]
            assert record["diagnosis"] == (1 if sick else 0)
            np.testing.assert_array_equal(record["lesion_type"], 2 * record["lesion"])
        # The lungs are those of the same patient with COVID-19.
        covid = ct_slice(2, number, 6, slices=12, size=64)
        np.testing.assert_array_equal(covid["lungs"], drawn[6]["lungs"])
        assert covid["diagnosis"] == (2 if covid["lesion"].any() else 0)


@pytest.mark.parametrize("every", [1, 3])
def test_a_slice_has_the_diagnosis_that_its_label_allows(every):
    source = opened(count=6, positive=0.7, other=0.5, label_every=every)
    assert source.partial == ({"diagnosis"} if every > 1 else frozenset())
    seen = set()
    for index in range(len(source)):
        record = source[index]
        diagnosis = record.get("diagnosis")
        assert source.peek(index, "diagnosis") == diagnosis
        assert source.has(index, "diagnosis") == (diagnosis is not None)
        if every > 1 and np.isnan(record["slice_label"]):
            assert diagnosis is None
            continue
        volume = index // 12
        sick = 1 if source._is_other(volume) else 2
        assert diagnosis == (sick if record["lesion"].any() else 0)
        seen.add(diagnosis)
    assert seen == {0, 1, 2}
    assert source.has(0, "lesion") and not source.has(0, "findings")  # noqa: PT018
    assert source.peek(3, "slice") == 3
    assert len(sources.only_with(source, {"diagnosis"})) == sum(
        not np.isnan(label) for label in source.slice_table().label
    )
    versions = {opened(**o).version for o in ({}, {"other": 0.5}, {"other": 0.25})}
    assert len(versions) == 3


def test_weak_labels_are_every_nth_slice_with_a_lesion():
    table, exact = (opened(label_every=n).slice_table() for n in (3, 1))
    source = opened()
    for v in range(5):
        weak, known = table.label[table.volume == v], exact.label[exact.volume == v]
        if not source._is_positive(v):
            assert (weak == 0).all()
            assert (known == 0).all()
            continue
        assert set(np.unique(known)) <= {0, 1}
        np.testing.assert_array_equal(np.flatnonzero(weak == 1), np.flatnonzero(known)[::3])
        assert np.isnan(weak[weak != 1]).all()
        assert (weak == 1).any()


def test_no_volume_is_in_two_splits():
    groups = {}
    for split in sources.SPLITS:
        source = opened(split, count=2)
        groups[split] = {source[i]["group"] for i in range(0, len(source), 12)}
        assert len(groups[split]) == 2
    assert len(set.union(*groups.values())) == 6
    starts = sorted(FIRST.values())
    assert min(np.diff(starts)) >= RANGE


def test_a_source_pickles():
    source = opened(label_every=2)
    before = source[13]
    copy = pickle.loads(pickle.dumps(source))
    assert copy.version == source.version
    np.testing.assert_equal(copy[13], before)
    np.testing.assert_equal(copy.slice_table(), source.slice_table())


def test_a_config_opens_it():
    data = sources.block("phantom_ct", seed=3, size=64, slices=10, positive=0.5, label_every=2)
    data.update(train=4, val=2, test=1)
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        source = sources.open_source(data, split)
        assert (source.split, len(source)) == (split, 10 * count)
    with pytest.raises(IndexError):
        source[10]
    versions = {opened(**o).version for o in ({}, {"seed": 1}, {"slices": 9}, {"label_every": 1})}
    assert len(versions) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": RANGE + 1}, "data.train=1000001"),
        ({"count": -1}, "data.train=-1"),
        ({"seed": -1}, "data.seed=-1"),
        ({"size": 32}, "data.size=32 px"),
        ({"slices": 7}, "data.slices=7"),
        ({"positive": 1.5}, "data.positive=1.5"),
        ({"other": -0.1}, "data.other=-0.1"),
        ({"label_every": 0}, "data.label_every=0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message) as error:
        opened(**options)
    assert "\n" not in str(error.value)


def test_heavy_lesions_are_larger_and_lie_in_the_same_anatomy():
    def areas(disease_extent):
        drawn = [ct_slice(5, 0, k, size=64, disease_extent=disease_extent) for k in range(0, 32, 4)]
        return sum(int(d["lesion"].sum()) for d in drawn), drawn

    mild, heavy = areas(0.0), areas(1.0)
    assert heavy[0] > 2 * mild[0] > 0
    for a, b in zip(mild[1], heavy[1]):
        np.testing.assert_array_equal(a["lungs"], b["lungs"])
        assert not (b["lesion"] & (b["lungs"] == 0)).any()
    with pytest.raises(InputError, match="disease_extent=2"):
        ct_slice(5, 0, 0, size=64, disease_extent=2.0)
