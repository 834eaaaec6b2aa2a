"""Diagnoses: class names of a set's own, views, and what a table may say wrongly of either."""

import json
import pickle
import shutil

import numpy as np
import pydicom
import pytest
from fake_sets import (
    edit,
    findings_config,
    folded_config,
    make_3class,
    make_brixia,
    make_chexpert,
    make_manifest,
    make_nih,
    manifest_config,
    run_prepare,
    write_csv,
)

from cxr_jax.data import records, sources
from cxr_jax.data.records import DIAGNOSES
from cxr_jax.data.sources import combine, manifest, prepared
from cxr_jax.errors import InputError

OWN = ("clear", "tuberculosis", "Influenza A", "covid-19")
OPTION = " clear, tuberculosis,Influenza A,covid-19"


def check_one_line(error, *words):
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def records_of(source):
    return [source[i] for i in range(len(source))]


def make_own(root, values=("influenza a", "", "CLEAR", "Tuberculosis")):
    """The manifest's four films (two train, val, test) with these diagnoses."""
    path = make_manifest(root)
    for line, value in enumerate(values, 2):
        edit(path, line, "diagnosis", value)
    return path


def own_config(path, classes=OPTION):
    return sources.block("manifest", path=str(path), classes=classes)


# --- class names of a set's own


@pytest.mark.parametrize("form", ["table", "prepared"])
def test_a_table_names_its_own_classes(tmp_path, form):
    path = make_own(tmp_path)
    if form == "prepared":
        run_prepare("manifest", path, tmp_path / "data", f"--classes={OPTION}")
        path = tmp_path / "data" / "manifest" / "films" / prepared.VERSION
    for split, diagnosis in (("train", 2), ("val", 0), ("test", 1)):
        opened = pickle.loads(pickle.dumps(sources.open_source(own_config(path), split)))
        assert opened.diagnoses == OWN
        assert opened[0]["diagnosis"] == diagnosis
        known = sources.only_with(opened, {"diagnosis"})
        assert sources.names_of(known, "diagnoses") == OWN
    assert "diagnosis" not in sources.open_source(own_config(path), "train")[1]
    if form == "prepared":  # the folder knows its names
        assert sources.open_source(manifest_config(path), "val").diagnoses == OWN
        with pytest.raises(
            InputError, match="was prepared with the classes clear, tuberc"
        ) as error:
            sources.open_source(own_config(path, "a,b"), "val")
        check_one_line(error, "--classes")


def test_without_an_option_the_classes_are_the_papers(tmp_path):
    path = make_manifest(tmp_path)
    assert sources.open_source(manifest_config(path), "train").diagnoses == DIAGNOSES
    # Other names are other labels: a run must not be resumed on them.
    named, other = (
        sources.open_source(own_config(path, classes), "val").version
        for classes in ("normal,other infection,covid-19", "normal,covid-19,other infection")
    )
    assert named == sources.open_source(manifest_config(path), "val").version != other


@pytest.mark.parametrize("value", ["flu", "nan", "2", "covid"])
def test_an_unknown_class_is_named_with_its_row_and_the_known_ones(tmp_path, value):
    path = make_own(tmp_path, ("influenza a", value, "clear", "clear"))
    with pytest.raises(InputError) as error:
        sources.open_source(own_config(path), "train")
    check_one_line(error, str(path), f"row 3, column 'diagnosis': {value!r}; expected one of clear,"
                   " tuberculosis, Influenza A, covid-19, empty")  # fmt: skip


@pytest.mark.parametrize(
    "classes, words",
    [
        ("normal", "expected two names or more"),
        ("normal,Normal", "each once"),
        ("normal,,covid-19", "has an empty name"),
        (",", "each once"),
    ],
)
def test_classes_that_cannot_be_meant(tmp_path, classes, words):
    path = make_manifest(tmp_path)
    with pytest.raises(InputError, match=words) as error:
        sources.open_source(own_config(path, classes), "train")
    check_one_line(error, f"data.classes={classes!r}")
    with pytest.raises(InputError, match=words):
        run_prepare("manifest", path, tmp_path / "data", f"--classes={classes}")


def test_only_a_table_takes_classes(tmp_path):
    with pytest.raises(InputError, match=r"data set 'chexpert' has no option 'classes'"):
        run_prepare("chexpert", make_chexpert(tmp_path), tmp_path / "data", "--classes=a,b")


def test_a_record_is_held_against_the_classes_of_its_set():
    record = records.blank({"diagnosis"})
    for diagnosis in (3, -1):
        record["diagnosis"] = diagnosis
        with pytest.raises(InputError, match="field 'diagnosis' has"):
            records.check(record)
    record["diagnosis"] = 3
    records.check(record, diagnoses=OWN)
    record["diagnosis"] = 4
    with pytest.raises(InputError, match="has 4; expected 0, 1, 2, 3"):
        records.check(record, diagnoses=OWN)


