"""Train one language model to generate solutions and to aggregate them; run iterated aggregation and measure it.

Names load on first use, so that `import paragator` is quick and pulls in no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "Completion": "core.types",
    "Config": "config",
    "Failure": "core.types",
    "Grade": "core.types",
    "Group": "core.types",
    "Packer": "core.packing",
    "ParagatorError": "core.errors",
    "Plan": "core.types",
    "Problem": "core.types",
    "Prompt": "core.types",
    "Solution": "evals.solve",
    "Task": "tasks",
    "Templates": "core.prompts",
    "Trace": "core.types",
    "run": "core.scaffold",
    "solve": "cli.solve",
    "train": "cli.train",
}

__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'paragator' has no attribute {name!r}")
    return getattr(importlib.import_module(f"paragator.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
