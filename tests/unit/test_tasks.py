"""Tasks: checkers that no text can fool or crash, splits that share nothing, demonstrations that tell the truth."""

from __future__ import annotations

import asyncio
import json
import re
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paragator.config import TaskConfig
from paragator.core.errors import DataError, UsageError
from paragator.core.prompts import COMPACT
from paragator.core.types import Completion, Failure, Grade, Group, Plan, Problem, Prompt, Trace
from paragator.tasks import Task, arithmetic, check_distinct, check_splits, countdown, grade_trace, load_task
from paragator.tasks.base import is_held_out, take
from paragator.tasks.countdown import MAX_ANSWER_CHARS, content_key, parse
from paragator.tasks.demonstrations import LARGEST, Countdown, Demonstrator, Sums, enumerate_attempts

FOUR = Problem("p", "3 5 7 1 -> 55", {"numbers": [3, 5, 7, 1], "target": 55})


def verdict(text: str, problem: Problem = FOUR) -> tuple[str, str]:
    found = countdown.grade_one(problem, text)
    return found.verdict, found.reason


# ---- countdown: the checker ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "(3 + 5) * 7 - 1",
        "(3+5)*7-1",
        "  ((3)+(5)) * (7) - 1 ",
        "7 * (5 + 3) - 1",
        "3+5=8, 8*7=56, 56-1=55",
        "3 + 5 = 8 , 8 * 7 = 56 , 56 - 1 = 55",
        "5+3=8,7*8=56,56-1=55",
        "so the answer is \\boxed{(3 + 5) * 7 - 1}, done",
        "\\boxed{1} no, \\fbox{(3 + 5) * 7 - 1}",
        "<think> 3 + 5 is 9 </think> (3 + 5) * 7 - 1",
        "3 + 5 is 8 </think> (3 + 5) * 7 - 1",
    ],
)
def test_right_answers(text: str) -> None:
    assert verdict(text) == ("correct", "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("3 + 5 + 7 + 1", "makes 16"),
        ("55", "uses [55]"),
        ("(3 + 5) * 7", "uses [3, 5, 7]"),
        ("(3 + 5) * 7 - 1 + 3 - 3", "uses [1, 3, 3, 3, 5, 7]"),
        ("(3 + 5) * 7 - 1 = 55", "not a step"),
        ("3+5=9, 9*7=63, 63-1=62", "3+5=9 is false"),
        ("3+5=8, 8*7=56, 56-0=56", "0 is not on the table"),
        ("3+5=8, 3*7=21, 21-1=20", "3 is not on the table"),
        ("3+5=8, 8*7=56", "1 numbers unused"),
        ("3+5=8, 8*7=56, 56+1=57", "makes 57"),
        ("3+5=8, 8*7=56, 56-1=55,", "not a step"),
        ("3+5=8=8, 8*7=56, 56-1=55", "not a step"),
        ("3 + 5) * 7 - 1", "not one arithmetic expression"),
        ("((3 + 5) * 7 - 1", "unbalanced parentheses"),
        ("(3 + 5)(7) - 1", "not one arithmetic expression"),
        ("3 5 7 1", "not one arithmetic expression"),
        ("3 + 5 * / 7 - 1", "not an arithmetic expression"),
        ("-3 + 5 * 7 - 1", "not an arithmetic expression"),
        ("3 ** 5 - 7 - 1", "not an arithmetic expression"),
        ("3 // 5 + 7 - 1", "not an arithmetic expression"),
        ("3 / (5 - 5) + 7", "division by zero"),
        ("3.0 + 5 + 7 - 1", "not an arithmetic expression at"),
        ("answer: (3 + 5) * 7 - 1", "not an arithmetic expression at"),
        ("", "no answer outside thinking"),
        ("   \n ", "no answer outside thinking"),
        ("\\boxed{}", "no answer outside thinking"),
        ("<think> (3 + 5) * 7 - 1", "no answer outside thinking"),
        ("(3 + 5) * 7 - 1 <think> or not", "no answer outside thinking"),
        ("<think> (3 + 5) * 7 - 1 </think>", "no answer outside thinking"),
    ],
)
def test_wrong_answers_and_why(text: str, reason: str) -> None:
    found, why = verdict(text)
    assert found == "incorrect"
    assert reason in why


