"""The Task type, the built-in tasks by name, and reward functions from user code."""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from paragator.config import TaskConfig
from paragator.core.errors import RunError, UsageError
from paragator.core.types import Failure, Grade, Problem, Trace
from paragator.records import Graded

Split = Literal["train", "held-out"]
Reward = Callable[[Problem, Sequence[str]], Sequence[float | None]]
"""Scores the texts of one problem: one number a text, None where it cannot say."""
Grader = Callable[[Problem, Sequence[str]], list[Grade] | Awaitable[list[Grade]]]
"""One Grade a text: at once, or awaited where it asks worker processes or a judge."""


@dataclass(frozen=True, slots=True)
class Task:
    """Problems by split, and grades for the solutions of one problem.

    problems(split, count, seed) gives `count` distinct problems, the same ones for the same seed; the two splits
    never share a problem. grade(problem, texts) gives one Grade a text.
    """

    name: str
    problems: Callable[[Split, int, int], list[Problem]]
    grade: Grader


def load_task(config: TaskConfig) -> Task:
    """The task that a config names, with its reward function if it names one; UsageError for an unknown name.

    A name that ends as a data file's is that file, as if task.name were jsonl and task.path the file.
    """
    from paragator.tasks import arithmetic, countdown, jsonl, reasoning_gym
    from paragator.tasks.benchmarks import TABLE
    from paragator.tasks.files import is_data_file
    from paragator.tasks.sources import suggest

    builders: dict[str, Callable[[TaskConfig], Task]] = {
        "countdown": countdown.build,
        "arithmetic": arithmetic.build,
        "jsonl": jsonl.build,
        **dict.fromkeys(TABLE, jsonl.build_row),
    }
    if is_data_file(config.name):
        config = config.model_copy(update={"name": "jsonl", "path": config.path or config.name})
    build = reasoning_gym.build if config.name.startswith(reasoning_gym.PREFIX) else builders.get(config.name)
    if build is None:
        hint = suggest(config.name, [*builders, reasoning_gym.PREFIX])
        raise UsageError(f"task.name = {config.name!r} is not a task; {hint}")
    task = build(config)
    if config.reward is None:
        return task
    return Task(task.name, task.problems, graded_by(import_reward(config.reward), config.reward))


async def grade_trace(task: Task, trace: Trace, extra: Mapping[str, Any]) -> Graded:
    """A trace, marked with `extra`, and the grade of each of its solutions; failed outputs keep None."""
    rounds = []
    for groups in trace.rounds:
        found = task.grade(trace.problem, [c.text for group in groups for c in group.completions])
        grades = iter(await found if isinstance(found, Awaitable) else found)
        rounds.append(tuple(tuple(None if isinstance(o, Failure) else next(grades) for o in g.outputs) for g in groups))
    return Graded(replace(trace, extra=extra), tuple(rounds))


def import_reward(name: str) -> Reward:
    """The function behind "module:function"; the module may lie in the current folder."""
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # the `paragator` script, unlike `python -m`, leaves it out
        sys.path.append(os.getcwd())
    try:
        reward: Reward = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # user code may raise anything
        what = f"{type(error).__name__}: {error}"
        raise UsageError(
            f"task.reward = {name!r}: {what}; write it as module:function, importable from here"
        ) from error
    if not callable(reward):
        raise UsageError(f"task.reward = {name!r} is not a function; write it as module:function")
    return reward


def graded_by(reward: Reward, name: str) -> Callable[[Problem, Sequence[str]], list[Grade]]:
    """A grader from a reward function; what the function returns is checked, never trusted."""

    def grade(problem: Problem, texts: Sequence[str]) -> list[Grade]:
        try:
            values = list(reward(problem, texts))
        except Exception as error:  # user code may raise anything; the run stays resumable
            kind = type(error).__name__
            raise RunError(
                f"reward {name} raised {kind} for problem {problem.id}: {error}; fix it and --resume"
            ) from error
        if len(values) != len(texts):
            raise UsageError(f"reward {name} gave {len(values)} values for {len(texts)} texts: return one for each")
        return [to_grade(value, text, problem, name) for value, text in zip(values, texts, strict=True)]

    return grade


def to_grade(value: float | None, text: str, problem: Problem, name: str) -> Grade:
    if value is None:
        return Grade("unscored", text, "the reward function gave None")
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"reward {name} gave {value!r} for problem {problem.id}: return a finite number, or None")
    return Grade("correct" if value >= 1 else "incorrect", text, value=float(value))


def is_held_out(key: str) -> bool:
    """Whether a problem's content belongs to the held-out split: one in ten, whatever the seed."""
    return hashlib.sha256(key.encode()).digest()[0] % 10 == 0


def take(
    split: Split, count: int, draw: Callable[[int], tuple[str, Problem]], *, what: str, limit: int = 200
) -> list[Problem]:
    """The first `count` distinct problems of a split from an endless numbered stream of (content key, problem)."""
    seen: set[str] = set()
    out: list[Problem] = []
    for index in range(count * limit + 1000):
        if len(out) == count:
            return out
        key, problem = draw(index)
        if key in seen or is_held_out(key) != (split == "held-out"):
            continue
        seen.add(key)
        out.append(problem)
    raise UsageError(f"{what}: only {len(out)} distinct {split} problems of {count}; widen the ranges or ask for fewer")
