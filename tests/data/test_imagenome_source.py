"""Chest ImaGenome: regions and findings of scene graphs, the official split, and hostile graphs."""

import gzip
import json

import numpy as np
import pytest
from fake_box_sets import (
    SHAPE,
    dicom_name,
    edit_gz,
    graph_attributes,
    graph_object,
    graph_path,
    make_imagenome,
    scene_graph,
    write_graph,
    write_gz,
)
from fake_sets import draw_film, run_prepare

from cxr_jax.data import records, sources
from cxr_jax.data.records import REGIONS
from cxr_jax.data.sources import chest_imagenome, scene_graphs, tables
from cxr_jax.errors import InputError

FINDING = {name: k for k, name in enumerate(chest_imagenome.FINDINGS)}


@pytest.fixture(scope="module")
def prepared_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenome")
    run_prepare("chest_imagenome", make_imagenome(root / "source"), root / "data")
    return root / "data"


@pytest.fixture
def folder(tmp_path):
    return make_imagenome(tmp_path)


def opened(data_dir, split):
    return sources.open_source(sources.block("chest_imagenome", data_dir=str(data_dir)), split)


def table_of(folder, name):
    return folder / "mimic-cxr-jpg" / "2.0.0" / f"mimic-cxr-2.0.0-{name}.csv.gz"


def change(folder, number=0, **entries):
    graph = json.loads(graph_path(folder, number).read_text())
    return write_graph(folder, number, graph | entries)


def check_one_line(error, *words):
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_the_official_splits(prepared_set):
    names = {}
    for split in sources.SPLITS:
        source = opened(prepared_set, split)
        names[split] = [source[i]["id"] for i in range(len(source))]
        assert source.findings == chest_imagenome.FINDINGS
        assert source.fields == chest_imagenome.FIELDS
    assert names == {
        "train": [dicom_name(i) for i in range(4)],
        "val": [dicom_name(4)],
        "test": [dicom_name(5), dicom_name(6)],
    }


def test_a_record_is_what_the_graph_says(prepared_set):
    record = opened(prepared_set, "train")[1]
    records.check(record, findings=chest_imagenome.FINDINGS)
    assert (record["group"], record["view"]) == ("mimic-10000001", "AP")
    assert np.flatnonzero(~record["region_present"]).tolist() == [REGIONS.index("abdomen")]
    assert record["regions"][0].tolist() == [0, 10, 30, 60]  # over the edge: kept to the film
    assert record["regions"][1].tolist() == [1, 0, 21, 15]
    assert np.isnan(record["regions"][-1]).all()
    table = record["region_findings"]
    positive = {(REGIONS[r], chest_imagenome.FINDINGS[k]) for r, k in np.argwhere(table == 1)}
    # 'yes' of one sentence outweighs 'no' of another; the left lung's 'no' is no finding.
    assert positive == {("right lung", "lung opacity"), ("right lung", "pneumonia")}
    np.testing.assert_array_equal(np.isnan(table).all(axis=1), ~record["region_present"])
    assert not np.isnan(table[record["region_present"]]).any()
    # Of the film also what is said of regions without a box.
    anywhere = {chest_imagenome.FINDINGS[k] for k in np.flatnonzero(record["findings"] == 1)}
    assert anywhere == {"lung opacity", "pneumonia", "rib fracture", "hernia"}
    assert set(record["findings"].tolist()) == {0, 1}


def test_boxes_shrink_with_the_film(folder, tmp_path):
    run_prepare("chest_imagenome", folder, tmp_path / "data", "--max_side=40")
    record = opened(tmp_path / "data", "train")[0]
    assert record["image"].shape == (30, 40)
    np.testing.assert_allclose(record["regions"][0], [0, 5, 15, 30])


def test_what_is_left_out_is_told(folder):
    films, notes = chest_imagenome.read_index(folder)
    assert len(films) == 7
    assert notes == ["left out: 1 films that are neither PA nor AP"]
    few = [graph_object(name, [1, 1, 9, 9]) for name in REGIONS[:4]]
    path = change(folder, 0, objects=[*few, graph_object("svc", [2, 2, 2, 9])])
    change(folder, 1, objects=[])
    spine = graph_object("spine", [1, 1, 9, 9])
    twice = change(folder, 5, objects=[*scene_graph(5, 1)["objects"], spine])
    graph_path(folder, 2).unlink()
    films, notes = chest_imagenome.read_index(folder)
    assert [film.id for film in films] == [dicom_name(i) for i in (3, 4, 6)]
    assert notes == [
        "left out: 1 films of which a region has two boxes",
        "left out: 1 films that are neither PA nor AP",
        "left out: 2 films with fewer than 5 regions",
        "left out: 1 films without a scene graph",
        f"1 boxes without an area, the first: {path}: 'svc' [2.0, 2.0, 2.0, 9.0] on a film of "
        "80x60 px",
        f"1 regions with two boxes, the first: {twice}: 'spine'",
        f"2 scene graphs with fewer than 5 regions, the first: {path}: 4",
    ]


