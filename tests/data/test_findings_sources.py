"""Films with findings: chexpert, nih_cxr14, cxr_3class; every policy, split, box and bad table."""

import json
import pickle
import shutil

import cv2
import numpy as np
import pytest
from fake_sets import (
    CHEXPERT_FILES,
    CHEXPERT_LABELS,
    brixia_config,
    draw_film,
    edit,
    findings_config,
    make_3class,
    make_chexpert,
    make_nih,
    make_prepared,
    run_prepare,
    write_csv,
)

from cxr_jax.data import sources, splits
from cxr_jax.data.records import FINDINGS
from cxr_jax.data.sources import chexpert, cxr_3class, nih_cxr14, prepared, tables
from cxr_jax.errors import InputError

NAN = float("nan")


def records_of(source):
    return [source[i] for i in range(len(source))]


def groups_of(source):
    return {record["group"] for record in records_of(source)}


def check_one_line(error, *words):
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def chexpert_set(tmp_path_factory):
    """(source folder, data_dir), prepared."""
    root = tmp_path_factory.mktemp("chexpert")
    source = make_chexpert(root / "source")
    run_prepare("chexpert", source, root / "data")
    return source, root / "data"


@pytest.fixture(scope="module")
def nih_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("nih")
    source = make_nih(root / "source")
    run_prepare("nih_cxr14", source, root / "data", "--max_side=128")
    return source, root / "data"


@pytest.fixture(scope="module")
def three_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("three")
    source = make_3class(root / "source")
    run_prepare("cxr_3class", source, root / "data", "--max_side=80")
    return source, root / "data"


# --- chexpert


