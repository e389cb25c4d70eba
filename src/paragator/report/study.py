"""A study's analysis: `compare` over cells and seeds, its primary outcome with Holm's correction, and equal steps and tokens.

What is compared comes from the folders that `paragator study` left: study.json, and CELL-seedN/{train,eval,eval-tT}.
"""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paragator.core.errors import DataError
from paragator.core.estimators import Interval, mean
from paragator.report import bands, bars
from paragator.report.compare import COMPARED, Comparison
from paragator.report.measures import MEASURES, Scores
from paragator.report.plots import is_number
from paragator.report.resample import holm
from paragator.report.runs import Run, gather, load_run, read_json, read_metrics
from paragator.report.sheet import Column, Sheet, to_csv
from paragator.report.table import NOTHING

NOTE = "study.json"
SHOWN = ("pass_at_1", "pass_at_k", "maj_at_k", "oracle", "tokens", "truncated")
"""The measures of runs.csv."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished run of a cell: its evaluation, and those at further initial temperatures."""

    cell: str
    matched: str
    seed: int
    run: Run
    warm: tuple[Run, ...]


def is_study(folder: Path) -> bool:
    return (folder / NOTE).is_file()


def read_study(folder: Path) -> tuple[dict[str, Any], list[Entry]]:
    """A study's note and its finished runs, the reference cell first; DataError when it is no study."""
    note = read_json(folder / NOTE)
    try:
        k, cells = int(note["evaluation"]["k"]), [(c["name"] or c["method"], c["matched"]) for c in note["cells"]]
        cells.sort(key=lambda cell: cell[0] != note["reference"])  # stable: the others stay in their order
        seeds, primary = list(note["seeds"]), (str(note["primary"]["measure"]), int(note["primary"]["round"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / NOTE}: not a study's note ({error!r}); name a folder that `paragator study` left"
        ) from None
    entries = []
    for cell, matched in cells:
        for seed in seeds:
            unit = folder / f"{cell}-seed{seed}"
            done = read_json(unit / "finished.json")
            if "eval" not in done:
                continue
            run = replace(load_run(unit / "eval", k), metrics=read_metrics(unit / "train"))
            warm = tuple(load_run(unit / name, k) for name in sorted(done) if name.startswith("eval-t"))
            entries.append(Entry(cell, matched, seed, run, warm))
    return {**note, "k": k, "primary": primary}, entries


def cut(run: Run, rounds: int) -> Run:
    """A run as if it had ended after an aggregation round."""
    found = run.scores
    values = {key: column for key, column in found.values.items() if key[0] == "votes" or key[1] <= rounds}
    return replace(run, scores=replace(found, num_rounds=min(found.num_rounds, rounds + 1), values=values))


class Results:
    """A study's numbers, or those of several studies of the same cells on different tasks."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = list(folders)
        found = [read_study(Path(folder)) for folder in folders]
        self.note = found[0][0]
        self.entries = [entry for _, entries in found for entry in entries]
        for key in ("primary", "reference", "k"):
            if odd := next(
                (f for f, (note, _) in zip(folders, found, strict=True) if note[key] != self.note[key]), None
            ):
                raise DataError(f"{odd}: another {key} than {folders[0]}; compare studies of one primary outcome")
        self.k: int = self.note["k"]
        self.measure, self.round = self.note["primary"]
        self.reference: str = self.note["reference"]
        if not any(entry.cell == self.reference for entry in self.entries):
            raise DataError(f"{folders[0]}: no run of {self.reference} is finished, which all others are compared with")
        self.cells = sorted({e.cell: e.matched for e in self.entries}.items(), key=lambda c: c[0] != self.reference)
        self.whole = self.comparison([(entry.cell, entry.run) for entry in self.entries])
        self.short = self.comparison([(entry.cell, cut(entry.run, self.round)) for entry in self.entries])

    def comparison(self, runs: Sequence[tuple[str, Run]]) -> Comparison:
        """Runs by cell, the reference first; seeds are named in the notes, not in every label."""
        ordered = sorted(runs, key=lambda pair: pair[0] != self.reference)
        rows = gather([run for _, run in ordered], [cell for cell, _ in ordered])
        plain = [replace(row, label=row.label.partition(" (seeds")[0]) for row in rows]
        return Comparison(plain, self.k)

    # ---- the primary outcome ----

    def primary(self) -> list[tuple[str, str, Interval, float, float]]:
        """(place, cell, its difference to the reference with a 95% interval, p, Holm's p among the cells of its place)."""
        out = []
        sampled = {row: self.short.paired_samples(row) for row in range(1, len(self.short.rows))}
        key = (self.measure, self.round, self.round)
        for place in self.short.places:
            found = {row: some[place, key] for row, some in sampled.items() if (place, key) in some}
            p_values = [one.p_value() for one in found.values()]
            for (row, one), p, adjusted in zip(found.items(), p_values, holm(p_values), strict=True):
                out.append((place, self.short.rows[row].label, one.interval(), p, adjusted))
        return out

    def primary_sheets(self) -> list[Sheet]:
        """Per place: each cell's primary outcome, its difference to the reference, p, and Holm's p."""
        columns = (
            Column(self.outcome),
            Column(f"minus {self.reference}", signed=True),
            Column("p", "probability"),
            Column("p, Holm", "probability"),
        )
        found = {(place, cell): (gap, p, adjusted) for place, cell, gap, p, adjusted in self.primary()}
        sheets = []
        nothing: tuple[Interval | None, float, float] = (None, math.nan, math.nan)
        for place in self.short.places:
            rows: list[tuple[str, tuple[Interval | None, ...]]] = []
            for i, row in enumerate(self.short.rows):
                own = self.short.tables[i, place].cell(self.measure, self.round)
                difference, p, adjusted = found.get((place, row.label), nothing)
                rows.append((row.label, (own, difference, number(p), number(adjusted))))
            sheets.append(Sheet("primary outcome", place, "cell", columns, tuple(rows)))
        return sheets

    @property
    def outcome(self) -> str:
        title = MEASURES[self.measure].title.format(k=self.k)
        return f"{title} after round {self.round}" if self.round else f"initial {title}"

    def primary_text(self) -> str:
        return "\n\n".join(f"{sheet.title}\n{sheet.text()}" for sheet in self.primary_sheets())

    def primary_rows(self) -> list[dict[str, Any]]:
        """The comparisons as plain values."""
        return [
            {"place": place, "cell": cell, "minus": self.reference, "mean": gap.mean, "low": gap.low, "high": gap.high}
            | {"p": p, "p_holm": adjusted}
            for place, cell, gap, p, adjusted in self.primary()
        ]

    # ---- other tables ----

    def by_seed(self) -> list[Sheet]:
        """The primary outcome of every run."""
        sheets = []
        for place in self.whole.benchmarks:
            rows = {row.label: {run.seed: run for run in row.runs.get(place, ())} for row in self.whole.rows}
            seeds = sorted({seed for runs in rows.values() for seed in runs if seed is not None})
            cells = tuple(
                (
                    label,
                    tuple(number(outcome(runs[s].scores, *self.note["primary"])) if s in runs else None for s in seeds),
                )
                for label, runs in rows.items()
            )
            columns = tuple(Column(f"seed {seed}") for seed in seeds)
            sheets.append(Sheet(f"{self.outcome} by seed", place, "cell", columns, cells))
        return sheets

    def matched(self) -> list[Sheet]:
        """Cells at equal steps, and at equal numbers of sampled tokens: held-out outcomes, and rewards in training."""
        return [
            sheet
            for place in self.whole.benchmarks
            for sheet in (self.equal(place, "steps"), self.equal(place, "tokens"))
        ]

    def equal(self, place: str, by: str) -> Sheet:
        """The cells that took as many steps; or for each method its cell matched by tokens, where it has one."""
        labels = [cell for cell, matched in self.cells if matched == "steps"]
        if by == "tokens":
            twins = {self.method(cell): cell for cell, matched in self.cells if matched == "tokens"}
            labels = [twins.get(cell, cell) if cell == self.method(cell) else cell for cell in labels]
        metrics = {label: self.metrics(place, label) for label in dict.fromkeys(labels)}
        trained = [rows for runs in metrics.values() for rows in runs if rows]
        steps = min((bands.last_step(rows) for rows in trained), default=0)
        tokens = min((bands.total_tokens(rows) for rows in trained), default=0.0)
        rows = []
        for i, row in enumerate(self.short.rows):
            if row.label not in metrics or not row.runs.get(place):
                continue
            runs = [one for one in metrics[row.label] if one]
            until = [steps if by == "steps" else bands.step_at(one, tokens) for one in runs]
            rewards = [
                mean(bands.recent(one, f"{stage}/reward", at) for one, at in zip(runs, until, strict=True))
                for stage in ("generate", "aggregate")
            ]
            spent = [mean(bands.last_step(one) for one in runs), mean(map(bands.total_tokens, runs)), mean(until)]
            table = self.short.tables[i, place]
            held_out = (table.cell("pass_at_1", 0), table.cell(self.measure, self.round))
            rows.append((row.label, (*map(number, spent), *held_out, *map(number, rewards))))
        limit = f"step {steps}" if by == "steps" else f"{tokens:,.0f} tokens"
        columns = (
            *(Column(title, "whole") for title in ("steps", "tokens sampled in training", f"steps until {limit}")),
            *(Column(title) for title in ("initial pass@1", self.outcome)),
            *(Column(f"reward of {stage} at {limit}") for stage in ("candidates", "aggregations")),
        )
        return Sheet(f"matched by {by}", place, "cell", columns, tuple(rows))

    def method(self, cell: str) -> str:
        """A cell's method."""
        return next((c["method"] for c in self.note["cells"] if (c["name"] or c["method"]) == cell), cell)

    def metrics(self, place: str, label: str) -> list[list[dict[str, Any]]]:
        """The training metrics of a cell's runs."""
        return [run.metrics for row in self.whole.rows if row.label == label for run in row.runs.get(place, ())]

    def temperatures(self) -> Comparison | None:
        """All runs of cells that were evaluated at several initial temperatures, up to the primary outcome's round."""
        runs = [
            (entry.cell, cut(run, self.round))
            for entry in self.entries
            if entry.warm
            for run in (entry.run, *entry.warm)
        ]
        if not runs:
            return None
        runs.sort(key=lambda pair: (pair[0] != self.reference, [c for c, _ in self.cells].index(pair[0])))
        rows = gather([run for _, run in runs], [cell for cell, _ in runs])
        return Comparison([replace(row, label=row.label.partition(" (seeds")[0]) for row in rows], self.k)

    def sheets(self) -> list[Sheet]:
        """Everything, what matters most first."""
        warm = self.temperatures()
        return [
            *self.primary_sheets(),
            *self.short.main(),
            *self.by_seed(),
            *self.matched(),
            *(warm.temperature() if warm and warm.by_temperature() else ()),
            *self.whole.differences(COMPARED),
            *self.whole.rounds(),
        ]

    def notes(self) -> list[str]:
        """What the tables stand for."""
        size = max(1, len(self.short.rows) - 1)
        return [
            f"Primary outcome, fixed before the first run: {self.outcome}, each cell minus {self.reference}.",
            *self.whole.notes(),
            f"p is two-sided, from the same draws; Holm's correction is for the {size} comparisons of a table of primary outcomes.",
            "Every other interval is for one comparison.",
            f"Seeds: {'; '.join(self.seeds())}.",
        ]

    def seeds(self) -> list[str]:
        """Which seeds the cells have."""
        own = {c: ", ".join(map(str, sorted({e.seed for e in self.entries if e.cell == c}))) for c, _ in self.cells}
        groups = {seeds: [c for c, some in own.items() if some == seeds] for seeds in dict.fromkeys(own.values())}
        return [f"{seeds} of {'every cell' if len(groups) == 1 else ', '.join(some)}" for seeds, some in groups.items()]

    def pictures(self) -> dict[str, bytes | None]:
        """PNGs by file name."""
        out: dict[str, bytes | None] = {}
        for place in self.whole.benchmarks:
            methods = {row.label: [m for m in self.metrics(place, row.label) if m] for row in self.whole.rows}
            methods = {label: runs for label, runs in methods.items() if runs}
            end = f"_{place.replace('/', '-')}.png" if len(self.whole.benchmarks) > 1 else ".png"
            out[f"reward_by_step{end}"] = bands.curves(methods)
            out[f"reward_by_tokens{end}"] = bands.curves(methods, against="tokens")
            out[f"dead_zone{end}"] = bands.curves(methods, panels=bands.DEAD_ZONE, ylabel="Groups without credit")
        if (warm := self.temperatures()) and warm.by_temperature():
            panels: dict[str, dict[float, Any]] = {}
            for i in warm.by_temperature():
                row = warm.rows[i]
                panels.setdefault(row.method, {})[row.temperature or 0.0] = warm.tables[i, warm.places[-1]]
            out["temperature.png"] = bars.temperatures(panels, f"round {self.round}")
        return out


def number(value: float) -> Interval:
    """A number without bounds."""
    return NOTHING if math.isnan(value) else Interval(value, math.nan, math.nan)


def outcome(scores: Scores, measure: str, round_: int) -> float:
    """A run's mean over problems; NaN where it has no such round."""
    return mean(scores.values.get((measure, round_), ()))


# ---- files ----


def write_results(folders: Sequence[Path], out_dir: Path) -> Results:
    """Write tables.md, tables.csv, runs.csv, metrics.csv, the pictures and every run's config; DataError without a run.

    What an earlier analysis wrote there is replaced, anything else is left alone.
    """
    found = Results(folders)
    out_dir.mkdir(parents=True, exist_ok=True)
    drawn, _ = found.whole.draw(out_dir)
    for twice in ("reward_curves.png", "temperature.png"):  # the study's own have bands, and one round
        (out_dir / twice).unlink(missing_ok=True)
    names = [path.name for path in drawn if path.is_file()]
    for name, data in found.pictures().items():
        (out_dir / name).unlink(missing_ok=True)
        if data is not None:
            (out_dir / name).write_bytes(data)
            names.append(name)
    sheets = found.sheets()
    text = "\n\n".join(
        [
            f"# {', '.join(Path(folder).name for folder in folders)}",
            *found.notes(),
            *(sheet.markdown() for sheet in sheets),
            *(f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in names),
        ]
    )
    (out_dir / "tables.md").write_text(text + "\n", encoding="utf-8")
    (out_dir / "tables.csv").write_text(to_csv(s for s in sheets if all(c.bounds for c in s.columns)), encoding="utf-8")
    (out_dir / "runs.csv").write_text(runs_csv(found.entries), encoding="utf-8")
    (out_dir / "metrics.csv").write_text(metrics_csv(found.entries), encoding="utf-8")
    copy_configs(found, out_dir)
    return found


def runs_csv(entries: Sequence[Entry]) -> str:
    """One line a run, initial temperature and round."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["task", "cell", "seed", "temperature", "round", *SHOWN])
    for entry in entries:
        for run in (entry.run, *entry.warm):
            for t in range(run.scores.num_rounds):
                numbers = [outcome(run.scores, name, t) for name in SHOWN]
                shown = ["" if math.isnan(x) else f"{x:.6f}" for x in numbers]
                writer.writerow([run.task[0], entry.cell, entry.seed, run.temperature, t, *shown])
    return out.getvalue()


def recorded(results: Path, cell: str, seed: int, temperature: float, measure: str, round_: int) -> float | None:
    """What a study's runs.csv says of one run; None where it says nothing."""
    path = results / "runs.csv"
    wanted = {"cell": cell, "seed": str(seed), "temperature": str(temperature), "round": str(round_)}
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if all(row.get(key) == value for key, value in wanted.items()) and row.get(measure):
                return float(row[measure])
    return None


def metrics_csv(entries: Sequence[Entry]) -> str:
    """One line a training step, with every number that it recorded; seconds are left out, as they are the machine's."""
    rows: list[Mapping[str, Any]] = [
        {"task": entry.run.task[0], "cell": entry.cell, "seed": entry.seed}
        | {k: f"{v:.6g}" for k, v in row.items() if is_number(v) and not k.startswith("seconds")}
        for entry in entries
        for row in entry.run.metrics
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["task", "cell", "seed"]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def copy_configs(found: Results, out_dir: Path) -> None:
    """Each run's config and each study's note: what runs it again."""
    for folder in found.folders:
        target = out_dir / "configs" if len(found.folders) == 1 else out_dir / "configs" / Path(folder).name
        target.mkdir(parents=True, exist_ok=True)
        (target / NOTE).write_text(json.dumps(read_json(Path(folder) / NOTE), indent=2) + "\n")
        for path in sorted(Path(folder).glob("*/config.toml")):
            shutil.copyfile(path, target / f"{path.parent.name}.toml")
