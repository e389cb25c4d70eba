"""The Task type, the built-in tasks by name, and grades for a whole trace."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from paragator.config import TaskConfig
from paragator.core.errors import UsageError
from paragator.core.types import Failure, Grade, Problem, Trace
from paragator.records import Graded
from paragator.tasks.rewards import graded_by, import_reward

Split = Literal["train", "held-out"]
Grader = Callable[[Problem, Sequence[str]], list[Grade] | Awaitable[list[Grade]]]
"""One Grade a text: at once, or awaited where it asks worker processes or a judge."""


@dataclass(frozen=True, slots=True)
class Task:
    """Problems by split, and grades for the solutions of one problem.

    problems(split, count, seed) gives `count` distinct problems, the same ones for the same seed; the two splits
    never share a problem. grade(problem, texts) gives one Grade a text. `correct_from` is the reward from which a
    reward function's solutions are correct; None where the grader says so itself.
    """

    name: str
    problems: Callable[[Split, int, int], list[Problem]]
    grade: Grader
    correct_from: float | None = None


def load_task(config: TaskConfig, *, recorded: bool = False) -> Task:
    """The task that a config names, with its reward function if it names one; UsageError for an unknown name.

    A name that ends as a data file's is that file, as if task.name were jsonl and task.path the file. A `recorded` one
    is the problems of a recording.
    """
    from paragator.tasks import arithmetic, composite, countdown, jsonl, reasoning_gym
    from paragator.tasks.benchmarks import TABLE
    from paragator.tasks.files import is_data_file
    from paragator.tasks.sources import suggest

    builders: dict[str, Callable[[TaskConfig], Task]] = {
        "countdown": countdown.build,
        "arithmetic": arithmetic.build,
        "composite": composite.build,
        "jsonl": jsonl.build_recorded if recorded else jsonl.build,
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
    grade = graded_by(import_reward(config.reward), config.reward, config.correct_from)
    return Task(task.name, task.problems, grade, config.correct_from)


async def graded(task: Task, problem: Problem, texts: Sequence[str]) -> list[Grade]:
    """One Grade a text."""
    found = task.grade(problem, texts)
    return await found if isinstance(found, Awaitable) else found


async def grade_trace(task: Task, trace: Trace, extra: Mapping[str, Any]) -> Graded:
    """A trace, marked with `extra`, and the grade of each of its solutions; failed outputs keep None.

    Where a reward is neither 0 nor 1, the mark "correct_from" says from which one a solution is correct.
    """
    rounds = []
    for groups in trace.rounds:
        grades = iter(await graded(task, trace.problem, [c.text for group in groups for c in group.completions]))
        rounds.append(tuple(tuple(None if isinstance(o, Failure) else next(grades) for o in g.outputs) for g in groups))
    extra = {**trace.extra, **extra}
    record = Graded(replace(trace, extra=extra), tuple(rounds))
    if task.correct_from is None or not record.is_fractional:
        return record
    return replace(record, trace=replace(trace, extra={**extra, "correct_from": task.correct_from}))


def check_splits(name: str, training: Sequence[Problem], held_out: Sequence[Problem]) -> None:
    """UsageError where a text is in both splits: an evaluation on it would measure memory."""
    texts = {" ".join(problem.text.split()) for problem in training}
    if shared := [problem for problem in held_out if " ".join(problem.text.split()) in texts]:
        raise UsageError(
            f"task {name}: {len(shared)} of {len(held_out)} held-out problems are training problems too, such as "
            f"{shared[0].text!r:.80}; give each split texts of its own"
        )


def check_distinct(name: str, problems: Sequence[Problem]) -> None:
    """UsageError where a list of problems holds a text, or an id, twice."""
    for what, values in (("text", [" ".join(p.text.split()) for p in problems]), ("id", [p.id for p in problems])):
        if len(set(values)) < len(values):
            twice = next(value for i, value in enumerate(values) if value in values[:i])
            raise UsageError(f"task {name}: two problems have the {what} {twice!r:.80}; give distinct ones")


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
