"""CT slices with a class: covid_ct, covidx_ct, cncb, cncb_lesions and sarscov2_ct."""

import pathlib
import pickle
import re
import shutil

import cv2
import numpy as np
import pytest
from fake_ct_classes import (
    BOX,
    COVIDX,
    drawn_mask,
    make_cncb,
    make_cncb_lesions,
    make_covid_ct,
    make_covid_table,
    make_covidx,
    make_sarscov2,
)
from fake_sets import draw_film, edit, folded_config, run_prepare
from fake_volumes import ct_config, make_ct_volumes

from cxr_jax.data import readers, records, sources, splits
from cxr_jax.data.records import DIAGNOSES
from cxr_jax.data.sources import cncb, covid_ct, covidx_ct, prepared, sarscov2_ct
from cxr_jax.data.sources.base import SliceSubset
from cxr_jax.data.sources.ct_classes import COVID_OR_NOT
from cxr_jax.errors import InputError

MAKERS = {
    "covid_ct": make_covid_ct,
    "covidx_ct": make_covidx,
    "cncb": make_cncb,
    "cncb_lesions": make_cncb_lesions,
    "sarscov2_ct": make_sarscov2,
}
FOLDED = ("cncb", "cncb_lesions", "sarscov2_ct")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name -> (source folder, data_dir), all prepared."""
    root = tmp_path_factory.mktemp("ct_classes")
    found = {}
    for name, make in MAKERS.items():
        found[name] = make(root / name), root / "data"
        run_prepare(name, found[name][0], root / "data")
    return found


def opened(made, name, split, **options):
    block = sources.block(name, data_dir=str(made[name][1]), **options)
    return sources.open_source(block, split)


def records_of(source):
    return [source[i] for i in range(len(source))]


def check_line(call, *words):
    with pytest.raises(InputError) as error:
        call()
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


# Of all of them.


@pytest.mark.parametrize("name", MAKERS)
def test_its_slices_are_records_with_a_class(made, name):
    for split in ("train", "test"):
        source = opened(made, name, split)
        assert len(source)
        for index, record in enumerate(records_of(source)):
            records.check(record, diagnoses=source.diagnoses)
            assert source.fields - source.partial <= record.keys() <= source.fields
            # No picture is read to choose by class.
            assert source.peek(index, "diagnosis") == record.get("diagnosis")
        again = pickle.loads(pickle.dumps(source))
        assert again[0]["id"] == source[0]["id"]
    assert sources.DATASETS[name].ct


@pytest.mark.parametrize("name", MAKERS)
def test_no_group_is_in_two_splits(made, name):
    folds = {"fold": 1} if name in FOLDED else {}
    groups = {
        split: {record["group"] for record in records_of(opened(made, name, split, **folds))}
        for split in ("train", "val", "test")
    }
    assert all(groups.values())
    splits.check_disjoint(groups, where=name)


@pytest.mark.parametrize("name", FOLDED)
def test_every_fold_validates_once(made, name):
    every = sorted(record["id"] for record in records_of(opened(made, name, "train")))
    seen = []
    for fold in range(4):
        seen += [record["id"] for record in records_of(opened(made, name, "val", fold=fold))]
    assert sorted(seen) == every
    check_line(lambda: opened(made, name, "val"), "no validation split")
    check_line(lambda: opened(made, name, "val", fold=4), "data.fold=4; expected 0..3")


@pytest.mark.parametrize("name", MAKERS)
def test_a_folder_of_something_else_is_named(made, name, tmp_path):
    check_line(
        lambda: run_prepare(name, tmp_path, tmp_path / "data"), str(tmp_path), "--source is the"
    )


def test_they_are_not_joined_with_films(made):
    for name in MAKERS:
        block = sources.block("films", sets=name, data_dir=str(made[name][1]))
        check_line(lambda block=block: sources.open_source(block, "train"), f"{name!r} is of CT")


def test_a_black_slice_is_one_line(made, tmp_path):
    source = tmp_path / "covid_ct"
    shutil.copytree(made["covid_ct"][0], source)
    black = source / "Images-processed" / "CT_NonCOVID" / "10%1.jpg"
    cv2.imwrite(str(black), np.zeros((40, 40), np.uint8))
    check_line(
        lambda: run_prepare("covid_ct", source, tmp_path / "data"), str(black), "every pixel is 0"
    )


def test_other_classes_are_another_set(tmp_path):
    """In a table of the same length, of the same pictures."""
    source = make_covid_table(tmp_path / "source")
    run_prepare("covid_ct", source, tmp_path / "data")
    edit(source / "labels.csv", 2, "label", "1")
    edit(source / "labels.csv", 3, "label", "0")
    check_line(lambda: run_prepare("covid_ct", source, tmp_path / "data"), "from other files")


# covid_ct


def test_the_authors_test_split_is_whole_and_publications_are_not_parted(made):
    parts = {split: records_of(opened(made, "covid_ct", split)) for split in ("train", "test")}
    parts["val"] = records_of(opened(made, "covid_ct", "val"))
    ids = {split: [record["id"] for record in part] for split, part in parts.items()}
    assert ids["test"] == [
        *("NonCOVID/1033.png", "NonCOVID/ncovid3.jpg"),
        *("COVID/2020.02.10.20021584-p6-52%1.png", "COVID/PIIS0140673620303603%8.png"),
    ]
    # 6%0 is of val's paper, 1030 of test's run, 2020.02.10 of test's publication.
    assert ids["train"] == ["NonCOVID/10%1.jpg", "COVID/2020.03.01.20029769-p21-73_1%1.png"]
    assert ids["val"] == [
        "NonCOVID/6%2.jpg",
        "NonCOVID/1200.png",
        "COVID/bmj.m606.full-p4-22%6.png",
    ]
    for part in parts.values():
        for record in part:
            assert COVID_OR_NOT[record["diagnosis"]] == (
                "covid-19" if record["id"].startswith("COVID") else "non-covid"
            )
    assert opened(made, "covid_ct", "test").diagnoses == COVID_OR_NOT
    _, notes, _ = covid_ct.read_index(made["covid_ct"][0])
    assert notes == ["left out of train: 3 of 5 slices, of publications that a later split has too"]


@pytest.mark.parametrize(
    "file, covid, group",
    [
        ("2020.02.11.20022053-p12-67%0.png", True, "doc-2020.02.11.20022053"),
        ("2020.02.26.20027938-p6-80_2%1.png", True, "doc-2020.02.26.20027938"),
        ("bmj.m606.full-p4-22%6.png", True, "doc-bmj.m606.full"),
        ("PIIS0140673620303603%6.png", True, "doc-PIIS0140673620303603"),
        ("kjr-21-e24-p5-29.png", True, "doc-kjr-21-e24"),
        ("10%1.jpg", False, "paper-10"),
        ("10.jpg", False, "paper-10"),
        ("10.png", False, "run-10"),
        ("ncovid18.jpg", False, "paper-ncovid18"),
    ],
)
def test_groups_of_public_names(file, covid, group):
    assert covid_ct.groups_of([file], covid=covid) == {file: group}


def test_numbers_close_to_each_other_are_one_case():
    files = ["103.png", "100.png", "110.png", "112.png", "106.jpg"]
    groups = covid_ct.groups_of(files, covid=False)
    assert [groups[file] for file in files] == [
        *("run-100", "run-100", "run-110", "run-110", "paper-106")
    ]


def test_a_table_gives_splits_and_groups(tmp_path):
    source = make_covid_table(tmp_path / "source")
    run_prepare("covid_ct", source, tmp_path / "data")
    block = sources.block("covid_ct", data_dir=str(tmp_path / "data"))
    for k, split in enumerate(("train", "val", "test")):
        part = records_of(sources.open_source(block, split))
        assert [record["id"] for record in part] == [f"s{i}.jpg" for i in range(4 * k, 4 * k + 4)]
        assert [record["diagnosis"] for record in part] == [0, 1, 0, 1]
        assert [record["group"] for record in part] == [f"{split}-{i}" for i in (0, 0, 1, 1)]
        picture = readers.read_film(source / "images" / f"s{4 * k}.jpg")
        np.testing.assert_array_equal(part[0]["image"], picture)


TABLE_ERRORS = [
    ("image", "none.jpg", "row 3, column 'image'", "there is no file"),
    ("image", "s0.jpg", "'s0.jpg' is listed twice"),
    ("label", "2", "row 3, column 'label'", "expected a whole number 0..1"),
    ("label", "", "must not be empty"),
    ("split", "dev", "expected one of train, val, test"),
    ("group", "", "must not be empty"),
    ("group", "test-0", "group 'test-0' is in both split 'train' and split 'test'"),
]


@pytest.mark.parametrize("change", TABLE_ERRORS, ids=lambda c: f"{c[0]}-{c[1]}")
def test_covid_tables_with_mistakes(tmp_path, change):
    column, value, *words = change
    source = make_covid_table(tmp_path)
    edit(source / "labels.csv", 3, column, value)
    check_line(lambda: covid_ct.read_index(source), "labels.csv", *words)


def test_covid_lists_with_mistakes(made, tmp_path):
    source = tmp_path / "covid_ct"
    shutil.copytree(made["covid_ct"][0], source)
    train = source / "Data-split" / "COVID" / "trainCT_COVID.txt"
    text, read = train.read_text(), lambda: covid_ct.read_index(source)
    train.write_text(text + "none.png\n")
    check_line(read, "trainCT_COVID.txt: line 4: there is no file")
    train.write_text(text + "../CT_NonCOVID/10%1.jpg\n")
    check_line(read, "line 4", "expected a name without folders")
    train.write_text(text + "bmj.m606.full-p4-22%6.png\n")
    check_line(read, "'bmj.m606.full-p4-22%6.png' is listed twice")
    train.write_text("\n")
    check_line(read, "split 'train' has no slice of one of the two classes")
    train.unlink()
    check_line(read, "trainCT_COVID.txt: there is no such file")
    shutil.rmtree(source / "Images-processed" / "CT_NonCOVID")
    check_line(read, "there is no such folder; unpack Images-processed/CT_NonCOVID.zip")


def test_the_real_covid_ct(cxr_data, tmp_path):
    """The counts of the data's own README, and its publications."""
    parts, _, _ = covid_ct.read_index(cxr_data / "covid_ct")
    counts = {"train": (177, 200, 120), "val": (45, 50, 29), "test": (74, 84, 50)}
    for split, part in parts.items():
        labels = [one.diagnosis for one in part]
        groups = len({one.group for one in part})
        assert (labels.count(1), labels.count(0), groups) == counts[split]
    # What names tell of a publication never parts one that was looked at.
    covid = [one for part in parts.values() for one in part if one.diagnosis]
    ours = covid_ct.groups_of([one.id for one in covid], covid=True)
    found: dict[str, set] = {}
    for one in covid:
        found.setdefault(one.group, set()).add(ours[one.id])
    assert len(found) == 53
    assert [group for group, names in found.items() if len(names) > 1] == []
    small = tmp_path / "source"
    (small / "images").mkdir(parents=True)
    lines = (cxr_data / "covid_ct" / "labels.csv").read_text().splitlines()
    kept = [lines[0], *(line for k, line in enumerate(lines[1:]) if not k % 30)]
    (small / "labels.csv").write_text("\n".join(kept) + "\n")
    for line in kept[1:]:
        name = line.split(",")[0]
        shutil.copy(cxr_data / "covid_ct" / "images" / name, small / "images")
    run_prepare("covid_ct", small, tmp_path / "data")
    block = sources.block("covid_ct", data_dir=str(tmp_path / "data"))
    record = sources.open_source(block, "test")[0]
    stored = readers.read_film(small / "images" / record["id"])
    np.testing.assert_array_equal(record["image"], stored)


