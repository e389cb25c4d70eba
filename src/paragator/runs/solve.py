"""One new problem, or solutions that one already has: rounds watched as they arrive, and the solution that comes out."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from paragator.config import Config
from paragator.core import select
from paragator.core.errors import RunError, UsageError
from paragator.core.scaffold import Scaffold, derive, run
from paragator.core.siblings import one_by_one
from paragator.core.text import printable
from paragator.core.thinking import strip_thinking
from paragator.core.types import (
    Completion,
    Failure,
    FinishReason,
    Grade,
    Group,
    Plan,
    Problem,
    Prompt,
    Sample,
    Stage,
    Trace,
)
from paragator.engines.by_stage import Engines
from paragator.grading.decide import canonical
from paragator.grading.extract import final_answer
from paragator.records import Graded
from paragator.runs import resolve
from paragator.runs.connect import connected, nobody
from paragator.runs.strategies import Plays
from paragator.tasks import Task


def answer_of(completion: Completion) -> str | None:
    """The final answer in the spelling under which it votes; None without one, as in a solution cut before its box."""
    if completion.finish_reason == "length" and r"\boxed" not in completion.text:
        return None
    found = final_answer(completion.text)
    return (canonical(found) or None) if found is not None else None


@dataclass(slots=True)
class Round:
    """What one round has given so far.

    asked    solutions asked for
    answers  of the solutions that arrived, in order of arrival; None is a solution without an answer
    failed   requests that failed for good
    tokens   of prompts and completions, where the engine knows them
    rates    its completions are not solutions but say something about some; they have no answers
    """

    number: int
    asked: int
    start: float = field(default_factory=time.perf_counter)
    end: float | None = None
    groups: list[Group] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    rates: bool = False
    failed: int = 0
    truncated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def done(self) -> int:
        """Solutions that arrived or failed."""
        return len(self.answers) + self.failed

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def seconds(self) -> float:
        """From the first request to the last answer, or to now."""
        return (self.end or time.perf_counter()) - self.start

    @property
    def votes(self) -> dict[str, int]:
        """Answer -> solutions that gave it, the commonest first."""
        return dict(Counter(answer for answer in self.answers if answer is not None).most_common())

    @property
    def reasons(self) -> list[str]:
        """Why requests failed, the commonest first."""
        failures = Counter(o.reason for g in self.groups for o in g.outputs if isinstance(o, Failure))
        return [reason for reason, _ in failures.most_common()]

    def take(self, group: Group) -> None:
        """Count what one request gave."""
        self.groups.append(group)
        self.prompt_tokens += group.prompt_length or 0
        for completion in group.completions:
            self.answers.append(None if self.rates else answer_of(completion))
            self.truncated += completion.finish_reason == "length"
            self.completion_tokens += completion.length or 0
        self.failed += len(group.outputs) - len(group.completions)
        if self.done >= self.asked:
            self.end = time.perf_counter()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        names = ("asked", "done", "answers", "votes", "truncated", "failed", "reasons", "tokens")
        return {"round": self.number} | {n: getattr(self, n) for n in names} | {"seconds": round(self.seconds, 3)}


Seen = Callable[[Round], None]
"""Called when a round begins and whenever something of it arrives."""


class Watch:
    """Satisfies `Sample` by `sample` and notes in `rounds` what arrives. For one problem.

    split  ask for one completion at a time, so that each is seen when it arrives; for an endpoint
    seen   called when a round begins and whenever something arrives
    plays  the strategy, where one is used instead of the plan's rounds; what it asks about solutions is a round of its own
    """

    def __init__(
        self,
        sample: Sample,
        plan: Plan,
        *,
        split: bool = False,
        seen: Seen = lambda round_: None,
        plays: Plays | None = None,
    ) -> None:
        self.sample, self.plan, self.split, self.seen, self.plays = sample, plan, split, seen, plays
        most = plays.named.requests(plays.sizes) if plays else None
        self.ratings = 0 if most is None else most - plan.candidates - plan.rounds * plan.aggregations
        self.rounds: list[Round] = []
        self.numbers: dict[int, int] = {}

    def expect(self, problem: Problem, seed: int) -> None:
        """Know every request of this problem by its seed: which round it belongs to."""
        rounds = range(1, self.plan.rounds + 1)
        pools = {derive(seed, problem, t, i): t for t in rounds for i in range(self.plan.pools)}
        self.numbers = {derive(seed, problem, 0, 0): 0} | pools

    def given(self, candidates: Group) -> None:
        """Round 0 is there already: nobody is asked for it."""
        self.rounds = [Round(0, len(candidates.outputs))]
        self.rounds[0].take(candidates)

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        """What `sample` gives. A pool may be asked about before its round is: rounds overlap."""
        number = self.numbers.get(seed, 0 if stage == "generate" else self.plan.rounds + 1)
        while number >= len(self.rounds):
            rates = len(self.rounds) > self.plan.rounds
            asked = self.ratings if rates else self.plan.aggregations if self.rounds else self.plan.candidates
            self.rounds.append(Round(len(self.rounds), asked, rates=rates))
            self.seen(self.rounds[-1])
        round_ = self.rounds[number]

        async def part(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
            group = await self.sample(prompt, n, stage=stage, seed=seed)
            round_.take(group)
            self.seen(round_)
            return group

        return await (one_by_one(part) if self.split else part)(prompt, n, stage=stage, seed=seed)

    def end(self) -> None:
        """Nothing more will come: rounds that a strategy left early are over."""
        for round_ in self.rounds:
            if round_.end is None:
                round_.asked, round_.end = round_.done, time.perf_counter()
                self.seen(round_)


@dataclass(frozen=True, slots=True)
class Solution:
    """What came out for one problem; printing it prints the solution's text and its answer.

    answer   the last round's commonest answer, or what a strategy chose; None where no solution has one
    text     the first solution with that answer, without thinking
    votes    answer -> solutions of that round, the commonest first
    trace    all rounds; `trace.failure` says why later ones are missing
    tokens   of prompts and completions, where the engine knows them
    cost     by the prices of engine and aggregate; None without prices
    finish_reason  of the solution that `text` is: "length" where it was cut
    """

    answer: str | None
    text: str
    votes: dict[str, int]
    trace: Trace
    tokens: int
    seconds: float
    cost: float | None = None
    finish_reason: FinishReason = "stop"

    def __str__(self) -> str:
        return printable(f"{self.text}\n\nAnswer: {self.answer if self.answer is not None else '(none)'}")


PROBLEM_ID = "problem"
Prices = tuple[tuple[float, float], tuple[float, float]]
"""Of a million prompt tokens and of a million completion tokens: of candidates, and of what comes after them."""
FREE: Prices = ((0.0, 0.0), (0.0, 0.0))
NOTHING = Task("solve", lambda split, count, seed: [], lambda problem, texts: [Grade("unscored")] * len(texts))
"""The task of one new problem: nobody knows its answer."""


def problem_of(text: str) -> Problem:
    """A new problem; UsageError for an empty one."""
    if not text.strip():
        raise UsageError("the problem is empty; give its text")
    return Problem(PROBLEM_ID, text.strip())


def watch_of(config: Config, seen: Seen = lambda round_: None) -> Watch:
    """A watch over the config's rounds, before an engine is connected."""
    named, split = resolve.strategies_of(config), config.engine.kind == "openai"
    if len(named) > 1:
        raise UsageError(f"eval.strategies names {len(named)} strategies; one problem takes one")
    if not named:
        return Watch(nobody, resolve.eval_plan(config), split=split, seen=seen)
    sizes = resolve.sizes_of(config)
    return Watch(nobody, named[0].plan(sizes), split=split, seen=seen, plays=Plays(named[0], sizes))


