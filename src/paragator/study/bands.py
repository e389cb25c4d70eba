"""Training metrics over the seeds of a method: curves with bands as PNG bytes, and values at equal steps or tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

from paragator.core.estimators import mean
from paragator.report.plots import (
    STAGES,
    as_label,
    canvas,
    colour,
    finish,
    from_zero,
    is_number,
    say_empty,
    series,
    shade,
    smooth,
    stroke,
)

Metrics = Sequence[Mapping[str, Any]]
"""The rows of one run's metrics.jsonl, by step."""
Against = Literal["step", "tokens"]
DEAD_ZONE = (
    ("generate/zero_credit", "Candidates (round 0)"),
    ("aggregate/zero_credit", "Aggregations (round 1)"),
)
TITLES = {"step": "Optimiser step", "tokens": "Tokens sampled in training (thousands)"}


def curves(
    methods: Mapping[str, Sequence[Metrics]],
    *,
    against: Against = "step",
    panels: Sequence[tuple[str, str]] = STAGES,
    ylabel: str = "Mean reward per rollout",
) -> bytes | None:
    """Each metric of `panels` over training, smoothed: the mean over a method's seeds, its band from lowest to highest seed.

    `methods` maps a label to the metrics of each seed; one without any keeps its colour free. Returns a PNG, or None.
    """
    figure, axes_list = canvas(len(panels), ylabel, list(methods))
    any_drawn = False
    for axes, (key, title) in zip(axes_list, panels, strict=True):
        axes.set_title(title)
        axes.set_xlabel(TITLES[against])
        drawn = False
        for i, (label, runs) in enumerate(methods.items()):
            at, values = together(runs, key, against)
            if not at:
                continue
            drawn = True
            look: dict[str, Any] = {"color": colour(i), "linestyle": stroke(i), "label": as_label(label)}
            axes.plot(at, [mean(some) for some in values], linewidth=2, **look)
            low, high = [min(some) for some in values], [max(some) for some in values]
            axes.fill_between(at, low, high, color=colour(i), alpha=shade(len(methods)), linewidth=0)
        any_drawn = any_drawn or drawn
        if not drawn:
            say_empty(axes, "not recorded")
    from_zero(axes_list)
    return finish(figure, axes_list) if any_drawn else None


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
