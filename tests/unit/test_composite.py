"""Composite: parts graded one by one, splits by parts, demonstrations that combine truthfully, and the limits of combining."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from random import Random

import pytest

from paragator.config import TaskConfig
from paragator.core.errors import UsageError
from paragator.core.estimators import mean, part_vote, parts_at_k
from paragator.core.prompts import COMPACT
from paragator.core.types import Completion, Grade, Group, Plan, Problem, Prompt, Trace
from paragator.records import Graded, append, read
from paragator.stats.table import table
from paragator.tasks import composite, load_task
from paragator.tasks.base import is_held_out
from paragator.tasks.composite import PARTS, composed, grade_one
from paragator.tasks.demonstrations import DEMONSTRATORS

SUMS = TaskConfig(name="composite", parts=3, min_numbers=2, max_numbers=3, max_value=9)
NUMBERS = SUMS.model_copy(update={"part": "countdown", "min_numbers": 3, "max_numbers": 3})
THREE = composed([Problem("", "7 + 8 - 3", 12), Problem("", "4 - 9", -5), Problem("", "2 + 2", 4)])
TWO = composed(
    [
        Problem("", "3 5 7 -> 22", {"numbers": [3, 5, 7], "target": 22}),
        Problem("", "2 9 4 -> 14", {"numbers": [2, 9, 4], "target": 14}),
    ]
)


@pytest.mark.parametrize(
    ("text", "parts", "answer"),
    [
        ("12, -5, 4", (1, 1, 1), "12;-5;4"),
        ("<think> A B A </think> 7 + 8 = 15 , 15 - 3 = 12 , 4 - 9 = -5 , 2 + 2 = 4", (1, 1, 1), "12;-5;4"),
        ("7 + 8 = 15 , 15 - 3 = 11 , 4 - 9 = -5 , 2 + 2 = 4", (0, 1, 1), "11;-5;4"),
        (
            "7 + 8 = 15 , 4 - 9 = -5 , 2 + 2 = 4",
            (0, 0, 0),
            "-5;4;",
        ),  # a step is missing: what follows is not in its place
        ("12, -5", (1, 1, 0), "12;-5;"),
        (r"\boxed{12, -5, 4}", (1, 1, 1), "12;-5;4"),
        ("<think> 12, -5, 4", (0, 0, 0), None),
        ("1" * 5000, (0, 0, 0), None),
    ],
)
def test_parts_are_graded_one_by_one(text: str, parts: tuple[int, ...], answer: str | None) -> None:
    found = grade_one(THREE, text, PARTS["arithmetic"])
    assert found.parts == parts and found.answer == answer
    assert (found.verdict == "correct") is all(parts) and found.value is None
    assert grade_one(THREE, text, PARTS["arithmetic"], fraction=True).reward == pytest.approx(sum(parts) / 3)


def test_an_answer_with_more_than_was_asked_for_is_wrong() -> None:
    found = grade_one(THREE, "12, -5, 4, 4", PARTS["arithmetic"])
    assert found.verdict == "incorrect" and found.parts == (1, 1, 1) and "4 answers or steps, not 3" in found.reason


def test_parts_of_countdown() -> None:
    part = PARTS["countdown"]
    right = grade_one(TWO, "3 * 5 = 15 , 15 + 7 = 22 , 9 * 2 = 18 , 18 - 4 = 14", part)
    assert right.verdict == "correct" and right.answer == "3*5=15,15+7=22;9*2=18,18-4=14"
    assert grade_one(TWO, "3 * 5 + 7 , 9 * 2 - 4", part).verdict == "correct"
    assert grade_one(TWO, "3 * 5 + 7 , 9 + 2 + 4", part).parts == (1, 0)


@pytest.mark.parametrize("config", [SUMS, NUMBERS], ids=["sums", "countdown"])
def test_parts_belong_to_the_split_of_their_problem(config: TaskConfig) -> None:
    task = load_task(config)
    for split in ("train", "held-out"):
        problems = task.problems(split, 30, 5)  # type: ignore[arg-type]
        assert problems == task.problems(split, 30, 5) and len({p.text for p in problems}) == 30  # type: ignore[arg-type]
        for problem in problems:
            assert problem.text == " , ".join(part["text"] for part in problem.answer) and len(problem.answer) == 3
            for part in problem.answer:
                key = f"arithmetic:{part['text']}"
                if config is NUMBERS:
                    key = f"countdown:{sorted(part['answer']['numbers'])}:{part['answer']['target']}"
                assert is_held_out(key) is (split == "held-out")


def test_too_few_problems_are_said_and_words_list_the_parts() -> None:
    tiny = NUMBERS.model_copy(update={"min_value": 1, "max_value": 1, "min_target": 1, "max_target": 3})
    with pytest.raises(UsageError, match=r"only \d+ distinct train problems of 50"):
        load_task(tiny).problems("train", 50, 0)
    text = load_task(SUMS.model_copy(update={"style": "words"})).problems("train", 1, 0)[0].text
    assert text.startswith("Solve these 3 independent problems.\n(1) Work out ") and "\n(3) " in text


@pytest.mark.parametrize("config", [SUMS, NUMBERS], ids=["sums", "countdown"])
def test_demonstrations_combine_parts_of_attempts(config: TaskConfig) -> None:
    """Prompts are those of training, words are known, nine parts in ten stand in an attempt, and from more than one of them."""
    demonstrator = DEMONSTRATORS["composite"](config, 0, 0.0)
    rng, known, copied, combined = Random(1), set(demonstrator.words), [], []
    for _ in range(40):
        pieces = demonstrator.review(rng, 4, 0.5)
        text = " ".join(piece for piece, _ in pieces)
        assert set(text.split(" ")) <= known
        problem, *attempts = [piece.removeprefix("<bos> ").removesuffix(" \n") for piece, _ in pieces[:5]]
        shown = COMPACT.for_aggregation(Problem("", problem), [attempt[2:] for attempt in attempts]).text
        prompt = " ".join(piece for piece, weight in pieces if not weight).removeprefix("<bos> ")
        assert " ".join(prompt.split()) == " ".join(shown.split())
        numbers = [part.split(" -> ")[0] for part in problem.split(" , ")]
        steps = [sum(word.isdigit() for word in part.split()) - 1 for part in numbers]
        whole, *pool = (
            composite.divided(t, steps)[0] for t in (pieces[-1][0].removesuffix(" <eos>"), *(a[2:] for a in attempts))
        )
        copied += [any(part == own[i] for own in pool) for i, part in enumerate(whole)]
        combined.append(whole not in pool)
    assert mean(copied) > 0.8 and mean(combined) > 0.2


def test_parts_that_no_attempt_has_right_are_repaired() -> None:
    demonstrator, rng, mended = DEMONSTRATORS["composite"](SUMS, 0, 0.4), Random(2), []
    part = composite.PARTS["arithmetic"]
    for _ in range(200):
        pieces = demonstrator.review(rng, 2, 0.0, 1.0)
        texts, *pool = (
            text.removesuffix(" <eos>").removesuffix(" \n")
            for text in (pieces[-1][0], *(a[2:] for a, _ in pieces[1:3]))
        )
        problems = [Problem("", text, sum(map(int, re.findall(r"[+-]?\d+", text.replace(" ", "")))))
                    for text in pieces[0][0].removeprefix("<bos> ").removesuffix(" \n").split(" , ")]  # fmt: skip
        steps = [part.steps(one) for one in problems]
        own, *others = (composite.divided(text, steps)[0] for text in (texts, *pool))
        for i, one in enumerate(problems):
            if not any(part.grade(one, other[i]).verdict == "correct" for other in others):
                mended.append(part.grade(one, own[i]).verdict == "correct")
    assert len(mended) > 30 and mean(mended) > 0.85  # but for parts that are written anew


# ---- what combining could reach --------------------------------------------------------------------------------------


def test_parts_at_k_equals_brute_force() -> None:
    rng = Random(3)
    for _ in range(20):
        parts = [[float(rng.random() < 0.5) for _ in range(3)] for _ in range(5)]
        for k in range(1, 6):
            sets = list(itertools.combinations(parts, k))
            exact = mean(float(all(map(max, zip(*some, strict=True)))) for some in sets)
            assert parts_at_k(parts, k) == pytest.approx(exact, abs=1e-12)
    assert math.isnan(parts_at_k([[1.0]], 2)) and math.isnan(parts_at_k([], 1)) and math.isnan(parts_at_k([[], []], 1))


def test_part_vote_takes_each_parts_most_frequent_answer() -> None:
    answers = [["1", "5"], ["1", "6"], ["2", ""], ["3", ""]]
    right = [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    assert part_vote(answers, right) == 0.5  # the first part is won, the second tied
    assert part_vote([["", "1"], ["", "1"]], [[0.0, 1.0], [0.0, 1.0]]) == 0.0
    assert math.isnan(part_vote([], []))


def test_grades_keep_their_parts_and_tables_show_them(tmp_path: Path) -> None:
    def graded(parts: list[tuple[float, ...]], name: str) -> Graded:
        outputs = tuple(Completion("x", "stop") for _ in parts)
        grades = tuple(
            Grade("correct" if all(p) else "incorrect", ";".join("r" if x else f"w{i}" for x in p), parts=p)
            for i, p in enumerate(parts)
        )
        rounds = ((Group(Prompt("p"), outputs, stage="generate"),),)
        return Graded(Trace(Problem(name, name), Plan.sampling(len(parts)), 0, rounds), ((grades,),))

    records = [graded([(1.0, 0.0), (0.0, 1.0)], "a"), graded([(1.0, 1.0), (0.0, 0.0)], "b")]
    append(tmp_path / "x.jsonl", records)
    assert [r.grades for r in read(tmp_path / "x.jsonl")] == [r.grades for r in records]
    found = table(records, 2)
    assert [found.cell(name, 0).mean for name in ("pass_at_1", "pass_at_k", "parts_at_k", "part_right")] == [
        0.25,
        0.5,
        1.0,
        0.5,
    ]
    assert found.cell("part_vote", 0).mean == 0.25  # every part is tied
    plain = [Graded(r.trace, (((Grade("incorrect"), Grade("incorrect")),),)) for r in records]
    assert "parts_at_k" not in table(plain, 2).measures
