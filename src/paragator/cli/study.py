"""`paragator study STUDY.toml`: methods by seeds, each run in a process of its own, and the comparison of all."""

from __future__ import annotations

import asyncio
import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paragator.cli.main import parse, run_parser
from paragator.core.errors import ParagatorError, UsageError
from paragator.core.text import printable
from paragator.report.folder import check_folder
from paragator.report.runs import read_json
from paragator.runs import resolve
from paragator.runs.folder import clear, locked, write_whole
from paragator.settings import load
from paragator.study import jobs
from paragator.study.cells import Study, Unit, rollouts, tokens_at_most, units
from paragator.study.finished import CONFIG, NOTE
from paragator.study.jobs import INTERRUPTED, Job, Runner, check_trained, interruptible, left, state_of, works

if TYPE_CHECKING:
    from rich.table import Table

EPILOG = """\
A study that was interrupted goes on when it is started again: finished runs are left alone (--resume is understood).

  paragator study configs/study-countdown.toml --dry-run
  paragator study configs/study-countdown.toml --jobs 2
  paragator study configs/study-countdown.toml --only paragator:0 --runs /tmp/again     one run again, elsewhere
  paragator compare runs/study-countdown                                               the analysis alone"""
QUIET_S, REFRESH_HZ = 60.0, 2


def main(arguments: list[str]) -> int:
    parser = run_parser("study")
    parser.epilog = EPILOG
    parser.add_argument("--jobs", type=int, default=0, help="runs at once (default: cores / threads of a run)")
    parser.add_argument("--only", action="append", default=[], metavar="CELL[:SEED]", help="this run; may be repeated")
    flags, overrides = parse(parser, arguments)
    if flags.config is None:
        raise UsageError("no study given: paragator study STUDY.toml; see docs/study.md")
    if flags.jobs < 0:
        raise UsageError(f"--jobs = {flags.jobs}: at least 1 is needed")
    asked = load(Study, flags.config, overrides)
    study = with_known_seeds(asked)
    every = units(study, Path(flags.config).parent)
    chosen = selected([one for one in every if one.seed in asked.seeds], flags.only)
    check(chosen)
    check_primary(study, forced=flags.overwrite and len(chosen) == len(every))
    if not flags.overwrite:
        for one in chosen:
            check_trained(one)
    check_folder(study.results_dir)
    if flags.dry_run:
        print(json.dumps(described(study, chosen)) if flags.json else overview(study, chosen))
        return 0
    if flags.overwrite:
        remove(chosen)
    study.folder.mkdir(parents=True, exist_ok=True)
    write_note(study, every)
    at_once = flags.jobs or jobs.default_jobs(every[0].config.train.threads or 1)
    todo = [Job(unit) for unit in chosen if left(unit, study)]
    say = Show(len(todo), quiet=flags.json)
    say.text(f"{study.name}: {len(chosen)} runs, {len(chosen) - len(todo)} of them finished; {at_once} at once")
    asyncio.run(work(study, todo, at_once, say))
    code = ending(todo, say, shlex.join(["paragator", "study", *(w for w in arguments if w != "--overwrite")]))
    results: dict[str, Any] = {}
    if flags.only:
        results = {"primary": {unit.name: said(study, unit, say) for unit in chosen if not left(unit, study)}}
    elif code != INTERRUPTED:
        results = analysed(study, say, failed=bool(code))
    if flags.json:
        runs = {unit.name: state_of(unit, study) for unit in chosen}
        print(json.dumps({"study": str(study.folder), "exit_code": code, "runs": runs, **results}))
    return code


def selected(every: Sequence[Unit], only: Sequence[str]) -> list[Unit]:
    """The runs that CELL:SEED or CELL names; all without any."""
    out: list[Unit] = []
    for word in only:
        label, _, seed = word.partition(":")
        found = [one for one in every if one.cell.label == label and seed in ("", str(one.seed))]
        if not found:
            cells = ", ".join(dict.fromkeys(one.cell.label for one in every))
            seeds = ", ".join(dict.fromkeys(str(one.seed) for one in every))
            raise UsageError(f"--only {word}: no such run; cells: {cells}; seeds: {seeds}")
        out += [one for one in found if one not in out]
    return out if only else list(every)


