"""JSRT with SCR's masks, Montgomery, Shenzhen: layouts, sides, sizes, splits, and every mistake."""

import pathlib
import shutil

import cv2
import numpy as np
import pytest
from fake_sets import (
    JSRT_NAMES,
    draw_chest,
    folded_config,
    make_jsrt,
    make_montgomery,
    make_shenzhen,
    raw_jsrt,
    run_prepare,
    write_mask,
)

from cxr_jax.data import sources
from cxr_jax.data.sources import lung_masks, prepared
from cxr_jax.errors import InputError

MAKE = {"jsrt_scr": make_jsrt, "montgomery": make_montgomery, "shenzhen": make_shenzhen}
LIST = {
    "jsrt_scr": lung_masks.jsrt_scr_films,
    "montgomery": lung_masks.montgomery_films,
    "shenzhen": lung_masks.shenzhen_films,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """All three sets, prepared."""
    root = tmp_path_factory.mktemp("lungs")
    for name, make in MAKE.items():
        run_prepare(name, make(root / name), root / "data", "--max_side=512")
    return root / "data"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """The folders of the sets; tests that break one take a copy."""
    root = tmp_path_factory.mktemp("pristine")
    return {name: make(root / name) for name, make in MAKE.items()}


def records(data_dir, name, split, fold=-1):
    opened = sources.open_source(folded_config(name, data_dir, fold), split)
    return [opened[i] for i in range(len(opened))]


@pytest.mark.parametrize(
    "name, size, ids",
    [
        ("jsrt_scr", (512, 512), [n for names in JSRT_NAMES.values() for n in names]),
        ("montgomery", (80, 64), [f"MCUCXR_{i:04d}_{int(i % 3 == 0)}" for i in range(1, 58)]),
        ("shenzhen", (64, 72), [f"CHNCXR_{i:04d}_{i % 2}" for i in range(1, 71)]),
    ],
)
def test_records_are_the_drawn_films_and_lungs(data_dir, name, size, ids):
    found = records(data_dir, name, "train") + records(data_dir, name, "test")
    assert sorted(record["id"] for record in found) == sorted(ids)
    for record in found:
        number = int(record["id"].split("_")[1]) if "_" in record["id"] else int(record["id"][-3:])
        film, lungs = draw_chest(*size, number)
        # JSRT is drawn up to 2048 pixels and averaged down again: the lungs' border, some 1% of the
        # pixels, is blurred; the words' 12 bits cost a grey level, and rounding another.
        difference = np.abs(record["image"].astype(float) - film)
        tolerance = 2 if name == "jsrt_scr" else 0
        assert np.percentile(difference, 95) <= tolerance, record["id"]
        assert record["view"] == "PA"
        if "lungs" in record:
            # Right (1) is the one further left, whatever the folder is called.
            np.testing.assert_array_equal(record["lungs"] == 2, lungs["left"] > 0)
            np.testing.assert_array_equal(record["lungs"] == 1, lungs["right"] > 0)


def test_splits_are_scrs_folds_and_the_first_fifty(data_dir):
    for split, fold in (("train", "fold1"), ("test", "fold2")):
        assert [r["id"] for r in records(data_dir, "jsrt_scr", split)] == sorted(JSRT_NAMES[fold])
    numbers = [int(r["group"][-4:]) for r in records(data_dir, "montgomery", "test")]
    assert numbers == list(range(1, 51))
    # Every seventh film of Shenzhen has no mask: the fiftieth mask is that of film 58.
    numbers = [int(r["group"][-4:]) for r in records(data_dir, "shenzhen", "test")]
    assert numbers == [i for i in range(1, 59) if i % 7]


def test_films_without_a_mask_train_without_lungs(data_dir):
    train = sources.open_source(folded_config("shenzhen", data_dir), "train")
    assert train.partial == {"lungs"}
    without = [int(train[i]["group"][-4:]) for i in range(len(train)) if "lungs" not in train[i]]
    assert without == list(range(7, 71, 7))
    assert len(sources.only_with(train, {"lungs"})) == len(train) - 10
    for name in ("jsrt_scr", "montgomery"):
        assert not sources.open_source(folded_config(name, data_dir), "train").partial


@pytest.mark.parametrize("name", ["montgomery", "shenzhen"])
def test_folds_part_the_training_films(data_dir, name):
    whole = [r["id"] for r in records(data_dir, name, "train")]
    seen = []
    for fold in range(prepared.FOLDS):
        val = [r["id"] for r in records(data_dir, name, "val", fold)]
        train = [r["id"] for r in records(data_dir, name, "train", fold)]
        assert sorted(val + train) == sorted(whole)
        seen += val
    assert sorted(seen) == sorted(whole)


def test_films_of_one_patient_stay_together(tmp_path):
    source = make_montgomery(tmp_path)
    film, lungs = draw_chest(80, 64, 0)
    root = source / "MontgomerySet"
    for number in (50, 51):  # a second film of the last test and of the first training patient
        stem = next(p for p in (root / "CXR_png").iterdir() if f"_{number:04d}_" in p.name).stem
        again = f"{stem[:-1]}{1 - int(stem[-1])}.png"
        write_mask(root / "CXR_png" / again, film)
        for side, mask in lungs.items():
            write_mask(root / "ManualMask" / f"{side}Mask" / again, mask)
    films = lung_masks.montgomery_films(source)
    of = {split: {f.group for f in films if f.split == split} for split in ("train", "test")}
    assert not of["train"] & of["test"]
    assert len(of["test"]) == 50
    assert [f.split for f in films if f.group == "MCUCXR_0050"] == ["test", "test"]
    folds = {f.fold for f in films if f.group == "MCUCXR_0051"}
    assert len(folds) == 1
    assert -1 not in folds


def test_pictures_of_jsrt_give_the_films_of_the_raw_files(tmp_path, data_dir):
    source = make_jsrt(tmp_path / "source", suffix=".png", masks=".bmp")
    (source / "scratch").mkdir()
    for fold in ("fold1", "fold2"):
        (source / fold).rename(source / "scratch" / fold)
    run_prepare("jsrt_scr", source, tmp_path)
    for split in ("train", "test"):
        raw, ours = records(data_dir, "jsrt_scr", split), records(tmp_path, "jsrt_scr", split)
        for one, other in zip(raw, ours, strict=True):
            assert one["id"] == other["id"]
            # As above, the mean over all pixels.
            assert np.abs(one["image"].astype(float) - other["image"]).mean() < 1
            np.testing.assert_array_equal(one["lungs"], other["lungs"])


def test_the_larger_of_film_and_mask_is_reduced(tmp_path):
    film, lungs = draw_chest(96, 120, 1)
    masks = (lungs["left"], lungs["right"])

    def read(film, masks, max_side=512):
        paths = [tmp_path / f"{k}.png" for k in range(3)]
        for path, picture in zip(paths, (film, *masks)):
            write_mask(path, picture)
        row = lung_masks.Film(paths[0], "a", "a", "train", False, tuple(paths[1:]))
        return lung_masks.read_film_record(row, max_side)

    small = [cv2.resize(mask, (60, 48), interpolation=cv2.INTER_NEAREST) for mask in masks]
    record = read(film, small)
    assert record["image"].shape == record["lungs"].shape == (48, 60)
    # Exactly 2x2: the area mean of four pixels, rounded.
    means = film.reshape(48, 2, 60, 2).mean((1, 3))
    assert np.abs(record["image"] - means).max() <= 0.5
    np.testing.assert_array_equal(record["lungs"] > 0, (small[0] | small[1]) > 0)
    large = [cv2.resize(mask, (240, 192), interpolation=cv2.INTER_NEAREST) for mask in masks]
    record = read(film, large)
    np.testing.assert_array_equal(record["image"], film)
    np.testing.assert_array_equal(record["lungs"] > 0, (masks[0] | masks[1]) > 0)
    record = read(film, large, max_side=60)
    assert np.abs(record["image"] - means).max() <= 0.5
    # The pixel that holds the middle of each 2x2, towards the lower right.
    np.testing.assert_array_equal(record["lungs"] > 0, (masks[0] | masks[1])[1::2, 1::2] > 0)
    # 121 for 120 columns is the same field to a pixel; 130 is not.
    assert read(film, [cv2.resize(m, (121, 96)) for m in masks])["lungs"].any()
    with pytest.raises(InputError, match=r"1\.png: the mask has 130x96 px .* 120x96"):
        read(film, [cv2.resize(m, (130, 96)) for m in masks])


def test_stray_strokes_are_no_lung_and_a_lung_may_touch_the_other():
    _, lungs = draw_chest(80, 64, 0)
    paths = (pathlib.Path("left.png"), pathlib.Path("right.png"))
    clean = lung_masks.lungs_of([lungs["left"], lungs["right"]], paths)
    stray = lungs["right"].copy()
    stray[2:5, 60:] = 255
    np.testing.assert_array_equal(lung_masks.lungs_of([lungs["left"], stray], paths), clean)
    np.testing.assert_array_equal(lung_masks.lungs_of([stray, lungs["left"]], paths), clean)
    # Two files keep two lungs apart that touch; one file of both would have to guess.
    touching = lungs["right"].copy()
    touching[20:60, 24:40] = 255
    labels = lung_masks.lungs_of([lungs["left"], touching], paths)
    np.testing.assert_array_equal(labels == 1, touching > 0)
    np.testing.assert_array_equal(labels == 2, lungs["left"] > 0)


def test_a_negative_is_refused(tmp_path):
    source = make_jsrt(tmp_path / "source", suffix=".png")
    path = source / "All247images" / "JPCLN003.png"
    write_mask(path, 255 - cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    with pytest.raises(InputError, match=r"JPCLN003\.png: the lungs .* this is a negative"):
        run_prepare("jsrt_scr", source, tmp_path)


def remove(*names):
    def do(root):
        for name in names:
            path = root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return do


def copy(name, other):
    return lambda root: shutil.copy(root / name, root / other)


JSRT_LEFT = "fold1/masks/left lung"
MC = "MontgomerySet/ManualMask/leftMask"


@pytest.mark.parametrize(
    "name, damage, words",
    [
        ("jsrt_scr", remove("All247images"), "found none of All247images, "),
        ("jsrt_scr", remove("fold1"), "found none of fold1/masks, scratch/fold1/masks"),
        ("jsrt_scr", remove("fold2"), "fold2/masks/left lung: there is no such folder"),
        ("jsrt_scr", remove("fold1/masks/right lung"), "right lung: there is no such folder"),
        ("jsrt_scr", remove(f"{JSRT_LEFT}/JPCLN003.gif"), "left lung: no mask of JPCLN003"),
        ("jsrt_scr", remove("fold2/masks/right lung/JPCNN002.gif"), "lung: no mask of JPCNN002"),
        ("jsrt_scr", remove("All247images/JPCNN001.IMG"), "All247images: no film JPCNN001"),
        (
            "jsrt_scr",
            copy("All247images/JPCNN001.IMG", "All247images/JPCNN009.IMG"),
            "no mask of JPCNN009",
        ),
        (
            "jsrt_scr",
            copy("All247images/JPCNN001.IMG", "All247images/chest.IMG"),
            r"chest\.IMG: not a name of this set",
        ),
        (
            "jsrt_scr",
            copy(f"{JSRT_LEFT}/JPCLN003.gif", f"{JSRT_LEFT}/JPCLN003.png"),
            r"JPCLN003 is there twice, see JPCLN003\.gif",
        ),
        (
            "jsrt_scr",
            lambda root: [
                copy(f"fold1/masks/{s} lung/JPCLN001.gif", f"fold2/masks/{s} lung")(root)
                for s in ("left", "right")
            ],
            "JPCLN001 is in fold1 and in fold2",
        ),
        ("montgomery", remove("MontgomerySet/CXR_png"), "found none of CXR_png, MontgomerySet/"),
        ("montgomery", remove(MC), "leftMask: there is no such folder"),
        ("montgomery", remove(f"{MC}/MCUCXR_0007_0.png"), "leftMask: no mask of MCUCXR_0007_0"),
        ("montgomery", remove("MontgomerySet/CXR_png/MCUCXR_0007_0.png"), "no film MCUCXR_0007_0"),
        (
            "montgomery",
            lambda root: [p.unlink() for p in root.rglob("MCUCXR_005[1-9]*")],
            "50 films leave none with a mask to the train split",
        ),
        ("shenzhen", remove("ChinaSet_AllFiles"), "found none of CXR_png, ChinaSet_AllFiles/"),
        ("shenzhen", remove("mask"), r"found none of mask/\*\.png, mask/mask/\*\.png"),
        (
            "shenzhen",
            remove("ChinaSet_AllFiles/CXR_png/CHNCXR_0001_1.png"),
            "CXR_png: no film CHNCXR_0001_1, which has a mask",
        ),
        (
            "shenzhen",
            copy("mask/CHNCXR_0001_1_mask.png", "mask/CHNCXR_0001_1.png"),
            "CHNCXR_0001_1 is there twice",
        ),
    ],
)
def test_mistakes_of_the_folders_are_named(tmp_path, pristine, name, damage, words):
    root = tmp_path / "copy"
    shutil.copytree(pristine[name], root)
    damage(root)
    with pytest.raises(InputError, match=words):
        LIST[name](root)


def rewrite(change):
    def do(path):
        path.write_bytes(change(path.read_bytes()))

    return do


FLAT = np.full((512, 512), 90, np.uint8)


@pytest.mark.parametrize(
    "name, file, damage, words",
    [
        ("jsrt_scr", "All247images/JPCLN001.IMG", rewrite(lambda d: d[:-2]),
         r"JPCLN001\.IMG: the file has 8388606 bytes; .* 2048x2048 px has 8388608"),
        ("jsrt_scr", "All247images/JPCLN001.IMG", rewrite(lambda d: d + b"\0\0"), "has 8388610"),
        ("jsrt_scr", "All247images/JPCLN001.IMG", rewrite(lambda d: b""), "the file is empty"),
        ("jsrt_scr", "All247images/JPCLN001.IMG",
         rewrite(lambda d: np.frombuffer(d, ">u2").astype("<u2").tobytes()), "is big-endian"),
        ("jsrt_scr", "All247images/JPCLN001.IMG", lambda p: p.write_bytes(raw_jsrt(FLAT)),
         "the film is of one colour"),
        ("jsrt_scr", f"{JSRT_LEFT}/JPCLN001.gif", rewrite(lambda d: d[: len(d) // 2]),
         r"left lung/JPCLN001\.gif: the GIF is truncated"),
        ("jsrt_scr", f"{JSRT_LEFT}/JPCLN001.gif", lambda p: write_mask(p, 0 * FLAT),
         r"left lung/JPCLN001\.gif: the mask has no lung pixel"),
        ("jsrt_scr", f"{JSRT_LEFT}/JPCLN001.gif", lambda p: p.write_bytes(b"not a picture"),
         "expected a PNG, JPEG, GIF or BMP mask"),
        ("jsrt_scr", f"{JSRT_LEFT}/JPCLN001.gif",
         lambda p: shutil.copy(p.parents[1] / "right lung" / p.name, p),
         r"right lung/JPCLN001\.gif: it shows the same lung as .*left lung/JPCLN001\.gif"),
        ("montgomery", "MontgomerySet/CXR_png/MCUCXR_0003_1.png", rewrite(lambda d: d[:99]),
         r"MCUCXR_0003_1\.png: the file is truncated"),
        ("shenzhen", "mask/CHNCXR_0002_0_mask.png",
         lambda p: write_mask(p, np.full((64, 100), 255, np.uint8)),
         r"CHNCXR_0002_0_mask\.png: the mask has 100x64 px .* 72x64"),
    ],
)  # fmt: skip
def test_mistakes_of_the_files_are_named_and_leave_nothing(
    tmp_path, pristine, name, file, damage, words
):
    root = tmp_path / "copy"
    shutil.copytree(pristine[name], root)
    damage(root / file)
    with pytest.raises(InputError, match=words) as error:
        run_prepare(name, root, tmp_path / "data")
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "data" / name).iterdir()] == [".lock"]


@pytest.mark.parametrize("name", MAKE)
def test_a_missing_set_names_the_command_and_the_folders(tmp_path, name):
    with pytest.raises(InputError) as error:
        sources.open_source(folded_config(name, tmp_path), "train")
    assert f"python -m cxr_jax.data.prepare {name} --source=FOLDER" in str(error.value)
    assert lung_masks.LAYOUTS[name] in str(error.value)
    with pytest.raises(InputError, match=r"no validation split with data\.fold=-1"):
        sources.open_source(folded_config(name, tmp_path), "val")
