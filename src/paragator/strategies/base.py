"""What a strategy is, and what it works with: one problem, an engine, and a way to read answers.

A strategy is any async callable from an Asking to a Trace. Those of the table are small dataclasses whose fields are
their settings. Beside the call they may have

    requests(sizes)      the most completions that it asks for
    candidates(sizes)    how many of them are candidates
    needs                "confidence" or "certainty": what it wants to know of each candidate's tokens
    beyond               whether it asks for more than candidates, which a recording does not hold
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from paragator.core.packing import Packed
from paragator.core.prompts import Templates
from paragator.core.scaffold import Answered, Scaffold, derive, run, traced
from paragator.core.siblings import joined, sibling_seeds
from paragator.core.together import together
from paragator.core.types import Choice, Completion, Failure, Group, Plan, Problem, Prompt, Sample, Stage, Trace

Read = Callable[[Problem, Sequence[Completion]], Awaitable[list[str | None]]]
"""The answer of each solution in the spelling under which it votes; None without one. It does not tell what is right."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The run's own sizes, for settings that a strategy leaves open."""

    candidates: int = 4
    pool_size: int = 4
    rounds: int = 3


@dataclass(slots=True)
class Asking:
    """One problem to answer. A strategy asks through it, so that every request has its own seed and is asked once.

    sample  the engine; every request goes through it
    scaffold  templates, packer and seed; its plan is the strategy's business
    read    reads answers; see `Read`
    apart   ask for each candidate alone; else for the first n at once, of an engine whose first n never change
    """

    problem: Problem
    sample: Sample
    scaffold: Scaffold
    read: Read
    sizes: Sizes = Sizes()
    apart: bool = True
    asked: list[asyncio.Task[Group]] = field(default_factory=list)

    async def candidates(self, n: int) -> Group:
        """The first n candidates; asked for again, or for more, the same ones come first."""
        prompt = self.scaffold.templates.for_candidate(self.problem)
        seed = derive(self.scaffold.seed, self.problem, 0, 0)
        if not self.apart:
            return await self.sample(prompt, n, stage="generate", seed=seed)
        for each in sibling_seeds(seed, n)[len(self.asked) :]:
            self.asked.append(asyncio.ensure_future(self.sample(prompt, 1, stage="generate", seed=each)))
        return joined(await together(*self.asked[:n]))

    async def rounds(self, plan: Plan) -> Trace:
        """The method's rounds by a plan, over these candidates."""

        async def sample(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
            if stage == "generate":
                return await self.candidates(n)
            return await self.sample(prompt, n, stage=stage, seed=seed)

        return await run(self.problem, sample, replace(self.scaffold, plan=plan))

    async def rate(self, templates: Templates, shown: Sequence[tuple[int, str]], name: str) -> tuple[Group, Packed]:
        """Ask one question about solutions, given as (place in the population, text). `name` makes its seed its own."""
        templates = replace(templates, chat=self.scaffold.templates.chat)
        packed = self.scaffold.packer.pack(self.problem, shown, templates)
        if packed.misfit or not packed.pool:
            failed = (Failure(packed.misfit or "no solution has anything to show"),)
            return Group(packed.prompt, failed, stage="aggregate", reductions=packed.reductions), packed
        seed = random.Random(f"{self.scaffold.seed}:{self.problem.id}:{name}:rating").getrandbits(63)
        group = await self.sample(packed.prompt, 1, stage="aggregate", seed=seed)
        kept = replace(group, prompt=packed.prompt, stage="aggregate", pool=packed.pool, reductions=packed.reductions)
        return kept, packed

    async def answers(self, solutions: Sequence[Completion]) -> list[str | None]:
        """What each solution answers."""
        return await self.read(self.problem, solutions)

    def random(self, name: str) -> random.Random:
        """Draws of the strategy's own."""
        return random.Random(f"{self.scaffold.seed}:{self.problem.id}:{name}")

    def trace(self, plan: Plan, rounds: Sequence[Sequence[Answered]]) -> Trace:
        """These rounds as a trace; it says so where one left nothing."""
        return traced(self.problem, replace(self.scaffold, plan=plan), rounds)

    def selected(self, candidates: Group, choice: Choice | None, ratings: Sequence[Group] = ()) -> Trace:
        """A trace of candidates, of which one is chosen."""
        trace = self.trace(Plan.sampling(len(candidates.outputs)), [[Answered(candidates)]])
        return replace(trace, ratings=tuple(ratings), choice=choice)


Strategy = Callable[[Asking], Awaitable[Trace]]
"""See the module."""
