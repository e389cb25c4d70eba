"""Bars and few numbers with whiskers: accuracy by benchmark and by initial temperature."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from paragator.report.canvas import COLOURS, INK, MARKERS, SCREEN, Picture, Style, as_label, canvas, say_empty
from paragator.report.plots import percent, whiskers
from paragator.stats.table import EvalTable, in_short

BARS = ("#56B4E9", "#E69F00", "#0072B2")
"""Colours that differ in lightness too."""


def bars(panels: Mapping[str, Mapping[str, EvalTable]], style: Style = SCREEN) -> Picture | None:
    """Initial pass@1, initial majority and aggregation as bars by benchmark, one panel a row.

    `panels` maps a row's label to tables by benchmark; one with nothing to show is left out. Several rows of the same single
    benchmark stand in one panel.
    """
    shown = {label: tables for label, tables in panels.items() if any(map(is_known, tables.values()))}
    if not shown:
        return None
    places = {place for tables in shown.values() for place in tables}
    if len(places) == 1 < len(shown):
        shown = {place: {label: tables[place] for label, tables in shown.items()} for place in places}
    names = list(in_short(next(iter(next(iter(shown.values())).values())), "maj_at_k"))
    picture = canvas(len(shown), "Problems solved (%)", names, style, across=across(shown))
    for axes, (label, tables) in zip(picture.panels, shown.items(), strict=True):
        axes.set_title(as_label(label))
        for i, name in enumerate(names):
            cells = {at: in_short(table, "maj_at_k")[name] for at, table in enumerate(tables.values())}
            known = {at + 0.27 * (i - 1): cell for at, cell in cells.items() if not math.isnan(cell.mean)}
            mean, low, high = percent(list(known.values()))
            axes.bar(list(known), mean, width=0.25, color=BARS[i], label=name)
            axes.errorbar(list(known), mean, yerr=whiskers(mean, low, high), **WHISKERS)
            picture.note(axes, name, [list(tables)[round(at)] for at in known], mean, low, high)
        slanted: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
        beside = min(len(shown), across(shown), style.across(len(shown)))
        long = sum(map(len, tables)) * beside > 60 * style.width / SCREEN.width
        axes.set_xticks(range(len(tables)), [as_label(name) for name in tables], **(slanted if long else {}))
        axes.set_xlim(-0.6, len(tables) - 0.4)
    picture.panels[0].set_ylim(bottom=0)  # the panels share it, so only once all are drawn
    return picture.finish()


def temperatures(
    panels: Mapping[str, Mapping[float, EvalTable]], about: str = "", style: Style = SCREEN
) -> Picture | None:
    """Accuracy by the initial temperature, one panel a method, with 95% whiskers; None without any."""
    if not any(is_known(table) for tables in panels.values() for table in tables.values()):
        return None
    names = list(in_short(next(iter(next(iter(panels.values())).values())), "pass_at_k"))
    picture = canvas(len(panels), "Problems solved (%)", names, style, across=across(panels))
    for axes, (method, tables) in zip(picture.panels, panels.items(), strict=True):
        axes.set_title(as_label(f"{method}, {about}" if about else method))
        axes.set_xlabel("Initial temperature")
        for i, name in enumerate(names):
            cells = {at: in_short(table, "pass_at_k")[name] for at, table in sorted(tables.items())}
            aside = 0.012 * (i - 1) * (max(tables) - min(tables))
            known = {at + aside: cell for at, cell in cells.items() if not math.isnan(cell.mean)}
            at = [float(at) for at, cell in cells.items() if not math.isnan(cell.mean)]
            mean, low, high = percent(list(known.values()))
            look: dict[str, Any] = {
                "color": COLOURS[i],
                "marker": MARKERS[i],
                "markersize": 2.5 * style.line,
                "label": name,
            }
            if known:
                axes.errorbar(
                    list(known),
                    mean,
                    yerr=whiskers(mean, low, high),
                    linewidth=style.line,
                    elinewidth=1.2,
                    capsize=3,
                    **look,
                )
                picture.note(axes, name, at, mean, low, high)
        if not any(map(is_known, tables.values())):
            say_empty(axes, "not measured")
        axes.set_xticks(sorted(tables), [str(float(at)) for at in sorted(tables)])
        axes.margins(x=0.1)
    picture.panels[0].set_ylim(bottom=0)  # the panels share it, so only once all are drawn
    return picture.finish()


def variant_seconds(plan: Mapping[str, Any]) -> Picture:
    """The four variants of a plan (see `planning.simulate`) as bars of a step's parts, stacked, with the share of idling."""
    variants = plan["variants"]
    parts = [part for part in variants[0]["seconds"] if part != "step"]
    picture = canvas(1, "", parts)
    (axes,) = picture.panels
    start = [0.0] * len(variants)
    names = [f"{v['rollout']}, {v['update']}" for v in variants]
    for part, colour in zip(parts, COLOURS, strict=False):
        seconds = [v["seconds"][part] for v in variants]
        axes.barh(names, seconds, left=start, color=colour, label=part)
        start = [a + b for a, b in zip(start, seconds, strict=True)]
    for place, (end, variant) in enumerate(zip(start, variants, strict=True)):
        axes.text(end, place, f" {end:.3g} s ({variant['idle_s'] / end:.0%} idle)", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(start))
    axes.set_xlabel("Seconds a step")
    axes.set_title(as_label(plan["model"]))
    axes.grid(visible=False)
    return picture.finish()


WHISKERS: dict[str, Any] = {"fmt": "none", "ecolor": INK, "elinewidth": 1, "capsize": 2.5}


def is_known(table: EvalTable) -> bool:
    return any(not math.isnan(cell.mean) for cell in in_short(table, "pass_at_k").values())


def across(panels: Mapping[str, Any]) -> int:
    """Panels in a line."""
    return 2 if len(panels) > 1 else 1
