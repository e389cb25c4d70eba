"""Reward functions from user code: imported by name, awaited where they are async, and what they return is checked."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from numbers import Real
from typing import Any, get_args

from paragator.core.errors import RunError, UsageError
from paragator.core.hooks import brief, function_named
from paragator.core.types import Grade, Problem, Verdict

Given = float | None | tuple[float | None, str | None] | Grade
"""What a reward function says of one text: a number, None where it cannot say, either with the answer that it read, or a Grade."""
Reward = Callable[[Problem, Sequence[str]], Iterable[Given] | Awaitable[Iterable[Given]]]
"""Scores the texts of one problem, one value a text; it may be `async def`."""


def import_reward(name: str) -> Reward:
    """The function behind "module:function"; the module may lie in the current folder."""
    reward: Reward = function_named(name, "task.reward", "problem", "texts")
    if inspect.isasyncgenfunction(reward):
        raise UsageError(f"task.reward = {name!r} is an async generator; return a list instead of yielding")
    return reward


def graded_by(
    reward: Reward, name: str, correct_from: float = 1.0
) -> Callable[[Problem, Sequence[str]], Awaitable[list[Grade]]]:
    """A grader from a reward function, for which a reward of `correct_from` or more is correct."""

    async def grade(problem: Problem, texts: Sequence[str]) -> list[Grade]:
        try:
            found = reward(problem, list(texts))
            if inspect.isawaitable(found):
                found = await found
            is_list = isinstance(found, Iterable) and not isinstance(found, str | bytes | Mapping | Set)
            values = list(found) if is_list else None
        except Exception as error:  # user code may raise anything; the run stays resumable
            what = f"{type(error).__name__} for problem {problem.id}: {brief(error)}"
            raise RunError(f"reward {name} raised {what}; fix it and --resume") from error
        said = f"reward {name} gave"
        if values is None:
            raise UsageError(f"{said} {brief(repr(found))} for problem {problem.id}: return a list, one value a text")
        if len(values) != len(texts):
            raise UsageError(f"{said} {len(values)} values for {len(texts)} texts: return one for each")
        try:
            return [to_grade(value, correct_from) for value in values]
        except ValueError as error:
            raise UsageError(f"{said} {error.args[0]} for problem {problem.id}: {error.args[1]}") from None

    return grade


def to_grade(given: Given, correct_from: float) -> Grade:
    """The grade of one text. The only place where a reward becomes a verdict. ValueError(what, remedy) for nonsense."""
    if isinstance(given, Grade):
        if given.verdict not in get_args(Verdict) or not isinstance(given.reason, str):
            raise ValueError(brief(repr(given)), "return a Grade of correct, incorrect or unscored, its reason as text")
        value = None if given.reward is None else number(given.reward)
        return Grade(given.verdict, voting(given.answer), given.reason, value)
    reward, read = given if isinstance(given, tuple | list) and len(given) == 2 else (given, None)
    answer = voting(read)
    if reward is None:
        return Grade("unscored", answer, "the reward function gave None")
    value = number(reward)
    return Grade("correct" if value >= correct_from else "incorrect", answer, value=value)


def number(given: Any) -> float:
    """A finite number: of Python, of numpy, or a tensor's only element."""
    value = given
    try:
        value = value.item() if hasattr(value, "item") else value
        found = float(value) if isinstance(value, Real) else math.nan
    except (TypeError, ValueError, RuntimeError, OverflowError):  # several elements; beyond a float
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(brief(repr(given)), "return a finite number, or None")
    return found


def voting(answer: Any) -> str | None:
    """The answer under which a solution votes; None for an empty one, which is no answer."""
    if answer is not None and not isinstance(answer, str):
        raise ValueError(f"the answer {brief(repr(answer))}", "return an answer as text, or None")
    return (answer and answer.strip()) or None
