"""Events: what a run tells whoever watches it, whether a terminal, a notebook or a page."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paragator.core.text import printable
from paragator.records import Graded
from paragator.results import WIDTH


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an evaluation is. Calls and tokens are those of this attempt; None where the engine does not count them.

    taken    traces that this attempt finished, of the `finished` ones
    sampled  of the solutions that this attempt is to sample, the share that has come
    trouble  how many requests were repeated and why; "" when none
    """

    what: str
    finished: int
    total: int
    taken: int
    seconds: float
    calls: int | None = None
    tokens: int | None = None
    trouble: str = ""
    sampled: float = 0.0

    def line(self) -> str:
        """Traces done, calls and tokens a second, and the time left once a solution has come."""
        parts, seconds = [f"{self.finished}/{self.total} traces"], max(self.seconds, 1e-9)
        if self.calls is not None and self.tokens is not None:
            parts += [f"{self.calls / seconds:,.1f} calls/s", f"{self.tokens / seconds:,.0f} tokens/s"]
        if self.sampled:
            parts.append(f"{self.seconds * (1 - self.sampled) / self.sampled:,.0f} s left")
        if self.trouble:
            parts.append(self.trouble)
        return f"{self.what.replace('_', ' ')}: " + "  ".join(parts)


class Events:
    """What a run calls. These do nothing: override what you want to see.

    width  columns of the tables that are said
    wide   whether all tables are said, with all their columns
    """

    width: int = WIDTH
    wide: bool = False

    def say(self, line: str) -> None:
        """One line of text or a small table, for a person."""

    def on_step(self, metrics: Mapping[str, float]) -> None:
        """A training step was taken; its metrics are those of metrics.jsonl."""

    def on_rollouts(self, sampled: Sequence[Graded]) -> None:
        """What the step sampled, graded; called after `on_step`."""

    def on_trace(self, record: Graded, progress: Progress) -> None:
        """An evaluation finished and graded all rounds of one problem."""

    def on_progress(self, progress: Progress) -> None:
        """How far an evaluation is, every ten seconds."""
        self.say(progress.line())

    def should_stop(self) -> bool:
        """Whether to stop after the step, or the requests, that are under way; the run can then be resumed."""
        return False


class Printing(Events):
    """Prints what is said, and one line a step of `steps`."""

    def __init__(self) -> None:
        self.steps = Steps()

    def say(self, line: str) -> None:
        print(printable(line), flush=True)

    def on_step(self, metrics: Mapping[str, float]) -> None:
        self.say(self.steps.line(metrics))


class Logged(Events):
    """Hands everything on, and keeps the lines in the run's log of this attempt."""

    def __init__(self, events: Events, run_dir: Path) -> None:
        logs = run_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.events, self.steps, self.width, self.wide = events, Steps(), events.width, events.wide
        self.file = logs / f"attempt_{len(list(logs.glob('attempt_*'))) + 1}.log"

    def write(self, line: str) -> None:
        with self.file.open("a", encoding="utf-8", errors="replace") as file:
            file.write(printable(line) + "\n")

    def say(self, line: str) -> None:
        self.write(line)
        self.events.say(line)

    def on_step(self, metrics: Mapping[str, float]) -> None:
        self.write(self.steps.line(metrics))
        self.events.on_step(metrics)

    def on_rollouts(self, sampled: Sequence[Graded]) -> None:
        self.events.on_rollouts(sampled)

    def on_trace(self, record: Graded, progress: Progress) -> None:
        self.events.on_trace(record, progress)

    def on_progress(self, progress: Progress) -> None:
        self.write(progress.line())
        self.events.on_progress(progress)

    def should_stop(self) -> bool:
        return self.events.should_stop()


class Steps:
    """Lines of training steps: rewards over the last ten steps, speed, and the time left as those ten would take it.

    "seconds_after" is what follows the last step: the evaluation, as long as the one before training.
    """

    def __init__(self) -> None:
        self.recent: deque[Mapping[str, float]] = deque(maxlen=10)

    def take(self, metrics: Mapping[str, float]) -> None:
        """One more step; each is taken once, by this or by `line`."""
        self.recent.append(metrics)

    def left(self) -> float:
        """Seconds to the end of the run."""
        last, rate = self.recent[-1], sum(m["seconds"] for m in self.recent) / len(self.recent)
        return rate * (last["steps"] - last["step"]) + last.get("seconds_after", 0.0)

    def line(self, metrics: Mapping[str, float]) -> str:
        """The line of one step."""
        self.take(metrics)
        number, total = int(metrics["step"]), int(metrics["steps"])
        parts = [f"step {number}/{total}"]
        for stage in ("generate", "aggregate"):
            seen = [m[f"{stage}/reward"] for m in self.recent if f"{stage}/reward" in m]
            if seen:
                parts.append(f"{stage} {sum(seen) / len(seen):.3f}")
        tokens = metrics["tokens"] / max(metrics["seconds"], 1e-9)
        parts += [f"{tokens:,.0f} tokens/s", f"{metrics['seconds']:.1f} s", f"{self.left():.0f} s left"]
        return "  ".join(parts)
