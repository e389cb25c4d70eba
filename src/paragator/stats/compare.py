"""Runs side by side: accuracy by round on each benchmark and on average, and what each gains over the first, paired."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from textwrap import fill
from typing import Any

from paragator.core.errors import UsageError
from paragator.core.estimators import Interval
from paragator.stats.curves import Metrics
from paragator.stats.measures import MEASURES, REWARD, Key
from paragator.stats.resample import Bootstrapped, average, over_seeds, resample
from paragator.stats.runs import MethodRuns, Run, gather, load_run
from paragator.stats.sheet import Column, Sheet, to_csv
from paragator.stats.table import EvalTable, in_short, plain, rounds_sheets

AVERAGE = "average"
COMPARED = ("pass_at_1", "pass_at_k", "maj_at_k", REWARD)
Pair = tuple[str, int, int]
"""A measure, a round of a row, and the round of the first row that it is compared with."""


class Comparison:
    """Rows in the order given; the first is the one that differences refer to.

    A place is a benchmark, or their macro average where there are several. Seeds of a row are averaged; intervals draw
    problems again within each benchmark, and seeds too where a row has several.
    """

    def __init__(self, rows: Sequence[MethodRuns], k: int) -> None:
        self.rows, self.k = tuple(rows), k
        self.benchmarks = list(dict.fromkeys(name for row in rows for name in row.runs))
        self.places = [*self.benchmarks, AVERAGE] if len(self.benchmarks) > 1 else list(self.benchmarks)
        self.sampled = {at: self.resample(*at) for at in product(range(len(rows)), self.benchmarks)}
        self.tables = {at: self.table(*at) for at in product(range(len(rows)), self.places)}

    def runs(self, row: int, benchmark: str) -> tuple[Run, ...]:
        return self.rows[row].runs.get(benchmark, ())

    def seeds(self, row: int, place: str) -> int:
        """How many seeds a row has at a place; of the average, on the benchmark with the fewest."""
        return min(len(self.runs(row, name)) for name in self.within(place))

    def size(self, benchmark: str) -> int:
        """Problems of a benchmark."""
        return next(len(some[0].texts) for row in self.rows if (some := row.runs.get(benchmark)))

    def num_rounds(self, row: int, place: str) -> int:
        """Rounds that a row has at a place, the initial one included."""
        return min(self.rows[row].num_rounds(name) for name in self.within(place))

    def within(self, place: str) -> list[str]:
        return self.benchmarks if place == AVERAGE and len(self.benchmarks) > 1 else [place]

    # ---- numbers ----

    def resample(self, row: int, benchmark: str) -> dict[Key, Bootstrapped]:
        """Every measure of a row on a benchmark, over its seeds; {} where it was not run."""
        parts = []
        for run in self.runs(row, benchmark):
            columns = run.scores.columns()
            drawn = resample(list(columns.values()), seed=(run.scores.draws,))
            parts.append(dict(zip(columns, drawn, strict=True)))
        shared = [key for key in parts[0] if all(key in part for part in parts)] if parts else []
        return {key: over_seeds([part[key] for part in parts], seed=(1, row)) for key in shared}

    def table(self, row: int, place: str) -> EvalTable:
        """A row's table at a place; without rounds where it was not run."""
        within = self.within(place)
        parts = [self.sampled[row, name] for name in within]
        found = {key: average([part.get(key) for part in parts]) for key in parts[0]}
        runs = [run for name in within for run in self.runs(row, name)]
        return EvalTable(
            self.k,
            sum(self.size(name) for name in within),
            sum(run.scores.traces for run in runs),
            self.num_rounds(row, place),
            {key: bounded(key, one.interval()) for key, one in found.items() if one is not None},
        )

    def paired(self, row: int) -> dict[tuple[str, Pair], Interval]:
        """(place, pair) -> a row minus the first, over the problems that both scored with every seed."""
        return {key: one.interval() for key, one in self.paired_samples(row).items()}

    def paired_samples(self, row: int) -> dict[tuple[str, Pair], Bootstrapped]:
        """The same with all draws."""
        by_benchmark = {name: self.paired_at(row, name) for name in self.benchmarks}
        out = {}
        for place in self.places:
            parts = [by_benchmark[name] for name in self.within(place)]
            for key in parts[0]:
                if (one := average([part.get(key) for part in parts])) is not None:
                    out[place, key] = one
        return out

    def paired_at(self, row: int, benchmark: str) -> dict[Pair, Bootstrapped]:
        mine, theirs = self.runs(row, benchmark), self.runs(0, benchmark)
        if not mine or not theirs:
            return {}
        rounds = {(t, t) for t in range(min(self.num_rounds(i, benchmark) for i in (row, 0)))}
        for place in (benchmark, self.places[-1]):  # last rounds, where the two went differently far
            if self.num_rounds(row, place) and self.num_rounds(0, place):
                rounds.add((self.num_rounds(row, place) - 1, self.num_rounds(0, place) - 1))
        names = [name for name in COMPARED if all((name, 0) in run.scores.values for run in (*mine, *theirs))]
        keys = [(name, *pair) for name in names for pair in sorted(rounds)]
        columns: list[Sequence[float]] = []
        for name, t, first in keys:
            own = [run.scores.values[name, t] for run in mine] + [run.scores.values[name, first] for run in theirs]
            missing = [sum(values) for values in zip(*own, strict=True)]  # NaN where one of them is
            columns += [[value + 0 * gap for value, gap in zip(column, missing, strict=True)] for column in own]
        drawn = iter(resample(columns, seed=(mine[0].scores.draws,)))
        out = {}
        for key in keys:
            a, b = ([next(drawn) for _ in runs] for runs in (mine, theirs))
            out[key] = over_seeds(a, seed=(1, row)) - over_seeds(b, seed=(1, 0))
        return out

    # ---- tables ----

    def main(self) -> list[Sheet]:
        """Initial pass@1 and pass@k and pass@1 of each aggregation round: means side by side, then with intervals."""
        sheets = [self.accuracy([place], place) for place in self.places]
        return [self.accuracy(self.places, ""), *sheets] if len(self.places) > 1 else sheets

    def accuracy(self, places: Sequence[str], of: str) -> Sheet:
        columns: list[Column] = []
        keys: list[tuple[str, str, int]] = []
        for place in places:
            alone, group = len(places) == 1, place if len(places) > 1 else ""
            later = range(1, max(self.num_rounds(row, place) for row in range(len(self.rows))))
            titles = ["initial pass@1", f"initial pass@{self.k}", *(f"round {t}" for t in later)]
            columns += [Column(title, bounds=alone, group=group) for title in titles]
            keys += [(place, "pass_at_1", 0), (place, "pass_at_k", 0), *((place, "pass_at_1", t) for t in later)]
        rows = [
            (row.label, [self.tables[i, place].cell(name, t) for place, name, t in keys])
            for i, row in enumerate(self.rows)
        ]
        return Sheet("accuracy", of, "method", columns, rows)

    def differences(self, measures: Sequence[str] = COMPARED) -> list[Sheet]:
        """Each row minus the first, on the same problems: round by round, and each one's own last round."""
        found = {row: self.paired(row) for row in range(1, len(self.rows))}
        known = {pair[0] for cells in found.values() for _, pair in cells}
        names = [name for name in measures if name != REWARD or name in known] if found else []
        return [self.difference(name, place, found) for place in self.places for name in names]

    def difference(self, name: str, place: str, found: dict[int, dict[tuple[str, Pair], Interval]]) -> Sheet:
        later = range(max(self.num_rounds(row, place) for row in range(len(self.rows))))
        unit, titles = MEASURES[name].unit, [*(f"round {t}" for t in later), "last round"]
        columns = [Column(title, unit, signed=True) for title in titles]
        rows = []
        for row, cells in found.items():
            last = (self.num_rounds(row, place) - 1, self.num_rounds(0, place) - 1)
            pairs = [(name, *pair) for pair in [*((t, t) for t in later), last]]
            rows.append((self.rows[row].label, [cells.get((place, pair)) for pair in pairs]))
        title = MEASURES[name].title.format(k=self.k)
        return Sheet(f"{title} - {self.rows[0].label}", place, "method", columns, rows)

    def rounds(self) -> list[Sheet]:
        """Every measure by round, with the differences between rounds."""
        out = []
        for place in self.places:
            tables = {f"{row.label}, round": self.tables[i, place] for i, row in enumerate(self.rows)}
            out += rounds_sheets(tables, place, "rounds")
        return out

    def bars(self) -> list[Sheet]:
        """Initial pass@1, initial majority and the last round's pass@1, by benchmark, one sheet a row."""
        found = [{p: in_short(self.tables[i, p], "maj_at_k") for p in self.places} for i in range(len(self.rows))]
        pairs = zip(self.rows, found, strict=True)
        return [in_short_sheet("bars", row.label, "benchmark", cells) for row, cells in pairs]

    def temperature(self) -> list[Sheet]:
        """Initial pass@1 and pass@k and the last round's pass@1 by initial temperature. UsageError when none differ."""
        if not (rows := self.by_temperature()):
            raise UsageError("the runs do not differ in generate.temperature: compare others, or leave --table out")
        found = {p: {self.rows[i].label: in_short(self.tables[i, p], "pass_at_k") for i in rows} for p in self.places}
        name, corner = "initial temperature", "method and temperature"
        return [in_short_sheet(name, place, corner, cells) for place, cells in found.items()]

    def by_temperature(self) -> list[int]:
        """The rows whose method was run at several initial temperatures, by method and temperature; [] without any."""
        known = [(row.method, row.temperature, i) for i, row in enumerate(self.rows) if row.temperature is not None]
        varied = {m for m, t, _ in known if any(m == other and t != at for other, at, _ in known)}
        return [i for method, _, i in sorted(known) if method in varied]

    def warmth(self) -> dict[str, dict[float, EvalTable]]:
        """Those rows' tables, on average, by panel and temperature."""
        out: dict[str, dict[float, EvalTable]] = {}
        for i in self.by_temperature():
            row = self.rows[i]
            out.setdefault(row.panel, {})[row.temperature or 0.0] = self.tables[i, self.places[-1]]
        return out

    # ---- output ----

    def sheets(self, table: str = "") -> list[Sheet]:
        """The named table (a key of TABLES); by default the main one and its differences in pass@1."""
        return TABLES[table](self) if table else [*self.main(), *self.differences(COMPARED[:1])]

    def notes(self) -> list[str]:
        sizes = ", ".join(f"{name}: {self.size(name)} problems" for name in self.benchmarks)
        out = [f"Shares in percent, with 95% intervals bootstrapped over problems ({sizes})."]
        if any(len(some) > 1 for row in self.rows for some in row.runs.values()):
            out.append("Seeds of a method are averaged, and drawn again with the problems.")
        if alone := [row.label for row in self.rows if any(len(some) == 1 for some in row.runs.values())]:
            who = ", ".join(alone) if len(alone) < len(self.rows) else "every row"
            out.append(f"Of one seed: {who}; intervals and differences hold for that seed only.")
        if len(self.benchmarks) > 1:
            out.append("The average weighs benchmarks equally and needs a run on each.")
        named = [(name, run) for row in self.rows for name, some in row.runs.items() for run in some]
        out += dict.fromkeys(f"{name}: {run.scores.note}" for name, run in named if run.scores.note)
        lacking: dict[str, list[str]] = {}
        for _, run in named:
            if run.lacking:
                lacking.setdefault(run.lacking, []).append(str(run.path))
        return out + [f"Incomplete: {', '.join(paths)}, {what}." for what, paths in lacking.items()]

    def text(self, table: str = "", width: int | None = None) -> str:
        """For a terminal of that width, or as wide as it comes."""
        notes = " ".join(self.notes())
        return "\n\n".join([*(s.folded(width) for s in self.sheets(table)), fill(notes, width) if width else notes])

    def markdown(self, table: str = "") -> str:
        return "\n\n".join([*(sheet.markdown() for sheet in self.sheets(table)), " ".join(self.notes())])

    def latex(self, table: str = "") -> str:
        return "\n\n".join([*(f"% {note}" for note in self.notes()), *(sheet.latex() for sheet in self.sheets(table))])

    def csv(self, table: str = "") -> str:
        return to_csv(self.sheets(table)).rstrip("\n")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: every row's tables by place, and its differences to the first row."""
        rows = []
        for i, row in enumerate(self.rows):
            runs = [
                {"path": str(run.path), "evaluation": run.evaluation, "benchmark": name, "seed": run.seed}
                for name, some in row.runs.items()
                for run in some
            ]
            gains = [
                {"place": place, "measure": pair[0], "round": pair[1], "first_round": pair[2], **(plain(cell) or {})}
                for (place, pair), cell in (self.paired(i) if i else {}).items()
            ]
            rows.append(
                {"label": row.label, "method": row.method, "temperature": row.temperature, "runs": runs}
                | {"tables": {p: self.tables[i, p].to_dict() for p in self.places}, "minus_first_row": gains}
            )
        sizes = {name: self.size(name) for name in self.benchmarks}
        return {"k": self.k, "first": self.rows[0].label, "benchmarks": sizes, "rows": rows}

    def metrics(self) -> dict[str, Metrics]:
        """Training metrics by row, or by run where a row has several."""
        out: dict[str, Metrics] = {}
        for row in self.rows:
            runs = [run for some in row.runs.values() for run in some if run.metrics]
            for run in runs:
                label = row.label if len(runs) == 1 else f"{row.method} ({run.name})"
                out[str(run.path) if label in out else label] = run.metrics
        return out


