"""Train one language model to generate solutions and to aggregate them; run iterated aggregation and measure it.

Names load on first use, so that `import paragator` is quick and pulls in no torch.

    evaluate, solve, aggregate, train, grade        what one does; `paragator.aio` has the same as async functions
    OpenAI, Local, Replay, Scripted, Sampling       engines, and how they sample
    Plan, Templates, Config, Task, Events           what those functions take
    METHODS, Method, register_method, credit        methods as data, and credit functions
    Problem, Prompt, Completion, Failure, Group     what an engine and a task are made of
    Grade, Trace, read_traces, ParagatorError       what comes out
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from paragator import aio as aio
    from paragator.config import Config as Config
    from paragator.core import credit as credit
    from paragator.core.errors import ParagatorError as ParagatorError
    from paragator.core.methods import METHODS as METHODS
    from paragator.core.methods import Method as Method
    from paragator.core.methods import register_method as register_method
    from paragator.core.prompts import Templates as Templates
    from paragator.core.types import Completion as Completion
    from paragator.core.types import Failure as Failure
    from paragator.core.types import Grade as Grade
    from paragator.core.types import Group as Group
    from paragator.core.types import Plan as Plan
    from paragator.core.types import Problem as Problem
    from paragator.core.types import Prompt as Prompt
    from paragator.core.types import Trace as Trace
    from paragator.engines.http.openai import OpenAI as OpenAI
    from paragator.engines.local.public import Local as Local
    from paragator.engines.replay import Replay as Replay
    from paragator.engines.sampling import Sampling as Sampling
    from paragator.engines.scripted import Scripted as Scripted
    from paragator.results import read_traces as read_traces
    from paragator.runs.events import Events as Events
    from paragator.sync import aggregate as aggregate
    from paragator.sync import evaluate as evaluate
    from paragator.sync import grade as grade
    from paragator.sync import solve as solve
    from paragator.sync import train as train
    from paragator.tasks import Task as Task

_WHERE = {
    "Completion": "core.types",
    "Config": "config",
    "Events": "runs.events",
    "Failure": "core.types",
    "Grade": "core.types",
    "Group": "core.types",
    "Local": "engines.local.public",
    "METHODS": "core.methods",
    "Method": "core.methods",
    "OpenAI": "engines.http.openai",
    "ParagatorError": "core.errors",
    "Plan": "core.types",
    "Problem": "core.types",
    "Prompt": "core.types",
    "Replay": "engines.replay",
    "Sampling": "engines.sampling",
    "Scripted": "engines.scripted",
    "Task": "tasks",
    "Templates": "core.prompts",
    "Trace": "core.types",
    "aggregate": "sync",
    "aio": "",
    "credit": "core",
    "evaluate": "sync",
    "grade": "sync",
    "read_traces": "results",
    "register_method": "core.methods",
    "solve": "sync",
    "train": "sync",
}
"""Public name -> the module that has it; a module itself by the package that holds it."""

__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'paragator' has no attribute {name!r}")
    if name in ("aio", "credit"):
        return importlib.import_module(".".join(filter(None, ("paragator", _WHERE[name], name))))
    return getattr(importlib.import_module(f"paragator.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
