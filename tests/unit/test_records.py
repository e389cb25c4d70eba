"""Records survive a round trip and a killed writer, and refuse what they cannot read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paragator.core.errors import DataError
from paragator.core.types import Completion, Failure, Grade, Group, Plan, Problem, Prompt, Trace
from paragator.records import Graded, append, append_json_lines, decode, encode, read, read_json_lines
from paragator.results import EvalResult

FIRST = Group(
    Prompt("6*7?\nsolve:"),
    (Completion("42", "stop", (5, 6)), Failure("timed out"), Completion("4 \ud83d é\u2028\n", "length")),
)
SECOND = Group(
    Prompt("review", chat=True),
    (Completion("42"),),
    stage="aggregate",
    pool=(1, 0),
    reductions=("tail:0.5", "dropped:1"),
)
RECORD = Graded(
    Trace(
        Problem("p", "6*7?", {"target": 42}),
        Plan(3, 1, 2, 1, 1),
        seed=7,
        rounds=((FIRST,), (SECOND,)),
        failure="a reason",
        extra={"step": 3},
    ),
    (
        ((Grade("correct", "42"), None, Grade("unscored", reason="truncated")),),
        ((Grade("incorrect", "42", "wrong", 0.25),),),
    ),
)


def numbered(seed: int) -> Graded:
    return replace(RECORD, trace=replace(RECORD.trace, seed=seed))


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "traces.jsonl"
    append(path, [RECORD, numbered(8)])
    append(path, [numbered(9)])
    assert list(read(path)) == [RECORD, numbered(8), numbered(9)]
    assert len(path.read_bytes().splitlines()) == 3


def test_rewards_and_answers_follow_the_population() -> None:
    assert RECORD.rewards(0) == [1.0, None]
    assert RECORD.answers(0) == ["42", None]
    assert len(RECORD.rewards(0)) == len(RECORD.trace.population(0))
    assert RECORD.rewards(1) == [0.25]
    assert RECORD.num_rounds == 2


def test_log_probabilities_are_not_kept() -> None:
    group = replace(FIRST, outputs=(Completion("42", "stop", (5,), (-0.5,)),))
    record = Graded(replace(RECORD.trace, rounds=((group,),)), (((Grade("correct"),),),))
    restored = decode(json.loads(json.dumps(encode(record)))).trace.rounds[0][0].outputs[0]
    assert restored == Completion("42", "stop", (5,), None)


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_a_torn_last_line_is_dropped_and_overwritten(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "traces.jsonl"
    append(path, [RECORD])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept])
    assert list(read(path)) == [RECORD]
    append(path, [numbered(8)])
    assert list(read(path)) == [RECORD, numbered(8)]
    assert path.read_bytes().startswith(whole)


@pytest.mark.parametrize("size", [10, 65_535, 65_536, 65_537, 200_000])
def test_a_torn_line_of_any_length_is_cut(tmp_path: Path, size: int) -> None:
    path = tmp_path / "lines.jsonl"
    for before, expected in ((b"", []), (b'{"a": 1}\n', [{"a": 1}])):
        path.write_bytes(before + b"x" * size)
        append_json_lines(path, [{"b": 2}])
        assert list(read_json_lines(path)) == [*expected, {"b": 2}]


def test_a_broken_line_elsewhere_is_named(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    for broken in (b"{oops\n", b"[1]\n", b"\xff\n"):
        path.write_bytes(b'{"a": 1}\n' + broken + b'{"a": 2}\n')
        with pytest.raises(DataError, match=r"traces\.jsonl:2: not a JSON object"):
            list(read_json_lines(path))


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    append_json_lines(path, [{**encode(RECORD), "version": 2}])
    with pytest.raises(DataError, match="record version 2"):
        list(read(path))


@pytest.mark.parametrize("change", [{"rounds": None}, {"plan": {"candidates": 0}}, {"problem": {"id": "p", "x": 1}}])
def test_a_foreign_row_is_a_data_error(change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="not a record"):
        decode({**encode(RECORD), **change})
    with pytest.raises(DataError, match="not a record"):
        decode({"version": 1})


@pytest.mark.parametrize(
    ("round_", "key", "value", "says"),
    [
        (
            0,
            "outputs",
            [{"text": "", "finish_reason": "stop", "token_ids": None, "grade": {"verdict": "maybe"}}],
            "'maybe'",
        ),
        (1, "pool", [0, 2], "round 1 shows solution 2 of 2"),
        (1, "pool", [-1], "round 1 shows solution -1 of 2"),
    ],
)
def test_a_row_that_refers_to_what_is_not_there_is_named(
    tmp_path: Path, round_: int, key: str, value: list[Any], says: str
) -> None:
    row = encode(RECORD)
    row["rounds"][round_][0][key] = value
    append_json_lines(tmp_path / "traces.jsonl", [encode(RECORD), row])
    with pytest.raises(DataError, match=rf"traces\.jsonl:2: not a record of a graded trace .*{says}"):
        list(read(tmp_path / "traces.jsonl"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        list(read(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    ("cut", "warned"),
    [
        ((3, 4), "warning: most solutions were cut before their end (75% at generate.max_tokens, 100% at aggregate."),
        ((2, 3), "warning: most solutions were cut before their end (75% at aggregate.max_tokens); raise it"),
        ((2, 2), ""),
    ],
)
def test_a_result_warns_where_most_solutions_were_cut(cut: tuple[int, int], warned: str) -> None:
    def group(cut: int) -> Group:
        return Group(Prompt("p"), tuple(Completion("1", "length" if i < cut else "stop") for i in range(4)))

    groups = tuple((group(n),) for n in cut)
    trace = Trace(Problem("p", "1 + 1", 2), Plan.method(4, 1), 0, groups)
    grades = tuple((tuple(Grade("correct", "1") for _ in range(4)),) for _ in cut)
    text = EvalResult([Graded(trace, grades)]).text()
    assert (warned in text) if warned else "warning" not in text
