"""The evaluation table against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import pytest

from paragator.core.errors import UsageError
from paragator.core.types import Completion, Failure, Grade, Group, Plan, Problem, Prompt, Trace
from paragator.records import Graded
from paragator.report.table import by_problem, show_interval, table

VERDICTS = {"r": "correct", "w": "incorrect", "?": "unscored"}
PROMPT = Prompt("p")


Grades = tuple[Grade | None, ...]


def group(spec: str, pool: tuple[int, ...] = (), texts: list[str] | None = None) -> tuple[Group, Grades]:
    """A group from letters: r right, w wrong, ? unscored, x failed, t right and truncated; answers "ok" or "bad"."""
    outputs: list[Completion | Failure] = []
    grades: list[Grade | None] = []
    for i, letter in enumerate(spec):
        if letter == "x":
            outputs.append(Failure("down"))
            grades.append(None)
            continue
        text = texts[i] if texts else f"{letter}{i}{'agg' if pool else ''}"
        finish = "length" if letter == "t" else "stop"
        outputs.append(Completion(text, finish, token_ids=tuple(range(i + 1))))  # type: ignore[arg-type]
        verdict = VERDICTS[letter.replace("t", "r")]
        answer = {"correct": "ok", "incorrect": "bad", "unscored": None}[verdict]
        grades.append(Grade(verdict, answer))  # type: ignore[arg-type]
    stage = "aggregate" if pool else "generate"
    return Group(PROMPT, tuple(outputs), stage=stage, pool=pool), tuple(grades)  # type: ignore[arg-type]


def record(name: str, *rounds: str, texts: list[str] | None = None, failure: str | None = None) -> Graded:
    """A trace of one pool a round, which shows the whole round before."""
    built = []
    for t, spec in enumerate(rounds):
        shown = sum(letter != "x" for letter in rounds[t - 1]) if t else 0
        built.append(group(spec, tuple(range(shown)), texts if t else None))
    trace = Trace(Problem(name, name), Plan.method(4, 2), 0, tuple((g,) for g, _ in built), failure)
    return Graded(trace, tuple((grades,) for _, grades in built))


RECORDS = [record("a", "rwww", "rrww", "rrrr"), record("b", "wwww", "rwww", "wwww")]


def test_hand_computed() -> None:
    found = table(RECORDS)
    assert (found.k, found.problems, found.traces) == (4, 2, 2)
    assert [row.pass_at_1.mean for row in found.rounds] == [1 / 8, 3 / 8, 1 / 2]
    assert [row.pass_at_k.mean for row in found.rounds] == [1 / 2, 1, 1 / 2]
    assert [row.maj_at_k.mean for row in found.rounds] == [0, 1 / 4, 1 / 2]  # rrww ties: half
    assert [row.gain.mean for row in found.rounds[1:]] == [1 / 4, 3 / 8]
    assert (found.rounds[1].gain.low, found.rounds[1].gain.high) == (1 / 4, 1 / 4)  # the same for both problems
    assert math.isnan(found.rounds[0].gain.mean)
    assert all(row.tokens == 2.5 for row in found.rounds)
    assert found.rounds[0].pass_at_1.low == 0 and found.rounds[0].pass_at_1.high == 1 / 4


def test_pool_diagnostics_are_means_over_pools() -> None:
    first, second = (row.pool for row in table(RECORDS).rounds[1:])
    assert first is not None and second is not None
    assert (first.distinct_answers, first.pool_has_correct) == (1.5, 0.5)
    assert (first.recovery, first.destruction) == (1 / 4, 1 / 2)
    assert (second.destruction, second.pool_has_correct) == (1 / 2, 1)
    assert math.isnan(second.recovery)
    assert first.copy_rate == 0
    copied = record("a", "rwww", "rrww", texts=["r0", " w1 ", "new", "other"])
    pool = table([copied]).rounds[1].pool
    assert pool is not None and pool.copy_rate == 1 / 2


def test_repeats_of_a_problem_are_one_cluster() -> None:
    repeated = [record("a", "rrrr"), record("a", "rrrr"), record("a", "rrrr"), record("b", "wwww")]
    row = table(repeated).rounds[0]
    assert row.pass_at_1.mean == 1 / 2
    assert (row.pass_at_1.low, row.pass_at_1.high) == (0, 1)
    assert by_problem(repeated, 0, "pass_at_1", 4) == {"a": [1, 1, 1], "b": [0]}


def test_unscored_is_nan_and_failures_are_counted() -> None:
    found = table([record("a", "?r?x"), record("b", "????"), record("c", "tw", failure="too few")])
    row = found.rounds[0]
    assert row.pass_at_1.mean == pytest.approx((1 + 1 / 2) / 2)
    assert row.failed == pytest.approx(1 / 10)
    assert row.unscored == pytest.approx(6 / 9)
    assert row.truncated == pytest.approx(1 / 9)
    assert math.isnan(row.pass_at_k.mean)  # no trace has four scored solutions
    nothing = table([record("b", "????")]).rounds[0]
    assert all(math.isnan(cell.mean) for cell in (nothing.pass_at_1, nothing.pass_at_k, nothing.maj_at_k))


def test_a_round_that_a_failed_problem_missed_counts_as_failed() -> None:
    stopped = record("c", "xxxr", failure="round 0 left 1 solutions, 2 are needed")
    found = table([record("a", "rwww", "rrww"), stopped])
    assert found.rounds[1].failed == 1 / 2
    assert found.rounds[1].pass_at_1.mean == 1 / 2
    assert found.rounds[1].gain.mean == 1 / 4  # paired over problem a alone


def test_k_above_the_samples_is_a_dash() -> None:
    found = table(RECORDS, k=8)
    printed = found.rows()
    assert printed[0][2:4] == ["pass@8", "maj@8"]
    assert all(row[2:4] == ["-", "-"] for row in printed[1:])
    assert found.to_dict()["rounds"][0]["pass_at_k"] is None


def test_a_reward_function_does_not_change_accuracy() -> None:
    one = record("a", "rw")
    valued = Graded(one.trace, (((Grade("correct", "ok", value=0.3), Grade("incorrect", "bad", value=7.0)),),))
    assert table([valued]).rounds[0].pass_at_1.mean == 1 / 2


def test_to_dict_is_strict_json() -> None:
    text = json.dumps(table([record("a", "?r?x", "x???")], k=4).to_dict(), allow_nan=False)
    row = json.loads(text)["rounds"][0]
    assert row["pass_at_1"] == {"mean": 1.0, "low": None, "high": None}
    assert set(json.loads(text)["rounds"][1]["pool"]) >= {"recovery", "destruction", "copy_rate"}


def test_rows_are_rectangular_and_in_percent() -> None:
    printed = table(RECORDS).rows()
    assert len({len(row) for row in printed}) == 1
    assert printed[1][:5] == ["0", "12.5 [0.0, 25.0]", "50.0 [0.0, 100.0]", "0.0 [0.0, 0.0]", "-"]
    assert printed[2][4] == "+25.0 [+25.0, +25.0]"
    assert show_interval(None) == "-"


def test_errors() -> None:
    with pytest.raises(UsageError, match="no records"):
        table([])
    with pytest.raises(UsageError, match="k = 0"):
        table(RECORDS, k=0)
