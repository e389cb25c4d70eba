"""THE ALGORITHM. Training, evaluation and one-off solving call `run`; they differ by plan, engine, use of the trace."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from paragator.core.packing import Packer
from paragator.core.prompts import Templates
from paragator.core.types import Completion, Failure, Group, Plan, Problem, Sample, Trace, population


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

    `candidates` replaces round 0 by a recorded group (offline pools). Every draw depends on (seed, problem, round,
    index) alone, so the order in which an engine answers cannot change a trace.
    """
    packer = packer or Packer()
    first = candidates or await sample(
        templates.for_candidate(problem), plan.candidates, stage="generate", seed=derive(seed, problem, 0, 0)
    )
    rounds: list[tuple[Group, ...]] = [(first,)]
    for round_ in range(1, plan.rounds + 1):
        solutions = population(rounds[-1])
        if len(solutions) < plan.minimum:
            reason = f"round {round_ - 1} left {len(solutions)} solutions, {plan.minimum} are needed"
            return Trace(problem, plan, seed, tuple(rounds), failure=reason)
        pools = [
            aggregate(problem, solutions, sample, plan, templates, packer, seed, round_, i) for i in range(plan.pools)
        ]
        rounds.append(tuple(await asyncio.gather(*pools)))
    failure = None if population(rounds[-1]) else f"round {plan.rounds} left no solution"
    return Trace(problem, plan, seed, tuple(rounds), failure=failure)


async def aggregate(
    problem: Problem,
    solutions: tuple[Completion, ...],
    sample: Sample,
    plan: Plan,
    templates: Templates,
    packer: Packer,
    seed: int,
    round_: int,
    index: int,
) -> Group:
    """Draw one pool in random order, show it, and sample its share of the round's aggregations."""
    rng = random.Random(f"{seed}:{problem.id}:{round_}:{index}")
    pool = rng.sample(range(len(solutions)), min(plan.pool_size, len(solutions)))
    packed = packer.pack(problem, [(i, solutions[i].text) for i in pool], templates)
    if packed.misfit:
        failed = (Failure(packed.misfit),) * (plan.aggregations // plan.pools)
        return Group(packed.prompt, failed, stage="aggregate", reductions=packed.reductions)
    group = await sample(
        packed.prompt,
        plan.aggregations // plan.pools,
        stage="aggregate",
        seed=derive(seed, problem, round_, index),
    )
    return replace(group, prompt=packed.prompt, stage="aggregate", pool=packed.pool, reductions=packed.reductions)


def derive(seed: int, problem: Problem, round_: int, index: int) -> int:
    """The engine's seed for one request: 63 bits that depend on the run's seed, the problem, the round and the pool."""
    return random.Random(f"{seed}:{problem.id}:{round_}:{index}:engine").getrandbits(63)
