"""Credit: the rewards of one group in, the advantage of each rollout out. One function a scheme, no trainer in sight.

    pass_at_1   is this rollout better than its group?                    Dr.GRPO (arXiv 2503.20783)
    pass_at_k   does it help that one of k is right? Binary rewards.      Chen et al. (arXiv 2508.10751)
    max_at_k    does it help the best of k? Any finite rewards.           PKPO (arXiv 2505.15201), MaxPO (arXiv 2606.06080)
    max_rl      the same as pass_at_1, more where few are right           MaxRL (arXiv 2602.02710)
    spiral      do the pools do better that hold it?                      SPIRAL (arXiv 2606.23595)

    outcome     not a credit but rewards for one: how well do aggregations do that saw it?

Common to all credits: `rewards` [G] belong to rollouts of ONE prompt, and the result is a list of the same length. None marks
an unscored rollout: it gets 0 and leaves the group's statistics. A group without signal gets exactly 0, not rounding
noise, because an optimiser such as Adam would blow that noise up to a full step. UsageError for a reward that is NaN
or infinite, for k below 1, and for a list shorter than k; k or fewer rollouts left by grading give zeros.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal

from paragator.core.errors import UsageError

Mean = Literal["subset", "reward"]
Scale = Literal["std"] | None


def pass_at_1(rewards: Sequence[float | None], *, scale: Scale = None) -> list[float]:
    """Reward minus the group's mean (Dr.GRPO); `scale="std"` divides by the population deviation (plain GRPO)."""
    check_choice("scale", scale, (None, "std"))
    scored = scored_rewards(rewards)
    if not scored or min(scored) == max(scored):
        return [0.0] * len(rewards)
    mean = math.fsum(scored) / len(scored)
    sigma = math.sqrt(math.fsum((r - mean) ** 2 for r in scored) / len(scored)) if scale else 1.0
    return [0.0 if r is None or sigma == 0.0 else (r - mean) / sigma for r in rewards]


def pass_at_k(rewards: Sequence[float | None], k: int, *, mean: Mean = "subset", scale: Scale = None) -> list[float]:
    """The mean pass@k of the k-subsets that hold a rollout, minus a group mean (Chen et al., analytical form).

    With N rollouts, n of them wrong, Rg = 1 - C(n,k)/C(N,k) and off = C(n-1,k-1)/C(N-1,k-1): a right rollout gets
    1 - mu, a wrong one 1 - mu - off. `mean="subset"` takes mu = Rg: the group sums to 0 and the expected gradient is
    (N-k)/(Nk) grad pass@k. `mean="reward"`, an ablation that warns, takes mu = (N-n)/N: it then credits every wrong
    rollout of a mixed group (k > 1) and follows 1/k grad pass@k - 1/N grad pass@1. `scale="std"` divides by
    sqrt(Rg(1-Rg)), the deviation of a subset's reward; 0 where that is 0. Rewards other than 0 and 1 are a UsageError.
    """
    check_choice("mean", mean, ("subset", "reward"))
    check_choice("scale", scale, (None, "std"))
    if mean == "reward":
        warnings.warn("pass_at_k with mean='reward' is an ablation: it pushes pass@1 down", stacklevel=2)
    check_k(rewards, k)
    scored = scored_rewards(rewards)
    for reward in scored:
        if reward not in (0, 1):
            raise UsageError(f"reward {reward!r}: pass_at_k needs 0 or 1, use max_at_k for other rewards")
    total, wrong = len(scored), scored.count(0)
    if total <= k:
        return [0.0] * len(rewards)
    none_right = math.comb(wrong, k) / math.comb(total, k)
    off = math.comb(wrong - 1, k - 1) / math.comb(total - 1, k - 1) if wrong else 0.0
    sigma = math.sqrt(none_right * (1.0 - none_right)) if scale else 1.0
    if sigma == 0.0:
        return [0.0] * len(rewards)
    right = none_right if mean == "subset" else wrong / total
    return [0.0 if r is None else (right if r else right - off) / sigma for r in rewards]