def test_chexpert_gives_standard_records(chexpert_set):
    source, data_dir = chexpert_set
    train = sources.open_source(findings_config("chexpert", data_dir), "train")
    test = sources.open_source(findings_config("chexpert", data_dir), "test")
    frontal = [file for file in CHEXPERT_FILES["train.csv"] if "frontal" in file]
    assert [record["id"] for record in records_of(train)] == [f[:-4] for f in frontal]
    assert [record["view"] for record in records_of(train)][:5] == ["AP", "PA", "AP", "", "PA"]
    assert (len(train), len(test)) == (13, 2)
    assert train.fields == chexpert.FIELDS
    assert groups_of(test) == {"patient64541", "patient64542"}
    first = train[0]
    assert first["group"] == "patient00001"
    assert first["findings"].dtype == np.float32
    picture = cv2.imread(str(source / frontal[0]), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(first["image"], picture)
    # Real labels of the official development set: nothing blank, nothing uncertain.
    np.testing.assert_array_equal(test[0]["findings"], [0] * 9 + [1])


# The second row of the real train.csv, as FINDINGS orders it: no finding blank, cardiomegaly
# uncertain, opacity 1, edema and consolidation uncertain, pneumonia blank, atelectasis uncertain,
# pneumothorax blank, effusion uncertain, devices blank.
POLICIES = [
    ("zeros", "zero", [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]),
    ("ones", "zero", [0, 1, 1, 1, 1, 0, 1, 0, 1, 0]),
    ("ignore", "zero", [0, NAN, 1, NAN, NAN, 0, NAN, 0, NAN, 0]),
    ("per_finding", "zero", [0, 0, 1, 1, 0, 0, 1, 0, 0, 0]),
    ("zeros", "ignore", [NAN, 0, 1, 0, 0, NAN, 0, NAN, 0, NAN]),
    ("per_finding", "ignore", [NAN, 0, 1, 1, 0, NAN, 1, NAN, 0, NAN]),
    ("ignore", "ignore", [NAN, NAN, 1, NAN, NAN, NAN, NAN, NAN, NAN, NAN]),
]


@pytest.mark.parametrize("uncertain, blank, want", POLICIES)
def test_policies_are_applied_when_the_set_is_opened(chexpert_set, uncertain, blank, want):
    config = findings_config("chexpert", chexpert_set[1], uncertain=uncertain, blank=blank)
    train = sources.open_source(config, "train")
    np.testing.assert_array_equal(train[1]["findings"], want)
    again = pickle.loads(pickle.dumps(train))
    np.testing.assert_array_equal(again[1]["findings"], want)


def test_other_policies_are_other_data(chexpert_set):
    versions = set()
    for uncertain, blank, _ in POLICIES:
        config = findings_config("chexpert", chexpert_set[1], uncertain=uncertain, blank=blank)
        versions.add(sources.open_source(config, "train").version)
    assert len(versions) == len(POLICIES)


def test_a_film_without_a_known_finding_is_left_out_where_findings_are_needed(chexpert_set):
    """The third row mentions only findings that are not among the ten."""
    config = findings_config("chexpert", chexpert_set[1], blank="ignore")
    train = sources.open_source(config, "train")
    assert "findings" in train.partial
    assert np.isnan(train[2]["findings"]).all()
    known = sources.only_with(train, {"image", "findings"})
    assert train[2]["id"] not in [record["id"] for record in records_of(known)]
    assert len(known) == 12
    # A blank is a label with 'zero': every film has one.
    train = sources.open_source(findings_config("chexpert", chexpert_set[1]), "train")
    assert sources.only_with(train, {"findings"}) is train


def test_a_film_with_uncertain_findings_alone(tmp_path):
    """With 'ignore' for both, what is only uncertain is as good as not mentioned."""
    source = make_chexpert(tmp_path / "source")
    edit(source / "train.csv", 3, "Lung Opacity", "-1.0")
    run_prepare("chexpert", source, tmp_path / "data")
    for uncertain, count in (("ignore", 11), ("zeros", 12)):
        config = findings_config("chexpert", tmp_path / "data", uncertain=uncertain, blank="ignore")
        train = sources.open_source(config, "train")
        assert len(sources.only_with(train, {"findings"})) == count


def test_chexpert_folds_part_the_training_patients(chexpert_set):
    seen = []
    for fold in range(prepared.FOLDS):
        config = findings_config("chexpert", chexpert_set[1], fold=fold)
        train, val = (sources.open_source(config, split) for split in ("train", "val"))
        assert not groups_of(train) & groups_of(val)
        assert len(train) + len(val) == 13
        assert len(sources.open_source(config, "test")) == 2
        seen += [record["id"] for record in records_of(val)]
    assert len(set(seen)) == len(seen) == 13
    with pytest.raises(InputError, match=r"no validation split with data\.fold=-1"):
        sources.open_source(findings_config("chexpert", chexpert_set[1]), "val")


@pytest.mark.parametrize("field, value", [("uncertain", "twos"), ("blank", "nan")])
def test_unknown_policies_are_refused(chexpert_set, field, value):
    config = findings_config("chexpert", chexpert_set[1], **{field: value})
    with pytest.raises(
        InputError, match=rf"data\.{field}='{value}'; expected one of zero"
    ) as error:
        sources.open_source(config, "train")
    check_one_line(error)


def test_lateral_films_and_unknown_columns_are_said(tmp_path, capsys):
    source = make_chexpert(tmp_path / "source")
    edit(source / "train.csv", 1, "Age", "Scanner")
    run_prepare("chexpert", source, tmp_path / "data")
    said = capsys.readouterr().out
    # Uncertain: row 2 and the ten patients with -1.0 for edema.
    assert (
        "train.csv: 1 lateral films left out; of 13 frontal ones 12 mention a finding, 11 an "
        "uncertain one" in said
    )
    assert "valid.csv: 1 lateral films left out; of 2 frontal ones 2 mention a finding" in said
    assert "columns that are not known and not used: scanner" in said


def test_the_folder_above_the_set_will_do(tmp_path):
    make_chexpert(tmp_path / "CheXpert-v1.0-small")
    assert len(chexpert.read_index(tmp_path).films["train"]) == 13


FRONTAL = "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"
BAD_CHEXPERT = [
    (("Edema", "2.0"), r"row 4, column 'edema': '2\.0'; expected a whole number -1\.\.1"),
    (("Edema", "x"), r"column 'edema': 'x'; expected"),
    (("Edema", "nan"), r"column 'edema': 'nan'; expected"),
    (("Edema", "0.5"), r"column 'edema': '0\.5'; expected"),
    (("Frontal/Lateral", "Oblique"), r"column 'frontal/lateral': 'Oblique'; expected one of Front"),
    (("Frontal/Lateral", ""), r"column 'frontal/lateral': ''; expected one of Frontal, Lateral"),
    (("AP/PA", "LAT"), r"column 'ap/pa': 'LAT'; expected one of AP, PA"),
    (("Path", FRONTAL), r"film 'train/patient00001/study1/view1_frontal' is listed twice"),
    (("Path", FRONTAL.replace("view1", "view9")), r"column 'path': .* there is no file .*view9_"),
    (("Path", "train/patient00001/study1/view1_frontal.jpg"), r"'path': 'train/.*; expected CheX"),
    (("Path", FRONTAL.replace("train", "valid")), r"expected CheXpert-v1\.0-small/train/patientN"),
    (("Path", FRONTAL.replace("study1", "../study1")), r"column 'path'.*expected CheXpert"),
]


@pytest.mark.parametrize("change, words", BAD_CHEXPERT, ids=lambda x: str(x)[:24])
def test_bad_chexpert_tables(tmp_path, change, words):
    table = make_chexpert(tmp_path) / "train.csv"
    edit(table, 4, *change)
    with pytest.raises(InputError, match=words) as error:
        chexpert.read_index(tmp_path)
    check_one_line(error, str(table))


@pytest.mark.parametrize(
    "table, column", [("train.csv", "Edema"), ("valid.csv", "Path"), ("train.csv", "AP/PA")]
)
def test_a_missing_chexpert_column_is_named(tmp_path, table, column):
    make_chexpert(tmp_path)
    edit(tmp_path / table, 1, column, f"{column}s")  # misspelt: the right one is missing
    with pytest.raises(InputError, match=f"column '{column.lower()}' is missing; found") as error:
        chexpert.read_index(tmp_path)
    check_one_line(error, table)


def test_a_chexpert_patient_in_both_tables(tmp_path):
    make_chexpert(tmp_path)
    file = "valid/patient00001/study1/view1_frontal.jpg"
    draw_film(tmp_path / file, 0)
    edit(tmp_path / "valid.csv", 2, "Path", f"CheXpert-v1.0-small/{file}")
    with pytest.raises(InputError, match=r"group 'patient00001' is in both split 'train\.csv' "):
        chexpert.read_index(tmp_path)


def test_missing_chexpert_tables_and_films(tmp_path):
    with pytest.raises(InputError, match=r"there is no train\.csv in it; --source is the folder"):
        chexpert.read_index(tmp_path)
    make_chexpert(tmp_path)
    for line in (2, 3):
        edit(tmp_path / "valid.csv", line, "Frontal/Lateral", "Lateral")
    with pytest.raises(InputError, match=r"valid\.csv: every row is a lateral film"):
        chexpert.read_index(tmp_path)
    (tmp_path / "valid.csv").unlink()
    with pytest.raises(InputError, match=r"valid\.csv: there is no such file"):
        chexpert.read_index(tmp_path)


def test_real_chexpert_rows(cxr_data, tmp_path, monkeypatch):
    """2,000 rows of the real table; the films, which we have not, are taken as present."""
    table = cxr_data / "samples" / "metadata" / "chexpert_train.csv"
    source = make_chexpert(tmp_path)
    shutil.copy(table, source / "train.csv")
    monkeypatch.setattr(type(source), "is_file", lambda path: True)
    index = chexpert.read_index(source)
    assert (len(index.films["train"]), index.lateral["train"]) == (1577, 423)
    assert index.ignored == ()
    by_id = {film.id: film for film in index.films["train"]}
    for file, labels in CHEXPERT_LABELS.items():
        if file.startswith("train/patient00001") or "study2" in file:
            named = dict(zip(chexpert_header(table), ["", "", "", "", "", *labels.split(",")]))
            want = [float(named[finding] or "nan") for finding in FINDINGS]
            np.testing.assert_array_equal(by_id[file[:-4]].labels, want)


def chexpert_header(table):
    return table.read_text().splitlines()[0].casefold().split(",")


# --- nih_cxr14


def label_row(tmp_path, text):
    return tables.Row(tmp_path / "t.csv", 2, {"finding labels": text})


@pytest.mark.parametrize(
    "text, positive, opacity",
    [
        ("No Finding", {"no finding"}, 0),
        ("Cardiomegaly|Emphysema", {"cardiomegaly"}, 0),
        ("Infiltration", {"lung opacity"}, 1),
        ("Edema|Effusion|Pneumonia", {"edema", "pleural effusion", "pneumonia"}, 1),
        ("Consolidation", {"consolidation"}, 1),
        ("Atelectasis|Nodule", {"atelectasis"}, 1),
        ("Pneumothorax|Pleural_Thickening", {"pneumothorax"}, 0),
        ("Mass|Nodule", set(), NAN),
        ("Mass|Infiltration", set(), 1),
        ("Hernia|Fibrosis", set(), 0),
    ],
)
def test_nih_findings_become_ours(tmp_path, text, positive, opacity):
    labels = dict(zip(FINDINGS, nih_cxr14.findings_of(label_row(tmp_path, text), "finding labels")))
    np.testing.assert_array_equal(labels.pop("lung opacity"), opacity)
    assert np.isnan(labels.pop("support devices"))
    assert {name for name, value in labels.items() if value == 1} == positive - {"lung opacity"}
    assert set(labels.values()) <= {0, 1}


def test_nih_records_and_boxes(nih_set):
    data_dir = nih_set[1]
    train = sources.open_source(findings_config("nih_cxr14", data_dir), "train")
    by_id = {record["id"]: record for record in records_of(train)}
    assert train.fields == nih_cxr14.FIELDS
    assert train.partial == {"boxes", "box_label", "diagnosis"}
    assert (by_id["00000001_001"]["group"], by_id["00000001_001"]["view"]) == ("nih-00000001", "AP")
    boxed = by_id["00000002_000"]
    assert boxed["image"].shape == (128, 128)
    # Boxes x, y, w, h of a film of 1024; the file here has 256 pixels, 128 are stored.
    np.testing.assert_allclose(
        boxed["boxes"], np.array([[256, 512, 384, 576.5], [0, 100, 1024, 1024]]) / 8, rtol=1e-6
    )
    assert boxed["boxes"].dtype == np.float32
    assert [FINDINGS[i] for i in boxed["box_label"]] == ["pneumonia", "pleural effusion"]
    assert FINDINGS[by_id["00000002_001"]["box_label"][0]] == "lung opacity"  # Infiltrate
    assert "boxes" not in by_id["00000003_001"]  # a mass alone
    boxed = sources.only_with(train, {"boxes"})
    assert [boxed[i]["id"] for i in range(len(boxed))] == ["00000002_000", "00000002_001"]
    assert sources.only_with(train, {"findings"}) is train


def test_a_box_stays_on_what_it_marks(tmp_path):
    source = make_nih(tmp_path / "source")
    film = np.full((1024, 1024), 40, np.uint8)
    film[512:576, 256:384] = 220
    cv2.imwrite(str(source / "images_001" / "images" / "00000002_000.png"), film)
    run_prepare("nih_cxr14", source, tmp_path / "data", "--max_side=160")
    train = sources.open_source(findings_config("nih_cxr14", tmp_path / "data"), "train")
    record = next(r for r in records_of(train) if r["id"] == "00000002_000")
    rows, columns = np.nonzero(record["image"] > 130)
    corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    # The edge lies between two stored pixels, so the patch is right to one of them.
    np.testing.assert_allclose(record["boxes"][0], corners, atol=1)


def test_official_and_patient_splits(nih_set):
    official = findings_config("nih_cxr14", nih_set[1])
    by_list = {name: groups_of(sources.open_source(official, name)) for name in ("train", "test")}
    assert by_list["test"] == {f"nih-{k:08}" for k in range(9, 13)}
    assert by_list["train"] == {f"nih-{k:08}" for k in range(1, 9)}
    for split_by, folds in (("official", 5), ("patient", 4)):
        tests, seen = set(), []
        for fold in range(folds):
            config = findings_config("nih_cxr14", nih_set[1], fold=fold, split_by=split_by)
            opened = {split: sources.open_source(config, split) for split in sources.SPLITS}
            groups = {split: groups_of(source) for split, source in opened.items()}
            splits.check_disjoint(groups, where="here")
            assert sum(len(source) for source in opened.values()) == 24
            tests.add(frozenset(groups["test"]))
            seen += sorted(groups["val"])
        assert len(tests) == 1  # the test split is the same whatever the fold
        assert len(set(seen)) == len(seen)
        assert set(seen) | next(iter(tests)) == by_list["train"] | by_list["test"]
    # The last loop was by patient: another test split than the lists'.
    assert tests != {frozenset(by_list["test"])}
    both = findings_config("nih_cxr14", nih_set[1], split_by="patient")
    ids = [
        r["id"] for split in ("train", "test") for r in records_of(sources.open_source(both, split))
    ]
    assert len(set(ids)) == 24


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"split_by": "film"}, r"data\.split_by='film'; expected one of official, patient"),
        ({"split_by": "patient", "fold": 4}, r"data\.fold=4; expected 0\.\.3"),
        ({"fold": 5}, r"data\.fold=5; expected 0\.\.4"),
    ],
)
def test_wrong_nih_splits_are_refused(nih_set, fields, words):
    with pytest.raises(InputError, match=words):
        sources.open_source(findings_config("nih_cxr14", nih_set[1], **fields), "train")


