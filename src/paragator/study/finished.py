"""The finished runs of a study: read from its folder, and written as CSV.

A study's folder: study.json, and CELL-seedN/{train,eval,eval-tT} with finished.json and config.toml.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paragator.core.errors import DataError
from paragator.core.estimators import mean
from paragator.stats.curves import Metrics, is_number, read_metrics
from paragator.stats.measures import Scores
from paragator.stats.runs import Run, load_run, read_json
from paragator.stats.sheet import csv_number, csv_text

NOTE, FINISHED, CONFIG = "study.json", "finished.json", "config.toml"
"""A study's note of itself, in its folder; what is finished of a run, and the run's config, in the run's folder."""
SHOWN = ("pass_at_1", "pass_at_k", "maj_at_k", "oracle", "tokens", "truncated")
"""The measures of runs.csv."""


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A finished run of a cell: its evaluation, those at further initial temperatures, and its training's metrics."""

    cell: str
    matched: str
    seed: int
    run: Run
    warm: tuple[Run, ...]
    metrics: Metrics

    @property
    def folder(self) -> Path:
        return self.run.path.parent


def is_study(folder: Path) -> bool:
    return (folder / NOTE).is_file()


def finished(unit: Path) -> dict[str, str]:
    """What a run's folder says is finished: phase -> the digest of the settings that it was finished with."""
    return {phase: str(entry["digest"]) for phase, entry in read_json(unit / FINISHED).items() if "seconds" in entry}


def read_study(folder: Path) -> tuple[dict[str, Any], list[FinishedRun]]:
    """A study's note with its cells by label, and the runs that are finished as it asks for; DataError when it is no study."""
    note = read_json(folder / NOTE)
    try:
        k, primary = int(note["evaluation"]["k"]), (str(note["primary"]["measure"]), int(note["primary"]["round"]))
        cells = {c["name"] or c["method"]: {key: c[key] for key in ("method", "set", "matched")} for c in note["cells"]}
        seeds, wanted, _ = list(note["seeds"]), dict(note["digests"]), note["reference"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / NOTE}: not a study's note ({error!r}); start `paragator study` again") from None
    entries = []
    for cell, settings in cells.items():
        for seed in seeds:
            unit = folder / f"{cell}-seed{seed}"
            asked, done = wanted.get(unit.name, {}), finished(unit)
            known = {name: load_run(unit / name, k) for name in sorted(done) if is_wanted(name, asked, done)}
            runs = {name: replace(run, lacking="") for name, run in known.items()}  # finished: the task has no more
            if run := runs.pop("eval", None):
                metrics = read_metrics(unit / "train")
                entries.append(FinishedRun(cell, settings["matched"], seed, run, tuple(runs.values()), metrics))
    return {**note, "k": k, "primary": primary, "cells": cells}, entries


def is_wanted(name: str, asked: Mapping[str, str], done: Mapping[str, str]) -> bool:
    """Whether a phase is an evaluation that was finished with the settings asked for now."""
    return name.startswith("eval") and name in asked and done[name] == asked[name]


def outcome(scores: Scores, measure: str, round_: int) -> float:
    """A run's mean over problems; NaN where it has no such round."""
    return mean(scores.values.get((measure, round_), ()))


# ---- CSV ----


def runs_csv(entries: Sequence[FinishedRun]) -> str:
    """One line a run, initial temperature and round."""
    lines: list[Sequence[object]] = [("task", "cell", "seed", "temperature", "round", *SHOWN)]
    for entry in entries:
        for run in (entry.run, *entry.warm):
            for t in range(run.scores.num_rounds):
                numbers = (csv_number(outcome(run.scores, name, t)) for name in SHOWN)
                lines.append((run.task[0], entry.cell, entry.seed, run.temperature, t, *numbers))
    return csv_text(lines)


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


def metrics_csv(entries: Sequence[FinishedRun]) -> str:
    """One line a training step, with every number that it recorded; seconds are left out, as they are the machine's."""
    rows: list[Mapping[str, Any]] = [
        {"task": entry.run.task[0], "cell": entry.cell, "seed": entry.seed}
        | {k: f"{v:.6g}" for k, v in row.items() if is_number(v) and not k.startswith("seconds")}
        for entry in entries
        for row in entry.metrics
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["task", "cell", "seed"]
    return csv_text([columns, *([row.get(key, "") for key in columns] for row in rows)])
