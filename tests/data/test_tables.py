"""Tables as hospitals and spreadsheets write them, and what is said of those with mistakes."""

import time

import cv2
import numpy as np
import pytest
from test_readers import GREY, encoded

from cxr_jax import migrations, workdir
from cxr_jax.data import sources
from cxr_jax.data.sources import ct_volume, manifest, tables
from cxr_jax.errors import InputError

HEADER = ("image", "group", "split", "Edema")
ROWS = [("a.png", "Müller", "train", "1"), ("b.png", "p2", "val", ""), ("c.png", "p3", "test", "0")]


@pytest.fixture
def write(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(encoded(GREY, "PNG"))

    def to_file(rows=ROWS, header=HEADER, separator=",", encoding="utf-8"):
        path = tmp_path / "films.csv"
        lines = [separator.join(cells) for cells in (header, *rows)]
        path.write_bytes("\r\n".join(lines).encode(encoding))
        return path

    return to_file


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252"])
def test_what_spreadsheets_write_is_read_with_a_word(write, separator, encoding, capsys):
    path = write(separator=separator, encoding=encoding)
    record = manifest.Manifest(path, "train")[0]
    assert record["group"] == "Müller"
    assert record["findings"][list(manifest.FINDINGS).index("edema")] == 1
    said = capsys.readouterr().err
    usual = separator == "," and encoding != "cp1252"
    assert said.count("\n") == (0 if usual else 1)
    assert usual or ("cp1252" in said) == (encoding == "cp1252")
    assert (separator == ";") == ("semicolon" in said)


def test_numbers_of_a_semicolon_table_may_have_a_comma(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a;b\n127,5;2,0\n")
    _, (row,) = tables.read_table(path, ("a",), separators=tables.SPREADSHEET)
    assert row.real("a", 0, 1000) == 127.5
    assert row.number("b", 0, 3) == 2


def told(call, *arguments):
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes_are_told_all_at_once(write):
    rows = [("a.png", "p1", "trian", "2"), ("x.png", "", "val", ""), ("c.png", "p3", "test")]
    path = write(rows)
    text = told(manifest.Manifest, path, "train")
    assert text.startswith(f"{path}: 5 mistakes: (1) row 4 has 3 cells")
    for words in (
        "row 2, column 'split': 'trian'; expected one of train, val, test",
        "row 2, column 'edema': '2'; expected a whole number 0..1",
        "row 3, column 'image': 'x.png'; there is no file",
        "row 3, column 'group': ''; this column must not be empty",
    ):
        assert words in text
    many = [("a.png", f"p{i}", "nowhere", "") for i in range(1000)]
    text = told(manifest.Manifest, write(many), "train")
    assert "1000 mistakes: (1) row 2" in text
    assert "(10) row 11" in text
    assert text.endswith("; and 990 more")
    assert len(text) < 2000


def test_mistakes_of_volumes_are_told_all_at_once(tmp_path):
    path = tmp_path / "volumes.csv"
    path.write_text(
        "volume;group;split;label;ranges\n"
        "a.nii;p1;dev;1;\nb.nii;;train;7;\nc.nii;p3;test;0;5-3\nd.nii;p4;test\n"
    )
    text = told(ct_volume.read_index, path)
    for words in ("row 5 has 3", "column 'split': 'dev'", "column 'group': ''", "there is no"):
        assert words in text
    assert text.count("row 2, column 'split'") == 1


def test_a_misspelt_column_is_named_with_what_it_may_mean(write, capsys):
    header = ("image", "group", "split", "edemma")
    (said,) = manifest.Manifest(write(header=header), "train").notes
    assert said == "columns that are not known and not used: edemma (meant is edema?)"
    text = told(manifest.Manifest, write(header=("image", "grup", "splitt", "edema")), "train")
    assert "column 'group' is missing; found image, grup, splitt, edema" in text
    assert "missing too: split" in text
    assert "did you mean 'group' by 'grup'?" in text
    assert "did you mean 'split' by 'splitt'?" in text


def test_forty_thousand_columns_take_no_time(write):
    names = [f"c{i}" for i in range(40_000)]
    started = time.process_time()
    text = told(manifest.Manifest, write([], header=(*HEADER, *names)), "train")
    assert "40004 columns; at most 10000" in text
    rows = [(*row, *["1"] * 9000) for row in ROWS]
    path = write(rows, header=(*HEADER, *names[:9000]))
    assert len(manifest.Manifest(path, "train")) == 1
    assert time.process_time() - started < 5
    text = told(tables.read_table, write([], header=names[:9000]), ("image",))
    assert len(text) < 1000


def test_names_that_no_disk_holds_are_one_line(write):
    rows = [
        ("x" * 300, "p1", "train", ""),
        ("a\0b", "p2", "val", ""),
        ("y" * 5000, "p3", "test", ""),
    ]
    text = told(manifest.Manifest, write(rows), "train")
    assert "3 mistakes" in text or "NUL" in text
    assert text.isprintable()
    rows[1] = ROWS[1]
    text = told(manifest.Manifest, write(rows), "train")
    assert "row 2, column 'image'" in text
    assert "row 4, column 'image'" in text


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_film_is_found_when_the_table_is(write, kind):
    path = write()
    film = path.parent / "c.png"
    whole = encoded(cv2.resize(np.tile(GREY, (4, 4)), (400, 300)), kind)
    film.write_bytes(whole)
    manifest.Manifest(path, "train")
    film.write_bytes(whole[: len(whole) // 2])
    text = told(manifest.Manifest, path, "train")  # of another split, too
    assert "row 4, column 'image': 'c.png'" in text
    assert "the file is truncated; copy or export it again" in text
    film.write_text("no picture")
    assert "not an image" in told(manifest.Manifest, path, "train")


def test_a_claimed_config_has_the_place_of_its_table_from_the_root(write, tmp_path, monkeypatch):
    import ml_collections

    write()
    monkeypatch.chdir(tmp_path)
    added = {name: migrations.ADDED[name] for name in ("early_stopping", "refresh_batches")}
    config = ml_collections.ConfigDict({"task": "severity", "seed": 0} | added)
    config.data = sources.block("manifest", path="films.csv")
    config.second = sources.second_block("manifest", path="films.csv")
    run = tmp_path / "run"
    workdir.claim(config, run, sources.open_source(config.data, "train"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    saved = workdir.read_config(run)
    assert saved.data.path == saved.second.path == str(tmp_path / "films.csv")
    assert len(sources.open_source(saved.data, "val")) == 1
    # A run of an older version, with the place as it was typed, is the same run from there.
    monkeypatch.chdir(tmp_path)
    (run / "checkpoints" / "1").mkdir(parents=True)
    (run / "config.json").write_text(config.to_json())
    workdir.check_config(saved, run)
    workdir.check_config(config, run)
