"""THE ALGORITHM. Training, evaluation and one-off solving call `run`; they differ by plan, engine, use of the trace."""

from __future__ import annotations

import asyncio
import random
from asyncio import Future
from collections.abc import Sequence
from dataclasses import replace

from paragator.core.packing import Packer
from paragator.core.prompts import Templates
from paragator.core.together import together
from paragator.core.types import Completion, Failure, Group, Plan, Problem, Prompt, Sample, Trace


async def run(
    problem: Problem,
    sample: Sample,
    plan: Plan,
    *,
    templates: Templates,
    packer: Packer | None = None,
    seed: int = 0,
    candidates: Group | None = None,
) -> Trace:
    """Sample candidates, then `plan.rounds` times draw pools of the last round's solutions and aggregate them.

    A pool waits for the solutions that it shows and for nothing else. `candidates` replaces round 0 by a recorded group
    (offline pools). Every draw depends on (seed, problem, round, index) and on which requests failed, so the order in
    which an engine answers cannot change a trace.
    """
    packer = packer or Packer()

    async def generate() -> Group:
        return candidates or await sample(
            templates.for_candidate(problem), plan.candidates, stage="generate", seed=derive(seed, problem, 0, 0)
        )

    rounds = [[asyncio.ensure_future(generate())]]
    for round_ in range(1, plan.rounds + 1):
        pools = [
            aggregate(problem, rounds[-1], sample, plan, templates, packer, seed, round_, i) for i in range(plan.pools)
        ]
        rounds.append([asyncio.ensure_future(pool) for pool in pools])
    await together(*(task for groups in rounds for task in groups))
    return traced(problem, plan, seed, [[task.result() for task in groups] for groups in rounds])


async def aggregate(
    problem: Problem,
    before: Sequence[Future[Group]],
    sample: Sample,
    plan: Plan,
    templates: Templates,
    packer: Packer,
    seed: int,
    round_: int,
    index: int,
) -> Group:
    """Draw one pool in random order, show it, and sample its share of the round's aggregations."""
    share = plan.aggregations // plan.pools
    pool = await drawn(before, plan, random.Random(f"{seed}:{problem.id}:{round_}:{index}"))
    if len(pool) < plan.minimum:
        return Group(Prompt(""), (Failure("too few solutions"),) * share, stage="aggregate")
    packed = packer.pack(problem, pool[: plan.pool_size], templates)
    if packed.misfit:
        failed = (Failure(packed.misfit),) * share
        return Group(packed.prompt, failed, stage="aggregate", reductions=packed.reductions)
    group = await sample(packed.prompt, share, stage="aggregate", seed=derive(seed, problem, round_, index))
    return replace(group, prompt=packed.prompt, stage="aggregate", pool=packed.pool, reductions=packed.reductions)


async def drawn(before: Sequence[Future[Group]], plan: Plan, rng: random.Random) -> list[tuple[int, str]]:
    """A pool's solutions as (place in the round before, text): the first that did not fail, in a random order of places."""
    share = len((await before[0]).outputs) if len(before) == 1 else plan.aggregations // plan.pools
    places = range(share * len(before))
    order = rng.sample(places, min(plan.pool_size, len(places)))
    order += rng.sample(others := [place for place in places if place not in order], len(others))
    pool: list[tuple[int, str]] = []
    for place in order:
        if isinstance(output := (await before[place // share]).outputs[place % share], Completion):
            pool.append((place, output.text))
        if len(pool) >= max(plan.pool_size, plan.minimum):
            break
    return pool


def traced(problem: Problem, plan: Plan, seed: int, rounds: Sequence[Sequence[Group]]) -> Trace:
    """The trace of these rounds, up to one that left too few solutions; pools as indices into what the round before left."""
    kept: list[tuple[Group, ...]] = []
    left: list[int] = []
    for number, groups in enumerate(rounds):
        kept.append(tuple(replace(group, pool=tuple(map(left.index, group.pool))) for group in groups))
        outputs = [output for group in groups for output in group.outputs]
        left = [place for place, output in enumerate(outputs) if isinstance(output, Completion)]
        if len(left) < plan.minimum:
            reason = f"round {number} left {len(left)} solutions, {plan.minimum} are needed"
            return Trace(problem, plan, seed, tuple(kept), failure=reason)
    return Trace(problem, plan, seed, tuple(kept))


def derive(seed: int, problem: Problem, round_: int, index: int) -> int:
    """The engine's seed for one request: 63 bits that depend on the run's seed, the problem, the round and the pool."""
    return random.Random(f"{seed}:{problem.id}:{round_}:{index}:engine").getrandbits(63)