@pytest.mark.parametrize(
    "box", [[80, 1, 95, 9], [-9, 1, 0, 9], [5, 5, 5, 9], [9, 1, 5, 9], [1, 60, 5, 70]]
)
def test_a_box_without_an_area_on_the_film_is_none(tmp_path, box):
    graph = scene_graph(0, 1)
    graph["objects"][4] = graph_object(REGIONS[4], box)
    read = scene_graphs.read_graph(write_graph(tmp_path, 0, graph), SHAPE)
    assert np.isnan(read.regions[4]).all()
    assert np.isnan(read.regions).any(axis=1).sum() == 2
    assert read.faults["boxes without an area"] == [
        f"{REGIONS[4]!r} {[float(x) for x in box]} on a film of 80x60 px"
    ]
    # A second box of the region without an area does not make it one with two.
    graph["objects"].append(graph_object(REGIONS[4], [1, 1, 9, 9]))
    read = scene_graphs.read_graph(write_graph(tmp_path, 0, graph), SHAPE)
    assert (read.twice, read.regions[4].tolist()) == ("", [1, 1, 9, 9])


def test_unknown_names_are_told(tmp_path):
    graph = scene_graph(0, 1)
    graph["objects"].append(graph_object("left wing", [1, 1, 9, 9]))
    graph["attributes"].append(graph_attributes("spine", ["disease|yes|Pneumonia"]))
    read = scene_graphs.read_graph(write_graph(tmp_path, 0, graph), SHAPE)
    assert read.faults == {
        "unknown regions": ["'left wing'"],
        "unknown findings": ["'disease|Pneumonia'"],
    }
    assert read.anywhere.sum() == 4


def bomb_deep(path):
    path.write_text('{"image_id": ' + "[" * 100_000 + "]" * 100_000 + "}")


def bomb_wide(path):
    path.write_text('{"objects": [' + "[]," * 300_000 + "[]]}")


def cut(path):
    path.write_text(path.read_text()[:-200])


@pytest.mark.parametrize(
    "make, words",
    [
        (bomb_deep, r"is broken \(more than 24 levels deep|is broken \(more than 200000 lists"),
        (bomb_wide, r"is broken \(more than 200000 lists and objects\)"),
        (cut, r"is broken \(no JSON: line 1, column"),
        (lambda path: path.write_text("[]"), r"is broken \(a list, expected an object\)"),
        (lambda path: path.write_bytes(b"\xff\xfe"), r"is broken \(not UTF-8 text\)"),
    ],
)
def test_hostile_graphs(tmp_path, make, words):
    path = write_graph(tmp_path, 0, scene_graph(0, 1))
    make(path)
    with pytest.raises(InputError, match=words) as error:
        scene_graphs.read_graph(path, SHAPE)
    check_one_line(error, path.name)


BOX = graph_object("spine", [1, 2, 3, 4])
BAD_ENTRIES = [
    ({"objects": None}, r"has null as objects, expected a list"),
    ({"objects": [3]}, r"has no object as objects\[0\]"),
    ({"objects": [{"original_x1": 1}]}, r"lacks objects\[0\]\.bbox_name"),
    ({"objects": [BOX | {"original_x1": "1"}]}, r"a text as objects\[0\]\.original_x1, expected a"),
    ({"objects": [BOX | {"original_y2": 1e9}]}, r"1000000000\.0 as objects\[0\]\.original_y2, exp"),
    ({"objects": [BOX | {"original_y2": 10**400}]}, r"100000.* as objects\[0\]\.original_y2, expe"),
    ({"attributes": {}}, r"has an object as attributes, expected a list"),
    ({"attributes": [{"bbox_name": "spine", "attributes": "x"}]}, r"text as attributes\[0\]\.attr"),
    ({"attributes": [graph_attributes("spine", "x")]}, r"has 'None' in attributes\[0\]\.attribute"),
    ({"attributes": [graph_attributes("spine", ["x|yes"])]}, r"'x\|yes' in attributes\[0\]\.attri"),
    ({"attributes": [graph_attributes("spine", ["a|maybe|b"])]}, r"expected lists of CATEGORY\|ye"),
    ({"image_id": dicom_name(3)}, r"says it is of film '00000003-.*, not of its name's"),
    ({"patient_id": 10.5}, r"has a number as patient_id, expected a whole number or a text"),
    ({"viewpoint": None}, r"has null as viewpoint, expected a text"),
]


