"""Small files that would take the memory or the time: each is refused, or read, within bounds.

Each is read in a process of its own, whose highest memory and time are what is measured.
"""

import gzip
import io
import json
import os
import pathlib
import struct
import subprocess
import sys
import textwrap
import zipfile
import zlib

import nibabel
import numpy as np
import pydicom
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
MOST_MB, MOST_SECONDS = 1000, 10  # of one bomb
_MEASURE = """
import pathlib, sys, time
from cxr_jax.errors import InputError
{imports}
path = pathlib.Path(sys.argv[1])
started, outcome = time.process_time(), "read"
try:
    {call}
except InputError as error:
    outcome = f"refused: {{error}}"
# Not ru_maxrss, which begins with what the parent had.
peak = int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
print(f"{{peak:.0f}} {{time.process_time() - started:.2f}} {{outcome}}")
"""


def measured(path, imports, call):
    """What came of it, in a line."""
    script = _MEASURE.format(imports=imports, call=call)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak, seconds, outcome = done.stdout.split("\n")[-2].split(" ", 2)
    assert float(peak) < MOST_MB, (peak, outcome)
    assert float(seconds) < MOST_SECONDS, (seconds, outcome)
    assert len(outcome) < 1000
    return outcome


FILM = "from cxr_jax.data import readers", "readers.read_film(path)"
VOLUME = "from cxr_jax.data import volumes", "volumes.read(path)"


def deflated(first, zeros):
    """Raw deflated bytes without an end: `first`, then so many zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = packer.compress(first) + packer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush the packer has forgotten what was before: its output can be repeated.
    block = packer.compress(bytes(2**22)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * (zeros // 2**22)


def test_dicom_that_is_deflated_without_a_preamble(tmp_path):
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1"
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    stream = io.BytesIO()
    pydicom.filewriter.write_file_meta_info(stream, meta)
    head = stream.getvalue()
    # Elements of explicit type first, then gigabytes of zeros.
    first = struct.pack("<HH2sH", 0x0008, 0x0060, b"CS", 2) + b"DX"
    body = deflated(first, 3 * 2**30) + zlib.compress(b"", wbits=-15)
    for name, preamble in (("bare.dcm", b""), ("with.dcm", bytes(128) + b"DICM")):
        path = tmp_path / name
        path.write_bytes(preamble + head + body)
        assert path.stat().st_size > 3_000_000
        assert "deflated as a whole" in measured(path, *FILM)


def nifti(shape, dtype=np.int16):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    return header.binaryblock + bytes(4)


def test_zeros_behind_a_gzip_file_are_not_walked(tmp_path):
    values = np.random.default_rng(0).integers(-1000, 500, 8**3).astype(np.int16)
    path = tmp_path / "v.nii.gz"
    whole = gzip.compress(nifti((8, 8, 8)) + values.tobytes())
    for padding in (b"", bytes(1000), gzip.compress(b"")):
        path.write_bytes(whole + padding)
        assert measured(path, *VOLUME) == "read"
    path.write_bytes(whole)
    with path.open("r+b") as file:
        file.truncate(2**31)  # sparse: it takes no room
    assert "goes on far behind" in measured(path, *VOLUME)
    path.write_bytes(whole + gzip.compress(b"") * 500_000)
    assert "empty parts" in measured(path, *VOLUME)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64, np.uint8])
def test_a_small_nifti_that_says_it_is_large(tmp_path, dtype):
    path = tmp_path / "v.nii.gz"
    slices = {np.float64: 500, np.float32: 1900, np.int16: 1900, np.uint8: 1900}[dtype]
    head = bytes.fromhex("1f8b08000000000000ff") + deflated(nifti((512, 512, slices), dtype), 0)
    path.write_bytes(head + deflated(b"", 3 * 2**30))
    assert path.stat().st_size < 9 * 2**20
    outcome = measured(path, *VOLUME)
    assert "no volume shrinks so much" in outcome or "goes on far behind" in outcome


def test_rows_that_unpack_to_gigabytes(tmp_path):
    with zipfile.ZipFile(
        tmp_path / "rows-test.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1
    ) as archive:
        for name, dtype in (("id", "<U1"), ("group", "<U1"), ("x", "<f4")):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": dtype, "fortran_order": False, "shape": (2**26,)}
                np.lib.format.write_array_header_1_0(file, header)
                for _ in range(16):
                    file.write(bytes(2**24))
    assert (tmp_path / "rows-test.npz").stat().st_size < 4_000_000
    rows = "from cxr_jax import report", "report.read_rows(path, 'test')"
    assert "over the limit" in measured(tmp_path, *rows)


def test_json_of_many_lists(tmp_path):
    path = tmp_path / "data.json"
    call = "from cxr_jax import small_files", "small_files.read_fields(path, 'remove it')"
    path.write_text('{"name": [' + "[]," * 2**23 + "0]}")
    assert "lists and objects" in measured(path, *call)
    path.write_text('{"name": "' + "x" * 2**26 + '"}')
    assert "over 64 MiB" in measured(path, *call)
    path.write_text(json.dumps({"name": "a", "version": "b", "train": 3}))
    assert measured(path, *call) == "read"


def test_a_checkpoint_that_claims_more_than_it_has(tmp_path):
    import orbax.checkpoint as ocp

    folder = tmp_path / "checkpoints" / "1"
    tree = {"params": {"a": np.zeros(80_000_000, np.float32)}}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(folder / "state", args=ocp.args.PyTreeSave(tree))
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 2**18
    # What the call would import by itself takes seconds, which are not the checkpoint's.
    show = (
        "import orbax.checkpoint; from cxr_jax import weights",
        "print(weights.show(weights.load(path), 2))",
    )
    assert "says that it holds 320,000,000 bytes" in measured(tmp_path, *show)


def test_forty_thousand_columns(tmp_path):
    path = tmp_path / "films.csv"
    names = ",".join(f"c{i}" for i in range(40_000))
    path.write_text(f"image,group,split,{names}\n" + "1," * 40_002 + "1\n")
    table = "from cxr_jax.data.sources import tables", "tables.read_table(path, ['image'])"
    assert "columns; at most" in measured(path, *table)
