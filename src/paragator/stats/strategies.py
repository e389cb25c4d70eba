"""Strategies side by side: what each answers in expectation, what it costs, and what it gains, paired and at equal tokens.

A strategy's answer is its Choice: weights over solutions of a round. What is measured of a problem is the mean over its
repeats; intervals draw problems again, the same for all strategies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from zlib import crc32

from paragator.core.errors import UsageError
from paragator.core.estimators import Interval, majority_at_k, mean
from paragator.core.types import Group
from paragator.records import Graded
from paragator.stats.measures import VOTERS, Unit, known_sum
from paragator.stats.resample import Bootstrapped, holm, resample
from paragator.stats.sheet import Column, Sheet, to_csv
from paragator.stats.table import plain

NAN = math.nan


def right_of(record: Graded) -> float:
    """How likely the strategy's answer is right: its choice's weight on right solutions, of that on scored ones.

    NaN without a choice, which is no answer and not a wrong one, and where all that was chosen is unscored.
    """
    choice = record.trace.choice
    if choice is None:
        return NAN
    scored = [
        (w, r) for w, r in zip(choice.weights, record.right(choice.round), strict=True) if r is not None and w > 0
    ]
    total = math.fsum(weight for weight, _ in scored)
    return math.fsum(weight * right for weight, right in scored) / total if total else NAN


def generated(groups: Sequence[Group]) -> float:
    return known_sum(completion.length for group in groups for completion in group.completions)


def prompted(groups: Sequence[Group]) -> float:
    """One prompt a group, however many solutions share it; of a group of failures what is known."""
    return known_sum(group.prompt_length for group in groups if group.completions)


def stages(record: Graded) -> dict[str, list[Group]]:
    """A trace's groups by what they were for."""
    rounds = record.trace.rounds
    return {
        "candidates": [group for groups in rounds[:1] for group in groups],
        "aggregations": [group for groups in rounds[1:] for group in groups],
        "ratings": list(record.trace.ratings),
    }


def everything(record: Graded) -> list[Group]:
    return [group for groups in stages(record).values() for group in groups]


def fell_back(record: Graded) -> float:
    return float(bool(record.trace.choice and record.trace.choice.why))


@dataclass(frozen=True, slots=True)
class Quantity:
    """What is told of a strategy: `of(record)`, and how it is shown."""

    title: str
    unit: Unit
    of: Any
    bounds: bool = False


QUANTITIES: Mapping[str, Quantity] = {
    "accuracy": Quantity("accuracy", "share", right_of, True),
    "requests": Quantity("completions", "tokens", lambda r: float(sum(len(g.outputs) for g in everything(r)))),
    "candidates": Quantity("candidates", "tokens", lambda r: generated(stages(r)["candidates"])),
    "aggregations": Quantity("aggregations", "tokens", lambda r: generated(stages(r)["aggregations"])),
    "ratings": Quantity("ratings", "tokens", lambda r: generated(stages(r)["ratings"])),
    "prompts": Quantity("prompts", "tokens", lambda r: prompted(everything(r))),
    "tokens": Quantity("all tokens", "tokens", lambda r: generated(everything(r)) + prompted(everything(r))),
    "fell_back": Quantity("fell back", "share", fell_back),
    "unanswered": Quantity("no answer", "share", lambda r: float(r.trace.choice is None)),
}
"""What the main table shows of each strategy, a problem; docs/strategies.md says what each means."""


