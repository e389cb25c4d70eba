"""Strategies over a scripted engine: their requests are those that docs/strategies.md promises, their formulas are theirs."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paragator.core.errors import UsageError
from paragator.core.prompts import CHAT
from paragator.core.scaffold import Scaffold
from paragator.core.types import Completion, Failure, Group, Plan, Problem, Prompt, Stage, Trace
from paragator.engines.scripted import Scripted
from paragator.strategies import STRATEGIES, Asking, Sizes, register_strategy, strategy_named
from paragator.strategies.choose import agreed, best, borda, leads, percentile, voted
from paragator.strategies.confidence import By, Confidence, confidence_of
from paragator.strategies.genselect import SELECT
from paragator.strategies.pairwise import COMPARE, LEAST_WEIGHT, Compared, ring, swiss, wins

PROBLEM = Problem("p", "What is 6 times 7?", "42")
SIZES = Sizes(candidates=6, pool_size=3, rounds=2)
Output = str | Completion | Failure


async def boxes(problem: Problem, solutions: Sequence[Completion]) -> list[str | None]:
    """What stands after "=", None without one."""
    return [one.text.partition("=")[2] or None for one in solutions]


def play(name: str, reply: Callable[[Prompt, int, Stage, int], Output], sizes: Sizes = SIZES) -> tuple[Trace, Scripted]:
    engine = Scripted(reply)
    asking = Asking(PROBLEM, engine, Scaffold(Plan.sampling(1), CHAT, seed=3), boxes, sizes)
    return asyncio.run(strategy_named(name)(asking)), engine


def count(engine: Scripted) -> Counter[str]:
    """Completions asked for: candidates, aggregations, and ratings, which are asked about by prompts of their own."""
    kinds: Counter[str] = Counter()
    aggregation = CHAT.aggregation[-40:]
    for prompt, n, stage, _ in engine.calls:
        kinds[stage if stage == "generate" or prompt.text.endswith(aggregation) else "rate"] += n
    return kinds


def different(prompt: Prompt, index: int, stage: Stage, seed: int) -> Output:
    """No two candidates agree, ratings say nothing."""
    return f"={seed}"


# ---- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "generate", "aggregate", "rate"),
    [
        ("majority", 6, 0, 0),
        ("majority:n=9", 9, 0, 0),
        ("aggregate", 6, 12, 0),
        ("aggregate_vote:rounds=1", 6, 6, 0),
        ("aggregate:n=8,k=4,rounds=3", 8, 24, 0),
        ("rsa", 16, 160, 0),
        ("pacore", 32, 5, 0),
        ("pacore:widths=4", 4, 1, 0),
        ("genselect", 6, 0, 1),
        ("genselect:n=20", 20, 0, 4),
        ("genselect:n=9,window=4", 9, 0, 4),
        ("pairwise", 6, 0, 15),
        ("pairwise:n=16", 16, 0, 48),
        ("pairwise:n=8,budget=1", 8, 0, 8),
        ("pairwise:n=1", 1, 0, 0),
        ("judge", 6, 0, 6),
        ("judge:n=4,votes=3", 4, 0, 12),
        ("confidence", 6, 0, 0),
        ("confidence:n=9,warmup=4", 9, 0, 0),
        ("self_certainty:n=5", 5, 0, 0),
        ("agree", 6, 12, 0),
    ],
)
def test_requests_are_those_promised(name: str, generate: int, aggregate: int, rate: int) -> None:
    trace, engine = play(name, different)
    assert count(engine) == Counter(
        {k: v for k, v in {"generate": generate, "aggregate": aggregate, "rate": rate}.items() if v}
    )
    assert strategy_named(name).requests(SIZES) == generate + aggregate + rate
    assert strategy_named(name).candidates(SIZES) == generate
    assert len({seed for _, _, _, seed in engine.calls}) == len(engine.calls), "every request has a seed of its own"
    assert trace.choice is not None and math.isclose(sum(trace.choice.weights), 1)
    assert len(trace.choice.weights) == len(trace.population(trace.choice.round))
    assert sum(len(g.outputs) for g in trace.ratings) == rate


@pytest.mark.parametrize("name", STRATEGIES)
def test_all_ask_for_the_same_candidates(name: str) -> None:
    """So that a journal answers them once for all: equal prompts, seeds and numbers of siblings."""
    _, one = play("majority:n=32", different)
    _, other = play(name, different)
    known = [call for call in one.calls if call[2] == "generate"]
    mine = [call for call in other.calls if call[2] == "generate"]
    assert mine == known[: len(mine)]


@pytest.mark.parametrize("name", STRATEGIES)
def test_concurrency_cannot_change_a_trace(name: str) -> None:
    def run(order: int) -> Trace:
        delays = random.Random(order)
        engine = Scripted(different, delay=lambda prompt, seed: delays.random() / 1000)
        asking = Asking(PROBLEM, engine, Scaffold(Plan.sampling(1), CHAT), boxes, Sizes(5, 2, 1))
        return asyncio.run(strategy_named("rsa:n=5,k=2,rounds=2" if name == "rsa" else name)(asking))

    assert run(0) == run(1)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_pool_of_failures_has_no_choice(name: str) -> None:
    trace, _ = play(name, lambda *_: Failure("http 500"))
    assert trace.choice is None and trace.failure is not None


@pytest.mark.parametrize("name", STRATEGIES)
def test_solutions_without_answers_share_alike(name: str) -> None:
    """Nothing to vote by, nothing that ratings say: every solution of the round, in expectation."""
    trace, _ = play(name, lambda *_: "no answer here")
    choice = trace.choice
    assert choice is not None
    assert choice.weights == pytest.approx([1 / len(choice.weights)] * len(choice.weights))


@pytest.mark.parametrize(
    "name", ["majority", "genselect", "pairwise", "judge", "confidence", "self_certainty", "agree"]
)
def test_failed_candidates_are_no_solutions(name: str) -> None:
    calls = itertools.count()

    def reply(prompt: Prompt, index: int, stage: Stage, seed: int) -> Output:
        if stage == "aggregate":
            return "I cannot say"
        return Failure("http 500") if next(calls) % 2 else "=7"

    trace, _ = play(name, reply)
    assert len(trace.population(0)) in (2, 3) and trace.choice is not None
    assert len(trace.choice.weights) == len(trace.population(trace.choice.round)) and trace.failure is None


def test_later_rounds_that_fail_leave_the_one_before() -> None:
    trace, _ = play("aggregate_vote", lambda p, i, stage, s: "=1" if stage == "generate" else Failure("gone"))
    assert trace.choice is not None and trace.choice.round == 0 and trace.choice.why == "later rounds gave nothing"
    assert trace.failure == "round 1 left 0 solutions, 1 are needed"


# ---- votes -----------------------------------------------------------------------------------------------------------


def test_votes_equal_a_count_of_all_outcomes() -> None:
    """Weights of a vote against brute force: every order of tied answers, every representative of the winner."""
    rng = random.Random(0)
    for _ in range(300):
        answers = [rng.choice(["a", "b", "c", None]) for _ in range(rng.randrange(1, 7))]
        weights = [rng.choice([0.5, 1.0, 2.0]) for _ in answers]
        sums: dict[str, float] = {}
        for answer, weight in zip(answers, weights, strict=True):
            if answer is not None:
                sums[answer] = sums.get(answer, 0) + weight
        outcomes: Counter[int] = Counter()
        total = 0
        winners = [a for a in sums if sums[a] == max(sums.values())] or [None]
        for winner in winners:
            voters = [i for i, answer in enumerate(answers) if answer == winner]
            for voter in voters:
                outcomes[voter] += 60 // len(voters)
            total += 60
        assert voted(answers, weights) == pytest.approx([outcomes[i] / total for i in range(len(answers))])
    assert voted([]) == () and best([]) is None and best([None]) is None
    assert best([1.0, 3.0, None, 3.0]) == (0, 0.5, 0, 0.5)


def test_a_vote_is_maj_at_n_in_expectation() -> None:
    from paragator.core.estimators import majority_at_k

    rng = random.Random(1)
    for _ in range(200):
        answers = [rng.choice(["a", "b", None]) for _ in range(rng.randrange(1, 9))]
        right: list[float | None] = [float(answer == "a") for answer in answers]
        expected = majority_at_k(answers, right, len(answers))
        assert sum(w * (r or 0) for w, r in zip(voted(answers), right, strict=True)) == pytest.approx(expected)


# ---- formulas --------------------------------------------------------------------------------------------------------


def test_percentile_is_numpys() -> None:
    import numpy as np

    rng = random.Random(2)
    for _ in range(200):
        values = [rng.random() for _ in range(rng.randrange(1, 12))]
        share = rng.random()
        assert percentile(values, share) == pytest.approx(float(np.percentile(values, 100 * share)))


def published_confidence(tokens: list[float], by: str, window: int) -> float:
    """Restated from DeepConf's definitions, in numpy, window by window."""
    import numpy as np

    if by == "mean":
        return float(np.mean(tokens))
    if by == "tail":
        return float(np.mean(tokens[-window:]))
    means = [np.mean(tokens[i : i + window]) for i in range(max(1, len(tokens) - window + 1))]
    if by == "lowest":
        return float(min(means))
    return float(np.mean(sorted(means)[: max(1, int(len(means) * 0.1))]))


