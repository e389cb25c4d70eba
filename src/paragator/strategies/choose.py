"""How solutions become one answer: weights that sum to 1, ties in expectation. Pure functions, no model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from paragator.core.types import Choice, Trace

Weights = tuple[float, ...]


def alike(count: int) -> Weights:
    """Each of `count` solutions as likely as another."""
    return (1 / count,) * count


def spread(chosen: Sequence[bool]) -> Weights:
    """Each of the chosen ones as likely as another."""
    return tuple(float(one) / sum(chosen) for one in chosen)


def voted(answers: Sequence[str | None], weights: Sequence[float] | None = None) -> Weights:
    """The solutions of the answer with the most votes, each solution having one, or its weight.

    Tied answers share alike, and so do the solutions of one answer. A missing answer (None) does not vote; where none of
    them votes, all solutions share alike. () for no solution.
    """
    if not answers:
        return ()
    sums = sums_of(answers, weights or [1.0] * len(answers))
    if not sums:
        return alike(len(answers))
    most = max(sums.values())
    won = [answer for answer, total in sums.items() if math.isclose(total, most, rel_tol=1e-12)]
    voters = [
        answer if answer is not None and (weights is None or weights[i] > 0) else None
        for i, answer in enumerate(answers)
    ]
    return tuple(
        1 / len(won) / voters.count(answer) if answer is not None and answer in won else 0.0 for answer in voters
    )


def sums_of(answers: Sequence[str | None], weights: Sequence[float]) -> dict[str, float]:
    """The weight behind each answer that has some."""
    votes: dict[str, list[float]] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None and weight > 0:
            votes.setdefault(answer, []).append(weight)
    return {answer: math.fsum(some) for answer, some in votes.items()}


def share(answers: Sequence[str | None], weights: Sequence[float]) -> float:
    """The share of all weight that is behind the answer with the most; 0 where there is none."""
    sums = sums_of(answers, weights).values()
    return max(sums) / math.fsum(sums) if sums else 0.0


def best(scores: Sequence[float | None]) -> Weights | None:
    """The solutions with the highest score, which share alike; None where none has a score."""
    known = [score for score in scores if score is not None]
    return spread([score == max(known) for score in scores]) if known else None


def by_score(scores: Sequence[float | None], answers: Sequence[str | None]) -> Choice | None:
    """The best by score; where nothing was scored, the vote, and the choice says so."""
    if not scores:
        return None
    weights = best(scores)
    if weights is None:
        return Choice(0, voted(answers), tuple(scores), "nothing was scored: a vote")
    return Choice(0, weights, tuple(scores))


def last_round(trace: Trace) -> int | None:
    """The last round that has a solution; None where none has."""
    return max((t for t in range(len(trace.rounds)) if trace.population(t)), default=None)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share of them lies, between neighbours in proportion, as numpy.percentile's default."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def borda(scores: Sequence[float], power: float) -> list[float]:
    """Votes by rank: (N - r + 1) ** power for rank r of N, the highest score having rank 1; equal scores share theirs."""
    ordered = sorted(scores, reverse=True)
    votes = [(len(scores) - place) ** power for place in range(len(scores))]
    return [
        math.fsum(vote for vote, other in zip(votes, ordered, strict=True) if other == score) / ordered.count(score)
        for score in scores
    ]


def leads(first: int, second: int) -> float:
    """How likely the first of two answers is the commoner one, having `first` votes against `second`.

    P(p > 1/2) for p ~ Beta(first + 1, second + 1), a uniform prior (Adaptive-Consistency, arXiv 2305.11860, equation 5);
    exact, as the upper tail of a binomial.
    """
    tosses = first + second + 1
    return float(Fraction(sum(math.comb(tosses, heads) for heads in range(first + 1)), 2**tosses))


def agreed(answers: Sequence[str | None], confidence: float) -> bool:
    """Whether the commonest answer leads the next one with this confidence."""
    known = [answer for answer in answers if answer is not None]
    counts = sorted((known.count(answer) for answer in set(known)), reverse=True)
    return bool(counts) and leads(counts[0], counts[1] if len(counts) > 1 else 0) >= confidence
