"""Every fact that the method's credit rests on, in exact arithmetic where it can be."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paragator.core.credit import max_at_k, max_rl, outcome, pass_at_1, pass_at_k, spiral
from paragator.core.errors import UsageError

quick = settings(deadline=None, max_examples=80)
binary = st.lists(st.sampled_from([0.0, 1.0, None]), min_size=1, max_size=12)
finite = st.one_of(st.none(), st.floats(-10, 10), st.sampled_from([0.0, 0.5, 1.0]))
continuous = st.lists(finite, min_size=1, max_size=12)


def reward_mean(rewards: Sequence[float | None], k: int, **options: str) -> list[float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pass_at_k(rewards, k, mean="reward", **options)  # type: ignore[arg-type]


def brute_force(rewards: Sequence[float], k: int) -> list[Fraction]:
    """Mean maximum over the k-subsets that hold i, minus the mean maximum over all."""
    everyone = range(len(rewards))
    best = {s: Fraction(max(rewards[i] for i in s)) for s in itertools.combinations(everyone, k)}
    overall = sum(best.values()) / len(best)
    return [mean_of([value for s, value in best.items() if i in s]) - overall for i in everyone]


def mean_of(values: list[Fraction]) -> Fraction:
    return sum(values, Fraction(0)) / len(values)


def group(total: int, wrong: int) -> list[float]:
    return [0.0] * wrong + [1.0] * (total - wrong)


SIZES = [(total, k, wrong) for total in range(1, 11) for k in range(1, total + 1) for wrong in range(total + 1)]


def test_pass_at_k_equals_brute_force_for_every_group_up_to_ten() -> None:
    for total, k, wrong in SIZES:
        rewards = group(total, wrong)
        exact = [float(a) for a in brute_force(rewards, k)]
        assert pass_at_k(rewards, k) == pytest.approx(exact, abs=1e-14), (total, k, wrong)
        assert max_at_k(rewards, k) == pytest.approx(exact, abs=1e-14), (total, k, wrong)


def test_reward_mean_is_brute_force_less_the_plain_mean() -> None:
    for total, k, wrong in SIZES:
        if total == k:
            continue
        rewards = group(total, wrong)
        overall = 1 - Fraction(math.comb(wrong, k), math.comb(total, k))
        exact = [float(a + overall - Fraction(total - wrong, total)) for a in brute_force(rewards, k)]
        assert reward_mean(rewards, k) == pytest.approx(exact, abs=1e-14), (total, k, wrong)


def test_k_of_one_is_dr_grpo() -> None:
    for total in range(2, 11):
        for wrong in range(total + 1):
            rewards = group(total, wrong)
            dr_grpo = [r - (total - wrong) / total for r in rewards]
            for credit in (pass_at_1(rewards), pass_at_k(rewards, 1), reward_mean(rewards, 1), max_at_k(rewards, 1)):
                assert credit == pytest.approx(dr_grpo, abs=1e-15)


def test_no_signal_is_exactly_zero() -> None:
    for total, k, wrong in SIZES:
        if wrong < k or wrong == total or k == total:
            assert pass_at_k(group(total, wrong), k) == [0.0] * total, (total, k, wrong)
            assert max_at_k(group(total, wrong), k) == [0.0] * total, (total, k, wrong)
        else:
            assert all(pass_at_k(group(total, wrong), k)), (total, k, wrong)
    for equal in (0.1, 0.7, -3.3):
        assert pass_at_1([equal] * 3) == pass_at_1([equal] * 3, scale="std") == max_at_k([equal] * 3, 2) == [0.0] * 3


@pytest.mark.parametrize(
    ("total", "k", "wrong", "right_credit", "wrong_credit"),
    [
        (8, 4, 6, 0.214286, -0.071429),
        (8, 4, 7, 0.5, -0.071429),
        (16, 4, 15, 0.75, -0.05),
        (16, 4, 12, 0.271978, -0.090659),
        (8, 4, 4, 0.014286, -0.014286),
        (8, 4, 3, 0.0, 0.0),
    ],
)
def test_worked_values(total: int, k: int, wrong: int, right_credit: float, wrong_credit: float) -> None:
    for scheme in (pass_at_k, max_at_k):
        credit = scheme(group(total, wrong), k)
        assert credit[-1] == pytest.approx(right_credit, abs=5e-7)
        assert credit[0] == pytest.approx(wrong_credit, abs=5e-7)


def test_plain_mean_credits_every_wrong_rollout_of_a_mixed_group() -> None:
    for total, k, wrong in SIZES:
        if 1 < k < total and 0 < wrong < total:
            assert reward_mean(group(total, wrong), k)[0] > 0, (total, k, wrong)
            assert pass_at_k(group(total, wrong), k)[0] <= 0, (total, k, wrong)


def test_sigma_is_that_of_a_subset_reward() -> None:
    for total, k, wrong in SIZES:
        rewards = group(total, wrong)
        rate = 1 - math.comb(wrong, k) / math.comb(total, k)
        sigma = math.sqrt(rate * (1 - rate))
        for plain, scaled in (
            (pass_at_k(rewards, k), pass_at_k(rewards, k, scale="std")),
            (reward_mean(rewards, k), reward_mean(rewards, k, scale="std")),
        ):
            expected = [a / sigma for a in plain] if sigma else [0.0] * total
            assert scaled == pytest.approx(expected, abs=1e-13), (total, k, wrong)


def test_plain_grpo_divides_by_the_population_deviation() -> None:
    assert pass_at_1([1.0, 0.0, 0.0, 0.0], scale="std") == pytest.approx([3**0.5, *[-(3**-0.5)] * 3])
    assert pass_at_1([0.25, 0.75]) == [-0.25, 0.25]


# ---- expected gradients, exact: enumerate every outcome of a policy -------------------------------------------------


def expected_gradient(
    probs: Sequence[Fraction], right: Sequence[bool], total: int, credit: Callable[[list[float]], list[float]]
) -> list[Fraction]:
    """E[1/N sum_i A_i grad log p(y_i)] of a softmax policy over its outcomes, with respect to the logits."""
    gradient = [Fraction(0)] * len(probs)
    for draws in itertools.product(range(len(probs)), repeat=total):
        chance = math.prod((probs[y] for y in draws), start=Fraction(1))
        credits = credit([float(right[y]) for y in draws])
        for y, advantage in zip(draws, credits, strict=True):
            weight = chance * Fraction(advantage) / total
            for j, p in enumerate(probs):
                gradient[j] += weight * ((j == y) - p)
    return gradient


def pass_at_k_gradient(probs: Sequence[Fraction], right: Sequence[bool], k: int) -> list[Fraction]:
    """grad (1 - (1-p)^k), with p the chance of a right outcome: k (1-p)^(k-1) grad p."""
    p = sum((q for q, ok in zip(probs, right, strict=True) if ok), Fraction(0))
    return [k * (1 - p) ** (k - 1) * q * (ok - p) for q, ok in zip(probs, right, strict=True)]


POLICIES = [
    ((Fraction(1, 5), Fraction(4, 5)), (True, False)),
    ((Fraction(2, 3), Fraction(1, 3)), (True, False)),
    ((Fraction(1, 6), Fraction(1, 2), Fraction(1, 3)), (True, False, False)),
    ((Fraction(1, 10), Fraction(3, 10), Fraction(3, 5)), (True, True, False)),
]


@pytest.mark.parametrize(("probs", "right"), POLICIES)
@pytest.mark.parametrize(("total", "k"), [(2, 1), (4, 1), (4, 2), (5, 3), (5, 4)])
def test_subset_mean_follows_pass_at_k(
    probs: tuple[Fraction, ...], right: tuple[bool, ...], total: int, k: int
) -> None:
    goal = [Fraction(total - k, total * k) * g for g in pass_at_k_gradient(probs, right, k)]
    for scheme in (pass_at_k, max_at_k):
        found = expected_gradient(probs, right, total, lambda r, scheme=scheme: scheme(r, k))  # type: ignore[misc]
        assert [float(g) for g in found] == pytest.approx([float(g) for g in goal], abs=1e-13)


@pytest.mark.parametrize(("probs", "right"), POLICIES)
@pytest.mark.parametrize(("total", "k"), [(4, 2), (5, 3), (5, 4)])
def test_plain_mean_pushes_pass_at_1_down(
    probs: tuple[Fraction, ...], right: tuple[bool, ...], total: int, k: int
) -> None:
    found = expected_gradient(probs, right, total, lambda r: reward_mean(r, k))
    pairs = zip(pass_at_k_gradient(probs, right, k), pass_at_k_gradient(probs, right, 1), strict=True)
    goal = [float(a / k - b / total) for a, b in pairs]
    assert [float(g) for g in found] == pytest.approx(goal, abs=1e-13)


def test_generator_gradient_is_weaker_by_the_stated_factor() -> None:
    probs, right = (Fraction(1, 20), Fraction(19, 20)), (True, False)
    for k, factor in ((4, 0.125), (1, 0.875)):
        found = [0.0, 0.0]
        for c in range(9):  # Bernoulli: only the number of right rollouts matters
            chance = math.comb(8, c) * probs[0] ** c * probs[1] ** (8 - c)
            credit = pass_at_k(group(8, 8 - c), k)
            for advantage, ok in zip(credit, group(8, 8 - c), strict=True):
                for j in range(2):
                    found[j] += float(chance) * advantage / 8 * ((j == 1 - ok) - float(probs[j]))
        goal = [factor * float(g) for g in pass_at_k_gradient(probs, right, k)]
        assert found == pytest.approx(goal, rel=1e-9)


@pytest.mark.parametrize(("probs", "right"), POLICIES)
@pytest.mark.parametrize("total", [2, 3, 5])
def test_max_rl_follows_a_sum_of_pass_at_k_over_k(
    probs: tuple[Fraction, ...], right: tuple[bool, ...], total: int
) -> None:
    terms = [[g / k for g in pass_at_k_gradient(probs, right, k)] for k in range(1, total)]
    goal = [float(sum(column)) for column in zip(*terms, strict=True)]
    assert [float(g) for g in expected_gradient(probs, right, total, max_rl)] == pytest.approx(goal, abs=1e-13)


# ---- properties ----------------------------------------------------------------------------------------------------


@quick
@given(binary, st.integers(1, 6), st.randoms(use_true_random=False))
def test_properties_of_pass_at_k(rewards: list[float | None], k: int, rng: object) -> None:
    if len(rewards) < k:
        return
    check_properties(rewards, lambda r: pass_at_k(r, k), k, rng)
    check_properties(rewards, lambda r: pass_at_k(r, k, scale="std"), k, rng)
    assert max_at_k(rewards, k) == pytest.approx(pass_at_k(rewards, k), abs=1e-13)


@quick
@given(continuous, st.integers(1, 6), st.randoms(use_true_random=False))
def test_properties_of_max_at_k_and_pass_at_1(rewards: list[float | None], k: int, rng: object) -> None:
    check_properties(rewards, pass_at_1, 1, rng)
    check_properties([None if r is None else abs(r) for r in rewards], max_rl, 1, rng)
    if len(rewards) >= k:
        check_properties(rewards, lambda r: max_at_k(r, k), k, rng)


def check_properties(
    rewards: list[float | None], scheme: Callable[[list[float | None]], list[float]], k: int, rng: object
) -> None:
    """One number a rollout; sums to 0; follows a permutation; an unscored rollout gets 0 and changes nobody else."""
    credit = scheme(rewards)
    assert len(credit) == len(rewards)
    assert math.fsum(credit) == pytest.approx(0.0, abs=1e-9)
    order = list(range(len(rewards)))
    rng.shuffle(order)  # type: ignore[attr-defined]
    assert scheme([rewards[i] for i in order]) == pytest.approx([credit[i] for i in order], abs=1e-12)
    scored = [i for i, r in enumerate(rewards) if r is not None]
    assert all(credit[i] == 0.0 for i in range(len(rewards)) if i not in scored)
    alone = scheme([rewards[i] for i in scored]) if len(scored) > k else [0.0] * len(scored)
    assert [credit[i] for i in scored] == alone


@quick
@given(st.lists(st.integers(-8, 8).map(lambda n: n / 4), min_size=2, max_size=8), st.integers(1, 7))
def test_max_at_k_equals_brute_force(rewards: list[float], k: int) -> None:
    if k < len(rewards):
        assert max_at_k(rewards, k) == pytest.approx([float(a) for a in brute_force(rewards, k)], abs=1e-12)


def test_max_at_k_equals_brute_force_for_every_k() -> None:
    rewards = [0.5, -2.0, 0.25, 3.0, 0.5, 1.0, 0.0, 3.0, -1.5]
    for total in range(2, 10):
        for k in range(1, total):
            exact = [float(a) for a in brute_force(rewards[:total], k)]
            assert max_at_k(rewards[:total], k) == pytest.approx(exact, abs=1e-14), (total, k)


def marginal(i: int, rewards: Sequence[float], k: int, left_out: tuple[int, ...] = ()) -> Fraction:
    """What rollout i adds to the maximum of k - 1 others, on average over them."""
    others = [Fraction(r) for j, r in enumerate(rewards) if j != i and j not in left_out]
    own, groups = Fraction(rewards[i]), list(itertools.combinations(others, k - 1))
    return mean_of([max(*group, own) - max(group) if group else own for group in groups])


def test_max_at_k_is_the_centred_leave_two_out_form_times_a_constant() -> None:
    """What i adds, less the mean over all other j of what j adds where i is not there (MaxPO): N/(N-k) times ours."""
    rewards = [0.5, -2.0, 0.25, 3.0, 0.5, 1.0, 0.0]
    for total in range(3, 8):
        everyone = range(total)
        for k in range(1, total - 1):
            own = [marginal(i, rewards[:total], k) for i in everyone]
            without = [mean_of([marginal(j, rewards[:total], k, (i,)) for j in everyone if j != i]) for i in everyone]
            centred = [float(a - b) for a, b in zip(own, without, strict=True)]
            ours = [total / (total - k) * a for a in max_at_k(rewards[:total], k)]
            assert ours == pytest.approx(centred, abs=1e-13), (total, k)


def test_max_at_k_of_a_large_group_stays_finite() -> None:
    credit = max_at_k([i / 2000 for i in range(2000)], 1000)
    assert all(map(math.isfinite, credit))
    assert math.fsum(credit) == pytest.approx(0.0, abs=1e-9)


# ---- the edges -----------------------------------------------------------------------------------------------------


def test_unscored_rollouts_leave_the_statistics() -> None:
    assert pass_at_1([1.0, None, 0.0]) == [0.5, 0.0, -0.5]
    assert pass_at_k([None, *group(8, 6)], 4) == [0.0, *pass_at_k(group(8, 6), 4)]
    assert pass_at_k([1.0, 0.0, 0.0, None], 3) == [0.0] * 4
    assert reward_mean([1.0, 0.0, 0.0, None], 3) == [0.0] * 4
    assert max_at_k([1.0, None, None, None], 3) == [0.0] * 4
    assert pass_at_k([None] * 4, 2) == [0.0] * 4
    assert pass_at_1([]) == []


def test_reward_mean_warns_and_the_default_does_not() -> None:
    with pytest.warns(UserWarning, match=r"^pass_at_k with mean='reward' is .* pushes pass@1 down$"):
        pass_at_k(group(4, 2), 2, mean="reward")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pass_at_k(group(4, 2), 2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: pass_at_k([1.0, 0.0], 3), "k = 3 with 2 rollouts"),
        (lambda: max_at_k([1.0, 0.0], 3), "k = 3 with 2 rollouts"),
        (lambda: pass_at_k([None], 2), "k = 2 with 1 rollouts"),
        (lambda: pass_at_k([1.0, 0.0], 0), "k = 0"),
        (lambda: max_at_k([1.0, 0.0], -1), "k = -1"),
        (lambda: pass_at_k([1.0, 0.5, 0.0], 2), "0.5.*max_at_k"),
        (lambda: pass_at_k([1.0, math.nan, 0.0], 2), "nan"),
        (lambda: pass_at_1([1.0, math.nan]), "nan"),
        (lambda: max_at_k([1.0, math.inf, 0.0], 2), "inf"),
        (lambda: pass_at_k([1.0, 0.0], 1, mean="median"), "^mean = 'median'.*'subset', 'reward'"),  # type: ignore[arg-type]
        (lambda: pass_at_k([1.0, 0.0], 1, scale="max"), "^scale = 'max'"),  # type: ignore[arg-type]
        (lambda: pass_at_1([1.0, 0.0], scale="max"), "^scale = 'max'"),  # type: ignore[arg-type]
    ],
)
def test_wrong_input_says_what_and_what_to_do(call: Callable[[], object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        call()


def test_max_rl_is_the_relative_distance_from_the_mean() -> None:
    assert max_rl([1.0, 0.0, 0.0, None, 0.0]) == [3.0, -1.0, -1.0, 0.0, -1.0]
    assert max_rl([0.0, 0.0]) == max_rl([0.7, 0.7]) == max_rl([None, None]) == [0.0, 0.0]
    assert max_rl([1.0, 0.5]) == pytest.approx([1 / 3, -1 / 3])
    with pytest.raises(UsageError, match=r"reward -0\.5: max_rl divides by the mean"):
        max_rl([-0.5, 1.0])


def test_spiral_is_what_pools_with_a_candidate_score_above_all_pools() -> None:
    assert spiral(4, [(0, 1), (1, 2)], [[1, 0, None], [1, 1]]) == [-0.25, 0.0, 0.25, 0.0]
    assert spiral(3, [(0,), (1,)], [[1, 1], [None]]) == [0.0, 0.0, 0.0]  # one scored pool: nothing to compare with
    assert spiral(2, [(0,)], [[None]]) == [0.0, 0.0]
    assert spiral(2, [(0,), (1,)], [[0.1], [0.1]]) == [0.0, 0.0]
    with pytest.raises(ValueError):
        spiral(2, [(0,), (1,)], [[1]])
    pools = list(itertools.combinations(range(5), 2))
    rewards = [[float((a * b) % 3 == 1), float(a % 2)] for a, b in pools]
    scores = [Fraction(sum(map(Fraction, own)), 2) for own in rewards]  # type: ignore[arg-type]
    overall = mean_of(scores)
    exact = [mean_of([s for s, pool in zip(scores, pools, strict=True) if i in pool]) - overall for i in range(5)]
    assert spiral(5, pools, rewards) == pytest.approx([float(a) for a in exact], abs=1e-15)
    assert sum(exact) == 0  # where every candidate is in equally many pools, and so it is `outcome` under pass@1
    centred = pass_at_1(outcome(5, pools, rewards))
    assert spiral(5, pools, rewards) == pytest.approx(centred, abs=1e-15)


def test_outcome_is_the_mean_over_the_pools_that_hold_a_candidate() -> None:
    found = outcome(4, [(0, 1), (1, 2)], [[1, 0, None], [1, 1]])
    assert found == [0.5, 0.75, 1.0, None]
    assert outcome(2, [(0,)], [[None, None]]) == [None, None]
    with pytest.raises(ValueError):
        outcome(2, [(0,), (1,)], [[1]])
    with pytest.raises(UsageError, match="reward nan"):
        outcome(1, [(0,)], [[math.nan]])
