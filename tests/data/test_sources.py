"""Sources: both layouts of brixia_cohen, the manifest, groups, folds, and every bad table."""

import pathlib
import pickle

import cv2
import numpy as np
import pytest
from fake_sets import (
    brixia_config,
    draw_lungs,
    edit,
    make_manifest,
    make_prepared,
    make_public,
    manifest_config,
    run_prepare,
)

from cxr_jax.data import sources, splits
from cxr_jax.data.sources import brixia_cohen, manifest, prepared, tables
from cxr_jax.errors import InputError


@pytest.fixture(scope="module")
def set_b(tmp_path_factory):
    """The prepared layout, prepared: (source folder, data_dir)."""
    root = tmp_path_factory.mktemp("b")
    source = make_prepared(root / "source")
    run_prepare("brixia_cohen", source, root / "data", "--max_side=80")
    return source, root / "data"


def test_prepared_layout_gives_standard_records(set_b):
    source, data_dir = set_b
    train = sources.open_source(brixia_config(data_dir), "train")
    test = sources.open_source(brixia_config(data_dir), "test")
    assert (len(train), len(test)) == (10, 4)
    assert train.fields == brixia_cohen.FIELDS
    assert [train[i]["id"] for i in range(10)] == [f"f{i}" for i in range(10)]  # the table's order
    record = train[0]
    # S_A..S_F = 0 1 2 3 0 1: A, B, C down the right lung (image left), D, E, F down the left.
    np.testing.assert_array_equal(record["severity"], [[0, 3], [1, 0], [2, 1]])
    np.testing.assert_array_equal(record["severity_second"], np.ones((3, 2)))
    assert record["severity"].dtype == np.int8
    assert record["severity_valid"].dtype == bool
    assert record["severity_valid"].all()
    assert record["group"] == "p0"
    # 120x90 reduced to a longest side of 80, mask with it.
    assert record["image"].shape == record["lungs"].shape == (60, 80)
    assert set(np.unique(record["lungs"])) == {0, 1, 2}
    columns = [np.nonzero(record["lungs"] == lung)[1].mean() for lung in (1, 2)]
    assert columns[0] < 40 < columns[1]
    # A film that was small enough is stored to the bit.
    original = cv2.imread(str(source / "images" / "f3.png"), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(train[3]["image"], original)
    with pytest.raises(IndexError):
        train[10]


def test_a_film_without_a_mask_has_no_lungs(set_b):
    train = sources.open_source(brixia_config(set_b[1]), "train")
    without = [i for i in range(10) if "lungs" not in train[i]]
    assert without == [1, 5, 9]
    assert [i for i in range(10) if not train.has(i, "lungs")] == without
    masked = sources.only_with(train, {"image", "lungs"})
    assert [masked[i]["id"] for i in range(len(masked))] == [f"f{i}" for i in (0, 2, 3, 4, 6, 7, 8)]
    assert "lungs" not in masked.partial
    assert sources.only_with(train, {"image", "severity"}) is train


def test_folds_part_the_training_films_by_patient(set_b):
    seen = []
    for fold in range(brixia_cohen.FOLDS):
        train = sources.open_source(brixia_config(set_b[1], fold), "train")
        val = sources.open_source(brixia_config(set_b[1], fold), "val")
        groups = [{source[i]["group"] for i in range(len(source))} for source in (train, val)]
        assert not groups[0] & groups[1]
        assert len(train) + len(val) == 10
        seen += [val[i]["id"] for i in range(len(val))]
    assert sorted(seen) == [f"f{i}" for i in range(10)]


def test_prepared_sources_pickle(set_b):
    source = sources.open_source(brixia_config(set_b[1], fold=1), "val")
    again = pickle.loads(pickle.dumps(source))
    assert again.version == source.version
    for i in range(len(source)):
        for key, value in source[i].items():
            np.testing.assert_array_equal(again[i][key], value)


@pytest.mark.parametrize(
    "split, fold, words",
    [("val", -1, r"no validation split with data\.fold=-1"), ("train", 5, r"data\.fold=5")],
)
def test_a_wrong_fold_is_refused(set_b, split, fold, words):
    with pytest.raises(InputError, match=words):
        sources.open_source(brixia_config(set_b[1], fold), split)


def test_a_missing_set_names_the_command(tmp_path):
    with pytest.raises(InputError) as error:
        sources.open_source(brixia_config(tmp_path / "none"), "train")
    command = "python -m cxr_jax.data.prepare brixia_cohen --source=FOLDER"
    assert f"{command} --data_dir={tmp_path / 'none'}" in str(error.value)


def test_the_default_data_folder_is_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CXR_DATA_DIR", str(tmp_path))
    assert prepared.data_folder("") == tmp_path
    assert prepared.data_folder("/elsewhere") == pathlib.Path("/elsewhere")
    monkeypatch.delenv("CXR_DATA_DIR")
    assert prepared.data_folder("") == pathlib.Path("~/cxr_jax_data").expanduser()


def test_public_layout(tmp_path):
    films = brixia_cohen.read_index(make_public(tmp_path))
    assert len(films) == 26
    assert [film.id for film in films][-2:] == ["immagine 2", "mild"]
    assert [film.lungs is not None for film in films[:4]] == [True, False, False, True]
    assert {film.group for film in films[:4]} == {"covid-19-pneumonia-20", "covid-19-pneumonia-21"}
    of = {split: {f.group for f in films if f.split == split} for split in ("train", "test")}
    assert not of["train"] & of["test"]
    assert 4 <= sum(film.split == "test" for film in films) <= 9  # a quarter of 26, whole groups
    assert {film.fold for film in films if film.split == "train"} == set(range(5))
    assert {film.fold for film in films if film.split == "test"} == {-1}
    again = brixia_cohen.read_index(tmp_path)
    assert [(f.id, f.split, f.fold) for f in films] == [(f.id, f.split, f.fold) for f in again]


@pytest.mark.parametrize(
    "stem, group",
    [
        ("covid-19-pneumonia-2", "covid-19-pneumonia-2"),
        ("covid-19-pneumonia-20-pa-on-admission", "covid-19-pneumonia-20"),
        ("covid-19-pneumonia-44-day-0", "covid-19-pneumonia-44"),
        ("covid-19-caso-70-2-APS", "covid-19-caso-70"),
        ("pneumocystis-jirovecii-pneumonia-3-2", "pneumocystis-jirovecii-pneumonia-3"),
        ("x-background-pneumonia-day6-2", "x-background-pneumonia"),
        (
            "covid-19-pneumonia-rapidly-progressive-12-hours",
            "covid-19-pneumonia-rapidly-progressive",
        ),
        ("lancet-case2b", "lancet-case2"),
        ("nejmoa2001191_f5-PA", "nejmoa2001191"),
        ("88de9d8c39e946abd495b37cd07d89e5-2ee6-0", "88de9d8c39e946abd495b37cd07d89e5"),
        ("16654_2_1", "16654"),
        ("0", "brescia-series"),
        ("1-13-3", "brescia-series"),
        ("AR-2", "extubation"),
        ("F4341CE7-73C9-45C6-99C8-8567A5484B63", "E63574A7-4188-4C8D-8D17-9D67A18A1AFA"),
        ("2C26F453-AF3B-4517-BB9E-802CF2179543", "2C26F453-AF3B-4517-BB9E-802CF2179543"),
    ],
)
def test_group_of_public_names(stem, group):
    assert brixia_cohen.group_of(stem) == group


def test_groups_from_names_never_part_a_known_case(cxr_data):
    """The prepared folder's groups were checked by eye; ours may only be coarser."""
    _, rows = tables.read_table(cxr_data / "brixia_cohen" / "annotations.csv", ["image", "group"])
    ours = {}
    for row in rows:
        stem = pathlib.Path(row["image"]).stem
        if stem.startswith("immagine_"):
            stem = stem.replace("_", " ")  # its name in the public repository
        ours.setdefault(row["group"], set()).add(brixia_cohen.group_of(stem))
    assert len(ours) == 101
    assert {group: names for group, names in ours.items() if len(names) > 1} == {}


def test_the_real_set(cxr_data):
    films = brixia_cohen.read_index(cxr_data / "brixia_cohen")
    train = [film for film in films if film.split == "train"]
    assert (len(train), len(films) - len(train)) == (107, 36)
    assert sum(film.lungs is not None for film in train) == 86
    # Global scores of the data set's README.
    assert np.mean([film.severity.sum() for film in train]) == pytest.approx(7.24, abs=0.005)
    assert np.mean([film.second.sum() for film in train]) == pytest.approx(6.57, abs=0.005)
    counts = np.bincount([film.fold for film in train])
    assert counts.min() >= 21
    assert counts.max() <= 22


BAD_TABLES = [
    (("S_C", "4"), r"row 3, column 's_c': '4'; expected a whole number 0\.\.3"),
    (("S_C", "1.5"), r"column 's_c': '1\.5'"),
    (("S_C", "nan"), r"column 's_c': 'nan'"),
    (("J_F", "-1"), r"column 'j_f': '-1'"),
    (("image", "gone.png"), r"row 3, column 'image': 'gone\.png'; there is no file"),
    (("image", "f0.png"), r"film 'f0' is listed twice"),
    (("split", "valid"), r"column 'split': 'valid'; expected one of train, test"),
    (("split", "test"), r"group 'p0' is in both split 'train' and split 'test'"),
    (("group", ""), r"column 'group': ''; this column must not be empty"),
    (("lungs", "1"), r"column 'lungs': '1'; there is no file .*f1\.png"),
]


@pytest.mark.parametrize("change, words", BAD_TABLES, ids=lambda x: str(x)[:24])
def test_bad_brixia_tables(tmp_path, change, words):
    table = make_prepared(tmp_path) / "annotations.csv"
    edit(table, 3, *change)
    with pytest.raises(InputError, match=words) as error:
        brixia_cohen.read_index(tmp_path)
    assert str(table) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_score_is_an_unscored_zone(tmp_path):
    edit(make_prepared(tmp_path) / "annotations.csv", 2, "S_D", "")
    film = brixia_cohen.read_index(tmp_path)[0]
    np.testing.assert_array_equal(film.valid, [[True, False], [True, True], [True, True]])


@pytest.mark.parametrize(
    "content, words",
    [
        ("image,S_A\nf.png,1\n", "column 'S_B' is missing; found image, s_a"),
        ("image;S_A\nf.png;1\n", "column 'image' is missing.*separate cells by commas"),
        ("", "column 'image' is missing; found nothing"),
        ("image,image\na,b\n", "column 'image' comes twice"),
        (b"image,S_A\n\xff\xfe,1\n", "not UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\0\0", "not UTF-8 text"),
    ],
)
def test_files_that_are_no_table(tmp_path, content, words):
    path = tmp_path / "annotations.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=words):
        brixia_cohen.read_index(tmp_path)


def test_ragged_and_empty_tables(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n\n1,2,3\n")
    with pytest.raises(InputError, match="row 4 has 3 cells, the header 2"):
        tables.read_table(path, ["a"])
    path.write_text("a,b\n")
    with pytest.raises(InputError, match="no rows"):
        tables.read_table(path, ["a"])
    with pytest.raises(InputError, match="there is no such file"):
        tables.read_table(tmp_path / "none.csv", ["a"])


def test_a_folder_of_neither_layout(tmp_path):
    with pytest.raises(InputError, match="git clone"):
        brixia_cohen.read_index(tmp_path)


def test_folds_do_not_depend_on_the_order_of_films():
    rng = np.random.default_rng(0)
    groups = np.array([f"g{k}" for k in rng.integers(0, 30, 100)])
    scores = rng.integers(0, 19, 100)
    options = {"folds": 5, "edges": brixia_cohen.GLOBAL_CLASSES}
    folds = splits.balanced_folds(list(groups), scores, **options)
    order = rng.permutation(100)
    again = splits.balanced_folds(list(groups[order]), scores[order], **options)
    np.testing.assert_array_equal(again, folds[order])
    assert all(len(set(folds[groups == g])) == 1 for g in set(groups))
    assert np.bincount(folds, minlength=5).min() >= 17  # 20 each would be even


def check_manifest_records(train):
    assert train.fields == {
        *("image", "id", "group", "view", "lungs", "lesion", "diagnosis"),
        *("severity", "severity_valid", "findings"),
    }
    assert train.partial == {"lungs", "lesion", "diagnosis"}
    first, second = train[0], train[1]
    assert (first["id"], first["group"], first["view"]) == ("films/0.png", "p0", "PA")
    assert first["image"].shape == first["lungs"].shape == (60, 80)
    assert set(np.unique(first["lungs"])) == {0, 1, 2}
    assert set(np.unique(first["lesion"])) == {0, 1}
    assert first["diagnosis"] == 2
    np.testing.assert_array_equal(first["severity"], [[0, 3], [1, 0], [2, 1]])
    np.testing.assert_array_equal(first["severity_valid"], [[1, 1], [1, 0], [1, 1]])
    assert not second["severity_valid"].any()
    assert not {"lungs", "lesion", "diagnosis"} & second.keys()
    assert second["findings"].dtype == np.float32
    assert second["findings"][3] == 1  # edema
    assert np.isnan(np.delete(second["findings"], 3)).all()
    assert len(sources.only_with(train, {"diagnosis"})) == 1


def test_manifest_from_the_table_and_prepared(tmp_path, caplog):
    path = make_manifest(tmp_path)
    train = sources.open_source(manifest_config(path), "train")
    check_manifest_records(pickle.loads(pickle.dumps(train)))
    run_prepare("manifest", path, tmp_path / "data")
    folder = tmp_path / "data" / "manifest" / "films" / prepared.VERSION
    for split, count in {"train": 2, "val": 1, "test": 1}.items():
        assert len(sources.open_source(manifest_config(folder), split)) == count
    check_manifest_records(sources.open_source(manifest_config(folder), "train"))


def test_manifest_says_which_columns_it_ignores(tmp_path):
    said = manifest.Manifest(make_manifest(tmp_path), "train").notes
    assert said == ("columns that are not known and not used: scanner",)


def test_a_misspelt_column_is_told_with_what_may_be_meant(tmp_path):
    path = make_manifest(tmp_path)
    header, rows = path.read_text().split("\n", 1)
    path.write_text(f"{header.replace('lungs', 'Lung').replace('Edema', 'oedema')}\n{rows}")
    (said,) = manifest.Manifest(path, "train").notes
    assert said.endswith(": lung (meant is lungs?), oedema (meant is edema?), scanner")


def test_prepare_says_how_many_films_lack_what(tmp_path, capsys):
    run_prepare("manifest", make_manifest(tmp_path), tmp_path / "data")
    printed = capsys.readouterr().out
    assert "manifest: columns that are not known and not used: scanner" in printed
    assert "of 4 films have no lungs: what needs it leaves them out" in printed


BAD_MANIFESTS = [
    (("severity_B", "5"), r"row 3, column 'severity_b': '5'; expected a whole number 0\.\.3"),
    (("Edema", "-1"), r"column 'edema': '-1'; expected a whole number 0\.\.1"),
    (("diagnosis", "flu"), r"column 'diagnosis': 'flu'; expected one of normal"),
    (("view", "lateral"), r"column 'view': 'lateral'; expected one of PA, AP, empty"),
    (("image", "films/9.png"), r"column 'image': 'films/9\.png'; there is no file"),
    (("lungs", "masks/9.png"), r"column 'lungs': 'masks/9\.png'; there is no file"),
    (("image", "films/0.png"), r"film 'films/0\.png' is listed twice"),
    (("split", "dev"), r"column 'split': 'dev'; expected one of train, val, test"),
    (("group", "p2"), r"group 'p2' is in both split 'train' and split 'val'"),
]


@pytest.mark.parametrize("change, words", BAD_MANIFESTS, ids=lambda x: str(x)[:24])
def test_bad_manifests(tmp_path, change, words):
    path = make_manifest(tmp_path)
    edit(path, 3, *change)
    with pytest.raises(InputError, match=words) as error:
        sources.open_source(manifest_config(path), "test")  # whatever the split that is opened
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("group", "patient", "column 'group' is missing"),
        ("severity_C", "severity_Z", "column 'severity_c' is missing beside 'severity_a'"),
    ],
)
def test_manifest_columns(tmp_path, old, new, words):
    path = make_manifest(tmp_path)
    edit(path, 1, old, new)
    with pytest.raises(InputError, match=words):
        sources.open_source(manifest_config(path), "train")


