"""Line plots as PNG bytes: training metrics, accuracy by round and by tokens; and what all pictures share.

matplotlib loads on first use. A picture with nothing to show is None.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from paragator.core.estimators import Interval, mean
from paragator.stats.curves import Against, Metrics, series, smooth, together
from paragator.stats.table import EvalTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, told apart with every common colour vision; markers repeat the distinction."""

MARKERS = "osD^vPX"
STROKES: tuple[Any, ...] = ("-", (0, (3, 1, 1, 1)), (0, (1, 1)))
"""Line styles, a further one each time that the colours are used up."""
INK, FAINT = "#333333", "#dddddd"
DASHED = (0, (5, 3))
DOTTED = (0, (1, 1.5))
DPI = 200
T = TypeVar("T")
REWARD = "Mean reward per rollout"
TITLES = {"step": "Optimiser step", "tokens": "Tokens sampled in training (thousands)"}
STAGES = (("generate/reward", "Candidates (round 0)"), ("aggregate/reward", "Aggregations (round 1)"))
DEAD_ZONE = (
    ("generate/zero_credit", "Candidates (round 0)"),
    ("aggregate/zero_credit", "Aggregations (round 1)"),
)


def reward_curves(runs: Mapping[str, Metrics]) -> bytes | None:
    """Mean reward of each stage over optimiser steps: raw values light, their centred moving average bold.

    `runs` maps a label to rows of metrics.jsonl; rows or values that are missing leave a gap. Returns a PNG;
    None without any.
    """

    def line(axes: Axes, key: str, rows: Metrics, shown: str) -> tuple[Sequence[float], list[float]]:
        steps, values = series(rows, key)
        axes.plot(steps, values, color=shown, alpha=0.25, linewidth=0.8)
        return steps, smooth(values)

    return over_training(runs, line, TITLES["step"], STAGES, REWARD)


def curves(
    methods: Mapping[str, Sequence[Metrics]],
    *,
    against: Against = "step",
    panels: Sequence[tuple[str, str]] = STAGES,
    ylabel: str = REWARD,
) -> bytes | None:
    """Each metric of `panels` over training, smoothed: the mean over a method's seeds, its band from lowest to highest seed.

    `methods` maps a label to the metrics of each seed; one without any keeps its colour free. Returns a PNG, or None.
    """

    def line(axes: Axes, key: str, runs: Sequence[Metrics], shown: str) -> tuple[Sequence[float], list[float]]:
        at, values = together(runs, key, against)
        low, high = [min(some) for some in values], [max(some) for some in values]
        axes.fill_between(at, low, high, color=shown, alpha=shade(len(methods)), linewidth=0)
        return at, [mean(some) for some in values]

    return over_training(methods, line, TITLES[against], panels, ylabel)


def over_training(
    found: Mapping[str, T],
    line: Callable[[Axes, str, T, str], tuple[Sequence[float], list[float]]],
    xlabel: str,
    metrics: Sequence[tuple[str, str]],
    ylabel: str,
) -> bytes | None:
    """A panel a metric (key and title), a bold line a label: `line` draws what goes with it, and returns its points."""
    figure, panels = canvas(len(metrics), ylabel, list(found))
    any_drawn = False
    for axes, (key, title) in zip(panels, metrics, strict=True):
        axes.set_title(title)
        axes.set_xlabel(xlabel)
        drawn = False
        for i, (label, some) in enumerate(found.items()):
            at, values = line(axes, key, some, colour(i))
            if len(at):
                axes.plot(at, values, linewidth=2, color=colour(i), linestyle=stroke(i), label=as_label(label))
                drawn = True
        any_drawn = any_drawn or drawn
        if not drawn:
            say_empty(axes, "not recorded")
    from_zero(panels)
    return finish(figure, panels) if any_drawn else None


def accuracy_by_round(tables: Mapping[str, EvalTable]) -> bytes | None:
    """pass@1, pass@k and maj@k by round, in percent with 95% bands, one colour for each table (by label).

    The dashed lines in the first panel are each table's initial pass@k, the dotted ones, of tasks with parts, how often every
    part is right somewhere among k candidates. Returns a PNG; None with nothing to draw.
    """
    ks = sorted({table.k for table in tables.values()})
    k = str(ks[0]) if len(ks) == 1 else "k"
    measures = (("pass_at_1", "pass@1"), ("pass_at_k", f"pass@{k}"), ("maj_at_k", f"maj@{k}"))
    limits = {"pass_at_k": (DASHED, f"initial pass@{k}"), "parts_at_k": (DOTTED, f"all parts among {k}")}
    limits = {name: look for name, look in limits.items() if any(name in table.measures for table in tables.values())}
    figure, panels = canvas(len(measures), "Problems solved (%)", [*tables, *(note for _, note in limits.values())])
    any_drawn = False
    for axes, (key, title) in zip(panels, measures, strict=True):
        axes.set_title(title)
        axes.set_xlabel("Round (0 is initial)")
        lines = ((i, label, list(enumerate(table.series(key)))) for i, (label, table) in enumerate(tables.items()))
        drawn = [draw_line(axes, points, label, i, shade(len(tables))) for i, label, points in lines]
        if not any(drawn):
            say_empty(axes, "not measured")
        any_drawn = any_drawn or any(drawn)
        whole_ticks(axes)
    for i, table in enumerate(tables.values()):
        for name, (dashes, note) in limits.items():
            if not math.isnan(initial := table.cell(name, 0).mean):
                panels[0].axhline(100 * initial, color=colour(i), linestyle=dashes, linewidth=1.2)
                panels[0].plot([], [], color=INK, linestyle=dashes, linewidth=1.2, label=note)
    panels[0].set_ylim(bottom=0)
    return finish(figure, panels) if any_drawn else None


