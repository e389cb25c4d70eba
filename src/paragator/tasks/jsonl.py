"""Problems from a JSONL file with fields `problem` and `answer` (and optionally `id`), graded by plain equality.

Plain equality is: the last box, else the last line, equal to the answer as a decimal or fraction, or as text without case and spaces.
A stronger grader is a reward function away (`task.reward`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from random import Random

from paragator.config import TaskConfig
from paragator.core.errors import DataError, UsageError
from paragator.core.types import Grade, Problem
from paragator.grading.extract import final_answer
from paragator.records import read_json_lines
from paragator.tasks.base import Split, Task, is_held_out

NUMBER = re.compile(r"[-+]?\d{1,30}(\.\d{1,30}|/0*[1-9]\d{0,29})?")


def build(config: TaskConfig) -> Task:
    """The task over `config.path`; its held-out split is `config.held_out_path`, or a tenth of the file."""
    if config.path is None:
        raise UsageError("task.path is not set: name a JSONL file with fields problem and answer")
    path = Path(config.path)
    if not path.is_file():
        raise UsageError(f"task.path = {config.path}: no such file")
    held_out = Path(config.held_out_path) if config.held_out_path else None
    if held_out and not held_out.is_file():
        raise UsageError(f"task.held_out_path = {config.held_out_path}: no such file")

    def problems(split: Split, count: int, seed: int) -> list[Problem]:
        if held_out:
            rows = read_problems(held_out if split == "held-out" else path)
        else:
            rows = [p for p in read_problems(path) if is_held_out(p.text) == (split == "held-out")]
        if not rows:
            raise DataError(f"{path}: no {split} problems; set task.held_out_path or use a larger file")
        Random(seed).shuffle(rows)
        return rows[:count]

    return Task("jsonl", problems, grade)


def read_problems(path: Path) -> list[Problem]:
    """Every problem of a file; DataError for a missing field, an empty answer, a doubled id or no rows at all."""
    out: dict[str, Problem] = {}
    for number, row in enumerate(read_json_lines(path, ours=False), 1):
        for name in ("problem", "answer"):
            if not str(row.get(name) or "").strip() and row.get(name) != 0:
                raise DataError(f"{path}:{number}: field {name!r} is missing or empty")
        problem = Problem(str(row.get("id", number)), str(row["problem"]), str(row["answer"]))
        if problem.id in out:
            raise DataError(f"{path}:{number}: id {problem.id!r} occurs twice")
        out[problem.id] = problem
    if not out:
        raise DataError(
            f"{path}: no problems in it; one JSON object a line, each line ended, fields problem and answer"
        )
    return list(out.values())


def grade(problem: Problem, texts: Sequence[str]) -> list[Grade]:
    """One grade a text."""
    return [grade_one(problem, text) for text in texts]


def grade_one(problem: Problem, text: str) -> Grade:
    answer = final_answer(text)
    lines = answer.splitlines() if answer else []
    if not lines:
        return Grade("incorrect", None, "no answer outside thinking")
    found, wanted = canonical(lines[-1]), canonical(str(problem.answer))
    return Grade("correct" if found == wanted else "incorrect", found)


def canonical(answer: str) -> str:
    """A number as its exact fraction, other text without case, spaces and dollar signs."""
    text = answer.strip().strip("$").replace(",", "").rstrip(".").strip()
    if NUMBER.fullmatch(text):
        return str(Fraction(text))
    return "".join(answer.split()).replace("$", "").casefold()
