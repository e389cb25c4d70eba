"""What a run directory holds, as JSON values for the page; valid however early the run stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from paragator.core.errors import DataError
from paragator.records import read
from paragator.report.alarms import Alarm, alarms, fallen
from paragator.report.rollouts import cleaned
from paragator.stats.curves import EVALS, read_metrics
from paragator.stats.runs import lacking, method_of, part, read_json
from paragator.stats.table import EvalTable, plain, table

T = TypeVar("T")

SOURCES = {
    "eval_after": "after training",
    "eval": "alone",
    "eval_before": "before training",
    "traces": "training",
}
"""Files of graded traces (NAME.jsonl) and what they are of, the one that counts first."""
STRATEGIES = "strategies.json"
"""What an evaluation of strategies came to."""
EVALUATIONS = tuple(name for name in SOURCES if name != "traces")


@dataclass(slots=True)
class Contents:
    """A run directory: what could be read of it, and `alarms` about the rest."""

    path: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    evals: list[dict[str, Any]] = field(default_factory=list)
    strategies: Mapping[str, Any] = field(default_factory=dict)
    alarms: list[Alarm] = field(default_factory=list)

    @property
    def k(self) -> int:
        k = part(self.config, "eval").get("k")
        return k if isinstance(k, int) and k > 0 else 4

    def overview(self) -> dict[str, Any]:
        """Who the run is and how far it came."""
        config, manifest = self.config, self.manifest
        sections = {name: part(config, name) for name in ("model", "task", "train")}
        return {
            "name": str(config.get("name", self.path.resolve().name)),
            "method": method_of(config),
            "model": str(sections["model"].get("path", "")),
            "task": str(sections["task"].get("name", "")),
            "seed": config.get("seed"),
            "steps": len(self.metrics),
            "planned": sections["train"].get("steps") if "metrics.jsonl" in expected(self.path) else None,
            "started": manifest.get("started"),
        }


def sources(run_dir: Path) -> list[str]:
    """The files of graded traces that a run may hold (NAME.jsonl): those of `SOURCES`, then one of each strategy that it has."""
    played = sorted(path.stem for path in (run_dir / "strategies").glob("*.jsonl"))
    return [*SOURCES, *(f"strategies/{name}" for name in played if name.isprintable())]


def read_contents(run_dir: Path) -> Contents:
    """Config, manifest and metrics; what cannot be read becomes an alarm."""
    out = Contents(run_dir)
    out.config = attempt(read_json, run_dir / "config.json", out.alarms) or {}
    out.manifest = attempt(read_json, run_dir / "manifest.json", out.alarms) or {}
    out.metrics = attempt(lambda path: read_metrics(path.parent), run_dir / "metrics.jsonl", out.alarms) or []
    out.evals = attempt(lambda path: read_metrics(path.parent, EVALS), run_dir / EVALS, out.alarms) or []
    out.strategies = attempt(read_json, run_dir / STRATEGIES, out.alarms) or {}
    if absent := [name for name in expected(run_dir) if not (run_dir / name).is_file()]:
        out.alarms.append(Alarm("incomplete", f"no {', '.join(absent)} (yet)"))
    return out


def evaluations(found: Contents) -> dict[str, EvalTable]:
    """The numbers of each evaluation that holds a record; what is wrong with them is added to the alarms."""
    tables = {name: one_evaluation(found, name, found.alarms) for name in EVALUATIONS}
    return {name: one for name, one in tables.items() if one}


def one_evaluation(found: Contents, name: str, noted: list[Alarm]) -> EvalTable | None:
    """The numbers of one of them; what is wrong with it is noted."""
    one = attempt(lambda path: evaluation(path, found.k), found.path / f"{name}.jsonl", noted)
    if one and (what := lacking(found.config, found.manifest, one.traces)):
        noted.append(Alarm("incomplete", f"{name}.jsonl: {what}"))
    return one


def warnings(found: Contents, tables: Mapping[str, EvalTable]) -> list[dict[str, str]]:
    """All alarms, those about files first."""
    out = [*found.alarms, *alarms(found.metrics, {SOURCES[name]: one for name, one in tables.items()})]
    if "eval_before" in tables and "eval_after" in tables:
        out += fallen(tables["eval_before"], tables["eval_after"])
    return [asdict(one) for one in dict.fromkeys(out)]


def run_json(found: Contents, tables: Mapping[str, EvalTable]) -> dict[str, Any]:
    """Everything but the traces."""
    values = {
        **found.overview(),
        "config": found.config,
        "manifest": found.manifest,
        "metrics": found.metrics,
        "evals": found.evals,
        "evaluations": {name: evaluation_json(name, one) for name, one in tables.items()},
        "strategies": found.strategies,
        "warnings": warnings(found, tables),
    }
    return dict(finite(cleaned(values)))


def evaluation_json(name: str, found: EvalTable) -> dict[str, Any]:
    """An evaluation's numbers, its voting curve, and its tables as text."""
    sheets = [{"title": sheet.name, "cells": sheet.cells()} for sheet in found.sheets()]
    votes = [[n, plain(cell)] for n, cell in found.votes()]
    return {**found.to_dict(), "label": SOURCES[name], "votes": votes, "sheets": sheets}


def evaluation(path: Path, k: int) -> EvalTable | None:
    """An evaluation's numbers; None when it holds no record yet."""
    records = list(read(path))
    return table(records, k) if records else None


def attempt(load: Callable[[Path], T], path: Path, found: list[Alarm]) -> T | None:
    """What `load` makes of a file; None without the file, and with an alarm where it cannot be read."""
    if not path.is_file():
        return None
    try:
        return load(path)
    except (DataError, OSError) as error:
        found.append(Alarm("unreadable", str(error) if str(path) in str(error) else f"{path}: {error}"))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        found.append(Alarm("unreadable", f"{path}: a line is not in this version's form ({error!r})"))
    return None


def expected(run_dir: Path) -> tuple[str, ...]:
    """The files that a finished run of this kind, `eval` or `train`, has written."""
    both = ("config.json", "manifest.json")
    if (run_dir / "eval.jsonl").is_file() or (run_dir / "strategies").is_dir():
        return both
    return (*both, "metrics.jsonl", "eval_after.jsonl", "traces.jsonl", "eval_before.jsonl")


def finite(value: Any) -> Any:
    """None in place of what JSON cannot say: NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(one) for name, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value


def is_run(folder: Path) -> bool:
    names = ("config.json", "metrics.jsonl", *(f"{name}.jsonl" for name in SOURCES))
    return any((folder / name).is_file() for name in names)


def find_runs(folders: list[Path], depth: int = 3) -> dict[str, Path]:
    """The run directories in some folders (themselves, or below them as in a study), by a name of their own."""
    found: list[Path] = []
    for folder in folders:
        found += below(folder, depth)
    out: dict[str, Path] = {}
    for path in dict.fromkeys(path.resolve() for path in found):
        name, number = (
            path.name if not path.name.startswith(("train", "eval")) else f"{path.parent.name}/{path.name}",
            1,
        )
        while (key := name if number == 1 else f"{name} #{number}") in out:
            number += 1
        out[key] = path
    return out


def below(folder: Path, depth: int) -> list[Path]:
    if is_run(folder):
        return [folder]
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()) if depth else []
    except OSError:
        return []
    return [run for path in inside for run in below(path, depth - 1)]
