"""Identifiers stay home: nothing of a DICOM header but what the picture needs gets anywhere.

Films with marks in every text field, whole and damaged, go through predict and prepare; whatever
was written or printed is searched for the marks. In a process of its own: pytest catches warnings
and the log, in which pydicom quotes what it reads.
"""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.conftest import ROOT
from tests.data.dicom_films import film_dataset

# pydicom warns in this process too, while the films are written.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

# What is in the header; each is looked for by itself.
NAME, WORD, DIGITS, ROOT_UID = "ZQMARK^QUENTIN", "ZQMARK", "8675309", "1.2.826.0.1.8675309"
DATE, DATE_TIME, TIME = "19370211", "19370211083143", "083143"
MARKS = re.compile(rb"ZQMARK|QUENTIN|8675309|19370211|083143", re.I)
TEXTS = {
    "PN": NAME,
    "LO": f"{WORD} long",
    "SH": f"{WORD} short",
    "CS": WORD,
    "ST": f"{WORD} text\r\nof lines \x1b[31m",
    "LT": f"{WORD} longer",
    "UT": f"{WORD} unlimited",
    "UC": f"{WORD} characters",
    "UR": f"http://{WORD}",
    "AE": WORD,
    "DA": DATE,
    "TM": TIME,
    "DT": DATE_TIME,
    "UI": f"{ROOT_UID}.3",
    "IS": DIGITS,
    "DS": DIGITS,
    "AS": "087Y",
}
NEEDED = {"Modality", "PhotometricInterpretation", "PatientOrientation", "VOILUTFunction"}
NEEDED |= {"WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "NumberOfFrames"}
NEEDED |= {"SpecificCharacterSet", "ViewPosition", "PixelPaddingValue", "Rows", "BitsStored"}
GROUPS = (0x0008, 0x0010, 0x0018, 0x0020, 0x0028, 0x0032, 0x0038, 0x0040)
RANDOM = 100


def mark_everything(dataset: Dataset) -> None:
    """A mark in every text element that a film's groups can have, and in two deep."""
    for tag, (vr, _, _, retired, name) in pydicom.datadict.DicomDictionary.items():
        if tag >> 16 in GROUPS and name and name not in NEEDED and not retired and vr in TEXTS:
            dataset.add_new(tag, vr, TEXTS[vr])
    dataset.SpecificCharacterSet = "ISO_IR 100"


def read_lengths(path) -> list[int]:
    """Where both bytes of the length of each element stand that a reader of films looks at."""
    dataset = pydicom.dcmread(path)
    tags = [pydicom.datadict.tag_for_keyword(name) for name in sorted(NEEDED)]
    elements = [dataset.get_item(tag) for tag in tags if tag in dataset]
    elements.append(dataset.file_meta.get_item("TransferSyntaxUID"))
    ends = [getattr(e, "value_tell", None) or e.file_tell for e in elements]
    return [end - 2 + byte for end in ends for byte in range(2)]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Whole films, films with one length byte flipped, and damaged by every kind of fault."""
    folder = tmp_path_factory.mktemp("films")
    film = film_dataset(
        PatientOrientation=["L", "F"],
        WindowCenter="128",
        WindowWidth="256",
        VOILUTFunction="LINEAR",
        RescaleSlope="1",
        RescaleIntercept="0",
        NumberOfFrames="1",
        ViewPosition="PA",
    )
    with pydicom.config.disable_value_validation():
        mark_everything(film)
        item, deeper = Dataset(), Dataset()
        mark_everything(item)
        mark_everything(deeper)
        item.ReferencedStudySequence = Sequence([deeper])
        film.RequestAttributesSequence = film.ReferencedStudySequence = Sequence([item])
        film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID = f"{ROOT_UID}.4"
        film.save_as(folder / "whole.dcm", enforce_file_format=True)
        for k, elements in enumerate(
            [
                {"Modality": WORD},
                {"Modality": "CT"},
                {"PhotometricInterpretation": WORD},
                {"VOILUTFunction": WORD},
                {"RescaleSlope": f"{DIGITS}0000", "RescaleIntercept": "0"},
                {"NumberOfFrames": "3"},
                {"PixelData": b""},
            ]
        ):
            faulty = pydicom.dcmread(folder / "whole.dcm")
            for name, value in elements.items():
                setattr(faulty, name, value)
            faulty.save_as(folder / f"fault{k}.dcm", enforce_file_format=True)
    whole = (folder / "whole.dcm").read_bytes()
    header, rng = whole.index(b"\xe0\x7f\x10\x00"), np.random.default_rng(0)
    flips = [(at, bit) for at in read_lengths(folder / "whole.dcm") for bit in range(8)]
    flips += [(int(rng.integers(132, header)), int(rng.integers(8))) for _ in range(RANDOM)]
    for k, (at, bit) in enumerate(flips):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit
        (folder / f"{k}.dcm").write_bytes(damaged)
    for k in range(8):
        (folder / f"cut{k}.dcm").write_bytes(whole[: header * (k + 1) // 9])
    return folder


PREDICT = """
import pathlib, sys
from cxr_jax import cli, predict
from cxr_jax.inputs.films import Films
from tests.test_predict_outputs import StubRun
stub = StubRun()
predict._open = lambda *_, **__: (Films(stub), stub)
paths = [pathlib.Path(sys.argv[1])]
cli.run_command(lambda: predict.predict(paths, pathlib.Path("RUN"), pathlib.Path(sys.argv[2])))
"""
PREPARE = """
import pathlib, sys
from cxr_jax import cli
from cxr_jax.data import prepare
def each():
    for table in sorted(pathlib.Path(sys.argv[1]).glob("*.csv")):
        try:
            prepare.main(["manifest", f"--source={table}", f"--data_dir={sys.argv[2]}"])
        except cli.InputError as error:
            print(f"error: {error}", file=sys.stderr)
cli.run_command(each)
"""


def start(code, *args, verbose=True):
    """A Python process that shows every warning; all it printed."""
    done = subprocess.run(
        [sys.executable, *(["-W", "default"] if verbose else []), "-c", code, *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return done.returncode, done.stdout + done.stderr


def assert_unmarked(printed: bytes, folder):
    for where, content in [
        ("printed", printed),
        *((path, path.read_bytes()) for path in folder.rglob("*") if path.is_file()),
        *((f"name of {path}", path.name.encode()) for path in folder.rglob("*")),
    ]:
        found = MARKS.search(content)
        assert not found, f"{where}: {content[max(found.start() - 200, 0) : found.end() + 50]!r}"


def test_the_films_are_marked(films):
    header = (films / "whole.dcm").read_bytes()
    assert len(MARKS.findall(header)) > 1000
    vrs = {e.VR for e in pydicom.dcmread(films / "whole.dcm").iterall()}
    assert {"PN", "LO", "SH", "UI", "DA", "TM", "LT", "ST", "UT", "SQ", "DT", "UC"} <= vrs


def test_predict_keeps_them(films, tmp_path):
    status, printed = start(PREDICT, films, tmp_path / "out")
    assert status == 0, printed[-2000:]
    assert_unmarked(printed, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").open()]
    failed = sum("error" in line for line in lines)
    assert len(lines) == len(list(films.iterdir()))
    assert 30 < failed < len(lines) - 30  # both ways were walked
    assert not set(printed) & {0, 27}


def test_prepare_keeps_them(films, tmp_path):
    """Whole films into a set; damaged ones a table each, of which each is one line."""
    tables = tmp_path / "tables"
    tables.mkdir()
    some = [*sorted(films.glob("fault*.dcm")), *sorted(films.glob("[0-9]*.dcm"))[:12]]
    for k, films_of in enumerate([[films / "whole.dcm"], *([film] for film in some)]):
        rows = [f"{film},patient{n},train" for n, film in enumerate(films_of)]
        (tables / f"t{k}.csv").write_text("\n".join(["image,group,split", *rows]))
    status, printed = start(PREPARE, tables, tmp_path / "data")
    assert status == 0, printed[-2000:]
    assert b"prepared 1 train" in printed
    assert b"Traceback" not in printed
    assert_unmarked(printed, tmp_path)
