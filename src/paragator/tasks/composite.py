"""Composite: several independent problems at once, of Countdown or chain arithmetic; right only where every part is.

The parts of a held-out problem are held out themselves. An answer gives the parts' answers in order, separated by commas: one
each, or steps ("7 + 8 = 15 , 15 - 3 = 12"), of which a part has one fewer than numbers. Parts are graded one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from paragator.config import TaskConfig
from paragator.core.errors import UsageError
from paragator.core.types import Grade, Problem
from paragator.grading.extract import box_or_all
from paragator.tasks import arithmetic, countdown
from paragator.tasks.base import Split, Task, is_held_out

SEPARATOR = ";"
"""Between the parts of a grade's answer."""
HEAD = "Solve these {parts} independent problems.\n"
TAIL = "Give the {parts} answers in this order, separated by commas."
TRIES = 200
"""Composites that are drawn for each one asked for, at most."""
MAX_PART_CHARS = 400


@dataclass(frozen=True, slots=True)
class Part:
    """What parts can be: problems by number with their content keys, a grader, and how many steps a problem takes."""

    draws: Callable[[TaskConfig, int], Callable[[int], tuple[str, Problem]]]
    grade: Callable[[Problem, str], Grade]
    steps: Callable[[Problem], int]


PARTS: Mapping[str, Part] = {
    "countdown": Part(countdown.draws, countdown.grade_one, lambda problem: len(problem.answer["numbers"]) - 1),
    "arithmetic": Part(
        arithmetic.draws, arithmetic.grade_one, lambda problem: len(re.findall(r"\d+", problem.text)) - 1
    ),
}


def build(config: TaskConfig) -> Task:
    """The task with `parts` parts, each with the ranges of `config`."""

    def problems(split: Split, count: int, seed: int) -> list[Problem]:
        return generate(config, split, count, seed)

    def grade(problem: Problem, texts: Sequence[str]) -> list[Grade]:
        return [grade_one(problem, text, PARTS[config.part], fraction=config.fraction) for text in texts]

    return Task("composite", problems, grade)


def generate(config: TaskConfig, split: Split, count: int, seed: int) -> list[Problem]:
    """`count` distinct problems, each of successive parts of the split."""
    draw = PARTS[config.part].draws(config, seed)
    out: dict[tuple[str, ...], Problem] = {}
    parts: list[tuple[str, Problem]] = []
    for index in range((count * TRIES + 1000) * config.parts):
        if len(out) == count:
            break
        key, part = draw(index)
        if is_held_out(key) != (split == "held-out"):
            continue
        parts.append((key, part))
        if len(parts) == config.parts:
            whole = composed([part for _, part in parts], f"composite-{seed}-{index}", config.style)
            out.setdefault(tuple(sorted(key for key, _ in parts)), whole)
            parts = []
    if len(out) < count:
        raise UsageError(f"task composite: only {len(out)} distinct {split} problems of {count}; widen the ranges")
    return list(out.values())


def composed(parts: Sequence[Problem], name: str = "", style: str = "compact") -> Problem:
    """Problems as one: in symbols "7 + 8 - 3 , 4 - 9", or listed in sentences."""
    text = " , ".join(part.text for part in parts)
    if style != "compact":
        listed = "".join(f"({i}) {part.text}\n" for i, part in enumerate(parts, start=1))
        text = HEAD.format(parts=len(parts)) + listed + TAIL.format(parts=len(parts))
    return Problem(name, text, [{"text": part.text, "answer": part.answer} for part in parts])


def grade_one(problem: Problem, text: str, part: Part, *, fraction: bool = False) -> Grade:
    """Correct where every part is; the reward is the share of right parts with `fraction`, else 1 or 0."""
    wanted = [Problem("", one["text"], one["answer"]) for one in problem.answer]
    answer = box_or_all(text)
    if answer is None or len(answer) > MAX_PART_CHARS * len(wanted):
        reason = "no answer outside thinking" if answer is None else "the answer is too long"
        return Grade("incorrect", None, reason, 0.0 if fraction else None, (0.0,) * len(wanted))
    given, surplus = divided(answer, [part.steps(one) for one in wanted])
    grades = [part.grade(one, own) for one, own in zip(wanted, given, strict=True)]
    right = tuple(float(grade.verdict == "correct") for grade in grades)
    reason = surplus or "".join(f"part {i}; " for i, one in enumerate(right, start=1) if not one)
    value = sum(right) / len(right) if fraction else None
    answers = SEPARATOR.join(grade.answer or "" for grade in grades)
    return Grade(
        "incorrect" if reason else "correct", answers, reason and f"wrong: {reason.rstrip('; ')}", value, right
    )


def divided(answer: str, steps: Sequence[int]) -> tuple[list[str], str]:
    """An answer's parts without spaces, of so many steps each if it has any, "" for a missing one; what is left over, in words."""
    found, at, parts = "".join(answer.split()).split(","), 0, []
    for length in steps if "=" in answer else [1] * len(steps):
        parts.append(",".join(found[at : at + length]))
        at += length
    return parts, f"{len(found)} answers or steps, not {at}" if len(found) > at else ""
