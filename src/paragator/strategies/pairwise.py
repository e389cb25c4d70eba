"""Pairwise self-verification in a Swiss tournament: V1-Infer (arXiv 2603.04304)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from paragator.core.prompts import Templates
from paragator.core.thinking import strip_thinking
from paragator.core.together import together
from paragator.core.types import Completion, Group, Trace
from paragator.strategies.base import Asking, Sizes
from paragator.strategies.choose import by_score

COMPARE = Templates(
    candidate="{problem}",
    aggregation=(
        "{problem}\n\nTwo solutions of this problem follow.\n\n{attempts}"
        "Check both step by step; both may be right, or both wrong. Give each a score from 1 (surely wrong) to 10 (surely "
        "right). End with two lines of the form\nScore A: NUMBER\nScore B: NUMBER"
    ),
    attempt="Solution {label}:\n{attempt}\n\n",
)
NUMBERS = {label: re.compile(rf"Score {label}\W{{0,8}}(\d+(?:\.\d+)?)", re.IGNORECASE) for label in "AB"}
LEAST_WEIGHT = 0.1
"""What a comparison with equal scores weighs."""

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison: two places in the population, and the scores that they got, if both could be read."""

    pair: Pair
    scores: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Pairwise:
    """n candidates and budget * n comparisons of two; the highest margin-weighted share of wins is the answer.

    budget  comparisons a candidate (published: 1 to 3; no pair is compared twice, so few candidates take fewer)
    degree  each candidate is compared this often before any are matched by strength (published: 2)
    """

    n: int | None = None
    budget: float = 3.0
    degree: int = 2

    async def __call__(self, asking: Asking) -> Trace:
        found = await asking.candidates(self.candidates(asking.sizes))
        solutions = found.completions
        total = comparisons(len(solutions), self.budget)
        rng = asking.random("pairwise")
        order = list(range(len(solutions)))
        rng.shuffle(order)
        compared: list[Compared] = []
        ratings: list[Group] = []
        pairs = ring(order, self.degree)[:total]
        while pairs:
            sides = [pair if rng.random() < 0.5 else (pair[1], pair[0]) for pair in pairs]
            asked = await together(*(compare(asking, solutions, pair) for pair in sides))
            ratings += [group for group, _ in asked]
            compared += [one for _, one in asked]
            met = {frozenset(one.pair) for one in compared}
            ranks = standing(compared, order)
            pairs = swiss(ranks, met)[: total - len(compared)]
        played = {place for one in compared if one.scores for place in one.pair}
        shares = wins(compared)
        scores = [shares[i] if i in played else None for i in range(len(solutions))]
        if len(solutions) == 1:
            scores = [1.0]
        return asking.selected(found, by_score(scores, await asking.answers(solutions)), ratings)

    def candidates(self, sizes: Sizes) -> int:
        return self.n or sizes.candidates

    def requests(self, sizes: Sizes) -> int:
        return self.candidates(sizes) + comparisons(self.candidates(sizes), self.budget)


def comparisons(n: int, budget: float) -> int:
    """How many comparisons n candidates take."""
    return min(math.floor(budget * n), n * (n - 1) // 2)


async def compare(asking: Asking, solutions: Sequence[Completion], pair: Pair) -> tuple[Group, Compared]:
    """One comparison. It says nothing where one of the two had nothing to show or a score cannot be read."""
    shown = [(place, solutions[place].text) for place in pair]
    group, packed = await asking.rate(COMPARE, shown, f"pairwise:{min(pair)}:{max(pair)}")
    scores = read_scores(group) if packed.pool == pair else None
    return group, Compared(pair, scores)


def read_scores(group: Group) -> tuple[float, float] | None:
    """The last score of A and of B, outside thinking; None unless both are there and from 1 to 10."""
    text = strip_thinking(group.completions[0].text) if group.completions else ""
    found = [pattern.findall(text) for pattern in NUMBERS.values()]
    if not all(found):
        return None
    a, b = (float(some[-1][:9]) for some in found)
    return (a, b) if min(a, b) >= 1 and max(a, b) <= 10 else None


def wins(compared: Sequence[Compared]) -> dict[int, float]:
    """mu_i = sum of w_ij win_ij / sum of w_ij over i's comparisons, with w = max(LEAST_WEIGHT, |score_i - score_j| / 9).

    A win counts 1, a tie a half.
    """
    won: dict[int, list[float]] = {}
    weighed: dict[int, list[float]] = {}
    for one in compared:
        if one.scores is None:
            continue
        weight = max(LEAST_WEIGHT, abs(one.scores[0] - one.scores[1]) / 9)
        for place, own, other in zip(one.pair, one.scores, one.scores[::-1], strict=True):
            won.setdefault(place, []).append(weight * ((own > other) + 0.5 * (own == other)))
            weighed.setdefault(place, []).append(weight)
    return {place: math.fsum(won[place]) / math.fsum(weighed[place]) for place in won}


def standing(compared: Sequence[Compared], order: Sequence[int]) -> list[tuple[int, float]]:
    """(place, share of wins), the best first; one without a readable comparison stands at a half."""
    shares = wins(compared)
    return sorted(((place, shares.get(place, 0.5)) for place in order), key=lambda item: -item[1])


def ring(order: Sequence[int], degree: int) -> list[Pair]:
    """Distinct pairs in which everybody occurs `degree` times (rounded up to even): neighbours at distance 1, 2, ..."""
    n = len(order)
    found: dict[frozenset[int], Pair] = {}
    for distance in range(1, min(math.ceil(degree / 2), n // 2) + 1):
        for i in range(n):
            pair = (order[i], order[(i + distance) % n])
            if pair[0] != pair[1]:
                found.setdefault(frozenset(pair), pair)
    return list(found.values())


def swiss(ranks: Sequence[tuple[int, float]], met: set[frozenset[int]]) -> list[Pair]:
    """From the top, each with the nearest in strength that it has not met and that is still free."""
    free = list(ranks)
    pairs: list[Pair] = []
    while free:
        place, share = free.pop(0)
        rivals = [
            (abs(share - other), at) for at, (who, other) in enumerate(free) if frozenset((place, who)) not in met
        ]
        if rivals:
            pairs.append((place, free.pop(min(rivals)[1])[0]))
    return pairs