def check(chosen: Sequence[Unit]) -> None:
    """Refuse before anything runs what could not: cells share task, model and lengths, so one of them tells."""
    first = chosen[0].config
    method = first.method.model_copy(update={"name": "base"})  # its pools are not sampled yet
    resolve.resolve(first.model_copy(update={"method": method}), training=any(one.trained for one in chosen))


def with_known_seeds(study: Study) -> Study:
    """The study with the seeds that it was started with before: fewer of them now choose runs, as --only does."""
    known = read_json(study.folder / NOTE).get("seeds", [])
    if not isinstance(known, list) or not all(isinstance(seed, int) for seed in known):
        raise UsageError(f"{study.folder / NOTE}: seeds = {known!r} are not numbers; delete it, or give another --name")
    return study.model_copy(update={"seeds": tuple(dict.fromkeys([*known, *study.seeds]))})


def write_note(study: Study, every: Sequence[Unit]) -> None:
    """The study, with what tells for each run whether what is finished of it is of these settings."""
    digests = {one.name: {work.name: work.digest for work in works(one, study) if work.digest} for one in every}
    note = {**study.model_dump(mode="json"), "digests": digests}
    write_whole(study.folder / NOTE, json.dumps(note, indent=2) + "\n")


def check_primary(study: Study, *, forced: bool) -> None:
    """The outcome and what it refers to are fixed by the study's first run."""
    path = study.folder / NOTE
    if forced or not path.is_file():
        return
    old = read_json(path)
    try:
        before = {key: old[key] for key in ("primary", "reference")}
    except KeyError as error:
        raise UsageError(f"{path} has no {error}; delete it, or give another --name") from None
    now = {"primary": study.primary.model_dump(), "reference": study.reference}
    for key, value in now.items():
        if before[key] != value:
            raise UsageError(
                f"{key} = {value} but the study began with {before[key]}, which is fixed before its runs are looked at; "
                "take it back, or give another --name"
            )


def remove(chosen: Sequence[Unit]) -> None:
    """Empty the folders of runs; UsageError where something else lies there, or a process still works."""
    there = [unit.folder for unit in chosen if unit.folder.exists()]
    for folder in there:
        if not (folder / CONFIG).is_file():
            raise UsageError(f"{folder} is not a run of a study; give another --name")
    for folder in there:
        with locked(folder):
            clear(folder)


# ---- what is to do ----


def described(study: Study, chosen: Sequence[Unit]) -> dict[str, Any]:
    """The cells: what each changes, costs and has."""
    cells = []
    for label in dict.fromkeys(one.cell.label for one in chosen):
        own = [one for one in chosen if one.cell.label == label]
        config = own[0].config
        cells.append(
            {
                "cell": label,
                "method": config.method.name,
                "set": own[0].cell.set,
                "steps": config.train.steps if own[0].trained else 0,
                "rollouts_a_step": rollouts(config) if own[0].trained else 0,
                "tokens_a_step_at_most": tokens_at_most(config),
                "needs": {f"seed{one.seed}": [w.name for w in left(one, study)] for one in own},
                "state": {f"seed{one.seed}": state_of(one, study) for one in own},
            }
        )
    return {"study": study.name, "folder": str(study.folder), "results": str(study.results_dir), "cells": cells}


def overview(study: Study, chosen: Sequence[Unit]) -> str:
    """The same for people."""
    found = described(study, chosen)
    primary = study.primary
    lines = [
        f"{study.name}: {len(found['cells'])} cells, {len(chosen)} runs in {study.folder}, results in {study.results_dir}",
        f"primary outcome: {primary.measure} at round {primary.round}, each cell minus {study.reference}",
    ]
    for cell in found["cells"]:
        states = list(cell["state"].values())
        counts = ", ".join(f"{states.count(s)} {s}" for s in ("finished", "begun", "missing") if s in states)
        change = f"  {json.dumps(cell['set'])}" if cell["set"] else ""
        cost = (
            f"{cell['steps']} steps of {cell['rollouts_a_step']} rollouts, at most {cell['tokens_a_step_at_most']:,} tokens"
            if cell["steps"]
            else "no training"
        )
        lines.append(f"  {cell['cell']:<22} {cell['method']:<20} {cost}; {counts}{change}")
    return printable("\n".join(lines))


