"""Line plots: training metrics, accuracy by round and by tokens, recovery by right members. One with nothing to show is None."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from paragator.core.estimators import Interval, mean
from paragator.report.canvas import (
    COLOURS,
    DASHED,
    DOTTED,
    INK,
    MARKERS,
    SCREEN,
    Picture,
    Style,
    as_label,
    canvas,
    colour,
    from_zero,
    say_empty,
    shade,
    stroke,
    token_ticks,
    whole_ticks,
)
from paragator.stats.curves import Against, Metrics, series, smooth, together
from paragator.stats.table import EvalTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

T = TypeVar("T")
REWARD = "Mean reward per rollout"
TITLES = {"step": "Optimiser step", "tokens": "Tokens sampled in training (thousands)"}
STAGES = (("generate/reward", "Candidates (round 0)"), ("aggregate/reward", "Aggregations (round 1)"))
DEAD_ZONE = (
    ("generate/zero_credit", "Candidates (round 0)"),
    ("aggregate/zero_credit", "Aggregations (round 1)"),
)


def reward_curves(runs: Mapping[str, Metrics]) -> Picture | None:
    """Mean reward of each stage over optimiser steps: raw values light, their centred moving average bold.

    `runs` maps a label to rows of metrics.jsonl; rows or values that are missing leave a gap. None
    without any.
    """

    def line(axes: Axes, key: str, rows: Metrics, shown: str) -> tuple[Sequence[float], ...]:
        steps, values = series(rows, key)
        axes.plot(steps, values, color=shown, alpha=0.25, linewidth=0.8)
        return [float(step) for step in steps], smooth(values)

    return over_training(runs, line, TITLES["step"], STAGES, REWARD, SCREEN)


def curves(
    methods: Mapping[str, Sequence[Metrics]],
    *,
    against: Against = "step",
    panels: Sequence[tuple[str, str]] = STAGES,
    ylabel: str = REWARD,
    style: Style = SCREEN,
) -> Picture | None:
    """Each metric of `panels` over training, smoothed: the mean over a method's seeds, its band from lowest to highest seed.

    `methods` maps a label to the metrics of each seed; one without any keeps its colour free.
    """

    def line(axes: Axes, key: str, runs: Sequence[Metrics], shown: str) -> tuple[Sequence[float], ...]:
        at, values = together(runs, key, against)
        low, high = [min(some) for some in values], [max(some) for some in values]
        axes.fill_between(at, low, high, color=shown, alpha=shade(len(methods)), linewidth=0)
        return at, [mean(some) for some in values], low, high

    return over_training(methods, line, TITLES[against], panels, ylabel, style)


def over_training(
    found: Mapping[str, T],
    line: Callable[[Axes, str, T, str], tuple[Sequence[float], ...]],
    xlabel: str,
    metrics: Sequence[tuple[str, str]],
    ylabel: str,
    style: Style,
) -> Picture | None:
    """A panel a metric (key and title), a bold line a label: `line` draws what goes with it, and returns its points."""
    picture = canvas(len(metrics), ylabel, list(found), style)
    any_drawn = False
    for axes, (key, title) in zip(picture.panels, metrics, strict=True):
        axes.set_title(title)
        axes.set_xlabel(xlabel)
        drawn = False
        for i, (label, some) in enumerate(found.items()):
            at, values, *bounds = line(axes, key, some, colour(i))
            if len(at):
                axes.plot(at, values, linewidth=style.line, color=colour(i), linestyle=stroke(i), label=as_label(label))
                picture.note(axes, label, at, values, *bounds)
                drawn = True
        any_drawn = any_drawn or drawn
        if not drawn:
            say_empty(axes, "not recorded")
    from_zero(picture.panels)
    return picture.finish() if any_drawn else None


def accuracy_by_round(tables: Mapping[str, EvalTable], style: Style = SCREEN) -> Picture | None:
    """pass@1, pass@k and maj@k by round, in percent with 95% bands, one colour for each table (by label).

    The dashed lines in the first panel are each table's initial pass@k, the dotted ones, of tasks with parts, how often every
    part is right somewhere among k candidates.
    """
    ks = sorted({table.k for table in tables.values()})
    k = str(ks[0]) if len(ks) == 1 else "k"
    measures = (("pass_at_1", "pass@1"), ("pass_at_k", f"pass@{k}"), ("maj_at_k", f"maj@{k}"))
    limits = {"pass_at_k": (DASHED, f"initial pass@{k}"), "parts_at_k": (DOTTED, f"all parts among {k}")}
    limits = {name: look for name, look in limits.items() if any(name in table.measures for table in tables.values())}
    picture = canvas(len(measures), "Problems solved (%)", [*tables, *(note for _, note in limits.values())], style)
    any_drawn, first = False, picture.panels[0]
    for axes, (key, title) in zip(picture.panels, measures, strict=True):
        axes.set_title(title)
        axes.set_xlabel("Round (0 is initial)")
        lines = ((i, label, list(enumerate(table.series(key)))) for i, (label, table) in enumerate(tables.items()))
        drawn = [draw_line(picture, axes, points, label, i, len(tables)) for i, label, points in lines]
        if not any(drawn):
            say_empty(axes, "not measured")
        any_drawn = any_drawn or any(drawn)
        whole_ticks(axes)
    for i, (label, table) in enumerate(tables.items()):
        for name, (dashes, note) in limits.items():
            if not math.isnan((initial := table.cell(name, 0)).mean):
                first.axhline(100 * initial.mean, color=colour(i), linestyle=dashes, linewidth=1.2)
                first.plot([], [], color=INK, linestyle=dashes, linewidth=1.2, label=note)
                picture.note(first, f"{label}, {note}", [0], *percent([initial]))
    first.set_ylim(bottom=0)
    return picture.finish() if any_drawn else None


def accuracy_by_tokens(tables: Mapping[str, EvalTable], title: str = "", style: Style = SCREEN) -> Picture | None:
    """pass@1 by round over the mean number of tokens generated so far, a problem, with 95% bands; and voting at equal cost.

    The dashed lines are majority voting among n of the initial candidates, at n times their mean length. None where no
    table knows its numbers of tokens.
    """
    note = "majority of initial candidates"
    picture = canvas(1, "Problems solved (%)", [*tables, note], style)
    axes, drawn = picture.panels[0], False
    axes.set_title(as_label(title))
    axes.set_xlabel("Tokens generated per problem, all rounds so far")
    token_ticks(axes)
    voted = False
    for i, (label, table) in enumerate(tables.items()):
        cost = [cell.mean for cell in table.series("generated_so_far")]
        points = [pair for pair in zip(cost, table.series("pass_at_1"), strict=True) if pair[0] > 0]
        drawn |= draw_line(picture, axes, points, label, i, len(tables))
        votes = [(n * table.cell("tokens", 0).mean, cell) for n, cell in table.votes()]
        votes = [(at, share) for at, share in votes if at > 0 and not math.isnan(share.mean)]
        if points and len(votes) > 1:
            at, (means, low, high) = [at for at, _ in votes], percent([share for _, share in votes])
            axes.plot(at, means, color=colour(i), linestyle=DASHED, linewidth=1.4, marker=".")
            picture.note(axes, f"{label}, {note}", at, means, low, high)
            voted = True
    if voted:
        axes.plot([], [], color=INK, linestyle=DASHED, linewidth=1.4, marker=".", label=note)
    axes.set_ylim(bottom=0)
    return picture.finish() if drawn else None


def recovery(tables: Mapping[str, EvalTable], title: str = "", style: Style = SCREEN) -> Picture | None:
    """Right aggregations of the first round by how many members of their pool are right, with 95% bands.

    The dashed line is a member drawn at random. None without an aggregation.
    """
    note = "a random member of the pool"
    picture = canvas(1, "Right aggregations (%)", [*tables, note], style)
    axes = picture.panels[0]
    axes.set_title(as_label(title))
    axes.set_xlabel("Right members of the pool")
    lines = enumerate(tables.items())
    drawn = [draw_line(picture, axes, table.by_count("by_right"), label, i, len(tables)) for i, (label, table) in lines]
    members = max((cell.mean for table in tables.values() for _, cell in table.by_count("members")), default=0.0)
    axes.plot([0, members], [0, 100], color=INK, linestyle=DASHED, linewidth=1.2, label=note)
    whole_ticks(axes)
    return picture.finish() if any(drawn) else None


def draw_line(
    picture: Picture, axes: Axes, points: Sequence[tuple[float, Interval]], label: str, index: int, lines: int = 0
) -> bool:
    """One line of shares in percent with its band; False when no point has a mean. `lines`: how many lines there will be."""
    known = [(at, cell) for at, cell in points if not math.isnan(cell.mean)]
    if not known:
        return False
    at, (mean, low, high) = [at for at, _ in known], percent([cell for _, cell in known])
    marker = MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]
    look: dict[str, Any] = {
        "color": colour(index),
        "linestyle": stroke(index),
        "marker": marker,
        "markersize": 2.5 * picture.style.line,
    }
    axes.plot(at, mean, linewidth=picture.style.line, label=as_label(label), **look)
    if len(at) == 1:
        axes.errorbar(at, mean, yerr=whiskers(mean, low, high), color=colour(index), capsize=3)
    else:
        axes.fill_between(at, low, high, color=colour(index), alpha=shade(lines), linewidth=0)
    picture.note(axes, label, at, mean, low, high)
    return True


def percent(cells: Sequence[Interval]) -> tuple[list[float], list[float], list[float]]:
    """Means, lower and upper bounds in percent; a bound that is not known is the mean."""
    ends = ([cell.mean if math.isnan(end) else end for cell, end in zip(cells, some, strict=True)]
            for some in ([cell.low for cell in cells], [cell.high for cell in cells]))  # fmt: skip
    low, high = ([100 * value for value in some] for some in ends)
    return [100 * cell.mean for cell in cells], low, high


def whiskers(mean: list[float], low: list[float], high: list[float]) -> list[list[float]]:
    """Lengths below and above, never negative."""
    return [[max(0.0, m - x) for m, x in zip(mean, low, strict=True)],
            [max(0.0, x - m) for m, x in zip(mean, high, strict=True)]]  # fmt: skip