def test_division_is_exact() -> None:
    """(8 / (3 - 8 / 3)) is 24 only with exact fractions; what looks like 55 within a float's rounding is not 55."""
    classic = Problem("p", "", {"numbers": [8, 3, 8, 3], "target": 24})
    assert verdict("8 / (3 - 8 / 3)", classic)[0] == "correct"
    assert parse("1 / 3 + 1 / 3 + 1 / 3")[0] == Fraction(1)
    near = Problem("p", "", {"numbers": [1, 3, 999999999, 999999999], "target": 1})
    assert verdict("1 / 3 * 999999999 / 999999999", near)[0] == "incorrect"
    steps = Problem("p", "", {"numbers": [7, 2], "target": 3})
    assert verdict("7 / 2 = 3", steps)[0] == "incorrect"


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10_000 + "1" + ")" * 10_000,
        "(" * 399,
        "(" * 200 + "1" + ")" * 199,
        "1,111" * 100,
        "9" * 100_000,
        "9*" * 150 + "9",
        "__import__('os').system('true')",
        "().__class__.__bases__[0]",
        "\\boxed{" * 50_000,
        "\\boxed{{{" + "}" * 50_000,
        "}" * 1000 + "\\boxed{1",
        "<think>" * 10_000,
        "</think>" * 10_000,
        "\x00\x1b[31m\ud800",
        "１ + ２ + ٣ + 4",
        "²",
        "=" * 390,
        "=,=,=",
        "1=1",
        "9" * 9 + "*" + "9" * 9 + "=" + "9" * 9,
        "9**9**9**9",
        "3+5=8\n8*7=56\n56-1=55",
    ],
    ids=range(22),
)
def test_hostile_text_is_wrong_quickly_and_never_raises(text: str) -> None:
    for name, grade in (("countdown", countdown.grade_one), ("arithmetic", arithmetic.grade_one)):
        problem = FOUR if name == "countdown" else Problem("a", "", 10**40)
        assert grade(problem, text).verdict == "incorrect"


def test_parentheses_up_to_the_limit_are_read() -> None:
    one = Problem("p", "", {"numbers": [1], "target": 1})
    depth = (MAX_ANSWER_CHARS - 1) // 2
    assert verdict("(" * depth + "1" + ")" * depth, one)[0] == "correct"
    assert "longer than" in verdict("(" * (depth + 1) + "1" + ")" * (depth + 1), one)[1]


@given(st.text(alphabet="0123456789+-*/()=, \\boxed{}<think>/", max_size=80))
def test_no_text_crashes_a_checker(text: str) -> None:
    for problem, grade in ((FOUR, countdown.grade_one), (Problem("a", "", 3), arithmetic.grade_one)):
        assert grade(problem, text).verdict in ("correct", "incorrect")


Case = tuple[str, Fraction | None, list[int]]
"""An expression, its value (None: it divides by zero) and its numbers."""


def combined(left: Case, operator: str, right: Case) -> Case:
    (a, x, used), (b, y, more) = left, right
    value: Fraction | None = None
    if x is not None and y is not None and not (operator == "/" and y == 0):
        value = {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else x}[operator]
    return f"({a} {operator} {b})", value, used + more


leaves = st.integers(0, 20).map(lambda n: (str(n), Fraction(n), [n]))
cases = st.recursive(
    leaves, lambda c: st.tuples(c, st.sampled_from("+-*/"), c).map(lambda t: combined(*t)), max_leaves=8
)


@given(cases)
def test_parse_agrees_with_construction(case: Case) -> None:
    text, value, numbers = case
    if value is None:
        with pytest.raises(ValueError, match="division by zero"):
            parse(text)
    else:
        assert parse(text) == (value, numbers)


def test_precedence_and_left_to_right() -> None:
    assert parse("2 + 3 * 4")[0] == 14
    assert parse("20 - 5 - 3")[0] == 12
    assert parse("24 / 4 / 2")[0] == 3
    assert parse("24 / (4 / 2)")[0] == 12


# ---- countdown and arithmetic: problems ------------------------------------------------------------------------------