async def answers_of(problem: Problem, solutions: Sequence[Completion]) -> list[str | None]:
    """Satisfies a strategy's `Read`."""
    return [answer_of(solution) for solution in solutions]


async def solve(config: Config, problem: Problem, watch: Watch, *, engine: Engines = None) -> Solution:
    """Connect the engine that the config names, or `engine`, run the rounds, close it. Nothing is kept on disk.

    UsageError for what cannot work, RunError with the commonest reason when no request gave a solution.
    """
    resolved = resolve.resolve(config, training=False, task=NOTHING, engine=engine)
    asks, aggregator = resolved.engine, resolved.aggregator
    async with connected(config, [problem], None, engine=asks, aggregator=aggregator) as connection:
        watch.sample = connection.sample
        scaffold = Scaffold(watch.plan, config.model.templates(), connection.packer, config.seed)
        return await watched(problem, watch, scaffold, prices(config))


async def aggregate(config: Config, problem: Problem, solutions: Sequence[str], *, engine: Engines = None) -> Solution:
    """One round of aggregation over texts that one already has, in a pool of all of them; `eval.candidates` aggregations.

    Texts that do not fit the context are shortened, then left out, as in any round: `trace.rounds[1][0].reductions`.
    """
    if not solutions or not all(isinstance(text, str) and text.strip() for text in solutions):
        raise UsageError(f"solutions = {list(solutions)!r:.60}: give one text or more, none of them empty")
    resolved = resolve.resolve(config, training=False, task=NOTHING, engine=engine)
    plan = Plan(len(solutions), 1, len(solutions), 1, config.eval.candidates)
    watch = Watch(nobody, plan)
    given = Group(config.model.templates().for_candidate(problem), tuple(map(Completion, solutions)))
    asks, aggregator = resolved.engine, resolved.aggregator
    async with connected(config, [problem], None, engine=asks, aggregator=aggregator) as connection:
        watch.sample = connection.sample
        scaffold = Scaffold(plan, config.model.templates(), connection.packer, config.seed)
        return await watched(problem, watch, scaffold, prices(config), given)


