"""THE ALGORITHM. Training, evaluation and one-off solving call `run`; they differ by scaffold, engine, use of the trace."""

from __future__ import annotations

import asyncio
import random
import sys
from asyncio import Future
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from paragator.core.packing import Packer
from paragator.core.prompts import Templates
from paragator.core.together import together
from paragator.core.types import Completion, Failure, Group, Plan, Problem, Prompt, Sample, Trace

Choose = Callable[[Problem, Sequence[str], random.Random], Awaitable[Sequence[int] | None]]
"""Which of a round's solutions (texts) a pool shows, as their indices in order; None leaves the pool as drawn."""


@dataclass(frozen=True, slots=True)
class Scaffold:
    """What a run of rounds takes apart from a problem and an engine: how many of what, the prompts, how pools enter them.

    With `choose` (training's curriculum) a pool waits for all solutions of the round before.
    """

    plan: Plan
    templates: Templates
    packer: Packer = field(default_factory=Packer)
    seed: int = 0
    choose: Choose | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """A request's group, and the places in the round before of the solutions that its prompt shows."""

    group: Group
    shown: tuple[int, ...] = ()


async def run(problem: Problem, sample: Sample, scaffold: Scaffold, *, candidates: Group | None = None) -> Trace:
    """Sample candidates, then `plan.rounds` times draw pools of the last round's solutions and aggregate them.

    A pool waits for the solutions that it shows and for nothing else. `candidates` replaces round 0 by a recorded group
    (offline pools). Every draw depends on (seed, problem, round, index) and on which requests failed, so the order in
    which an engine answers cannot change a trace.
    """
    plan = scaffold.plan

    async def generate() -> Answered:
        prompt, seed = scaffold.templates.for_candidate(problem), derive(scaffold.seed, problem, 0, 0)
        return Answered(candidates or await sample(prompt, plan.candidates, stage="generate", seed=seed))

    rounds = [[asyncio.ensure_future(generate())]]
    for number in range(1, plan.rounds + 1):
        pools = [aggregate(problem, rounds[-1], sample, scaffold, number, index) for index in range(plan.pools)]
        rounds.append([asyncio.ensure_future(pool) for pool in pools])
    await together(*(task for answers in rounds for task in answers))
    return traced(problem, scaffold, [[task.result() for task in answers] for answers in rounds])


async def aggregate(
    problem: Problem, before: Sequence[Future[Answered]], sample: Sample, scaffold: Scaffold, round_: int, index: int
) -> Answered:
    """Draw one pool in random order, show it, and sample its share of the round's aggregations."""
    plan, seed = scaffold.plan, scaffold.seed
    share = plan.aggregations // plan.pools
    pool = await drawn(before, plan, random.Random(f"{seed}:{problem.id}:{round_}:{index}"), plan.pool_size)
    if scaffold.choose and len(pool) >= plan.minimum:
        rng = random.Random(f"{seed}:{problem.id}:{round_}:{index}:choose")
        everyone = await drawn(before, plan, rng, sys.maxsize)
        picked = await scaffold.choose(problem, [text for _, text in everyone], rng)
        pool = pool if picked is None else [everyone[i] for i in picked]
    if len(pool) < plan.minimum:
        return Answered(Group(Prompt(""), (Failure("too few solutions"),) * share, stage="aggregate"))
    packed = scaffold.packer.pack(problem, pool[: plan.pool_size], scaffold.templates)
    if packed.misfit:
        failed = (Failure(packed.misfit),) * share
        return Answered(Group(packed.prompt, failed, stage="aggregate", reductions=packed.reductions))
    group = await sample(packed.prompt, share, stage="aggregate", seed=derive(seed, problem, round_, index))
    if scaffold.templates.names:
        group = named(group, scaffold.templates, [dict(pool)[place] for place in packed.pool])
    group = replace(group, prompt=packed.prompt, stage="aggregate", reductions=packed.reductions)
    return Answered(group, packed.pool)


def named(group: Group, templates: Templates, shown: Sequence[str]) -> Group:
    """Completions that name one of the attempts shown, with its text as theirs; what they said is kept as thinking."""
    outputs = (
        one if isinstance(one, Failure) else replace(one, text=templates.named(one.text, shown), thinking=one.text)
        for one in group.outputs
    )
    return replace(group, outputs=tuple(outputs))


async def drawn(before: Sequence[Future[Answered]], plan: Plan, rng: random.Random, size: int) -> list[tuple[int, str]]:
    """`size` solutions as (place in the round before, text): the first that did not fail, in a random order of places."""
    share = len((await before[0]).group.outputs) if len(before) == 1 else plan.aggregations // plan.pools
    places = range(share * len(before))
    order = rng.sample(places, min(size, len(places)))
    order += rng.sample(others := [place for place in places if place not in order], len(others))
    pool: list[tuple[int, str]] = []
    for place in order:
        if isinstance(output := (await before[place // share]).group.outputs[place % share], Completion):
            pool.append((place, output.text))
        if len(pool) >= max(size, plan.minimum):
            break
    return pool


def traced(problem: Problem, scaffold: Scaffold, rounds: Sequence[Sequence[Answered]]) -> Trace:
    """The trace of these rounds, up to one that left too few solutions; a group's pool indexes what the round before left."""
    plan, seed = scaffold.plan, scaffold.seed
    kept: list[tuple[Group, ...]] = []
    left: list[int] = []
    for number, answers in enumerate(rounds):
        kept.append(tuple(replace(one.group, pool=tuple(map(left.index, one.shown))) for one in answers))
        outputs = [output for one in answers for output in one.group.outputs]
        left = [place for place, output in enumerate(outputs) if isinstance(output, Completion)]
        if len(left) < plan.minimum:
            reason = f"round {number} left {len(left)} solutions, {plan.minimum} are needed"
            return Trace(problem, plan, seed, tuple(kept), failure=reason)
    return Trace(problem, plan, seed, tuple(kept))


def derive(seed: int, problem: Problem, round_: int, index: int) -> int:
    """The engine's seed for one request: 63 bits that depend on the run's seed, the problem, the round and the pool."""
    return random.Random(f"{seed}:{problem.id}:{round_}:{index}:engine").getrandbits(63)
