"""A picture: panels, one legend and the numbers drawn, as PNG, PDF and CSV; the one style that all pictures share.

matplotlib loads on first use.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from paragator.stats.sheet import csv_number, csv_text

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
COLUMNS = ("panel", "line", "x", "mean", "low", "high")


@dataclass(frozen=True, slots=True)
class Style:
    """How wide a picture is and how tall a panel, in inches; its font, in points; and how many panels stand side by side."""

    width: float
    height: float
    font: float
    most_across: int = 9

    def across(self, panels: int) -> int:
        """Panels in a line; of many, twice as many, or a column would be taller than a page."""
        return self.most_across * (1 if panels <= 4 else 2)

    @property
    def line(self) -> float:
        """How wide the lines are, in points."""
        return 2 * self.font / 9.5


SCREEN = Style(7.0, 2.9, 9.5)
STYLES = {"column": Style(3.4, 2.1, 7.5, 1), "wide": Style(6.9, 2.3, 8.0)}
"""Of a figure in a paper, in one column or across both."""


@dataclass(slots=True)
class Picture:
    """Panels with what is drawn in them; `points` are the numbers of COLUMNS, in the units of the axes."""

    figure: Figure
    panels: list[Axes]
    style: Style
    points: list[tuple[str, str, object, float, float, float]] = field(default_factory=list)

    def note(
        self, axes: Axes, line: str, at: Sequence[object], mean: Sequence[float], *bounds: Sequence[float]
    ) -> None:
        """Keep the numbers of a line, with their lower and upper bounds where it has such."""
        low, high = bounds or ([math.nan] * len(mean),) * 2
        title = axes.get_title().replace(r"\$", "$")
        self.points += [(title, line, *some) for some in zip(at, mean, low, high, strict=True)]

    def finish(self) -> Picture:
        """Add one legend below the panels."""
        handles = {
            text: one for axes in self.panels for one, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        for axes in self.panels:
            axes.title.set(fontsize=self.style.font + 0.5, color=INK)
            axes.xaxis.label.set(fontsize=self.style.font, color=INK)
        if handles:
            columns = legend_columns(list(handles), self.style)
            look: dict[str, Any] = {"loc": "outside lower center", "ncols": columns, "frameon": False}
            self.figure.legend(list(handles.values()), list(handles), fontsize=self.style.font - 0.5, **look)
        return self

    def png(self) -> bytes:
        return self.rendered("png")

    def pdf(self) -> bytes:
        """Vectors, text as text; the same bytes each time."""
        return self.rendered("pdf", metadata={"CreationDate": None})

    def rendered(self, form: str, **options: Any) -> bytes:
        from matplotlib import rc_context

        out = io.BytesIO()
        with rc_context({"pdf.fonttype": 42}):
            self.figure.savefig(out, format=form, **options)
        return out.getvalue()

    def csv(self) -> str:
        """The numbers drawn, a point a line."""
        rows = [(p, line, csv_number(x) if isinstance(x, float) else x, *map(csv_number, some))
                for p, line, x, *some in self.points]  # fmt: skip
        return csv_text([COLUMNS, *rows])


def canvas(panels: int, ylabel: str, labels: Sequence[str], style: Style = SCREEN, *, across: int = 0) -> Picture:
    """Panels that share their y axis, `across` in a line (0: all that the style allows), with room for a legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(across or panels, panels, style.across(panels))
    lines = math.ceil(panels / across)
    size = (style.width, style.height * lines + 0.1 + 0.22 * legend_rows(labels, style))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, across, sharey=True, squeeze=False)
    for axes in grid.flat[panels:]:
        axes.set_axis_off()
    axes_list: list[Axes] = list(grid.flat[:panels])
    for axes in axes_list:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#999999")
        axes.tick_params(colors=INK, labelsize=style.font - 0.5, length=3)
        axes.grid(axis="y", color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.margins(x=0.04)
    for axes in axes_list[::across]:
        axes.set_ylabel(ylabel, color=INK, fontsize=style.font + 0.5)
    return Picture(figure, axes_list, style)


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def stroke(index: int) -> Any:
    return STROKES[index // len(COLOURS) % len(STROKES)]


def shade(lines: int) -> float:
    """How opaque bands are, so that many of them leave their lines to be seen."""
    return min(0.15, 0.6 / max(1, lines))


def legend_columns(labels: Sequence[str], style: Style) -> int:
    longest = max(map(len, labels), default=0) * SCREEN.width / style.width
    return 1 if longest > 44 else 2 if longest > 24 else 3


def legend_rows(labels: Sequence[str], style: Style) -> int:
    return math.ceil(len(labels) / legend_columns(labels, style))


def whole_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def token_ticks(axes: Axes) -> None:
    """A logarithmic axis of numbers of tokens: 500, 1k, 2k."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}" if value < 1000 else f"{value / 1000:g}k")
    axes.xaxis.set_minor_locator(NullLocator())


def from_zero(panels: Sequence[Axes]) -> None:
    """Let the y axis that panels share begin at 0, unless something drawn lies below."""
    if min(axes.dataLim.y0 for axes in panels) >= 0:
        panels[0].set_ylim(bottom=0)


def as_label(text: str) -> str:
    """A name from a run directory is text: matplotlib reads "$" as mathematics, and hides labels that begin with "_"."""
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")


def say_empty(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="#777777")
