"""Chain arithmetic: sums and differences of several numbers (reasoning-gym's `chain_sum`), graded by integer equality."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from paragator.config import TaskConfig
from paragator.core.types import Grade, Problem
from paragator.grading.extract import box_or_all
from paragator.tasks.base import Split, Task, take

NUMBER = re.compile(r"([-−]?)(\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.(\d+))?")
"""Sign, digits, decimals."""
TAIL_CHARS = 400
MAX_DIGITS = 18


def build(config: TaskConfig) -> Task:
    """The task with `min_numbers` to `max_numbers` terms of up to as many digits as `max_value` has."""

    def problems(split: Split, count: int, seed: int) -> list[Problem]:
        return generate(config, split, count, seed)

    return Task("arithmetic", problems, grade)


def generate(config: TaskConfig, split: Split, count: int, seed: int) -> list[Problem]:
    return take(split, count, draws(config, seed), what="task arithmetic")


def draws(config: TaskConfig, seed: int) -> Callable[[int], tuple[str, Problem]]:
    """An endless stream of problems by number, each with its content key."""
    import reasoning_gym

    stream = reasoning_gym.create_dataset(
        "chain_sum",
        min_terms=config.min_numbers,
        max_terms=config.max_numbers,
        min_digits=len(str(config.min_value)),
        max_digits=len(str(config.max_value)),
        seed=seed,
        size=10**9,
    )

    def draw(index: int) -> tuple[str, Problem]:
        item = stream[index]
        expression = item["metadata"]["expression"]
        text = expression if config.style == "compact" else f"Work out {expression}. Answer with one integer."
        return content_key(expression), Problem(f"arithmetic-{seed}-{index}", text, int(item["answer"]))

    return draw


def content_key(expression: str) -> str:
    """What a problem is, whatever it is called: decides its split."""
    return f"arithmetic:{expression}"


def grade(problem: Problem, texts: Sequence[str]) -> list[Grade]:
    """One grade a text: its last integer, in its last box if it has one, against the reference."""
    return [grade_one(problem, text) for text in texts]


def grade_one(problem: Problem, text: str) -> Grade:
    value = last_integer(box_or_all(text) or "")
    if value is None:
        return Grade("incorrect", None, "no integer outside thinking")
    return Grade("correct" if value == problem.answer else "incorrect", str(value))


def last_integer(answer: str) -> int | None:
    """The last number near an answer's end, if it is whole: -7, 1,042, 42.00, or 42 before a full stop."""
    numbers = NUMBER.findall(answer[-TAIL_CHARS:])
    if not numbers:
        return None
    sign, digits, decimals = numbers[-1]
    digits = digits.replace(",", "")
    if len(digits) > MAX_DIGITS or decimals.strip("0"):
        return None
    return int(f"-{digits}" if sign else digits)
