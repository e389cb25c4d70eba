"""Files of rows in every form, references that hold their answer or none, and chats as problems."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from paragator.cli.main import main as entry
from paragator.config import TaskConfig
from paragator.core.errors import DataError
from paragator.core.prompts import CHAT
from paragator.engines.replay import Replay, problems
from paragator.grading import grade
from paragator.tasks import load_task
from paragator.tasks.checks import check_sets
from paragator.tasks.files import is_data_file, rows_of
from paragator.tasks.references import NoReference, problem_text, reference_of

ROWS = [{"problem": "3 + 4", "answer": "7"}, {"problem": "é, 2 · 2", "answer": "4"}]
CSV = 'problem,answer,id\n"3 + 4",7,\n"é, 2 · 2",4,\n'


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def main(words: list[str]) -> int:
    """Exit code of a command."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["paragator", *words])
        entry()
    return int(ended.value.code or 0)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", lines(ROWS)),
        ("a.ndjson", lines(ROWS).rstrip()),
        ("bom.jsonl", b"\xef\xbb\xbf" + lines(ROWS)),
        ("windows.jsonl", lines(ROWS).replace(b"\n", b"\r\n")),
        ("a.json", json.dumps(ROWS).encode()),
        ("array.jsonl", json.dumps(ROWS, ensure_ascii=False).encode()),
        ("indented.json", json.dumps(ROWS, indent=2).encode()),
        ("wrapped.json", json.dumps({"version": 1, "data": ROWS}, indent=1).encode()),
        ("lines.json", lines(ROWS)),
        ("a.jsonl.gz", gzip.compress(lines(ROWS), mtime=0)),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
        ("zipped.jsonl", gzip.compress(lines(ROWS), mtime=0)),
        ("a.csv", CSV.encode()),
        ("bom.csv", b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").encode()),
        ("a.tsv", "problem\tanswer\n3 + 4\t7\né, 2 · 2\t4\n".encode()),
        ("a.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
    ],
)
def test_a_file_of_every_form_is_a_task(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert [row for _, row in rows_of(path)] == ROWS and is_data_file(name)
    task = load_task(TaskConfig(name=str(path), held_out_path=str(path)))
    assert sorted((p.text, p.answer) for p in task.problems("held-out", 9, 0)) == [("3 + 4", "7"), ("é, 2 · 2", "4")]
    assert check_sets([str(path)])[0][0].clean


def test_parquet_is_read_where_pyarrow_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"a\.parquet: (not a Parquet file|reading Parquet needs pyarrow)"):
        rows_of(path)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"reading Parquet needs pyarrow: pip install 'paragator\[data\]'"):
        rows_of(path)
    monkeypatch.undo()
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    chat = [{"problem": [{"role": "user", "content": "3 + 4"}], "answer": 7.0}]
    parquet.write_table(arrow.Table.from_pylist(chat), path)
    (problem,) = load_task(TaskConfig(name=str(path), held_out_path=str(path))).problems("held-out", 9, 0)
    assert (problem.text, problem.answer) == ("3 + 4", "7")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", lines(ROWS) + b'{"problem": "\xe9"}\n', r"a\.jsonl:3: not UTF-8 \(byte 0xe9\)"),
        ("a.csv", "problem,answer\na,1\ncafé,2\n".encode("latin-1"), r"a\.csv:3: not UTF-8 \(byte 0xe9\)"),
        ("a.json", json.dumps(ROWS).encode("utf-16"), r"a\.json:1: not UTF-8 \(byte 0xff\)"),
        ("a.jsonl", lines(ROWS).decode().encode("utf-16"), r"a\.jsonl:1: not UTF-8"),
        ("a.jsonl", b'\n{"problem": "x \\udc00", "answer": "1"}\n', r"a\.jsonl:2: half of a surrogate pair.*\\udc00"),
        ("a.jsonl", b'{"problem": "x", "answer": "1", "completions": [{"text": "\\ud83d"}]}', "a.jsonl:1: half of a"),
        ("a.json", b'[{"problem": "x", "answer": "1"}, {"problem": "\\ud800"}]', r"a\.json:2: half of a surrogate"),
        ("a.jsonl", b'{"problem": "x", "\\ud800": "1"}', r"a\.jsonl:1: half of a surrogate"),
        ("a.jsonl", lines(ROWS) + b"{'problem': 1}\n", r"a\.jsonl:3: not a JSON object"),
        ("a.json", b'[{"problem": "x"}, 5]', r"a\.json:2: not a JSON object"),
        ("a.json", b'[{"problem": "x"},\n', r"a\.json: not a JSON array"),
        ("a.csv", b"problem,answer\na,1,2\n", r"a\.csv:2: other columns than the first line"),
        ("a.csv", b"problem,answer\na\n", r"a\.csv:2: other columns than the first line"),
        ("a.csv", b'problem,answer\n"a,1\n', r"a\.csv:\d: not CSV"),
        ("a.jsonl.gz", gzip.compress(lines(ROWS), mtime=0)[:-9], r"a\.jsonl\.gz: a broken \.gz file"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=said) as caught:
        list(rows_of(path))
    assert str(caught.value).isprintable()
    for words in (["data", "check", str(path)], ["eval", "--task", str(path), "--dry-run"]):
        assert main(words) == 2
        shown = capsys.readouterr()
        assert shown.err.startswith("error: ") and shown.err.count("\n") == 1 and "Traceback" not in shown.err