@pytest.mark.parametrize("by", ["lowest", "bottom", "tail", "mean"])
def test_confidence_of_a_candidate_equals_the_published_one(by: By) -> None:
    rng = random.Random(by)
    for _ in range(100):
        tokens = [rng.expovariate(0.1) for _ in range(rng.randrange(1, 60))]
        window = rng.choice([1, 3, 8, 100])
        assert confidence_of(tokens, by, window) == pytest.approx(published_confidence(tokens, by, window))
    assert confidence_of(None, by, 3) is None and confidence_of((), by, 3) is None


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 1.0])
def test_confidence_votes_as_a_brute_force_reference_does(keep: float) -> None:
    """Recorded log-probabilities to an answer: token means, windows, percentile, filter, weighted sums, all restated."""
    import numpy as np

    rng = random.Random(keep)
    for _ in range(40):
        logprobs = [[[-rng.expovariate(0.2) for _ in range(5)] for _ in range(rng.randrange(4, 30))] for _ in range(6)]
        answers = [rng.choice(["1", "2", ""]) for _ in logprobs]
        tokens = [[-float(np.mean(token)) for token in one] for one in logprobs]
        scores = [published_confidence(one, "lowest", 8) for one in tokens]
        valid = [i for i, answer in enumerate(answers) if answer]
        feed = iter(range(6))

        def reply(*_: Any, feed: Any = feed, tokens: Any = tokens, answers: Any = answers) -> Output:
            i = next(feed)
            return Completion(f"={answers[i]}" if answers[i] else "-", confidences=tuple(tokens[i]))

        trace, _ = play(f"confidence:window=8,keep={keep}", reply)
        assert trace.choice is not None
        if not valid:
            assert trace.choice.why
            continue
        bar = np.percentile([scores[i] for i in valid], (1 - keep) * 100)
        sums: dict[str, float] = {}
        for i in valid:
            if scores[i] >= bar - 1e-12:
                sums[answers[i]] = sums.get(answers[i], 0.0) + scores[i]
        chosen = {answers[i] for i, weight in enumerate(trace.choice.weights) if weight}
        assert chosen == {max(sums, key=lambda answer: sums[answer])}
        assert trace.choice.scores == pytest.approx(scores)


