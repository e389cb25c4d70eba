"""The examples and scripts run and do what their first lines say."""

from __future__ import annotations

import asyncio
import importlib.util
import runpy
from pathlib import Path

import pytest

from paragator.config import Config

ROOT = Path(__file__).parents[2]
EXAMPLES, SCRIPTS = ROOT / "examples", ROOT / "scripts"


def test_one_file_learns_both_jobs() -> None:
    main = runpy.run_path(str(EXAMPLES / "one_file.py"))["main"]
    candidates, aggregations = asyncio.run(main())
    assert aggregations > candidates > 0.6
    assert aggregations > 0.9


def test_one_file_is_short() -> None:
    assert len((EXAMPLES / "one_file.py").read_text().splitlines()) < 250


def test_the_probe_along_the_gradient(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A move of nothing measures what was there; a long one does not."""
    spec = importlib.util.spec_from_file_location("along_gradient", SCRIPTS / "along_gradient.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, value in {"PROBLEMS": 4, "CANDIDATES": 4, "DISTANCES": (1e-9, 30.0)}.items():
        monkeypatch.setattr(script, name, value)
    config = {
        "task": {"min_numbers": 3},
        "train": {"problems": 2, "precision": "float32"},
        "method": {"name": "dr_grpo"},
    }
    asyncio.run(script.probe(Config.model_validate(config)))
    head, here, nothing, far, noise = capsys.readouterr().out.splitlines()
    assert head.startswith("gradient's norm ") and here.split("candidates")[1] == nothing.split("candidates")[1]
    assert "candidates   0.0" in far and noise.startswith("noise of norm 30")
