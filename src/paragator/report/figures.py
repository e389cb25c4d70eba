"""Figures for a paper: each as PDF and PNG with its data as CSV, and the main table as LaTeX, from whatever holds the numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paragator.report import bars, plots
from paragator.report.canvas import SCREEN, STYLES, Picture, Style
from paragator.stats.compare import AVERAGE, Comparison
from paragator.stats.curves import Metrics
from paragator.stats.sheet import Sheet, to_csv
from paragator.stats.table import EvalTable
from paragator.stats.written import metrics_of, read_sheets, tables_of, warmth_of

NEEDS = {
    "reward_curves": "runs with a metrics.jsonl that has rewards: `paragator train`",
    "accuracy_by_round": "an evaluation with scored answers",
    "temperature": "runs of one method that differ in generate.temperature",
    "bars": "an evaluation with scored answers",
    "accuracy_by_tokens": "an evaluation that knows its numbers of tokens",
    "recovery": "the traces of aggregations: run directories, not a study's results",
}
"""Every figure, and what it is drawn from."""


@dataclass(frozen=True, slots=True)
class FigureData:
    """What figures are drawn from: tables by row and place (the last being the average), temperatures, metrics a seed."""

    tables: Mapping[str, Mapping[str, EvalTable]]
    warmth: Mapping[str, Mapping[float, EvalTable]]
    metrics: Mapping[str, Sequence[Metrics]]
    main: Sequence[Sheet]
    notes: Sequence[str] = ()

    @property
    def places(self) -> list[str]:
        """Benchmarks, and their average last where there are several."""
        found = list(dict.fromkeys(place for tables in self.tables.values() for place in tables))
        return sorted(found, key=lambda place: place == AVERAGE)

    @property
    def about(self) -> str:
        count = len(self.places)
        return self.places[-1] if count == 1 else f"{AVERAGE} of {count - 1} benchmarks"

    @classmethod
    def of(
        cls,
        found: Comparison,
        warm: Comparison | None = None,
        metrics: Mapping[str, Sequence[Metrics]] | None = None,
    ) -> FigureData:
        """Of runs side by side; `warm` and `metrics` where other initial temperatures and training are in folders apart."""
        tables = {row.label: {p: found.tables[i, p] for p in found.places} for i, row in enumerate(found.rows)}
        own = {row.label: [r.metrics for some in row.runs.values() for r in some if r.metrics] for row in found.rows}
        return cls(tables, (warm or found).warmth(), metrics or own, found.main(), found.notes())

    @classmethod
    def read(cls, folder: Path) -> FigureData:
        """Of the files that a study's analysis wrote."""
        sheets = read_sheets(folder)
        main = [sheet for sheet in sheets if sheet.name == "accuracy"]
        tables, metrics = tables_of(sheets), metrics_of(folder)
        return cls(tables, warmth_of(sheets), {label: metrics.get(label, []) for label in tables}, main)

    def pictures(self, names: Collection[str], style: Style = SCREEN) -> dict[str, Picture | None]:
        """Some of the figures; None for one without data."""
        last = {label: tables[self.places[-1]] for label, tables in self.tables.items() if self.places[-1] in tables}
        about = self.about if style is SCREEN else ""
        draw: dict[str, Callable[[], Picture | None]] = {
            "accuracy_by_round": lambda: plots.accuracy_by_round(last, style),
            "accuracy_by_tokens": lambda: plots.accuracy_by_tokens(last, self.about, style),
            "bars": lambda: bars.bars(self.tables, style),
            "temperature": lambda: bars.temperatures(self.warmth, about, style),
            "recovery": lambda: plots.recovery(last, self.about, style),
            "reward_curves": lambda: plots.curves(self.metrics, style=style),
        }
        return {name: one() for name, one in draw.items() if name in names}


def write_figures(numbers: FigureData, out_dir: Path, style: str) -> tuple[list[Path], dict[str, str]]:
    """Write main.tex, and NAME.pdf, .png and .csv of each figure; the paths, and what each figure that is left out needs."""
    out_dir.mkdir(parents=True, exist_ok=True)
    table = "\n\n".join([*(f"% {note}" for note in numbers.notes), *(sheet.latex() for sheet in numbers.main)])
    files: dict[str, bytes] = {"main.tex": f"{table}\n".encode(), "main.csv": to_csv(numbers.main).encode()}
    missing = {}
    for name, picture in numbers.pictures(NEEDS, STYLES[style]).items():
        for end in ("pdf", "png", "csv"):
            (out_dir / f"{name}.{end}").unlink(missing_ok=True)  # of earlier runs
        if picture is None:
            missing[name] = NEEDS[name]
        else:
            files |= {f"{name}.pdf": picture.pdf(), f"{name}.png": picture.png(), f"{name}.csv": picture.csv().encode()}
    for name, data in files.items():
        (out_dir / name).write_bytes(data)
    return [out_dir / name for name in files], missing
