"""Every notebook runs from top to bottom, with the smallest variants."""

import json

import nbclient
import nbformat
import pytest

from tests.conftest import ROOT, UNOPTIMISED

BOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))


def test_all_are_there():
    names = {path.stem for path in BOOKS}
    papers = {"severity", "diagnosis", "seam", "adpd", "lesions"}
    assert names == papers | {"own_data", "checkpoint_analysis"}


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_committed(path):
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.slow
@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("CXR_NOTEBOOK", "smoke")
    monkeypatch.setenv("XLA_FLAGS", UNOPTIMISED)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [
        out
        for cell in book.cells
        if cell.cell_type == "code"
        for out in cell.outputs
        if out.output_type == "display_data" or out.output_type == "execute_result"
    ]
    assert any("image/png" in out.data for out in shown)