def max_at_k(rewards: Sequence[float | None], k: int) -> list[float]:
    """The mean maximum of the k-subsets that hold a rollout, minus the mean maximum of all k-subsets (PKPO, centred).

    On rewards of 0 and 1 this is pass_at_k with its subset mean. In ascending order r_0..r_{N-1}, of the subsets that
    hold rank i, C(i,k-1) have their maximum at i and C(j-1,k-2) at each j > i; of all subsets, C(j,k-1) have it at j.
    O(N log N). Rewards are taken relative to the largest, which changes no credit and makes "no signal" exactly 0.
    """
    check_k(rewards, k)
    scored = scored_rewards(rewards)
    total = len(scored)
    if total <= k:
        return [0.0] * len(rewards)
    ranked = sorted(scored)
    below_top = [r - ranked[-1] for r in ranked]
    overall = math.fsum(r * (math.comb(j, k - 1) / math.comb(total, k)) for j, r in enumerate(below_top))
    holding = math.comb(total - 1, k - 1)
    credits: dict[float, float] = {}
    above = 0.0
    for i in reversed(range(total)):
        own = below_top[i] * (math.comb(i, k - 1) / holding)
        credits.setdefault(ranked[i], own + above - overall)
        if k > 1 and i > 0:
            above += below_top[i] * (math.comb(i - 1, k - 2) / holding)
    return [0.0 if r is None else credits[r] for r in rewards]


def max_rl(rewards: Sequence[float | None]) -> list[float]:
    """(reward - mean) / mean of the group, 0 where the mean is 0 (MaxRL); rewards below 0 are a UsageError.

    For rewards of 0 and 1 the expected gradient of N rollouts is that of the sum of pass@k / k over k = 1 ... N-1: there is no k
    to choose, and a problem that is seldom solved weighs more.
    """
    scored = scored_rewards(rewards)
    if negative := [reward for reward in scored if reward < 0]:
        raise UsageError(f"reward {negative[0]!r}: max_rl divides by the mean, so rewards must not be below 0")
    if not scored or min(scored) == max(scored):
        return [0.0] * len(rewards)
    mean = math.fsum(scored) / len(scored)
    return [0.0 if r is None else (r - mean) / mean for r in rewards]


def spiral(count: int, pools: Sequence[Sequence[int]], rewards: Sequence[Sequence[float | None]]) -> list[float]:
    """The mean score of the pools that hold a candidate minus the mean over all pools, for each of `count` (SPIRAL).

    A pool's score is the mean reward of its aggregations; one without any is left out. A candidate that no scored pool holds
    gets 0. `outcome` differs in its baseline, the mean over candidates: here a candidate is compared with pools,
    so the credit does not sum to 0 where candidates are in unequally many.
    """
    scored = ((pool, scored_rewards(own)) for pool, own in zip(pools, rewards, strict=True))
    scores = [(pool, math.fsum(found) / len(found)) for pool, found in scored if found]
    known = [score for _, score in scores]
    if not known or min(known) == max(known):
        return [0.0] * count
    overall = math.fsum(known) / len(known)
    holding: list[list[float]] = [[] for _ in range(count)]
    for pool, score in scores:
        for i in pool:
            holding[i].append(score)
    return [math.fsum(found) / len(found) - overall if found else 0.0 for found in holding]


def outcome(
    count: int, pools: Sequence[Sequence[int]], rewards: Sequence[Sequence[float | None]]
) -> list[float | None]:
    """The mean reward of the aggregations whose pool holds a candidate, for each of `count`; None where none was scored.

    `pools` are indices of candidates, `rewards` those of each pool's aggregations. Several different pools are needed:
    where all see the same, every candidate in it gets the same.
    """
    seen: list[list[float]] = [[] for _ in range(count)]
    for pool, found in zip(pools, rewards, strict=True):
        for i in pool:
            seen[i] += scored_rewards(found)
    return [math.fsum(found) / len(found) if found else None for found in seen]


def scored_rewards(rewards: Sequence[float | None]) -> list[float]:
    """The rewards that are not None; UsageError when one is not a finite number."""
    scored = [r for r in rewards if r is not None]
    for reward in scored:
        if not math.isfinite(reward):
            raise UsageError(f"reward {reward!r}: return a finite number, or None for an unscored rollout")
    return scored


def check_k(rewards: Sequence[float | None], k: int) -> None:
    """UsageError unless 1 <= k <= the number of rollouts, scored or not."""
    if k < 1:
        raise UsageError(f"k = {k}: at least 1 is needed")
    if len(rewards) < k:
        raise UsageError(f"k = {k} with {len(rewards)} rollouts: sample more than k rollouts a group")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """UsageError unless `value` is one of `choices`."""
    if value not in choices:
        raise UsageError(f"{name} = {value!r}: use one of {', '.join(map(repr, choices))}")
