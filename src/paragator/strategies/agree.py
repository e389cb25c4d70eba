"""As much as it takes: candidates in waves until their answers agree; where they do not, rounds of aggregation until they do.

Ours. The stopping rule is Adaptive-Consistency's (arXiv 2305.11860), applied to candidates and to each round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace

from paragator.core.errors import UsageError
from paragator.core.scaffold import Answered, aggregate
from paragator.core.together import together
from paragator.core.types import Choice, Plan, Trace
from paragator.strategies.base import Asking, Sizes
from paragator.strategies.choose import agreed, last_round, voted


@dataclass(frozen=True, slots=True)
class Agree:
    """At most n solutions a round and `rounds` rounds of aggregations of k; the answer is the vote where it stopped.

    start       solutions before answers are compared first; then twice as many, and so on up to n
    confidence  that the commonest answer leads the next one, at which it stops
    """

    n: int | None = None
    k: int | None = None
    rounds: int | None = None
    start: int = 4
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0.5 < self.confidence < 1 or self.start < 1:
            raise UsageError(
                f"agree: confidence = {self.confidence}, start = {self.start}; use 0.5 to 1, and 1 or more"
            )

    async def __call__(self, asking: Asking) -> Trace:
        plan = self.plan(asking.sizes)
        rounds: list[list[Answered]] = []
        for _ in range(plan.rounds + 1):
            here: list[Answered] = []
            for size in waves(self.start, plan.candidates):
                here = await self.more(asking, plan, rounds, here, size)
                solutions = [c for one in here for c in one.group.completions]
                if stop := agreed(await asking.answers(solutions), self.confidence):
                    break
            rounds.append(here)
            if stop or not solutions:
                break
        trace = asking.trace(plan, rounds)
        last = last_round(trace)
        if last is None:
            return trace
        return replace(trace, choice=Choice(last, voted(await asking.answers(trace.population(last)))))

    async def more(
        self, asking: Asking, plan: Plan, rounds: list[list[Answered]], here: list[Answered], size: int
    ) -> list[Answered]:
        """A round's first `size` solutions, of which `here` has some already."""
        if not rounds:
            return [Answered(await asking.candidates(size))]
        before: list[asyncio.Future[Answered]] = []
        for answered in rounds[-1]:
            before.append(asyncio.get_running_loop().create_future())
            before[-1].set_result(answered)
        scaffold = replace(asking.scaffold, plan=plan)
        places = range(len(here), size)
        jobs = (aggregate(asking.problem, before, asking.sample, scaffold, len(rounds), place) for place in places)
        return here + await together(*jobs)

    def plan(self, sizes: Sizes) -> Plan:
        """The most that it asks for, as a plan."""
        n, rounds = self.candidates(sizes), sizes.rounds if self.rounds is None else self.rounds
        return Plan(n, rounds, min(self.k or sizes.pool_size, n), n, n) if rounds else Plan.sampling(n)

    def candidates(self, sizes: Sizes) -> int:
        return self.n or sizes.candidates

    def requests(self, sizes: Sizes) -> int:
        plan = self.plan(sizes)
        return plan.candidates + plan.rounds * plan.aggregations


def waves(start: int, n: int) -> Iterator[int]:
    """start, twice that, and so on, and n."""
    size = start
    while size < n:
        yield size
        size *= 2
    yield n