def test_nih_notes(tmp_path):
    _, notes = nih_cxr14.read_index(make_nih(tmp_path))
    assert notes == [
        "every film has known findings",
        "3 boxes on 2 films; 1 of masses and nodules left out; 1 of films that are not in "
        "Data_Entry_2017_v2020.csv left out",
        "4 films are of diagnosis normal, the others have none",
    ]


BAD_NIH = [
    (("Finding Labels", "Oedema"), r"row 4, column 'finding labels': 'Oedema'; 'Oedema' is no NIH"),
    (("Finding Labels", ""), r"column 'finding labels': ''; this column must not be empty"),
    (("Finding Labels", "No Finding|Edema"), r"'No Finding' cannot stand beside another finding"),
    (("Image Index", "00000099_000.png"), r"'00000099_000\.png'; there is no such film in images"),
    (("Image Index", "00000001_000.png"), r"film '00000001_000' is listed twice"),
    (("Patient ID", "12"), r"group 'nih-00000012' is in both split 'train_val_list\.txt' and"),
    (("Patient ID", "F7"), r"column 'patient id': 'F7'; expected a whole number"),
    (("Patient ID", ""), r"column 'patient id': ''; this column must not be empty"),
    (("View Position", "LL"), r"column 'view position': 'LL'; expected one of PA, AP"),
]


