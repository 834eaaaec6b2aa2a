"""The full Brixia set: scores of both tables, splits by patient, DICOM, and every mistake."""

import csv
import shutil

import numpy as np
import pytest
from fake_sets import draw_chest, folded_config, make_brixia, run_prepare

from cxr_jax.data import prepare, sources
from cxr_jax.data.sources import brixia, prepared
from cxr_jax.errors import InputError


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return make_brixia(tmp_path_factory.mktemp("pristine"))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, pristine):
    folder = tmp_path_factory.mktemp("data")
    run_prepare("brixia", pristine, folder)
    return folder


@pytest.fixture
def copy(tmp_path, pristine):
    return shutil.copytree(pristine, tmp_path / "copy")


def set_cell(table, line, column, value, *, separator=";"):
    """Sets a cell; line 1 is the header, and all lines are changed for line None."""
    with open(table, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file, delimiter=separator))
    place = rows[0].index(column)
    for row in rows[1:] if line is None else [rows[line - 1]]:
        row[place] = value(row[place]) if callable(value) else value
    with open(table, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)


def opened(data_dir, split, fold=-1):
    source = sources.open_source(folded_config("brixia", data_dir, fold), split)
    return [source[i] for i in range(len(source))]


def test_consensus_is_the_test_split_with_the_mode_as_truth(data_dir):
    test = opened(data_dir, "test")
    assert [record["id"] for record in test] == ["1000", "1007", "1014"]
    for record in test:
        # Mode 0 1 2 3 0 1: A, B, C down the right lung (image left), D, E, F down the left.
        np.testing.assert_array_equal(record["severity"], [[0, 3], [1, 0], [2, 1]])
        assert record["severity"].dtype == np.int8
        assert record["severity_valid"].all()
        assert "lungs" not in record
    # The radiologist on shift gave 001231.
    np.testing.assert_array_equal(test[0]["severity_second"], [[0, 2], [0, 3], [1, 1]])


def test_training_films_have_the_score_of_the_shift_and_no_second(data_dir):
    source = sources.open_source(folded_config("brixia", data_dir), "train")
    assert source.partial == {"severity_second"}
    train = {record["id"]: record for record in opened(data_dir, "train")}
    np.testing.assert_array_equal(train["1004"]["severity"], [[0, 3], [1, 0], [2, 1]])  # 012301
    assert not any("severity_second" in record for record in train.values())


def test_no_patient_is_in_two_splits_and_what_is_left_out_is_said(data_dir, pristine):
    train, test = opened(data_dir, "train"), opened(data_dir, "test")
    assert not {r["group"] for r in train} & {r["group"] for r in test}
    # Each of the three consensus patients has one film more.
    assert len(train) + len(test) + 3 == 24
    films, left_out = brixia.read_index(pristine)
    assert (len(films), left_out) == (21, 3)
    builder = prepare.find_builder("brixia")(pristine, data_dir=str(data_dir), max_side=512)
    assert builder.notes == ["left out: 3 films of patients of the test split"]


def test_folds_part_the_training_films_by_patient(data_dir):
    seen = []
    for fold in range(prepared.FOLDS):
        train, val = opened(data_dir, "train", fold), opened(data_dir, "val", fold)
        assert not {r["group"] for r in train} & {r["group"] for r in val}
        assert len(train) + len(val) == 18
        seen += [r["id"] for r in val]
    assert len(set(seen)) == len(seen) == 18


def test_both_photometries_give_the_film_with_dark_air(data_dir):
    for record in opened(data_dir, "train"):
        film, _ = draw_chest(48, 40, int(record["id"]) - 1000)
        low, high = int(film.min()), int(film.max())
        # A film without a window is stretched from its lowest to its highest value.
        want = (film.astype(float) - low) * 255 / (high - low)
        # 0.51: rounded to whole numbers.
        assert np.abs(record["image"] - want).max() <= 0.51


def test_films_are_chosen_by_global_score(data_dir):
    config = folded_config("brixia", data_dir)
    config.max_severity = 8
    mild = sources.open_source(config, "train")
    scores = [int(record["severity"].sum()) for record in opened(data_dir, "train")]
    assert 0 < len(mild) == sum(score <= 8 for score in scores) < 18
    assert len(sources.open_source(config, "test")) == 3


def strip_zeros(cell):
    return cell.lstrip("0") or "0"


