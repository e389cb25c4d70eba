"""What is measured of one round of one trace, as one table of functions; columns, intervals and pictures derive from it."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal
from zlib import crc32

from paragator.core.errors import UsageError
from paragator.core.estimators import (
    all_of_k,
    majority_at_k,
    mean,
    part_vote,
    parts_at_k,
    pass_at_k,
    pool_diagnostics,
)
from paragator.core.thinking import strip_thinking
from paragator.core.types import Completion, Grade
from paragator.records import Graded
from paragator.stats.mending import mending

Unit = Literal["share", "tokens", "count", "whole", "probability", "reward"]
Section = Literal["accuracy", "cost", "pools"]
NAN = math.nan
VOTERS = 32
"""Most candidates of the votes that are worked out over all subsets; see docs/metrics.md."""


class RoundView:
    """One round of one graded trace; a round that the trace never reached has no solutions."""

    def __init__(self, record: Graded, round_: int, before: RoundView | None = None) -> None:
        self.record, self.round, self.before = record, round_, before
        self.reached = round_ < record.num_rounds
        self.groups = record.trace.rounds[round_] if self.reached else ()

    @cached_property
    def solutions(self) -> list[tuple[Completion, Grade]]:
        """The solutions that did not fail, with their grades, in population order."""
        if not self.reached:
            return []
        grades = [grade for group in self.record.grades[self.round] for grade in group if grade is not None]
        return list(zip(self.record.trace.population(self.round), grades, strict=True))

    @cached_property
    def right(self) -> list[float | None]:
        """1, 0 or None (unscored) in population order; a reward function's own values are not accuracy."""
        return [grade.right for _, grade in self.solutions]

    @cached_property
    def answers(self) -> list[str | None]:
        return [grade.answer for _, grade in self.solutions]

    @cached_property
    def texts(self) -> list[str]:
        """A digest of each text without thinking and white space, "" for an empty one: enough to tell copies."""
        plain = [" ".join(text.split()) for text in self.plain]
        return [text and hashlib.blake2b(text.encode(errors="replace"), digest_size=16).hexdigest() for text in plain]

    @cached_property
    def plain(self) -> list[str]:
        """Each text without thinking."""
        return [strip_thinking(solution.text) for solution, _ in self.solutions]

    @cached_property
    def asked(self) -> int:
        """How many solutions the trace asked for in this round, or would have, had it got that far."""
        if self.reached:
            return sum(len(group.outputs) for group in self.groups)
        plan = self.record.trace.plan
        return plan.aggregations if self.round <= plan.rounds else 0

    @cached_property
    def generated(self) -> float:
        """Tokens of this round's solutions, all together; NaN where one's length is unknown."""
        return known_sum(solution.length for solution, _ in self.solutions) if self.reached else NAN

    @cached_property
    def prompted(self) -> float:
        """Tokens of this round's prompts, one a group however many solutions share it; NaN where one is unknown."""
        return known_sum(group.prompt_length for group in self.groups) if self.reached else NAN

    def so_far(self, name: Literal["generated", "prompted"]) -> float:
        """A number of tokens, summed over this round and those before."""
        own: float = getattr(self, name)
        return own + self.before.so_far(name) if self.before else own

    @cached_property
    def pools(self) -> Mapping[str, float]:
        """The mean of each diagnostic over the round's pools; empty in round 0."""
        if not self.reached or self.before is None:
            return {}
        found, first, shown = [], 0, self.before
        for group in self.groups:
            own = slice(first, first := first + len(group.completions))
            found.append(
                pool_diagnostics(
                    pool_answers=[shown.answers[i] for i in group.pool],
                    pool_right=[shown.right[i] for i in group.pool],
                    pool_texts=[shown.texts[i] for i in group.pool],
                    aggregation_right=self.right[own],
                    aggregation_texts=self.texts[own],
                )
                | mending([shown.plain[i] for i in group.pool], self.plain[own])
            )
        return {name: mean(one[name] for one in found) for name in found[0]} if found else {}

    def recovered(self, right: int) -> float:
        """The share of right aggregations whose pool has so many right members and no unscored one; NaN without any."""
        found, first, before = [], 0, self.before.right if self.before else []
        for group in self.groups:
            own = self.right[first : (first := first + len(group.completions))]
            shown = scored(before[i] for i in group.pool)
            if group.pool and len(shown) == len(group.pool) and sum(shown) == right:
                found += own
        return mean(found)

    @cached_property
    def parts(self) -> tuple[list[tuple[float, ...]], list[list[str]]]:
        """Which parts of each solution are right, and its answers, part by part; nothing of a task without parts."""
        known = [grade for _, grade in self.solutions if grade.parts]
        return [grade.parts for grade in known], [
            grade.answer.split(";") if grade.answer is not None else [""] * len(grade.parts) for grade in known
        ]

    def best_of(self, k: int) -> float:
        """Unbiased pass@k over the scored solutions; NaN when fewer than k are scored."""
        found = scored(self.right)
        return pass_at_k(len(found), int(sum(found)), k)

    def all_of(self, k: int) -> float:
        """Unbiased pass^k over the scored solutions; NaN when fewer than k are scored."""
        found = scored(self.right)
        return all_of_k(len(found), int(sum(found)), k)