@pytest.mark.parametrize("entries, words", BAD_ENTRIES, ids=lambda x: str(x)[:40])
def test_bad_entries(folder, entries, words):
    path = change(folder, 0, **entries)
    with pytest.raises(InputError, match=words) as error:
        chest_imagenome.read_index(folder)
    check_one_line(error, path.name, "unpack the scene graphs again")


BAD_TABLES = [
    (
        "split",
        ("split", "training"),
        r"row 2, column 'split': 'training'; expected one of train, v",
    ),
    (
        "split",
        ("dicom_id", "../../x"),
        r"column 'dicom_id': '\.\./\.\./x'; expected an id as MIMIC",
    ),
    ("split", ("subject_id", "p1"), r"column 'subject_id': 'p1'; expected an id"),
    ("split", ("dicom_id", dicom_name(1)), r"is listed twice"),
    ("split", ("split", "test"), r"group '10000001' is in both split 'train' and split 'test'"),
    ("metadata", ("Rows", "0"), r"row 2, column 'rows': '0'; expected a number 1\.\.100000"),
    ("metadata", ("Rows", "tall"), r"column 'rows': 'tall'; expected a number"),
]


@pytest.mark.parametrize("table, edit, words", BAD_TABLES, ids=lambda x: str(x)[:40])
def test_bad_tables(folder, table, edit, words):
    edit_gz(table_of(folder, table), 2, *edit)
    if edit[1] == dicom_name(1):
        edit_gz(table_of(folder, table), 2, "study_id", "50000001")
    with pytest.raises(InputError, match=words) as error:
        chest_imagenome.read_index(folder)
    check_one_line(error)


@pytest.mark.parametrize("patient, told", [(77, "'77'"), ("7\n\x1b[2J", r"'7\\n\\x1b\[2J'")])
def test_a_graph_of_another_patient(folder, patient, told):
    path = change(folder, 0, patient_id=patient)
    words = rf"is of patient {told}, but the split table gives the film to 10000001"
    with pytest.raises(InputError, match=words) as error:
        chest_imagenome.read_index(folder)
    check_one_line(error, path.name)


def test_missing_folders_and_films(folder, tmp_path):
    with pytest.raises(
        InputError, match=r"there is no silver_dataset/scene_graph in it or two fold"
    ):
        chest_imagenome.read_index(tmp_path / "chest-imagenome" / "1.0.0" / "silver_dataset")
    with pytest.raises(InputError, match=r"there is no mimic-cxr-2\.0\.0-split\.csv in it"):
        chest_imagenome.read_index(tmp_path / "chest-imagenome")
    (film,) = (folder / "mimic-cxr-jpg").glob(f"2.0.0/files/*/*/*/{dicom_name(4)}.jpg")
    film.unlink()
    with pytest.raises(
        InputError, match=r"no film of split 'val' can be used \(1 that are not the"
    ):
        chest_imagenome.read_index(folder)
    table_of(folder, "metadata").unlink()
    with pytest.raises(InputError, match=r"metadata\.csv\.gz: there is no such file"):
        chest_imagenome.read_index(folder)


def test_a_film_of_another_size_is_refused(folder, tmp_path):
    (film,) = (folder / "mimic-cxr-jpg").glob(f"2.0.0/files/*/*/*/{dicom_name(2)}.jpg")
    draw_film(film, 2, (30, 40))
    with pytest.raises(
        InputError, match=r"is 40x30 px, but mimic-.* are of 80x60 px; give"
    ) as error:
        run_prepare("chest_imagenome", folder, tmp_path / "data")
    check_one_line(error, str(film))


# --- tables in .gz


def test_tables_may_be_unpacked(folder):
    before = chest_imagenome.read_index(folder)[0]
    for name in ("split", "metadata"):
        packed = table_of(folder, name)
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    assert chest_imagenome.read_index(folder)[0] == before


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda data: data[:-20], r"the compressed file is truncated or damaged"),
        (lambda data: b"a,b\n1,2\n", r"the compressed file is truncated or damaged"),
        (lambda data: gzip.compress(b"a,b\n\xff\xfe,2\n"), r"not UTF-8 text"),
    ],
)
def test_damaged_gz_tables(tmp_path, damage, words):
    path = tmp_path / "t.csv.gz"
    write_gz(path, [["a", "b"], *([i, i * i] for i in range(500))])
    assert len(tables.read_table(path, ("a",))[1]) == 500
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=words) as error:
        tables.read_table(path, ("a",))
    check_one_line(error, str(path))


def test_a_gz_of_blank_lines_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_BYTES", 2**20)
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n" + b"\n" * 2**22))
    with pytest.raises(InputError, match=r"over 1 MiB; no table here is so large"):
        tables.read_table(path, ("a",))
