"""Two pictures as PNG bytes: reward of both stages over steps, accuracy by round. matplotlib loads on first use."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart with every common colour vision; markers repeat the distinction."""

MARKERS = "osD^vPX"
INK, FAINT = "#333333", "#dddddd"
STAGES = (("generate/reward", "Candidates (round 0)"), ("aggregate/reward", "Aggregations (round 1)"))


def reward_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Mean reward of each stage over optimiser steps: raw values light, their centred moving average bold.

    `runs` maps a label to rows of metrics.jsonl; rows or values that are missing leave a gap. Returns a PNG.
    """
    figure, panels = canvas(len(STAGES), "Mean reward per rollout", legend_rows(runs))
    for axes, (key, title) in zip(panels, STAGES, strict=True):
        axes.set_title(title)
        axes.set_xlabel("Optimiser step")
        drawn = False
        for i, (label, rows) in enumerate(runs.items()):
            steps, values = series(rows, key)
            if not steps:
                continue
            drawn = True
            axes.plot(steps, values, color=colour(i), alpha=0.25, linewidth=0.8)
            axes.plot(steps, smooth(values), color=colour(i), linewidth=2, label=label)
        if not drawn:
            say_empty(axes, "no reward recorded")
    panels[0].set_ylim(bottom=0)
    return finish(figure, panels)


def accuracy_by_round(tables: Mapping[str, Mapping[str, Any]]) -> bytes:
    """pass@1, pass@k and maj@k by round, in percent with 95% bands, one colour for each table.

    `tables` maps a label to `EvalTable.to_dict()`. The dashed lines in the first panel are each table's initial
    pass@k. Returns a PNG.
    """
    from matplotlib.ticker import MaxNLocator

    ks = sorted({table["k"] for table in tables.values()})
    k = str(ks[0]) if len(ks) == 1 else "k"
    measures = (("pass_at_1", "pass@1"), ("pass_at_k", f"pass@{k}"), ("maj_at_k", f"maj@{k}"))
    note = f"initial pass@{k}"
    figure, panels = canvas(len(measures), "Problems solved (%)", legend_rows([*tables, note]))
    for axes, (key, title) in zip(panels, measures, strict=True):
        axes.set_title(title)
        axes.set_xlabel("Round (0 is initial)")
        drawn = [draw_rounds(axes, table["rounds"], key, label, i) for i, (label, table) in enumerate(tables.items())]
        if not any(drawn):
            say_empty(axes, "not measured")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    for i, table in enumerate(tables.values()):
        initial = table["rounds"][0]["pass_at_k"] if table["rounds"] else None
        if initial:
            panels[0].axhline(100 * initial["mean"], color=colour(i), linestyle=(0, (5, 3)), linewidth=1.2)
    panels[0].plot([], [], color=INK, linestyle=(0, (5, 3)), linewidth=1.2, label=note)
    panels[0].set_ylim(bottom=0)
    return finish(figure, panels)


def draw_rounds(axes: Axes, rounds: Sequence[Mapping[str, Any]], key: str, label: str, index: int) -> bool:
    """One line with its band; False when no round has the measure."""
    known = [(row["round"], row[key]) for row in rounds if row[key]]
    if not known:
        return False
    at = [round_ for round_, _ in known]
    mean = [100 * cell["mean"] for _, cell in known]
    low, high = (
        [100 * (cell["mean"] if cell[end] is None else cell[end]) for _, cell in known] for end in ("low", "high")
    )
    marker = MARKERS[index % len(MARKERS)]
    axes.plot(at, mean, linewidth=2, label=label, color=colour(index), marker=marker, markersize=5)
    if len(at) == 1:
        axes.errorbar(at, mean, yerr=[[mean[0] - low[0]], [high[0] - mean[0]]], color=colour(index), capsize=3)
    axes.fill_between(at, low, high, color=colour(index), alpha=0.15, linewidth=0)
    return True


def canvas(panels: int, ylabel: str, rows: int) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side that share their y axis, 7 inches wide, with `rows` legend rows' room below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.0 + 0.22 * rows), dpi=200, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, panels, sharey=True, squeeze=False)
    axes_list: list[Axes] = list(grid[0])
    for axes in axes_list:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#999999")
        axes.tick_params(colors=INK, labelsize=9, length=3)
        axes.grid(axis="y", color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.margins(x=0.04)
    axes_list[0].set_ylabel(ylabel, color=INK)
    return figure, axes_list


def finish(figure: Figure, panels: Sequence[Axes]) -> bytes:
    """The figure with one legend below its panels, as PNG bytes."""
    handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    for axes in panels:
        axes.title.set(fontsize=10, color=INK)
        axes.xaxis.label.set(fontsize=9.5, color=INK)
    if handles:
        columns = 2 if max(map(len, handles)) > 22 else 3
        # A label from a run directory is text, not mathematics: matplotlib reads "$" as the latter.
        labels = [label.replace("$", r"\$") for label in handles]
        look: dict[str, Any] = {"loc": "outside lower center", "ncols": columns, "frameon": False, "fontsize": 9}
        figure.legend(list(handles.values()), labels, **look)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """The steps at which a metric is a finite number, and its values."""
    known = [(row["step"], row[key]) for row in rows if is_number(row.get("step")) and is_number(row.get(key))]
    return [step for step, _ in known], [float(value) for _, value in known]


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a metric's value can be drawn: neither missing, nor NaN, nor infinite, nor a flag."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def smooth(values: Sequence[float]) -> list[float]:
    """Mean over a centred window of about a tenth of the series, cut off at its ends: no lag behind a trend."""
    half = len(values) // 20
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [math.fsum(window) / len(window) for window in windows]


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def legend_rows(labels: Mapping[str, Any] | Sequence[str]) -> int:
    return math.ceil(len(labels) / 2)


def say_empty(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="#777777")
