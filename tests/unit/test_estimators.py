"""Estimators against brute force, and intervals against what is known of them."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paragator.core.errors import UsageError
from paragator.core.estimators import (
    majority_at_k,
    mean,
    pass_at_k,
    pool_diagnostics,
)

NAN = math.nan
samples = st.lists(
    st.tuples(st.sampled_from(["1", "2", "3", "4", None]), st.sampled_from([0.0, 1.0, 0.5, None])),
    min_size=1,
    max_size=8,
)


def test_mean_leaves_the_unscored_out() -> None:
    assert mean([1.0, None, 0.0, NAN, 0.0]) == pytest.approx(1 / 3)
    assert math.isnan(mean([None, NAN]))
    assert math.isnan(mean([]))


def test_pass_at_k_equals_brute_force() -> None:
    for total in range(1, 9):
        for correct in range(total + 1):
            for k in range(1, total + 1):
                subsets = list(itertools.combinations([1] * correct + [0] * (total - correct), k))
                assert pass_at_k(total, correct, k) == pytest.approx(sum(map(max, subsets)) / len(subsets), abs=1e-15)


def test_pass_at_k_without_enough_samples_is_unknown() -> None:
    assert math.isnan(pass_at_k(3, 1, 4))
    assert math.isnan(pass_at_k(0, 0, 1))


# ---- majority ------------------------------------------------------------------------------------------------------


def brute_majority(answers: list[str | None], rewards: list[float | None], k: int) -> float:
    """Every subset, every tied winner, by the words of the docstring."""
    of_class = {a: mean(r for b, r in zip(answers, rewards, strict=True) if b == a) for a in answers}
    total = weight = 0.0
    for subset in itertools.combinations(answers, k):
        votes = Counter(a for a in subset if a is not None) or Counter([None])
        winners = [a for a in votes if votes[a] == max(votes.values())]
        for winner in winners:
            if not math.isnan(of_class[winner]):
                total, weight = total + of_class[winner] / len(winners), weight + 1 / len(winners)
    return total / weight if weight else NAN


@settings(deadline=None, max_examples=150)
@given(samples, st.integers(1, 8), st.randoms(use_true_random=False))
def test_majority_equals_brute_force_in_any_order(
    graded: list[tuple[str | None, float | None]], k: int, rng: random.Random
) -> None:
    answers, rewards = [a for a, _ in graded], [r for _, r in graded]
    found = majority_at_k(answers, rewards, k)
    if k > len(graded):
        assert math.isnan(found)
        return
    assert found == pytest.approx(brute_majority(answers, rewards, k), abs=1e-12, nan_ok=True)
    rng.shuffle(graded)
    shuffled = majority_at_k([a for a, _ in graded], [r for _, r in graded], k)
    assert shuffled == pytest.approx(found, abs=1e-12, nan_ok=True)


def test_majority_ties_count_in_expectation() -> None:
    assert majority_at_k(["7", "8"], [1.0, 0.0], 2) == 0.5
    assert majority_at_k(["8", "7"], [0.0, 1.0], 2) == 0.5
    assert majority_at_k(["7", "8", "9"], [1.0, 0.0, 0.0], 3) == pytest.approx(1 / 3)
    assert majority_at_k(["7", "7", "8", "9"], [1.0, 1.0, 0.0, 0.0], 4) == 1.0


def test_a_missing_answer_is_no_vote() -> None:
    assert majority_at_k([None, None, None], [1.0, 0.0, 0.5], 2) == 0.5
    assert majority_at_k([None, None, None, "7"], [0.0, 0.0, 0.0, 1.0], 4) == 1.0
    assert majority_at_k([None, "7"], [0.0, 1.0], 1) == 0.5
    assert majority_at_k([None, None], [0.0, 0.0], 2) == 0.0


def test_majority_of_one_is_the_mean_reward() -> None:
    assert majority_at_k(["1", "2", "2", None], [1.0, 0.0, 0.0, 0.0], 1) == 0.25


def test_unscored_answers_vote_and_an_unscored_outcome_is_left_out() -> None:
    assert majority_at_k(["7", "7", "8"], [1.0, None, 0.0], 3) == 1.0
    assert majority_at_k(["7", "8"], [1.0, None], 1) == 1.0
    assert math.isnan(majority_at_k(["7", "7", "8"], [None, None, 0.0], 3))
    assert math.isnan(majority_at_k(["7", None], [None, None], 1))


def test_majority_of_many_samples_is_quick_and_sensible() -> None:
    rng = random.Random(0)
    answers = [str(rng.choice([1, 1, 1, 2, 3, 4, 5])) for _ in range(32)]
    rewards: list[float | None] = [float(a == "1") for a in answers]
    found = [majority_at_k(answers, rewards, k) for k in (1, 4, 16, 32)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(mean(rewards))
    assert found[-1] == 1.0
    draws = (rng.sample(range(32), 4) for _ in range(20000))
    wins = (tie_share([answers[i] for i in drawn], "1") for drawn in draws)
    assert found[1] == pytest.approx(mean(wins), abs=0.015)


def test_majority_of_all_of_many_samples_is_quick() -> None:
    answers: list[str | None] = [*(str(i % 12) for i in range(252)), *[None] * 4]  # 21 of each: all twelve tie
    rewards: list[float | None] = [None if a == "11" else float(a == "3") for a in answers]
    start = time.process_time()
    assert majority_at_k(answers, rewards, 256) == pytest.approx(1 / 11)
    assert time.process_time() - start < 1


def test_majority_of_more_subsets_than_a_float_can_count() -> None:
    answers: list[str | None] = [*["7"] * 5, *["8"] * 5, *[None] * 1290]
    rewards: list[float | None] = [1.0] * 5 + [0.0] * 1295
    nobody = math.comb(1290, 650) / math.comb(1300, 650)
    assert majority_at_k(answers, rewards, 650) == pytest.approx((1 - nobody) / 2, rel=1e-12)


def tie_share(votes: list[str], answer: str) -> float:
    counts = Counter(votes)
    winners = [a for a in counts if counts[a] == max(counts.values())]
    return (answer in winners) / len(winners)


# ---- pools ---------------------------------------------------------------------------------------------------------


def test_diagnostics_of_an_all_wrong_pool() -> None:
    found = pool_diagnostics(
        pool_answers=["1", "2", None, "2"],
        pool_right=[0.0, 0.0, 0.0, 0.0],
        pool_texts=["so 1", "so 2", "", "thus 2"],
        aggregation_right=[1.0, 0.0, None, 0.0],
        aggregation_texts=["new", " so\n2 ", "thus 2", ""],
    )
    assert found["distinct_answers"] == 2
    assert found["pool_has_correct"] == 0
    assert found["recovery"] == pytest.approx(1 / 3)
    assert math.isnan(found["destruction"])
    assert found["copy_rate"] == 0.5


def test_diagnostics_of_a_pool_with_a_right_candidate() -> None:
    found = pool_diagnostics(
        pool_answers=["1", "2"],
        pool_right=[1.0, None],
        pool_texts=["a", "b"],
        aggregation_right=[1.0, 0.0, 0.0, None],
        aggregation_texts=["c"],
    )
    assert found["pool_has_correct"] == 1
    assert math.isnan(found["recovery"])
    assert found["destruction"] == pytest.approx(2 / 3)
    assert math.isnan(found["majority_lost"])  # one right of two, the other unscored
    assert found["copy_rate"] == 0


def test_a_majority_is_more_than_half_of_all_members() -> None:
    for rewards, expected in (([1.0, 1.0, 0.0], 0.5), ([1.0, 1.0, None], 0.5), ([1.0, 0.0], NAN), ([0.0], NAN)):
        found = pool_diagnostics(
            pool_answers=["1"] * len(rewards),
            pool_right=rewards,
            pool_texts=[],
            aggregation_right=[1.0, 0.0, None],
            aggregation_texts=[],
        )
        assert found["majority_lost"] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("rewards", [[None, 0.0], [None], []])
def test_a_pool_that_might_hold_a_right_candidate_is_unknown(rewards: list[float | None]) -> None:
    found = pool_diagnostics(
        pool_answers=[],
        pool_right=rewards,
        pool_texts=[],
        aggregation_right=[1.0],
        aggregation_texts=[],
    )
    assert all(
        map(math.isnan, (found["pool_has_correct"], found["recovery"], found["destruction"], found["copy_rate"]))
    )


def test_a_pool_that_showed_nothing_is_not_measured() -> None:
    found = pool_diagnostics(
        pool_answers=[],
        pool_right=[],
        pool_texts=[],
        aggregation_right=[1.0],
        aggregation_texts=["new"],
    )
    assert math.isnan(found["distinct_answers"]) and math.isnan(found["copy_rate"])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: pass_at_k(4, 1, 0), "k = 0"),
        (lambda: pass_at_k(4, 5, 1), "num_correct = 5"),
        (lambda: pass_at_k(4, -1, 1), "num_correct = -1"),
        (lambda: majority_at_k(["1"], [1.0], 0), "k = 0"),
        (lambda: majority_at_k(["1", "2"], [1.0], 1), "2 answers with 1 rewards"),
    ],
)
def test_wrong_input_says_what_and_what_to_do(call: Callable[[], object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        call()
