"""The notebooks were executed as they stand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 1_000_000


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def outputs(notebook: Path) -> list[dict[str, Any]]:
    return [output for cell in code_cells(notebook) for output in cell["outputs"]]


def test_every_head_and_the_samplers_have_a_notebook() -> None:
    assert {each.stem for each in NOTEBOOKS} >= {"molecules", "pose", "samplers", "timeseries"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_was_executed_once_from_top_to_bottom(notebook: Path) -> None:
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_cell_failed_or_wrote_to_standard_error(notebook: Path) -> None:
    kinds = {(each["output_type"], each.get("name")) for each in outputs(notebook)}
    assert not {kind for kind in kinds if kind[0] == "error" or kind[1] == "stderr"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_has_pictures_and_is_small(notebook: Path) -> None:
    assert any("image/png" in each.get("data", {}) for each in outputs(notebook))
    assert notebook.stat().st_size < LARGEST


@pytest.mark.parametrize("head", ["molecules", "pose", "timeseries"])
def test_importing_a_head_asks_for_no_notebook_widgets(head: str) -> None:
    """In Jupyter tqdm.auto warns at import where ipywidgets are not installed."""
    program = f"import sys, structdiff.{head}; sys.exit('tqdm.auto' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=FOLDER.parent, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr.decode()