def in_short_sheet(name: str, of: str, corner: str, found: Mapping[str, Mapping[str, Interval]]) -> Sheet:
    """Rows of `in_short`, by label."""
    titles = next(iter(found.values()))
    return Sheet(
        name, of, corner, [Column(t) for t in titles], [(at, list(some.values())) for at, some in found.items()]
    )


def bounded(key: Key, cell: Interval) -> Interval:
    """A share's bounds within 0 and 1, which few and different seeds may draw beyond; a difference as it is."""
    name, _, minus = key
    if minus or (name in MEASURES and MEASURES[name].unit != "share") or math.isnan(cell.low):
        return cell
    return Interval(cell.mean, max(0.0, cell.low), min(1.0, cell.high))


TABLES: dict[str, Callable[[Comparison], list[Sheet]]] = {
    "main": Comparison.main,
    "rounds": Comparison.rounds,
    "bars": Comparison.bars,
    "temperature": Comparison.temperature,
    "differences": Comparison.differences,
}


def compare(run_dirs: Sequence[Path], k: int = 4, labels: Sequence[str] = ()) -> Comparison:
    """Read the runs' last evaluation (after training where there is one) and set them side by side.

    UsageError without a run, and for labels that do not fit; DataError when a run has no evaluation, or two runs of a
    task are not on the same problems.
    """
    if not run_dirs:
        raise UsageError("no run given: name at least one run directory")
    return Comparison(gather([load_run(Path(path), k) for path in run_dirs], labels), k)
