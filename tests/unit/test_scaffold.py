"""The algorithm against a fake engine: plans, pools, failures, and that concurrency cannot change a trace."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from paragator.core.errors import UsageError
from paragator.core.prompts import CHAT_SELECT, COMPACT, COMPACT_SELECT
from paragator.core.scaffold import Scaffold, derive, run
from paragator.core.types import Completion, Failure, Group, Plan, Problem, Prompt, Stage, Trace, population


class FakeEngine:
    """Answers by (prompt, seed) alone, after delays that `order` decides; keeps its calls and the order of its answers.

    `fails(stage, n, i)` says whether output i of a call fails.
    """

    def __init__(self, order: int = 0, fails: Callable[[Stage, int, int], bool] = lambda stage, n, i: False) -> None:
        self.delays = random.Random(order)
        self.fails = fails
        self.calls: list[tuple[Prompt, int, Stage, int]] = []
        self.answered: list[int] = []

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        self.calls.append((prompt, n, stage, seed))
        for _ in range(self.delays.randrange(12)):
            await asyncio.sleep(0)
        self.answered.append(seed)
        rng = random.Random(f"{prompt.text}|{seed}")
        texts = [f"s{rng.randrange(10**9)}" for _ in range(n)]
        outputs = tuple(
            Failure("boom SECRET") if self.fails(stage, n, i) else Completion(text, token_ids=(i,), logprobs=(-1.0,))
            for i, text in enumerate(texts)
        )
        return Group(prompt, outputs, prompt_ids=(1, 2), stage=stage)


PROBLEM = Problem("p", "what is 6*7?", 42)


def solve(plan: Plan, engine: FakeEngine | None = None, problem: Problem = PROBLEM, seed: int = 0) -> Trace:
    return asyncio.run(run(problem, engine or FakeEngine(), Scaffold(plan, COMPACT, seed=seed)))


# ---- the plan table ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "candidates", "pools", "aggregations", "pool_size", "rounds"),
    [
        (Plan.training(8, 4), 8, 1, 8, 4, 1),
        (Plan.method(4, 3), 4, 1, 4, 4, 3),
        (Plan.population(16, 4, 10), 16, 16, 16, 4, 10),
        (Plan.sampling(32), 32, None, None, None, 0),
    ],
)
def test_plan_table(
    plan: Plan, candidates: int, pools: int | None, aggregations: int | None, pool_size: int | None, rounds: int
) -> None:
    assert (plan.candidates, plan.rounds) == (candidates, rounds)
    if rounds:
        assert (plan.pools, plan.aggregations, plan.pool_size) == (pools, aggregations, pool_size)
    trace = solve(plan)
    assert trace.failure is None
    assert [len(groups) for groups in trace.rounds] == [1] + [pools] * rounds
    assert [len(trace.population(r)) for r in range(rounds + 1)] == [candidates] + [aggregations] * rounds
    assert all(len(set(group.pool)) == pool_size for groups in trace.rounds[1:] for group in groups)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Plan(0), "candidates = 0"),
        (lambda: Plan(4, rounds=-1), "rounds = -1"),
        (lambda: Plan(4, 1, 0, 1, 4), "pool_size = 0"),
        (lambda: Plan(4, 1, 4, 0, 4), "pools = 0"),
        (lambda: Plan(4, 1, 4, 1, 0), "aggregations = 0"),
        (lambda: Plan(4, 1, 4, 1, 4, minimum=0), "minimum = 0"),
        (lambda: Plan(4, 1, 4, 3, 4), "pools = 3 does not divide aggregations = 4"),
        (lambda: Plan(4, 1, 5, 1, 8), "pool_size = 5 is above the 4"),
        (lambda: Plan(8, 2, 5, 1, 4), "pool_size = 5 is above the 4"),
        (lambda: Plan.training(4, 5), "pool_size = 5 is above the 4"),
        (lambda: Plan.population(4, 8, 2), "pool_size = 8 is above the 4"),
    ],
)
def test_impossible_plans_are_refused(make: Callable[[], Plan], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make()


def test_the_last_round_may_be_smaller_than_a_pool() -> None:
    assert Plan(8, 1, 5, 1, 4).aggregations == 4
    assert Plan(4).rounds == 0


# ---- what a trace holds --------------------------------------------------------------------------------------------


def test_an_aggregation_sees_its_pool_in_the_order_recorded() -> None:
    trace = solve(Plan.population(6, 3, 2))
    for round_ in (1, 2):
        solutions = trace.population(round_ - 1)
        for group in trace.rounds[round_]:
            assert group.stage == "aggregate"
            assert group.prompt == COMPACT.for_aggregation(PROBLEM, [solutions[i].text for i in group.pool])
            assert group.prompt_ids == (1, 2)


def test_an_aggregation_that_names_an_attempt_has_its_text() -> None:
    """By the order in which the attempts are shown; the last name counts, and none is no solution."""
    said = ["A right use A use C", "Best: B", "use D", "use C", "user B"]

    async def engine(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        texts = said if stage == "aggregate" else [f"s{i}" for i in range(n)]
        return Group(prompt, tuple(Completion(text) for text in texts), stage=stage)

    plan = Plan(candidates=6, rounds=1, pool_size=3, aggregations=5)
    for templates, names in (
        (COMPACT_SELECT, ["C", "", "", "C", ""]),
        (replace(CHAT_SELECT, chat=False), ["", "B", "", "", ""]),
    ):
        trace = asyncio.run(run(PROBLEM, engine, Scaffold(plan, templates)))
        (group,) = trace.rounds[1]
        shown = [trace.population(0)[place].text for place in group.pool]
        assert [one.text for one in group.completions] == [name and shown["ABC".index(name)] for name in names]
        assert [one.thinking for one in group.completions] == said


def test_every_one_of_the_population_sees_its_own_subset() -> None:
    groups = solve(Plan.population(16, 4, 1)).rounds[1]
    assert len({group.pool for group in groups}) > 12


def test_the_method_shows_everyone_all_in_random_order() -> None:
    pools = [solve(Plan.method(4, 3), seed=seed).rounds[r][0].pool for seed in range(20) for r in (1, 2, 3)]
    assert all(sorted(pool) == [0, 1, 2, 3] for pool in pools)
    assert len(set(pools)) > 12


def test_a_training_pool_is_a_random_subset() -> None:
    pools = [solve(Plan.training(8, 3), seed=seed).rounds[1][0].pool for seed in range(60)]
    assert {i for pool in pools for i in pool} == set(range(8))


def test_requests_carry_stage_size_and_their_own_seed() -> None:
    engine = FakeEngine()
    solve(Plan(6, 2, 2, 3, 12), engine)
    assert [(n, stage) for _, n, stage, _ in engine.calls] == [(6, "generate"), *[(4, "aggregate")] * 6]
    assert engine.calls[0][0] == COMPACT.for_candidate(PROBLEM)
    seeds = {seed for *_, seed in engine.calls}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_recorded_group_replaces_round_0() -> None:
    engine = FakeEngine()
    recorded = solve(Plan.sampling(4), seed=9).rounds[0][0]
    trace = asyncio.run(run(PROBLEM, engine, Scaffold(Plan.training(4, 2), COMPACT), candidates=recorded))
    assert trace.rounds[0] == (recorded,)
    assert [stage for _, _, stage, _ in engine.calls] == ["aggregate"]
    assert all(recorded.completions[i].text in trace.rounds[1][0].prompt.text for i in trace.rounds[1][0].pool)


# ---- randomness and concurrency ------------------------------------------------------------------------------------


def test_the_order_of_answers_cannot_change_a_trace() -> None:
    problems = [Problem(f"p{i}", f"problem {i}") for i in range(12)]
    plan = Plan.population(6, 3, 3)

    async def together(engine: FakeEngine, order: list[Problem]) -> dict[str, Trace]:
        traces = await asyncio.gather(*(run(p, engine, Scaffold(plan, COMPACT, seed=5)) for p in order))
        return {trace.problem.id: trace for trace in traces}

    alone = {p.id: solve(plan, problem=p, seed=5) for p in problems}
    engines = [FakeEngine(order) for order in range(4)]
    for order, engine in enumerate(engines):
        shuffled = random.Random(order).sample(problems, len(problems))
        assert asyncio.run(together(engine, shuffled)) == alone
    assert len({tuple(engine.answered) for engine in engines}) == 4  # the engines did answer in different orders
    assert len({trace.rounds[-1] for trace in alone.values()}) == 12


def test_a_trace_depends_on_its_seed_and_problem() -> None:
    plan = Plan.population(6, 3, 1)
    assert solve(plan, seed=1) == solve(plan, seed=1)
    assert solve(plan, seed=1).rounds != solve(plan, seed=2).rounds
    twin = solve(plan, problem=Problem("q", PROBLEM.text), seed=1)
    assert twin.rounds[0] != solve(plan, seed=1).rounds[0]


def test_no_barrier_between_problems() -> None:
    """A problem aggregates while another still waits for its candidates."""

    async def scenario() -> list[str]:
        done: list[str] = []
        release = asyncio.Event()
        engine = FakeEngine()

        async def slow(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
            await release.wait()
            return await engine(prompt, n, stage=stage, seed=seed)

        async def finish(name: str, sample: object) -> None:
            await run(Problem(name, name), sample, Scaffold(Plan.method(2, 2), COMPACT))  # type: ignore[arg-type]
            done.append(name)
            release.set()

        await asyncio.wait_for(asyncio.gather(finish("slow", slow), finish("fast", engine)), 120)
        return done

    assert asyncio.run(scenario()) == ["fast", "slow"]


# ---- failures ------------------------------------------------------------------------------------------------------


def test_failures_leave_the_population_and_every_prompt() -> None:
    engine = FakeEngine(fails=lambda stage, n, i: stage == "generate" and i in (0, 2))
    trace = solve(Plan.training(6, 4), engine)
    first = trace.rounds[0][0]
    assert [isinstance(o, Failure) for o in first.outputs] == [True, False, True, False, False, False]
    assert trace.population(0) == first.completions
    assert sorted(trace.rounds[1][0].pool) == [0, 1, 2, 3]
    assert trace.failure is None
    prompt = trace.rounds[1][0].prompt.text
    assert "SECRET" not in prompt
    assert prompt == COMPACT.for_aggregation(PROBLEM, [first.completions[i].text for i in trace.rounds[1][0].pool]).text


def test_a_round_goes_on_with_fewer_than_a_pool() -> None:
    engine = FakeEngine(fails=lambda stage, n, i: stage == "generate" and i > 1)
    trace = solve(Plan.training(6, 4), engine)
    assert sorted(trace.rounds[1][0].pool) == [0, 1]
    assert len(trace.population(1)) == 6


@pytest.mark.parametrize(("survivors", "rounds_kept"), [(3, 2), (2, 1)])
def test_the_minimum_is_respected(survivors: int, rounds_kept: int) -> None:
    engine = FakeEngine(fails=lambda stage, n, i: stage == "generate" and i >= survivors)
    trace = solve(Plan(6, 1, 3, 1, 6, minimum=3), engine)
    assert len(trace.rounds) == rounds_kept
    if survivors < 3:
        assert trace.failure == "round 0 left 2 solutions, 3 are needed"
        assert len(engine.calls) == 1
    else:
        assert trace.failure is None


def test_a_later_round_can_fail_the_problem_and_earlier_ones_stay() -> None:
    engine = FakeEngine(fails=lambda stage, n, i: stage == "aggregate")
    trace = solve(Plan.method(4, 3), engine)
    assert len(trace.rounds) == 2
    assert trace.failure == "round 1 left 0 solutions, 1 are needed"
    assert len(trace.population(0)) == 4


@pytest.mark.parametrize("plan", [Plan.sampling(3), Plan.method(3, 1)])
def test_a_last_round_without_a_solution_is_a_failure(plan: Plan) -> None:
    last: Stage = "aggregate" if plan.rounds else "generate"
    trace = solve(plan, FakeEngine(fails=lambda stage, n, i: stage == last))
    assert trace.failure == f"round {plan.rounds} left 0 solutions, 1 are needed"
    assert trace.population(plan.rounds) == ()


def test_a_last_round_with_too_few_solutions_is_a_failure() -> None:
    plan = replace(Plan.method(3, 1), minimum=3)
    trace = solve(plan, FakeEngine(fails=lambda stage, n, i: stage == "aggregate" and i > 0))
    assert trace.failure == "round 1 left 1 solutions, 3 are needed" and len(trace.rounds) == 2


# ---- a pool waits for its own ---------------------------------------------------------------------------------------


async def with_barriers(problem: Problem, sample: FakeEngine, plan: Plan, seed: int) -> list[tuple[Group, ...]]:
    """The slow oracle: every round begins when all of the last one is there. Without failures."""
    first = await sample(
        COMPACT.for_candidate(problem), plan.candidates, stage="generate", seed=derive(seed, problem, 0, 0)
    )
    rounds, share = [(first,)], plan.aggregations // plan.pools
    for t in range(1, plan.rounds + 1):
        solutions, groups = population(rounds[-1]), []
        for i in range(plan.pools):
            pool = random.Random(f"{seed}:{problem.id}:{t}:{i}").sample(range(len(solutions)), plan.pool_size)
            prompt = COMPACT.for_aggregation(problem, [solutions[j].text for j in pool])
            group = await sample(prompt, share, stage="aggregate", seed=derive(seed, problem, t, i))
            groups.append(replace(group, pool=tuple(pool)))
        rounds.append(tuple(groups))
    return rounds


@pytest.mark.parametrize(
    "plan",
    [
        Plan.population(8, 3, 4),
        Plan.population(30, 4, 2),
        Plan(6, 3, 2, 3, 12),
        Plan.method(4, 3),
        Plan.training(8, 4, 2),
    ],
)
def test_a_trace_is_that_of_rounds_with_barriers(plan: Plan) -> None:
    for order in range(5):
        expected = asyncio.run(with_barriers(PROBLEM, FakeEngine(), plan, seed=order))
        assert list(solve(plan, FakeEngine(order), seed=order).rounds) == expected


def test_a_pool_does_not_wait_for_solutions_that_it_does_not_show() -> None:
    """One aggregation of round 1 never ends before all later ones that can do without it."""
    plan, begun = Plan.population(6, 2, 3), list[int]()
    engine, numbers = FakeEngine(), {derive(0, PROBLEM, t, i): (t, i) for t in range(1, 4) for i in range(6)}

    async def scenario() -> Trace:
        release = asyncio.Event()

        async def sample(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
            begun.append(numbers.get(seed, (0, 0))[0])
            if numbers.get(seed) == (1, 0):
                await release.wait()
            return await engine(prompt, n, stage=stage, seed=seed)

        task = asyncio.ensure_future(run(PROBLEM, sample, Scaffold(plan, COMPACT)))
        for _ in range(2000):
            await asyncio.sleep(0)
        assert not task.done()
        release.set()
        return await task

    trace = asyncio.run(scenario())
    waited = begun.index(3)  # a third round began ...
    assert (
        begun[:waited].count(1) == 6 and 0 < begun[:waited].count(2) < 6
    )  # ... while the second was not all asked for
    assert trace == solve(plan)


def test_pools_of_a_round_with_failures_are_random_subsets_of_what_is_left() -> None:
    engine = FakeEngine(fails=lambda stage, n, i: stage == "generate" and i in (1, 4))
    pools = [solve(Plan.population(6, 2, 1), engine, seed=s).rounds[1][i].pool for s in range(200) for i in range(6)]
    counts = Counter(pools)
    assert len(counts) == 12 and all(60 < count < 145 for count in counts.values())  # 1,200 draws of 12 ordered pairs


def test_a_round_with_too_few_ends_the_trace_though_pools_were_full() -> None:
    """Two of six aggregations fail and five are the minimum: what round 2 would show does not count."""
    failing = {derive(0, PROBLEM, 1, i) for i in (0, 3)}

    class Fails(FakeEngine):
        async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
            group = await super().__call__(prompt, n, stage=stage, seed=seed)
            return replace(group, outputs=(Failure("x"),)) if seed in failing else group

    engine = Fails()
    trace = solve(Plan(6, 2, 2, 6, 6, minimum=5), engine)
    assert trace.failure == "round 1 left 4 solutions, 5 are needed" and len(trace.rounds) == 2
    assert len(engine.calls) == 7  # nothing was asked of round 2


def test_an_engine_that_raises_ends_the_run_and_what_it_still_waits_for() -> None:
    cancelled: list[int] = []

    async def scenario() -> None:
        engine, seeds = FakeEngine(), [derive(0, PROBLEM, 1, i) for i in range(4)]

        async def sample(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
            if seed == seeds[0]:
                raise UsageError("no")
            try:
                if stage == "aggregate":
                    await asyncio.sleep(60)
                return await engine(prompt, n, stage=stage, seed=seed)
            except asyncio.CancelledError:
                cancelled.append(seed)
                raise

        with pytest.raises(UsageError, match="no"):
            await run(PROBLEM, sample, Scaffold(Plan.population(4, 2, 2), COMPACT))
        await asyncio.sleep(0.01)

    asyncio.run(scenario())
    assert len(cancelled) == 3
