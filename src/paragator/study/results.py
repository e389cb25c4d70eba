"""A study's numbers: comparisons over cells and seeds, the primary outcome with Holm's correction, equal steps and tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from paragator.core.errors import DataError
from paragator.core.estimators import Interval, mean
from paragator.stats import curves
from paragator.stats.compare import AVERAGE, COMPARED, Comparison
from paragator.stats.measures import BY_COUNT, MEASURES
from paragator.stats.resample import holm
from paragator.stats.runs import Run, gather
from paragator.stats.sheet import Column, Sheet
from paragator.stats.table import NOTHING
from paragator.study.finished import FinishedRun, outcome, read_study

FEWEST_SEEDS = 3
"""Of either side of a comparison, for its p: with fewer it is far too small (docs/study.md)."""


def cut(run: Run, rounds: int) -> Run:
    """A run as if it had ended after an aggregation round."""
    found = run.scores
    values = {key: column for key, column in found.values.items() if key[0] in BY_COUNT or key[1] <= rounds}
    return replace(run, scores=replace(found, num_rounds=min(found.num_rounds, rounds + 1), values=values))


class Results:
    """A study's numbers, or those of several studies of the same cells on different tasks."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = [Path(folder) for folder in folders]
        self.studies = [read_study(folder) for folder in self.folders]
        self.note = self.studies[0][0]
        self.entries = [entry for _, entries in self.studies for entry in entries]
        self.check_alike()
        self.k: int = self.note["k"]
        self.measure, self.round = self.note["primary"]
        self.reference: str = self.note["reference"]
        if not any(entry.cell == self.reference for entry in self.entries):
            raise DataError(f"{folders[0]}: no run of {self.reference} is finished, which all others are compared with")
        self.cells = sorted({e.cell: e.matched for e in self.entries}.items(), key=lambda c: c[0] != self.reference)
        self.whole = self.comparison([(entry.cell, entry.run) for entry in self.entries])
        self.short = self.comparison([(entry.cell, cut(entry.run, self.round)) for entry in self.entries])

    def check_alike(self) -> None:
        """DataError unless the studies have one outcome, cells of one label are alike, and no run is given twice."""
        cells: dict[str, Any] = {}
        for folder, (note, _) in zip(self.folders, self.studies, strict=True):
            here = {e.run.task for e in self.entries if e.folder.parent == folder}
            same = here & {e.run.task for e in self.entries if e.folder.parent == self.folders[0]}
            for key in ("primary", "reference", "k", "evaluation", *(["base"] if same else [])):
                if settings(note.get(key)) != settings(self.note.get(key)):
                    raise DataError(
                        f"{folder}: another {key} than {self.folders[0]}; compare studies that are alike in it"
                    )
            for label, cell in note["cells"].items():
                if cells.setdefault(label, cell) != cell:
                    raise DataError(f"{folder}: cell {label} is {cell}, but {cells[label]} before; rename one of them")
        seen: dict[Any, Path] = {}
        for e in self.entries:
            if (other := seen.setdefault((e.cell, e.run.task, e.seed), e.folder)) != e.folder:
                raise DataError(f"{e.folder} and {other} are one cell, task and seed; leave one study out")

    def at(self, place: str) -> list[FinishedRun]:
        """The finished runs of a benchmark."""
        paths = {run.path for row in self.whole.rows for run in row.runs.get(place, ())}
        return [entry for entry in self.entries if entry.run.path in paths]

    def declared(self, place: str) -> set[str]:
        """The cells that a place's studies declare, finished or not; of the average, those of every benchmark."""
        if place == AVERAGE:
            return set.intersection(*map(self.declared, self.whole.benchmarks))
        here = {entry.folder.parent for entry in self.at(place)}
        return {cell for folder, (note, _) in zip(self.folders, self.studies, strict=True) if folder in here
                for cell in note["cells"]}  # fmt: skip

    def comparison(self, runs: Sequence[tuple[str, Run]]) -> Comparison:
        """Runs by cell, the reference first; seeds are named in the notes, not in every label."""
        ordered = sorted(runs, key=lambda pair: pair[0] != self.reference)
        rows = gather([run for _, run in ordered], [cell for cell, _ in ordered])
        plain = [replace(row, label=row.label.partition(" (seeds")[0]) for row in rows]
        return Comparison(plain, self.k)

    # ---- the primary outcome ----

    def primary(self) -> list[tuple[str, str, Interval, float, float]]:
        """(place, cell, its difference to the reference with a 95% interval, p, Holm's p among the comparisons declared there).

        Both p are NaN where a side has too few seeds.
        """
        out = []
        sampled = {row: self.short.paired_samples(row) for row in range(1, len(self.short.rows))}
        key = (self.measure, self.round, self.round)
        for place in self.short.places:
            found = {row: some[place, key] for row, some in sampled.items() if (place, key) in some}
            p_values = [math.nan if self.has_few_seeds(row, place) else one.p_value() for row, one in found.items()]
            known = sum(not math.isnan(p) for p in p_values)
            p_values += [1.0] * (self.family(place) - known)  # of what is not finished yet or has no p
            for (row, one), p, adjusted in zip(found.items(), p_values, holm(p_values), strict=False):
                out.append((place, self.short.rows[row].label, one.interval(), p, adjusted))
        return out

    def has_few_seeds(self, row: int, place: str) -> bool:
        """Whether a row's comparison with the reference has too few seeds for a p."""
        return min(self.short.seeds(row, place), self.short.seeds(0, place)) < FEWEST_SEEDS

    def family(self, place: str) -> int:
        """How many comparisons with the reference are declared for a place."""
        return len(self.declared(place)) - 1

    def primary_sheets(self) -> list[Sheet]:
        """Per place: each cell's primary outcome, its difference to the reference, p, and Holm's p."""
        columns = [Column(self.outcome), Column(f"minus {self.reference}", signed=True)]
        columns += [Column("p", "probability"), Column("p, Holm", "probability")]
        found = {(place, cell): (gap, number(p), number(adjusted)) for place, cell, gap, p, adjusted in self.primary()}
        nothing = (NOTHING, NOTHING, NOTHING)
        sheets = []
        for place in self.short.places:
            own = [self.short.tables[i, place].cell(self.measure, self.round) for i in range(len(self.short.rows))]
            labels = [row.label for row in self.short.rows]
            rows = [(name, (one, *found.get((place, name), nothing))) for name, one in zip(labels, own, strict=True)]
            sheets.append(Sheet("primary outcome", place, "cell", columns, rows))
        return sheets

    @property
    def outcome(self) -> str:
        title = MEASURES[self.measure].title.format(k=self.k)
        return f"{title} after round {self.round}" if self.round else f"initial {title}"

    def primary_text(self, width: int | None = None) -> str:
        return "\n\n".join(sheet.folded(width) for sheet in self.primary_sheets())

    def primary_rows(self) -> list[dict[str, Any]]:
        """The comparisons as JSON values; None for what is NaN."""
        out = []
        for place, cell, gap, p, adjusted in self.primary():
            numbers = {"mean": gap.mean, "low": gap.low, "high": gap.high, "p": p, "p_holm": adjusted}
            known = {name: None if math.isnan(value) else value for name, value in numbers.items()}
            out.append({"place": place, "cell": cell, "minus": self.reference, **known})
        return out

    # ---- other tables ----

    def by_seed(self) -> list[Sheet]:
        """The primary outcome of every run."""
        sheets = []
        for place in self.whole.benchmarks:
            rows = {row.label: {run.seed: run for run in row.runs.get(place, ())} for row in self.whole.rows}
            seeds = sorted({seed for runs in rows.values() for seed in runs if seed is not None})
            cells = []
            for label, runs in rows.items():
                own = [number(outcome(runs[s].scores, self.measure, self.round)) if s in runs else None for s in seeds]
                cells.append((label, own))
            columns = [Column(f"seed {seed}") for seed in seeds]
            sheets.append(Sheet(f"{self.outcome} by seed", place, "cell", columns, cells))
        return sheets

    def matched(self) -> list[Sheet]:
        """Cells at equal steps, and at equal numbers of sampled tokens: rewards in training, and held-out outcomes.

        Held-out outcomes are always of the final weights, so of as many tokens only where cells' totals agree.
        """
        return [self.equal(place, by) for place in self.whole.benchmarks for by in ("steps", "tokens")]

    def equal(self, place: str, by: str) -> Sheet:
        """The cells that took as many steps; by tokens, a method's cells that are matched so stand in for its others."""
        labels = [cell for cell, matched in self.cells if matched == "steps"]
        if by == "tokens":
            here = {entry.cell for entry in self.at(place)}
            twins = [cell for cell, matched in self.cells if matched == "tokens" and cell in here]
            replaced = set(map(self.method, twins))
            labels = [*twins, *(cell for cell in labels if self.method(cell) not in replaced)]
        metrics = {label: self.metrics(place, label) for label in labels}
        trained = [rows for runs in metrics.values() for rows in runs if rows]
        steps = min((curves.last_step(rows) for rows in trained), default=0)
        tokens = min((curves.total_tokens(rows) for rows in trained), default=0.0)
        rows = []
        for i, row in enumerate(self.short.rows):
            if row.label not in metrics or not row.runs.get(place):
                continue
            runs = [one for one in metrics[row.label] if one]
            until = [steps if by == "steps" else curves.step_at(one, tokens) for one in runs]
            rewards = [
                mean(curves.recent(one, f"{stage}/reward", at) for one, at in zip(runs, until, strict=True))
                for stage in ("generate", "aggregate")
            ]
            spent = [mean(curves.last_step(one) for one in runs), mean(map(curves.total_tokens, runs)), mean(until)]
            table = self.short.tables[i, place]
            held_out = (table.cell("pass_at_1", 0), table.cell(self.measure, self.round))
            rows.append((row.label, (*map(number, spent), *held_out, *map(number, rewards))))
        limit = f"step {steps}" if by == "steps" else f"{tokens:,.0f} tokens"
        columns = [Column(title, "whole") for title in ("steps", "tokens sampled in training", f"steps until {limit}")]
        columns += [Column(f"{title}, final weights") for title in ("initial pass@1", self.outcome)]
        columns += [Column(f"reward of {stage} at {limit}") for stage in ("candidates", "aggregations")]
        return Sheet(f"matched by {by}", place, "cell", columns, rows)

    def method(self, cell: str) -> str:
        """A cell's method."""
        return next(str(note["cells"][cell]["method"]) for note, _ in self.studies if cell in note["cells"])

    def metrics(self, place: str, label: str) -> list[curves.Metrics]:
        """The training metrics of a cell's runs."""
        return [entry.metrics for entry in self.at(place) if entry.cell == label]

    def trained(self) -> dict[str, list[curves.Metrics]]:
        """The training metrics of every cell, one list of rows a run."""
        return {
            row.label: [e.metrics for e in self.entries if e.cell == row.label and e.metrics] for row in self.whole.rows
        }

    def temperatures(self) -> Comparison | None:
        """All runs of cells that were evaluated at several initial temperatures, up to the primary outcome's round."""
        warm = [(e.cell, cut(run, self.round)) for e in self.entries if e.warm for run in (e.run, *e.warm)]
        found = self.comparison(warm) if warm else None
        return found if found and found.by_temperature() else None

    def sheets(self) -> list[Sheet]:
        """Everything, what matters most first."""
        warm = self.temperatures()
        return [
            *self.primary_sheets(),
            *self.short.main(),
            *self.by_seed(),
            *self.matched(),
            *(warm.temperature() if warm else ()),
            *self.whole.differences(COMPARED),
            *self.whole.rounds(),
        ]

    def notes(self) -> list[str]:
        """What the tables stand for."""
        sizes = sorted({self.family(place) for place in self.short.places})
        return [
            f"Primary outcome, fixed before the first run: {self.outcome}, each cell minus {self.reference}.",
            *self.whole.notes(),
            f"p is two-sided, from the same draws; Holm's correction is for all comparisons of a table of primary "
            f"outcomes that were declared, finished or not: {' or '.join(map(str, sizes))}.",
            *self.without_p(),
            "Every other interval is for one comparison.",
            f"Seeds: {'; '.join(self.seeds())}.",
        ]

    def without_p(self) -> list[str]:
        """A note on the comparisons that have too few seeds, if any has."""
        compared = {(row, place) for place in self.short.places for row in range(1, len(self.short.rows))}
        few = {row for row, place in compared if self.short.seeds(row, place) and self.has_few_seeds(row, place)}
        if not few:
            return []
        cells = ", ".join(self.short.rows[row].label for row in sorted(few))
        return [
            f"No p for {cells}: with fewer than {FEWEST_SEEDS} seeds on a side it would be far too small; Holm's correction "
            "counts such a comparison as p = 1."
        ]

    def seeds(self) -> list[str]:
        """Which seeds the cells have."""
        own = {c: ", ".join(map(str, sorted({e.seed for e in self.entries if e.cell == c}))) for c, _ in self.cells}
        groups = {seeds: [c for c, some in own.items() if some == seeds] for seeds in dict.fromkeys(own.values())}
        return [f"{seeds} of {'every cell' if len(groups) == 1 else ', '.join(some)}" for seeds, some in groups.items()]


def settings(value: Any) -> Any:
    """A value of a study's note, without what studies may differ in."""
    return {k: one for k, one in value.items() if k != "temperatures"} if isinstance(value, Mapping) else value


def number(value: float) -> Interval:
    """A number without bounds."""
    return NOTHING if math.isnan(value) else Interval(value, math.nan, math.nan)
