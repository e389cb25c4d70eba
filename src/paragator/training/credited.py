"""From graded traces to credited trees: rewards, each group's credit, and what of it enters the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from paragator.core.hooks import Rewards
from paragator.core.methods import OF_POOLS, JudgedByPools, SchemeName
from paragator.core.types import UNREAD, Completion, Failure, Grade, Group, Stage
from paragator.records import Graded
from paragator.training.recipe import Crediting, Truncated
from paragator.training.rows import Branch, Tree


def credited(record: Graded, crediting: Crediting, num_problems: int) -> list[Tree]:
    """The trees of a record: each group's rollouts with their credit, those that cannot change a weight left out."""
    trees = []
    for _, group, advantages in credits(record, crediting):
        if group.prompt_ids is None:
            continue
        weight = crediting.stages[group.stage].weight * constant(group.stage, crediting, num_problems)
        branches = [
            Branch(*tokens, advantage * weight)
            for output, advantage in zip(group.outputs, advantages, strict=True)
            if (tokens := trainable(output, crediting.truncated)) and (advantage * weight != 0 or crediting.keep_idle)
        ]
        if branches:
            trees.append(Tree(group.stage, group.prompt_ids, tuple(branches)))
    return trees


def otherwise(record: Graded, crediting: Crediting, num_problems: int) -> list[Tree]:
    """The candidates' trees under pass@1, or under pass@k where the method's own credit is pass@1; none where it has no credit."""
    method = crediting.method
    other: SchemeName = "pass@k" if method.generate == "pass@1" else "pass@1"
    if method.generate is None or (other == "pass@k" and crediting.settings.k >= crediting.candidates):
        return []
    method = replace(method, generate=other, aggregate=None, between=None)
    return credited(record, replace(crediting, method=method, keep_idle=False), num_problems)


def has_credit(record: Graded, crediting: Crediting) -> bool:
    """Whether some rollout that is trained on has credit other than 0."""
    return bool(credited(record, replace(crediting, keep_idle=False), 1))


def credits(record: Graded, crediting: Crediting) -> Iterator[tuple[int, Group, list[float]]]:
    """(round, group, its rollouts' credit) of every group that the method trains on."""
    method, rounds = crediting.method, record.trace.rounds
    rewards = [
        [
            [reward(o, g, crediting, group.stage) for o, g in zip(group.outputs, grades, strict=True)]
            for group, grades in zip(groups, round_grades, strict=True)
        ]
        for groups, round_grades in zip(rounds, record.grades, strict=True)
    ]
    for round_, groups in enumerate(rounds):
        for group, found in zip(groups, rewards[round_], strict=True):
            scheme = method.scheme(group.stage, last=round_ == method.rounds)
            if scheme is None:
                continue
            if isinstance(scheme, str) and scheme in OF_POOLS:
                found = by_pools(OF_POOLS[scheme], group, found, list(zip(rounds[1:2], rewards[1:2], strict=True)))
            given = Rewards(tuple(found), record.trace.problem, group, round_)
            yield round_, group, method.credit(scheme, given, crediting.settings)


def by_pools(
    judge: JudgedByPools,
    group: Group,
    own: Sequence[float | None],
    aggregations: Sequence[tuple[Sequence[Group], Sequence[Sequence[float | None]]]],
) -> list[float | None]:
    """What the first aggregation round (groups, rewards) made of each candidate; None for those without a reward of their own."""
    if not aggregations:
        return [None] * len(group.outputs)
    alive = [i for i, output in enumerate(group.outputs) if isinstance(output, Completion)]  # what pools index
    groups, rewards = aggregations[0]
    values = dict(zip(alive, judge(len(alive), [g.pool for g in groups], rewards), strict=True))
    return [None if mine is None else values.get(i) for i, mine in enumerate(own)]


def reward(output: Completion | Failure, grade: Grade | None, crediting: Crediting, stage: Stage) -> float | None:
    """A rollout's reward for its group, less what its length costs; None: failed, unscored or dropped."""
    if grade is None or isinstance(output, Failure):
        return None
    value = grade.reward
    if output.finish_reason == "length" and crediting.truncated != "mask":
        value = None if crediting.truncated == "drop" else 0.0
    elif grade.verdict == "unscored" and grade.reason == UNREAD and crediting.unreadable == "wrong":
        value = 0.0
    return (
        value if value is None else value - overlong(output, crediting.stages[stage].max_tokens, crediting.soft_length)
    )


def overlong(output: Completion, most: int, share: float) -> float:
    """0 up to the last `share` of `most` tokens, then rising to 1 at `most` (DAPO's soft overlong punishment, arXiv 2503.14476).

    0 too where the length is not known.
    """
    return min(1.0, max(0.0, (output.length or 0) / most - (1 - share)) / share) if share else 0.0


def trainable(output: Completion | Failure, truncated: Truncated) -> tuple[tuple[int, ...], tuple[float, ...]] | None:
    """The ids and log-probabilities as sampled, or None for a rollout that does not enter the loss."""
    if isinstance(output, Failure) or output.token_ids is None or output.logprobs is None:
        return None
    if output.finish_reason != "stop" and truncated != "wrong":
        return None
    return output.token_ids, output.logprobs


def constant(stage: Stage, crediting: Crediting, num_problems: int) -> float:
    """1 / (maximum completion length x rollouts of a round of the stage): what Dr.GRPO divides the token sum by."""
    return 1.0 / (crediting.stages[stage].max_tokens * num_problems * crediting.candidates)