# covidx_ct


def test_covidx_reads_the_authors_lists(made):
    source, _ = made["covidx_ct"]
    expected = {
        # 202 is whole in test, 0047 in val.
        "train": [row for row in COVIDX["train"] if row[2] not in ("patient202",)][:3]
        + COVIDX["train"][5:],
        "val": COVIDX["val"],
        "test": COVIDX["test"],
    }
    for split, rows in expected.items():
        part = records_of(opened(made, "covidx_ct", split))
        assert [record["id"] for record in part] == [name[:-4] for name, _, _ in rows]
        assert [record["diagnosis"] for record in part] == [label for _, label, _ in rows]
        assert [record["group"] for record in part] == [patient for _, _, patient in rows]
        for record in part:
            x0, y0, x1, y1 = BOX
            whole = readers.read_film(source / "2A_images" / f"{record['id']}.png")
            np.testing.assert_array_equal(record["image"], whole[y0:y1, x0:x1])
    assert opened(made, "covidx_ct", "train").diagnoses == DIAGNOSES
    _, notes = covidx_ct.read_index(source)
    assert notes == [
        "14 patients, by the names of the files",
        "left out of train: 2 of 8 slices, of patients that a later split has too",
    ]


COVIDX_ERRORS = [
    (r"NCP_341_1834_0022\.png 2 4", "NCP_341_1834_0022.png 3 4", "column 'class'", "0..2"),
    (r"NCP_341\w+\.png", "none.png", "row 1, column 'filename'", "there is no file"),
    (r"NCP_341\w+\.png", "../2A_images/x.png", "expected a name without folders"),
    (r"NCP_341\w+\.png", "other_1.png", "not a name of COVIDx CT-2"),
    (r"NCP_341\w+\.png", "CP_590_2952_0010.png", "'CP_590_2952_0010' is listed twice"),
    (r" 4 6 44 38\n", " 4 6 44\n", "line 1 has 5 words; expected filename class xmin"),
    (r" 4 6 44 38\n", " 4 6 4 38\n", "column 'xmax'", "is under 16 px"),
    (r" 4 6 44 38\n", " 4 60 44 38\n", "column 'ymax'", "is under 16 px"),
    (r" 4 6 44 38\n", " -4 6 44 38\n", "column 'xmin'", "expected a whole number"),
]


