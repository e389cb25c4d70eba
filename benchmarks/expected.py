"""`agree` against RSA's loop in expectation: what simulated.py estimates, without its noise.

    python benchmarks/inference.py --expected

In that simulation an answer is one of five, and a new solution is right with a probability that depends on how many of
the round before are. So a round is a multinomial and RSA's loop a Markov chain over counts of right solutions; `agree` is
the same chain, from which leaves what it stops at. Both are computed here from the stated model and the stopping rule
(not from the strategy's code) for each difficulty q, and averaged over q ~ Beta(a, b). Time is not: it depends on the
longest of many requests.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from math import comb
from typing import TypeVar

import numpy as np

from paragator.strategies.choose import leads

N, K, ROUNDS = 16, 4, 10
KINDS = {"easy": (4.0, 2.0), "mixed": (1.0, 1.0), "hard": (1.0, 3.0)}
WRONG = (3 / 6, 1 / 6, 1 / 6, 1 / 6)
"""How likely each wrong answer is among wrong ones."""
SHORTEST, EXPONENT, LONGEST = 300, 1.3, 16_384
PROMPT, SHOWN = 100, 400
NEVER = 2.0
"""A confidence that no answers reach."""
GRID = 400
STARTS, CONFIDENCES = (2, 4, 8, 16), (0.9, 0.95, 0.97, 0.99, 0.995, 0.999, 0.9999)
Array = np.ndarray
Odds = TypeVar("Odds", float, Array)


def aggregated(good: int, shown: int, q: Odds) -> Odds:
    """How likely an aggregation is right that sees `good` right solutions of `shown`."""
    return 0.9 * good / shown + 0.1 * q if good else 0.3 * q


@dataclass(frozen=True)
class Stops:
    """Where rounds end that stop at some size: times p^r (1 - p)^(size - r), summed over r, these are probabilities.

    p is how likely each solution is right, r how many are.

    ended  [r] they stop; `right` [r] and the vote is right
    """

    ended: Array
    right: Array


def stops(start: int, confidence: float) -> tuple[dict[int, Stops], Stops]:
    """Rounds of `agree` by the size at which they stop, and those that go on: over all ways to draw answers."""
    ways = {(0,) * (1 + len(WRONG)): 1.0}
    found: dict[int, Stops] = {}
    check = start
    for size in range(1, N + 1):
        following: dict[tuple[int, ...], float] = {}
        for counts, weight in ways.items():
            for i, share in enumerate((1.0, *WRONG)):
                more = (*counts[:i], counts[i] + 1, *counts[i + 1 :])
                following[more] = following.get(more, 0.0) + weight * share
        ways = following
        if size == min(check, N):
            check *= 2
            done = {counts: w for counts, w in ways.items() if leads(*sorted(counts)[:-3:-1]) >= confidence}
            found[size] = by_right(done, size)
            ways = {counts: w for counts, w in ways.items() if counts not in done}
    return found, by_right(ways, N)


def by_right(ways: dict[tuple[int, ...], float], size: int) -> Stops:
    out = Stops(np.zeros(size + 1), np.zeros(size + 1))
    for counts, weight in ways.items():
        out.ended[counts[0]] += weight
        out.right[counts[0]] += weight * (counts[0] == max(counts)) / counts.count(max(counts))
    return out


def spent(start: int, confidence: float, q: Array) -> tuple[Array, Array, Array]:
    """[G] each: how likely the answer is right, candidates and aggregations that it takes, for difficulties q [G]."""
    found, rest = stops(start, confidence)
    right, asked = np.zeros_like(q), np.zeros((ROUNDS + 1, len(q)))
    here, p = np.ones((len(q), 1)), q[:, None]  # how likely each count of right ones is in the round before; see Stops

    def odds(size: int) -> Array:
        r = np.arange(size + 1)
        return here[..., None] * p[..., None] ** r * (1 - p[..., None]) ** (size - r)

    seen = np.array([[chance(r, good) for good in range(K + 1)] for r in range(N + 1)])
    after_all = seen @ np.array([aggregated(good, K, q) for good in range(K + 1)])  # [N + 1, G]
    for number in range(ROUNDS + 1):
        for size, some in found.items():
            right += (odds(size) @ some.right).sum(1)
            asked[number] += size * (odds(size) @ some.ended).sum(1)
        left = (odds(N) * rest.ended).sum(1)
        asked[number] += N * left.sum(1)
        if number == ROUNDS:
            right += (odds(N) @ rest.right).sum(1)
        here, p = left, after_all.T
    return right, asked[0], asked[1:].sum(0)


def chance(right: int, good: int) -> float:
    """That K solutions drawn of N, of which some are right, have `good` right ones."""
    return comb(right, good) * comb(N - right, K - good) / comb(N, K)


def tokens(candidates: Array, aggregations: Array) -> Array:
    """Prompts and completions of so many requests, in expectation."""
    length = SHORTEST + sum((SHORTEST / j) ** EXPONENT for j in range(SHORTEST + 1, LONGEST + 1))
    found: Array = (candidates + aggregations) * (length + PROMPT) + aggregations * K * SHOWN
    return found


def difficulties(kind: str) -> tuple[Array, Array]:
    """A grid of q [GRID] and their weights, which sum to 1."""
    a, b = KINDS[kind]
    q = (np.arange(GRID) + 0.5) / GRID
    weights = q ** (a - 1) * (1 - q) ** (b - 1)
    return q, weights / weights.sum()


def main() -> int:
    for kind in KINDS:
        q, weights = difficulties(kind)
        peer, *requests = spent(N, NEVER, q)
        peer_tokens = weights @ tokens(*requests)
        print(json.dumps({"kind": kind, "rsa": round(100 * (weights @ peer), 2)}))
        for start in STARTS:
            for confidence in CONFIDENCES:
                own, *requests = spent(start, confidence, q)
                found = {
                    "kind": kind,
                    "start": start,
                    "confidence": confidence,
                    "difference": round(100 * (weights @ (own - peer)), 2),
                    "tokens": round(peer_tokens / (weights @ tokens(*requests)), 2),
                }
                print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
