"""A comparison's numbers read back from the tables.csv and metrics.csv of a study's results: what its pictures need."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paragator.core.errors import DataError
from paragator.core.estimators import Interval
from paragator.stats.curves import Metrics
from paragator.stats.measures import MEASURES, Key
from paragator.stats.sheet import Column, Sheet
from paragator.stats.table import EvalTable

TABLES, METRICS = "tables.csv", "metrics.csv"


def is_written(folder: Path) -> bool:
    """Whether a folder holds results of `paragator study` and not its runs."""
    return (folder / TABLES).is_file() and (folder / METRICS).is_file()


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def read_sheets(folder: Path) -> list[Sheet]:
    """The sheets of tables.csv, in their order; DataError where a line is none of such a file."""
    found: dict[tuple[str, str], dict[str, dict[Column, Interval]]] = {}
    for number, row in enumerate(read_rows(folder / TABLES), 2):
        try:
            mean, low, high = (float(row[name] or "nan") for name in ("mean", "low", "high"))
            column: Any = Column(row["column"], row["unit"], signed=" - " in row["table"])  # type: ignore[arg-type]
            found.setdefault((row["table"], row["of"]), {}).setdefault(row["row"], {})[column] = Interval(
                mean, low, high
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{folder / TABLES}: line {number} is no number of a table ({error!r}); analyse the study again"
            ) from None
    sheets = []
    for (name, of), rows in found.items():
        columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
        cells = [(label, [some.get(column) for column in columns]) for label, some in rows.items()]
        sheets.append(Sheet(name, of, "method", columns, cells))
    return sheets


def tables_of(sheets: list[Sheet]) -> dict[str, dict[str, EvalTable]]:
    """Tables by row and place, from the sheets of all rounds."""
    found: dict[tuple[str, str], dict[Key, Interval]] = {}
    sizes = {match[1] for sheet in sheets for c in sheet.columns if (match := re.fullmatch(r"pass@(\d+)", c.title))}
    k = max((int(size) for size in sizes if size != "1"), default=1)
    measures = {one.title.format(k=k): name for name, one in MEASURES.items()}
    for sheet in (sheet for sheet in sheets if sheet.name == "rounds"):
        place = sheet.of.rpartition(": ")[0]
        for row, cells in sheet.rows:
            label, _, round_ = row.rpartition(", round ")
            own = found.setdefault((label, place), {})
            for column, cell in zip(sheet.columns, cells, strict=True):
                if column.title in measures and cell and not math.isnan(cell.mean):
                    own[measures[column.title], int(round_), ""] = cell
    out: dict[str, dict[str, EvalTable]] = {}
    for (label, place), own in found.items():
        out.setdefault(label, {})[place] = EvalTable(k, 0, 0, 1 + max((t for _, t, _ in own), default=-1), own)
    return out


def warmth_of(sheets: list[Sheet]) -> dict[str, dict[float, EvalTable]]:
    """What was found at several initial temperatures, by method and temperature; at the last place, the average of all."""
    out: dict[str, dict[float, EvalTable]] = {}
    for sheet in [sheet for sheet in sheets if sheet.name == "initial temperature"][-1:]:
        keys: list[Key] = [("pass_at_1", 0, ""), ("pass_at_k", 0, ""), ("pass_at_1", 1, "")]
        k = int(sheet.columns[1].title.rpartition("@")[2])
        for label, cells in sheet.rows:
            method, _, at = label.rpartition(" T=")
            known = {key: cell for key, cell in zip(keys, cells, strict=True) if cell}
            out.setdefault(method, {})[float(at)] = EvalTable(k, 0, 0, 2, known)
    return out


def metrics_of(folder: Path) -> Mapping[str, list[Metrics]]:
    """Each cell's metrics, one list of rows a task and seed."""
    runs: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for row in read_rows(folder / METRICS):
        numbers = {key: float(value) for key, value in row.items() if value and key not in ("task", "cell", "seed")}
        runs.setdefault((row["cell"], row["task"], row["seed"]), []).append({**numbers, "step": int(numbers["step"])})
    out: dict[str, list[Metrics]] = {}
    for (cell, _, _), rows in runs.items():
        out.setdefault(cell, []).append(rows)
    return out
