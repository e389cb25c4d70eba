"""Grading of files as a library call; tests/e2e/test_grade_command.py has the rest, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paragator.core.errors import UsageError
from paragator.grading import files
from paragator.grading.files import FileGrading, grade_file

ROWS = [{"gold": str(i), "prediction": str(i % 7), "equal": i < 8} for i in range(20)]


def write(path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_it_prints_nothing_and_reports_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "SAY_S", -1.0)
    asked = FileGrading(write(tmp_path / "in.jsonl"), tmp_path / "out.jsonl")
    lines: list[str] = []
    found = grade_file(asked, lines.append)
    assert found["rows"] == 20 and (found["correct"], found["incorrect"], found["unscored"]) == (7, 13, 0)
    assert (found["agreement"], found["wrong_accepted"], found["right_refused"]) == (0.95, 0, 1)
    assert lines[0].startswith("grade: 1/20 rows, ") and lines[-1].startswith("grade: 20/20 rows, ")
    assert capsys.readouterr() == ("", "")


def test_a_stopped_reader_keeps_what_was_graded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interruption between two rows, here by the callback, writes the rows before it; the rest is resumed."""
    monkeypatch.setattr(files, "SAY_S", -1.0)
    asked = FileGrading(write(tmp_path / "in.jsonl"), tmp_path / "out.jsonl")

    def stop(line: str) -> None:
        if line.startswith("grade: 5/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grade_file(asked, stop)
    assert len(asked.output.read_text().splitlines()) == 5
    with pytest.raises(UsageError, match="--resume"):
        grade_file(asked)
    found = grade_file(FileGrading(asked.file, asked.output, resume=True))
    assert (found["resumed"], found["rows"], found["correct"], found["agreement"]) == (5, 20, 7, 0.95)
    assert len(asked.output.read_text().splitlines()) == 20