def test_names_go_through_what_wraps_a_source(tmp_path):
    own = sources.open_source(own_config(make_own(tmp_path / "own")), "train")
    usual = sources.open_source(manifest_config(make_manifest(tmp_path / "usual")), "train")
    assert combine.Hidden(own, frozenset({"findings"})).diagnoses == OWN
    with pytest.raises(InputError, match="name other diagnoses") as error:
        combine.Joined(own, usual)
    check_one_line(error, "clear, tuberculosis", "normal, other infection")
    hidden = combine.Hidden(usual, frozenset({"diagnosis"}))
    assert combine.Joined(own, hidden).diagnoses == combine.Joined(hidden, own).diagnoses == OWN


# --- classes that are absent, alone or unknown


def test_prepare_tells_how_many_films_of_each_class_there_are(tmp_path, capsys):
    run_prepare("manifest", make_manifest(tmp_path), tmp_path / "data")
    printed = capsys.readouterr().out
    assert (
        "diagnosis (train): normal 0, other infection 0, covid-19 1; 1 film without a diagnosis; "
        "one class alone can be neither learned nor scored" in printed
    )
    assert "diagnosis (val): normal 1, other infection 0, covid-19 0; one class" in printed


def test_classes_are_told():
    assert sources.told_classes([0, 2, 0]) == "normal 2, other infection 0, covid-19 1"
    assert sources.told_classes([None, None], OWN[:2]) == (
        "clear 0, tuberculosis 0; 2 films without a diagnosis"
    )
    assert "one class alone" in sources.told_classes([1, 1, None])


@pytest.mark.parametrize("form", ["table", "prepared"])
def test_films_without_a_diagnosis_are_left_out_with_a_word(tmp_path, form):
    path = make_manifest(tmp_path)
    if form == "prepared":
        run_prepare("manifest", path, tmp_path / "data")
        path = tmp_path / "data" / "manifest" / "films" / prepared.VERSION
    train = sources.open_source(manifest_config(path), "train")
    known = sources.only_with(train, {"diagnosis"})
    assert [record["id"] for record in records_of(known)] == ["films/0.png"]
    assert known.notes[-1:] == ("left out: 1 of 2 records, which have no diagnosis",)


# --- one view


@pytest.fixture(scope="module")
def chexpert_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("chexpert")
    run_prepare("chexpert", make_chexpert(root / "source"), root / "data")
    return root / "data"


def opened_chexpert(data_dir, split="train"):
    return sources.open_source(findings_config("chexpert", data_dir), split)


def test_films_of_one_view(chexpert_set):
    train = opened_chexpert(chexpert_set)
    views = [record["view"] for record in records_of(train)]
    assert views.count("") == 1  # a decubitus film
    for view in ("PA", "AP"):
        chosen = sources.by_view(train, view)
        assert [r["id"] for r in records_of(chosen)] == [
            r["id"] for r in records_of(train) if r["view"] == view
        ]
        assert chosen.version.startswith(train.version)
        assert chosen.version != train.version
        left = len(views) - views.count(view)
        assert chosen.notes[0].startswith(f"left out: {left} of 13 films, which are no {view} (")
        assert "unknown 1" in chosen.notes[0]
        assert sources.by_view(chosen, view) is chosen
    assert sources.by_view(train, "") is train


def test_choosing_a_view_reads_no_record(chexpert_set, monkeypatch):
    train = opened_chexpert(chexpert_set)
    few = sources.Subset(train, [0, 3, 4, 5], partial=train.partial)
    monkeypatch.setattr(prepared.Prepared, "_raw", None)
    assert len(sources.by_view(train, "AP")) == 6
    # Of a subset too: films 1, 3, 5, ... are PA, the fifth is the decubitus film.
    assert len(sources.by_view(few, "AP")) + len(sources.by_view(few, "PA")) == 3


def test_a_set_prepared_before_views_were_kept_still_has_them(chexpert_set, monkeypatch):
    columns = prepared.Prepared._columns
    monkeypatch.setattr(
        prepared.Prepared,
        "_columns",
        lambda self: {k: v for k, v in columns(self).items() if k != "view"},
    )
    assert len(sources.by_view(opened_chexpert(chexpert_set), "AP")) == 6


def test_views_beside_the_records_that_are_none(tmp_path, chexpert_set):
    shutil.copytree(chexpert_set, tmp_path / "data")
    file = tmp_path / "data" / "chexpert" / prepared.VERSION / "metadata.json"
    metadata = json.loads(file.read_text())
    metadata["columns"]["train"]["view"][3] = 7
    file.write_text(json.dumps(metadata))
    with pytest.raises(InputError, match=r"metadata\.json has a view that is none") as error:
        sources.by_view(opened_chexpert(tmp_path / "data"), "AP")
    check_one_line(error, "prepare the set again")
    file.write_text(json.dumps(metadata | {"diagnoses": [1, 2]}))
    with pytest.raises(InputError, match="diagnoses are no list of names"):
        opened_chexpert(tmp_path / "data")