def test_manifest_without_films_or_path(tmp_path):
    path = make_manifest(tmp_path)
    edit(path, 4, "split", "train")
    with pytest.raises(InputError, match="no row has split 'val'"):
        sources.open_source(manifest_config(path), "val")
    with pytest.raises(InputError, match=r"data\.path is empty"):
        sources.open_source(manifest_config(""), "val")
    with pytest.raises(InputError, match="there is no such file"):
        sources.open_source(manifest_config(tmp_path / "none.csv"), "val")


def test_masks_of_another_size_and_empty_masks_are_named(tmp_path):
    path = make_manifest(tmp_path)
    train = sources.open_source(manifest_config(path), "train")
    draw_lungs(tmp_path / "masks/0.png", (30, 40))
    with pytest.raises(InputError, match=r"masks/0\.png.*30"):
        train[0]
    cv2.imwrite(str(tmp_path / "masks/0.png"), np.zeros((60, 80), np.uint8))
    with pytest.raises(InputError, match=r"masks/0\.png: the mask has no lung pixel"):
        train[0]


def test_training_films_by_global_severity(set_b):
    config = brixia_config(set_b[1])
    everything = sources.open_source(config, "train")
    scores = [int(everything[i]["severity"].sum()) for i in range(len(everything))]
    cut = int(np.median(scores))
    mild, severe = (
        sources.by_severity(everything, *between) for between in ((0, cut), (cut + 1, 18))
    )
    assert 0 < len(mild) < len(everything)
    assert len(mild) + len(severe) == len(everything)
    assert max(int(mild[i]["severity"].sum()) for i in range(len(mild))) <= cut
    assert min(int(severe[i]["severity"].sum()) for i in range(len(severe))) > cut
    assert "lungs" in mild.partial
    assert sources.by_severity(everything, 0, 18) is everything

    config.max_severity = cut
    assert len(sources.open_source(config, "train")) == len(mild)
    assert len(sources.open_source(config, "test")) == 4  # never filtered
    for wrong in ((5, 3), (-1, 3), (0, 19)):
        with pytest.raises(InputError, match="0 <= min_severity <= max_severity <= 18"):
            sources.by_severity(everything, *wrong)
    unused = next(score for score in range(19) if score not in scores)
    with pytest.raises(InputError, match="no film with a global severity"):
        sources.by_severity(everything, unused, unused)
