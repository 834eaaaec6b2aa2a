"""VinDr-CXR: votes of three readers, fused boxes, folds, and tables that are wrong."""

import numpy as np
import pytest
from fake_box_sets import make_vindr, vindr_name
from fake_sets import draw_chest, edit, run_prepare, write_csv, write_dicom

from cxr_jax.data import records, sources, splits
from cxr_jax.data.sources import tables, vindr_cxr
from cxr_jax.errors import InputError

NAN = float("nan")
FINDING = {name: k for k, name in enumerate(vindr_cxr.FINDINGS)}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("vindr")
    run_prepare("vindr_cxr", make_vindr(root / "source"), root / "data")
    return root / "data"


def opened(data_dir, split, fold=-1):
    block = sources.block("vindr_cxr", data_dir=str(data_dir), fold=fold)
    source = sources.open_source(block, split)
    return {source[i]["id"]: source[i] for i in range(len(source))}


def positive(record):
    return {vindr_cxr.FINDINGS[k] for k in np.flatnonzero(record["findings"] == 1)}


def check_one_line(error, *words):
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_what_most_readers_say_and_where(data_dir):
    train = opened(data_dir, "train")
    for record in train.values():
        records.check(record, findings=vindr_cxr.FINDINGS)
    first, second, third = (train[vindr_name(i)] for i in range(3))
    # Three hearts are one, the mean; a nodule and an edema that one of three saw are none.
    assert positive(first) == {"cardiomegaly"}
    assert first["boxes"].tolist() == [[12, 20, 32, 40]]
    assert first["box_label"].tolist() == [FINDING["cardiomegaly"]]
    # Two readers agree on the finding, not on its place.
    assert positive(second) == {"edema"}
    assert sorted(second["boxes"].tolist()) == [[1, 1, 9, 9], [20, 20, 29, 29]]
    assert positive(third) == {"no finding"}
    assert "boxes" not in third


def test_boxes_of_the_test_part_stay(data_dir):
    test = opened(data_dir, "test")
    assert list(test) == [vindr_name(i) for i in range(10, 13)]
    record = test[vindr_name(10)]
    # The second one leaves the film of 40 x 48 by what rounding leaves.
    assert record["boxes"].tolist() == [[1, 2, 30, 40], [2, 2, 30, 48]]
    assert record["box_label"].tolist() == [FINDING["ild"]] * 2
    assert positive(record) == {"ild"}


def test_folds_part_the_training_films(data_dir):
    seen = []
    for fold in range(5):
        parts = {split: opened(data_dir, split, fold) for split in sources.SPLITS}
        splits.check_disjoint(parts, where="here")
        assert sum(map(len, parts.values())) == 13
        seen += parts["val"]
    assert len(set(seen)) == len(seen) == 10


def test_fusion_is_by_finding():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]], float)
    xyxy, labels = vindr_cxr.fused(boxes, np.array([7, 3, 7, 7], np.int32))
    assert labels.tolist() == [3, 7, 7]
    np.testing.assert_allclose(xyxy, [[0, 0, 10, 10], [0, 0, 10, 9.5], [50, 50, 60, 60]])


@pytest.mark.parametrize(
    "votes, want",
    [([0, 1, 1], 1), ([0, 0, 1], 0), ([1, 0], 0), ([1], 1), ([NAN, 1, NAN], 1), ([NAN, NAN], NAN)],
)
def test_majority_of_those_who_say(tmp_path, votes, want):
    make_vindr(tmp_path)
    path = tmp_path / "annotations" / "image_labels_train.csv"
    header = path.read_text().splitlines()[0].split(",")
    cells = ["" if np.isnan(vote) else f"{vote:.1f}" for vote in votes]
    blank = [0] * (len(header) - 3)
    write_csv(path, [header, *([vindr_name(0), f"R{i}", c, *blank] for i, c in enumerate(cells))])
    boxes = tmp_path / "annotations" / "annotations_train.csv"
    boxes.write_text(boxes.read_text().splitlines()[0] + f"\n{vindr_name(0)},R1,No finding,,,,\n")
    films, _ = vindr_cxr.read_index(tmp_path)
    np.testing.assert_array_equal(films[0].labels[0], want)


def test_notes(tmp_path):
    make_vindr(tmp_path)
    (tmp_path / "train" / f"{vindr_name(5)}.dicom").unlink()
    edit(tmp_path / "annotations" / "annotations_train.csv", 4, "x_min", "32")
    films, notes = vindr_cxr.read_index(tmp_path)
    assert len(films) == 12
    assert notes == [
        "6 boxes on 3 of 12 films",
        "left out: 1 boxes of annotations_train.csv without an area",
        "left out: 2 boxes of findings that most readers do not see",
        "left out: 1 films that are not in train/",
    ]


BAD = [
    (
        "image_labels_train.csv",
        2,
        ("Edema", "2"),
        r"row 2, column 'edema': '2'; expected a whole nu",
    ),
    (
        "image_labels_train.csv",
        2,
        ("image_id", "../x"),
        r"'image_id': '\.\./x'; expected 32 hexadeci",
    ),
    ("image_labels_train.csv", 1, ("Edema", "Oedema"), r"column 'edema' is missing"),
    ("image_labels_train.csv", 1, ("Other diseases", "x"), r"column 'other disease' is missing"),
    ("image_labels_test.csv", 3, ("image_id", vindr_name(10)), r"this film is listed twice; leave"),
    (
        "annotations_train.csv",
        2,
        ("class_name", "Flu"),
        r"'class_name': 'Flu'; expected one of aor",
    ),
    ("annotations_train.csv", 2, ("class_name", "COPD"), r"'COPD'; expected one of aortic enlarge"),
    ("annotations_train.csv", 2, ("x_min", ""), r"'x_min': ''; expected a number -20000\.\.20000"),
    ("annotations_train.csv", 2, ("x_max", "nan"), r"'x_max': 'nan'; expected a number"),
    (
        "annotations_train.csv",
        2,
        ("image_id", vindr_name(99)),
        r"the table of image labels has no su",
    ),
]


@pytest.mark.parametrize("file, line, change, words", BAD, ids=lambda x: str(x)[:30])
def test_bad_tables(tmp_path, file, line, change, words):
    make_vindr(tmp_path)
    edit(tmp_path / "annotations" / file, line, *change)
    with pytest.raises(InputError, match=words) as error:
        vindr_cxr.read_index(tmp_path)
    check_one_line(error, file)


def test_bad_folders_and_boxes(tmp_path):
    with pytest.raises(InputError, match=r"image_labels_train\.csv: there is no such file"):
        vindr_cxr.read_index(tmp_path)
    make_vindr(tmp_path)
    write_dicom(tmp_path / "train" / f"{vindr_name(0)}.dicom", draw_chest(24, 10, 0)[0])
    with pytest.raises(
        InputError, match=r"the box \[10\.0, .* of cardiomegaly lies outside"
    ) as error:
        run_prepare("vindr_cxr", tmp_path, tmp_path / "data")
    check_one_line(error, vindr_name(0), "the film of 10x24 px")
    for path in (tmp_path / "test").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"no film of its tables is in test/; --source is the fo"):
        vindr_cxr.read_index(tmp_path)


def test_the_real_challenge_table_has_these_names(cxr_data):
    _, rows = tables.read_table(cxr_data / "samples" / "metadata" / "vinbigdata-train.csv", ())
    names = {row["class_name"].casefold() for row in rows}
    assert names <= {*vindr_cxr.BOXED, vindr_cxr.NO_FINDING}
    assert len(names) > 10
