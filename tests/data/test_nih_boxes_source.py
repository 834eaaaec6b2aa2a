"""NIH's boxed films: the eight findings, halves by patient, and no boxed patient to train on."""

import numpy as np
import pytest
from fake_sets import NIH_BOX_HEADER, edit, make_nih, run_prepare

from cxr_jax.data import records, sources, splits
from cxr_jax.data.sources import nih_cxr8, nih_cxr14
from cxr_jax.errors import InputError

BOXES = (
    "00000002_000.png,Pneumonia,256,512,128,64.5\n"
    "00000002_000.png,Effusion,1,100,1023.6,924,,,\n"
    "00000002_001.png,Infiltrate,10.5,20,30,40\n"
    "00000003_001.png,Mass,128,256,64,64\n"
    "00000010_000.png,Nodule,1,2,3,4\n"
    "00000011_000.png,Pneumonia,1,2,3,4\n"
    "00009999_000.png,Pneumonia,1,2,3,4\n"
)


def make(root):
    source = make_nih(root)
    (source / "BBox_List_2017.csv").write_text(f"{NIH_BOX_HEADER}\n{BOXES}")
    return source


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where the set is prepared."""
    root = tmp_path_factory.mktemp("nih8")
    run_prepare("nih_cxr8", make(root / "source"), root / "data", "--max_side=128")
    return root


def opened(root, split, name="nih_cxr8", **options):
    block = sources.block(name, data_dir=str(root / "data"), **options)
    return sources.open_source(block, split)


def by_id(source):
    return {source[index]["id"]: source[index] for index in range(len(source))}


@pytest.fixture(scope="module")
def by_split(root):
    """Split -> records by id."""
    splits = {split: opened(root, split) for split in sources.SPLITS}
    assert all(source.findings == nih_cxr8.FINDINGS for source in splits.values())
    return {split: by_id(source) for split, source in splits.items()}


def positive(record):
    return [nih_cxr8.FINDINGS[k] for k in np.flatnonzero(record["findings"])]


def test_halves_by_patient_and_nothing_of_them_to_train_on(by_split):
    groups = {split: {r["group"] for r in part.values()} for split, part in by_split.items()}
    splits.check_disjoint(groups, where="here")
    assert sorted(len(by_split[half]) for half in ("val", "test")) == [2, 3]  # of five films
    boxed = set(by_split["val"]) | set(by_split["test"])
    names = ("00000002_000", "00000002_001", "00000003_001", "00000010_000", "00000011_000")
    assert boxed == set(names)
    assert groups["train"] == {f"nih-{k:08}" for k in range(1, 13) if k not in (2, 3, 10, 11)}
    assert len(by_split["train"]) == 16
    assert not any("boxes" in record for record in by_split["train"].values())


def test_the_validation_half_can_be_trained_on(root, by_split):
    training = opened(root, "train", boxed=True)
    assert training.split == "train"
    assert by_id(training).keys() == by_split["val"].keys()
    assert all("boxes" in record for record in by_id(training).values())
    assert by_id(opened(root, "test", boxed=True)).keys() == by_split["test"].keys()
    with pytest.raises(InputError, match=r"no validation split with data\.boxed=True"):
        opened(root, "val", boxed=True)


def test_adpd_is_evaluated_on_the_halves(root, by_split):
    for split in ("val", "test"):
        films = by_id(opened(root, split, "chest_imagenome_nih"))
        assert films.keys() == by_split[split].keys()


def test_boxes_and_findings_are_the_eight(by_split):
    boxed = by_split["val"] | by_split["test"]
    for record in [*boxed.values(), *by_split["train"].values()]:
        records.check(record, findings=nih_cxr8.FINDINGS)
    first = boxed["00000002_000"]
    assert [nih_cxr8.FINDINGS[k] for k in first["box_label"]] == ["pneumonia", "effusion"]
    # Of a film of 1024, stored with 128; over the edge by what rounding leaves.
    want = np.array([[256, 512, 384, 576.5], [1, 100, 1024, 1024]]) / 8
    np.testing.assert_allclose(first["boxes"], want, rtol=1e-6)
    assert nih_cxr8.FINDINGS[boxed["00000002_001"]["box_label"][0]] == "infiltration"
    mass = boxed["00000003_001"]
    assert mass["boxes"].tolist() == [[16, 32, 24, 40]]
    assert nih_cxr8.FINDINGS[mass["box_label"][0]] == "mass"
    # The table's labels (film 5 of the list: mass and nodule), and what is drawn.
    named = {name: positive(record) for name, record in boxed.items()}
    assert named["00000003_001"] == ["mass", "nodule"]
    assert named["00000002_000"] == ["effusion", "pneumonia"]
    assert named["00000010_000"] == ["nodule", "pneumothorax"]
    assert positive(by_split["train"]["00000001_000"]) == ["cardiomegaly"]


def test_notes(tmp_path):
    _, notes = nih_cxr8.read_index(make(tmp_path))
    assert notes == [
        "6 boxes on 5 films of 4 patients",
        "left out: 3 films without a box, of these patients",
        "left out: 1 boxes of films that are not in Data_Entry_2017_v2020.csv",
    ]


@pytest.mark.parametrize(
    "change, words",
    [
        (("Finding Labels", "Oedema"), r"row 4, column 'finding labels': 'Oedema'; 'Oedema' is no"),
        (("Image Index", "00000001_000.png"), r"film '00000001_000' is listed twice"),
        (
            ("Image Index", "00000099_000.png"),
            r"'00000099_000\.png'; there is no such film in imag",
        ),
        (("Patient ID", ""), r"column 'patient id': ''; this column must not be empty"),
    ],
)
def test_bad_tables(tmp_path, change, words):
    table = make(tmp_path) / "Data_Entry_2017_v2020.csv"
    edit(table, 4, *change)
    with pytest.raises(InputError, match=words) as error:
        nih_cxr8.read_index(tmp_path)
    assert str(table) in str(error.value)
    assert "\n" not in str(error.value)


def test_boxes_that_leave_no_halves(tmp_path):
    boxes = make(tmp_path) / "BBox_List_2017.csv"
    boxes.write_text(f"{NIH_BOX_HEADER}\n00000002_000.png,Pneumonia,1,2,3,4\n")
    with pytest.raises(
        InputError, match=r"no film for split 'test'; 1 films of 1 patients in Data_"
    ):
        nih_cxr8.read_index(tmp_path)
    boxes.write_text(f"{NIH_BOX_HEADER}\n00000002_000.png,Pneumonia,1000,2,30,4\n")
    with pytest.raises(InputError, match=r"row 2, column 'w'.*the box ends at 1030, outside the"):
        nih_cxr8.read_index(tmp_path)


def test_the_real_boxes(cxr_data):
    """984 boxes on 880 films, of the eight findings and no other."""
    boxes = nih_cxr14.read_boxes(cxr_data / "samples" / "metadata" / "BBox_List_2017.csv")
    assert (len(boxes), sum(map(len, boxes.values()))) == (880, 984)
    names = {name.casefold() for drawn in boxes.values() for name, _ in drawn}
    assert names == set(nih_cxr8.FINDINGS)
    # At most one box of a finding on a film, as the paper says.
    assert all(len({name for name, _ in drawn}) == len(drawn) for drawn in boxes.values())