@pytest.mark.parametrize("layout", ["commas", "data", "version 1", "no leading zeros"])
def test_other_forms_of_the_download_are_read_alike(tmp_path, pristine, layout):
    root = make_brixia(tmp_path / "set", separator="," if layout == "commas" else ";")
    if layout == "data":
        shutil.copytree(root, tmp_path / "above" / "data")
        root = tmp_path / "above"
    elif layout == "version 1":
        (root / "metadata_global_v2.csv").rename(root / "metadata_global_v1.csv")
    elif layout == "no leading zeros":
        set_cell(root / "metadata_global_v2.csv", None, "BrixiaScore", strip_zeros)
    films, expected = brixia.read_index(root)[0], brixia.read_index(pristine)[0]
    for film, other in zip(films, expected, strict=True):
        assert (film.id, film.group, film.split, film.fold) == (
            (other.id, other.group, other.split, other.fold)
        )
        np.testing.assert_array_equal(film.severity, other.severity)


@pytest.mark.parametrize(
    "column, line, value, words",
    [
        ("BrixiaScore", 5, "12301", "row 5, column 'brixiascore': '12301'; expected six digits"),
        ("BrixiaScore", 5, "0123010", "'0123010'; expected six digits 0..3"),
        ("BrixiaScore", 5, "012341", "'012341'; expected six digits 0..3"),
        ("BrixiaScore", 5, "", "''; expected six digits 0..3"),
        ("BrixiaScore", 5, "12301.0", r"'12301\.0'; expected six digits"),
        ("BrixiaScoreGlobal", 5, "17", "row 5, .* '17'; the zones .* have the sum"),
        ("BrixiaScoreGlobal", 5, "19", "expected a whole number 0..18"),
        ("Subject", 5, "", "row 5, column 'subject': ''; this column must not be empty"),
        ("Filename", 5, "1004.dcm", "film '1004' is listed twice"),
        ("Filename", 5, "99.dcm", r"row 5, column 'filename': '99\.dcm'; there is no file"),
        ("Filename", 2, "99.dcm", r"consensus_v1\.csv: film '1000\.dcm' is not in metadata_global"),
        ("ConsensusTestset", 5, "1", "row 5, .* but metadata_consensus_v1.csv does not have"),
        ("ConsensusTestset", 5, "maybe", "'maybe'; expected one of 0, 1, false, true, empty"),
        ("Subject", None, "s0", "no film is left to train on"),
    ],
)
def test_mistakes_of_the_table_are_named(copy, column, line, value, words):
    set_cell(copy / "metadata_global_v2.csv", line, column, value)
    with pytest.raises(InputError, match=words):
        brixia.read_index(copy)


@pytest.mark.parametrize(
    "column, line, value, words",
    [
        ("ModeC", 2, "4", "consensus_v1.csv: row 2, column 'modec': '4'; expected a whole number"),
        ("ModeC", 2, "1.5", "'1.5'; expected a whole number 0..3"),
        ("ModeC", 2, "", "row 2, column 'modec': ''; this column must not be empty"),
        ("Filename", 3, "1000.dcm", r"consensus_v1\.csv: film '1000\.dcm' is listed twice"),
    ],
)
def test_mistakes_of_the_consensus_are_named(copy, column, line, value, words):
    set_cell(copy / "metadata_consensus_v1.csv", line, column, value, separator=",")
    with pytest.raises(InputError, match=words):
        brixia.read_index(copy)


@pytest.mark.parametrize(
    "missing, words",
    [
        ("metadata_global_v2.csv", r"found none of metadata_global_v2\.csv, .*brixia\.github\.io"),
        ("metadata_consensus_v1.csv", r"metadata_consensus_v1\.csv is missing beside"),
        ("dicom_clean", "dicom_clean is missing beside"),
    ],
)
def test_a_missing_part_is_named(copy, missing, words):
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=words):
        brixia.read_index(copy)


@pytest.mark.parametrize("column", ["BrixiaScore", "Subject", "Filename"])
def test_a_missing_column_is_named(copy, column):
    table = copy / "metadata_global_v2.csv"
    table.write_text(table.read_text(encoding="utf-8-sig").replace(column, "x", 1))
    if column == "BrixiaScore":  # the first match of the name is the column itself
        assert "BrixiaScoreGlobal" in table.read_text()
    with pytest.raises(InputError, match=f"column '{column}' is missing; found"):
        brixia.read_index(copy)


def test_a_broken_film_leaves_no_half_set(copy, tmp_path):
    film = copy / "dicom_clean" / "1010.dcm"
    film.write_bytes(film.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"1010\.dcm: the file is truncated"):
        run_prepare("brixia", copy, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data" / "brixia").iterdir()] == [".lock"]


def test_another_consensus_is_another_set(copy, data_dir):
    set_cell(copy / "metadata_consensus_v1.csv", 2, "ModeA", "3", separator=",")
    with pytest.raises(InputError, match="from other files or with other options"):
        run_prepare("brixia", copy, data_dir)


def test_a_missing_set_names_the_command_and_the_source(tmp_path):
    with pytest.raises(InputError, match=r"prepare brixia --source=FOLDER .*brixia\.github\.io"):
        sources.open_source(folded_config("brixia", tmp_path), "train")