def numbers_of(problem: Problem) -> Any:
    return content_key(problem.answer["numbers"], problem.answer["target"])


@pytest.fixture(scope="module")
def small_countdown() -> Task:
    return load_task(TaskConfig(min_numbers=3, max_numbers=4))


def test_countdown_problems_are_distinct_reproducible_and_in_range(small_countdown: Task) -> None:
    train = small_countdown.problems("train", 60, 0)
    assert train == small_countdown.problems("train", 60, 0)
    assert train[:20] == small_countdown.problems("train", 20, 0)
    assert len({numbers_of(p) for p in train}) == len({p.id for p in train}) == 60
    assert train != small_countdown.problems("train", 60, 1)
    for problem in train:
        numbers, target = problem.answer["numbers"], problem.answer["target"]
        assert len(numbers) in (3, 4) and all(1 <= n <= 12 for n in numbers) and 10 <= target <= 99
        assert problem.text == f"{' '.join(map(str, numbers))} -> {target}"


@pytest.mark.parametrize(
    "ranges",
    [
        {"min_numbers": 3, "max_numbers": 4},  # configs/quickstart.toml and the studies
        {"min_numbers": 2, "max_numbers": 8, "min_target": 1},
        {"min_numbers": 4, "max_numbers": 6, "max_value": 100, "min_target": 100, "max_target": 999},
        {"min_numbers": 2, "max_numbers": 2, "max_value": 2, "min_target": 4, "max_target": 4},
    ],
    ids=str,
)
def test_draws_are_those_of_reasoning_gym(ranges: dict[str, int]) -> None:
    """Recorded runs and the golden loss curve hold its problems: the same numbers, in the same order, for every seed."""
    import reasoning_gym

    names = ("min_numbers", "max_numbers", "min_value", "max_value", "min_target", "max_target")
    config = TaskConfig(**ranges)  # type: ignore[arg-type]
    for seed in (0, 10**9):
        settings = {name: getattr(config, name) for name in names}
        oracle = reasoning_gym.create_dataset("countdown", **settings, seed=seed, size=10**9)
        for index in range(20):
            meta = oracle[index]["metadata"]
            assert countdown.draw(config, seed + index) == (meta["numbers"], meta["target"])


def test_splits_share_nothing_whatever_the_seed(small_countdown: Task) -> None:
    train = {numbers_of(p) for seed in (0, 1) for p in small_countdown.problems("train", 40, seed)}
    held_out = {numbers_of(p) for seed in (0, 1) for p in small_countdown.problems("held-out", 10, seed)}
    assert not train & held_out
    assert all(is_held_out(key) for key in held_out) and not any(is_held_out(key) for key in train)


def test_countdown_asks_for_no_more_than_there_is() -> None:
    with pytest.raises(UsageError, match="widen the ranges or ask for fewer"):
        take("train", 5, lambda i: ("same", FOUR), what="task t")
    with pytest.raises(UsageError, match="only 0 distinct held-out problems of 2"):
        take("held-out", 2, lambda i: ("same", FOUR), what="task t")


@pytest.mark.parametrize("impossible", [{"max_value": 1}, {"min_target": 90_000, "max_target": 90_001}])
def test_a_target_that_no_numbers_make_is_refused_in_one_line(impossible: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"task\.min_target = .*task\.max_target = .*task\.max_value = ") as caught:
        load_task(TaskConfig(**impossible)).problems("train", 1, 0)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_words_name_numbers_and_target() -> None:
    problem = load_task(TaskConfig(style="words")).problems("held-out", 1, 0)[0]
    assert ", ".join(map(str, problem.answer["numbers"])) in problem.text
    assert str(problem.answer["target"]) in problem.text