@pytest.mark.parametrize("change", COVIDX_ERRORS, ids=lambda c: c[1])
def test_covidx_lists_with_mistakes(made, tmp_path, change):
    old, new, *words = change
    folder = tmp_path / "covidx"
    folder.mkdir()
    for path in made["covidx_ct"][0].glob("*.txt"):
        shutil.copy(path, folder)
    shutil.copytree(made["covidx_ct"][0] / "2A_images", folder / "2A_images")
    draw_film(folder / "2A_images" / "other_1.png", 3, (48, 48))
    path = folder / "train_COVIDx_CT-2A.txt"
    path.write_text(re.sub(old, new, path.read_text(), count=1))
    check_line(lambda: covidx_ct.read_index(folder), *words)


def test_a_box_that_leaves_its_slice_is_named(made, tmp_path):
    folder = tmp_path / "covidx"
    shutil.copytree(made["covidx_ct"][0], folder)
    path = folder / "val_COVIDx_CT-2A.txt"
    path.write_text(path.read_text().replace("44 38", "44 49"))
    check_line(
        lambda: run_prepare("covidx_ct", folder, tmp_path / "data"),
        "the box (4, 6, 44, 49) leaves the slice of 48x48 px",
    )


# cncb


def test_cncb_takes_slices_with_lesions_and_all_normal_ones(made):
    source = opened(made, "cncb", "train")
    both = records_of(source) + records_of(opened(made, "cncb", "test"))
    counts = {name: [r["diagnosis"] for r in both].count(k) for k, name in enumerate(DIAGNOSES)}
    # 9 examinations a class; two slices of each have a lesion, and all four of a normal one count.
    assert counts == {"normal": 36, "other infection": 18, "covid-19": 18}
    for record in both:
        label = {0: "Normal", 1: "CP", 2: "NCP"}[record["diagnosis"]]
        assert record["group"].startswith(f"{label}-")
        assert record["volume"].startswith(f"{record['group']}-")
        assert record["id"] == f"{record['volume']}-{record['slice']:04d}"
        assert record["slice_label"] == (label != "Normal")
        assert record["slice"] in ((0, 1, 2, 3) if label == "Normal" else (1, 2))
    table = source.slice_table()
    assert table.position.tolist() == [record["slice"] for record in records_of(source)]
    assert table.label.tolist() == [record["slice_label"] for record in records_of(source)]
    assert len({*table.volume.tolist()}) == len({r["volume"] for r in records_of(source)})
    _, notes = cncb.read_index(made["cncb"][0])
    assert notes[0] == "slices of normal 36, other infection 18, covid-19 18, of 18 patients"
    assert "left out: 2 files or folders not there, e.g." in notes[1]


