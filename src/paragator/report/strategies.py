"""Strategies' tables as files, and their picture: accuracy over all tokens, on one axis with bands."""

from __future__ import annotations

import json
from pathlib import Path

from paragator.report.canvas import SCREEN, Picture, Style, canvas, token_ticks
from paragator.report.contents import STRATEGIES
from paragator.report.plots import draw_line
from paragator.stats.strategies import StrategyTable
from paragator.stats.table import plain


def accuracy_over_tokens(table: StrategyTable, style: Style = SCREEN) -> Picture | None:
    """Each strategy's accuracy over its mean number of tokens a problem, prompts included, and a vote's at every size.

    Intervals are 95%. None where no number of tokens is known.
    """
    curve = "a vote among candidates"
    picture = canvas(1, "Problems solved (%)", [curve, *table.labels], style)
    (axes,) = picture.panels
    axes.set_xlabel("Tokens per problem, prompts included")
    token_ticks(axes)
    drawn = draw_line(picture, axes, [(tokens, cell) for tokens, cell in table.vote_curve() if tokens > 0], curve, 0)
    for i, label in enumerate(table.labels, 1):
        tokens, cell = table.intervals[label, "tokens"].mean, table.intervals[label, "accuracy"]
        drawn |= tokens > 0 and draw_line(picture, axes, [(tokens, cell)], label, i)
    return picture.finish() if drawn else None


def write_tables(table: StrategyTable, run_dir: Path, partial: str = "") -> None:
    """Write strategies.md, .csv and .json into a run directory, and .png where numbers of tokens are known.

    partial  why the evaluation ended before all was asked; "" where it did not
    """
    head = f"PARTIAL: {partial}. What follows is of the problems that were finished by then.\n\n" if partial else ""
    (run_dir / "strategies.md").write_text(f"{head}{table.markdown()}\n")
    (run_dir / "strategies.csv").write_text(table.csv())
    shown = {
        "partial": partial or None,
        "votes": [[tokens, plain(cell)] for tokens, cell in table.vote_curve() if tokens > 0],
        "sheets": [{"title": sheet.title, "cells": sheet.cells()} for sheet in table.sheets()],
        "notes": table.notes(),
    }
    (run_dir / STRATEGIES).write_text(json.dumps({**table.to_dict(), **shown}, indent=2) + "\n")
    if picture := accuracy_over_tokens(table):
        (run_dir / "strategies.png").write_bytes(picture.png())