def test_arithmetic_problems_and_their_answers() -> None:
    task = load_task(TaskConfig(name="arithmetic", min_numbers=3, max_numbers=4, max_value=99))
    train, held_out = task.problems("train", 40, 0), task.problems("held-out", 10, 0)
    assert train == task.problems("train", 40, 0)
    assert not {p.text for p in train} & {p.text for p in held_out}
    for problem in train:
        assert parse(problem.text)[0] == problem.answer
        assert task.grade(problem, [str(problem.answer), f"it is {problem.answer}", str(problem.answer + 1)])[0:3] == [
            arithmetic.grade_one(problem, str(problem.answer)),
            arithmetic.grade_one(problem, f"it is {problem.answer}"),
            arithmetic.grade_one(problem, str(problem.answer + 1)),
        ]


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("12", 12, True),
        ("it is 12", 12, True),
        ("12, no, 13", 12, False),
        ("13, no, 12", 12, True),
        ("-12", -12, True),
        ("-12", 12, False),
        ("\\boxed{12} and 13", 12, True),
        ("<think> 12 </think>", 12, False),
        ("<think> 12", 12, False),
        ("12.5", 12, False),
        ("12.5", 5, False),
        ("12.50", 12, False),
        ("The answer is 12.", 12, True),
        ("10 + 2 = 12.\n", 12, True),
        ("\\boxed{12.}", 12, True),
        ("12.00", 12, True),
        ("12.0.", 12, True),
        ("1,042", 1042, True),
        ("-1,042,000.0.", -1_042_000, True),
        ("1, 42", 42, True),
        ("12,13", 13, True),
        ("\u221212", -12, True),
        ("\u221212", 12, False),
        ("9" * 18, int("9" * 18), True),
        ("12 or " + "9" * 19, 12, False),
        ("twelve", 12, False),
        ("", 12, False),
    ],
)
def test_arithmetic_takes_the_last_integer_outside_thinking(text: str, answer: int, right: bool) -> None:
    assert (arithmetic.grade_one(Problem("a", "", answer), text).verdict == "correct") is right


# ---- jsonl -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{i} + 1", "answer": i + 1}) + "\n" for i in range(200)))
    return path


def test_jsonl_splits_by_content(data: Path) -> None:
    task = load_task(TaskConfig(name="jsonl", path=str(data)))
    train, held_out = task.problems("train", 999, 0), task.problems("held-out", 999, 0)
    assert len(train) + len(held_out) == 200 and 5 <= len(held_out) <= 40
    assert not {p.text for p in train} & {p.text for p in held_out}
    assert train == task.problems("train", 999, 0) != task.problems("train", 999, 1)
    assert task.problems("train", 7, 0) == train[:7]