CNCB_ERRORS = [
    ("unzip_filenames.csv", "label", "COVID", "expected one of Normal, CP, NCP"),
    ("unzip_filenames.csv", "patient_id", "../1", None),
    ("lesions_slices.csv", "imgpath", "NCP/1/0001.png", "expected a path as NCP/341/1834/0022.png"),
    ("lesions_slices.csv", "imgpath", "NCP/../1/0001.png", "expected a path as"),
    ("lesions_slices.csv", "imgpath", "XX/1/2/0001.png", "expected a path as"),
    ("lesions_slices.csv", "imgpath", "NCP/1/101/0002.png", "'NCP-1-101-0002' is listed twice"),
]


@pytest.mark.parametrize("table, column, value, words", CNCB_ERRORS)
def test_cncb_tables_with_mistakes(made, tmp_path, table, column, value, words):
    for name in ("unzip_filenames.csv", "lesions_slices.csv"):
        shutil.copy(made["cncb"][0] / name, tmp_path)
    for name in ("NCP", "CP", "Normal"):
        (tmp_path / name).symlink_to(made["cncb"][0] / name)
    line = 2
    if value == "../1":  # of a normal patient, the last but one row
        line, words = 29, "row 29, column 'patient_id': '../1'; expected a name without folders"
        assert (tmp_path / table).read_text().splitlines()[line - 1].startswith("Normal-9")
    edit(tmp_path / table, line, column, value)
    check_line(lambda: cncb.read_index(tmp_path), str(tmp_path), words)


