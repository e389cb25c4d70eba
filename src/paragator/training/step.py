"""One training step: roll out, grade, credit, update. The weights that the next step samples from are the new ones.

Its two halves stand alone for ahead.py, which samples the next step's rollouts while this one's are trained on.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

from paragator.core.errors import RunError
from paragator.core.mix import mixed_pool
from paragator.core.scaffold import run
from paragator.core.together import together
from paragator.core.types import Group, Problem, Prompt, Sample, Stage
from paragator.engines.local.compute import computed
from paragator.records import Graded
from paragator.tasks import Task, grade_trace
from paragator.tasks.base import graded
from paragator.training.credited import constant, credited, has_credit, otherwise
from paragator.training.learner import Learner
from paragator.training.recipe import Recipe
from paragator.training.rows import STAGES
from paragator.training.telemetry import Timeline, added, summary


@dataclass(frozen=True, slots=True)
class Step:
    """What one step left: graded traces and a row of metrics."""

    records: list[Graded]
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class RolledOut:
    """A step's first half: graded traces of its `problems` and of spare ones, and the seconds that they took."""

    number: int
    problems: int
    records: list[Graded]
    seconds: dict[str, float]


async def step(
    number: int,
    problems: Sequence[Problem],
    sample: Sample,
    task: Task,
    learner: Learner,
    recipe: Recipe,
    spare: Sequence[Problem] = (),
) -> Step:
    """THE TRAINING STEP: all problems at once through the scaffold, then the policy's update; `spare` ones with `train.refill`."""
    return await trained(await rolled_out(number, problems, sample, task, recipe, spare), learner, recipe)


async def rolled_out(
    number: int,
    problems: Sequence[Problem],
    sample: Sample,
    task: Task,
    recipe: Recipe,
    spare: Sequence[Problem] = (),
) -> RolledOut:
    """Candidates, pools, aggregations and grades of all problems; none waits for another one."""
    timeline, scaffold = Timeline(), recipe.at_step(number)

    async def timed(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        with timeline.during(stage):
            return await sample(prompt, n, stage=stage, seed=seed)

    async def choose(problem: Problem, texts: Sequence[str], rng: Random) -> Sequence[int] | None:
        with timeline.during("grade"):
            found = [grade.right for grade in await graded(task, problem, texts)]
        return mixed_pool(found, recipe.scaffold.plan.pool_size, recipe.pool_mix, rng)

    if recipe.pool_mix:
        scaffold = replace(scaffold, choose=choose)

    async def one(problem: Problem) -> Graded:
        trace = await run(problem, timed, scaffold, candidates=recipe.recorded.get(problem.id))
        with timeline.during("grade"):
            return await grade_trace(task, trace, {"step": number})

    records = await together(*map(one, problems))
    records += await refilled(records, one, spare, recipe)
    check_sampled(records, number)
    return RolledOut(number, len(problems), records, timeline.seconds())


async def trained(batch: RolledOut, learner: Learner, recipe: Recipe) -> Step:
    """Credit, and the policy's update by it."""
    timeline, crediting, records, count = Timeline(), recipe.crediting, batch.records, batch.problems
    trees = [tree for record in records for tree in credited(record, crediting, count)]
    constants = {stage: constant(stage, crediting, count) for stage in STAGES}
    with timeline.during("update"):
        measured: dict[str, float] = {}
        if recipe.is_measured(batch.number):
            others = [tree for record in records for tree in otherwise(record, crediting, count)]
            measured = await computed(learner.measure, trees, others)
        stats = await computed(learner.update, trees, batch.number, constants)
    seconds = added(batch.seconds, timeline.seconds())
    return Step(records, {"step": batch.number, **summary(records, crediting), **measured, **stats, **seconds})


async def refilled(
    records: Sequence[Graded],
    roll_out: Callable[[Problem], Awaitable[Graded]],
    spare: Sequence[Problem],
    recipe: Recipe,
) -> list[Graded]:
    """Records of further problems: as many at a time as lack credit, until none does or `recipe.refill` tokens are spent."""
    more: list[Graded] = []
    while len(more) < len(spare) and sum(map(completion_tokens, more)) < recipe.refill:
        lacking = len(records) - sum(has_credit(record, recipe.crediting) for record in (*records, *more))
        if not lacking:
            break
        more += await together(*map(roll_out, spare[len(more) : len(more) + lacking]))
    return more


def completion_tokens(record: Graded) -> int:
    """Tokens of a record's solutions, as far as they are known."""
    return sum(one.length or 0 for t in range(record.num_rounds) for one in record.trace.population(t))


def check_sampled(records: Sequence[Graded], number: int) -> None:
    """RunError where a log-probability is not finite: what sampled is broken, also where its rollouts are not trained on."""
    for record in records:
        for solution in (c for groups in record.trace.rounds for group in groups for c in group.completions):
            if not math.isfinite(sum(solution.logprobs or ())):
                raise RunError(
                    f"step {number}: a sampled log-probability is not finite (problem {record.trace.problem.id}): the weights "
                    "overflowed, or the engine is broken; --resume, and if it comes again start with a lower optimizer.lr"
                )