# ---- running, shown ----


class Show:
    """A line for each change and, once a minute, for each run under way; on a terminal a table drawn anew."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self.total, self.quiet = total, quiet
        self.live = not quiet and sys.stdout.isatty()
        self.ended = 0

    def text(self, line: str) -> None:
        if not self.quiet:
            print(printable(line), flush=True)

    def __call__(self, job: Job) -> None:
        if job.status != "running":
            self.ended += 1
        if self.live:
            return
        line = f"{job.unit.name}: {job.doing}" if job.status == "running" else job.line()
        self.text(f"[{self.ended}/{self.total}] {line}")

    async def watch(self, todo: Sequence[Job]) -> None:
        """Until cancelled."""
        if self.quiet:
            return
        if not self.live:
            while True:
                await asyncio.sleep(QUIET_S)
                for job in todo:
                    if job.status == "running":
                        self.text(f"[{self.ended}/{self.total}] {job.line()}")
        from rich.live import Live

        with Live(get_renderable=lambda: table(todo), refresh_per_second=REFRESH_HZ) as live:
            try:
                while True:
                    await asyncio.sleep(1 / REFRESH_HZ)
            finally:
                live.refresh()


STYLES = {"waiting": "dim", "running": "yellow", "finished": "green", "failed": "red", "interrupted": "magenta"}


def table(todo: Sequence[Job]) -> Table:
    """One line a run."""
    from rich.table import Table
    from rich.text import Text

    out = Table.grid(padding=(0, 2))
    now = time.monotonic()
    for job in todo:
        running = job.status == "running"
        seconds = now - job.started if running else job.seconds
        last = printable(job.last_line()) if running or job.status == "failed" else ""
        cells = [job.unit.name, job.status, job.doing if running else "", f"{seconds:,.0f} s" if seconds else "", last]
        out.add_row(*(Text(cell, style=STYLES[job.status], overflow="ellipsis", no_wrap=True) for cell in cells))
    return out


async def work(study: Study, todo: Sequence[Job], at_once: int, say: Show) -> None:
    """Run all jobs while they are shown."""
    pool = Runner(study, at_once, say)
    shown = asyncio.ensure_future(say.watch(todo))
    try:
        with interruptible(pool):
            await pool.run(todo)
    finally:
        shown.cancel()
        await asyncio.gather(shown, return_exceptions=True)


def ending(todo: Sequence[Job], say: Show, again: str) -> int:
    """What is left to do and how; the exit code."""
    if failed := [job for job in todo if job.status == "failed"]:
        for job in failed:
            say.text(job.line())
        say.text(f"{len(failed)} of {len(todo)} runs failed; mend the cause and start it again: {again}")
    unfinished = sum(job.status in ("waiting", "interrupted") for job in todo)
    if unfinished:
        say.text(f"interrupted, {unfinished} runs to go; go on with: {again}")
        return INTERRUPTED
    return 3 if failed else 0


def said(study: Study, unit: Unit, say: Show) -> float | None:
    """The primary outcome of one run, beside what the study's results hold of it; None where it was not measured."""
    from paragator.report.runs import load_run
    from paragator.study.finished import outcome, recorded

    primary = study.primary
    own = outcome(load_run(unit.folder / "eval", study.evaluation.k).scores, primary.measure, primary.round)
    temperature = unit.config.generate.temperature
    known = recorded(study.results_dir, unit.cell.label, unit.seed, temperature, primary.measure, primary.round)
    beside = "" if known is None else f" ({known:.6f} in {study.results_dir})"
    say.text(f"{unit.name}: {primary.measure} at round {primary.round} = {own:.6f}{beside}")
    return None if math.isnan(own) else own


def analysed(study: Study, say: Show, *, failed: bool) -> dict[str, Any]:
    """Tables, metrics and pictures of all finished runs; a line where runs `failed` and nothing is left to compare."""
    from paragator.study.results import write_results

    try:
        found = write_results([study.folder], study.results_dir)
    except ParagatorError as error:
        if not failed:
            raise
        say.text(f"no results yet: {error}")
        return {}
    say.text(found.primary_text())
    say.text(f"results: {study.results_dir}")
    return {"results": str(study.results_dir), "primary": found.primary_rows()}