def test_cncb_folders_with_mistakes(made, tmp_path):
    folder, read = tmp_path / "cncb", lambda: cncb.read_index(tmp_path / "cncb")
    shutil.copytree(made["cncb"][0], folder)
    scan = next((folder / "Normal" / "1").iterdir())
    (scan / "0001.png").rename(scan / "scout.png")
    check_line(read, "scout.png: the name of a slice is its number")
    (scan / "scout.png").unlink()
    shutil.rmtree(folder / "CP")
    check_line(read, "no slice of class 'CP' is there; unpack its archives")
    (folder / "lesions_slices.csv").unlink()
    check_line(read, "there is no lesions_slices.csv")


# cncb_lesions


def test_cncb_lesions_have_kinds(made):
    source = opened(made, "cncb_lesions", "train")
    both = records_of(source) + records_of(opened(made, "cncb_lesions", "test"))
    assert len(both) == 21
    for record in both:
        k = int(record["id"].split("-")[1])
        _, mask = drawn_mask(k)
        np.testing.assert_array_equal(record["lesion_type"], np.where(mask > 1, mask - 1, 0))
        np.testing.assert_array_equal(record["lesion"], mask > 1)
        np.testing.assert_array_equal(record["lungs"] > 0, mask > 0)
        assert set(np.unique(record["lungs"])) == {0, 1, 2}
        assert record.get("diagnosis") == (2 if k else None)
    known = sources.only_with(source, {"diagnosis"})
    assert len(known) == len(source) * 2 // 3
    # The folder above is found too.
    folder = made["cncb_lesions"][0]
    assert cncb.read_drawn(folder)[0] == cncb.read_drawn(folder / "ct_lesion_seg")[0]
    assert cncb.read_drawn(folder)[1] == [
        "21 slices of 7 patients: 7 without a lesion, 7 with ground glass alone, 7 with "
        "consolidation"
    ]


def test_cncb_masks_with_mistakes(made, tmp_path):
    folder, read = tmp_path / "drawn", lambda: cncb.read_drawn(tmp_path / "drawn")
    shutil.copytree(made["cncb_lesions"][0] / "ct_lesion_seg", folder)
    path = folder / "mask" / "1" / "0.png"
    _, mask = drawn_mask(0)
    cv2.imwrite(str(path), mask * 4)
    check_line(read, str(path), "it holds the value 4; its labels are 0..3")
    path.write_bytes((folder / "image" / "1" / "0.jpg").read_bytes())
    check_line(read, str(path), "not a PNG")
    cv2.imwrite(str(path), mask[:-1])
    check_line(
        lambda: run_prepare("cncb_lesions", folder, tmp_path / "data"), str(path), "48x47 px"
    )
    (folder / "image" / "1" / "0.jpg").unlink()
    check_line(read, str(path), "there is no slice of it")
    for patient in "34567":
        shutil.rmtree(folder / "mask" / patient)
    (folder / "mask" / "1" / "0.png").unlink()
    check_line(read, "masks of 2 patients", "5 folds need at least 5")


# sarscov2_ct


