"""Graded traces -> numbers by round with intervals. Problems are resampled, so repeats of a problem stay together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from paragator.core.errors import UsageError
from paragator.core.estimators import (
    Interval,
    PoolDiagnostics,
    bootstrap,
    majority_at_k,
    mean,
    paired_bootstrap,
    pass_at_k,
    pool_diagnostics,
)
from paragator.core.packing import strip_thinking
from paragator.core.types import Completion, Grade
from paragator.records import Graded

Answers = Sequence[str | None]
Rewards = Sequence[float | None]
Measure = Callable[[Answers, Rewards, int], float]


def unbiased_pass(rewards: Rewards, k: int) -> float:
    """pass@k of one trace's round over its scored solutions; NaN when fewer than k are scored."""
    scored = [r for r in rewards if r is not None]
    return pass_at_k(len(scored), int(sum(scored)), k)


MEASURES: Mapping[str, Measure] = {
    "pass_at_1": lambda answers, rewards, k: mean(rewards),
    "pass_at_k": lambda answers, rewards, k: unbiased_pass(rewards, k),
    "maj_at_k": majority_at_k,
}
"""One trace's round -> its value. Rewards are 1 (correct), 0 (incorrect) or None (unscored)."""

HEADINGS = (
    *("round", "pass@1", "pass@{k}", "maj@{k}", "pass@1 - round 0", "tokens", "truncated", "unscored", "failed"),
    *("distinct answers", "right in pool", "all wrong to right", "right to wrong", "copied"),
)


@dataclass(frozen=True, slots=True)
class Round:
    """One round over all problems. Shares are of 1; NaN where nothing could be measured.

    pass_at_1, pass_at_k, maj_at_k  mean over problems with a 95% interval
    gain       pass@1 minus round 0's, paired by problem; all NaN in round 0
    tokens     mean length of a solution; NaN where the engine gave no token ids
    truncated  share of solutions cut at their maximum length
    unscored   share of solutions without a verdict
    failed     share of the solutions asked for that never came, those of rounds that a failed problem missed included
    pool       means over pools, aggregation rounds only: see `PoolDiagnostics`
    """

    round: int
    pass_at_1: Interval
    pass_at_k: Interval
    maj_at_k: Interval
    gain: Interval
    tokens: float
    truncated: float
    unscored: float
    failed: float
    pool: PoolDiagnostics | None