@pytest.mark.parametrize("change, words", BAD_NIH, ids=lambda x: str(x)[:24])
def test_bad_nih_tables(tmp_path, change, words):
    table = make_nih(tmp_path) / "Data_Entry_2017_v2020.csv"
    edit(table, 4, *change)
    with pytest.raises(InputError, match=words) as error:
        nih_cxr14.read_index(tmp_path)
    check_one_line(error, str(table))


@pytest.mark.parametrize(
    "line, words",
    [
        ("00000001_000.png,Pneumonia,1,2,3", "row 7 has 5 cells; expected image index, finding"),
        ("00000001_000.png,Pneumonia,1,2,3,4,5", "row 7 has 7 cells"),
        (
            "00000001_000.png,Flu,1,2,3,4",
            "column 'finding label': 'Flu'; no finding that has boxes",
        ),
        ("00000001_000.png,No Finding,1,2,3,4", "'No Finding'; no finding that has boxes"),
        ("00000001_000.png,Pneumonia,1,2,nan,4", "column 'w': 'nan'; expected a number 0..1024"),
        ("00000001_000.png,Pneumonia,1,-2,3,4", "column 'y': '-2'; expected a number 0..1024"),
        ("00000001_000.png,Pneumonia,1,2,0,4", "column 'w': '0'; a box must have a width"),
        ("00000001_000.png,Pneumonia,1,2,3,0", "column 'h': '0'; a box must have a width"),
        ("00000001_000.png,Mass,1000,2,30,4", "the box ends at 1030, outside the film of 1024 px"),
    ],
)
def test_bad_nih_boxes(tmp_path, line, words):
    table = make_nih(tmp_path) / "BBox_List_2017.csv"
    table.write_text(table.read_text() + line + "\n")
    with pytest.raises(InputError) as error:
        nih_cxr14.read_index(tmp_path)
    check_one_line(error, str(table), words)


