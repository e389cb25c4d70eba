"""Training methods as data: which stage is credited how, and what that demands of a run.

The table holds the six published methods, two beyond them, and rivals of the generator's credit. `register_method`
adds one of your own, and an installed package can offer one by an entry point of the group "paragator.methods". Nothing
else in the package asks for a name.
"""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from paragator.core import credit
from paragator.core.errors import UsageError
from paragator.core.hooks import NamedCredit, Rewards
from paragator.core.types import Stage

CreditFunction = Callable[[Sequence[float | None]], Sequence[float]]
"""Credit of one's own: the rewards [G] of one group in (None is unscored), the advantage of each rollout out.

In training it gets `core.hooks.Rewards`: a sequence that also knows the problem, the texts and their lengths."""
JudgedByPools = Callable[[int, Sequence[Sequence[int]], Sequence[Sequence[float | None]]], Sequence[float | None]]
"""A number for each of so many candidates, by the pools of a round and the rewards of their aggregations."""
SchemeName = Literal["pass@1", "pass@k", "relative", "outcome", "sets"]
OF_POOLS: Mapping[str, JudgedByPools] = {"outcome": credit.outcome, "sets": credit.spiral}
"""Schemes that judge a candidate by the aggregations of the pools that hold it."""
Scheme = SchemeName | CreditFunction
ENTRY_POINTS = "paragator.methods"
"""The entry-point group in which a package offers a method under the method's name."""


@dataclass(frozen=True, slots=True)
class CreditSettings:
    """k and the baseline of pass@k, and whether credit is divided by the group's deviation; see `core.credit`."""

    k: int = 4
    mean: credit.Mean = "subset"
    scale: credit.Scale = None


