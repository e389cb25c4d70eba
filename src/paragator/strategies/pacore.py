"""PaCoRe (arXiv 2601.05593): a width a round, and only conclusions are passed on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from itertools import pairwise

from paragator.core.errors import UsageError
from paragator.core.scaffold import Answered, aggregate
from paragator.core.types import Choice, Plan, Trace
from paragator.strategies.base import Asking, Sizes
from paragator.strategies.choose import alike, last_round


@dataclass(frozen=True, slots=True)
class PaCoRe:
    """`widths` solutions a round, each shown all of the round before, and one last solution, which is the answer.

    Its settings low, medium and high are widths of 4, 16 and 32/4. A solution is shown without its thinking, in a random
    order; the prompt is the run's own aggregation prompt, not theirs.
    """

    widths: tuple[int, ...] = (32, 4)

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise UsageError(f"pacore: widths = {self.widths}; give one number above 0 or several, as 32/4")

    async def __call__(self, asking: Asking) -> Trace:
        widths = (*self.widths, 1)
        first = Answered(await asking.candidates(widths[0]))
        rounds = [first]
        for number, (before, now) in enumerate(pairwise(widths), 1):
            done: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
            done.set_result(rounds[-1])
            scaffold = replace(asking.scaffold, plan=Plan(before, 1, before, 1, now))
            packer = replace(scaffold.packer, strip_thinking=True)
            scaffold = replace(scaffold, packer=packer)
            rounds.append(await aggregate(asking.problem, [done], asking.sample, scaffold, number, 0))
        trace = asking.trace(self.plan(asking.sizes), [[answered] for answered in rounds])
        last = last_round(trace)
        if last is None:
            return trace
        why = "" if last == len(widths) - 1 else "later rounds gave nothing"
        return replace(trace, choice=Choice(last, alike(len(trace.population(last))), why=why))

    def plan(self, sizes: Sizes) -> Plan:
        """Its rounds as a plan, which knows one width for all of them: that of round 1."""
        second = (*self.widths, 1)[1]
        return Plan(self.widths[0], len(self.widths), min(self.widths[0], second), 1, second)

    def candidates(self, sizes: Sizes) -> int:
        return self.widths[0]

    def requests(self, sizes: Sizes) -> int:
        return sum(self.widths) + 1