async def watched(
    problem: Problem,
    watch: Watch,
    scaffold: Scaffold,
    prices: Prices = FREE,
    candidates: Group | None = None,
) -> Solution:
    """Run the scaffold on one problem through a watch. RunError when no request gave a solution."""
    watch.expect(problem, scaffold.seed)
    if candidates is not None:
        watch.given(candidates)
    if watch.plays:
        trace = await watch.plays(problem, watch, scaffold, answers_of)
        watch.end()
    else:
        trace = await run(problem, watch, scaffold, candidates=candidates)
    return solution_of(trace, watch.rounds, prices)


def prices(config: Config) -> Prices:
    """What each stage costs."""
    later = config.aggregate if config.aggregate.apart else config.engine
    return (config.engine.price_in, config.engine.price_out), (later.price_in, later.price_out)


def stopped(problem: Problem, watch: Watch, seed: int, prices: Prices = FREE) -> Solution | None:
    """The solution by what has arrived, after an interruption; None if nothing has."""
    rounds = tuple(tuple(round_.groups) for round_ in watch.rounds)
    if not any(group.completions for groups in rounds for group in groups):
        return None
    return solution_of(Trace(problem, watch.plan, seed, rounds, failure="interrupted"), watch.rounds, prices)


def solution_of(trace: Trace, rounds: list[Round], prices: Prices) -> Solution:
    """The majority of the last round that has a solution, by answer; its first solution where none has an answer.

    With a strategy, what it chose: the solution with the most weight.
    """
    choice = trace.choice
    last = choice.round if choice else max((t for t in range(len(trace.rounds)) if trace.population(t)), default=None)
    if last is None:
        reasons = [reason for round_ in rounds for reason in round_.reasons]
        raise RunError(f"no solution: {reasons[0] if reasons else trace.failure}")
    solutions = trace.population(last)
    answers = [answer_of(solution) for solution in solutions]
    rng = random.Random(f"{trace.seed}:{trace.problem.id}:select")
    chosen = select.heaviest(choice.weights, rng) if choice else select.majority(answers, rng)
    best = solutions[chosen or 0]
    paid = [(r, prices[r.number > 0]) for r in rounds]
    return Solution(
        answers[chosen or 0],
        strip_thinking(best.text) or best.text.strip(),
        dict(Counter(answer for answer in answers if answer is not None).most_common()),
        trace,
        sum(r.tokens for r in rounds),
        max((r.start + r.seconds for r in rounds), default=0.0) - min((r.start for r in rounds), default=0.0),
        sum(r.prompt_tokens * a + r.completion_tokens * b for r, (a, b) in paid) / 1e6 if prices != FREE else None,
        best.finish_reason,
    )


def unscored(trace: Trace) -> Graded:
    """A record of a trace that nobody graded; the answers stand in it."""
    grades = tuple(
        tuple(tuple(grade_of(output) for output in group.outputs) for group in groups) for groups in trace.rounds
    )
    return Graded(trace, grades)


def grade_of(output: Completion | Failure) -> Grade | None:
    if isinstance(output, Failure):
        return None
    return Grade("unscored", answer_of(output), "no reference")
