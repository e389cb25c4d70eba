"""The panel of `train` and `eval` on a terminal: progress, rewards as sparklines, speed, and the last problem that turned right.

Lines that the run says scroll above it. Text of models and problems is never markup or control.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from paragator.cli.show import Terminal
from paragator.core.text import one_line, printable
from paragator.records import Graded
from paragator.runs.events import Progress

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

BLOCKS = "▁▂▃▄▅▆▇█"
REFRESH_HZ = 4
STAGES = {"generate/reward": ("candidates", "cyan"), "aggregate/reward": ("aggregations", "green")}
SPARK, ANSWER = 40, 24
"""Most characters of a sparkline, and of an answer."""


def terminal(what: str = "this step", *, quiet: bool = False, wide: bool = False) -> Terminal:
    """What suits where the output goes: the panel on a terminal that can draw it, else plain lines."""
    if quiet or not sys.stdout.isatty():
        return Terminal(what, quiet=quiet, wide=wide)
    from rich.console import Console

    console = Console()
    if console.is_dumb_terminal or not console.encoding.startswith("utf"):
        return Terminal(what, wide=wide)
    return PanelTerminal(console, what, wide=wide)


class PanelTerminal(Terminal):
    """Says lines above a panel that is drawn anew while the run lasts."""

    def __init__(self, console: Console, what: str = "this step", *, wide: bool = False) -> None:
        from rich.live import Live

        super().__init__(what, wide=wide)
        self.console, self.width = console, console.width
        self.rewards: dict[str, list[float]] = {}
        self.metrics: Mapping[str, float] = {}
        self.progress: Progress | None = None
        self.turned: tuple[str, str, str] | None = None
        self.at = time.monotonic()
        self.live = Live(console=console, get_renderable=self.render, refresh_per_second=REFRESH_HZ)

    def __enter__(self) -> Self:
        super().__enter__()
        self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        self.live.stop()
        super().__exit__(kind, error, trace)

    # ---- what the run tells ----

    def say(self, line: str) -> None:
        from rich.text import Text

        self.console.print(Text(printable(line)), soft_wrap=True)

    def on_step(self, metrics: Mapping[str, float]) -> None:
        self.steps.take(metrics)
        self.metrics, self.progress, self.at = metrics, None, time.monotonic()
        for key in STAGES:
            if key in metrics and math.isfinite(metrics[key]):
                self.rewards.setdefault(key, []).append(metrics[key])

    def on_rollouts(self, sampled: Sequence[Graded]) -> None:
        self.turned = next((found for record in reversed(sampled) if (found := turned(record))), self.turned)

    def on_trace(self, record: Graded, progress: Progress) -> None:
        self.on_rollouts([record])
        self.on_progress(progress)

    def on_progress(self, progress: Progress) -> None:
        self.progress, self.at = progress, time.monotonic()

    # ---- what is drawn ----

    def render(self) -> RenderableType:
        """The panel; nothing before there is something to show."""
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        if not self.metrics and not self.progress:
            return Text("preparing", "dim")
        out = Table.grid(padding=(0, 1), expand=True)
        out.add_column(no_wrap=True)
        out.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        if self.metrics:
            self.add_step(out)
        if self.progress:
            self.add_progress(out, self.progress)
        if self.turned:
            text, was, became = self.turned
            out.add_row("turned right", Text(text, "italic"))
            out.add_row("", Text.assemble((f"✗ {was}", "red"), "  →  ", (f"✓ {became}", "green")))
        return Panel(out, title="training" if self.metrics else "evaluation", title_align="left", border_style="blue")

    def add_step(self, out: Table) -> None:
        from rich.text import Text

        metrics = self.metrics
        number, total = int(metrics["step"]), int(metrics["steps"])
        speed = metrics["tokens"] / max(metrics["seconds"], 1e-9)
        left = self.steps.left() - (time.monotonic() - self.at)
        ended = self.progress and number == total and self.progress.finished == self.progress.total
        text = f"{speed:,.0f} tokens/s" + ("" if ended else f"  {clock(max(0.0, left))} left")
        out.add_row(f"step {number}/{total}", bar(number / total, text))
        for key, values in self.rewards.items():
            name, style = STAGES[key]
            recent = sum(values[-10:]) / len(values[-10:])
            out.add_row(name, Text.assemble((sparkline(values, SPARK), style), f"  reward {recent:.3f}"))

    def add_progress(self, out: Table, progress: Progress) -> None:
        parts = [f"{progress.finished}/{progress.total} traces"]
        if progress.tokens is not None:
            parts.append(f"{progress.tokens / max(progress.seconds, 1e-9):,.0f} tokens/s")
        if progress.sampled:
            left = progress.seconds * (1 - progress.sampled) / progress.sampled - (time.monotonic() - self.at)
            parts.append(f"{clock(max(0.0, left))} left")
        if progress.trouble:
            parts.append(one_line(progress.trouble))
        share = max(progress.sampled, progress.finished / max(1, progress.total))
        out.add_row(one_line(progress.what.replace("_", " "), ANSWER), bar(share, "  ".join(parts)))


def bar(share: float, text: str) -> Table:
    """A bar of progress with a text beside it."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    out = Table.grid(padding=(0, 2))
    out.add_row(ProgressBar(total=1.0, completed=min(1.0, share), width=20), Text(text, no_wrap=True))
    return out


def sparkline(values: Sequence[float], width: int) -> str:
    """Means over equal stretches as blocks, from the lowest to the highest; at most `width` of them."""
    size = math.ceil(len(values) / width)
    means = [sum(some := values[i : i + size]) / len(some) for i in range(0, len(values), max(1, size))]
    low, span = min(means, default=0.0), max(means, default=0.0) - min(means, default=0.0)
    return "".join(BLOCKS[round(7 * (mean - low) / span) if span else 0] for mean in means)


def clock(seconds: float) -> str:
    """A duration: 12 s, 3:05 min, 2:10 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    big, small, unit = (*divmod(whole, 60), "min") if whole < 3600 else (*divmod(whole // 60, 60), "h")
    return f"{big}:{small:02} {unit}"


def turned(record: Graded) -> tuple[str, str, str] | None:
    """A problem and its commonest answers before and after, where the first is wrong and the last right; else None."""
    if record.num_rounds < 2:
        return None
    before, after = commonest(record, 0), commonest(record, record.num_rounds - 1)
    if before is None or after is None or before[1] or not after[1]:
        return None
    text = " ".join(record.trace.problem.text[:400].split())
    return one_line(text), one_line(before[0], ANSWER), one_line(after[0], ANSWER)


def commonest(record: Graded, round_: int) -> tuple[str, float] | None:
    """The answer that most solutions of a round give, and whether it is right; None where none is scored."""
    known = [(g.answer, g.right) for g in record.of_round(round_) if g.answer is not None and g.right is not None]
    votes = Counter(answer for answer, _ in known)
    return max(known, key=lambda one: votes[one[0]], default=None)