@pytest.mark.parametrize("file", ["BBox_List_2017.csv", "train_val_list.txt", "test_list.txt"])
def test_a_missing_nih_file_is_named(tmp_path, file):
    (make_nih(tmp_path) / file).unlink()
    with pytest.raises(InputError, match=f"{file}: there is no such file"):
        nih_cxr14.read_index(tmp_path)


def test_bad_nih_folders(tmp_path):
    with pytest.raises(InputError, match=r"found none of Data_Entry_2017_v2020\.csv, Data_Entry"):
        nih_cxr14.read_index(tmp_path)
    make_nih(tmp_path)
    boxes = tmp_path / "BBox_List_2017.csv"
    boxes.write_text(boxes.read_text().replace("Image Index", "image"))
    with pytest.raises(
        InputError, match=r"the first line is 'image,.*expected 'Image Index,Findin"
    ):
        nih_cxr14.read_index(tmp_path)
    make_nih(tmp_path)
    both = (tmp_path / "test_list.txt").read_text() + "00000001_000.png\n"
    (tmp_path / "test_list.txt").write_text(both)
    with pytest.raises(
        InputError, match=r"film '00000001_000\.png' is in both train_val_list\.txt"
    ):
        nih_cxr14.read_index(tmp_path)
    make_nih(tmp_path)
    lines = (tmp_path / "train_val_list.txt").read_text().split("\n", 1)
    (tmp_path / "train_val_list.txt").write_text(lines[1])
    with pytest.raises(InputError, match=r"the film is in neither of train_val_list\.txt, test_"):
        nih_cxr14.read_index(tmp_path)
    make_nih(tmp_path)
    for folder in ("images_001", "images_002"):
        shutil.rmtree(tmp_path / folder)
    with pytest.raises(InputError, match=r"there is no film in images/ or images_\*/images/"):
        nih_cxr14.read_index(tmp_path)


def test_real_nih_tables(cxr_data, tmp_path):
    """Rows of the real tables with their two real films; the box of one is in cxr_3class too."""
    samples = cxr_data / "samples"
    table = (samples / "metadata" / "Data_Entry_2017_v2020.csv").read_text().splitlines()
    names = ("00000001_000.png", "00000506_013.png")
    rows = [line for line in table[1:] if line.startswith(names)]
    (tmp_path / "images").mkdir()
    (tmp_path / "Data_Entry_2017.csv").write_text("\n".join([table[0], *rows]))
    for name, file in zip(names, ("test_list.txt", "train_val_list.txt")):
        shutil.copy(samples / name, tmp_path / "images" / name)
        (tmp_path / file).write_text(name)
    shutil.copy(samples / "metadata" / "BBox_List_2017.csv", tmp_path)
    films, notes = nih_cxr14.read_index(tmp_path)
    assert [film.group for film in films] == ["nih-00000001", "nih-00000506"]
    # 984 boxes are known: 85 masses and 79 nodules, one of ours, the others of films elsewhere.
    assert "1 boxes on 1 films; 164 of masses and nodules left out; 819 of films that" in notes[1]
    run_prepare("nih_cxr14", tmp_path, tmp_path / "data")
    config = findings_config("nih_cxr14", tmp_path / "data")
    record = sources.open_source(config, "train")[0]
    assert record["image"].shape == (512, 512)
    _, boxes = tables.read_table(cxr_data / "cxr_3class" / "boxes.csv", ["image"])
    same = next(row for row in boxes if row["image"] == "00000506_013.jpg")
    x, y, w, h = (float(same[key]) for key in "xywh")
    # That table was rounded to hundredths of a pixel.
    np.testing.assert_allclose(record["boxes"], [[x, y, x + w, y + h]], atol=0.011)
    found = [name for name, value in zip(FINDINGS, record["findings"]) if value == 1]
    assert found == ["lung opacity", "edema", "pneumonia", "pleural effusion"]
    assert len(records_of(sources.open_source(config, "test"))) == 1


