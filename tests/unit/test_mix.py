"""Pools chosen by what they hold: every pool of a kind is as likely, and shares are kept."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest

from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.core.mix import Kind, mixed_pool
from paragator.core.prompts import COMPACT
from paragator.core.scaffold import Scaffold, run
from paragator.core.types import Completion, Failure, Group, Plan, Problem, Prompt, Stage
from paragator.settings import load

RIGHT = [1.0, 0.0, 0.0, None, 1.0, 0.0, 0.0]


def kind_of(pool: Sequence[int]) -> Kind:
    values = {RIGHT[i] for i in pool}
    return "mixed" if len(values) == 2 else "all" if values == {1.0} else "none"


@pytest.mark.parametrize("kind", ["none", "mixed", "all"])
def test_each_pool_of_a_kind_is_as_likely(kind: Kind) -> None:
    size = 2 if kind == "all" else 3
    rng, scored = Random(3), [i for i, value in enumerate(RIGHT) if value is not None]
    wanted = {pool for pool in itertools.combinations(scored, size) if kind_of(pool) == kind}
    draws = [mixed_pool(RIGHT, size, {kind: 1.0}, rng) or [] for _ in range(200 * len(wanted))]
    found = Counter(tuple(sorted(pool)) for pool in draws)
    assert set(found) == wanted and all(140 < count < 260 for count in found.values())
    assert len({tuple(pool) for pool in draws}) > len(wanted)  # in any order


def test_shares_are_kept_and_the_rest_is_as_drawn() -> None:
    rng = Random(4)
    found = Counter(
        "drawn" if pool is None else kind_of(pool)
        for pool in (mixed_pool(RIGHT, 3, {"none": 0.2, "mixed": 0.5, "all": 0.1}, rng) for _ in range(4000))
    )
    shares = {name: count / 4000 for name, count in found.items()}
    assert shares == pytest.approx(
        {"none": 0.2, "mixed": 0.5, "drawn": 0.3}, abs=0.03
    )  # of two right ones no three can be
    assert mixed_pool([None, 1.0], 1, {"none": 1.0}, rng) is None and mixed_pool(RIGHT, 3, {}, rng) is None
    with pytest.raises(UsageError, match="sum to more than 1"):
        load(Config, None, ["--rollout.pool_mix={none = 0.7, all = 0.4}"])


def test_a_pool_shows_what_was_chosen_among_all_that_did_not_fail() -> None:
    """In the order chosen; a pool that is left as drawn is the one that would be drawn without."""

    async def engine(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        outputs = [Failure("gone") if stage == "generate" and i == 2 else Completion(f"s{i}") for i in range(n)]
        return Group(prompt, tuple(outputs), stage=stage)

    async def choose(problem: Problem, texts: Sequence[str], rng: Random) -> Sequence[int] | None:
        assert sorted(texts) == ["s0", "s1", "s3", "s4", "s5"]
        return [texts.index("s4"), texts.index("s0")] if problem.id == "p" else None

    def shown(name: str, how: object) -> tuple[int, ...]:
        scaffold = Scaffold(Plan.training(6, 2), COMPACT, choose=how)  # type: ignore[arg-type]
        trace = asyncio.run(run(Problem(name, "x"), engine, scaffold))
        texts = [one.text for one in trace.population(0)]
        assert all(
            f"A {texts[group.pool[0]]}\nB {texts[group.pool[1]]}" in group.prompt.text for group in trace.rounds[1]
        )
        return trace.rounds[1][0].pool

    assert shown("p", choose) == (3, 0) and shown("q", choose) == shown("q", None)
