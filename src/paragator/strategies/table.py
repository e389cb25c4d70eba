"""The table of strategies, and names with settings: "rsa", "pairwise:budget=2,n=16", "module:function"."""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, get_args, get_origin, get_type_hints

from paragator.core.errors import UsageError
from paragator.core.hooks import function_named
from paragator.core.types import Plan, Trace
from paragator.strategies.aggregate import Aggregate
from paragator.strategies.agree import Agree
from paragator.strategies.base import Asking, Sizes, Strategy
from paragator.strategies.confidence import Confidence
from paragator.strategies.genselect import GenSelect
from paragator.strategies.judge import BestByScore
from paragator.strategies.majority import Majority
from paragator.strategies.pacore import PaCoRe
from paragator.strategies.pairwise import Pairwise
from paragator.strategies.self_certainty import SelfCertainty

STRATEGIES: dict[str, Strategy] = {
    "majority": Majority(),
    "aggregate": Aggregate(),
    "aggregate_vote": Aggregate(vote=True),
    "rsa": Aggregate(n=16, k=4, rounds=10),
    "pacore": PaCoRe(),
    "genselect": GenSelect(),
    "pairwise": Pairwise(),
    "judge": BestByScore(),
    "confidence": Confidence(),
    "self_certainty": SelfCertainty(),
    "agree": Agree(),
}
NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
FROM_ONE = frozenset({"n", "k", "window", "votes", "degree", "max_chars", "warmup"})
"""Settings that mean nothing when they are 0."""


@dataclass(frozen=True, slots=True)
class Named:
    """A strategy with the text that named it; what it does not say of itself is as of one that asks for anything."""

    label: str
    strategy: Strategy

    async def __call__(self, asking: Asking) -> Trace:
        return await self.strategy(asking)

    @property
    def needs(self) -> str:
        """ "confidence", "certainty" or ""."""
        return str(getattr(self.strategy, "needs", ""))

    def candidates(self, sizes: Sizes) -> int:
        """How many candidates it asks for."""
        own = getattr(self.strategy, "candidates", None)
        return int(own(sizes)) if own else sizes.candidates

    def plan(self, sizes: Sizes) -> Plan:
        """Its rounds of solutions, as far as it tells them before it begins."""
        own = getattr(self.strategy, "plan", None)
        found: Plan = own(sizes) if own else Plan.sampling(self.candidates(sizes))
        return found

    def requests(self, sizes: Sizes) -> int | None:
        """The most completions that it asks for; None where it does not say."""
        own = getattr(self.strategy, "requests", None)
        return int(own(sizes)) if own else None

    def only_candidates(self, sizes: Sizes) -> bool:
        """Whether candidates are all that it asks for, as far as it says, so that a recording is enough."""
        return self.requests(sizes) in (None, self.candidates(sizes))


def register_strategy(name: str, strategy: Strategy) -> Strategy:
    """Add a strategy to the table; UsageError where the name has another one, or is none.

    Functions and classes of the same module and name count as the same, so that a notebook's cell can be run again.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"a strategy's name is {name!r}; use letters, digits, '.', '_' and '-'")
    if not callable(strategy):
        raise UsageError(f"strategy {name!r} is {strategy!r:.60}; give an async function of an Asking")
    known = STRATEGIES.get(name)
    if known is not None and origin(known) != origin(strategy):
        raise UsageError(f"strategy {name!r} exists already; choose another name")
    STRATEGIES[name] = strategy
    return strategy


def origin(strategy: Strategy) -> tuple[object, ...]:
    """What tells strategies of one name apart."""
    own = strategy if hasattr(strategy, "__qualname__") else type(strategy)
    return getattr(own, "__module__", None), getattr(own, "__qualname__", None)


def strategy_named(text: str, *, functions: bool = True) -> Named:
    """A strategy by "NAME", "NAME:key=value,...", "module:function" or "module:function:key=value,...".

    Without `functions`, by a name of the table only: nothing is imported, so that anybody may give the text.
    """
    parts = text.strip().split(":")
    name, rest = parts[0], parts[1:]
    if functions and rest and "=" not in rest[0]:
        strategy, rest = function_named(f"{name}:{rest[0]}", "strategy", "asking"), rest[1:]
    elif name in STRATEGIES:
        strategy = STRATEGIES[name]
    else:
        close = difflib.get_close_matches(name, STRATEGIES, n=2)
        known = ", ".join(STRATEGIES) + (", or module:function" if functions else "")
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {known}"
        raise UsageError(f"strategy {name!r} is not known; {hint}")
    settings = pairs_of(text, ":".join(rest)) if rest else {}
    return Named(text.strip(), with_settings(text, strategy, settings) if settings else strategy)


def pairs_of(text: str, rest: str) -> dict[str, str]:
    """The settings of a name as texts."""
    out: dict[str, str] = {}
    for part in rest.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not value:
            raise UsageError(f"strategy {text!r}: {part!r} is no setting; write it as key=value")
        if key in out:
            raise UsageError(f"strategy {text!r}: {key} is given twice; give it once")
        out[key] = value
    return out


def with_settings(text: str, strategy: Strategy, settings: Mapping[str, str]) -> Strategy:
    """A strategy with other settings; UsageError for one that it does not have, or a value of another type."""
    if not is_dataclass(strategy) or isinstance(strategy, type):
        raise UsageError(f"strategy {text!r}: it has no settings; make it a dataclass, or leave them out")
    hints = get_type_hints(type(strategy))
    names = [field.name for field in fields(strategy)]
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in names:
            raise UsageError(f"strategy {text!r}: {key} is no setting of it; it has {', '.join(names)}")
        values[key] = typed(text, key, value, hints[key])
    return replace(strategy, **values)


def typed(text: str, key: str, value: str, kind: Any) -> Any:
    """A setting's value in its type: whole number, number, yes or no, text, or numbers as 32/4."""
    if isinstance(kind, types.UnionType):
        kind = next(one for one in get_args(kind) if one is not type(None))
    try:
        if get_origin(kind) is tuple:
            return tuple(int(part) for part in value.split("/"))
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        found = kind(value) if kind in (int, float) else value
    except (ValueError, KeyError):
        raise UsageError(f"strategy {text!r}: {key} = {value!r} is not of its type; see docs/strategies.md") from None
    least = int(key in FROM_ONE)
    if isinstance(found, int | float) and not least <= found < math.inf:
        raise UsageError(f"strategy {text!r}: {key} = {value}; use {least} or more")
    return found
