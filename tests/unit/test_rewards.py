"""Reward functions: how they are named, called and awaited, what they may return, and what becomes of it in the tables."""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paragator.config import Config, TaskConfig
from paragator.core.errors import DataError, RunError, UsageError
from paragator.core.types import Completion, Grade, Group, Plan, Problem, Prompt, Trace
from paragator.records import Graded, append, encode, read
from paragator.report.page import write_report
from paragator.report.rollouts import detail
from paragator.results import EvalResult
from paragator.runs.folder import check_same
from paragator.settings import load, to_json
from paragator.stats.compare import compare
from paragator.stats.table import EvalTable, table
from paragator.tasks import Task, grade_trace, load_task
from paragator.tasks.rewards import graded_by, import_reward

PROBLEM = Problem("p", "2 + 2", 4)
ROOT = Path(__file__).parents[2]


def grades(given: Any, count: int = 1, correct_from: float = 1.0) -> list[Grade]:
    """What becomes of what a reward function returns for `count` texts."""
    grader = graded_by(lambda problem, texts: given, "mod:f", correct_from)
    return asyncio.run(graded(grader, count))


async def graded(grader: Any, count: int) -> list[Grade]:
    return list(await grader(PROBLEM, [f"text {i}" for i in range(count)]))


# ---- what it may return ----


def test_numbers_none_and_bools() -> None:
    found = grades([1.0, 0.25, None, True, False, 7], 6)
    assert [g.verdict for g in found] == ["correct", "incorrect", "unscored", "correct", "incorrect", "correct"]
    assert [g.reward for g in found] == [1.0, 0.25, None, 1.0, 0.0, 7.0]
    assert all(type(g.reward) is float for g in found if g.reward is not None)


def test_a_text_is_no_answer() -> None:
    assert [g.answer for g in grades([1.0, 0.0, None], 3)] == [None] * 3


NUMBERS = [
    np.float16(0.5),
    np.float32(0.5),
    np.float64(0.5),
    np.array(0.5),
    np.array([0.5]),
    Fraction(1, 2),
    0.5,
]


@pytest.mark.parametrize("given", NUMBERS, ids=lambda x: f"{type(x).__module__}.{type(x).__name__}")
def test_a_half_in_many_clothes(given: Any) -> None:
    (one,) = grades([given])
    assert (one.verdict, one.reward, type(one.reward)) == ("incorrect", 0.5, float)
    assert json.dumps(one.reward) == "0.5"


def test_whole_arrays_and_generators() -> None:
    for given in (np.array([0.5, 1]), np.array([[0.5], [1]]), (x for x in (0.5, 1)), [np.bool_(False), np.int64(1)]):
        assert [g.verdict for g in grades(given, 2)] == ["incorrect", "correct"]


BAD = [
    math.nan,
    math.inf,
    -math.inf,
    np.float32("nan"),
    10**400,
    1j,
    "1",
    b"1",
    [1.0],
    (1.0, "a", "b"),
    (math.nan, "a"),
    {"reward": 1.0},
    np.array([1.0, 2.0]),
    Decimal("0.5"),
    object(),
    Grade("correct", value=math.nan),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda x: re.sub(r"\W+", " ", repr(x))[:20])
def test_what_is_no_number(bad: Any) -> None:
    says = r"reward mod:f gave .* for problem p: return a finite number, or None"
    with pytest.raises(UsageError, match=says) as error:
        grades([bad])
    assert "\n" not in str(error.value) and len(str(error.value)) < 350


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 0.0, 1.0]])
def test_the_wrong_length(values: list[float]) -> None:
    with pytest.raises(UsageError, match=rf"reward mod:f gave {len(values)} values for 2 texts: return one for each"):
        grades(values, 2)


@pytest.mark.parametrize("bad", [None, 0.5, "ab", {0: 1.0, 1: 1.0}, {0.5, 1.0}, b"ab"])
def test_what_is_no_list(bad: Any) -> None:
    with pytest.raises(UsageError, match=r"reward mod:f gave .* for problem p: return a list, one value a text"):
        grades(bad, 2)


def test_answers_that_it_read() -> None:
    found = grades([(0.5, "42"), (1, " 42 "), (0.0, None), (0.0, " "), (None, "7"), [1.0, "8"]], 6)
    assert [g.answer for g in found] == ["42", "42", None, None, "7", "8"]
    assert [g.reward for g in found] == [0.5, 1.0, 0.0, 0.0, None, 1.0]