@pytest.mark.parametrize("keep", [0.5, 0.9])
@pytest.mark.parametrize("consensus", [0.6, 0.95])
def test_confidence_on_line_ends_where_a_brute_force_reference_does(keep: float, consensus: float) -> None:
    """DeepConf's algorithm 2, token by token: a trace is cut once a group falls below the bar, and then has no answer.

    Ours samples whole traces, in batches of the warm-up's size: the same answer from the same number of them.
    """
    import numpy as np

    warmup, n, window = 6, 21, 5
    rng = random.Random(f"{keep} {consensus}")
    sizes: Counter[int] = Counter()
    for _ in range(60):
        clear = rng.random() < 0.5
        answers = [rng.choices(["1", "2", "3", ""], [8, 1, 1, 1] if clear else [2, 2, 1, 1])[0] for _ in range(n)]
        tokens = [[rng.expovariate(0.1) for _ in range(rng.randrange(1, 20))] for _ in range(n)]

        def cut(one: list[float], bar: float) -> bool:
            """Whether a group of `window` tokens is below the bar at some token; a shorter trace is one group."""
            ends = range(min(window, len(one)), len(one) + 1)
            return any(np.mean(one[max(0, end - window) : end]) < bar - 1e-9 for end in ends)

        lowest = [published_confidence(one, "lowest", window) for one in tokens]
        done, bar, sums = 0, None, dict[str, float]()
        while done < n and (not sums or max(sums.values()) / sum(sums.values()) < consensus):
            done, new = min(n, done + warmup), range(done, min(n, done + warmup))
            if bar is None:
                valid = [lowest[i] for i in range(done) if answers[i]]
                bar, new = (float(np.percentile(valid, (1 - keep) * 100)) if valid else None), range(done)
            for i in new:
                if bar is not None and answers[i] and not cut(tokens[i], bar):
                    sums[answers[i]] = sums.get(answers[i], 0.0) + lowest[i]

        feed = iter(range(n))

        def reply(*_: Any, feed: Any = feed, tokens: Any = tokens, answers: Any = answers) -> Output:
            i = next(feed)
            return Completion(f"={answers[i]}" if answers[i] else "-", confidences=tuple(tokens[i]))

        settings = f"n={n},warmup={warmup},window={window},keep={keep},consensus={consensus}"
        trace, engine = play(f"confidence:{settings}", reply)
        assert trace.choice is not None and count(engine) == {"generate": done}
        chosen = {answers[i] for i, weight in enumerate(trace.choice.weights) if weight}
        assert chosen == {max(sums, key=lambda answer: sums[answer])}
        sizes[done] += 1
    assert min(sizes) == warmup and max(sizes) == n, "some end at once, some never"


