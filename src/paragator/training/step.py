"""One training step: roll out, grade, credit, update. The weights that the next step samples from are the new ones."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

from paragator.config import Config, StageConfig
from paragator.core.credit import outcome
from paragator.core.estimators import pass_at_k
from paragator.core.methods import METHODS, Method, schemes
from paragator.core.packing import Packer
from paragator.core.scaffold import Scaffold, run
from paragator.core.together import together
from paragator.core.types import Completion, Failure, Grade, Group, Plan, Problem, Prompt, Sample, Stage
from paragator.engines.local.compute import computed
from paragator.records import Graded
from paragator.tasks import Task, grade_trace
from paragator.training.policy import Policy
from paragator.training.rows import Branch, Tree

PARTS = ("generate", "aggregate", "update", "grade")
"""What a step does, in the order in which parts that coincide are named; see `Timeline`."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one step left: graded traces and a row of metrics."""

    records: list[Graded]
    metrics: dict[str, float]


async def step(
    number: int,
    problems: Sequence[Problem],
    sample: Sample,
    task: Task,
    policy: Policy,
    packer: Packer,
    config: Config,
    pools: Mapping[str, Group] | None = None,
) -> Step:
    """THE TRAINING STEP on `problems`; `pools` gives recorded candidates by problem id (offline aggregation)."""
    timeline = Timeline()
    method = METHODS[config.method.name]
    n, m = config.rollout.candidates, config.rollout.pool_size
    plan = Plan.training(n, m, config.rollout.pools, method.rounds) if method.aggregate else Plan.sampling(n)
    scaffold = Scaffold(plan, config.model.templates(), packer, seed=config.seed * 1_000_003 + number)
    recorded = pools or {}

    async def timed(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        with timeline.during(stage):
            return await sample(prompt, n, stage=stage, seed=seed)

    async def rolled_out(problem: Problem) -> Graded:
        trace = await run(problem, timed, scaffold, candidates=recorded.get(problem.id))
        with timeline.during("grade"):
            return await grade_trace(task, trace, {"step": number})

    records = await together(*map(rolled_out, problems))
    trees = [tree for record in records for tree in credited(record, method, config, len(problems))]
    constants = {stage: constant(stage, config, len(problems)) for stage in ("generate", "aggregate")}
    with timeline.during("update"):
        stats = await computed(policy.update, trees, number, constants)
    return Step(records, {"step": number, **summary(records, method, config), **stats, **timeline.seconds()})


def credited(record: Graded, method: Method, config: Config, num_problems: int) -> list[Tree]:
    """The trees of a record: each group's rollouts with their credit, those that cannot change a weight left out."""
    trees = []
    for _, group, advantages in credits(record, method, config):
        if group.prompt_ids is None:
            continue
        weight = stage_config(group.stage, config).weight * constant(group.stage, config, num_problems)
        branches = [
            Branch(*tokens, advantage * weight)
            for tokens, advantage in zip((trainable(o, config) for o in group.outputs), advantages, strict=True)
            if tokens and (advantage * weight != 0 or config.train.kl > 0)
        ]
        if branches:
            trees.append(Tree(group.stage, group.prompt_ids, tuple(branches)))
    return trees


def credits(record: Graded, method: Method, config: Config) -> Iterator[tuple[int, Group, list[float]]]:
    """(round, group, its rollouts' credit) of every group that the method trains on."""
    rewards = [
        [
            [reward(o, g, config.train.truncated) for o, g in zip(group.outputs, grades, strict=True)]
            for group, grades in zip(groups, round_grades, strict=True)
        ]
        for groups, round_grades in zip(record.trace.rounds, record.grades, strict=True)
    ]
    for round_, groups in enumerate(record.trace.rounds):
        for group, found in zip(groups, rewards[round_], strict=True):
            scheme = method.scheme(group.stage, last=round_ == method.rounds)
            if scheme is None:
                continue
            if scheme == "outcome":
                found = outcomes(group, record.trace.rounds[1:2], rewards[1:2], found)
            yield round_, group, schemes(config.method)[scheme](found)


def outcomes(
    group: Group,
    aggregations: Sequence[Sequence[Group]],
    rewards: Sequence[Sequence[Sequence[float | None]]],
    own: Sequence[float | None],
) -> list[float | None]:
    """What the first aggregation round made of each candidate, by `credit.outcome`; None for those without a reward."""
    if not aggregations:
        return [None] * len(group.outputs)
    alive = [i for i, output in enumerate(group.outputs) if isinstance(output, Completion)]  # what pools index
    found = outcome(len(alive), [g.pool for g in aggregations[0]], rewards[0])
    values = dict(zip(alive, found, strict=True))
    return [None if mine is None else values.get(i) for i, mine in enumerate(own)]


def reward(output: Completion | Failure, grade: Grade | None, truncated: str) -> float | None:
    """A rollout's reward for its group: None leaves the group (failed, unscored, or truncated ones that are dropped)."""
    if grade is None or isinstance(output, Failure):
        return None
    if output.finish_reason == "length" and truncated != "mask":
        return None if truncated == "drop" else 0.0
    return grade.reward


def trainable(output: Completion | Failure, config: Config) -> tuple[tuple[int, ...], tuple[float, ...]] | None:
    """The ids and log-probabilities as sampled, or None for a rollout that does not enter the loss."""
    if isinstance(output, Failure) or output.token_ids is None or output.logprobs is None:
        return None
    if output.finish_reason != "stop" and config.train.truncated != "wrong":
        return None
    return output.token_ids, output.logprobs


def stage_config(stage: Stage, config: Config) -> StageConfig:
    return config.generate if stage == "generate" else config.aggregate


def constant(stage: str, config: Config, num_problems: int) -> float:
    """1 / (maximum completion length x rollouts of a round of the stage): what Dr.GRPO divides the token sum by."""
    max_tokens = config.generate.max_tokens if stage == "generate" else config.aggregate.max_tokens
    return 1.0 / (max_tokens * num_problems * config.rollout.candidates)


def summary(records: Sequence[Graded], method: Method, config: Config) -> dict[str, float]:
    """Rewards, dead zones, truncation and pool health of a step, per stage."""
    out: dict[str, float] = {}
    zero: dict[str, list[bool]] = {}
    for record in records:
        for round_, group, credit in credits(record, method, config):
            if group.completions:
                zero.setdefault(round_name(round_), []).append(not any(credit))
    for round_ in range(max((r.num_rounds for r in records), default=0)):
        name = round_name(round_)
        out |= stage_summary([r for r in records if r.num_rounds > round_], round_, name)
        if name in zero:
            out[f"{name}/zero_credit"] = fmean(zero[name])
    k = min(config.method.k, config.rollout.candidates)
    first = [[x >= 1 for x in r.rewards(0) if x is not None] for r in records]
    found = [pass_at_k(len(right), sum(right), k) for right in first if len(right) >= k]
    if found:
        out["generate/pass_at_k"] = fmean(found)
    shown = [[r.rewards(0)[i] for i in g.pool] for r in records if r.num_rounds > 1 for g in r.trace.rounds[1]]
    if shown:
        out["pool/has_correct"] = fmean(any((x or 0) >= 1 for x in pool) for pool in shown)
    solutions = [c for r in records for t in range(r.num_rounds) for c in r.trace.population(t)]
    return {**out, "tokens": float(sum(len(c.token_ids or ()) for c in solutions))}


def round_name(round_: int) -> str:
    """What a round's metrics are called: generate, aggregate, and aggregate2, ... where training has further rounds."""
    return "generate" if round_ == 0 else "aggregate" if round_ == 1 else f"aggregate{round_}"


def stage_summary(records: Sequence[Graded], round_: int, stage: str) -> dict[str, float]:
    """Mean reward and the shares truncated, unscored and failed of one stage; nothing where nothing was sampled."""
    asked = sum(len(group.outputs) for r in records for group in r.trace.rounds[round_])
    solutions = [c for r in records for c in r.trace.population(round_)]
    rewards = [reward for r in records for reward in r.rewards(round_)]
    if not asked:
        return {}
    out = {f"{stage}/failed": 1 - len(solutions) / asked}
    if not solutions:
        return out
    scored = [reward for reward in rewards if reward is not None]
    if scored:
        out[f"{stage}/reward"] = fmean(scored)
    out[f"{stage}/truncated"] = fmean(c.finish_reason == "length" for c in solutions)
    out[f"{stage}/unscored"] = 1 - len(scored) / len(rewards)
    return out


class Timeline:
    """Where a step's seconds went: every instant belongs to one part.

    While both stages are in flight it is "both"; grading counts only where nothing is being sampled; "idle" is the rest.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now, self.start = now, now()
        self.last = self.start
        self.active: Counter[str] = Counter()
        self.parts: dict[str, float] = {}

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """`part` is under way inside the block; blocks may overlap."""
        self.charge()
        self.active[part] += 1
        try:
            yield
        finally:
            self.charge()
            self.active[part] -= 1

    def charge(self) -> None:
        """Give the time since the last change to what was under way."""
        on = +self.active
        part = "both" if "generate" in on and "aggregate" in on else next((p for p in PARTS if p in on), "idle")
        at = self.now()
        self.parts[part] = self.parts.get(part, 0.0) + at - self.last
        self.last = at

    def seconds(self) -> dict[str, float]:
        """seconds/PART for each part, and their sum."""
        self.charge()
        return {**{f"seconds/{part}": spent for part, spent in self.parts.items()}, "seconds": self.last - self.start}
