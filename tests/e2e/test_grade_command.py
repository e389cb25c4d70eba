"""`paragator grade`: one pair, a file, going on after an interruption, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from paragator.cli.main import run
from paragator.core.errors import DataError, ParagatorError, UsageError

SOURCE = Path(__file__).parents[2] / "src"
HANG_S = 120
ROWS = [
    {"id": 1, "gold": "1/2", "prediction": r"so it is \boxed{0.5}", "equal": True, "kind": "extraction"},
    {"id": 2, "gold": 7, "prediction": "8", "equal": False},
    {"id": 3, "gold": "x+1", "prediction": "1 + x", "equal": True, "kind": "expression"},
    {"id": 4, "gold": "3", "prediction": "3", "equal": False},
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_pair(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["grade", "--gold", "1/2", "--answer", r"\boxed{\frac12}"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["verdict", "correct"]
    assert run(["grade", "--gold", "5", "--answer=-5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["answer"]) == ("incorrect", "-5")


def test_control_characters_never_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["grade", "--gold", "5", "--answer", "\x1b[31m5\u202e\n6"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\u202e" not in out and out.count("\n") == 3


def test_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    assert run(["grade", file, "--output", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    written = read(out)
    assert [row["verdict"] for row in written] == ["correct", "incorrect", "correct", "correct"]
    assert [{k: v for k, v in row.items() if k not in ("verdict", "reason", "answer")} for row in written] == ROWS
    assert written[0]["answer"] in ("0.5", "1/2")
    assert (summary["rows"], summary["correct"], summary["incorrect"], summary["unscored"]) == (4, 3, 1, 0)
    assert (summary["agreement"], summary["wrong_accepted"], summary["right_refused"]) == (0.75, 1, 0)
    assert summary["seconds"] > 0 and summary["rows_per_second"] > 0
    with pytest.raises(UsageError, match="--resume"):
        run(["grade", file, "--output", str(out)])
    assert run(["grade", file, "--output", str(out), "--overwrite"]) == 0
    assert read(out) == written


def test_other_field_names(tmp_path: Path) -> None:
    rows = [{"answer": "1", "model": "1", "sort": "number"}]
    file, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    names = ["--gold-field", "answer", "--prediction-field", "model", "--kind-field", "sort"]
    with pytest.raises(DataError, match=r"in.jsonl:1: field 'answer' is taken.*--prefix"):
        run(["grade", file, "--output", str(out), *names])
    assert run(["grade", file, "--output", str(out), *names, "--prefix", "graded_"]) == 0
    assert read(out) == [rows[0] | {"graded_verdict": "correct", "graded_reason": "", "graded_answer": "1"}]


@pytest.mark.parametrize("kept", [0, 1, 3, 4])
def test_resume_goes_on_where_the_output_stops(tmp_path: Path, kept: int, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    run(["grade", file, "--output", str(out), "--json"])
    whole = out.read_bytes()
    first = json.loads(capsys.readouterr().out)
    lines = whole.splitlines(keepends=True)
    torn = lines[kept][:20] if kept < 4 else b""
    out.write_bytes(b"".join(lines[:kept]) + torn)
    assert run(["grade", file, "--output", str(out), "--json", "--resume"]) == 0
    assert out.read_bytes() == whole
    again = json.loads(capsys.readouterr().out)
    assert again["resumed"] == kept
    for name in ("rows", "correct", "incorrect", "unscored", "agreement", "wrong_accepted"):
        assert again[name] == first[name]


def test_killed_and_resumed(tmp_path: Path) -> None:
    """An interruption keeps what was finished, and the rest is graded later."""
    rows = [{"gold": f"{i} + x", "prediction": f"x + {i}"} for i in range(4000)]
    file, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "paragator", "grade", file, "--output", str(out), "--resume", "--json"]
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + HANG_S
    while not (out.exists() and out.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=HANG_S)
    if process.returncode != 0:  # else it was faster than the signal
        assert (process.returncode, err) == (130, "interrupted\n")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed"] > 0
    assert [row["verdict"] for row in read(out)] == ["correct"] * 4000


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows in it"),
        ([{"gold": "1"}], r"in.jsonl:1: field 'prediction' is missing; --prediction-field names another"),
        (
            [{"gold": "1", "prediction": "1"}, {"gold": None, "prediction": "1"}],
            r":2: field 'gold' holds null, not text",
        ),
        ([{"gold": True, "prediction": "1"}], r":1: field 'gold' holds true, not text or a number"),
        ([{"gold": "1", "prediction": "1"}, 5], r":2: not a JSON object"),
        ([{"gold": "1", "prediction": "1", "verdict": 0}], r":1: field 'verdict' is taken"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path: Path, rows: list[Any], message: str) -> None:
    file, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=message):
        run(["grade", file, "--output", str(out)])
    assert not out.exists()


def test_a_wrong_kind_in_a_named_field(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('\n{"gold": "1", "prediction": "1", "sort": "nummer"}\n')
    with pytest.raises(DataError, match=r"in.jsonl:2: kind = 'nummer' is not known; did you mean 'number'"):
        run(["grade", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out"), "--kind-field", "sort"])


def test_an_output_of_something_else_is_refused(tmp_path: Path) -> None:
    file, out = write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    run(["grade", file, "--output", str(out)])
    write(tmp_path / "in.jsonl", ROWS[::-1])
    with pytest.raises(DataError, match="row 1 is not of"):
        run(["grade", file, "--output", str(out), "--resume"])
    with pytest.raises(UsageError, match="is the file to grade"):
        run(["grade", file, "--output", file, "--overwrite"])
    assert read(Path(file)) == ROWS[::-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--gold is missing"),
        (["--gold", "1"], "--answer is missing"),
        (["no.jsonl"], "--output"),
        (["no.jsonl", "--output", "out.jsonl"], "no.jsonl: no such file"),
        (["no.jsonl", "--gold", "1"], "not both"),
        (["no.jsonl", "--output", "o", "--resume", "--overwrite"], "exclude"),
        (["--gold", "1", "--answer", "1", "--kind", "nummer"], "known kinds: "),
        (["--gold", "1", "--answer", "1", "--colour"], "unknown option --colour"),
    ],
)
def test_wrong_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParagatorError, match=message) as error:
        run(["grade", *words])
    assert error.value.exit_code == 2