# ---- references ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Tom has 4 * 5 = <<4*5=20>>20 pens.\nHe gives 2 away: 18.\n#### 18", "18"),
        ("#### 1,234", "1,234"),
        ("a\n#### -3.5\n", "-3.5"),
        ("#### 1\n#### 2", "2"),
        ("['12']", "12"),
        ('["x = 3", "x = -3"]', "x = 3, x = -3"),
        ("('a', 'b',)", "a, b"),
        ("['\\\\frac{1}{2}']", r"\frac{1}{2}"),
        (r"['\sqrt{2}']", r"\sqrt{2}"),
        ("['it\\'s']", "it's"),
        ("We add the two and get \\boxed{5}.", "5"),
        ("First, x = 1.\nThen y is \\boxed{\\frac{2}{3}}", r"\frac{2}{3}"),
        ("Hence the answer is 12.", "12"),
        ("After all steps the final answer is $x^2$.", "$x^2$"),
    ],
)
def test_an_answer_within_a_reference_is_read(text: str, answer: str) -> None:
    assert reference_of(text, "here") == answer
    assert grade(f"so \\boxed{{{answer}}}", reference_of(text, "here")).verdict == "correct"


@pytest.mark.parametrize(
    "text",
    [
        *("18", "1,234", "[0, 1]", "(1, 2)", r"\{1, 2\}", "(-\\infty, 3]", r"\frac{1}{2}", "x = 3 or x = -3", "B", "none"),
        *("no solution", "Paris", "5 apples", "all real numbers except 2", r"\boxed{4}", "the empty set", "'", "[]()"),
        *(r"\begin{cases} x & \text{if } x > 0 \\ 0 & \text{otherwise} \end{cases}", r"y = C e^{-2 x}", "f(x) = x + 1"),
    ],
)  # fmt: skip
def test_an_answer_stays_as_it_is(text: str) -> None:
    assert reference_of(text, "here") == text


@pytest.mark.parametrize(
    "text",
    [
        *("None", "nan", "NULL", "N/A", "[]", "{'a': '1'}", '{"final": "4", "unit": "m"}', "TBD", "?"),
        "It follows from the lemma that the sequence converges.",
        "Let x be the number of apples. Then we have two cases.\nBoth are impossible.",
        "He takes the long way home, since it is shorter",
        "This can be proved by induction.",
    ],
)
def test_a_reference_without_an_answer_is_refused_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    with pytest.raises(NoReference, match=r"here: answer = .* is .*: write the final answer alone, or after ####"):
        reference_of(text, "here")
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([*ROWS, {"problem": "p", "answer": text}]))
    with pytest.raises(DataError, match=r"a\.jsonl:3: answer = "):
        load_task(TaskConfig(name=str(path), held_out_path=str(path))).problems("held-out", 9, 0)
    assert main(["data", "check", str(path)]) == 3
    assert "no answer: line 3 (answer = " in capsys.readouterr().out