def test_runs_of_numbers_stand_for_patients(made):
    both = [*records_of(opened(made, "sarscov2_ct", "train"))]
    both += records_of(opened(made, "sarscov2_ct", "test"))
    assert len(both) == 2 * (140 - 140 // 17)
    for record in both:
        folder, number = record["id"].rsplit("-", 1)
        assert record["diagnosis"] == (folder == "COVID")
        assert record["group"] == f"{folder}-run{int(number) // sarscov2_ct.RUN}"
        assert record["image"].shape == (20 + int(number) % 5, 24)


def test_sarscov2_folders_with_mistakes(made, tmp_path):
    folder, read = tmp_path / "s", lambda: sarscov2_ct.read_index(tmp_path / "s")
    shutil.copytree(made["sarscov2_ct"][0], folder)
    shutil.copy(folder / "COVID" / "Covid (3).png", folder / "COVID" / "covid (3).jpg")
    check_line(read, "covid (3).jpg", "number 3 comes twice")
    (folder / "COVID" / "covid (3).jpg").rename(folder / "COVID" / "Covid 3.png")
    check_line(read, "Covid 3.png: not a name of the set; expected 'Covid (1).png'")
    (folder / "COVID" / "Covid 3.png").unlink()
    for path in pathlib.Path(folder / "COVID").glob("*1).png"):
        path.unlink()
    check_line(read, "COVID: ", "need more than 125")


# What published splits part


def test_a_group_stays_whole_in_the_last_split_that_has_it():
    kept = splits.kept_apart({"train": list("aabbc"), "val": list("bd"), "test": list("ce")})
    assert kept == {"train": [0, 1], "val": [0, 1], "test": [0, 1]}
    assert splits.kept_apart({"train": ["a"], "test": ["a"]}) == {"train": [], "test": [0]}


# Whether a lesion is in a slice, as a class


def test_slices_of_volumes_have_their_label_as_class(tmp_path):
    run_prepare("ct_volume", make_ct_volumes(tmp_path), tmp_path)
    folder = tmp_path / "ct_volume" / "volumes" / prepared.VERSION
    train = sources.open_source(ct_config("ct_volume", folder), "train")
    classed = pickle.loads(pickle.dumps(sources.by_lesion(train, ("clear", "sick"))))
    table = train.slice_table()
    known = np.flatnonzero(~np.isnan(table.label))
    assert {*table.label[known]} == {0, 1}
    assert 0 < len(known) < len(train)
    assert (len(classed), classed.diagnoses) == (len(known), ("clear", "sick"))
    assert classed.version != train.version
    assert classed.fields == train.fields | {"diagnosis"}
    np.testing.assert_array_equal(classed.slice_table().label, table.label[known])
    for index, number in enumerate(known.tolist()):
        record = classed[index]
        records.check(record, diagnoses=classed.diagnoses)
        assert record["id"] == train[number]["id"] == classed.peek(index, "id")
        assert record["diagnosis"] == table.label[number] == classed.peek(index, "diagnosis")
        assert classed.has(index, "diagnosis")
    assert classed.notes[-1] == (
        f"left out: {len(train) - len(known)} of {len(train)} slices, of unknown label"
    )
    sick = sources.by_classes(classed, ("sick",))
    assert {sick[i]["slice_label"] for i in range(len(sick))} == {1}
    unknown = SliceSubset(
        train, np.flatnonzero(np.isnan(table.label)).tolist(), partial=train.partial
    )
    check_line(lambda: sources.by_lesion(unknown, ("a", "b")), "no slice of which it is known")


def test_a_set_with_classes_keeps_them_and_one_of_films_has_none(made):
    source = opened(made, "cncb", "train")
    assert sources.by_lesion(source, ("a", "b")) is source
    films = sources.open_source(sources.block("phantom_cxr", train=2), "train")
    films.fields = films.fields - {"diagnosis"}
    check_line(lambda: sources.by_lesion(films, ("a", "b")), "neither diagnoses nor CT slices")


def test_a_prepared_set_says_its_classes(made):
    assert isinstance(opened(made, "cncb", "test"), prepared.PreparedSlices)
    assert sources.names_of(opened(made, "sarscov2_ct", "test"), "diagnoses") == COVID_OR_NOT
    block = folded_config("sarscov2_ct", made["sarscov2_ct"][1], 2)
    assert len(sources.open_source(block, "val"))