@dataclass(frozen=True, slots=True)
class Measure:
    """A number of one round of one trace: `of(view, k)`, NaN where it is not defined or not known."""

    title: str
    section: Section
    unit: Unit
    of: Callable[[RoundView, int], float]


def diagnostic(title: str, name: str, unit: Unit = "share") -> Measure:
    return Measure(title, "pools", unit, lambda view, k: view.pools.get(name, NAN))


MEASURES: Mapping[str, Measure] = {
    "pass_at_1": Measure("pass@1", "accuracy", "share", lambda view, k: mean(view.right)),
    "reward": Measure("mean reward", "accuracy", "reward", lambda view, k: mean(g.reward for _, g in view.solutions)),
    "pass_at_k": Measure("pass@{k}", "accuracy", "share", lambda view, k: view.best_of(k)),
    "maj_at_k": Measure("maj@{k}", "accuracy", "share", lambda view, k: majority_at_k(view.answers, view.right, k)),
    "parts_at_k": Measure("parts@{k}", "accuracy", "share", lambda view, k: parts_at_k(view.parts[0], k)),
    "part_vote": Measure("part vote", "accuracy", "share", lambda view, k: part_vote(view.parts[1], view.parts[0])),
    "part_right": Measure("part right", "accuracy", "share", lambda view, k: mean(itertools.chain(*view.parts[0]))),
    "oracle": Measure("oracle", "accuracy", "share", lambda view, k: max(scored(view.right), default=NAN)),
    "all_of_k": Measure("pass^{k}", "accuracy", "share", lambda view, k: view.all_of(k)),
    "tokens": Measure("tokens a solution", "cost", "tokens", lambda view, k: mean(s.length for s, _ in view.solutions)),
    "generated": Measure("generated", "cost", "tokens", lambda view, k: view.generated),
    "generated_so_far": Measure("generated so far", "cost", "tokens", lambda view, k: view.so_far("generated")),
    "prompted_so_far": Measure("prompts so far", "cost", "tokens", lambda view, k: view.so_far("prompted")),
    "truncated": Measure(
        "truncated", "cost", "share", lambda view, k: mean(s.finish_reason == "length" for s, _ in view.solutions)
    ),
    "unscored": Measure("unscored", "cost", "share", lambda view, k: mean(right is None for right in view.right)),
    "failed": Measure("failed", "cost", "share", lambda view, k: failed(view)),
    "distinct_answers": diagnostic("distinct answers", "distinct_answers", "count"),
    "pool_has_correct": diagnostic("right in pool", "pool_has_correct"),
    "recovery": diagnostic("recovery", "recovery"),
    "destruction": diagnostic("destruction", "destruction"),
    "majority_lost": diagnostic("majority lost", "majority_lost"),
    "copy_rate": diagnostic("copied", "copy_rate"),
    "edits": diagnostic("edits", "edits"),
    "steps_taken": diagnostic("steps taken", "steps_taken"),
    "steps_from_one": diagnostic("steps from one", "steps_from_one"),
}
"""Every measure, in the order of the columns; docs/metrics.md says what each means."""
REWARD = "reward"
"""The measure that is left out where all rewards are 0 or 1, as it is pass@1 there."""
OF_PARTS = ("parts_at_k", "part_vote", "part_right")
"""What is left out of tasks without independent parts."""
BY_ANSWER = ("maj_at_k", "votes", "distinct_answers")
"""What is not measured where a reward function reads no answers."""

Minus = Literal["", "first", "previous"]
DIFFERENCES: tuple[Minus, Minus] = ("first", "previous")
Key = tuple[str, int, Minus]
"""A measure, a round, and the round that it is compared with, if any."""


BY_COUNT = ("votes", "by_right", "members")
"""What `Scores.values` has by a count in place of a round."""


