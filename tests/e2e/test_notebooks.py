"""The notebooks run from top to bottom, in a kernel, and say what their texts promise."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "examples" / "notebooks"


def outputs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each code cell printed or showed; an exception in a cell is one here."""
    shutil.copy(NOTEBOOKS / name, folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PARAGATOR_URL", raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    book: Any = nbformat.read(folder / name, as_version=4)
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return ["".join(map(text_of, cell.outputs)) for cell in book.cells if cell.cell_type == "code"]


def text_of(output: Any) -> str:
    return str(output.get("text") or output.get("data", {}).get("text/plain", ""))


def test_an_endpoint_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, shown, rounds, rows, vote = outputs("evaluate_endpoint.ipynb", tmp_path, monkeypatch)
    assert "pass@1" in shown
    shares = [float(line.split(": ")[1].split()[0]) for line in rounds.splitlines()]
    assert len(shares) == 3 and shares[0] < 90 < shares[2]
    assert rows.startswith("288 solutions, ") and "after two rounds" in vote


def test_an_own_task_and_credit_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, credit, steps, shares, text = outputs("train_own_task.ipynb", tmp_path, monkeypatch)
    assert shared.endswith(", 0)") and credit == "[0.75, 0.0, 0.0, 0.0]"
    assert "generate/reward" in steps and len(steps.splitlines()) >= 5
    assert [line.split()[0] for line in shares.splitlines()] == ["before", "after"] and " | " in text
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    """So that a change of it can be read, and no number in it is stale."""
    cells = nbformat.read(path, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