@pytest.mark.parametrize("answer", [42, 4.0, ["42"], b"42", True])
def test_an_answer_that_is_no_text(answer: Any) -> None:
    for given in ((0.5, answer), Grade("correct", answer)):
        with pytest.raises(UsageError, match=r"gave the answer .* for problem p: return an answer as text, or None"):
            grades([given])


def test_grades_of_its_own() -> None:
    own = [Grade("correct", " 4 ", "near", 0.5), Grade("incorrect"), Grade("unscored", "4", value=0.5)]
    found = grades(own, 3)
    assert found[0] == Grade("correct", "4", "near", 0.5)
    assert [g.reward for g in found] == [0.5, 0.0, None]
    for bad in (Grade("right"), Grade("correct", reason=3)):  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="return a Grade of correct, incorrect or unscored"):
            grades([bad])


@pytest.mark.parametrize(("correct_from", "right"), [(1.0, 1), (0.5, 2), (0.2, 3), (-1.0, 4), (1.01, 0)])
def test_the_threshold(correct_from: float, right: int) -> None:
    found = grades([1.0, 0.5, 0.25, -1.0], 4, correct_from)
    assert sum(g.verdict == "correct" for g in found) == right
    assert [g.reward for g in found] == [1.0, 0.5, 0.25, -1.0]


# ---- how it is called ----


def test_async_functions_are_awaited() -> None:
    async def score(problem: Problem, texts: Sequence[str]) -> list[float]:
        async def one(text: str) -> float:
            await asyncio.sleep(0)
            return 0.25 * int(text[-1])

        return list(await asyncio.gather(*map(one, texts)))

    for reward in (score, lambda problem, texts: score(problem, texts)):  # the second is no async function itself
        assert [g.reward for g in asyncio.run(graded(graded_by(reward, "r"), 4))] == [0.0, 0.25, 0.5, 0.75]


def test_problems_wait_for_their_rewards_together() -> None:
    arrived: list[str] = []

    async def score(problem: Problem, texts: Sequence[str]) -> list[float]:
        arrived.append(problem.id)
        while len(arrived) < 3:
            await asyncio.sleep(0)
        return [1.0] * len(texts)

    async def all_of_them() -> list[list[Grade]]:
        grader = graded_by(score, "r")
        return await asyncio.gather(*(grader(Problem(str(i), ""), ["a"]) for i in range(3)))

    assert len(asyncio.run(asyncio.wait_for(all_of_them(), 5))) == 3


def test_what_it_raises_is_one_line() -> None:
    async def late(problem: Problem, texts: Sequence[str]) -> list[float]:
        raise KeyError("two\nlines")

    def soon(problem: Problem, texts: Sequence[str]) -> list[float]:
        raise ValueError("two\nlines")

    for reward, kind in ((late, "KeyError"), (soon, "ValueError")):
        with pytest.raises(
            RunError, match=rf"reward r raised {kind} for problem p: .*lines.*; fix it and --resume"
        ) as error:
            asyncio.run(graded(graded_by(reward, "r"), 1))
        assert "\n" not in str(error.value)


def test_it_cannot_change_the_texts() -> None:
    def score(problem: Problem, texts: Any) -> list[float]:
        return [float(len(texts.pop())) for _ in range(len(texts))]

    assert len(asyncio.run(graded(graded_by(score, "r"), 3))) == 3


