"""Evaluation: problems times repeats through the scaffold, graded and streamed to a file that a later attempt completes."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paragator import records
from paragator.config import Config
from paragator.core.errors import DataError
from paragator.core.scaffold import Scaffold, run
from paragator.core.together import together
from paragator.core.types import Failure, Group, Problem, Prompt, Sample, Stage
from paragator.engines.by_stage import ByStage, Engines
from paragator.engines.journal import Stopped
from paragator.engines.replay import Replay
from paragator.records import Graded
from paragator.results import EvalResult
from paragator.runs import connect, folder, resolve
from paragator.runs.defaults import say_prompts
from paragator.runs.events import Events, Logged, Progress
from paragator.runs.judging import judging
from paragator.runs.strategies import Plays, file_of, once, reading
from paragator.runs.usage import Budget, read_usage
from paragator.tasks import Task, grade_trace

Key = tuple[str, int]
"""(problem id, repeat): what a record of an evaluation is known by."""
AT_ONCE = 64
"""Problems in flight where nobody knows how many requests the engine takes at a time."""
EVERY_S = 10.0
"""Seconds between two lines of progress."""


# ---- a whole run ----


async def evaluate(
    config: Config,
    *,
    task: Task | None = None,
    engine: Engines = None,
    resume: bool = False,
    overwrite: bool = False,
    events: Events | None = None,
    report: bool = True,
) -> EvalResult:
    """Run a config's evaluation in its run directory and write its `report`; `task` and `engine` replace the config's.

    Stopped by `events.should_stop`, the result is what is finished, and the run can be resumed. What a server was asked
    is kept until all is finished, so that an interrupted run pays for nothing twice.
    """
    folder.check_state(config, resume=resume, overwrite=overwrite)
    resolved = resolve.resolve(config, training=False, task=task, engine=engine)
    problems = resolve.held_out(config, resolved.task)
    manifest = folder.manifest(config, resolved.facts, len(problems))
    with folder.open_run(config, resume=resume, overwrite=overwrite, manifest=manifest) as run_dir:
        logged = Logged(events or Events(), run_dir)
        say_prompts(config, logged.say)
        plays = [Plays(one, resolve.sizes_of(config)) for one in resolve.strategies_of(config)]
        outputs = [file_of(run_dir, one.named.label) for one in plays] or [run_dir / "eval.jsonl"]
        complete = all(is_complete(output, problems, config.eval.repeats) for output in outputs)
        engines = (Replay({}), None) if complete else (resolved.engine, resolved.aggregator)
        budget = Budget(config.eval.max_tokens_total, config.eval.max_cost)
        stop = budget.ends(logged.should_stop)
        async with (
            judging(config, resolved.task, run_dir, logged.say) as judged,
            connect.connected(config, problems, run_dir, stop, *engines) as connection,
        ):
            connection.count(budget)
            scaffold = resolve.eval_scaffold(config, connection.packer)
            asked = Evaluation(problems, judged, scaffold, config.eval.repeats)
            found: list[list[Graded] | None] = []
            chosen: list[Plays | None] = [*plays] or [None]
            for output, one in zip(outputs, chosen, strict=True):
                tally = Tally(one.named.label if one else "eval", logged, connection)
                sample: Sample = connection.sample
                if resolved.given and not complete:
                    sample = ByStage(resolved.given, sample)
                found.append(
                    await measured(replace(asked, plays=one), sample, output, tally, at_once=connection.at_once)
                )
                if found[-1] is None:
                    break
                if not plays:
                    say_table(found[-1], config.eval.k, tally)
        for remark in connection.remarks():
            logged.say(remark)
        ended = "" if None not in found else budget.spent() or "interrupted"
        if plays:
            result = compared(config, [one.named.label for one in plays], run_dir, logged, ended, report=report)
        else:
            result = concluded(config, found[0], run_dir, logged, report)
        if not ended:
            return result
        logged.say(f"{ended}; go on with --resume (run directory {run_dir})")
        return replace(result, spent=budget.spent())


def concluded(config: Config, found: list[Graded] | None, run_dir: Path, events: Events, report: bool) -> EvalResult:
    """Say how an evaluation ended, write the report, and hand it back."""
    usage = say_usage(run_dir, events)
    if found is None:
        done = [record for record in finished_in(run_dir / "eval.jsonl") if record.trace.failure is None]
        return EvalResult(done, config.eval.k, finished=False, folder=run_dir, usage=usage)
    if report:
        from paragator.report.page import write_report

        events.say(f"report: {write_report(run_dir)}")
    result = EvalResult(found, config.eval.k, folder=run_dir, usage=usage)
    if failed := result.failed:
        events.say(
            f"{len(failed)} of {len(found)} traces failed, most by: {main_reason(failed)}; --resume tries them again"
        )
    else:
        lost = [
            r
            for r in found
            if any(isinstance(o, Failure) for groups in r.trace.rounds for g in groups for o in g.outputs)
        ]
        if lost:
            events.say(f"{len(lost)} of {len(found)} traces lost some of their solutions, most by: {main_reason(lost)}")
        for name in connect.CALLS:
            (run_dir / name).unlink(missing_ok=True)
    return result


def say_usage(run_dir: Path, events: Events) -> dict[str, Any] | None:
    """What a server was asked, as it is kept; None in-process."""
    usage = read_usage(run_dir)
    for one in filter(None, (usage, (usage or {}).get("aggregate"))):
        shown = {
            name: "not told" if value is None else f"{value:,.10g}" for name, value in one.get("total", {}).items()
        }
        spent = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())
        if spent:
            what = "usage" if one is usage else "aggregations and ratings, usage"
            events.say(f"{what} of {one['model']} in {one['attempts']} attempts: {spent}")
    return usage


def compared(
    config: Config, labels: Sequence[str], run_dir: Path, events: Events, ended: str, *, report: bool
) -> EvalResult:
    """Say what strategies came to, write their tables, picture and `report`, and hand them back; finished requests are kept.

    A strategy that is not finished is left out; another attempt may add strategies, which share the candidates.
    """
    usage = say_usage(run_dir, events)
    files = {label: file_of(run_dir, label) for label in labels}
    found = {label: list(records.read(path)) for label, path in files.items() if path.exists()}
    sizes = {label: len(some) for label, some in found.items()}
    done = {label: some for label, some in found.items() if some and sizes[label] == max(sizes.values())}
    first = next(iter(done.values()), [])
    result = EvalResult(first, config.eval.k, not ended, run_dir, usage, strategies=done)
    if done:
        from paragator.report.page import write_report
        from paragator.report.strategies import write_tables

        write_tables(result.compared, run_dir, ended)
        events.say(result.compared.text())
        events.say(f"strategies: {run_dir / 'strategies.md'}")
        if report:
            events.say(f"report: {write_report(run_dir)}")
    if not ended and (failed := [record for some in done.values() for record in some if record.trace.failure]):
        events.say(f"{len(failed)} traces failed, most by: {main_reason(failed)}; --resume tries them again")
    return result


def say_table(found: list[Graded], k: int, tally: Tally) -> None:
    """A finished evaluation as a line and its tables."""
    what = f"{tally.name.replace('_', ' ')} training" if "_" in tally.name else tally.name
    problems = len({record.trace.problem.id for record in found})
    tally.events.say(f"{what}: {problems} held-out problems, {tally.seconds:.0f} s")
    tally.events.say(EvalResult(found, k).text(wide=tally.events.wide, width=tally.events.width))


def finished_in(output: Path) -> list[Graded]:
    """What an interrupted evaluation left."""
    return list(records.read(output)) if output.exists() else []


def main_reason(failed: Sequence[Graded]) -> str:
    """The commonest reason of calls that failed; of traces where no call did."""
    outputs = [o for r in failed for groups in r.trace.rounds for group in groups for o in group.outputs]
    reasons = [o.reason for o in outputs if isinstance(o, Failure)] or [str(r.trace.failure) for r in failed]
    return Counter(reasons).most_common(1)[0][0]


# ---- progress ----


class Tally:
    """Counts the traces of an evaluation as they finish, and tells events of them."""

    def __init__(self, name: str, events: Events, connection: connect.Connection | None = None) -> None:
        self.name, self.events, self.connection = name, events, connection
        self.start = time.perf_counter()
        self.finished = self.total = self.taken = self.asked = self.came = 0
        self.before = self.spent()

    def spent(self) -> tuple[int, int]:
        """Requests and tokens so far, of this evaluation and those before it."""
        journals = self.connection.journals if self.connection else ()
        return sum(one.asked for one in journals), sum(one.tokens for one in journals)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def take(self, record: Graded) -> None:
        """One more trace is finished."""
        self.taken += 1
        self.finished += 1
        self.events.on_trace(record, self.progress())

    def counting(self, sample: Sample) -> Sample:
        """`sample`, of which the solutions are counted as they come."""

        async def counted(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
            group = await sample(prompt, n, stage=stage, seed=seed)
            self.came += n
            return group

        return counted

    def progress(self) -> Progress:
        """How far it is now, with the engine's calls where it counts them."""
        sampled = min(1.0, self.came / self.asked) if self.asked else 0.0
        found = Progress(self.name, self.finished, self.total, self.taken, self.seconds, sampled=sampled)
        if self.connection is None:
            return found
        calls, tokens = (now - before for now, before in zip(self.spent(), self.before, strict=True))
        known, trouble = bool(self.connection.journals), self.connection.trouble()
        return replace(found, trouble=trouble, calls=calls if known else None, tokens=tokens if known else None)

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """While inside, a line of progress every ten seconds, and the usage log kept current."""
        ticking = asyncio.ensure_future(self.tick())
        try:
            yield
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)

    async def tick(self) -> None:
        said = self.start
        while True:
            await asyncio.sleep(1)
            for usage in self.connection.usages if self.connection else ():
                usage.write()
            if time.perf_counter() - said >= EVERY_S:
                said = time.perf_counter()
                self.events.on_progress(self.progress())