def scored(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def failed(view: RoundView) -> float:
    return 1 - len(view.solutions) / view.asked if view.asked else NAN


def known_sum(values: Iterable[int | None]) -> float:
    """The sum; NaN when one of them is not known."""
    return sum(NAN if value is None else float(value) for value in values)


@dataclass(frozen=True, slots=True)
class Scores:
    """An evaluation as numbers: `values[measure, round]` has one value a problem, in the order of `problems` (their ids).

    A problem's value is the mean over its repeats of what could be measured, else NaN. `values["votes", n]` is round
    0's maj@n for n = 1, 2, 4, ... VOTERS and all candidates: majority voting at growing cost. `values["by_right", m]` is
    the share of right aggregations of round 1 whose pool has m right members, of the `values["members", 0]` that it has.
    """

    k: int
    problems: tuple[str, ...]
    traces: int
    num_rounds: int
    values: Mapping[tuple[str, int], Sequence[float]]
    draws: int
    """Seeds the bootstrap: depends on the problems alone, so that evaluations of the same ones share their draws."""
    note: str = ""
    """What counts as correct, where some reward is neither 0 nor 1."""

    def columns(self) -> dict[Key, Sequence[float]]:
        """All values, and for accuracies the differences to round 0 and to the round before, problem by problem."""
        out: dict[Key, Sequence[float]] = {(name, t, ""): column for (name, t), column in self.values.items()}
        for name, measure in MEASURES.items():
            known = measure.section == "accuracy" and (name, 0) in self.values
            for t in range(1, self.num_rounds) if known else ():
                own = self.values[name, t]
                for minus, other in zip(DIFFERENCES, (0, t - 1), strict=True):
                    out[name, t, minus] = [a - b for a, b in zip(own, self.values[name, other], strict=True)]
        return out


def scores(records: Sequence[Graded], k: int = 4) -> Scores:
    """Every measure of every round of every problem, problems in the order of their ids.

    UsageError when there is no record, or k < 1.
    """
    if not records:
        raise UsageError("no records: evaluate at least one problem before asking for its table")
    if k < 1:
        raise UsageError(f"k = {k}: at least 1 is needed")
    num_rounds = max(record.num_rounds for record in records)
    problems = tuple(sorted({record.trace.problem.id for record in records}))
    sizes = vote_sizes(max(len(record.trace.population(0)) for record in records))
    members = max((len(group.pool) for r in records for groups in r.trace.rounds[1:2] for group in groups), default=0)
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    for record in records:
        name, view = record.trace.problem.id, None
        for t in range(num_rounds):
            view = RoundView(record, t, view)
            for measure, one in MEASURES.items():
                found.setdefault((measure, t), {}).setdefault(name, []).append(one.of(view, k))
            for n in sizes if t == 0 else ():
                found.setdefault(("votes", n), {}).setdefault(name, []).append(MEASURES["maj_at_k"].of(view, n))
            for m in range(members + 1) if t == 1 else ():
                found.setdefault(("by_right", m), {}).setdefault(name, []).append(view.recovered(m))
            if t == 1:
                found.setdefault(("members", 0), {}).setdefault(name, []).append(mean(len(g.pool) for g in view.groups))
    note = note_of(records)
    has_parts = any(grade.parts for record in records for grade in record.of_round(0))
    left_out = (*(() if note else (REWARD,)), *(() if has_parts else OF_PARTS))
    unknown = BY_ANSWER if is_silent(records) else ()
    columns = {
        key: [NAN if key[0] in unknown else mean(values[name]) for name in problems]
        for key, values in found.items()
        if key[0] not in left_out
    }
    texts = sorted({f"{record.trace.problem.id}\n{record.trace.problem.text}" for record in records})
    draws = crc32("\n".join(texts).encode(errors="replace"))
    return Scores(k, problems, len(records), num_rounds, columns, draws, note)


def note_of(records: Sequence[Graded]) -> str:
    """What counts as correct, where some reward is neither 0 nor 1; else ""."""
    fractional = [record.trace.extra.get("correct_from") for record in records if record.is_fractional]
    if not fractional:
        return ""
    known = " or ".join(f"{x:.10g}" for x in sorted({x for x in fractional if x is not None}))
    if not known:
        return "Some rewards are neither 0 nor 1; what is correct is the task's own verdict."
    return f"Some rewards are neither 0 nor 1; correct is a reward of {known} or more (task.correct_from)."


def is_silent(records: Sequence[Graded]) -> bool:
    """Whether a reward function reads no answers: it gave rewards, and no solution of any round has an answer."""
    grades = [grade for record in records for t in range(record.num_rounds) for grade in record.of_round(t)]
    return any(grade.value is not None for grade in grades) and all(grade.answer is None for grade in grades)


def vote_sizes(candidates: int) -> list[int]:
    """1, 2, 4, ... up to VOTERS, and all candidates."""
    powers = {2**i for i in range(VOTERS.bit_length()) if 2**i <= min(candidates, VOTERS)}
    return sorted(powers | ({candidates} if candidates else set()))
