"""The data types of the method: problems, prompts, completions, plans, traces. Everything here is immutable.

Glossary
    candidate     an initial solution, sampled from the problem alone (round 0)
    pool          the candidates shown together to one aggregation; `pool_size` (m) of them
    aggregation   a solution sampled from a problem and a pool (rounds 1..T)
    group         rollouts of ONE prompt; rewards are only compared within it
    credit        a rollout's advantage before any weighting
    stage         "generate" (round 0) or "aggregate" (later rounds)
    trace         everything that was sampled for one problem
    step          one optimiser update

Shape letters used as suffixes in the numerical code
    _P problems   _G rollouts of a group   _R packed rows   _T tokens   _V vocabulary
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from paragator.core.errors import UsageError

Stage = Literal["generate", "aggregate"]
FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: `text` is what a model sees, `answer` is what a grader needs."""

    id: str
    text: str
    answer: Any = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is sent to an engine: plain text, or one user message when `chat` is true."""

    text: str
    chat: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled solution.

    `token_ids` [T] and `logprobs` [T] are as sampled, after temperature, including the final
    end-of-sequence token; None where the engine does not know them. `num_tokens` is its length in tokens where an
    engine knows it. `thinking` is what a server returned apart from `text`; it is never shown to an aggregation.
    """

    text: str
    finish_reason: FinishReason = "stop"
    token_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    num_tokens: int | None = None
    thinking: str | None = None
    confidences: tuple[float, ...] | None = None
    """[T] how sure the model was of each token: minus the mean log-probability of its likeliest ones, where asked for."""
    certainty: float | None = None
    """The mean over tokens and the whole vocabulary V of -log(V p), where the engine sees all of it and was asked."""

    @property
    def length(self) -> int | None:
        """Tokens of the completion; None where the engine knows neither ids nor their number."""
        return self.num_tokens if self.token_ids is None else len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that failed for good. It is never an empty completion and never a wrong answer."""

    reason: str


@dataclass(frozen=True, slots=True)
class Group:
    """The `n` siblings of one prompt, in order; failed ones keep their place as `Failure`."""

    prompt: Prompt
    outputs: tuple[Completion | Failure, ...]
    prompt_ids: tuple[int, ...] | None = None
    stage: Stage = "generate"
    pool: tuple[int, ...] = ()
    """Indices into the previous round's population, in the order shown."""
    reductions: tuple[str, ...] = ()
    """What packing did to make the pool fit, for instance "dropped:2"."""
    num_prompt_tokens: int | None = None
    """Tokens of the prompt where the engine counted them without giving their ids."""
    model: str = ""
    """Which model gave it, where a run has one for each stage."""

    @property
    def prompt_length(self) -> int | None:
        """Tokens of the prompt; None where the engine does not know."""
        return self.num_prompt_tokens if self.prompt_ids is None else len(self.prompt_ids)

    @property
    def completions(self) -> tuple[Completion, ...]:
        """The outputs that did not fail."""
        return tuple(o for o in self.outputs if isinstance(o, Completion))


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of a run of the scaffold: see the table in docs/algorithm.md.

    candidates    N, sampled in round 0
    rounds        T, aggregation rounds after it; 0 is plain sampling
    pool_size     m, candidates shown to one aggregation
    pools         distinct pools per round; divides `aggregations`
    aggregations  solutions sampled per aggregation round (all pools together)
    minimum       a round with fewer surviving solutions than this fails the problem
    """

    candidates: int
    rounds: int = 0
    pool_size: int = 0
    pools: int = 1
    aggregations: int = 0
    minimum: int = 1

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise UsageError(f"candidates = {self.candidates}: at least 1 is needed")
        if self.rounds < 0:
            raise UsageError(f"rounds = {self.rounds}: use 0 for plain sampling")
        if self.rounds == 0:
            return
        for name in ("pool_size", "pools", "aggregations", "minimum"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)}: at least 1 is needed when rounds = {self.rounds}")
        if self.aggregations % self.pools:
            raise UsageError(
                f"pools = {self.pools} does not divide aggregations = {self.aggregations}: every pool gets an equal share"
            )
        smallest = self.candidates if self.rounds == 1 else min(self.candidates, self.aggregations)
        if self.pool_size > smallest:
            raise UsageError(f"pool_size = {self.pool_size} is above the {smallest} solutions that it draws from")

    @classmethod
    def training(cls, candidates: int, pool_size: int, pools: int = 1, rounds: int = 1) -> Plan:
        """N candidates, one pool of m, N aggregations of it as one credit group, one round; or several of either."""
        return cls(candidates, rounds, pool_size, pools, candidates)

    @classmethod
    def method(cls, pool_size: int, rounds: int) -> Plan:
        """The method's inference: everyone sees all m of the round before."""
        return cls(pool_size, rounds, pool_size, 1, pool_size)

    @classmethod
    def population(cls, candidates: int, pool_size: int, rounds: int) -> Plan:
        """Population inference (RSA, arXiv 2509.26626): N aggregations, each of its own subset of K."""
        return cls(candidates, rounds, pool_size, candidates, candidates)

    @classmethod
    def sampling(cls, candidates: int) -> Plan:
        """Plain sampling, for pass@k and voting."""
        return cls(candidates)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a strategy answers: weights of one round's solutions, in population order, that sum to 1.

    Ties share the weight, so that accuracy is an expectation. `scores` is what the solutions were chosen by, where that
    is a number for each (None: not scored); `why` says when the choice is not what the strategy is for.
    """

    round: int
    weights: tuple[float, ...]
    scores: tuple[float | None, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """All rounds of one problem: `rounds[0]` holds the candidates' group, `rounds[t]` the pools' groups of round t.

    A strategy may add `ratings`, what was asked about solutions (their outputs are no solutions and are not graded; their
    pools index the candidates), and its `choice`, None where it has nothing to choose from.
    """

    problem: Problem
    plan: Plan
    seed: int
    rounds: tuple[tuple[Group, ...], ...] = ()
    failure: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    ratings: tuple[Group, ...] = ()
    choice: Choice | None = None

    def population(self, round_: int) -> tuple[Completion, ...]:
        """The solutions of one round that did not fail, in a fixed order; pools index into it."""
        return population(self.rounds[round_])


def population(groups: tuple[Group, ...]) -> tuple[Completion, ...]:
    """The completions of a round's groups, in order."""
    return tuple(completion for group in groups for completion in group.completions)


class Sample(Protocol):
    """An engine: `n` siblings of one prompt, in order. Failures are values in the group, not exceptions."""

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group: ...


Verdict = Literal["correct", "incorrect", "unscored"]
UNREAD = "unsure: the answer is not read"
"""Why there is no verdict on an answer in a notation that the rules do not know. The policy chose it; no grader failed."""


@dataclass(frozen=True, slots=True)
class Grade:
    """A grader's verdict on one solution; `reason` is why it is unscored or wrong."""

    verdict: Verdict
    answer: str | None = None
    """What the grader read and majority voting counts; None does not vote."""
    reason: str = ""
    value: float | None = None
    """The reward that a reward function gave; None of other graders, whose verdict is all there is."""
    parts: tuple[float, ...] = ()
    """Which parts are right (1 or 0), of a task with independent ones; then `answer` holds theirs, separated by ";"."""

    @property
    def reward(self) -> float | None:
        """The reward that credit uses: None when unscored, else `value`, else 1 or 0."""
        return self.right if self.value is None or self.verdict == "unscored" else self.value

    @property
    def right(self) -> float | None:
        """The verdict as a number: 1 correct, 0 incorrect, None unscored."""
        return None if self.verdict == "unscored" else float(self.verdict == "correct")