REWARDS = """
def score(problem, texts):
    return [float(len(t) > 1) for t in texts]
async def asking(problem, texts):
    return [0.5 for _ in texts]
async def stream(problem, texts):
    yield 1.0
def one(text):
    return 1.0
def keyword(problem, texts, *, weight):
    return [weight]
def spare(problem, texts, weight=1.0):
    return [weight for _ in texts]
number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "rewards_of_a_test.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    load_task(TaskConfig())  # or its modules would be looked for on the path below
    monkeypatch.setattr("sys.path", [])  # as for the installed script, which does not look into the current folder
    return "rewards_of_a_test"


@pytest.mark.parametrize(("function", "rewards"), [("score", [0, 1]), ("asking", [0.5, 0.5]), ("spare", [1, 1])])
def test_a_named_reward_is_imported(module: str, function: str, rewards: list[float]) -> None:
    task = load_task(TaskConfig(reward=f"{module}:{function}", correct_from=0.5))
    trace = trace_of("p", "a", "bb")
    found = asyncio.run(grade_trace(task, trace, {}))
    assert found.rewards(0) == rewards and found.right(0) == [float(x >= 0.5) for x in rewards]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("stream", "is an async generator; return a list"),
        ("one", "too many positional arguments; it is called as function"),
        ("keyword", "missing a required .*'weight'; it is called as function"),
        ("number", "is not a function"),
        ("missing", "AttributeError"),
    ],
)
def test_refused_by_name_before_anything_is_sampled(module: str, function: str, says: str) -> None:
    with pytest.raises(UsageError, match=rf"task.reward = '{module}:{function}'.*{says}") as error:
        import_reward(f"{module}:{function}")
    assert "\n" not in str(error.value)


def test_the_threshold_is_a_key_of_a_reward_function(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"task\.correct_from = 0\.5 is of a reward function; set task\.reward"):
        load(Config, None, ["--task.correct_from", "0.5"])
    for bad in ("nan", "inf", "high"):
        with pytest.raises(UsageError, match=r"task\.correct_from"):
            load(Config, None, ["--task.reward", "a:b", "--task.correct_from", bad])
    config = load(Config, None, ["--task.reward", "a:b"])
    known = json.loads(to_json(config))
    del known["task"]["correct_from"]  # as an earlier version wrote it
    (tmp_path / "config.json").write_text(json.dumps(known))
    check_same(tmp_path, to_json(config))
    with pytest.raises(UsageError, match=r"task.correct_from \(1.0 -> 0.5\)"):
        check_same(tmp_path, to_json(load(Config, None, ["--task.reward", "a:b", "--task.correct_from", "0.5"])))


# ---- what becomes of it ----


def trace_of(name: str, *texts: str, rounds: int = 1) -> Trace:
    """Rounds of the same texts; later ones see the whole round before."""
    outputs = tuple(Completion(text, num_tokens=3) for text in texts)
    first = Group(Prompt("p"), outputs)
    later = Group(Prompt("q"), outputs, stage="aggregate", pool=tuple(range(len(texts))))
    plan = Plan.method(len(texts), rounds - 1) if rounds > 1 else Plan.sampling(len(texts))
    return Trace(Problem(name, name), plan, 0, ((first,), *[(later,)] * (rounds - 1)))


def evaluated(values: Sequence[Sequence[Any]], correct_from: float = 1.0, rounds: int = 2) -> list[Graded]:
    """Traces of problems 0, 1, ... whose solutions get these values in each round."""

    def reward(problem: Problem, texts: Sequence[str]) -> Sequence[Any]:
        return values[int(problem.id)]

    task = Task("t", lambda *_: [], graded_by(reward, "r", correct_from), correct_from)
    traces = [trace_of(str(i), *map(str, range(len(some))), rounds=rounds) for i, some in enumerate(values)]
    return [asyncio.run(grade_trace(task, trace, {"repeat": 0})) for trace in traces]


def means(found: EvalTable, measure: str) -> list[float]:
    return [cell.mean for cell in found.series(measure)]


def heads(found: EvalTable) -> list[str]:
    return [title for sheet in found.sheets() for title in sheet.cells()[0]]


def test_the_mean_reward_is_a_column_of_its_own() -> None:
    found = table(evaluated([[0.9, 0.9, 1.0, 0.8], [1.0, 0.95, 0.9, 0.9]]))
    assert means(found, "reward") == [pytest.approx(0.91875)] * 2 and means(found, "pass_at_1") == [1 / 4] * 2
    assert "mean reward" in heads(found)
    (row, *_), note = found.sheets()[0].cells()[1:], found.note
    assert row[1] == "25.0 [25.0, 25.0]" and row[heads(found).index("mean reward")] == "0.919 [0.900, 0.938]"
    assert note == "Some rewards are neither 0 nor 1; correct is a reward of 1 or more (task.correct_from)."
    assert found.to_dict()["note"] == note and "reward" in found.to_dict()["rounds"][1]["minus_first"]


def test_yes_and_no_have_the_tables_that_they_had() -> None:
    plain = [[1.0, 0.0, None, 1.0], [0.0, True, False, 0.0]]
    found = table(evaluated(plain))
    assert "mean reward" not in heads(found) and not found.note
    assert "note" not in found.to_dict() and "reward" not in found.to_dict()["rounds"][0]
    as_grades = [
        [Grade("unscored") if x is None else Grade("correct" if x else "incorrect") for x in row] for row in plain
    ]
    assert means(found, "pass_at_k") == means(table(evaluated(as_grades)), "pass_at_k")


def test_the_threshold_is_said_wherever_numbers_are(tmp_path: Path) -> None:
    records = evaluated([[0.9, 0.5, 0.2, 0.1], [0.6, 0.0, 0.0, 0.0]], correct_from=0.5)
    assert means(table(records), "pass_at_1") == [3 / 8] * 2
    says = "correct is a reward of 0.5 or more (task.correct_from)"
    append(tmp_path / "eval.jsonl", records)
    again = EvalResult.read(tmp_path / "eval.jsonl")
    assert says in again.text() and says in again._repr_html_() and says in write_report(tmp_path).read_text()
    assert [record.trace.extra["correct_from"] for record in read(tmp_path / "eval.jsonl")] == [0.5, 0.5]
    card = detail(encode(records[0]))["rounds"][0][0]["outputs"][2]
    assert (card["verdict"], card["reward"]) == ("incorrect", 0.2)


def test_comparing_runs_of_two_thresholds_is_refused(tmp_path: Path) -> None:
    values = [[0.9, 0.5, 0.2, 0.1], [0.6, 0.0, 0.0, 0.0]]
    for name, at, seed in (("a", 0.5, 0), ("b", 0.5, 1), ("c", 0.8, 0)):
        append(tmp_path / name / "eval.jsonl", evaluated(values, at))
        (tmp_path / name / "config.json").write_text(json.dumps({"seed": seed}))
    found = compare([tmp_path / "a", tmp_path / "b"], labels=["a", "b"])
    assert "correct is a reward of 0.5 or more" in " ".join(found.notes())
    assert [sheet.name for sheet in found.differences()] == [
        f"{title} - a" for title in ("pass@1", "pass@4", "maj@4", "mean reward")
    ]
    with pytest.raises(DataError, match=r"/c: .*0\.8 or more.*/a: .*0\.5 or more"):
        compare([tmp_path / "a", tmp_path / "c"], labels=["a", "c"])


BY_ANSWER = ("maj_at_k", "distinct_answers")


def test_without_answers_nothing_votes() -> None:
    found = table(evaluated([[1.0, 0.5, 0.5, 1.0], [0.0, 0.0, 1.0, 0.0]]))
    for name in BY_ANSWER:
        assert all(map(math.isnan, means(found, name))), name
    assert all(math.isnan(cell.mean) for _, cell in found.votes())
    assert all(not math.isnan(x) for x in means(found, "pass_at_1"))
    assert found.sheets()[0].cells()[1][heads(found).index("maj@4")] == "-"


def test_answers_vote() -> None:
    values = [[(0.5, "7"), (0.5, "7"), (1.0, "8"), (0.0, None)], [(0.2, None)] * 4]
    found = table(evaluated(values, correct_from=0.5))
    assert found.cell("maj_at_k", 0).mean == pytest.approx(1 / 2)  # the second problem has no answer, so it is lost
    assert table(evaluated(values)).cell("maj_at_k", 0).mean == 0.0
    assert found.cell("distinct_answers", 1).mean == pytest.approx(1.0)


def test_pools_are_measured_by_the_same_verdicts() -> None:
    values = [[0.7, 0.6, 0.6, 0.1], [0.4, 0.3, 0.2, 0.1]]
    found = table(evaluated(values, correct_from=0.5))
    wanted = {"pool_has_correct": 1 / 2, "destruction": 1 / 4, "majority_lost": 1 / 4, "recovery": 0.0}
    assert {name: found.cell(name, 1).mean for name in wanted} == pytest.approx(wanted)
    strict = table(evaluated(values))  # from 1 on: nothing is right
    assert strict.cell("pool_has_correct", 1).mean == 0.0 and math.isnan(strict.cell("destruction", 1).mean)


def test_the_example_of_the_documents_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = (ROOT / "docs" / "own-task.md").read_text().partition("### What a reward may return")[2]
    code = re.findall(r"```python\n(.*?)```", document, re.DOTALL)[0]
    (tmp_path / "rewards_of_the_documents.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    reward = import_reward("rewards_of_the_documents:closeness")
    found = asyncio.run(graded_texts(reward, ["It is 40", "no idea", "so 42"]))
    assert [(g.reward, g.answer, g.verdict) for g in found] == [
        (pytest.approx(1 / 3), "40", "incorrect"),
        (0.0, None, "incorrect"),
        (1.0, "42", "correct"),
    ]


async def graded_texts(reward: Any, texts: list[str]) -> list[Grade]:
    return list(await graded_by(reward, "r", 0.5)(Problem("p", "6 * 7", "42"), texts))
