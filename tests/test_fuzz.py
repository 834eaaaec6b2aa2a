"""Every reader and every small file, on seeded mutations of valid inputs.

What comes out is a result or an `InputError`, in bounded time and memory, never another exception.
`CXR_FUZZ=2000 pytest tests/test_fuzz.py` tries so many of each kind in place of a few.
"""

import copy
import gzip
import io
import json
import os
import pathlib
import random
import resource
import time
import warnings
import zipfile

import cv2
import nibabel
import numpy as np
import pydicom
import pytest
import safetensors.numpy
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate

from cxr_jax import evaluate, report, weight_files, weights, workdir, writers
from cxr_jax.data import readers, volumes
from cxr_jax.data.sources import (
    cncb,
    covid_ct,
    covidx_ct,
    ct_volume,
    manifest,
    nih_cxr14,
    scene_graphs,
)
from cxr_jax.data.sources.prepared import layout
from cxr_jax.errors import InputError
from cxr_jax.figures import charts
from cxr_jax.inputs.outputs import OutputFolder
from cxr_jax.tasks import make_task

INPUTS = int(os.environ.get("CXR_FUZZ", "25"))  # of each kind
MOST_SECONDS, MOST_MB = 5, 1000  # of one input; of all of one kind, beside what was there before
FIXTURES = pathlib.Path(__file__).parent / "fixtures"
GREY = cv2.GaussianBlur(
    np.random.default_rng(0).integers(0, 256, (40, 48), dtype=np.uint8), (0, 0), 2
)
RGB = np.dstack([GREY, GREY[::-1], GREY[:, ::-1]])
ODD = (0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5B, 0x7B, 0x2C, 0x3B, 0x0A, 0x1B)
VALUES = (None, True, -1, 0, 10**30, 1.5, "", "x", "\0\x1b[2J", [], {}, [[]], {"a": 1}, ["a", 1])


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The bytes with one to four changes."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        size = max(len(data), 1)
        # Headers are small and at the beginning: most changes are there.
        at = chance.randrange(min(size, chance.choice((32, 400, size, size))))
        length = min(chance.choice((1, 2, 4, 8, 100, size // 2)), size - at)
        match chance.randrange(7):
            case 0:
                data[at : at + 1] = bytes([data[at] ^ 1 << chance.randrange(8)]) if data else b"a"
            case 1:
                data[at : at + 1] = bytes([chance.choice(ODD)])
            case 2:
                data[at : at + length] = bytes([chance.choice(ODD)]) * length
            case 3:
                del data[at:]
            case 4:
                del data[at : at + length]
            case 5:
                data[at:at] = data[at : at + length]
            case 6:
                data[at : at + length] = chance.randbytes(length)
    return bytes(data)


def json_mutated(value, chance: random.Random) -> bytes:
    """The JSON with some of its values replaced, removed or moved."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 2, 4))):
        place = value
        while isinstance(place, (dict, list)) and place:
            key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
            inner = place[key]
            if isinstance(inner, (dict, list)) and inner and chance.random() < 0.7:
                place = inner
                continue
            if chance.random() < 0.2:
                del place[key]
            else:
                place[key] = copy.deepcopy(chance.choice(VALUES))
            break
    data = json.dumps(value).encode()
    return mutated(data, chance) if chance.random() < 0.3 else data


def picture(kind, array=GREY, **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def dicom(array=GREY, syntax=uid.ExplicitVRLittleEndian, frame=None, **elements):
    film = pydicom.Dataset()
    film.file_meta = pydicom.dataset.FileMetaDataset()
    film.file_meta.TransferSyntaxUID = syntax
    film.SOPClassUID, film.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    film.Modality, film.PatientName = "CT", "A^B"
    film.Rows, film.Columns = array.shape[:2]
    film.SamplesPerPixel = 1 if array.ndim == 2 else 3
    film.PhotometricInterpretation = "MONOCHROME2" if array.ndim == 2 else "RGB"
    film.PlanarConfiguration = 0
    film.BitsAllocated = film.BitsStored = 8 * array.dtype.itemsize
    film.HighBit = film.BitsStored - 1
    film.PixelRepresentation = 0
    film.RescaleSlope, film.RescaleIntercept = "1.0", "-1024"
    film.WindowCenter, film.WindowWidth = "-900", "200"
    film.PixelSpacing, film.ImagePositionPatient = [1, 1], [0, 0, 0]
    film.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    film.PixelData = array.tobytes() if frame is None else encapsulate([frame])
    film["PixelData"].VR = "OW" if frame is None else "OB"
    for name, value in elements.items():
        setattr(film, name, value)
    if syntax == uid.RLELossless:
        film.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        film.compress(uid.RLELossless)
    stream = io.BytesIO()
    film.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def deflated(with_preamble):
    data = dicom(syntax=uid.DeflatedExplicitVRLittleEndian)
    return data if with_preamble else data[132:]


def nifti():
    values = np.random.default_rng(0).integers(-1000, 500, (8, 8, 6)).astype(np.int16)
    return nibabel.Nifti1Image(values, np.eye(4)).to_bytes()


def npz(**arrays):
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def members_mutated(data: bytes, chance: random.Random) -> bytes:
    """A zip with the content of one member changed, and checksums that hold."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        chosen = chance.choice(old.namelist())
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, mutated(content, chance) if name == chosen else content)
    return stream.getvalue()


def film(path):
    for read in (readers.read_film, readers.read_mask, readers.check_whole):
        try:
            read(path)
        except InputError as error:
            check_line(error)
    if path.suffix == ".dcm":
        for read in (readers.read_hounsfield, readers.read_slice_header):
            try:
                read(path)
            except InputError as error:
                check_line(error)


def check_line(error):
    assert "\n" not in str(error)
    assert " object at 0x" not in str(error)
    assert len(str(error)) < 4000


def table(path):
    for name in ("a.png", "b.png", "c.png"):
        if not (path.parent / name).exists():
            (path.parent / name).write_bytes(picture("PNG"))
    manifest.Manifest(path, "train")


def config(path):
    make_task(workdir.read_config(path.parent))


def description(path):
    if path.name == "metadata.json":
        layout.metadata(path.parent)
    else:
        features = path.parent / "features.json"
        if path.name != features.name:
            features.write_text('{"featuresDict": {"features": {}}}')
        else:
            (path.parent / "dataset_info.json").write_text('{"name": "manifest"}')
        layout.check_description(path.parent)


def results(path):
    evaluate._read_results(path).get("metrics", dict, {})


def curves(path):
    charts._read_curves(path)
    writers.Writer._drop_lines_after(type("W", (), {"path": path})(), 3)


RUN = {
    **{"task": "severity", "seed": 0, "total_steps": 10, "eval_steps": [], "threads": 2},
    "data": {"name": "manifest", "path": "films.csv"},
    "second": {"name": "", "labels": "hidden"},
    "optimizer": {"name": "sgd", "lr": 0.1, "frozen": []},
}
RESULTS = {
    "metrics": {"val/mse": {"value": 1.0, "low": None, "high": 2.0, "n": 3}},
    "task": "severity",
    "evaluations": {"val": {"task": "severity", "steps": [1, 2]}},
}
ROWS = npz(id=np.array(["a", "b"]), group=np.array(["p", "q"]), x=np.arange(6.0).reshape(2, 3))
PLAIN_CSV = (
    b"image,group,split,id,view,edema,diagnosis,severity_A,severity_B,severity_C,severity_D,"
    b"severity_E,severity_F\na.png,p1,train,x,PA,1,normal,0,1,2,3,,0\n"
    b"b.png,p2,val,y,,,,,,,,,\nc.png,p3,test,z,AP,0,covid-19,1,1,1,1,1,1\n"
)
VOLUMES_CSV = (
    b"volume,group,split,label,ranges,window_center,window_width\n"
    b"v.nii,p1,train,1,1-3;5,,\nv2.nii,p2,test,0,,-600,1500\n"
)


def volume_table(path):
    for name in ("v.nii", "v2.nii"):
        if not (path.parent / name).exists():
            (path.parent / name).write_bytes(nifti())
    ct_volume.read_index(path)


COVID_LABELS = b"image,label,split,group\n" + b"".join(
    b"%d.jpg,%d,%s,p%d\n" % (k, k % 2, (b"train", b"val", b"test")[k // 2], k) for k in range(6)
)
COVIDX = b"".join(b"NCP_%d_5_0001.png %d 2 3 40 38\n" % (k, k % 3) for k in range(6))
CNCB_LESIONS = b"imgpath\nNCP/1/2/0003.png\nNCP/1/2/0004.png\nCP/7/8/0001.jpg\n"


def slices_at(folder, *names):
    for name in names:
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"not looked at")


def covid_table(path):
    slices_at(path.parent, *(f"images/{k}.jpg" for k in range(6)))
    covid_ct.read_index(path.parent)


def covidx_list(path):
    slices_at(path.parent, *(f"2A_images/NCP_{k}_5_0001.png" for k in range(8)))
    for k, split in ((6, "val"), (7, "test")):
        other = path.with_name(f"{split}_COVIDx_CT-2A.txt")
        other.write_text(f"NCP_{k}_5_0001.png 1 2 3 40 38\n")
    covidx_ct.read_index(path.parent)


def cncb_table(path):
    names = CNCB_LESIONS.decode().split()[1:]
    slices_at(path.parent, *names, "Normal/3/4/0000.png")
    scans = "zip_file,label,patient_id,scan_id,n_slice\nNormal-1.zip,Normal,3,4,1\n"
    (path.parent / "unzip_filenames.csv").write_text(scans)
    cncb.read_index(path.parent)


GRAPH = {
    **{"image_id": "a", "patient_id": 7, "study_id": 8, "viewpoint": "PA"},
    "objects": [
        {
            "bbox_name": name,
            **dict(zip(("original_x1", "original_y1", "original_x2", "original_y2"), box)),
        }
        for name, box in (("spine", (1, 2, 30, 40)), ("svc", (-5, 2, 9, 99)), ("left arm", [0] * 4))
    ],
    "attributes": [
        {"bbox_name": "spine", "attributes": [["disease|yes|goiter", "nlp|no|normal"], []]}
    ],
}
NIH_BOXES = (
    b"Image Index,Finding Label,Bbox [x,y,w,h],,,\na.png,Mass,1,2,3.5,4\nb.png,Edema,0,0,9,9\n"
)


def metadata():
    columns = {"fold": [0, 1, -1], "label": [1, 0, -1]}
    return {"fingerprint": "0123", "max_side": 8, "columns": {"train": columns}}


FEATURES = {
    "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
    "featuresDict": {"features": {"id": {"text": {}}}},
}
SAFE = safetensors.numpy.save({"a": np.arange(6.0).reshape(2, 3), "b": np.ones(4, np.float32)})


def inside_gzip(data, chance):
    return gzip.compress(mutated(data, chance), 1)


# Kind -> (name of the file, a valid one or what it is made of, what reads it, how it is changed).
KINDS = {
    "png": ("f.png", picture("PNG", RGB), film, mutated),
    "png of 16 bits": ("f.png", cv2.imencode(".png", GREY * 250)[1].tobytes(), film, mutated),
    "jpeg": ("f.jpg", picture("JPEG", RGB), film, mutated),
    "jpeg, progressive": ("f.jpg", picture("JPEG", GREY, progressive=True), film, mutated),
    "jpeg, restarts": ("f.jpg", picture("JPEG", RGB, restart_marker_blocks=2), film, mutated),
    "gif": ("f.gif", picture("GIF"), film, mutated),
    "bmp": ("f.bmp", picture("BMP"), film, mutated),
    "dicom": ("f.dcm", dicom(), film, mutated),
    "dicom of 16 bits": ("f.dcm", dicom(GREY.astype(np.uint16)), film, mutated),
    "dicom, implicit": ("f.dcm", dicom(syntax=uid.ImplicitVRLittleEndian), film, mutated),
    "dicom, bare": ("f.dcm", dicom()[132:], film, mutated),
    "dicom, colour": ("f.dcm", dicom(RGB), film, mutated),
    "dicom, deflated": ("f.dcm", deflated(True), film, mutated),
    "dicom, deflated and bare": ("f.dcm", deflated(False), film, mutated),
    "dicom, rle": ("f.dcm", dicom(syntax=uid.RLELossless), film, mutated),
    "dicom, jpeg": ("f.dcm", dicom(GREY, uid.JPEGBaseline8Bit, picture("JPEG")), film, mutated),
    "dicom, jpeg 2000": (
        "f.dcm",
        dicom(GREY, uid.JPEG2000Lossless, picture("JPEG2000")),
        film,
        mutated,
    ),
    "labels": (
        "f.png",
        cv2.imencode(".png", GREY // 64)[1].tobytes(),
        lambda p: readers.read_labels(p, (40, 48), most=3),
        mutated,
    ),
    "table of covid_ct": ("labels.csv", COVID_LABELS, covid_table, mutated),
    "list of covidx_ct": ("train_COVIDx_CT-2A.txt", COVIDX, covidx_list, mutated),
    "table of cncb": ("lesions_slices.csv", CNCB_LESIONS, cncb_table, mutated),
    "nifti": ("v.nii", nifti(), volumes.read, mutated),
    "nifti, gzip": ("v.nii.gz", gzip.compress(nifti()), volumes.read, mutated),
    "nifti in gzip": ("v.nii.gz", nifti(), volumes.read, inside_gzip),
    "pth": ("a.pth", (FIXTURES / "zip.pth").read_bytes(), weight_files.read_file, mutated),
    "pth, members": (
        "a.pth",
        (FIXTURES / "zip.pth").read_bytes(),
        weight_files.read_file,
        members_mutated,
    ),
    "pth, legacy": (
        "a.pth",
        (FIXTURES / "legacy.pth").read_bytes(),
        weight_files.read_file,
        mutated,
    ),
    "safetensors": ("a.safetensors", SAFE, weight_files.read_file, mutated),
    "safetensors, metadata": ("a.safetensors", SAFE, weight_files.read_metadata, mutated),
    "npz": ("a.npz", ROWS, weight_files.read_file, mutated),
    "npz, members": ("a.npz", ROWS, weight_files.read_file, members_mutated),
    "rows": ("rows-test.npz", ROWS, lambda p: report.read_rows(p.parent, "test"), mutated),
    "rows, members": (
        "rows-test.npz",
        ROWS,
        lambda p: report.read_rows(p.parent, "test"),
        members_mutated,
    ),
    "csv": ("t.csv", PLAIN_CSV, table, mutated),
    "csv, semicolons": ("t.csv", PLAIN_CSV.replace(b",", b";"), table, mutated),
    "csv of volumes": ("t.csv", VOLUMES_CSV, volume_table, mutated),
    "csv of boxes": ("t.csv", NIH_BOXES, nih_cxr14.read_boxes, mutated),
    "csv in gzip": ("t.csv.gz", NIH_BOXES, nih_cxr14.read_boxes, inside_gzip),
    "csv, gzip": ("t.csv.gz", gzip.compress(NIH_BOXES), nih_cxr14.read_boxes, mutated),
    "scene graph": (
        f"a{scene_graphs.SUFFIX}",
        GRAPH,
        lambda p: scene_graphs.read_graph(p, (60, 80)),
        json_mutated,
    ),
    "config.json": ("config.json", RUN, config, json_mutated),
    "data.json": (
        "data.json",
        {"name": "a", "version": "1", "train": 3},
        lambda p: workdir.trained_on(p.parent),
        json_mutated,
    ),
    "results.json": ("results.json", RESULTS, results, json_mutated),
    "metadata.json": ("metadata.json", metadata(), description, json_mutated),
    "dataset_info.json": (
        "dataset_info.json",
        {"name": "manifest", "splits": [{"name": "train", "shardLengths": ["3"]}]},
        description,
        json_mutated,
    ),
    "features.json": ("features.json", FEATURES, description, json_mutated),
    "weights.json": (
        weights.ABOUT,
        {"sha256": "0", "kind": "vit", "prefix": "vit", "source": "a"},
        lambda p: weights._check_folder(p.parent, {"sha256": "0", "kind": "vit", "prefix": "vit"}),
        json_mutated,
    ),
    "predictions.jsonl": (
        "predictions.jsonl",
        {"file": "a.png", "severity": 1.5},
        lambda p: OutputFolder(p.parent, [pathlib.Path("a.png")]),
        json_mutated,
    ),
    "metrics.jsonl": ("metrics.jsonl", {"step": 1, "loss": 2.5}, curves, json_mutated),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_mutations_end_in_a_result_or_in_one_line(kind, tmp_path):
    name, valid, read, change = KINDS[kind]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = tmp_path / name
    for number in range(INPUTS):
        chance = random.Random(f"{kind} {number}")
        path.write_bytes(change(valid, chance))
        started = time.process_time()
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                read(path)
        except InputError as error:
            check_line(error)
        except Exception as error:
            raise AssertionError(f"{kind}, input {number}: {error!r}") from error
        assert time.process_time() - started < MOST_SECONDS, f"{kind}, input {number}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MOST_MB * 1024


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_mutated_is_valid(kind, tmp_path):
    """Else the mutations would test nothing but the first check."""
    name, valid, read, change = KINDS[kind]
    if change is json_mutated:
        valid = json.dumps(valid).encode()
    valid = gzip.compress(valid) if change is inside_gzip else valid
    (tmp_path / name).write_bytes(valid)
    if kind == "config.json":  # of a few fields only: the task asks for more
        assert workdir.read_config(tmp_path).task == "severity"
    elif "deflated" in kind:
        with pytest.raises(InputError, match="deflated as a whole"):
            readers.read_film(tmp_path / name)
    elif read is film:
        assert getattr(readers, "read_mask" if name[2:] in ("gif", "bmp") else "read_film")(
            tmp_path / name
        ).shape == (40, 48)
    else:
        read(tmp_path / name)
