"""`paragator study STUDY.toml`: methods by seeds, each run in a process of its own, and the comparison of all."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paragator.cli.main import parse, run_parser
from paragator.cli.panel import STAGES, bar, clock, sparkline
from paragator.core.errors import ParagatorError, UsageError
from paragator.core.estimators import mean
from paragator.core.text import one_line, printable
from paragator.settings import load
from paragator.stats.curves import read_metrics, series
from paragator.study.cells import Study
from paragator.study.jobs import INTERRUPTED, Job, Runner
from paragator.study.run import StudyRun

if TYPE_CHECKING:
    from rich.panel import Panel
    from rich.text import Text

EPILOG = """\
A study that was interrupted is resumed when it is started again: finished runs are left alone (--resume is understood).

  paragator study configs/study-countdown.toml --dry-run
  paragator study configs/study-countdown.toml --jobs 2
  paragator study configs/study-countdown.toml --only paragator:0 --runs /tmp/again     one run again, elsewhere
  paragator compare runs/study-countdown                                               the analysis alone"""
QUIET_S, REFRESH_HZ, SPARK = 60.0, 2, 12
STYLES = {"waiting": "dim", "running": "yellow", "finished": "green", "failed": "red", "interrupted": "magenta"}


def main(arguments: list[str]) -> int:
    parser = run_parser("study")
    parser.epilog = EPILOG
    parser.add_argument("--jobs", type=int, default=0, help="runs at once (default: cores / threads of a run)")
    parser.add_argument("--only", action="append", default=[], metavar="CELL[:SEED]", help="this run; may be repeated")
    flags, overrides = parse(parser, arguments)
    if flags.config is None:
        raise UsageError("no study given: paragator study STUDY.toml; see docs/study.md")
    asked = load(Study, flags.config, overrides)
    prepared = StudyRun(asked, Path(flags.config).parent, only=flags.only, overwrite=flags.overwrite)
    if flags.dry_run:
        print(json.dumps(prepared.described()) if flags.json else printable(prepared.overview()))
        return 0
    say = Show(quiet=flags.json)
    runner = prepared.start(flags.jobs, say)
    say.at_once = runner.at_once
    say.total, chosen = len(runner.jobs), len(prepared.chosen)
    say.text(f"{asked.name}: {chosen} runs, {chosen - say.total} of them finished; {runner.at_once} at once")
    asyncio.run(work(runner, say))
    again = shlex.join(["paragator", "study", *(word for word in arguments if word != "--overwrite")])
    code = ending(runner.jobs, say, again)
    if flags.only:
        results = said(prepared, say)
    else:
        results = {} if code == INTERRUPTED else analysed(prepared, say, failed=bool(code))
    if flags.json:
        found = {"study": str(prepared.study.folder), "exit_code": code, "runs": prepared.states()}
        print(json.dumps({**found, **results}))
    return code


class Show:
    """A line for each change and, once a minute, for each run in progress; on a terminal a live table."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet, self.live = quiet, not quiet and sys.stdout.isatty()
        self.total = self.ended = 0
        self.at_once = 1

    def text(self, line: str) -> None:
        if not self.quiet:
            print(printable(line), flush=True)

    def __call__(self, job: Job) -> None:
        self.ended += job.status != "running"
        if not self.live:
            line = f"{job.unit.name}: {job.doing}" if job.status == "running" else job.line()
            self.text(f"[{self.ended}/{self.total}] {line}")

    async def watch(self, jobs: Sequence[Job]) -> None:
        """Until cancelled."""
        while not self.quiet and not self.live:
            await asyncio.sleep(QUIET_S)
            for job in jobs:
                if job.status == "running":
                    self.text(f"[{self.ended}/{self.total}] {job.line()}")
        if self.quiet:
            return
        from rich.console import Console
        from rich.live import Live

        console = Console()

        def drawn() -> Panel:
            return board(jobs, self.at_once, console.height)

        with Live(console=console, get_renderable=drawn, refresh_per_second=REFRESH_HZ) as live:
            try:
                await asyncio.Event().wait()
            finally:
                live.refresh()


ORDER = ("running", "failed", "interrupted", "waiting", "finished")
"""Rows of the panel, what is looked at first."""


