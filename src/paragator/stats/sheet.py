"""A sheet of intervals, printed as text, Markdown, LaTeX (package booktabs) or tidy CSV rows."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from paragator.core.estimators import Interval
from paragator.stats.measures import Unit


@dataclass(frozen=True, slots=True)
class Column:
    """How a column is headed and its cells shown. Neighbours of one `group` share a heading above."""

    title: str
    unit: Unit = "share"
    signed: bool = False
    bounds: bool = True
    group: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """Rows of intervals under columns. `name` is the kind of table, `of` what it is about, `corner` heads the labels."""

    name: str
    of: str
    corner: str
    columns: Sequence[Column]
    rows: Sequence[tuple[str, Sequence[Interval | None]]]

    @property
    def title(self) -> str:
        name = self.name[:1].upper() + self.name[1:]
        return f"{name}, {self.of}" if self.of else name

    def cells(self) -> list[list[str]]:
        """Text, headings first."""
        head = [self.corner, *(f"{column.group} {column.title}".strip() for column in self.columns)]
        return [head, *([label, *shown] for label, shown in self.body())]

    def body(self) -> list[tuple[str, list[str]]]:
        return [
            (label, [show_interval(*pair) for pair in zip(cells, self.columns, strict=True)])
            for label, cells in self.rows
        ]

    def markdown(self) -> str:
        """A GitHub Markdown table under its title."""
        rows = [[cell.replace("|", "\\|") for cell in row] for row in self.cells()]
        rule = ["---"] + ["---:"] * len(self.columns)
        lines = ["| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]]]
        return "\n".join([f"**{self.title}**", "", *lines])

    def latex(self) -> str:
        """A tabular under its title as a comment; groups of columns span a heading of their own."""
        spans = [(group, len(list(some))) for group, some in groupby(column.group for column in self.columns)]
        heads = [
            [self.corner, *(column.title for column in self.columns)],
            *([label, *row] for label, row in self.body()),
        ]
        head, *body = [" & ".join(latex_text(cell) for cell in row) + r" \\" for row in heads]
        if any(group for group, _ in spans):
            above = " & ".join(rf"\multicolumn{{{width}}}{{c}}{{{latex_text(group)}}}" for group, width in spans)
            head = f" & {above} \\\\\n{head}"
        top = [f"% {self.title}", rf"\begin{{tabular}}{{l{'r' * len(self.columns)}}}", r"\toprule", head, r"\midrule"]
        return "\n".join([*top, *body, r"\bottomrule", r"\end{tabular}"])

    def text(self, width: int | None = None) -> str:
        """Aligned lines for a terminal: the first columns, as many as fit the width, and at least one."""
        rows = self.cells()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        while width is not None and len(widths) > 2 and sum(widths) + 2 * len(widths) - 2 > width:
            widths.pop()
        return aligned([row[: len(widths)] for row in rows])

    def folded(self, width: int | None = None) -> str:
        """The same with all columns, under the title: those beyond the width follow in blocks below, with the labels."""
        rows, blocks, used = self.cells(), [[0]], 0
        for i in range(1, len(rows[0])):
            wide = 2 + max(len(row[i]) for row in rows)
            if i == 1 or (width is not None and used + wide > width):
                blocks.append([0])
                used = max(len(row[0]) for row in rows)
            blocks[-1].append(i)
            used += wide
        parts = [aligned([[row[i] for i in block] for row in rows]) for block in blocks[1:]]
        return f"{self.title}\n" + "\n\n".join(parts)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lines of cells under each other: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(line)) for line in lines)


def to_csv(sheets: Iterable[Sheet]) -> str:
    """One number with its bounds a line, shares as shares of 1; an empty field was not measured.

    Sheets that show means without their bounds are left out: another sheet has both.
    """
    lines: list[Sequence[object]] = [("table", "of", "row", "column", "unit", "mean", "low", "high")]
    for sheet in (sheet for sheet in sheets if all(column.bounds for column in sheet.columns)):
        for label, cells in sheet.rows:
            for column, cell in zip(sheet.columns, cells, strict=True):
                bounds = [cell.mean, cell.low, cell.high] if cell else [math.nan] * 3
                title = f"{column.group} {column.title}".strip()
                lines.append((sheet.name, sheet.of, label, title, column.unit, *map(csv_number, bounds)))
    return csv_text(lines)


def csv_text(lines: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


def csv_number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"


def show_interval(cell: Interval | None, column: Column = Column("")) -> str:
    """ "34.0 [30.1, 37.9]", shares in percent; "-" without a mean, no bounds where one problem gives none."""
    if cell is None or math.isnan(cell.mean):
        return "-"
    shown = [show_number(x, column) for x in (cell.mean, cell.low, cell.high)]
    bounds = column.bounds and not math.isnan(cell.low)
    return f"{shown[0]} [{shown[1]}, {shown[2]}]" if bounds else shown[0]


def show_number(value: float, column: Column) -> str:
    sign = "+" if column.signed else ""
    if column.unit == "share":
        return f"{100 * value:{sign}.1f}"
    if column.unit == "whole":
        return f"{value:{sign},.0f}"
    if column.unit == "reward":
        return f"{value:{sign}.3f}" if abs(value) < 1000 else f"{value:{sign},.0f}"
    if column.unit == "probability":
        return f"{value:.4f}"
    if column.unit == "count":
        return f"{value:{sign}.2f}"
    return f"{value:{sign}.1f}" if abs(value) < 100 else f"{value:{sign},.0f}"


LATEX = {c: "\\" + c for c in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def latex_text(text: str) -> str:
    """Text with LaTeX's special characters escaped, and a minus sign before a negative number."""
    return re.sub(r"(?<!\S)(\[?)-(?=\d)", r"\1$-$", "".join(LATEX.get(c, c) for c in text))
