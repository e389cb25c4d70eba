"""Any generator of the reasoning-gym package as a task, `reasoning-gym/NAME`, graded by the generator's own checker.

The answer is the last box, else the text outside thinking; it is correct when the checker's score is exactly 1.
Some checkers run Python's `eval`, or sympy's parser, which evaluates, on the answer. What a model writes must never be run, so
those generators are refused (UNSAFE); tests/unit/test_benchmarks.py reads the installed package for others.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from paragator.config import TaskConfig
from paragator.core.errors import UsageError
from paragator.core.thinking import strip_thinking
from paragator.core.types import Grade, Problem
from paragator.grading.extract import boxes
from paragator.tasks.base import Split, Task, take
from paragator.tasks.sources import suggest

PREFIX = "reasoning-gym/"
UNSAFE = frozenset({
    "binary_matrix", "composite", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication", "puzzle24",
    "simple_integration", "spiral_matrix", "string_insertion",
})  # fmt: skip
"""Generators whose checker evaluates the answer, and "composite", which contains other generators."""
SIZE = 20_000
"""Items of one stream: some generators prepare all of them at once, and one refuses more."""
MAX_ANSWER_CHARS = 10_000


def build(config: TaskConfig) -> Task:
    """The task of one generator with `task.parameters`; UsageError for a name or parameters that it does not take."""
    name = config.name.removeprefix(PREFIX)
    check_parameters(name, config.parameters)
    stream = functools.cache(lambda seed: create(name, config.parameters, seed))

    def problems(split: Split, count: int, seed: int) -> list[Problem]:
        def draw(index: int) -> tuple[str, Problem]:
            if index >= SIZE:
                raise UsageError(
                    f"{config.name}: fewer than {count} distinct {split} problems in {SIZE}; ask for fewer"
                )
            item = stream(seed)[index]
            answer = None if item["answer"] is None else str(item["answer"])
            return f"{config.name}:{item['question']}", Problem(f"{name}-{seed}-{index}", item["question"], answer)

        return take(split, count, draw, what=f"task {config.name}")

    def grade(problem: Problem, texts: Sequence[str]) -> list[Grade]:
        """One grade a text; the item is generated again from the problem's id."""
        seed, _, index = problem.id.removeprefix(f"{name}-").rpartition("-")  # a seed may be negative
        source = stream(int(seed))
        return [grade_one(source, source[int(index)], text) for text in texts]

    return Task(config.name, problems, grade)


def check_parameters(name: str, parameters: dict[str, Any]) -> None:
    """UsageError for an unknown name or wrong parameters. Builds no generator: some take seconds."""
    if name == "countdown":
        raise UsageError(f"task.name = {PREFIX + name!r}: its checker evaluates answers; use task.name = countdown")
    if name in UNSAFE:
        raise UsageError(
            f"task.name = {PREFIX + name!r}: its checker evaluates what a model writes as code; use another"
        )
    for key in ("seed", "size"):
        if key in parameters:
            raise UsageError(f"task.parameters.{key}: {key} is set by paragator; leave it out")
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise UsageError(
            f"task.name = {PREFIX + name!r}: reasoning-gym has no such generator; {suggest(name, DATASETS)}"
        )
    with refusals(name):
        config = DATASETS[name][1](**parameters, seed=0, size=SIZE)
        if hasattr(config, "validate"):
            config.validate()


def create(name: str, parameters: dict[str, Any], seed: int) -> Any:
    """The generator's stream; UsageError when it does not take the parameters."""
    import reasoning_gym

    with refusals(name):
        return reasoning_gym.create_dataset(name, **parameters, seed=seed, size=SIZE)


@contextmanager
def refusals(name: str) -> Iterator[None]:
    """What a generator raises for parameters that it does not take, as UsageError."""
    try:
        yield
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(f"task.parameters for {PREFIX}{name}: {' '.join(str(error).split())}; fix them") from None


def grade_one(source: Any, item: dict[str, Any], text: str) -> Grade:
    """The checker's verdict on the last box, or on all that is outside thinking where there is none."""
    answer = strip_thinking(text)
    if found := boxes(answer):
        answer = found[-1][2]
    if not answer:
        return Grade("incorrect", None, "no answer outside thinking")
    if len(answer) > MAX_ANSWER_CHARS:
        return Grade("incorrect", answer[:100], f"more than {MAX_ANSWER_CHARS} characters")
    try:
        score = source.score_answer(answer, item)
    except Exception as error:  # noqa: BLE001 a third-party checker on a model's text may raise anything
        return Grade("unscored", answer, f"the checker raised {type(error).__name__}")
    return Grade("correct" if score == 1 else "incorrect", answer, "" if score == 1 else f"score {score:.2f}")
