"""Unbiased pass@k and maj@k, means and pool diagnostics of graded samples. What was not scored is NaN or left out, never 0."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from paragator.core.errors import UsageError

NAN = math.nan


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the bounds of its confidence interval; NaN where nothing could be measured."""

    mean: float
    low: float
    high: float


def mean(values: Iterable[float | None]) -> float:
    """The mean of what was scored: None and NaN are left out; NaN when nothing remains."""
    scored = [v for v in values if v is not None and not math.isnan(v)]
    return math.fsum(scored) / len(scored) if scored else NAN


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The unbiased pass@k of one problem, 1 - C(n-c,k)/C(n,k) (Chen et al. 2021, arXiv 2107.03374, equation 1).

    NaN when there are fewer than k samples: no unbiased estimate exists. UsageError for k < 1 or an impossible count.
    """
    if k < 1:
        raise UsageError(f"k = {k}: at least 1 is needed")
    if not 0 <= num_correct <= num_samples:
        raise UsageError(f"num_correct = {num_correct}: give a count from 0 to num_samples = {num_samples}")
    if num_samples < k:
        return NAN
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def all_of_k(num_samples: int, num_correct: int, k: int) -> float:
    """pass^k: how likely k samples are all right, C(c,k)/C(n,k), unbiased (tau-bench, arXiv 2406.12045).

    NaN when there are fewer than k samples. UsageError for k < 1 or an impossible count.
    """
    missed = pass_at_k(num_samples, num_samples - num_correct, k)
    return 1.0 - missed


def majority_at_k(answers: Sequence[str | None], rewards: Sequence[float | None], k: int) -> float:
    """The expected reward of the most frequent answer among k of the samples, drawn without replacement.

    Exact over all k-subsets; each of t tied answers wins 1/t of a subset. Equal answers form a class, whose reward is
    the mean of its scored members. A missing answer (None) never votes; where none of the k answered, the class of
    the missing ones is the outcome. An outcome whose class has no scored member is left out of the expectation. NaN
    when nothing is scored or there are fewer than k samples. UsageError for k < 1 or lists of different lengths.
    Takes time in proportion to samples times k squared, but for k of all samples, which is quick.
    """
    if k < 1:
        raise UsageError(f"k = {k}: at least 1 is needed")
    if len(answers) != len(rewards):
        raise UsageError(f"{len(answers)} answers with {len(rewards)} rewards: give one reward (or None) an answer")
    if len(answers) < k:
        return NAN
    counts = Counter(answers)
    of_class = {a: mean(r for answer, r in zip(answers, rewards, strict=True) if answer == a) for a in counts}
    missing = counts.pop(None, 0)
    most = max(counts.values(), default=0)
    if k == len(answers):
        return mean(of_class[a] for a in counts if counts[a] == most) if counts else of_class[None]
    classes = [(count, of_class[answer]) for answer, count in counts.items()]
    reward = weight = 0.0
    for votes in range(1, min(most, k) + 1):
        won = winners_with(votes, classes, len(answers), k)
        reward, weight = reward + won[0], weight + won[1]
    if missing >= k and not math.isnan(of_class[None]):
        alone = odds(missing, k, len(answers))[k] * odds(len(answers) - missing, k, len(answers))[0]
        reward, weight = reward + alone * of_class[None], weight + alone
    return reward / weight if weight else NAN


def winners_with(votes: int, classes: list[tuple[int, float]], total: int, k: int) -> tuple[float, float]:
    """Sum over the k-subsets whose top answers have exactly `votes` votes: (mean reward of the tied, share scored).

    `classes` holds (count, reward), reward NaN where unscored; `total` counts the missing answers too. Subsets are
    weighted by `odds`. Dynamic programming over the classes that can have so many votes; a state is (samples taken,
    classes at `votes`) and carries the weight of its ways, and over them the tied classes' rewards and scored count.
    """
    rivals = [(count, reward) for count, reward in classes if count >= votes]
    states = {(0, 0): (1.0, 0.0, 0.0)}
    for count, reward in rivals:
        value, scored = (0.0, 0.0) if math.isnan(reward) else (reward, 1.0)
        weights = odds(count, k, total)
        grown: dict[tuple[int, int], tuple[float, float, float]] = {}
        for (taken, tied), (ways, rewards, scores) in states.items():
            for own in range(min(votes, k - taken) + 1):
                top = own == votes
                state = (taken + own, tied + top)
                old = grown.get(state, (0.0, 0.0, 0.0))
                grown[state] = (
                    old[0] + weights[own] * ways,
                    old[1] + weights[own] * (rewards + ways * value * top),
                    old[2] + weights[own] * (scores + ways * scored * top),
                )
        states = grown
    others = odds(total - sum(count for count, _ in rivals), k, total)
    reward, share = 0.0, 0.0
    for (taken, tied), (_, rewards, scores) in states.items():
        if tied and k - taken < len(others):
            weight = others[k - taken] / tied
            reward, share = reward + weight * rewards, share + weight * scores
    return reward, share


@lru_cache(maxsize=4096)
def odds(count: int, k: int, total: int) -> tuple[float, ...]:
    """How likely 0, 1, ... k of `count` samples are drawn when each is on its own, with a chance of k/total.

    Given that k are drawn of all, every k-subset is as likely as another: these weigh subsets as C(count, own) does, and
    are within the range of floats.
    """
    shares = range(min(count, k) + 1)
    return tuple(math.comb(count, own) * k**own * (total - k) ** (count - own) / total**count for own in shares)


def parts_at_k(parts: Sequence[Sequence[float]], k: int) -> float:
    """How likely every part is right somewhere in a random k-subset of the samples; `parts[i]` are 1 or 0, part by part.

    Exact, by inclusion and exclusion over sets of parts that nobody of the subset has right. At least pass@k, and what
    combining could reach; NaN with fewer than k samples, or where there are no parts.
    """
    total, count = len(parts), len(parts[0]) if parts else 0
    if total < k or not count:
        return NAN
    share = 0.0
    for missed in itertools.product((False, True), repeat=count):
        wrong = sum(all(not right for right, out in zip(own, missed, strict=True) if out) for own in parts)
        share += (-1) ** sum(missed) * math.comb(wrong, k) / math.comb(total, k)
    return share


def part_vote(answers: Sequence[Sequence[str]], parts: Sequence[Sequence[float]]) -> float:
    """How likely every part's most frequent answer among all samples is right; of tied answers each is as likely. NaN without parts.

    `answers[i]` are a sample's answers, part by part, "" for one that is missing and does not vote.
    """
    share = 1.0 if parts and parts[0] else NAN
    for column, right in zip(zip(*answers, strict=True), zip(*parts, strict=True), strict=True):
        votes = Counter(answer for answer in column if answer)
        top = {answer for answer, count in votes.items() if count == max(votes.values())}
        share *= (
            mean(max(r for a, r in zip(column, right, strict=True) if a == answer) for answer in top) if top else 0.0
        )
    return share


def pool_diagnostics(
    *,
    pool_answers: Sequence[str | None],
    pool_right: Sequence[float | None],
    pool_texts: Sequence[str],
    aggregation_right: Sequence[float | None],
    aggregation_texts: Sequence[str],
) -> dict[str, float]:
    """What one pool, as shown, offered and what its aggregations made of it; texts without thinking.

    Right is a verdict as a number: 1 correct, 0 incorrect, None unscored.
    NaN where not defined (of an empty pool all) or not scored; average with `mean`, which leaves NaN out.

    distinct_answers  different answers in the pool; a missing one is none
    pool_has_correct  1 when a right candidate was shown, 0 when all were wrong
    recovery          of the aggregations of an all-wrong pool, the share that is right
    destruction       of the aggregations of a pool with a right candidate, the share that is wrong
    majority_lost     of the aggregations of a pool of which more than half is right, the share that is wrong
    copy_rate         share of aggregations whose text, but for white space, is a pool text
    """
    known = [r for r in pool_right if r is not None]
    has_correct = 1.0 if any(known) else 0.0 if known and len(known) == len(pool_right) else NAN
    majority = 2 * sum(known) > len(pool_right)
    right = mean(aggregation_right)
    pool = {" ".join(text.split()) for text in pool_texts} - {""}
    copied = (float(" ".join(text.split()) in pool) for text in aggregation_texts)
    return {
        "distinct_answers": float(len({a for a in pool_answers if a is not None})) if pool_answers else NAN,
        "pool_has_correct": has_correct,
        "recovery": right if has_correct == 0.0 else NAN,
        "destruction": 1.0 - right if has_correct == 1.0 else NAN,
        "majority_lost": 1.0 - right if majority else NAN,
        "copy_rate": mean(copied) if pool_texts else NAN,
    }
