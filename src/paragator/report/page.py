"""The page: built from web/ into one file, with a run's data in it (report.html) or served live (`paragator view`)."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from paragator.records import read_json_lines
from paragator.report.alarms import MEANINGS
from paragator.report.contents import (
    attempt,
    evaluations,
    find_runs,
    finite,
    read_contents,
    run_json,
    sources,
)
from paragator.report.rollouts import KINDS, Credit, crediting, detail, list_row

TRACES, OF_A_KIND = 80, 8
"""Traces of each file that a page holds (of all strategies' together), and of each kind at least, where there are so many."""
CHARACTERS = 20_000
DATA = '<script type="application/json" id="data">'
HEADERS = {
    "content-security-policy": "frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
"""What the server says with every answer; the rest of the policy is in the page, where the file has it too."""


@cache
def built() -> str:
    """The page as built: script and style inline, allowed by their hashes, and nothing else."""
    return files("paragator.report").joinpath("built/page.html").read_text(encoding="utf-8")


def page(data: Mapping[str, Any], *, live: bool = False) -> str:
    """The page with its data; only a live one may talk, and only to its own server."""
    text = json.dumps({**data, "kinds": KINDS, "meanings": MEANINGS}, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    head, _, tail = built().partition(DATA)
    if not live:
        head = head.replace("connect-src 'self'", "connect-src 'none'")
    return head + DATA + text + tail.removeprefix("{}")


def write_report(run_dir: Path, target: Path | None = None) -> Path:
    """Write run_dir/report.html from whatever the run has left there; the page names what is missing or unreadable."""
    return write_reports([Path(run_dir)], target or Path(run_dir) / "report.html")


def write_reports(run_dirs: Sequence[Path], target: Path) -> Path:
    """One page of several runs, self-contained. Replaces an earlier one in one move, so nobody reads half. Returns its path."""
    runs = find_runs(list(run_dirs)) or {path.resolve().name: path for path in run_dirs}
    text = page({"live": False, "runs": [{"key": key, **embedded(path)} for key, path in runs.items()]})
    new = target.with_name(f".report-{os.getpid()}.html")
    try:
        new.write_bytes(text.encode())
        os.replace(new, target)
    finally:
        new.unlink(missing_ok=True)
    return target


def embedded(run_dir: Path) -> dict[str, Any]:
    """A run with a sample of its traces."""
    found = read_contents(run_dir)
    tables = evaluations(found)
    samples: dict[str, Any] = {}
    names = sources(run_dir)
    played = sum("/" in name for name in names)
    for name in names:
        if (path := run_dir / f"{name}.jsonl").is_file():
            credit = crediting(found.config) if name == "traces" and found.config else None
            most = max(OF_A_KIND, TRACES // played) if "/" in name else TRACES  # strategies share their candidates
            samples[name] = attempt(partial(sampled, credit=credit, most=most), path, found.alarms)
    values = {**run_json(found, tables), "sources": {name: one for name, one in samples.items() if one}}
    return dict(finite(values))


def sampled(path: Path, credit: Credit | None, most: int = TRACES) -> dict[str, Any]:
    """Rows and details of at most `most` traces of a file: the latest of each kind, then the latest of all; and how many there are."""
    latest: deque[int] = deque(maxlen=most)
    of_kind = [deque[int](maxlen=OF_A_KIND) for _ in KINDS]
    rows: dict[int, dict[str, Any]] = {}
    total = 0
    for n, raw in enumerate(read_json_lines(path)):
        row, total = list_row(raw), n + 1
        latest.append(n)
        for i, some in enumerate(of_kind):
            if row.kinds >> i & 1:
                some.append(n)
        rows[n] = asdict(row)
    order = dict.fromkeys([*(n for some in of_kind for n in some), *reversed(latest)])
    chosen = set(list(order)[:most])
    details = {n: detail(raw, credit, CHARACTERS) for n, raw in enumerate(read_json_lines(path)) if n in chosen}
    return {"total": total, "rows": [{"n": n, **rows[n]} for n in sorted(details)], "details": details}
