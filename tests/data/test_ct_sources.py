"""CT sets: every record, split, fold and label of ct_lesions, covid19_ct_seg and ct_volume."""

import csv
import pickle
import shutil

import cv2
import numpy as np
import pytest
from fake_sets import edit, make_manifest, run_prepare, write_csv
from fake_volumes import (
    COVID19_VOLUMES,
    CT_ROWS,
    ct_config,
    draw_chest,
    make_covid19,
    make_ct_lesions,
    make_ct_volumes,
    write_nifti,
    write_series,
    write_slice,
)

from cxr_jax.data import prepare, readers, sources, volumes
from cxr_jax.data.sources import covid19_ct_seg, ct_lesions, ct_volume, prepared
from cxr_jax.errors import InputError

NAN = float("nan")


def records_of(source):
    return [source[i] for i in range(len(source))]


def check_line(call, *words):
    with pytest.raises(InputError) as error:
        call()
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def check_table(source):
    """The table says what the records say."""
    table, records = source.slice_table(), records_of(source)
    assert [len(column) for column in table] == [len(records)] * 3
    assert table.position.tolist() == [record["slice"] for record in records]
    np.testing.assert_array_equal(table.label, [record["slice_label"] for record in records])
    assert table.label.dtype == np.float32
    names = {}
    for number, record in zip(table.volume, records):
        assert names.setdefault(number, record["volume"]) == record["volume"]
        assert record["id"] == f"{record['volume']}-{record['slice']:04d}"
        assert record["slice"].dtype == np.int32
        assert record["slice_label"].dtype == record["pixel_area"].dtype == np.float32
        assert set(record) | source.partial >= source.fields >= set(record)
    assert len(set(names.values())) == len(names)
    return records


def check_folds(open_fold):
    """Five folds that share no patient and are all of the training part."""
    everything = sorted(record["id"] for record in records_of(open_fold("train", -1)))
    seen = []
    for fold in range(5):
        val, train = open_fold("val", fold), open_fold("train", fold)
        groups = [{record["group"] for record in records_of(part)} for part in (val, train)]
        assert not groups[0] & groups[1]
        assert len(val) + len(train) == len(everything)
        seen += [record["id"] for record in records_of(val)]
    assert sorted(seen) == everything
    test = {record["group"] for record in records_of(open_fold("test", -1))}
    assert not test & {record["group"] for record in records_of(open_fold("train", -1))}
    check_line(lambda: open_fold("val", -1), "no validation split")


# --- ct_lesions


@pytest.fixture(scope="module")
def lesions_set(tmp_path_factory):
    """(source folder, data_dir), prepared."""
    root = tmp_path_factory.mktemp("ct_lesions")
    source = make_ct_lesions(root / "source")
    run_prepare("ct_lesions", source, root / "data")
    return source, root / "data"