def test_confidence_on_line_without_confidences_is_a_vote_over_all() -> None:
    trace, engine = play("confidence:n=6,warmup=2", lambda *_: "=1")
    assert count(engine) == {"generate": 6} and trace.choice is not None and trace.choice.why
    with pytest.raises(UsageError, match="consensus = 1"):
        strategy_named("confidence:consensus=1.5")


def test_borda_votes_are_ranks_to_a_power() -> None:
    """(N - r + 1) ** p, as published; equal scores share what their ranks have together."""
    rng = random.Random(4)
    for _ in range(100):
        scores = [float(rng.randrange(6)) for _ in range(rng.randrange(1, 8))]
        power = rng.choice([0.3, 0.5, 1.0, 2.0])
        n = len(scores)
        expected = []
        for score in scores:
            above, equal = sum(s > score for s in scores), scores.count(score)
            ranks = range(above + 1, above + equal + 1)
            expected.append(sum((n - r + 1) ** power for r in ranks) / equal)
        assert borda(scores, power) == pytest.approx(expected)


def test_self_certainty_votes_by_rank() -> None:
    certainties, answers = [5.0, 4.0, 3.0, 2.0, 1.0, 0.5], ["1", "2", "2", "2", "2", "2"]

    def playing(power: float) -> Trace:
        feed = iter(range(6))

        def reply(*_: Any) -> Output:
            i = next(feed)
            return Completion(f"={answers[i]}", certainty=certainties[i])

        return play(f"self_certainty:power={power}", reply)[0]

    steep, flat = playing(8).choice, playing(0).choice
    assert steep is not None and steep.weights == (1, 0, 0, 0, 0, 0) and steep.scores == tuple(certainties)
    assert flat is not None and flat.weights == pytest.approx((0, 0.2, 0.2, 0.2, 0.2, 0.2))


def test_agreement_is_the_beta_tail() -> None:
    """P(p > 1/2) of Beta(v1 + 1, v2 + 1), by mpmath's incomplete beta function."""
    from mpmath import betainc

    for first, second in itertools.product(range(30), range(30)):
        tail = betainc(first + 1, second + 1, 0.5, 1, regularized=True)
        assert leads(first, second) == pytest.approx(float(tail))
    assert agreed(["a"] * 4, 0.95) and not agreed(["a"] * 3, 0.95) and not agreed(["a"] * 4 + ["b"], 0.95)
    assert not agreed([], 0.95) and not agreed([None] * 9, 0.95)


def published_wins(comparisons: Sequence[Compared], place: int) -> float:
    """V1-Infer's margin-weighted share of wins, pair by pair."""
    top = bottom = 0.0
    for one in comparisons:
        if one.scores is None or place not in one.pair:
            continue
        mine, other = one.scores if one.pair[0] == place else reversed(one.scores)
        weight = max(LEAST_WEIGHT, abs(mine - other) / 9)
        top += weight * (1 if mine > other else 0.5 if mine == other else 0)
        bottom += weight
    return top / bottom


def test_wins_are_weighted_by_their_margin() -> None:
    rng = random.Random(5)
    for _ in range(100):
        pairs = list(itertools.combinations(range(5), 2))
        compared = [
            Compared(pair, (rng.randint(1, 10), rng.randint(1, 10)) if rng.random() < 0.8 else None) for pair in pairs
        ]
        found = wins(compared)
        assert all(found[place] == pytest.approx(published_wins(compared, place)) for place in found)


def test_everybody_is_compared_twice_before_strength_decides() -> None:
    for n in range(3, 20):
        pairs = ring(list(range(n)), 2)
        assert len({frozenset(pair) for pair in pairs}) == n
        assert set(Counter(place for pair in pairs for place in pair).values()) == {2}
    assert ring([0, 1], 2) == [(0, 1)] and ring([0], 2) == []