def test_every_row_of_the_real_nih_table_is_understood(cxr_data):
    table = cxr_data / "samples" / "metadata" / "Data_Entry_2017_v2020.csv"
    _, rows = tables.scan_table(table, ("Finding Labels",))
    labels = np.array([nih_cxr14.findings_of(row, "finding labels") for row in rows])
    assert labels.shape == (2000, 10)
    assert np.isnan(labels[:, FINDINGS.index("support devices")]).all()
    assert not np.isnan(np.delete(labels, [2, 9], axis=1)).any()
    # No film is without a finding and has one.
    assert not (labels[labels[:, 0] == 1] == 1)[:, 1:].any()


# --- cxr_3class


def test_three_classes(three_set):
    config = findings_config("cxr_3class", three_set[1])
    train, test = (sources.open_source(config, split) for split in ("train", "test"))
    assert (len(train), len(test)) == (15, 5)
    assert train.fields == cxr_3class.FIELDS
    assert train.partial == {"boxes", "box_label", "findings"}
    by_id = {record["id"]: record for record in records_of(train)}
    normal, pneumonia, covid = (by_id[i] for i in ("00000000_000", "00000001_000", "covid 0"))
    assert [r["diagnosis"] for r in (normal, pneumonia, covid)] == [0, 1, 2]
    np.testing.assert_array_equal(normal["findings"], [1] + [0] * 8 + [NAN])
    np.testing.assert_array_equal(pneumonia["findings"], [0, 0, 1, 0, 0, 1, 0, 0, 1, NAN])
    assert np.isnan(covid["findings"]).all()
    # 120x90 reduced to a longest side of 80; its second box is a mass.
    assert pneumonia["image"].shape == (60, 80)
    np.testing.assert_allclose(pneumonia["boxes"], [[20, 10, 60, 50]], rtol=1e-6)
    np.testing.assert_allclose(by_id["00000003_000"]["boxes"], [[1, 2, 4.5, 6]], rtol=1e-6)
    assert FINDINGS[by_id["00000003_000"]["box_label"][0]] == "lung opacity"
    assert "boxes" not in normal
    known = sources.only_with(train, {"findings"})
    assert len(known) == 12
    assert not {r["diagnosis"] for r in records_of(known)} & {2}
    assert "findings" not in known.partial


def test_three_class_folds(three_set):
    test = {frozenset(groups_of(open_3class(three_set, "test", fold=k))) for k in (-1, 0, 3)}
    assert len(test) == 1
    seen = []
    for fold in range(4):
        train, val = (open_3class(three_set, split, fold=fold) for split in ("train", "val"))
        assert len(train) + len(val) == 15
        assert not groups_of(train) & groups_of(val)
        seen += [record["id"] for record in records_of(val)]
    assert len(set(seen)) == len(seen) == 15
    with pytest.raises(InputError, match=r"data\.fold=4; expected 0\.\.3"):
        open_3class(three_set, "train", fold=4)


FOLD_PAIRS = [(test, fold) for test in range(5) for fold in (-1, *range(5)) if fold != test]


def test_any_fold_of_the_three_classes_tests(three_set):
    """Each pair parts all films, with no patient on two sides; what is trained on never tests."""
    _, rows = tables.read_table(three_set[0] / "labels.csv", ["patient", "fold"])
    patients = [{r["patient"] for r in rows if r["fold"] == str(k)} for k in range(5)]
    tested, versions = [], {}
    for test_fold, fold in FOLD_PAIRS:
        names = ("train", "val", "test") if fold >= 0 else ("train", "test")
        opened = {
            name: open_3class(three_set, name, test_fold=test_fold, fold=fold) for name in names
        }
        groups = {name: groups_of(source) for name, source in opened.items()}
        splits.check_disjoint(groups, where="here")
        assert groups["test"] == patients[test_fold]
        assert groups.get("val", set()) == (patients[fold] if fold >= 0 else set())
        assert sum(map(len, opened.values())) == 20
        for name, source in opened.items():
            versions.setdefault((name, source.version), set()).add(frozenset(groups[name]))
        if fold == -1:
            tested += [record["id"] for record in records_of(opened["test"])]
            # Pre-training on the findings with this fold held out.
            known = sources.only_with(opened["train"], {"findings"})
            assert len(known)
            assert not groups_of(known) & patients[test_fold]
    assert len(set(tested)) == len(tested) == 20
    assert all(len(films) == 1 for films in versions.values())  # one version, one choice of films