def test_sentences_are_for_reward_functions_and_texts() -> None:
    text = "The proof uses induction on n."
    assert reference_of(text, "here", prose=True) == reference_of(text, "here", kind="text") == text
    with pytest.raises(NoReference):
        reference_of("None", "here", prose=True)


def test_what_is_read_within_a_reference_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([{"id": "q", "problem": "p", "answer": "so 2 + 2 = 4\n#### 4"}]))
    assert main(["data", "check", str(path)]) == 0
    assert r"answers read within their references: q (so 2 + 2 = 4\n#### 4 is read as 4)" in capsys.readouterr().out


def test_a_recordings_references_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    chat = [{"role": "user", "content": "How many?"}]
    row = {"problem": chat, "answer": "two and two\n#### 4", "completions": [r"\boxed{4}"]}
    path.write_bytes(lines([row]))
    (problem,) = problems(path)
    assert (problem.text, problem.answer) == ("How many?", "4")
    assert list(Replay.read(path, CHAT).recorded) == [CHAT.for_candidate(problem).text]
    path.write_bytes(lines([row | {"answer": None}, row | {"problem": [{"role": "user"}]}]))
    with pytest.raises(DataError, match="row 2: field 'problem' is missing"):
        problems(path)


def test_an_unknown_kind_is_found_by_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([ROWS[0] | {"kind": "number"}, ROWS[1] | {"id": "q", "kind": "essay"}]))
    assert main(["data", "check", str(path)]) == 3
    assert "unknown kind: q (essay)" in capsys.readouterr().out


def test_an_empty_reference_is_unscored() -> None:
    assert [grade(r"\boxed{4}", text).verdict for text in ("", " ", "\n")] == ["unscored"] * 3


# ---- chats as problems -----------------------------------------------------------------------------------------------

USER, SYSTEM = {"role": "user", "content": "3 + 4?"}, {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([USER], "3 + 4?"),
        (USER, "3 + 4?"),
        ((USER,), "3 + 4?"),
        ([SYSTEM, USER], "Be brief.\n\n3 + 4?"),
        ([USER, {"role": "assistant", "content": "7"}], "3 + 4?"),
        ([{"from": "human", "value": "3 + 4?"}, {"from": "gpt", "value": "7"}], "3 + 4?"),
        ([{"role": "user", "content": [{"type": "text", "text": "3 +"}, {"type": "text", "text": " 4?"}]}], "3 + 4?"),
        (
            [SYSTEM, USER, {"role": "assistant", "content": "7"}, {"role": "user", "content": "Sure?"}],
            "System: Be brief.\n\nUser: 3 + 4?\n\nAssistant: 7\n\nUser: Sure?",
        ),
        ([USER, USER, {"role": "assistant", "content": "7"}], "User: 3 + 4?\n\nUser: 3 + 4?"),
        ("plain", "plain"),
        (5, "5"),
    ],
)
def test_a_chat_is_a_problem(value: Any, text: str) -> None:
    assert problem_text(value, "here") == text


@pytest.mark.parametrize("value", [[], {}, {"text": "x"}, [1, 2], [{"role": "user"}], True, [SYSTEM], [[USER]], ["a"]])
def test_what_is_no_problem_is_refused(tmp_path: Path, value: Any) -> None:
    assert problem_text(value, "here") is None
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines([{"problem": value, "answer": "1"}]))
    with pytest.raises(DataError, match=r"a\.jsonl:1: problem = .*: write it as text, or as a list of chat messages"):
        load_task(TaskConfig(name=str(path), held_out_path=str(path))).problems("held-out", 9, 0)


def test_a_picture_in_a_chat_is_refused() -> None:
    picture = {"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {}}]}
    with pytest.raises(DataError, match="here: the problem has a message without text, or with more than text"):
        problem_text([picture], "here")