def test_swiss_pairs_are_neighbours_in_strength_that_have_not_met() -> None:
    ranks = [(0, 0.9), (1, 0.8), (2, 0.5), (3, 0.1)]
    assert swiss(ranks, set()) == [(0, 1), (2, 3)]
    assert swiss(ranks, {frozenset((0, 1))}) == [(0, 2), (1, 3)]
    assert swiss(ranks, {frozenset(pair) for pair in itertools.combinations(range(4), 2)}) == []


def shown_numbers(prompt: Prompt) -> list[int]:
    return [int(line.removeprefix("=")) for line in prompt.text.splitlines() if line.startswith("=")]


def numbered() -> Callable[..., str]:
    places = itertools.count(1)
    return lambda: f"={next(places)}"


def test_pairwise_finds_the_one_that_wins() -> None:
    new = numbered()

    def reply(prompt: Prompt, index: int, stage: Stage, seed: int) -> Output:
        if stage == "generate":
            return new()
        a, b = shown_numbers(prompt)
        return f"<think>Score A: 9 Score B: 9</think>So\n**Score A:** {min(a, 10)}\nScore B: {min(b, 10)}"

    trace, _ = play("pairwise:n=10,budget=2", reply)
    assert trace.choice is not None and trace.choice.weights.index(1.0) == 9
    assert all(len(group.pool) == 2 for group in trace.ratings)
    assert len({frozenset(group.pool) for group in trace.ratings}) == 20


def test_genselect_knocks_out_and_reads_the_number() -> None:
    new = numbered()

    def reply(prompt: Prompt, index: int, stage: Stage, seed: int) -> Output:
        if stage == "generate":
            return new()
        shown = shown_numbers(prompt)
        assert len(shown) <= 8
        return f"Judgment: 99 at first. **Judgment:** {1 + shown.index(max(shown))}"

    trace, _ = play("genselect:n=20", reply)
    assert trace.choice is not None and trace.choice.weights.index(1.0) == 19
    assert sorted(len(group.pool) for group in trace.ratings) == [3, 6, 7, 7]


def test_genselect_leaves_out_what_is_unfinished_or_too_long() -> None:
    texts = iter(["=1", "<think>hm", Completion("=2", "length"), "=" + "3" * 20_000, "=4", "=5"])
    trace, engine = play("genselect", lambda p, i, stage, s: next(texts) if stage == "generate" else "Judgment: x")
    assert trace.choice is not None
    assert trace.choice.weights == pytest.approx((1 / 3, 0, 0, 0, 1 / 3, 1 / 3))
    assert trace.choice.why == "no number could be read" and set(trace.ratings[0].pool) == {0, 4, 5}
    assert SELECT.chat is False and engine.calls[-1][0].chat, "sent as the run's other prompts are"


def test_the_judge_takes_the_highest_mean_and_shares_ties() -> None:
    new, scores = numbered(), {1: [3, 4], 2: [9, 8], 3: [8, 9], 4: [11, 0]}
    feeds = {place: iter(some) for place, some in scores.items()}

    def reply(prompt: Prompt, index: int, stage: Stage, seed: int) -> Output:
        return new() if stage == "generate" else f"Score: {next(feeds[shown_numbers(prompt)[0]])}"

    trace, _ = play("judge:n=4,votes=2", reply)
    assert trace.choice is not None and trace.choice.weights == (0, 0.5, 0.5, 0)
    assert trace.choice.scores == (3.5, 8.5, 8.5, None), "11 and 0 are no scores"


def test_agree_stops_where_answers_agree() -> None:
    trace, engine = play("agree:n=16", lambda *_: "=7")
    assert count(engine) == {"generate": 4} and trace.choice is not None and len(trace.rounds) == 1
    trace, engine = play("agree:n=16,k=2", lambda p, i, stage, seed: f"={seed}" if stage == "generate" else "=7")
    assert count(engine) == {"generate": 16, "aggregate": 4} and trace.choice is not None
    assert trace.choice.round == 1 and trace.choice.weights == (0.25,) * 4


def test_agree_asks_for_no_more_than_rsa_and_the_same() -> None:
    """Where nothing agrees, it is RSA: the same pools, prompts and seeds."""
    _, mine = play("agree:n=6,k=2,rounds=2", different)
    _, theirs = play("rsa:n=6,k=2,rounds=2", different)
    assert sorted(mine.calls, key=str) == sorted(theirs.calls, key=str)


