"""What a server was asked and answered over all attempts of a run: calls, tokens and cost, kept in usage.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paragator.core.errors import DataError, UsageError
from paragator.runs.folder import write_whole

USAGE, USAGE_AGGREGATE = "usage.json", "usage_aggregate.json"


class UsageLog:
    """A server's usage, summed over the attempts of a run and kept in a file; a kill loses what `write` had not seen.

    UsageError when an earlier attempt was answered by another model.
    """

    def __init__(self, path: Path, model: str, usage: Callable[[], dict[str, Any]]) -> None:
        self.path, self.model, self.usage = path, model, usage
        self.earlier: dict[str, Any] = {}
        self.attempts = 1
        if not path.exists():
            return
        try:
            kept = json.loads(path.read_text())
            self.attempts, self.earlier, before = kept["attempts"] + 1, dict(kept["total"]), kept["model"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read ({error!r}); remove it, and its counts start again") from None
        if before != model:
            raise UsageError(
                f"{path.parent} was answered by {before!r}, the server now has {model!r}; set engine.model"
            )

    def total(self) -> dict[str, Any]:
        """Usage of all attempts."""
        return summed(self.earlier, self.usage())

    def write(self) -> None:
        kept = {"model": self.model, "attempts": self.attempts, "total": self.total(), "this_attempt": self.usage()}
        write_whole(self.path, json.dumps(kept, indent=2) + "\n")


class Budget:
    """What an evaluation may spend at most; `spent` says what is over, once something is.

    A server's tokens and cost (`logs`) count over all attempts of the run, those of a model in this process (`counted`) in
    this attempt.
    """

    def __init__(self, max_tokens: int | None, max_cost: float | None) -> None:
        self.max_tokens, self.max_cost = max_tokens, max_cost
        self.logs: list[UsageLog] = []
        self.counted: Callable[[], int] = lambda: 0

    def ends(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """Whether to stop asking: what `stop` says, or nothing left to spend."""
        return lambda: stop() or bool(self.spent())

    def spent(self) -> str:
        """What is spent, once it is as much as may be; else ""."""
        if self.max_tokens is None and self.max_cost is None:
            return ""
        totals = [log.total() for log in self.logs]
        if any(total["completion_tokens"] is None for total in totals):
            return "tokens that the server does not count, so that no budget can be kept"
        tokens = self.counted() + sum(total["prompt_tokens"] + total["completion_tokens"] for total in totals)
        if self.max_tokens is not None and tokens >= self.max_tokens:
            return f"{tokens:,} tokens of eval.max_tokens_total = {self.max_tokens:,}"
        cost = sum(total["cost"] or 0 for total in totals)
        if self.max_cost is not None and cost >= self.max_cost:
            return f"{cost:.6g} of eval.max_cost = {self.max_cost:.6g}"
        return ""


def read_usage(run_dir: Path) -> dict[str, Any] | None:
    """What usage.json holds, and under `aggregate` that of a model which only aggregates; None in-process."""
    kept = {name: run_dir / name for name in (USAGE, USAGE_AGGREGATE) if (run_dir / name).exists()}
    found: dict[str, dict[str, Any]] = {name: json.loads(path.read_text()) for name, path in kept.items()}
    own = found.pop(USAGE_AGGREGATE, None)
    return (found.get(USAGE, {}) | ({"aggregate": own} if own else {})) or None


def summed(earlier: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Counts of two attempts added up, also those in dicts; of other values the later ones, None giving way."""
    out: dict[str, Any] = {}
    for name, value in now.items():
        if isinstance(value, dict):
            out[name] = summed(earlier.get(name) or {}, value)
        else:
            before = earlier.get(name)
            out[name] = before if value is None else value + (before or 0) if isinstance(value, int | float) else value
    return out
