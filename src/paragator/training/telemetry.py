"""What a step reports: rewards, dead groups, truncation and pools per stage, and where its seconds went."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean

from paragator.core.estimators import pass_at_k
from paragator.records import Graded
from paragator.training.credited import credits
from paragator.training.recipe import Crediting

PARTS = ("generate", "aggregate", "update", "grade")
"""What a step does, in the order in which parts that coincide are named; see `Timeline`."""


def summary(records: Sequence[Graded], crediting: Crediting) -> dict[str, float]:
    """Rewards, dead zones, truncation and pool health of a step, per stage."""
    out: dict[str, float] = {}
    zero: dict[str, list[bool]] = {}
    for record in records:
        for round_, group, credit in credits(record, crediting):
            if group.completions:
                zero.setdefault(round_name(round_), []).append(not any(credit))
    for round_ in range(max((r.num_rounds for r in records), default=0)):
        name = round_name(round_)
        out |= stage_summary([r for r in records if r.num_rounds > round_], round_, name)
        if name in zero:
            out[f"{name}/zero_credit"] = fmean(zero[name])
    k = min(crediting.settings.k, crediting.candidates)
    first = [[x for x in r.right(0) if x is not None] for r in records]
    found = [pass_at_k(len(right), int(sum(right)), k) for right in first if len(right) >= k]
    if found:
        out["generate/pass_at_k"] = fmean(found)
    shown = [[r.right(0)[i] for i in g.pool] for r in records if r.num_rounds > 1 for g in r.trace.rounds[1]]
    if shown:
        out["pool/has_correct"] = fmean(any(pool) for pool in shown)
    solutions = [c for r in records for t in range(r.num_rounds) for c in r.trace.population(t)]
    return {**out, "tokens": float(sum(len(c.token_ids or ()) for c in solutions))}


def round_name(round_: int) -> str:
    """What a round's metrics are called: generate, aggregate, and aggregate2, ... where training has further rounds."""
    return "generate" if round_ == 0 else "aggregate" if round_ == 1 else f"aggregate{round_}"


WITHOUT_SIGNAL = {
    "failed": "every rollout failed",
    "unscored": "no rollout is scored",
    "truncated": "every rollout was cut at max_tokens",
    "zero_credit": "in every group the rewards are alike, or fewer than k are wrong under pass@k",
}
"""What a share of 1 means for a stage, the first cause first."""


def why_idle(metrics: Mapping[str, float]) -> str:
    """Why a step changed no weight: for each stage that is trained, or that failed, in words."""
    stages = [key.partition("/")[0] for key in metrics if key.endswith("/failed")]
    parts = []
    for stage in stages:
        if f"{stage}/zero_credit" in metrics or metrics[f"{stage}/failed"] == 1:
            whys = (what for key, what in WITHOUT_SIGNAL.items() if metrics.get(f"{stage}/{key}") == 1)
            parts.append(f"{stage}: {next(whys, 'no rollout that may be trained on has credit')}")
    return "; ".join(parts) or "no problem was rolled out"


def stage_summary(records: Sequence[Graded], round_: int, stage: str) -> dict[str, float]:
    """Mean reward and the shares truncated, unscored and failed of one stage; nothing where nothing was sampled."""
    asked = sum(len(group.outputs) for r in records for group in r.trace.rounds[round_])
    solutions = [c for r in records for c in r.trace.population(round_)]
    rewards = [reward for r in records for reward in r.rewards(round_)]
    if not asked:
        return {}
    out = {f"{stage}/failed": 1 - len(solutions) / asked}
    if not solutions:
        return out
    scored = [reward for reward in rewards if reward is not None]
    if scored:
        out[f"{stage}/reward"] = fmean(scored)
    out[f"{stage}/truncated"] = fmean(c.finish_reason == "length" for c in solutions)
    out[f"{stage}/unscored"] = 1 - len(scored) / len(rewards)
    return out


class Timeline:
    """Where a step's seconds went: every instant belongs to one part.

    While both stages are in flight it is "both"; grading counts only where nothing is being sampled; "idle" is the rest.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now, self.start = now, now()
        self.last = self.start
        self.active: Counter[str] = Counter()
        self.parts: dict[str, float] = {}

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """`part` is under way inside the block; blocks may overlap."""
        self.charge()
        self.active[part] += 1
        try:
            yield
        finally:
            self.charge()
            self.active[part] -= 1

    def charge(self) -> None:
        """Give the time since the last change to what was under way."""
        on = +self.active
        part = "both" if "generate" in on and "aggregate" in on else next((p for p in PARTS if p in on), "idle")
        at = self.now()
        self.parts[part] = self.parts.get(part, 0.0) + at - self.last
        self.last = at

    def seconds(self) -> dict[str, float]:
        """seconds/PART for each part, and their sum."""
        self.charge()
        return {**{f"seconds/{part}": spent for part, spent in self.parts.items()}, "seconds": self.last - self.start}


def added(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """The seconds of two timelines."""
    return {name: first.get(name, 0.0) + second.get(name, 0.0) for name in (*first, *second)}