def test_ct_lesions_gives_whole_slices(lesions_set):
    source, data_dir = lesions_set
    train = sources.open_source(ct_config("ct_lesions", data_dir), "train")
    test = sources.open_source(ct_config("ct_lesions", data_dir), "test")
    assert (len(train), len(test)) == (24, 4)
    assert train.fields == ct_lesions.FIELDS
    records = check_table(train) + check_table(test)
    assert [record["volume"] for record in records[::4]] == [f"v{k}" for k in range(7)]
    for k, record in enumerate(records):
        _, lungs, lesion = draw_chest(4, 64, k // 4, lesions=range(4))
        # Upside down or not in the files, here the spine is at the bottom.
        np.testing.assert_array_equal(record["lungs"], lungs[k % 4])
        np.testing.assert_array_equal(record["lesion"], lesion[k % 4])
        stored = cv2.imread(str(source / "ct" / f"{10 + k:04d}.png"), cv2.IMREAD_GRAYSCALE)
        picture = stored[::-1] if (k // 4) % 2 else stored
        np.testing.assert_array_equal(record["image"], picture)
        assert record["slice_label"] == record["pixel_area"] == 1
    again = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(again.slice_table().volume, train.slice_table().volume)


def test_folds_never_divide_a_patient(lesions_set):
    for halves in (False, True):
        check_folds(
            lambda split, fold, halves=halves: sources.open_source(
                ct_config("ct_lesions", lesions_set[1], fold=fold, halves=halves), split
            )
        )


def test_a_half_is_its_lung_enlarged(lesions_set):
    """Each pixel of a half is that of the slice it was cut from; the rest is black."""
    source, data_dir = lesions_set
    whole = sources.open_source(ct_config("ct_lesions", data_dir), "train")
    halves = sources.open_source(ct_config("ct_lesions", data_dir, halves=True), "train")
    assert len(halves) == 2 * len(whole)
    assert halves.version != whole.version
    records = check_table(halves)
    with open(source.parent / "ct_half" / "halves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for k, record in enumerate(records):
        row, slice_ = rows[k], whole[k // 2]
        assert record["volume"] == f"{row['volume']}-{row['side']}"
        assert record["group"] == slice_["group"]
        assert record["slice_label"] == int(row["label"])
        assert record["image"].shape == record["lesion"].shape == (128, 128)
        x0, y0, x1, y1 = (int(row[name]) for name in ("x0", "y0", "x1", "y1"))
        if (k // 8) % 2:  # an upside-down volume
            y0, y1 = 64 - y1, 64 - y0
        side = max(x1 - x0, y1 - y0)
        assert record["pixel_area"] == pytest.approx((side / 128) ** 2)
        # Back from each pixel's centre to the slice.
        at = np.floor((np.arange(128) + 0.5) * side / 128).astype(int)
        down = at - (side - (y1 - y0)) // 2
        along = at - (side - (x1 - x0)) // 2
        inside = np.outer((down >= 0) & (down < y1 - y0), (along >= 0) & (along < x1 - x0))
        for name in ("lesion", "lungs"):
            back = slice_[name][np.ix_(np.clip(down + y0, 0, 63), np.clip(along + x0, 0, 63))]
            np.testing.assert_array_equal(record[name], np.where(inside, back, 0))
        assert (record["image"][:3] == 0).all() == (not inside[:3].any())
        own = 1 if row["side"] == "left" else 2
        assert (record["lungs"] == own).any()
        area = record["lesion"].sum() * record["pixel_area"]
        assert area == pytest.approx(int(row["lesion_pixels"]), rel=0.1, abs=1)


def test_a_large_half_keeps_its_pixels():
    rng = np.random.default_rng(0)
    image = rng.integers(1, 255, (256, 256), dtype=np.uint8)
    half, area = ct_lesions.half_of({"image": image}, np.array([10, 20, 111, 220]))
    assert area == 1
    assert half["image"].shape == (200, 200)
    np.testing.assert_array_equal(half["image"][:, 49:150], image[20:220, 10:111])
    assert not half["image"][:, :49].any()
    assert not half["image"][:, 150:].any()
    np.testing.assert_array_equal(
        ct_lesions.turned_over(np.array([1, 2, 5, 9]), 12), [1, 12 - 9, 5, 12 - 2]
    )


def test_halves_count_like_a_sequence(lesions_set):
    halves = sources.open_source(ct_config("ct_lesions", lesions_set[1], halves=True), "test")
    assert halves[-1]["id"] == halves[len(halves) - 1]["id"]
    with pytest.raises(IndexError):
        halves[len(halves)]
    assert pickle.loads(pickle.dumps(halves))[3]["id"] == halves[3]["id"]


SLICES = "slices.csv"
LESION_ERRORS = [
    (SLICES, 3, "slice", "none.png", "there is no file"),
    (SLICES, 3, "slice", "0010.png", "'0010.png' is listed twice"),
    (SLICES, 3, "volume", "v9", "volumes.csv has no such volume"),
    (SLICES, 3, "index_in_volume", "0", "2 slices of volume 'v0' have index_in_volume 0"),
    (SLICES, 3, "index_in_volume", "-1", "expected a whole number"),
    (SLICES, 3, "lesion_pixels", "", "must not be empty"),
    (SLICES, 3, "lesion_fraction_of_lung", "1.2", "expected a number 0..1"),
    (SLICES, 3, "split", "test", "volumes.csv says 'train'"),
    (SLICES, 3, "split", "val", "expected one of train, test"),
    ("volumes.csv", 3, "patient", "f", "both split 'train' and split 'test'"),
    ("volumes.csv", 3, "spine_at", "left", "expected one of bottom, top"),
    ("volumes.csv", 3, "volume", "v0", "'v0' is listed twice"),
    ("halves.csv", 3, "slice", "x.png", "slices.csv has no such slice"),
    ("halves.csv", 3, "volume", "v1", "slices.csv says 'v0'"),
    ("halves.csv", 3, "side", "left", "left half is listed twice"),
    ("halves.csv", 3, "side", "top", "expected one of left, right"),
    ("halves.csv", 3, "x1", "0", "is empty"),
    ("halves.csv", 3, "y0", "x", "expected a whole number"),
    ("halves.csv", 3, "label", "1", "lesion_pixels is 0"),
    ("halves.csv", 3, "label", "2", "expected a whole number 0..1"),
]


@pytest.mark.parametrize("table, line, column, value, words", LESION_ERRORS)
def test_ct_lesions_tables_with_mistakes(lesions_set, tmp_path, table, line, column, value, words):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("slices.csv", "volumes.csv"):
        shutil.copy(lesions_set[0] / name, source)
    shutil.copy(lesions_set[0].parent / "ct_half" / "halves.csv", source)
    for name in ("ct", "lesions", "lungs"):
        (source / name).symlink_to(lesions_set[0] / name)
    edit(source / table, line, column, value)
    named = table if "listed" in words or "split '" in words else f"{table}: row {line}"
    named = table if "slices of volume" in words or "half is listed" in words else named
    check_line(lambda: ct_lesions.read_index(source), named, words)


def test_ct_lesions_folders_with_mistakes(lesions_set, tmp_path):
    def prepared_to(place):
        return lambda: run_prepare("ct_lesions", source, tmp_path / place)

    source = tmp_path / "a" / "ct_lesions"
    shutil.copytree(lesions_set[0], source)
    check_line(prepared_to("0"), "there is no halves.csv")
    check_line(lambda: ct_lesions.read_index(tmp_path), "there is no slices.csv")
    shutil.copytree(lesions_set[0].parent / "ct_half", tmp_path / "a" / "ct_half")
    check_line(
        lambda: run_prepare("ct_lesions", source, tmp_path / "1", "--max_side=32"),
        "--max_side=32", "is 64x64 px", "give --max_side=64",
    )  # fmt: skip
    halves = tmp_path / "a" / "ct_half" / "halves.csv"
    edit(halves, 2, "x1", "65")
    check_line(prepared_to("2"), "0010.png: the left box", "leaves the slice of 64x64 px")
    edit(halves, 2, "x1", "14")
    check_line(prepared_to("3"), "lesion pixels in the left box", "halves.csv says")
    shutil.copy(lesions_set[0].parent / "ct_half" / "halves.csv", halves)
    mask = cv2.imread(str(source / "lesions" / "0010.png"), cv2.IMREAD_GRAYSCALE)
    mask[0, 0] = 255
    cv2.imwrite(str(source / "lesions" / "0010.png"), mask)
    check_line(prepared_to("4"), "0010.png", "slices.csv says")
    cv2.imwrite(str(source / "lesions" / "0010.png"), mask[1:])
    check_line(prepared_to("5"), "0010.png", "64x63 px")
    (source / "lungs" / "0012.png").unlink()
    check_line(prepared_to("6"), "row 4", "there is no file")


def test_the_real_counts(cxr_data):
    """Those of the data's own README."""
    counts = {"train": (11, 1034, 1591, 477), "test": (5, 337, 547, 127)}
    index = ct_lesions.read_index(cxr_data / "ct_lesions")
    for split, want in counts.items():
        part = [one for one in index if one.split == split]
        labels = [half.label for one in part for half in one.halves.values()]
        volumes_ = len({one.volume for one in part})
        assert (volumes_, len(part), labels.count(1), labels.count(0)) == want
        assert all(one.lesion_pixels for one in part)
    assert len({one.group for one in index}) == 14


def every_sixth(source, to):
    """The real tables with every sixth slice."""
    tables_ = {"slices.csv": source, "volumes.csv": source, "halves.csv": source.parent / "ct_half"}
    for name, folder in tables_.items():
        with open(folder / name, newline="") as file:
            header, *rows = csv.reader(file)
        if name != "volumes.csv":
            rows = [row for row in rows if int(row[0][:4]) % 6 == 0]
        write_csv(to / name, [header, *rows])
    for name in ("ct", "lesions", "lungs"):
        (to / name).symlink_to(source / name)
    return to


def test_the_real_slices_and_halves(cxr_data, tmp_path):
    source = every_sixth(cxr_data / "ct_lesions", tmp_path / "source")
    run_prepare("ct_lesions", source, tmp_path)
    drawn = {(one.volume, one.position): one.halves for one in ct_lesions.read_index(source)}
    areas, spine = {}, []
    for split in ("train", "test"):
        whole = sources.open_source(ct_config("ct_lesions", tmp_path), split)
        halves = sources.open_source(ct_config("ct_lesions", tmp_path, halves=True), split)
        for index in range(len(whole)):
            record, half = whole[index], halves[2 * index + index % 2]
            side = ("left", "right")[index % 2]
            pixels = drawn[record["volume"], int(record["slice"])][side].lesion_pixels
            area = np.array([half["lesion"].sum() * half["pixel_area"], pixels])
            areas[half["volume"]] = areas.get(half["volume"], 0) + area
            assert half["slice_label"] == (pixels > 0)
            own = (half["lungs"] == 1 + index % 2).sum()
            assert own > 0.8 * (half["lungs"] > 0).sum(), half["id"]
            # 13 of the real slices have up to four lesion pixels outside the lungs.
            assert (record["lesion"] > 0)[record["lungs"] == 0].sum() <= 4
            right, left = (np.nonzero(record["lungs"] == lung)[1].mean() for lung in (1, 2))
            assert right < left
            # Of the middle columns the lower half is the brighter one: the spine.
            middle = record["image"][:, 108:148].astype(float)
            rows = np.flatnonzero(record["lungs"].any(1))
            centre = (rows[0] + rows[-1]) // 2
            spine.append(middle[centre : rows[-1] + 20].mean() > middle[:centre].mean())
    for volume, (area, pixels) in areas.items():
        # Pixels are repeated to the nearest: small lesions gain or lose a few.
        assert area == pytest.approx(pixels, rel=0.05, abs=6), volume
    area, pixels = sum(areas.values())
    assert area == pytest.approx(pixels, rel=0.003)
    assert np.mean(spine) > 0.9


# --- covid19_ct_seg


@pytest.fixture(scope="module")
def covid19_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("covid19")
    source = make_covid19(root / "source")
    run_prepare("covid19_ct_seg", source, root / "data")
    return source, root / "data"


def test_covid19_gives_every_slice(covid19_set):
    _, data_dir = covid19_set
    train = sources.open_source(ct_config("covid19_ct_seg", data_dir), "train")
    test = sources.open_source(ct_config("covid19_ct_seg", data_dir), "test")
    records = check_table(train) + check_table(test)
    tested = {record["group"] for record in records_of(test)}
    assert tested == {"coronacases_002", "radiopaedia_7"}
    patients = {record["group"] for record in records}
    assert len(patients) == len(COVID19_VOLUMES) - 1  # radiopaedia_10 has two
    for record in records:
        i, k = COVID19_VOLUMES.index(record["volume"]), record["slice"]
        values, lungs, lesion = draw_chest(4 + i % 3, 32, i, lesions=(1, 2))
        if record["volume"].startswith("radiopaedia"):
            want = np.clip((values[k] + 1350) // 6, 0, 255)  # as it was published
        else:
            want = volumes.window(values[k], -600, 1500)
        np.testing.assert_array_equal(record["image"], want)
        np.testing.assert_array_equal(record["lungs"], lungs[k])
        np.testing.assert_array_equal(record["lesion"], lesion[k])
        assert record["slice_label"] == (k in (1, 2))
        assert record["pixel_area"] == 1
    assert len(records) == sum(4 + i % 3 for i in range(len(COVID19_VOLUMES)))


def test_covid19_folds_never_divide_a_patient(covid19_set):
    check_folds(
        lambda split, fold: sources.open_source(
            ct_config("covid19_ct_seg", covid19_set[1], fold=fold), split
        )
    )


def test_its_test_patients_are_those_of_ct_lesions(cxr_data):
    with open(cxr_data / "ct_lesions" / "volumes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    # One patient has two names: there the patient, here what stands before the series.
    theirs = {row["patient"] for row in rows if row["split"] == "test"}
    short = {name if name[0] == "c" else "_".join(name.split("_")[:2]) for name in theirs}
    assert short == covid19_ct_seg.TEST_PATIENTS


def test_a_volume_is_read_once_and_shrunk(covid19_set, tmp_path, monkeypatch):
    read, original = [], volumes.read_nifti

    def counted(path, **options):
        read.append(path.parent.name)
        return original(path, **options)

    monkeypatch.setattr(volumes, "read_nifti", counted)
    monkeypatch.setattr(volumes.masks, "read_nifti", counted)
    run_prepare("covid19_ct_seg", covid19_set[0], tmp_path, "--max_side=32")
    count = len(COVID19_VOLUMES)
    assert read.count("COVID-19-CT-Seg_20cases") == read.count("Lung_Mask") == count
    assert read.count("Infection_Mask") == 2 * count  # its labels, then its pixels
    big = tmp_path / "big"
    for folder in ("COVID-19-CT-Seg_20cases", "Lung_Mask", "Infection_Mask"):
        for name in COVID19_VOLUMES[:2]:
            values, lungs, lesion = draw_chest(4, 64, lesions=(1,))
            what = {"C": values, "L": lungs, "I": lesion}[folder[0]]
            write_nifti(big / folder / f"{name}.nii.gz", what)
    run_prepare("covid19_ct_seg", big, tmp_path / "small", "--max_side=32")
    record = sources.open_source(ct_config("covid19_ct_seg", tmp_path / "small"), "train")[1]
    assert record["image"].shape == record["lesion"].shape == (32, 32)
    assert record["pixel_area"] == 4


def test_covid19_folders_with_mistakes(covid19_set, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(covid19_set[0], source)

    def index():
        return covid19_ct_seg.read_index(source)

    def prepared_to(place):
        return lambda: run_prepare("covid19_ct_seg", source, tmp_path / place)

    name = "coronacases_001.nii.gz"
    _, lungs, lesion = draw_chest(4, 32)
    write_nifti(source / "Infection_Mask" / name, lesion[1:])
    check_line(index, f"Infection_Mask/{name}", "3x32x32", "4x32x32")
    write_nifti(source / "Infection_Mask" / name, lesion)
    write_nifti(source / "Lung_Mask" / name, lungs * 2)
    check_line(prepared_to("1"), f"Lung_Mask/{name}", "the value 4", "whole numbers 0..2")
    (source / "Lung_Mask" / name).unlink()
    check_line(index, "there is no mask coronacases_001")
    write_nifti(source / "Lung_Mask" / "coronacases_001.nii", lungs)
    assert len(index()) == len(COVID19_VOLUMES)
    image = source / "COVID-19-CT-Seg_20cases" / name
    other = image.with_name("scan.nii.gz")
    image.rename(other)
    check_line(index, "scan.nii.gz: not a name of the release")
    other.rename(image)
    image.write_bytes(image.read_bytes()[:-200])
    check_line(prepared_to("2"), name, "truncated")
    for file in (source / "COVID-19-CT-Seg_20cases").glob("*.nii.gz"):
        if not file.name.startswith("coronacases_003"):
            file.unlink()
    check_line(index, "no volume of the test split")
    shutil.rmtree(source / "Lung_Mask")
    check_line(index, "there is no folder Lung_Mask/")


# --- ct_volume


@pytest.fixture(scope="module")
def own_set(tmp_path_factory):
    """(table, folder of the prepared set)."""
    root = tmp_path_factory.mktemp("ct_volume")
    table = make_ct_volumes(root / "source")
    run_prepare("ct_volume", table, root / "data")
    return table, root / "data" / "ct_volume" / "volumes" / prepared.VERSION


def test_own_volumes(own_set):
    opened = {s: sources.open_source(ct_config("ct_volume", own_set[1]), s) for s in sources.SPLITS}
    records = {}
    for source in opened.values():
        for record in check_table(source):
            records.setdefault(record["volume"].split("/")[1], []).append(record)
    assert {name: len(rows) for name, rows in records.items()} == dict.fromkeys(CT_ROWS, 6)
    labels = {name: [row["slice_label"] for row in rows] for name, rows in records.items()}
    # Its file runs from head to feet: slices 2, 3 and 5 there are 4, 3 and 1 from the feet.
    np.testing.assert_array_equal(labels["ranged"], [NAN, 1, NAN, 1, 1, NAN])
    # InstanceNumber counts from the head: 2 and 3 are the slices 4 and 3 from the feet.
    np.testing.assert_array_equal(labels["series"], [NAN, NAN, NAN, 1, 1, NAN])
    np.testing.assert_array_equal(labels["clean"], [0] * 6)
    np.testing.assert_array_equal(labels["bare"], [NAN] * 6)
    for name in ("val", "test"):  # from the mask, whatever the table says
        np.testing.assert_array_equal(labels[name], [0, 0, 1, 1, 0, 0])
    for i, name in enumerate(CT_ROWS):
        values, lungs, lesion = draw_chest(seed=i, lesions=() if name == "clean" else (2, 3))
        for k, record in enumerate(records[name]):
            centre, width = (40, 400) if name == "val" else (-600, 1500)
            want = volumes.window(values[k], centre, width).astype(int)
            # A series stores steps of 2 HU.
            np.testing.assert_allclose(record["image"], want, atol=1 if name == "series" else 0)
            assert ("lesion" in record) == (name in ("ranged", "val", "test"))
            assert ("lungs" in record) == (name == "series")
            if "lesion" in record:
                np.testing.assert_array_equal(record["lesion"], lesion[k])
            if "lungs" in record:
                np.testing.assert_array_equal(record["lungs"], lungs[k])
    assert opened["train"].partial == {"lesion", "lungs"}
    drawn = sources.only_with(opened["train"], {"image", "lesion"})
    assert {record["volume"] for record in check_table(drawn)} == {"scans/ranged"}


def test_the_command_says_what_is_unknown_and_where(own_set, tmp_path, capsys):
    run_prepare("ct_volume", own_set[0], tmp_path)
    printed = capsys.readouterr().out
    assert "train: 4 volumes; 5 slices with lesions, 6 without, 13 unknown" in printed
    assert "val: 1 volumes; 2 slices with lesions, 4 without, 0 unknown" in printed
    assert "row 7, volume 'scans/test': no lesion is drawn in slices 1-1; the mask" in printed
    assert "row 5, volume 'scans/bare': label 1 without ranges" in printed
    assert "prepared 24 train, 6 val, 6 test slices in" in printed
    assert "--config=configs/seam.py:quick,method=cam --config.data.name=ct_volume" in printed
    assert "--config.data.path=" in printed


def test_opening_own_volumes_wrongly(own_set, tmp_path):
    def opened(path, split="train"):
        return lambda: sources.open_source(ct_config("ct_volume", path, path=str(path)), split)

    check_line(
        lambda: sources.open_source(ct_config("ct_volume", "", path=""), "train"),
        "data.path is empty",
    )
    check_line(opened(own_set[0]), "is a file; volumes are prepared first", "prepare ct_volume")
    check_line(opened(tmp_path), "is not prepared")
    table = make_ct_volumes(tmp_path / "one", only=("clean",))
    run_prepare("ct_volume", table, tmp_path)
    folder = tmp_path / "ct_volume" / "volumes" / prepared.VERSION
    check_line(opened(folder, "test"), "no split 'test'")
    assert len(opened(folder)()) == 6
    films = make_manifest(tmp_path / "films")
    run_prepare("manifest", films, tmp_path)
    folder = tmp_path / "manifest" / "films" / prepared.VERSION
    check_line(opened(folder), "holds the prepared set 'manifest', not 'ct_volume'")


TABLE_ERRORS = [
    ("ranged", dict(volume="scans/none.nii"), ["row 2, column 'volume'", "there is no"]),
    ("ranged", dict(volume=""), ["row 2, column 'volume'", "must not be empty"]),
    ("ranged", dict(group=""), ["row 2, column 'group'", "must not be empty"]),
    ("ranged", dict(split="dev"), ["row 2, column 'split': 'dev'", "train, val, test"]),
    ("ranged", dict(label="2"), ["row 2, column 'label': '2'", "whole number 0..1"]),
    ("ranged", dict(ranges="2-7"), ["row 2, column 'ranges': '2-7'", "has slices 1..6"]),
    ("ranged", dict(ranges="0-2"), ["'0-2'", "counted from 1"]),
    ("ranged", dict(ranges="3-2"), ["'3-2' is reversed"]),
    ("ranged", dict(ranges="4;2-4"), ["2-4 and 4-4 overlap"]),
    ("ranged", dict(ranges="two"), ["'two' is no range", "e.g. 100-110;140"]),
    ("ranged", dict(ranges="2-3;"), ["'' is no range"]),
    ("ranged", dict(ranges="2.5"), ["'2.5' is no range"]),
    ("ranged", dict(label="0"), ["ranges need label 1", "'0'"]),
    ("ranged", dict(label=""), ["ranges need label 1", "''"]),
    ("ranged", dict(lesions="masks/none.nii"), ["row 2, column 'lesions'", "there is no file"]),
    ("ranged", dict(window_width="0"), ["row 2, column 'window_width'", "give window_center too"]),
    ("val", dict(window_width="0"), ["row 2, column 'window_width': '0'", "1..100000"]),
    ("val", dict(window_center="x"), ["column 'window_center': 'x'"]),
    ("test", dict(label="0", ranges=""), ["row 2, column 'label': '0'", "says 1"]),
]


@pytest.mark.parametrize("name, cells, words", TABLE_ERRORS)
def test_own_tables_with_mistakes(tmp_path, name, cells, words):
    table = make_ct_volumes(tmp_path, only=(name,))
    for column, value in cells.items():
        edit(table, 2, column, value)
    check_line(lambda: ct_volume.read_index(table), "volumes.csv", *words)


def test_more_mistakes_in_own_tables(own_set, tmp_path):
    table = tmp_path / "volumes.csv"
    for name in ("scans", "masks"):
        (tmp_path / name).symlink_to(own_set[0].parent / name)

    def index():
        return ct_volume.read_index(table)

    shutil.copy(own_set[0], table)
    edit(table, 6, "group", "p1")
    check_line(index, "group 'p1' is in both split 'train' and split 'val'")
    shutil.copy(own_set[0], table)
    edit(table, 5, "volume", "scans/ranged.nii.gz")
    check_line(index, "volume 'scans/ranged' is listed twice")
    write_csv(table, [["volume", "group", "split"], ["a", "b", "train"]])
    check_line(index, "column 'label' is missing")
    check_line(lambda: ct_volume.read_index(tmp_path / "none.csv"), "there is no such file")


def volume_table(root, values, **cells):
    """A table of one volume, clean and for training."""
    table = make_ct_volumes(root, only=("clean",))
    write_nifti(root / "scans" / "clean.nii", values)
    for column, value in cells.items():
        edit(table, 2, column, value)
    return table


def test_files_that_the_builder_refuses(tmp_path):
    values, _, lesion = draw_chest()

    def prepared_from(table):
        return lambda: run_prepare("ct_volume", table, tmp_path / "data")

    table = volume_table(tmp_path / "a", values, lesions="m.nii")
    write_nifti(tmp_path / "a" / "m.nii", lesion)
    check_line(prepared_from(table), "m.nii: lesions are drawn in a volume with label 0")
    write_nifti(tmp_path / "a" / "m.nii", lesion[:, 1:])
    check_line(prepared_from(table), "m.nii: the mask is 6x39x40", "its volume 6x40x40")
    write_nifti(tmp_path / "a" / "m.nii", lesion * np.float32(0.5))
    check_line(prepared_from(table), "m.nii: the value 0.5")
    table = volume_table(tmp_path / "b", np.abs(values))
    check_line(prepared_from(table), "clean.nii: values", "not Hounsfield units")
    grey = (values > 0).astype(np.uint8) * 200
    table = volume_table(tmp_path / "c", grey, window_center="127.5", window_width="255")
    run_prepare("ct_volume", table, tmp_path / "grey")
    folder = tmp_path / "grey" / "ct_volume" / "volumes" / prepared.VERSION
    opened = sources.open_source(ct_config("ct_volume", folder), "train")
    np.testing.assert_array_equal(opened[3]["image"], grey[3])
    table = volume_table(tmp_path / "d", values[:1])
    check_line(prepared_from(table), "clean.nii", "one slice is no volume")


def test_series_that_the_builder_refuses(tmp_path):
    values, _, _ = draw_chest()
    table = make_ct_volumes(tmp_path, only=("series",))
    folder = tmp_path / "scans" / "series"

    def index():
        return ct_volume.read_index(table)

    files = sorted(folder.glob("*.dcm"), key=lambda f: readers.read_slice_header(f).position[2])
    saved = files[2].read_bytes()
    files[2].unlink()
    check_line(index, "scans/series: a slice is missing between")
    write_slice(files[2], values[2][1:], 4, 105.0)
    check_line(index, "slices of different size")
    files[2].write_bytes(saved)
    index()
    write_slice(files[2], values[2], 5, 105.0)
    check_line(index, "row 2, column 'ranges'", "no InstanceNumber, or share one")
    for file in files[1:]:
        file.unlink()
    check_line(index, "one slice is no volume")
    write_series(folder / "more", values)
    edit(table, 2, "volume", "scans/series/more")
    index()


def test_ct_sets_are_offered_by_the_command():
    assert {"ct_lesions", "covid19_ct_seg", "ct_volume"} <= set(prepare.PREPARED)
    assert all(callable(prepare.find_builder(name)) for name in prepare.PREPARED)
    with pytest.raises(InputError, match="data set 'ct_leisons'; expected one of bimcv_covid19, "):
        prepare.main(["ct_leisons", "--source=nowhere"])
