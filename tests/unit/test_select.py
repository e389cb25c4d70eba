"""How a final pool becomes one answer."""

from __future__ import annotations

import random
from collections import Counter

from paragator.core.select import first, majority


def test_first_skips_missing_answers() -> None:
    assert first([None, "8", "7"]) == 1
    assert first([None, None]) is None
    assert first([]) is None


def test_majority_takes_the_most_frequent_answer() -> None:
    assert majority(["7", "8", "8"], random.Random(0)) == 1
    assert majority([None, None, None, "7"], random.Random(0)) == 3
    assert majority([None], random.Random(0)) is None
    assert majority([], random.Random(0)) is None


def test_ties_are_broken_by_the_generator_evenly() -> None:
    rng = random.Random(0)
    chosen = Counter(majority(["7", "8", "9", "8", "7"], rng) for _ in range(2000))
    assert set(chosen) == {0, 1}
    assert 900 < chosen[0] < 1100


def test_a_tie_does_not_depend_on_the_order_of_the_pool() -> None:
    answers = ["7", "8", "9"]
    for seed in range(20):
        index, mirrored = majority(answers, random.Random(seed)), majority(answers[::-1], random.Random(seed))
        assert index is not None
        assert mirrored is not None
        assert answers[index] == answers[::-1][mirrored]
