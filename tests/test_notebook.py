"""The notebook of docs/ runs from its first cell to its last."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "own_model.ipynb"


def said(book: nbformat.NotebookNode) -> str:
    outputs = (one for cell in book.cells if cell.cell_type == "code" for one in cell.outputs)
    return "".join(one.text for one in outputs if one.get("name") == "stdout")


@pytest.mark.slow  # trains two networks, half a minute
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    book = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = said(book)
    taught, read_back = (float(found) for found in re.findall(r"is right on ([\d.]+)%", text)[-2:])
    assert taught == read_back > 80  # chance is 10
    assert re.search(r"engine: [\w-]+ \(.*\); [\d.e-]+ s a candidate", text)
    left, original = re.search(r"([\d,]+) of ([\d,]+) parameters", text).groups()
    assert 0.28 < int(left.replace(",", "")) / int(original.replace(",", "")) <= 0.3


def test_it_shows_what_it_said() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    assert "read back, it is right on" in said(book)
