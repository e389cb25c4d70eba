"""Graded traces -> numbers by round with intervals. Problems are resampled, so repeats of a problem stay together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from paragator.core.estimators import Interval
from paragator.records import Graded
from paragator.stats.measures import DIFFERENCES, MEASURES, Key, Minus, Section, scores
from paragator.stats.resample import resample
from paragator.stats.sheet import Column, Sheet

SECTIONS: Mapping[Section, str] = {"accuracy": "accuracy", "cost": "tokens and failures", "pools": "pools"}
GAINS: tuple[tuple[str, Minus], ...] = (("pass@1 - round before", "previous"), ("pass@1 - round 0", "first"))
NOTHING = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class EvalTable:
    """What an evaluation found. Round 0 is the initial one; `traces` is problems times repeats.

    `found[measure, round, minus]` is a mean over problems with a 95% interval; `minus` is "" for the measure itself,
    "first" or "previous" for its paired difference to round 0 or to the round before. Shares are of 1.
    `found["votes", n, ""]` is round 0's maj@n, `found["by_right", m, ""]` how often round 1 is right on m right members.
    """

    k: int
    problems: int
    traces: int
    num_rounds: int
    found: Mapping[Key, Interval]
    note: str = ""
    """What counts as correct, where some reward is neither 0 nor 1."""

    @property
    def measures(self) -> list[str]:
        """The measures that it shows."""
        known = {name for name, _, minus in self.found if not minus}
        return [name for name in MEASURES if name in known]

    def cell(self, measure: str, round_: int, minus: Minus = "") -> Interval:
        """One number; all NaN where there is none."""
        return self.found.get((measure, round_, minus), NOTHING)

    def series(self, measure: str) -> list[Interval]:
        """A measure by round."""
        return [self.cell(measure, t) for t in range(self.num_rounds)]

    @property
    def last(self) -> int:
        """The last round."""
        return self.num_rounds - 1

    def votes(self) -> list[tuple[int, Interval]]:
        """(n, maj@n of round 0) by growing n."""
        return self.by_count("votes")

    def by_count(self, measure: str) -> list[tuple[int, Interval]]:
        """What is known of a number of votes or of right members, by that number."""
        found = {n: cell for (name, n, _), cell in self.found.items() if name == measure}
        return sorted(found.items(), key=lambda item: item[0])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None for what is NaN, and for an interval without a mean."""
        rounds: list[dict[str, Any]] = []
        for t in range(self.num_rounds):
            rounds.append({"round": t, **{name: plain(self.cell(name, t)) for name in self.measures}})
            for minus in DIFFERENCES if t else ():
                gains = {name: plain(cell) for (name, at, how), cell in self.found.items() if (at, how) == (t, minus)}
                rounds[-1][f"minus_{minus}"] = gains
        more: dict[str, Any] = {"note": self.note} if self.note else {}
        if by_right := {str(n): plain(cell) for n, cell in self.by_count("by_right")}:
            more["by_right"] = by_right
        return {"k": self.k, "problems": self.problems, "traces": self.traces, "rounds": rounds, **more}

    def sheets(self) -> list[Sheet]:
        """Accuracy, cost, and pools by round; the last only where a pool was shown."""
        return rounds_sheets({"": self})


def in_short(table: EvalTable, beside: Literal["pass_at_k", "maj_at_k"]) -> dict[str, Interval]:
    """Initial pass@1 and the measure beside it, and pass@1 of the last aggregation round (nothing without one)."""
    last = table.cell("pass_at_1", table.last) if table.last > 0 else NOTHING
    title = MEASURES[beside].title.format(k=table.k)
    return {
        "initial pass@1": table.cell("pass_at_1", 0),
        f"initial {title}": table.cell(beside, 0),
        "aggregation, last round": last,
    }


def rounds_sheets(tables: Mapping[str, EvalTable], of: str = "", name: str = "") -> list[Sheet]:
    """The rounds of one or several evaluations (by label), one sheet a section; a section without a number is left out."""
    out = []
    k = next(iter(tables.values())).k
    for section, title in SECTIONS.items():
        shown = {name for table in tables.values() for name in table.measures}
        named = {key: one for key, one in MEASURES.items() if one.section == section and key in shown}
        columns = [Column(one.title.format(k=k), one.unit) for one in named.values()]
        keys: list[tuple[str, Minus]] = [(key, "") for key in named]
        if section == "accuracy":
            columns += [Column(heading, signed=True) for heading, _ in GAINS]
            keys += [("pass_at_1", minus) for _, minus in GAINS]
        rows = [
            (f"{label} {t}".strip(), tuple(table.cell(key, t, minus) for key, minus in keys))
            for label, table in tables.items()
            for t in range(table.num_rounds)
        ]
        if not all(math.isnan(cell.mean) for _, cells in rows for cell in cells):
            out.append(Sheet(name or title, f"{of}: {title}" if name else of, "round", columns, rows))
    return out


def table(records: Sequence[Graded], k: int = 4) -> EvalTable:
    """The numbers of an evaluation. A measure is a trace's own; a problem counts by the mean of its repeats.

    UsageError when there is no record, or k < 1.
    """
    found = scores(records, k)
    columns = found.columns()
    sampled = resample(list(columns.values()), seed=(found.draws,))
    intervals = {key: one.interval() for key, one in zip(columns, sampled, strict=True)}
    return EvalTable(k, len(found.problems), found.traces, found.num_rounds, intervals, found.note)


def plain(cell: Interval) -> dict[str, float | None] | None:
    """An interval as JSON values: None for NaN, and as a whole without a mean."""
    if math.isnan(cell.mean):
        return None
    return {name: None if math.isnan(value) else value for name, value in asdict(cell).items()}