def accuracy_by_tokens(tables: Mapping[str, EvalTable], title: str = "") -> bytes | None:
    """pass@1 by round over the mean number of tokens generated so far, a problem, with 95% bands; and voting at equal cost.

    The dashed lines are majority voting among n of the initial candidates, at n times their mean length. Returns a
    PNG; None where no table knows its numbers of tokens.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    note = "majority of initial candidates"
    figure, panels = canvas(1, "Problems solved (%)", [*tables, note])
    axes, drawn = panels[0], False
    axes.set_title(as_label(title))
    axes.set_xlabel("Tokens generated per problem, all rounds so far")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value < 1000 else f"{value / 1000:g}k")
    axes.xaxis.set_minor_locator(NullLocator())
    voted = False
    for i, (label, table) in enumerate(tables.items()):
        cost = [cell.mean for cell in table.series("generated_so_far")]
        points = [pair for pair in zip(cost, table.series("pass_at_1"), strict=True) if pair[0] > 0]
        drawn |= draw_line(axes, points, label, i, shade(len(tables)))
        votes = [(n * table.cell("tokens", 0).mean, cell.mean) for n, cell in table.votes()]
        votes = [(at, 100 * share) for at, share in votes if at > 0 and not math.isnan(share)]
        if points and len(votes) > 1:
            axes.plot(*zip(*votes, strict=True), color=colour(i), linestyle=DASHED, linewidth=1.4, marker=".")
            voted = True
    if voted:
        axes.plot([], [], color=INK, linestyle=DASHED, linewidth=1.4, marker=".", label=note)
    axes.set_ylim(bottom=0)
    return finish(figure, panels) if drawn else None


def draw_line(axes: Axes, points: Sequence[tuple[float, Interval]], label: str, index: int, alpha: float) -> bool:
    """One line of shares in percent with its band, as opaque as `alpha`; False when no point has a mean."""
    known = [(at, cell) for at, cell in points if not math.isnan(cell.mean)]
    if not known:
        return False
    at, (mean, low, high) = [at for at, _ in known], percent([cell for _, cell in known])
    marker = MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]
    look: dict[str, Any] = {"color": colour(index), "linestyle": stroke(index), "marker": marker, "markersize": 5}
    axes.plot(at, mean, linewidth=2, label=as_label(label), **look)
    if len(at) == 1:
        axes.errorbar(at, mean, yerr=whiskers(mean, low, high), color=colour(index), capsize=3)
    else:
        axes.fill_between(at, low, high, color=colour(index), alpha=alpha, linewidth=0)
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


def canvas(panels: int, ylabel: str, labels: Sequence[str], *, across: int = 0) -> tuple[Figure, list[Axes]]:
    """A figure of panels that share their y axis, 7 inches wide, `across` in a line (0: all), with room for a legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(across or panels, panels)
    lines = math.ceil(panels / across)
    size = (7.0, 2.9 * lines + 0.1 + 0.22 * legend_rows(labels))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, across, sharey=True, squeeze=False)
    for axes in grid.flat[panels:]:
        axes.set_axis_off()
    axes_list: list[Axes] = list(grid.flat[:panels])
    for axes in axes_list:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#999999")
        axes.tick_params(colors=INK, labelsize=9, length=3)
        axes.grid(axis="y", color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.margins(x=0.04)
    for axes in axes_list[::across]:
        axes.set_ylabel(ylabel, color=INK)
    return figure, axes_list


def finish(figure: Figure, panels: Sequence[Axes]) -> bytes:
    """The figure with one legend below its panels, as PNG bytes."""
    handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    for axes in panels:
        axes.title.set(fontsize=10, color=INK)
        axes.xaxis.label.set(fontsize=9.5, color=INK)
    if handles:
        columns = legend_columns(list(handles))
        look: dict[str, Any] = {"loc": "outside lower center", "ncols": columns, "frameon": False, "fontsize": 9}
        figure.legend(list(handles.values()), list(handles), **look)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def stroke(index: int) -> Any:
    return STROKES[index // len(COLOURS) % len(STROKES)]


def shade(lines: int) -> float:
    """How opaque bands are, so that many of them leave their lines to be seen."""
    return min(0.15, 0.6 / max(1, lines))


def legend_columns(labels: Sequence[str]) -> int:
    longest = max(map(len, labels), default=0)
    return 1 if longest > 44 else 2 if longest > 24 else 3


def legend_rows(labels: Sequence[str]) -> int:
    return math.ceil(len(labels) / legend_columns(labels))


def whole_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def from_zero(panels: Sequence[Axes]) -> None:
    """Let the y axis that panels share begin at 0, unless something drawn lies below."""
    if min(axes.dataLim.y0 for axes in panels) >= 0:
        panels[0].set_ylim(bottom=0)


def as_label(text: str) -> str:
    """A name from a run directory is text: matplotlib reads "$" as mathematics, and hides labels that begin with "_"."""
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")


def say_empty(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="#777777")
