"""The methods as data: the six that are published, and two beyond them. Nothing else in the package branches on a method's name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from paragator.config import MethodConfig
from paragator.core import credit
from paragator.core.types import Stage

Scheme = Literal["pass@1", "pass@k", "outcome"]
Credit = Callable[[Sequence[float | None]], list[float]]


@dataclass(frozen=True, slots=True)
class Method:
    """Which stage is updated by which credit (None: not at all), and where the aggregator's pools come from.

    rounds   of aggregation in a training step
    between  the credit of aggregations from which a further round draws its pools; `aggregate` is that of the last
    """

    generate: Scheme | None
    aggregate: Scheme | None
    source: Literal["online", "offline"] = "online"
    rounds: int = 1
    between: Scheme | None = None

    def scheme(self, stage: Stage, *, last: bool = True) -> Scheme | None:
        if stage == "generate":
            return self.generate
        return self.aggregate if last else self.between


METHODS: dict[str, Method] = {
    "base": Method(None, None),
    "dr_grpo": Method("pass@1", None),
    "offline_aggregation": Method(None, "pass@1", "offline"),
    "online_aggregation": Method(None, "pass@1"),
    "online_multitask": Method("pass@1", "pass@1"),
    "paragator": Method("pass@k", "pass@1"),
    # beyond the paper: a candidate is worth what aggregations make of it; an aggregation that others will see is a candidate
    "paragator_outcome": Method("outcome", "pass@1"),
    "paragator_rounds": Method("pass@k", "pass@1", rounds=2, between="pass@k"),
}


def schemes(config: MethodConfig) -> dict[Scheme, Credit]:
    """Each credit scheme with this config's k, mean and scale; a group's rewards [G] in, its credit [G] out.

    "outcome" is pass@1's on the rewards that `credit.outcome` gives.
    """
    scale: Literal["std"] | None = "std" if config.scale == "std" else None

    def pass_at_k(rewards: Sequence[float | None]) -> list[float]:
        if any(r not in (None, 0, 1) for r in rewards):
            return credit.max_at_k(rewards, config.k)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once, when the run starts
            return credit.pass_at_k(rewards, config.k, mean=config.mean, scale=scale)

    def pass_at_1(rewards: Sequence[float | None]) -> list[float]:
        return credit.pass_at_1(rewards, scale=scale)

    return {"pass@1": pass_at_1, "pass@k": pass_at_k, "outcome": pass_at_1}


def register_method(name: str) -> None:
    """Placeholder until methods are merged."""
