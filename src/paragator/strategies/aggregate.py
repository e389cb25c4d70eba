"""Rounds of aggregation: the method's own, with a vote at the end, and RSA's (arXiv 2509.26626)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from paragator.core.types import Choice, Plan, Trace
from paragator.strategies.base import Asking, Sizes
from paragator.strategies.choose import alike, last_round, voted


@dataclass(frozen=True, slots=True)
class Aggregate:
    """n candidates, then `rounds` rounds of n aggregations, each of k solutions of the round before.

    n, rounds  the run's own unless set
    k          solutions that an aggregation sees; fewer than n are drawn for each aggregation, None is all n
    vote       the last round's vote is the answer; else each of its solutions, in expectation
    """

    n: int | None = None
    k: int | None = None
    rounds: int | None = None
    vote: bool = False

    async def __call__(self, asking: Asking) -> Trace:
        trace = await asking.rounds(self.plan(asking.sizes))
        last = last_round(trace)
        if last is None:
            return trace
        population = trace.population(last)
        weights = voted(await asking.answers(population)) if self.vote else alike(len(population))
        planned = last == trace.plan.rounds
        return replace(trace, choice=Choice(last, weights, why="" if planned else "later rounds gave nothing"))

    def plan(self, sizes: Sizes) -> Plan:
        """The rounds' plan."""
        n, rounds = self.candidates(sizes), sizes.rounds if self.rounds is None else self.rounds
        k = min(self.k or n, n)
        return Plan(n, rounds, k, 1 if k == n else n, n) if rounds else Plan.sampling(n)

    def candidates(self, sizes: Sizes) -> int:
        return self.n or sizes.candidates

    def requests(self, sizes: Sizes) -> int:
        plan = self.plan(sizes)
        return plan.candidates + plan.rounds * plan.aggregations