def test_jsonl_with_a_held_out_file(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "test.jsonl"
    other.write_text('{"problem": "what?", "answer": "that", "id": "q"}\n')
    task = load_task(TaskConfig(name="jsonl", path=str(data), held_out_path=str(other)))
    assert task.problems("held-out", 9, 0) == [Problem("q", "what?", "that")]
    assert len(task.problems("train", 999, 0)) == 200


def test_a_problem_of_the_held_out_file_is_never_trained_on(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "test.jsonl"
    other.write_text('{"problem": "7  +  1", "answer": 8}\n')
    task = load_task(TaskConfig(name="jsonl", path=str(data), held_out_path=str(other)))
    assert "7 + 1" not in {p.text for p in task.problems("train", 999, 0)}


def test_a_name_that_is_a_file_is_that_file(data: Path) -> None:
    named = load_task(TaskConfig(name=str(data)))
    assert named.problems("train", 9, 0) == load_task(TaskConfig(name="jsonl", path=str(data))).problems("train", 9, 0)


def test_jsonl_order_of_lines_does_not_matter(data: Path) -> None:
    before = load_task(TaskConfig(name="jsonl", path=str(data))).problems("train", 9, 0)
    data.write_text("".join(reversed(data.read_text().splitlines(keepends=True))))
    after = load_task(TaskConfig(name="jsonl", path=str(data))).problems("train", 9, 0)
    assert [p.text for p in before] == [p.text for p in after]


def test_jsonl_fields_by_other_names(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"q": "what?", "gold": [1, 2.0], "answer": "no", "uid": "a"}\n')
    fields = {"problem": "q", "answer": "gold", "id": "uid"}
    config = TaskConfig(name="jsonl", path=str(path), held_out_path=str(path), fields=fields)
    assert load_task(config).problems("held-out", 9, 0) == [Problem("a", "what?", "1, 2")]
    with pytest.raises(UsageError, match=r"task\.fields: unknown field 'question'; known: problem, answer"):
        load_task(TaskConfig(name="jsonl", path=str(path), fields={"question": "q"}))


@pytest.mark.parametrize(("kind", "wanted"), [(None, "set"), ("number", "number")])
def test_jsonl_asks_the_grader_with_reference_and_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str | None, wanted: str
) -> None:
    async def grade(items: list[tuple[str, str, str | None]]) -> list[Grade]:
        return [Grade("correct", f"{text}|{reference}|{kind}") for text, reference, kind in items]

    monkeypatch.setattr("paragator.grading.grade_many_async", grade, raising=False)
    path = tmp_path / "data.jsonl"
    path.write_text('{"problem": "what?", "answer": 7, "kind": "set"}\n')
    task = load_task(TaskConfig(name="jsonl", path=str(path), held_out_path=str(path), kind=kind))
    (problem,) = task.problems("held-out", 9, 0)
    grades: Any = task.grade(problem, ["x", "y"])
    assert [g.answer for g in asyncio.run(grades)] == [f"x|7|{wanted}", f"y|7|{wanted}"]


@pytest.fixture
def kinds_asked(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The kinds that the grader is asked with; it grades nothing."""
    asked: list[str | None] = []

    async def grade(items: list[tuple[str, str, str | None]]) -> list[Grade]:
        asked.extend(kind for _, _, kind in items)
        return [Grade("correct")] * len(items)

    monkeypatch.setattr("paragator.grading.grade_many_async", grade)
    return asked


def test_a_problem_that_was_never_listed_is_graded_by_its_kind(tmp_path: Path, kinds_asked: list[str | None]) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text('{"problem": "one", "answer": 1, "kind": "set"}\n')
    held_out.write_text('{"problem": "other", "answer": 1, "kind": "number"}\n')
    task = load_task(TaskConfig(name="jsonl", path=str(train), held_out_path=str(held_out)))
    task.problems("held-out", 9, 0)
    for text in ("one", "other", "unknown"):
        grades: Any = task.grade(Problem("1", text, "1"), ["x"])  # as recorded pools give it; both files have a 1
        asyncio.run(grades)
    assert kinds_asked == ["set", "number", None]


def test_a_kind_that_is_not_known_is_refused_before_anything_is_graded(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(
        '{"problem": "one", "answer": 1, "kind": "set"}\n\n{"problem": "two", "answer": 1, "kind": "zet"}\n'
    )
    here = {"name": "jsonl", "path": str(path), "held_out_path": str(path)}
    with pytest.raises(UsageError, match=r"task\.kind = 'nummer' is not known; did you mean 'number'"):
        load_task(TaskConfig(**here, kind="nummer"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"data\.jsonl:3: kind = 'zet' is not known; did you mean 'set'"):
        load_task(TaskConfig(**here)).problems("held-out", 9, 0)  # type: ignore[arg-type]
    assert len(load_task(TaskConfig(**here, kind="number")).problems("held-out", 9, 0)) == 2  # type: ignore[arg-type]
    assert len(load_task(TaskConfig(**here, reward="operator:add")).problems("held-out", 9, 0)) == 2  # type: ignore[arg-type]


def test_a_place_is_the_line_in_the_file_and_an_id_the_place_among_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('\n{"problem": "one", "answer": 1}\n\n{"problem": "two", "answer": true}\n')
    task = load_task(TaskConfig(name="jsonl", path=str(path), held_out_path=str(path)))
    with pytest.raises(DataError, match=r"data\.jsonl:4: answer = True: write it as text"):
        task.problems("held-out", 9, 0)
    path.write_text(path.read_text().replace("true", "2"))
    assert {p.id for p in task.problems("held-out", 9, 0)} == {"1", "2"}


def test_jsonl_without_a_held_out_problem_says_so(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    text = next(t for t in (f"{i}?" for i in range(99)) if not is_held_out(t))
    path.write_text(json.dumps({"problem": text, "answer": 0}) + "\n")
    task = load_task(TaskConfig(name="jsonl", path=str(path)))
    assert len(task.problems("train", 9, 0)) == 1
    with pytest.raises(DataError, match="no held-out problems"):
        task.problems("held-out", 9, 0)


# ---- grades of a trace ------------------------------------------------------------------------------------------------


def test_failed_outputs_keep_their_place_and_get_no_grade() -> None:
    outputs = (Failure("gone"), Completion("(3 + 5) * 7 - 1"), Failure("gone"), Completion("3"))
    trace = Trace(FOUR, Plan.sampling(4), 0, ((Group(Prompt("p"), outputs),),))
    found = asyncio.run(grade_trace(Task("t", lambda *_: [], countdown.grade), trace, {"step": 3}))
    assert found.grades[0][0][0] is found.grades[0][0][2] is None
    assert found.rewards(0) == [1.0, 0.0]
    assert found.trace.extra == {"step": 3}


# ---- demonstrations --------------------------------------------------------------------------------------------------

SMALL = TaskConfig(min_numbers=2, max_numbers=3, max_value=5, min_target=3, max_target=30)


@pytest.fixture(scope="module")
def demonstrator() -> Countdown:
    return Countdown(SMALL, seed=0)


@pytest.mark.parametrize("numbers", [(1, 1), (2, 3, 5), (1, 4, 4, 5)])
def test_honest_attempts_grade_by_their_result(numbers: tuple[int, ...]) -> None:
    attempts = enumerate_attempts(numbers, Random(0))
    assert len(attempts.texts) == len(attempts.results) == sum(map(len, attempts.ways.values()))
    for text, result in zip(attempts.texts, attempts.results, strict=True):
        assert 0 <= result <= LARGEST
        for target in (result, result + 1):
            problem = Problem("", "", {"numbers": list(numbers), "target": target})
            assert (verdict(text, problem)[0] == "correct") is (target == result)
    assert all(attempts.results[i] == result for result, found in attempts.ways.items() for i in found)


def joined(pieces: list[tuple[str, float]]) -> str:
    return " ".join(text for text, _ in pieces)


def normal(text: str) -> str:
    """Spaces as the tokenizer sees them: separators around tokens, a line end being a token."""
    return " ".join(text.replace("\n", " \n ").split(" ")).replace("  ", " ").strip(" ")


def problem_in(text: str) -> Problem:
    head = text.removeprefix("<bos> ").split(" \n")[0]
    numbers, _, target = head.partition(" -> ")
    return Problem("", head, {"numbers": [int(n) for n in numbers.split()], "target": int(target)})


def test_solving_prompts_are_those_of_training(demonstrator: Countdown) -> None:
    rng = Random(1)
    right = 0
    for _ in range(300):
        head, solution = demonstrator.solve(rng)
        problem = problem_in(head[0])
        assert head[1] == 0.0
        assert normal(head[0].removeprefix("<bos> ")) == normal(COMPACT.for_candidate(problem).text)
        right += verdict(solution[0].removesuffix(" <eos>"), problem)[0] == "correct"
    assert 0.65 < right / 300 < 0.9


@pytest.mark.parametrize("pool_size", [1, 2, 4])
def test_reviews_are_truthful_and_prompts_those_of_training(demonstrator: Countdown, pool_size: int) -> None:
    rng = Random(pool_size)
    verdicts: list[str] = []
    for _ in range(100):
        text = joined(demonstrator.review(rng, pool_size))
        problem = problem_in(text)
        prompt, _, reply = text.removeprefix("<bos> ").partition(" <think> ")
        attempts = [line.strip(" ").partition(" ")[2] for line in prompt.split("\n")[1:-1]]
        assert len(attempts) == pool_size
        assert normal(prompt) == normal(COMPACT.for_aggregation(problem, attempts).text)
        thought, _, solution = reply.partition(" </think> ")
        said = thought.split(" ")
        truth = ["right" if verdict(a, problem)[0] == "correct" else "wrong" for a in attempts]
        assert said[0 : 2 * pool_size : 2] == list("ABCDEFGH"[:pool_size])
        assert said[1 : 2 * pool_size : 2] == truth
        assert said[-2] == "use"
        if said[-1] != "none":
            assert solution == f"{attempts['ABCDEFGH'.index(said[-1])]} <eos>"
        verdicts += truth
    assert 0.1 < verdicts.count("right") / len(verdicts) < 0.6


def test_no_held_out_problem_is_ever_drawn(demonstrator: Countdown) -> None:
    rng = Random(3)
    drawn = [demonstrator.problem(rng)[0] for _ in range(500)]
    assert not any(is_held_out(numbers_of(p)) for p in drawn)
    possible = {content_key(s, t) for s, a in demonstrator.attempts.items() for t in a.ways}
    assert any(map(is_held_out, possible))
    assert all(SMALL.min_target <= p.answer["target"] <= SMALL.max_target for p in drawn)


def test_every_word_is_in_the_vocabulary(demonstrator: Countdown) -> None:
    rng = Random(4)
    known = set(demonstrator.words)
    assert len(known) == len(demonstrator.words)
    for _ in range(100):
        assert set(joined(demonstrator.solve(rng)).split(" ")) <= known
        assert set(joined(demonstrator.review(rng, 4)).split(" ")) <= known


def test_demonstrations_follow_the_seed(demonstrator: Countdown) -> None:
    again = Countdown(SMALL, seed=0)
    assert demonstrator.review(Random(5), 4) == again.review(Random(5), 4)
    assert demonstrator.review(Random(5), 4) != again.review(Random(6), 4)


# ---- demonstrations of sums ------------------------------------------------------------------------------------------

SUMS = TaskConfig(name="arithmetic", min_numbers=3, max_numbers=4, max_value=99)


def sum_in(text: str) -> Problem:
    expression = text.removeprefix("<bos> ").split(" \n")[0]
    return Problem("", expression, sum(int(t.replace(" ", "")) for t in re.findall(r"(?:^|[+-] )\d+", expression)))


def test_solved_sums_are_right_and_prompts_those_of_training() -> None:
    demonstrations, rng = Sums(SUMS, 0), Random(1)
    for _ in range(200):
        (head, weight), (solution, _) = demonstrations.solve(rng)
        problem = sum_in(head)
        assert weight == 0.0 and normal(head.removeprefix("<bos> ")) == normal(COMPACT.for_candidate(problem).text)
        assert demonstrations.right(problem, solution.removesuffix(" <eos>"))
        assert not is_held_out(f"arithmetic:{problem.text}")
        for step in solution.removesuffix(" <eos>").split(" , "):
            left, _, result = step.partition(" = ")
            assert sum(int(t.replace(" ", "")) for t in re.findall(r"(?:^-?|[+-] )\d+", left)) == int(result)


def test_a_careless_solver_errs_where_tens_are_left_and_goes_on_from_there() -> None:
    demonstrations, rng, found = Sums(SUMS, 0, careless=0.4), Random(4), {True: [0, 0], False: [0, 0]}
    known = set(demonstrations.words)
    for _ in range(600):
        (_, _), (solution, _) = demonstrations.solve(rng)
        assert set(solution.split(" ")) <= known
        before = None
        for step in solution.removesuffix(" <eos>").split(" , "):
            left, _, result = step.partition(" = ")
            start, sign, term = left.split(" ")
            assert before in (None, start)
            right, before = int(start) + int(sign + term), result
            hard = int(start) // 10 != right // 10
            found[hard][0] += right != int(result)
            found[hard][1] += 1
    wrong = {hard: errors / steps for hard, (errors, steps) in found.items()}
    assert 0.34 < wrong[True] < 0.46 and 0.02 < wrong[False] < 0.09


def test_carelessness_is_for_sums() -> None:
    with pytest.raises(UsageError, match=r"careless = 0\.3 is for sums"):
        Countdown(SMALL, 0, careless=0.3)


def test_demonstrations_hold_the_terms_that_problems_hold() -> None:
    config = TaskConfig(name="arithmetic", min_numbers=3, max_numbers=3, max_value=99)
    demonstrations, rng = Sums(config, 0), Random(3)
    shown = {int(n) for _ in range(2000) for n in re.findall(r"\d+", demonstrations.problem(rng)[0].text)}
    asked = {int(n) for p in load_task(config).problems("held-out", 2000, 0) for n in re.findall(r"\d+", p.text)}
    assert shown == asked == set(range(100))


def test_reviews_of_sums_are_truthful_and_learn_no_false_step() -> None:
    demonstrations, rng, verdicts = Sums(SUMS, 0), Random(2), []
    known = set(demonstrations.words)
    for _ in range(200):
        pieces = demonstrations.review(rng, 4)
        problem, attempts = sum_in(pieces[0][0]), pieces[2:13:3]
        said = [word for word, _ in pieces[16:23:2]]
        assert normal(joined(pieces[:14]).removeprefix("<bos> ")) == normal(
            COMPACT.for_aggregation(problem, [text for text, _ in attempts]).text
        )
        truth = [demonstrations.right(problem, text) for text, _ in attempts]
        assert said == ["right" if right else "wrong" for right in truth]
        assert all(weight == 0 for (_, weight), right in zip(attempts, truth, strict=True) if not right)
        assert set(joined(pieces).split(" ")) <= known
        verdicts += truth
    assert 0.3 < sum(verdicts) / len(verdicts) < 0.5


@pytest.mark.parametrize("kind", ["countdown", "sums"])
def test_mending_repairs_the_attempt_that_it_names(demonstrator: Countdown, kind: str) -> None:
    shown: Demonstrator = demonstrator if kind == "countdown" else Sums(SUMS, 0)
    rng, kept = Random(7), []
    for _ in range(100):
        pieces = shown.review(rng, 4, 0.5, 1.0)
        problem = problem_in(pieces[0][0]) if kind == "countdown" else sum_in(pieces[0][0])
        attempts, said = [text for text, _ in pieces[2:13:3]], [word for word, _ in pieces[16:23:2]]
        assert said == ["wrong"] * 4 and not any(shown.right(problem, text) for text in attempts)
        label, solution = pieces[24][0], pieces[26][0].removesuffix(" <eos>")
        assert shown.right(problem, solution)
        named = attempts["ABCD".index(label)]
        kept.append([a == b for a, b in zip(named.split(" , "), solution.split(" , "), strict=True)])
        if kind == "sums":
            assert all(kept[-1][: kept[-1].index(False)]), (named, solution)
            assert (
                sum(
                    a.split(" ")[1:3] != b.split(" ")[1:3]
                    for a, b in zip(named.split(" , "), solution.split(" , "), strict=True)
                )
                <= 1
            )
        else:
            steps, source = set(named.split(" , ")), demonstrator.attempts[tuple(sorted(problem.answer["numbers"]))]
            most = max(len(steps & set(source.texts[i].split(" , "))) for i in source.ways[problem.answer["target"]])
            assert len(steps & set(solution.split(" , "))) == most
    assert (
        kind == "countdown" or sum(map(any, kept)) > 50
    )  # steps before the fault stay; Countdown may need another start
    assert shown.review(Random(1), 4, 0.5) == shown.review(Random(1), 4, 0.5, 0.0)


def test_sums_need_a_vocabulary_that_holds_them() -> None:
    with pytest.raises(UsageError, match="max_value = 999"):
        Sums(SUMS.model_copy(update={"max_value": 999}), 0)


def test_a_text_in_both_splits_is_refused() -> None:
    """Whatever its white space and its id; problems that are apart pass."""
    training = [Problem(f"t{i}", f"What is {i} + 1?", i + 1) for i in range(4)]
    with pytest.raises(UsageError, match=r"task sums: 1 of 2 held-out problems are .* such as 'What is  3 \+ 1\?'"):
        check_splits("sums", training, [Problem("h0", "What is 9 + 1?"), Problem("h1", "What is  3 + 1?")])
    check_splits("sums", training, [Problem("h0", "What is 9 + 1?")])


@pytest.mark.parametrize(("twin", "what"), [(("t9", "1 + 1"), "text '1 + 1'"), (("t1", "2 + 2"), "id 't1'")])
def test_a_problem_twice_is_refused(twin: tuple[str, str], what: str) -> None:
    problems = [Problem("t1", "1 + 1"), Problem("t2", "1 + 2")]
    check_distinct("sums", problems)
    with pytest.raises(UsageError, match=re.escape(f"task sums: two problems have the {what}; give distinct ones")):
        check_distinct("sums", [*problems, Problem(*twin)])