def test_pacore_passes_conclusions_on() -> None:
    def reply(prompt: Prompt, index: int, stage: Stage, seed: int) -> Output:
        return f"<think>secret</think>={seed + index}"

    trace, engine = play("pacore:widths=3/2", reply)
    assert [sum(len(g.outputs) for g in groups) for groups in trace.rounds] == [3, 2, 1]
    assert [len(groups[0].pool) for groups in trace.rounds[1:]] == [3, 2]
    assert not any("secret" in prompt.text for prompt, *_ in engine.calls)


# ---- the table -------------------------------------------------------------------------------------------------------


def test_names_with_settings() -> None:
    assert strategy_named("rsa").strategy is STRATEGIES["rsa"]
    found: Any = strategy_named(" pairwise:budget=1.5, n=8 ").strategy
    assert (found.budget, found.n, found.degree) == (1.5, 8, 2)
    assert strategy_named("aggregate:vote=true").strategy == replace(STRATEGIES["aggregate"], vote=True)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("majorty", "did you mean majority"),
        ("pairwise:bugdet=2", "bugdet is no setting of it; it has n, budget, degree"),
        ("pairwise:budget", "write it as module:function"),
        ("pairwise:budget=", "is no setting; write it as key=value"),
        ("pairwise:n=x", "n = 'x' is not of its type"),
        ("majority:n=-1", "use 1 or more"),
        ("confidence:by=luck", "use lowest, bottom, tail, mean"),
        ("confidence:keep=0", "keep a share"),
        ("pacore:widths=0/4", "numbers? above 0"),
        ("agree:confidence=0.2", "use 0.5 to 1"),
        ("no_such_module:f", "write it as module:function"),
        ("math:pi", "is not a function; write it as module:function"),
    ],
)
def test_wrong_names_are_told_in_one_line(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        strategy_named(text)


async def lonely(asking: Asking) -> Trace:
    """A strategy of a user's script: the first candidate."""
    return asking.selected(await asking.candidates(1), None)


def test_a_function_of_a_module_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_strategies.py").write_text("async def mine(asking):\n    return 7\nbroken = 1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        strategy_named("my_strategies:mine")
    (tmp_path / "my_strategies_too.py").write_text("async def mine(asking):\n    return 7\n")
    named = strategy_named("my_strategies_too:mine")
    assert named.label == "my_strategies_too:mine" and callable(named.strategy)


def test_a_strategy_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(STRATEGIES, "lonely", raising=False)
    register_strategy("lonely", lonely)
    register_strategy("lonely", lonely)
    trace, engine = play("lonely", different)
    assert count(engine) == {"generate": 1} and trace.choice is None
    named = strategy_named("lonely")
    assert named.requests(SIZES) is None and named.only_candidates(SIZES) and named.needs == ""
    with pytest.raises(UsageError, match="exists already"):
        register_strategy("majority", lonely)
    with pytest.raises(UsageError, match="use letters"):
        register_strategy("a b", lonely)
    with pytest.raises(UsageError, match="no settings"):
        strategy_named("lonely:n=3")
    monkeypatch.delitem(STRATEGIES, "lonely")


def test_rating_prompts_hold_what_they_are_about() -> None:
    for templates in (SELECT, COMPARE):
        text = templates.for_aggregation(PROBLEM, ["one", "two"]).text
        assert PROBLEM.text in text and "one" in text and "two" in text


def test_a_prompt_that_does_not_fit_is_a_failure() -> None:
    from paragator.core.packing import Packer

    packer = Packer(max_tokens=5, count=lambda prompt: len(prompt.text.split()))
    engine = Scripted(different)
    asking = Asking(PROBLEM, engine, Scaffold(Plan.sampling(1), CHAT, packer), boxes, SIZES)
    group, packed = asyncio.run(asking.rate(COMPARE, [(0, "a"), (1, "b")], "x"))
    assert isinstance(group.outputs[0], Failure) and packed.misfit and not engine.calls
    assert isinstance(group, Group) and group.pool == ()


@pytest.mark.parametrize(("n", "warmup"), [(8, 8), (None, 99), (8, 0), (8, -3)])
def test_a_warm_up_that_leaves_nothing_to_stop_is_refused(n: int | None, warmup: int) -> None:
    with pytest.raises(UsageError, match=f"confidence: warmup = {warmup}"):
        Confidence(n=n, warmup=warmup).requests(Sizes())
