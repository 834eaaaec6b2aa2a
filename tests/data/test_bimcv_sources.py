"""PadChest and BIMCV-COVID19+ in their public layouts: classes, views, 16 bits, every mistake."""

import csv
import json

import cv2
import numpy as np
import pytest
from fake_sets import (
    PADCHEST_TABLE,
    draw_film16,
    edit,
    folded_config,
    make_bimcv,
    make_padchest,
    run_prepare,
)

from cxr_jax.data import sources, splits
from cxr_jax.data.sources import bimcv_covid19, padchest, tables
from cxr_jax.errors import InputError

MAKERS = {"padchest": make_padchest, "bimcv_covid19": make_bimcv}


def records_of(source):
    return [source[i] for i in range(len(source))]


def check_one_line(error, *words):
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name -> (source folder, data_dir), prepared."""
    made = {}
    for name, make in MAKERS.items():
        root = tmp_path_factory.mktemp(name)
        run_prepare(name, make(root / "source"), root / "data")
        made[name] = root / "source", root / "data"
    return made


def opened(made, name, split, fold=-1):
    return sources.open_source(folded_config(name, made[name][1], fold), split)


def all_records(made, name):
    found = [r for split in ("train", "test") for r in records_of(opened(made, name, split))]
    return {record["id"]: record for record in found}


# --- both


@pytest.mark.parametrize("name, count", [("padchest", 21), ("bimcv_covid19", 24)])
def test_folds_part_the_patients(made, name, count):
    test = {record["id"] for record in records_of(opened(made, name, "test"))}
    assert test
    seen = []
    for fold in range(4):
        parts = {split: records_of(opened(made, name, split, fold)) for split in sources.SPLITS}
        groups = {split: [r["group"] for r in part] for split, part in parts.items()}
        splits.check_disjoint(groups, where="here")
        assert sum(map(len, parts.values())) == count
        assert {record["id"] for record in parts["test"]} == test
        assert parts["val"]
        seen += [record["id"] for record in parts["val"]]
    assert len(set(seen)) == len(seen) == count - len(test)
    with pytest.raises(InputError, match=r"data\.fold=4; expected 0\.\.3"):
        opened(made, name, "train", 4)


@pytest.mark.parametrize("name", MAKERS)
def test_records_say_what_they_are(made, name):
    train = opened(made, name, "train")
    assert train.partial == {"diagnosis"}
    known = sources.only_with(train, {"diagnosis"})
    assert 0 < len(known) < len(train)
    assert "which have no diagnosis" in known.notes[0]
    for view in ("PA", "AP"):
        assert {r["view"] for r in records_of(sources.by_view(train, view))} == {view}


@pytest.mark.parametrize("name", MAKERS)
def test_a_folder_that_is_another_one(tmp_path, name):
    with pytest.raises(InputError, match="--source is the folder with") as error:
        run_prepare(name, tmp_path, tmp_path / "data")
    check_one_line(error, str(tmp_path))


# --- padchest


def test_padchest_gives_normal_films(made):
    records = all_records(made, "padchest")
    assert len(records) == 21  # every fourth row is lateral
    for number in range(28):
        if number % 4 == 3:
            continue
        record = records[f"2168401113_{number:03d}"]
        # Normal alone, also if it is said twice; not beside another label, and not where none is.
        assert record.get("diagnosis") == (0 if number % 7 in (0, 4) else None)
        assert record["view"] == ("PA", "AP", "AP")[number % 4]
        assert record["group"] == f"padchest-{839860488694 + number // 2}"


def test_sixteen_bits_are_shown_from_lowest_to_highest(made):
    path = made["padchest"][0] / "1" / "2168401113_001.png"
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    low, high = int(stored.min()), int(stored.max())
    image = all_records(made, "padchest")["2168401113_001"]["image"]
    # 0.51: rounded to whole numbers.
    assert np.abs(image - (stored.astype(float) - low) * 255 / (high - low)).max() <= 0.51
    assert len(np.unique(image)) > 150  # the high byte alone would have 16 values


def test_padchest_films_that_are_missing_or_cut_off_are_left_out_and_counted(tmp_path):
    root = make_padchest(tmp_path)
    (root / "0" / "2168401113_000.png").unlink()
    whole = (root / "1" / "2168401113_001.png").read_bytes()
    (root / "1" / "2168401113_001.png").write_bytes(whole[:-40])
    films, notes = padchest.read_index(root)
    assert len(films) == 19
    assert notes == [
        f"{sum(film.diagnosis == 0 for film in films)} of 19 films are of diagnosis normal, the "
        "others have none",
        "left out: 2 films that are not there or cut off",
        "left out: 7 films that are not frontal",
        f"the first one that is not there or cut off: {root / '0' / '2168401113_000.png'}",
    ]


@pytest.mark.parametrize("place", ["images", "images/{}", "."])
def test_padchest_films_in_other_folders(tmp_path, place):
    root = make_padchest(tmp_path)
    for part in "012":
        folder = root / place.format(part)
        folder.mkdir(parents=True, exist_ok=True)
        for path in list((root / part).iterdir()):
            path.rename(folder / path.name)
    assert len(padchest.read_index(root)[0]) == 21


BAD_PADCHEST = [
    (("Projection", "OBLICUA"), r"row 3, column 'projection': 'OBLICUA'; expected one of PA, AP,"),
    (("Labels", "['normal'"), r"column 'labels': \"\['normal'\"; expected a list like \['normal'"),
    (("Labels", "normal"), r"column 'labels': 'normal'; expected a list"),
    (("Labels", "[__import__('os')]"), r"column 'labels': .*; expected a list"),
    (("Labels", "['normal' + 'x']"), r"column 'labels': .*; expected a list"),
    (("ImageID", "2168401113_000.png"), r"film '2168401113_000' is listed twice; leave one row"),
    (("ImageID", ""), r"column 'imageid': ''; this column must not be empty"),
    (("ImageID", "../x.png"), r"column 'imageid': '\.\./x\.png'; expected a name without folders"),
    (("ImageDir", ".."), r"column 'imagedir': '\.\.'; expected a name without folders"),
    (("PatientID", ""), r"column 'patientid': ''; this column must not be empty"),
]


@pytest.mark.parametrize("change, words", BAD_PADCHEST, ids=lambda x: str(x)[:28])
def test_bad_padchest_tables(tmp_path, change, words):
    root = make_padchest(tmp_path)
    draw_film16(root / "1" / "2168401113_000.png", 0)
    edit(root / PADCHEST_TABLE, 3, *change)
    with pytest.raises(InputError, match=words) as error:
        padchest.read_index(root)
    check_one_line(error, str(root / PADCHEST_TABLE))


def test_padchest_without_films_or_columns(tmp_path):
    root = make_padchest(tmp_path)
    edit(root / PADCHEST_TABLE, 1, "Labels", "Label")
    with pytest.raises(InputError, match="column 'Labels' is missing"):
        padchest.read_index(root)
    edit(root / PADCHEST_TABLE, 1, "Label", "Labels")
    for path in root.glob("*/*.png"):
        path.unlink()
    with pytest.raises(InputError, match=r"no film of .* can be read: the first one, .*_000\.png"):
        padchest.read_index(root)


@pytest.mark.parametrize(
    "cell, texts",
    [
        ("[]", []),
        ("['a', 'b c']", ["a", "b c"]),
        ("""["it's", 'b',]""", ["it's", "b"]),
        ("['a'\t 'b' 'c']", ["a", "b", "c"]),
        ("[' a ', '']", ["a"]),
        ("['a]", None),
        ("'a'", None),
        ("[a]", None),
        ("[['a']]", None),
        ("['a'] + ['b']", None),
        ("", None),
    ],
)
def test_a_list_as_python_prints_it(cell, texts):
    assert tables.quoted_list(cell) == texts


def test_a_long_list_that_is_broken_at_its_end_is_refused_at_once():
    for filling in ("'a', ", " ", ",", "'a'  ,  "):
        assert tables.quoted_list("[" + filling * 30_000 + "!") is None


# --- bimcv_covid19


def test_bimcv_gives_covid_19_and_normal_films(made):
    records = all_records(made, "bimcv_covid19")
    assert len(records) == 24
    # By the report: see fake_sets.BIMCV_LABELS; the last session has none.
    want = [2, 0, None, 0, 2, None, None, None]
    for record in records.values():
        number = int(record["id"].partition("_ses-E")[2][:5]) - 6000
        assert record.get("diagnosis") == want[number % 8]
        assert record["group"] == f"sub-S{3000 + number // 2:05d}"
        assert record["view"] == ("PA", "AP")[number % 2]


def test_inverted_films_are_shown_as_the_others(made):
    for record in all_records(made, "bimcv_covid19").values():
        number = int(record["id"].partition("_ses-E")[2][:5]) - 6000
        film = draw_film16(made["bimcv_covid19"][1] / "again.png", number).astype(float)
        want = (film - film.min()) * 255 / np.ptp(film)
        assert np.abs(record["image"] - want).max() <= 0.51


def test_bimcv_tells_what_is_left_out(tmp_path):
    root = make_bimcv(tmp_path)
    _, notes = bimcv_covid19.read_index(root)
    next(root.glob("sub-S03000/*/mod-rx/*.json")).unlink()
    assert notes == [
        "diagnosis: normal 6, other infection 0, covid-19 6; 12 films without a diagnosis",
        "2 films that state neither pa nor ap left out",
        "2 reports have labels that are no list: no diagnosis",
    ]
    assert "1 films have no header: taken as they are" in bimcv_covid19.read_index(root)[1]


def change_labels(root, line, column, value):
    table = root / "derivatives" / "labels" / "labels_covid19_posi.tsv"
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    rows[line - 1][rows[0].index(column)] = value
    with open(table, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(rows)


BAD_BIMCV = [
    ((3, "ReportID", "ses-E06000"), r"row 3, column 'reportid': 'ses-E06000'; this report is list"),
    ((3, "ReportID", ""), r"column 'reportid': ''; this column must not be empty"),
    ((3, "PatientID", "sub-S03005"), r"gives ses-E06001 to sub-S03005, not to sub-S03000; unpack"),
    ((1, "Labels", "Label"), r"column 'Labels' is missing"),
]


@pytest.mark.parametrize("change, words", BAD_BIMCV, ids=lambda x: str(x)[:28])
def test_bad_bimcv_tables(tmp_path, change, words):
    root = make_bimcv(tmp_path)
    change_labels(root, *change)
    with pytest.raises(InputError, match=words) as error:
        bimcv_covid19.read_index(root)
    check_one_line(error, str(root))


def test_bad_bimcv_folders(tmp_path):
    root = make_bimcv(tmp_path)
    path = next(root.glob("sub-S03000/ses-E06000/mod-rx/*.png"))
    moved = path.rename(path.with_name(path.name.replace("sub-S03000", "sub-S03001")))
    with pytest.raises(InputError, match=r"expected a name sub-S03000_ses-E06000_\.\.\._vp-pa_dx"):
        bimcv_covid19.read_index(root)
    moved.unlink()
    for film in root.glob("sub-*/*/mod-rx/*.png"):
        if "vp-pa" in film.name or "vp-ap" in film.name:
            film.unlink()
    with pytest.raises(InputError, match="none of 2 films states the view pa or ap"):
        bimcv_covid19.read_index(root)
    for film in root.glob("sub-*/*/mod-rx/*.png"):
        film.unlink()
    with pytest.raises(InputError, match="there is no film in sub-"):
        bimcv_covid19.read_index(root)


@pytest.mark.parametrize(
    "header, words",
    [
        ({"00280004": {"Value": ["RGB"]}}, "is neither MONOCHROME1 nor MONOCHROME2"),
        ({"00280004": {"vr": "CS"}}, "lacks 00280004.Value"),
        ({"00280004": "MONOCHROME1"}, "as 00280004, expected"),
        ("{", "unpack it again"),
    ],
    ids=["colour", "empty", "text", "broken"],
)
def test_bad_bimcv_headers(tmp_path, header, words):
    root = make_bimcv(tmp_path / "source")
    path = next(root.glob("sub-S03000/ses-E06000/mod-rx/*.json"))
    path.write_text(header if isinstance(header, str) else json.dumps(header))
    with pytest.raises(InputError, match=words) as error:
        run_prepare("bimcv_covid19", root, tmp_path / "data")
    check_one_line(error, "vp-pa_dx.json")