# ---- the loop ----


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is evaluated: problems, their task's grades, the rounds, and how often each problem is repeated.

    With `plays`, a strategy answers each problem instead of the scaffold's own rounds.
    """

    problems: Sequence[Problem]
    task: Task
    scaffold: Scaffold
    repeats: int = 1
    plays: Plays | None = None


async def measured(
    asked: Evaluation, sample: Sample, output: Path, tally: Tally, *, at_once: int | None = None
) -> list[Graded] | None:
    """Evaluate what `output` does not hold yet and return all records by repeat and problem; None if stopped before.

    No problem waits for another: each goes through its rounds at its own pace, `at_once` of them at a time. With as
    many as the engine takes requests, the engine always has one to work on. As many again may wait for their grades.
    A problem that failed in an earlier attempt is tried again. Of a complete evaluation the file is in order, so that
    the same answers give the same bytes however often it was interrupted. DataError where a record occurs twice, or
    is of a problem that has another text or answer now.

    Once `tally.events.should_stop()`, or after a Stopped from `sample`, no problem is begun and those under way are
    left out.
    """
    wanted = {(p.id, r): p for r in range(asked.repeats) for p in asked.problems}
    if len(wanted) < asked.repeats * len(asked.problems):
        raise DataError(f"{asked.task.name}: two problems have the same id; give every problem its own")
    failed = dict(recorded(output, wanted)) if output.exists() else {}
    finished = {key for key, why in failed.items() if why is None}
    if len(finished) < len(failed):
        keep(output, [key for key in failed if key in finished])
    left = wanted.keys() - finished
    tally.total, tally.finished = len(wanted), len(wanted) - len(left)
    plays, sample = asked.plays.over(sample) if asked.plays else (None, sample)
    plan, counted = asked.scaffold.plan, tally.counting(sample)
    each = plays.named.requests(plays.sizes) if plays else plan.candidates + plan.rounds * plan.aggregations
    tally.asked = len(left) * (each or 0)
    at_once = at_once or AT_ONCE
    sampling, begun = asyncio.Semaphore(at_once), asyncio.Semaphore(2 * at_once)

    async def one(key: Key) -> None:
        async with begun:
            async with sampling:
                if tally.events.should_stop():
                    return
                scaffold = replace(asked.scaffold, seed=asked.scaffold.seed + 7919 * key[1])
                task = once(asked.task) if plays else asked.task
                try:
                    if plays:
                        trace = await plays(wanted[key], counted, scaffold, reading(task))
                    else:
                        trace = await run(wanted[key], counted, scaffold)
                except Stopped:
                    return
            record = await grade_trace(task, trace, {"repeat": key[1]})
            records.append(output, [record])
            left.discard(key)
            tally.take(record)

    async with tally.shown():
        await together(*(one(key) for key in wanted if key in left))
    if left:
        return None
    if [key for key, _ in recorded(output)] != list(wanted):
        keep(output, wanted)
    return list(records.read(output))


def is_complete(output: Path, problems: Sequence[Problem], repeats: int) -> bool:
    """Whether `evaluate` would have nothing to ask: every record is there and none is of a failed problem."""
    if not output.exists():
        return False
    finished = {key for key, why in recorded(output) if why is None}
    return all((p.id, r) in finished for p in problems for r in range(repeats))


def recorded(path: Path, wanted: Mapping[Key, Problem] | None = None) -> Iterator[tuple[Key, str | None]]:
    """The key of each record in a file and why its problem failed, in the file's order; DataError for a duplicate.

    With `wanted`, DataError too for a record of another problem than the one that is wanted under its key.
    """
    seen: set[Key] = set()
    for row in records.read_json_lines(path):
        key = key_of(row)
        if key in seen:
            raise DataError(f"{path}: problem {key[0]!r}, repeat {key[1]} is recorded twice; remove one of the lines")
        if wanted is not None and not is_of(row["problem"], wanted.get(key)):
            raise DataError(
                f"{path}: problem {key[0]!r}, repeat {key[1]} is not what it was when it was recorded; put the data back, or "
                "use --overwrite or another --name"
            )
        seen.add(key)
        yield key, row.get("failure")


def is_of(recorded: Mapping[str, Any], problem: Problem | None) -> bool:
    """Whether a recorded problem asks what `problem` does, and for the same answer."""
    if problem is None:
        return False
    now = json.loads(json.dumps([problem.text, problem.answer]))
    return bool([recorded.get("text"), recorded.get("answer")] == now)


def key_of(row: dict[str, Any]) -> Key:
    try:
        return str(row["problem"]["id"]), int(row["extra"].get("repeat", 0))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError("not a record of a graded trace; remove or fix the line") from None


def keep(path: Path, keys: Iterable[Key]) -> None:
    """Rewrite a file of records with those of `keys`, in that order: all of it or, if this process dies, nothing."""
    places: dict[Key, tuple[int, int]] = {}
    new = path.with_suffix(".new")
    at = 0
    with path.open("rb") as source, new.open("wb") as target:
        for line in source:
            if line.strip() and line.endswith(b"\n"):
                places[key_of(json.loads(line))] = (at, len(line))
            at += len(line)
        for key in keys:
            start, length = places[key]
            source.seek(start)
            target.write(source.read(length))
        target.flush()
        os.fsync(target.fileno())
    os.replace(new, path)