@dataclass(frozen=True, slots=True)
class EvalTable:
    """What an evaluation found: `rounds[0]` is the initial round. `traces` is problems times repeats."""

    k: int
    problems: int
    traces: int
    rounds: tuple[Round, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None for what is NaN, and for an interval without a mean."""
        rows = [{field.name: plain(getattr(row, field.name)) for field in fields(Round)} for row in self.rounds]
        return {"k": self.k, "problems": self.problems, "traces": self.traces, "rounds": rows}

    def rows(self) -> list[list[str]]:
        """Cells to print, headings first; shares in percent, "-" where nothing could be measured."""
        return [[text.format(k=self.k) for text in HEADINGS], *(cells(row) for row in self.rounds)]


def table(records: Sequence[Graded], k: int = 4) -> EvalTable:
    """The numbers of an evaluation. pass@k and maj@k are a trace's own; a problem counts by the mean of its repeats.

    UsageError when there is no record, or k < 1.
    """
    if not records:
        raise UsageError("no records: evaluate at least one problem before asking for its table")
    if k < 1:
        raise UsageError(f"k = {k}: at least 1 is needed")
    count = max(record.num_rounds for record in records)
    initial = by_problem(records, 0, "pass_at_1", k)
    problems = len({record.trace.problem.id for record in records})
    rounds = tuple(summarise(records, round_, k, initial) for round_ in range(count))
    return EvalTable(k, problems, len(records), rounds)


def summarise(records: Sequence[Graded], round_: int, k: int, initial: Mapping[str, list[float]]) -> Round:
    """One row of the table."""
    values = {name: by_problem(records, round_, name, k) for name in MEASURES}
    present = [record for record in records if round_ < record.num_rounds]
    solutions = [pair for record in present for pair in solutions_of(record, round_)]
    asked = sum(num_asked(record, round_) for record in records)
    paired = round_ > 0 and bool(initial.keys() & values["pass_at_1"].keys())
    return Round(
        round=round_,
        **{name: bootstrap(value) for name, value in values.items()},
        gain=paired_bootstrap(initial, values["pass_at_1"]) if paired else Interval(math.nan, math.nan, math.nan),
        tokens=mean(len(s.token_ids) if s.token_ids is not None else None for s, _ in solutions),
        truncated=mean(float(s.finish_reason == "length") for s, _ in solutions),
        unscored=mean(float(grade.verdict == "unscored") for _, grade in solutions),
        failed=1 - len(solutions) / asked if asked else math.nan,
        pool=pools_of(present, round_) if round_ else None,
    )


def by_problem(records: Sequence[Graded], round_: int, measure: str, k: int) -> dict[str, list[float]]:
    """Problem id -> one value a repeat, of a measure in MEASURES; repeats that never reached the round are left out."""
    out: dict[str, list[float]] = {}
    for record in records:
        if round_ < record.num_rounds:
            value = MEASURES[measure](record.answers(round_), verdicts(record, round_), k)
            out.setdefault(record.trace.problem.id, []).append(value)
    return out


def verdicts(record: Graded, round_: int) -> list[float | None]:
    """1, 0 or None (unscored) in population order; a reward function's own values are not accuracy."""
    return [as_reward(grade) for _, grade in solutions_of(record, round_)]


def as_reward(grade: Grade) -> float | None:
    return None if grade.verdict == "unscored" else float(grade.verdict == "correct")


def solutions_of(record: Graded, round_: int) -> list[tuple[Completion, Grade]]:
    """The round's solutions that did not fail, with their grades, in population order."""
    grades = [grade for group in record.grades[round_] for grade in group if grade is not None]
    return list(zip(record.trace.population(round_), grades, strict=True))


def num_asked(record: Graded, round_: int) -> int:
    """How many solutions a trace asked for in a round, or would have, had it got that far."""
    if round_ < record.num_rounds:
        return sum(len(group.outputs) for group in record.trace.rounds[round_])
    return record.trace.plan.aggregations if round_ <= record.trace.plan.rounds else 0


def pools_of(records: Sequence[Graded], round_: int) -> PoolDiagnostics:
    """Mean diagnostics over all pools of an aggregation round; what is NaN for a pool leaves the mean."""
    found = []
    for record in records:
        shown = solutions_of(record, round_ - 1)
        for group, grades in zip(record.trace.rounds[round_], record.grades[round_], strict=True):
            pool = [shown[index] for index in group.pool]
            found.append(
                pool_diagnostics(
                    pool_answers=[grade.answer for _, grade in pool],
                    pool_rewards=[as_reward(grade) for _, grade in pool],
                    pool_texts=[strip_thinking(solution.text) for solution, _ in pool],
                    aggregation_rewards=[as_reward(grade) for grade in grades if grade is not None],
                    aggregation_texts=[strip_thinking(solution.text) for solution in group.completions],
                )
            )
    return PoolDiagnostics(**{f.name: mean(getattr(one, f.name) for one in found) for f in fields(PoolDiagnostics)})


def plain(value: Any) -> Any:
    """Dataclasses as dicts and NaN as None; an interval without a mean is None as a whole."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Interval) and math.isnan(value.mean):
        return None
    if isinstance(value, Interval | PoolDiagnostics):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value


def cells(row: Round) -> list[str]:
    """One row to print."""
    intervals = [show_interval(getattr(row, name)) for name in MEASURES]
    tokens = "-" if math.isnan(row.tokens) else f"{row.tokens:.1f}"
    shares = [show_share(share) for share in (row.truncated, row.unscored, row.failed)]
    pool = ["-"] * len(fields(PoolDiagnostics))
    if row.pool:
        rates = [row.pool.pool_has_correct, row.pool.recovery, row.pool.destruction, row.pool.copy_rate]
        distinct = row.pool.distinct_answers
        pool = ["-" if math.isnan(distinct) else f"{distinct:.2f}", *(show_share(share) for share in rates)]
    return [str(row.round), *intervals, show_interval(row.gain, "+"), tokens, *shares, *pool]


def show_interval(cell: Interval | None, sign: str = "") -> str:
    """ "34.0 [30.1, 37.9]" in percent; "-" without a mean, no bounds where one problem gives none."""
    if cell is None or math.isnan(cell.mean):
        return "-"
    bounds = "" if math.isnan(cell.low) else f" [{100 * cell.low:{sign}.1f}, {100 * cell.high:{sign}.1f}]"
    return f"{100 * cell.mean:{sign}.1f}{bounds}"


def show_share(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}%"