class StrategyTable:
    """Strategies by label, the first being the one that others are compared with.

    UsageError without a strategy, or where two were not run on the same problems.
    """

    def __init__(self, strategies: Mapping[str, Sequence[Graded]], k: int = 4) -> None:
        if not strategies or not all(strategies.values()):
            raise UsageError("no strategy was run: name some, as strategy=['majority', 'aggregate']")
        self.strategies, self.k = strategies, k
        self.labels = list(strategies)
        keys = {label: {key_of(record) for record in records} for label, records in strategies.items()}
        for label in self.labels[1:]:
            if keys[label] != keys[self.labels[0]]:
                raise UsageError(f"strategies {self.labels[0]} and {label} were run on other problems; resume the run")
        first = strategies[self.labels[0]]
        self.problems = list(dict.fromkeys(record.trace.problem.id for record in first))
        texts = sorted({f"{record.trace.problem.id}\n{record.trace.problem.text}" for record in first})
        self.draws = crc32("\n".join(texts).encode(errors="replace"))

    def column(self, values: Mapping[tuple[str, int], float]) -> list[float]:
        """One value a problem, of values by problem and repeat."""
        by_problem: dict[str, list[float]] = {}
        for (problem, _), value in values.items():
            by_problem.setdefault(problem, []).append(value)
        return [mean(by_problem[problem]) for problem in self.problems]

    @cached_property
    def values(self) -> dict[tuple[str, str], list[float]]:
        """(strategy, quantity) -> one value a problem."""
        return {
            (label, name): self.column({key_of(record): one.of(record) for record in records})
            for label, records in self.strategies.items()
            for name, one in QUANTITIES.items()
        }

    @cached_property
    def votes(self) -> list[tuple[list[float], list[float]]]:
        """For n = 1, 2, ... candidates: (all tokens, the vote's accuracy) of each problem, of the largest set of candidates.

        Exact over subsets. Its prompt counts once, as in every table.
        """
        largest: dict[tuple[str, int], Graded] = {}
        for records in self.strategies.values():
            for record in records:
                key = key_of(record)
                if key not in largest or size_of(record) > size_of(largest[key]):
                    largest[key] = record
        most = min(size_of(record) for record in largest.values())
        out = []
        for n in [n for n in range(1, most + 1) if n <= VOTERS or n == most]:
            tokens = {key: n * per_candidate(r) + prompted(r.trace.rounds[0]) for key, r in largest.items()}
            right = {key: majority_at_k(r.answers(0), r.right(0), n) for key, r in largest.items()}
            out.append((self.column(tokens), self.column(right)))
        return out

    def vote_at(self, tokens: float) -> list[float] | None:
        """The accuracy of a vote that costs so many tokens on average, by problem; None beyond the candidates there are.

        Between two numbers of candidates it takes one or the other, with the probabilities that cost as much.
        """
        costs = [mean(column) for column, _ in self.votes]
        if not costs or math.isnan(tokens) or not costs[0] <= tokens <= costs[-1]:
            return None
        after = next(i for i, cost in enumerate(costs) if cost >= tokens)
        before = max(0, after - 1)
        gap = costs[after] - costs[before]
        share = (tokens - costs[before]) / gap if gap else 1.0
        pairs = zip(self.votes[before][1], self.votes[after][1], strict=True)
        return [low + share * (high - low) for low, high in pairs]

    @cached_property
    def intervals(self) -> dict[tuple[str, str], Interval]:
        """(strategy, quantity) -> its mean over problems."""
        drawn = resample(list(self.values.values()), seed=(self.draws,))
        return {key: one.interval() for key, one in zip(self.values, drawn, strict=True)}

    @cached_property
    def gains(self) -> dict[tuple[str, str], Bootstrapped]:
        """(strategy, "first" or "vote") -> its accuracy minus the first one's, or a vote's at equal tokens, paired."""
        columns: dict[tuple[str, str], list[float]] = {}
        for label in self.labels:
            own = self.values[label, "accuracy"]
            if label != self.labels[0]:
                columns[label, "first"] = minus(own, self.values[self.labels[0], "accuracy"])
            vote = self.vote_at(self.intervals[label, "tokens"].mean)
            if vote is not None:
                columns[label, "vote"] = minus(own, vote)
        return dict(zip(columns, resample(list(columns.values()), seed=(self.draws,)), strict=True)) if columns else {}

    def p_values(self, against: str) -> dict[str, float]:
        """Holm's p of each strategy's gain, over the strategies compared; a vote is not compared with one at equal tokens."""
        shown = {
            label: one
            for (label, what), one in self.gains.items()
            if what == against and not (what == "vote" and self.is_vote(label))
        }
        return dict(zip(shown, holm([one.p_value() for one in shown.values()]), strict=True))

    def is_vote(self, label: str) -> bool:
        return label.partition(":")[0] == "majority"

    # ---- tables ----

    def sheets(self) -> list[Sheet]:
        """What each strategy answers and costs, then what it gains."""
        columns = [Column(one.title, one.unit, bounds=one.bounds) for one in QUANTITIES.values()]
        rows = [(label, [self.intervals[label, name] for name in QUANTITIES]) for label in self.labels]
        main = Sheet("strategies", "", "strategy", columns, rows)
        return [main, *(self.gain_sheet(what) for what in ("first", "vote") if any(w == what for _, w in self.gains))]

    def gain_sheet(self, against: str) -> Sheet:
        title = f"accuracy - {self.labels[0]}" if against == "first" else "accuracy - a vote at equal tokens"
        p = self.p_values(against)
        cells: list[tuple[str, Sequence[Interval | None]]] = []
        for label in self.labels:
            if against == "first" and label == self.labels[0]:
                continue
            gain = self.gains.get((label, against))
            value = p.get(label, NAN)
            cells.append((label, [gain.interval() if gain else None, Interval(value, NAN, NAN)]))
        return Sheet(
            title,
            "",
            "strategy",
            [Column("difference", signed=True), Column("Holm's p", "probability", bounds=False)],
            cells,
        )

    def notes(self) -> list[str]:
        found = [
            f"{len(self.problems)} problems; shares in percent with 95% intervals over problems; tokens a problem."
        ]
        found.append("Prompts count once a group. Ties count in expectation.")
        if any((label, "vote") not in self.gains for label in self.labels):
            found.append(
                "'-' at equal tokens: it costs more than all candidates, fewer than one, or tokens are not known."
            )
        return found

    def text(self) -> str:
        return "\n".join([*(f"{sheet.title}\n{sheet.text()}" for sheet in self.sheets()), *self.notes()])

    def markdown(self) -> str:
        return "\n\n".join([*(sheet.markdown() for sheet in self.sheets()), " ".join(self.notes())])

    def csv(self) -> str:
        return to_csv([every_bound(sheet) for sheet in self.sheets()])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: all quantities and gains of each strategy with bounds, which models gave what where there are
        several, and a vote's accuracy over tokens, for a picture at equal tokens.
        """
        found: dict[str, Any] = {}
        for label in self.labels:
            row: dict[str, Any] = {name: plain(self.intervals[label, name]) for name in QUANTITIES}
            for what in ("first", "vote"):
                if gain := self.gains.get((label, what)):
                    p = self.p_values(what).get(label, NAN)
                    row[f"minus_{what}"] = (plain(gain.interval()) or {}) | {"holm_p": None if math.isnan(p) else p}
            every = [(what, g.model) for r in self.strategies[label] for what, gs in stages(r).items() for g in gs]
            named = {what: sorted({m for w, m in every if w == what and m}) for what, _ in every}
            found[label] = row | {"models": {what: names for what, names in named.items() if names}}
        vote = [
            {"tokens": None if math.isnan(tokens) else tokens, "accuracy": plain(one)}
            for tokens, one in self.vote_curve()
        ]
        return {"problems": len(self.problems), "first": self.labels[0], "strategies": found, "vote": vote}

    def vote_curve(self) -> list[tuple[float, Interval]]:
        """(all tokens, accuracy) of a vote among 1, 2, ... candidates."""
        drawn = resample([right for _, right in self.votes], seed=(self.draws,))
        return [(mean(tokens), one.interval()) for (tokens, _), one in zip(self.votes, drawn, strict=True)]


def minus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def every_bound(sheet: Sheet) -> Sheet:
    """A sheet with all its bounds, as CSV rows have them."""
    columns = [Column(one.title, one.unit, one.signed, True, one.group) for one in sheet.columns]
    return Sheet(sheet.name, sheet.of, sheet.corner, columns, sheet.rows)


def key_of(record: Graded) -> tuple[str, int]:
    return record.trace.problem.id, int(record.trace.extra.get("repeat", 0))


def size_of(record: Graded) -> int:
    return len(record.trace.population(0)) if record.trace.rounds else 0


def per_candidate(record: Graded) -> float:
    """Mean tokens of a candidate."""
    return mean(solution.length for solution in record.trace.population(0))
