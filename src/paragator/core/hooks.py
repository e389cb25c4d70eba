"""Functions of the user's by name: imported from "module:function", or handed over in Python."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from paragator.core.errors import RunError, UsageError
from paragator.core.types import Completion, Failure, Group, Problem, Stage

GIVEN: dict[str, Callable[..., Any]] = {}
"""Functions that were handed over in Python, by the name that stands for each in a config."""


def name_of(function: Callable[..., Any]) -> str:
    """The name under which a config knows a function that is handed over; in this process it leads back to it."""
    kind = function if hasattr(function, "__qualname__") else type(function)
    name = f"{getattr(function, '__module__', None) or kind.__module__}:{kind.__qualname__}"
    GIVEN[name] = function
    return name


def named(value: Any) -> Any:
    """The name of a function; any other value as it is. For a config's key that takes either."""
    return name_of(value) if callable(value) else value


def function_named(name: str, key: str, *arguments: str) -> Callable[..., Any]:
    """The function behind "module:function", which the config's `key` names and which takes `arguments`.

    The module may lie in the current folder. UsageError for what is not there, is no function, or takes other arguments.
    """
    found = GIVEN.get(name)
    if found is None:
        module, _, attribute = name.partition(":")
        if os.getcwd() not in sys.path:  # the `paragator` script, unlike `python -m`, leaves it out
            sys.path.append(os.getcwd())
        try:
            found = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # user code may raise anything
            what = f"{type(error).__name__}: {brief(error)}"
            raise UsageError(f"{key} = {name!r}: {what}; write it as module:function, importable from here") from error
    if not callable(found):
        raise UsageError(f"{key} = {name!r} is not a function; write it as module:function")
    try:
        inspect.signature(found).bind(*arguments)
    except TypeError as error:
        raise UsageError(f"{key} = {name!r}: {error}; it is called as function({', '.join(arguments)})") from None
    except ValueError:  # written in C, without a signature
        pass
    return found


def brief(text: object) -> str:
    """Text for a message: one line, of moderate length."""
    line = " ".join(str(text).split())
    return line if len(line) <= 200 else f"{line[:200]} ..."


# ---- schedules ----


def multiplier(name: str, step: int, steps: int) -> float:
    """What a schedule of the user's multiplies optimizer.lr by at a step, counted from 1. UsageError where that is no number."""
    try:
        value = function_named(name, "optimizer.schedule", "step", "steps")(step, steps)
        found = float(value)
    except UsageError:
        raise
    except Exception as error:  # user code may raise anything
        what = f"{type(error).__name__}: {brief(error)}"
        raise UsageError(f"schedule {name} raised {what} at step {step} of {steps}; fix it") from error
    if not (math.isfinite(found) and found >= 0):
        raise UsageError(f"schedule {name} gave {found} at step {step} of {steps}; return a finite number, 0 or more")
    return found


# ---- credit ----


@dataclass(frozen=True, eq=False)
class Rewards(Sequence[float | None]):
    """The rewards of one group, as a sequence, with what they belong to. None is an unscored rollout.

    problem  whose solutions these are
    group    its prompt, its rollouts in order, and its stage: "generate" or "aggregate"
    round    0 for candidates, then rounds of aggregation
    """

    values: tuple[float | None, ...]
    problem: Problem
    group: Group
    round: int = 0

    @property
    def stage(self) -> Stage:
        return self.group.stage

    @property
    def outputs(self) -> tuple[Completion | Failure, ...]:
        """The rollouts as they were sampled: text, thinking, token ids, how each ended."""
        return self.group.outputs

    @property
    def texts(self) -> tuple[str, ...]:
        """Each rollout's text; "" for a request that failed."""
        return tuple(o.text if isinstance(o, Completion) else "" for o in self.outputs)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Each rollout's length in tokens; 0 for a request that failed."""
        return tuple((o.length or 0) if isinstance(o, Completion) else 0 for o in self.outputs)

    @overload
    def __getitem__(self, index: int) -> float | None: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[float | None]: ...
    def __getitem__(self, index: int | slice) -> float | Sequence[float | None] | None:
        return self.values[index]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[float | None]:
        return iter(self.values)


@dataclass(frozen=True, slots=True)
class NamedCredit:
    """The credit function that a config names, imported when it is first asked. RunError for what it raises."""

    name: str

    def __call__(self, rewards: Sequence[float | None]) -> Sequence[float]:
        function = function_named(self.name, "method.credit", "rewards")
        try:
            found: Sequence[float] = function(rewards)
        except Exception as error:  # user code may raise anything; the run stays resumable
            what = f"{type(error).__name__}: {brief(error)}"
            raise RunError(f"credit {self.name} raised {what}; fix it and --resume") from error
        return found