def test_a_version_tells_which_fold_tests_and_that_of_before_stays(three_set):
    prefix = open_3class(three_set, "train").version
    assert prefix.count("+") == 1  # layout and fingerprint alone, as ever
    for test_fold in range(4):
        version = open_3class(three_set, "test", test_fold=test_fold).version
        assert version.startswith(f"{prefix}+")
        assert version.endswith(f"+test-fold{test_fold}")


def test_the_fold_after_the_validation_fold_tests(three_set):
    for fold in range(5):
        for split in sources.SPLITS:
            asked = open_3class(three_set, split, test_fold=-1, fold=fold)
            same = open_3class(three_set, split, test_fold=(fold + 1) % 5, fold=fold)
            assert asked.version == same.version
            assert groups_of(asked) == groups_of(same)


@pytest.mark.parametrize(
    "test_fold, fold, words",
    [
        (5, 0, r"data\.test_fold=5; expected 0\.\.4"),
        (-1, -1, r"data\.test_fold=-1; expected 0\.\.4"),
        (-1, 5, r"data\.test_fold=-1; expected 0\.\.4"),
        (2, 2, r"data\.fold=2; expected 0\.\.4 but not data\.test_fold=2, or -1"),
        (2, 5, r"data\.fold=5; expected 0\.\.4 but not data\.test_fold=2"),
        (4, 4, r"data\.fold=4; expected 0\.\.3, or -1"),
    ],
)
def test_folds_that_cannot_be_meant(three_set, test_fold, fold, words):
    with pytest.raises(InputError, match=words) as error:
        open_3class(three_set, "train", test_fold=test_fold, fold=fold)
    check_one_line(error)


def open_3class(three_set, split, **fields):
    return sources.open_source(findings_config("cxr_3class", three_set[1], **fields), split)


def test_all_films_of_an_overlapping_patient_are_left_out(three_set):
    train, test = (open_3class(three_set, s, leave_out_overlap=True) for s in ("train", "test"))
    # c0 has two films, one of which is in brixia_cohen; c2 has one; c1 and c3 none.
    covid = [r["group"] for s in (train, test) for r in records_of(s) if r["diagnosis"] == 2]
    assert covid == ["c1", "c3"]
    assert (len(train), len(test)) == (13, 4)
    assert train.version != open_3class(three_set, "train").version


BAD_3CLASS = [
    ("labels.csv", 3, ("class", "flu"), r"row 3, column 'class': 'flu'; expected one of normal, "),
    ("labels.csv", 2, ("nih_findings", "No Finding|Edema"), r"cannot stand beside another finding"),
    ("labels.csv", 2, ("nih_findings", ""), r"'nih_findings': ''; this column must not be empty"),
    ("labels.csv", 2, ("nih_findings", "Flu"), r"'Flu' is no NIH finding; expected No Finding, "),
    ("labels.csv", 18, ("nih_findings", "Edema"), r"a film of class covid has no NIH findings"),
    ("labels.csv", 3, ("fold", "5"), r"column 'fold': '5'; expected a whole number 0\.\.4"),
    ("labels.csv", 3, ("fold", ""), r"column 'fold': ''; this column must not be empty"),
    ("labels.csv", 17, ("fold", "4"), r"group 'c0' is in both split 'fold 0' and split 'fold 4'"),
    ("labels.csv", 19, ("patient", "c3"), r"group 'c3' is in both split 'fold 1' and split 'fold "),
    ("labels.csv", 3, ("in_brixia_cohen", "2"), r"column 'in_brixia_cohen': '2'; expected a whole"),
    ("labels.csv", 2, ("image", "gone.jpg"), r"column 'image': 'gone\.jpg'; there is no file"),
    ("labels.csv", 4, ("image", "00000000_000.jpg"), r"film '00000000_000' is listed twice"),
    ("labels.csv", 1, ("patient", "group"), r"column 'patient' is missing; found image, class"),
    ("boxes.csv", 2, ("image", "none.jpg"), r"row 2, column 'image': 'none\.jpg'; labels\.csv has"),
    ("boxes.csv", 2, ("label", "Flu"), r"column 'label': 'Flu'; no finding that has boxes"),
    ("boxes.csv", 2, ("h", "tall"), r"column 'h': 'tall'; expected a number 0\.\.4096"),
]