def board(jobs: Sequence[Job], at_once: int, lines: int = 40) -> Panel:
    """How far all runs are, then a row a run, as many as there is room for: what it does and the rewards of its training."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    out, now = Table.grid(padding=(0, 1), expand=True), time.monotonic()
    for _ in range(3):
        out.add_column(no_wrap=True)
    out.add_column(no_wrap=True, min_width=2 * SPARK + 1)
    out.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    shown = sorted(jobs, key=lambda job: ORDER.index(job.status))
    for job in shown[: max(1, lines - 5)]:
        running = job.status == "running"
        seconds = now - job.started if running else job.seconds
        last = one_line(job.last_line()) if running or job.status == "failed" else ""
        cells = [job.unit.name, job.doing if running else job.status, clock(seconds) if seconds else ""]
        row = [Text(one_line(cell), style=STYLES[job.status]) for cell in cells]
        out.add_row(*row, rewards(job.unit.folder), Text(last, "dim"))
    done = [job.seconds for job in jobs if job.status == "finished"]
    text = ", ".join(f"{n} {name}" for name in ORDER if (n := sum(job.status == name for job in jobs)))
    if done and len(done) < len(jobs):
        to_go = sum(max(0.0, mean(done) - (now - job.started if job.status == "running" else 0.0))
                    for job in jobs if job.status in ("running", "waiting"))  # fmt: skip
        text += f"  {clock(to_go / max(1, at_once))} left"
    more = [Text(f"and {len(jobs) - lines + 5} more", "dim")] if len(jobs) > lines - 5 else []
    head = bar(sum(job.status in ("finished", "failed") for job in jobs) / max(1, len(jobs)), text)
    return Panel(Group(head, out, *more), title="study", title_align="left", border_style="blue")


def rewards(unit: Path) -> Text:
    """Sparklines of both stages' rewards in a run's training."""
    from rich.text import Text

    path, out = unit / "train" / "metrics.jsonl", Text()
    try:
        lines = known_rewards(path, path.stat().st_size)
    except (OSError, ParagatorError):
        return out
    for key, (_, style) in STAGES.items():
        out.append(sparkline(lines[key], SPARK).ljust(SPARK) + " ", style)
    return out


@functools.lru_cache(maxsize=256)
def known_rewards(path: Path, size: int) -> dict[str, list[float]]:
    """The rewards of a run's steps by stage; read again where the file has grown."""
    rows = read_metrics(path.parent)
    return {key: series(rows, key)[1] for key in STAGES}


async def work(runner: Runner, say: Show) -> None:
    """Run all jobs while they are shown; Ctrl-C and SIGTERM stop them."""
    loop, signals = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)

    def ask() -> None:
        more = "; Ctrl-C again ends them at once" if not runner.stopping else ""
        print(f"stopping {len(runner.live)} processes{more}", file=sys.stderr)
        runner.stop()

    shown = asyncio.ensure_future(say.watch(runner.jobs))
    for one in signals:
        loop.add_signal_handler(one, ask)
    try:
        await runner.run()
    finally:
        for one in signals:
            loop.remove_signal_handler(one)
        shown.cancel()
        await asyncio.gather(shown, return_exceptions=True)


def ending(jobs: Sequence[Job], say: Show, again: str) -> int:
    """What is left to do and how; the exit code."""
    if failed := [job for job in jobs if job.status == "failed"]:
        say.text("\n".join(job.line() for job in failed))
        say.text(f"{len(failed)} of {len(jobs)} runs failed; fix the cause and start it again: {again}")
    if unfinished := sum(job.status in ("waiting", "interrupted") for job in jobs):
        say.text(f"interrupted, {unfinished} runs to go; resume with: {again}")
        return INTERRUPTED
    return 3 if failed else 0


def said(prepared: StudyRun, say: Show) -> dict[str, Any]:
    """Each finished run's primary outcome, beside what the study's results hold of it; None where it was not measured."""
    primary, found = prepared.study.primary, prepared.outcomes()
    for name, (own, known) in found.items():
        beside = "" if known is None else f" ({known:.6f} in {prepared.study.results_dir})"
        say.text(f"{name}: {primary.measure} at round {primary.round} = {own:.6f}{beside}")
    return {"primary": {name: None if math.isnan(own) else own for name, (own, _) in found.items()}}


def analysed(prepared: StudyRun, say: Show, *, failed: bool) -> dict[str, Any]:
    """Tables, metrics and pictures of all finished runs; a line where runs `failed` and nothing is left to compare."""
    try:
        found = prepared.results()
    except ParagatorError as error:
        if not failed:
            raise
        say.text(f"no results yet: {error}")
        return {}
    say.text(f"{found.primary_text()}\nresults: {prepared.study.results_dir}")
    return {"results": str(prepared.study.results_dir), "primary": found.primary_rows()}