def test_views_of_a_table(tmp_path):
    path = make_manifest(tmp_path)
    edit(path, 3, "view", "")
    train = sources.open_source(manifest_config(path), "train")
    chosen = sources.by_view(train, "PA")
    assert [record["view"] for record in records_of(chosen)] == ["PA"]
    assert chosen.notes[-1:] == ("left out: 1 of 2 films, which are no PA (unknown 1)",)
    run_prepare("manifest", path, tmp_path / "data")
    folder = tmp_path / "data" / "manifest" / "films" / prepared.VERSION
    assert len(sources.by_view(sources.open_source(manifest_config(folder), "train"), "PA")) == 1
    with pytest.raises(InputError, match="has no film of view 'AP'; it has PA 1, unknown 1") as e:
        sources.by_view(train, "AP")
    check_one_line(e, "'manifest' (split 'train')")


def test_views_that_are_not_known(tmp_path, chexpert_set):
    with pytest.raises(InputError, match="view='lateral'; expected PA, AP or '' for all") as error:
        sources.by_view(opened_chexpert(chexpert_set), "lateral")
    check_one_line(error)
    path = tmp_path / "films.csv"
    make_manifest(tmp_path)
    write_csv(path, [["image", "group", "split"], ["films/0.png", "p", "train"]])
    with pytest.raises(InputError, match="does not say which view its films are"):
        sources.by_view(manifest.Manifest(path, "train"), "PA")


def test_views_of_nih(tmp_path):
    run_prepare("nih_cxr14", make_nih(tmp_path / "source"), tmp_path / "data")
    train = sources.open_source(findings_config("nih_cxr14", tmp_path / "data"), "train")
    views = np.array([record["view"] for record in records_of(train)])
    for view in ("PA", "AP"):
        assert len(sources.by_view(train, view)) == (views == view).sum() > 0


# --- the public sets that feed the three classes


def test_nih_and_chexpert_give_normal_films(tmp_path, chexpert_set):
    run_prepare("nih_cxr14", make_nih(tmp_path / "source"), tmp_path / "data")
    nih = sources.open_source(findings_config("nih_cxr14", tmp_path / "data"), "train")
    for source, count in ((nih, 3), (opened_chexpert(chexpert_set), 1)):
        assert "diagnosis" in source.partial
        for record in records_of(source):
            assert record.get("diagnosis") == (0 if record["findings"][0] == 1 else None)
        known = sources.only_with(source, {"diagnosis"})
        assert {record["diagnosis"] for record in records_of(known)} == {0}
        assert len(known) == count
        assert f"left out: {len(source) - count} of {len(source)} records" in known.notes[0]


def test_every_brixia_film_is_covid_19_and_states_its_view(tmp_path):
    root = make_brixia(tmp_path / "source")
    views = {"1001.dcm": "AP", "1002.dcm": "pa ", "1003.dcm": "LL"}
    for name, view in views.items():
        film = pydicom.dcmread(root / "dicom_clean" / name)
        film.ViewPosition = view
        film.save_as(root / "dicom_clean" / name)
    run_prepare("brixia", root, tmp_path / "data")
    opened = [sources.open_source(folded_config("brixia", tmp_path / "data"), s)
              for s in ("train", "test")]  # fmt: skip
    found = {r["id"]: r for source in opened for r in records_of(source)}
    assert {record["diagnosis"] for record in found.values()} == {2}
    assert {i: r["view"] for i, r in found.items() if r["view"]} == {"1002": "PA"}
    assert [r["id"] for r in records_of(sources.by_view(opened[0], "PA"))] == ["1002"]


def test_diagnoses_are_known_without_reading_records(tmp_path, monkeypatch):
    run_prepare("cxr_3class", make_3class(tmp_path / "source"), tmp_path / "data")
    train = sources.open_source(findings_config("cxr_3class", tmp_path / "data"), "train")
    want = [record["diagnosis"] for record in records_of(train)]
    monkeypatch.setattr(prepared.Prepared, "_raw", None)
    assert [sources.peek(train, i, "diagnosis") for i in range(len(train))] == want


def test_films_of_one_view_with_a_diagnosis_are_chosen_without_reading_records(
    chexpert_set, monkeypatch
):
    train = opened_chexpert(chexpert_set)
    want = [r["id"] for r in records_of(train) if r["view"] == "AP" and "diagnosis" in r]
    assert want
    with monkeypatch.context() as unread:
        unread.setattr(prepared.Prepared, "_raw", None)
        known = sources.only_with(sources.by_view(train, "AP"), {"diagnosis"})
    assert [record["id"] for record in records_of(known)] == want


def test_a_set_prepared_before_it_had_a_diagnosis_is_another_one(tmp_path, monkeypatch):
    source = make_chexpert(tmp_path / "source")
    original = prepared.fingerprint
    monkeypatch.setattr(
        prepared,
        "fingerprint",
        lambda *args: original(*(64 if a == (64, "diagnosis") else a for a in args)),
    )
    run_prepare("chexpert", source, tmp_path / "data", "--max_side=64")
    monkeypatch.setattr(prepared, "fingerprint", original)
    with pytest.raises(InputError, match="prepared from other files or with other options"):
        run_prepare("chexpert", source, tmp_path / "data", "--max_side=64")
