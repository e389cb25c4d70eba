"""Training metrics of runs (metrics.jsonl): read, smoothed, joined over seeds, and taken at equal steps or tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeGuard

from paragator.core.estimators import mean
from paragator.records import read_json_lines

Metrics = Sequence[Mapping[str, Any]]
"""The rows of one run's metrics.jsonl, by step."""
Against = Literal["step", "tokens"]
METRICS, EVALS = "metrics.jsonl", "evals.jsonl"
"""What grows by a row a step, and by a row an evaluation while training (its traces lie in evals/step_<n>.jsonl)."""


def read_metrics(run_dir: Path, name: str = METRICS) -> list[dict[str, Any]]:
    """The rows of a file by step; of a step that a resumed run did again, the last. [] without the file."""
    path = run_dir / name
    if not path.is_file():
        return []
    rows = {row["step"]: row for row in read_json_lines(path) if isinstance(row.get("step"), int)}
    return [rows[step] for step in sorted(rows)]


def best_step(evaluations: Metrics) -> int | None:
    """The step whose evaluation has the highest pass@1 in its last round, the first of such; None without any."""
    found = {row["step"]: cell["mean"] for row in evaluations if (cell := row["rounds"][-1]["pass_at_1"])}
    return max(found, key=lambda step: found[step], default=None)


def series(rows: Metrics, key: str) -> tuple[list[int], list[float]]:
    """The steps at which a metric is a finite number, and its values."""
    known = [(row["step"], row[key]) for row in rows if is_number(row.get("step")) and is_number(row.get(key))]
    return [step for step, _ in known], [float(value) for _, value in known]


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a metric's value counts: neither missing, nor NaN, nor infinite, nor a flag."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over a centred window of about a tenth of the series, cut off at its ends: no lag behind a trend."""
    half = len(values) // 20
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [math.fsum(window) / len(window) for window in windows]


def together(runs: Sequence[Metrics], key: str, against: Against) -> tuple[list[float], list[list[float]]]:
    """The steps (or mean thousands of tokens until then) that all runs have, and there each run's smoothed metric."""
    smoothed = []
    for rows in runs:
        steps, values = series(rows, key)
        smoothed.append(dict(zip(steps, smooth(values), strict=True)))
    shared = sorted(set.intersection(*map(set, smoothed))) if smoothed else []
    found = [[one[step] for one in smoothed] for step in shared]
    if against == "step":
        return [float(step) for step in shared], found
    spent = [tokens_by_step(rows) for rows in runs]
    return [mean(one[step] for one in spent) / 1000 for step in shared], found


def tokens_by_step(rows: Metrics) -> dict[int, float]:
    """Step -> tokens sampled until then."""
    known = [row for row in rows if is_number(row.get("step"))]
    sums = accumulate(float(found) if is_number(found := row.get("tokens")) else 0.0 for row in known)
    return {int(row["step"]): total for row, total in zip(known, sums, strict=True)}


def recent(rows: Metrics, key: str, until: int) -> float:
    """The mean of a metric over the tenth of the steps before `until`, that one included; NaN where it is not recorded."""
    steps, values = series(rows, key)
    first = until - max(1, until // 10)
    return mean(value for step, value in zip(steps, values, strict=True) if first < step <= until)


def step_at(rows: Metrics, tokens: float) -> int:
    """The last step that fits a number of tokens; 0 when none does."""
    return max((step for step, spent in tokens_by_step(rows).items() if spent <= tokens), default=0)


def total_tokens(rows: Metrics) -> float:
    """Tokens sampled in training; NaN without any step."""
    return max(tokens_by_step(rows).values(), default=math.nan)


def last_step(rows: Metrics) -> int:
    return max(tokens_by_step(rows), default=0)
