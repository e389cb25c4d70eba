"""Named warnings about a run: what is wrong with its numbers, from metrics, evaluations and records alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paragator.stats.curves import is_number
from paragator.stats.table import EvalTable

RECENT_STEPS = 10
STAGES = {"generate": "candidates", "aggregate": "aggregations"}


@dataclass(frozen=True, slots=True)
class Alarm:
    """A warning: its name is a key of MEANINGS."""

    name: str
    text: str


MEANINGS: Mapping[str, str] = {
    "truncation": "Solutions were cut at max_tokens, so the limit is measured instead of the model. Raise max_tokens of that "
    "stage, or ask for shorter solutions.",
    "no signal": "All rollouts of most groups have the same credit, so these groups teach nothing. The problems are too hard or too "
    "easy: choose others, sample more candidates, or start from a better model.",
    "mismatch": "The sampler's probabilities differ from the trainer's. Sample with the trainer's precision, publish weights "
    "every step, and check that no top-p, top-k or min-p is set.",
    "unscored": "The grader gave no verdict; accuracy leaves these out. Open the list with the filter "
    "'unscored' and read the reasons.",
    "failures": "Requests failed for good, so rounds went on with fewer solutions. "
    "Look at the reasons on the cards and at the server's log.",
    "refused updates": "An update was skipped because its loss or gradient was not finite. Lower the learning rate or use float32.",
    "gradient": "The gradient norm of recent steps is far above the run's median: an unstable update. Lower the learning rate.",
    "lost diversity": "pass@k of the candidates fell in training: the model explores less. "
    "Candidates trained by pass@k lose less of it.",
    "worse than voting": "The last round's pass@1 is below majority voting among as many first "
    "candidates: aggregation does not pay here.",
    "incomplete": "Something that a finished run of this kind has is missing: it was interrupted, or is still running.",
    "unreadable": "A file cannot be read, so what it holds is not shown. Remove or fix the line that is named.",
}
"""What each warning means and what to do about it."""


def alarms(metrics: Sequence[Mapping[str, Any]], tables: Mapping[str, EvalTable]) -> list[Alarm]:
    """The warnings, the most serious first."""
    return [*of_training(metrics), *(one for label, table in tables.items() for one in of_table(label, table))]


def of_training(rows: Sequence[Mapping[str, Any]]) -> Iterator[Alarm]:
    def recent(key: str) -> float:
        found = [float(row[key]) for row in rows[-RECENT_STEPS:] if is_number(row.get(key))]
        return math.fsum(found) / len(found) if found else math.nan

    last = f"over the last {min(RECENT_STEPS, len(rows))} steps"
    checks: tuple[tuple[str, str, float, Callable[[float], str]], ...] = (
        ("truncation", "truncated", 0.05, percent),
        ("no signal", "zero_credit", 0.7, percent),
        ("unscored", "unscored", 0.02, percent),
        ("failures", "failed", 0.0, percent),
    )
    words = {"truncation": "truncated", "no signal": "in groups without credit", "failures": "failed"}
    for name, key, limit, show in checks:
        for stage, who in STAGES.items():
            if (value := recent(f"{stage}/{key}")) > limit:
                yield Alarm(name, f"{show(value)} of {who} {words.get(name, name)} {last}")
    if (value := recent("mismatch_kl")) > 0.001:
        yield Alarm("mismatch", f"KL of trainer to sampler {value:.2g} per token {last}; healthy is below 0.001")
    if refused := sum(bool(row.get("refused")) for row in rows):
        yield Alarm("refused updates", f"{refused} of {len(rows)} updates were skipped")
    norms = sorted(float(row["grad_norm"]) for row in rows if is_number(row.get("grad_norm")))
    if len(norms) > RECENT_STEPS and (value := recent("grad_norm")) > 10 * norms[len(norms) // 2] > 0:
        yield Alarm("gradient", f"norm {value:.3g} {last}, the run's median is {norms[len(norms) // 2]:.3g}")


def of_table(label: str, table: EvalTable) -> Iterator[Alarm]:
    for t in range(table.num_rounds):
        for name, key, limit in (
            ("truncation", "truncated", 0.05),
            ("unscored", "unscored", 0.02),
            ("failures", "failed", 0),
        ):
            if (value := table.cell(key, t).mean) > limit:
                word = {"truncation": "truncated", "failures": "failed"}.get(name, name)
                yield Alarm(name, f"{percent(value)} of round {t} {word}, {label}")
    last, voting = table.cell("pass_at_1", table.last), table.cell("maj_at_k", 0)
    if table.last > 0 and last.high < voting.mean:
        yield Alarm(
            "worse than voting",
            f"{100 * last.mean:.1f} after round {table.last}, {100 * voting.mean:.1f} by voting, {label}",
        )


def fallen(before: EvalTable, after: EvalTable) -> Iterator[Alarm]:
    """Whether the first round's pass@k fell in training by more than the two intervals explain."""
    was, is_ = before.cell("pass_at_k", 0), after.cell("pass_at_k", 0)
    if is_.high < was.low:
        yield Alarm(
            "lost diversity",
            f"pass@{after.k} of the candidates {100 * was.mean:.1f} before, {100 * is_.mean:.1f} after training",
        )


def percent(value: float) -> str:
    return f"{100 * value:.3g}%"