@dataclass(frozen=True, slots=True)
class Method:
    """Which stage is updated by which credit (None: not at all), and where the aggregator's candidates come from.

    generate   "pass@1", "pass@k", "relative" (MaxRL), "outcome" (pass@1 of what aggregations made of a candidate), "sets"
               (SPIRAL: what pools gain by it), or a function of your own
    aggregate  "pass@1", "pass@k", "relative", or a function of your own; credits the last round
    source     "online" samples the candidates; "offline" takes recorded ones, which are not trained on
    rounds     of aggregation in a training step
    between    the credit of aggregations from which a further round draws its pools
    names      aggregations name one of the attempts instead of writing a solution; `shown` of them where it needs so many
    """

    name: str
    generate: Scheme | None = None
    aggregate: Scheme | None = None
    source: Literal["online", "offline"] = "online"
    rounds: int = 1
    between: Scheme | None = None
    names: bool = False
    shown: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise UsageError(f"a method's name is {self.name!r}; use letters, digits, '.', '_' and '-'")
        for field in ("generate", "aggregate", "between"):
            scheme = getattr(self, field)
            known = [s for s in get_args(SchemeName) if field == "generate" or s not in OF_POOLS]
            if scheme is not None and not callable(scheme) and scheme not in known:
                raise UsageError(
                    f"method {self.name!r}: {field} = {scheme!r}; use {', '.join(known)}, a function of rewards, or None"
                )
        if self.source not in ("online", "offline"):
            raise UsageError(f"method {self.name!r}: source = {self.source!r}; use 'online' or 'offline'")
        if self.source == "offline" and self.generate is not None:
            raise UsageError(f"method {self.name!r}: recorded candidates are not trained on; set generate = None")
        if self.generate in OF_POOLS and self.aggregate is None:
            raise UsageError(
                f"method {self.name!r}: {self.generate!r} is what aggregations make of a candidate; set aggregate"
            )
        if self.rounds < 1:
            raise UsageError(f"method {self.name!r}: rounds = {self.rounds}; at least 1 is needed")

    @property
    def trains(self) -> bool:
        """Whether it changes weights at all."""
        return self.generate is not None or self.aggregate is not None

    def scheme(self, stage: Stage, *, last: bool = True) -> Scheme | None:
        """What credits a stage; `last` is False for a round of aggregations that a further one follows."""
        if stage == "generate":
            return self.generate
        return self.aggregate if last else self.between

    def credit(self, scheme: Scheme, rewards: Sequence[float | None], settings: CreditSettings) -> list[float]:
        """A group's credit [G] by a scheme; rewards of "outcome" and "sets" are what the functions of `OF_POOLS` give."""
        if callable(scheme):
            return self.own_credit(scheme, rewards)
        if scheme == "sets":
            return [0.0 if r is None else r for r in rewards]
        if scheme == "relative":
            return credit.max_rl(rewards)
        if scheme != "pass@k":
            return credit.pass_at_1(rewards, scale=settings.scale)
        if any(r not in (None, 0, 1) for r in rewards):
            return credit.max_at_k(rewards, settings.k)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once, when the run starts
            return credit.pass_at_k(rewards, settings.k, mean=settings.mean, scale=settings.scale)

    def credited_by(self, function: CreditFunction) -> Method:
        """The same with this credit in every stage that it trains; UsageError where it trains none."""
        if not self.trains:
            raise UsageError(f"method.credit is set, but {self.name} trains nothing; name another method")
        own = [None if scheme is None else function for scheme in (self.generate, self.aggregate, self.between)]
        return replace(self, generate=own[0], aggregate=own[1], between=own[2])

    def own_credit(self, function: CreditFunction, rewards: Sequence[float | None]) -> list[float]:
        """What a function of the user's gives, checked; it is not asked about a group in which nothing is scored."""
        if all(reward is None for reward in rewards):
            return [0.0] * len(rewards)
        answer = function(rewards if isinstance(rewards, Rewards) else tuple(rewards))
        named = f"credit {function.name}" if isinstance(function, NamedCredit) else None
        asks = f"{named or f'method {self.name!r}: its credit function'} gave"
        try:
            found = [float(value) for value in answer]
        except (TypeError, ValueError):
            raise UsageError(f"{asks} {answer!r}; return one number for each reward") from None
        if len(found) != len(rewards):
            raise UsageError(f"{asks} {len(found)} numbers for {len(rewards)} rewards; return one for each")
        for value, reward in zip(found, rewards, strict=True):
            if not math.isfinite(value):
                raise UsageError(f"{asks} {value} for reward {reward}; return finite numbers")
            if reward is None and value != 0:
                raise UsageError(f"{asks} {value} to an unscored rollout (reward None); give it 0")
        return found

    def refusal(self, *, k: int, candidates: int, pools: int, recorded: bool, shown: int | None = None) -> str | None:
        """Why a run cannot train by this method, in one line; None where it can. `shown` is m where the prompt asks for a name."""
        aggregations = candidates // pools  # of one pool: a credit group
        if k >= candidates and "pass@k" in (self.generate, self.aggregate, self.between):
            return (
                f"method.k = {k} must be below rollout.candidates = {candidates}: "
                "with k >= N every pass@k credit is zero; lower k or sample more"
            )
        if k >= aggregations and "pass@k" in (self.aggregate, self.between):
            return (
                f"method.k = {k} must be below rollout.candidates / rollout.pools = {aggregations}, a pool's aggregations: "
                "else every pass@k credit is zero; lower k or take fewer pools"
            )
        if pools == 1 and self.generate in OF_POOLS:
            return f"rollout.pools = 1: {self.name} compares candidates by the pools that hold them; take several"
        if self.names and shown is None:
            return f"model.template: {self.name} needs a prompt that asks for a label; set 'compact-select' or 'chat-select'"
        if self.shown not in (None, shown):
            return f"rollout.pool_size = {shown}: {self.name} shows {self.shown} attempts; set it so"
        if not recorded and self.source == "offline":
            return f"method.recorded is not set: {self.name} needs the file that `paragator sample` wrote"
        return None


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("base"),
        Method("dr_grpo", "pass@1"),
        Method("offline_aggregation", None, "pass@1", "offline"),
        Method("online_aggregation", None, "pass@1"),
        Method("online_multitask", "pass@1", "pass@1"),
        Method("paragator", "pass@k", "pass@1"),
        # beyond the paper: a candidate is worth what aggregations make of it; an aggregation that others see is a candidate
        Method("paragator_outcome", "outcome", "pass@1"),
        Method("paragator_rounds", "pass@k", "pass@1", rounds=2, between="pass@k"),
        # rivals of pass@k for the generator
        Method("max_rl", "relative", "pass@1"),
        Method("spiral", "sets", "pass@1"),
        # rivals of aggregation: the model names the best candidate, or the better one of two
        Method("selection", None, "pass@1", names=True),
        Method("pairwise", "pass@1", "pass@1", names=True, shown=2),
    )
}


def register_method(method: Method) -> Method:
    """Add a method to the table, so that a config can name it; UsageError where the name has another definition.

    Functions of the same module and name count as the same, so that a notebook's cell can be run again.
    """
    known = METHODS.get(method.name)
    if known is not None and definition(known) != definition(method):
        raise UsageError(f"method {method.name!r} exists with another definition; choose another name")
    METHODS[method.name] = method
    return method


def definition(method: Method) -> tuple[object, ...]:
    """What tells methods of one name apart."""
    schemes = (method.generate, method.aggregate, method.between)
    named = ((getattr(s, "__module__", None), getattr(s, "__qualname__", s)) if callable(s) else s for s in schemes)
    return (*named, method.source, method.rounds, method.names, method.shown)


def method_named(name: str) -> Method:
    """The table's method, or one that an installed package offers; UsageError with the closest names without either."""
    if name in METHODS:
        return METHODS[name]
    from importlib.metadata import entry_points  # slow to import, and rarely needed

    offered = entry_points(group=ENTRY_POINTS)
    for point in offered.select(name=name):
        try:
            found = point.load()
        except (ImportError, AttributeError) as error:
            raise UsageError(f"{name!r} is offered by {point.value}, which cannot be loaded: {error}; fix it") from None
        if not isinstance(found, Method) or found.name != name:
            raise UsageError(f"{name!r} is offered by {point.value}, which is {found!r}; make it Method({name!r}, ...)")
        return register_method(found)
    known = [*METHODS, *sorted(offered.names - METHODS.keys())]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
    raise UsageError(f"{name!r} is not a method; {hint}")