@pytest.mark.parametrize("file, line, change, words", BAD_3CLASS, ids=lambda x: str(x)[:24])
def test_bad_three_class_tables(tmp_path, file, line, change, words):
    make_3class(tmp_path)
    edit(tmp_path / file, line, *change)
    with pytest.raises(InputError, match=words) as error:
        cxr_3class.read_index(tmp_path)
    check_one_line(error, str(tmp_path / file))


def test_bad_three_class_folders(tmp_path):
    with pytest.raises(InputError, match=r"there is no labels\.csv in it; --source is the folder"):
        cxr_3class.read_index(tmp_path)
    make_3class(tmp_path)
    edit(tmp_path / "boxes.csv", 2, "w", "100")  # of a film 120 px wide, from 30
    with pytest.raises(InputError, match=r"00000001_000\.jpg: a box of boxes\.csv leaves the film"):
        run_prepare("cxr_3class", tmp_path, tmp_path / "data")
    (tmp_path / "boxes.csv").unlink()
    with pytest.raises(InputError, match=r"boxes\.csv: there is no such file"):
        cxr_3class.read_index(tmp_path)


def test_the_real_three_classes(cxr_data):
    films, notes = cxr_3class.read_index(cxr_data / "cxr_3class")
    assert np.bincount([film.diagnosis for film in films]).tolist() == [500, 500, 106]
    # The data set's README: 49 boxes on 44 films, one of a mass.
    assert notes == [
        "1000 of 1106 films have a known finding",
        "48 boxes on 44 films; 1 of masses and nodules left out",
    ]
    assert sum(film.overlap for film in films) == 68


def test_leaving_out_the_overlap_keeps_the_test_patients_of_brixia_cohen_unseen(cxr_data):
    _, rows = tables.read_table(cxr_data / "brixia_cohen" / "annotations.csv", ["group", "split"])
    tested = {row["group"] for row in rows if row["split"] == "test"}
    films, _ = cxr_3class.read_index(cxr_data / "cxr_3class")
    overlapping = {film.group for film in films if film.overlap}
    seen = {film.group for film in films} - overlapping
    assert not tested & seen
    # By film alone it would not: three films of tested patients are in this set only.
    assert sum(film.group in tested and not film.overlap for film in films) == 3


# --- what large sets need of the prepared form


def test_a_large_split_is_prepared_in_parts(tmp_path, monkeypatch):
    source = make_chexpert(tmp_path / "source")
    run_prepare("chexpert", source, tmp_path / "whole", "--max_side=64")
    # Room for three films of at most 64x64 in memory.
    monkeypatch.setattr(prepared.writing, "PART_BYTES", 3 * 64 * 64)
    run_prepare("chexpert", source, tmp_path / "parts", "--max_side=64")
    folder = tmp_path / "parts" / "chexpert" / prepared.VERSION
    assert len(list(folder.glob("chexpert-train_*"))) == 5  # 13 films by three
    for fold, split in ((-1, "train"), (2, "train"), (2, "val"), (2, "test")):
        whole, parts = (
            records_of(
                sources.open_source(findings_config("chexpert", tmp_path / n, fold=fold), split)
            )
            for n in ("whole", "parts")
        )
        assert [r["id"] for r in whole] == [r["id"] for r in parts]
        for one, other in zip(whole, parts):
            for key, value in one.items():
                np.testing.assert_array_equal(other[key], value)


def test_opening_a_split_reads_one_record(chexpert_set, monkeypatch):
    read = []
    original = prepared.Prepared._raw
    monkeypatch.setattr(
        prepared.Prepared, "_raw", lambda self, i: read.append(i) or original(self, i)
    )
    config = findings_config("chexpert", chexpert_set[1], fold=1, blank="ignore")
    sources.only_with(sources.open_source(config, "train"), {"findings"})
    assert read == [0]


def test_a_set_prepared_before_columns_were_kept_still_opens(tmp_path):
    run_prepare("brixia_cohen", make_prepared(tmp_path / "source"), tmp_path / "data")
    config = brixia_config(tmp_path / "data", fold=1)
    before = [[r["id"] for r in records_of(sources.open_source(config, s))] for s in sources.SPLITS]
    file = tmp_path / "data" / "brixia_cohen" / prepared.VERSION / "metadata.json"
    metadata = json.loads(file.read_text())
    del metadata["columns"]
    file.write_text(json.dumps(metadata))
    after = [[r["id"] for r in records_of(sources.open_source(config, s))] for s in sources.SPLITS]
    assert before == after
    assert all(before)


def test_a_table_is_read_row_by_row(tmp_path):
    path = tmp_path / "t.csv"
    write_csv(path, [["a", "b"], *([i, i] for i in range(5000)), ["odd"]])
    _, rows = tables.scan_table(path, ("a",))
    assert next(rows)["b"] == "0"  # the mistake at the end is not met yet
    with pytest.raises(InputError, match="row 5002 has 1 cells, the header 2"):
        list(rows)
