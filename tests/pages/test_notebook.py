"""The notebook of the repository, on a data set of four short videos: it runs, and shows a page wherever it says so."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "notebooks" / "demo.ipynb"
SMALL = {
    '{"num_train": 8, "num_val": 3, "num_test": 4}': (
        '{"num_train": 2, "num_val": 1, "num_test": 1, "min_seconds": 12, "max_seconds": 13}'
    ),
    '"train.epochs=2"': (
        '"train.epochs=1", "decode.short_side=32", "decode.crop=32", "extract.short_side=32", "extract.crop=32"'
    ),
    "demo_0012": "demo_0003",
}


def test_the_notebook_of_the_demo_runs_and_draws(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        for text, small in SMALL.items():
            cell["source"] = cell["source"].replace(text, small)
    nbclient.NotebookClient(
        notebook, timeout=600, iopub_timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    pages = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "<iframe" in output.get("data", {}).get("text/html", "")  # and not the live view of a run
    ]
    assert len(pages) == 3
    assert all(page.startswith("<iframe srcdoc=") and "data:video/mp4;base64," in page for page in pages)
    assert "the red circle moves up" in pages[1]
    assert (tmp_path / "demo" / "excl-report.html").is_file()
