"""What a person sees: log lines, step progress, tables. Control characters of model and data text never reach a terminal."""

from __future__ import annotations

import json
import time
from collections import deque
from pathlib import Path
from typing import Any

from paragator import records
from paragator.stats.table import EvalTable, table


class Logger:
    """Prints a line (unless quiet) and keeps it in the run's log of this attempt."""

    def __init__(self, run_dir: Path, *, quiet: bool = False) -> None:
        logs = run_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.file = logs / f"attempt_{len(list(logs.iterdir())) + 1}.log"
        self.quiet = quiet

    def __call__(self, line: str) -> None:
        line = printable(line)
        if not self.quiet:
            print(line, flush=True)
        with self.file.open("a") as file:
            file.write(line + "\n")


def printable(text: str) -> str:
    """`text` with control characters made visible; newlines stay."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


class Steps:
    """One line a step: rewards of both stages over the last ten steps, speed, and the time left as those ten would take it."""

    def __init__(self, total: int, say: Logger) -> None:
        self.total, self.say = total, say
        self.recent: deque[dict[str, float]] = deque(maxlen=10)

    def __call__(self, metrics: dict[str, float]) -> None:
        self.recent.append(metrics)
        number = int(metrics["step"])
        rate = sum(m["seconds"] for m in self.recent) / len(self.recent)
        parts = [f"step {number}/{self.total}"]
        for stage in ("generate", "aggregate"):
            seen = [m[f"{stage}/reward"] for m in self.recent if f"{stage}/reward" in m]
            if seen:
                parts.append(f"{stage} {sum(seen) / len(seen):.3f}")
        tokens = metrics["tokens"] / max(metrics["seconds"], 1e-9)
        parts += [
            f"{tokens:,.0f} tokens/s",
            f"{metrics['seconds']:.1f} s",
            f"{rate * (self.total - number):.0f} s left",
        ]
        self.say("  ".join(parts))


class Counter:
    """A line at most every ten seconds: how much of a long evaluation is done, and the time left."""

    def __init__(self, what: str, say: Logger) -> None:
        self.what, self.say = what, say
        self.first: int | None = None
        self.start = self.last = time.perf_counter()

    def __call__(self, finished: int, total: int) -> None:
        now = time.perf_counter()
        if self.first is None:
            self.first = finished - 1
        if now - self.last < 10 or finished == total:
            return
        self.last = now
        left = (now - self.start) / (finished - self.first) * (total - finished)
        self.say(f"{self.what.replace('_', ' ')}: {finished}/{total} traces, {left:.0f} s left")


def print_table(found: EvalTable, say: Logger) -> None:
    """An evaluation's tables as aligned lines: accuracy, cost, and pools where some were shown."""
    for sheet in found.sheets():
        say("\n".join(f"  {line}" for line in sheet.text().splitlines()))


def result(run_dir: Path, k: int) -> dict[str, Any]:
    """What `train --json` and `eval --json` print."""
    out: dict[str, Any] = {"run": str(run_dir), "report": str(run_dir / "report.html")}
    for name in ("eval", "eval_before", "eval_after"):
        path = run_dir / f"{name}.jsonl"
        if path.exists() and path.stat().st_size:
            out[name] = table(list(records.read(path)), k).to_dict()
    metrics = run_dir / "metrics.jsonl"
    out["steps"] = sum(1 for _ in records.read_json_lines(metrics)) if metrics.exists() else 0
    return json.loads(json.dumps(out))
