"""docs/tour.ipynb, from its first cell to its last."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.commands import PROJECT


@pytest.mark.long
def test_the_notebook_runs_and_its_network_has_learnt(real_root: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(real_root)
    (tmp_path / "docs").mkdir()
    notebook = nbformat.reads((PROJECT / "docs" / "tour.ipynb").read_text(), as_version=4)  # type: ignore[no-untyped-call]
    kept = "".join(str(cell.get("outputs", "")) for cell in notebook.cells)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path / "docs"}}).execute()
    made = "".join(str(cell.get("outputs", "")) for cell in notebook.cells)
    for outputs in (kept, made):
        (accuracy,) = re.findall(r"accuracy on the test images: (\d\.\d+)", outputs)
        assert float(accuracy) > 0.84
        assert outputs.count("image/png") == 7
