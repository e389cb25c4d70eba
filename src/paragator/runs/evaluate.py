"""Evaluation: problems times repeats through the scaffold, graded and streamed to a file; a second run goes on there."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from paragator import records
from paragator.core.errors import DataError
from paragator.core.packing import Packer
from paragator.core.prompts import Templates
from paragator.core.scaffold import Scaffold, run
from paragator.core.together import together
from paragator.core.types import Plan, Problem, Sample
from paragator.engines.journal import Stopped
from paragator.records import Graded
from paragator.tasks import Task, grade_trace

Key = tuple[str, int]
"""(problem id, repeat): what a record of an evaluation is known by."""
AT_ONCE = 64
"""Problems in flight where nobody knows how many requests the engine takes at a time."""


async def evaluate(
    problems: Sequence[Problem],
    sample: Sample,
    plan: Plan,
    task: Task,
    output: Path,
    *,
    templates: Templates,
    packer: Packer,
    repeats: int = 1,
    seed: int = 0,
    at_once: int | None = None,
    done: Callable[[int, int], None] = lambda finished, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Graded] | None:
    """Evaluate what `output` does not hold yet and return all records by repeat and problem; None if stopped before.

    No problem waits for another: each goes through its rounds at its own pace, `at_once` of them at a time. With as
    many as the engine takes requests, the engine always has one to work on. As many again may wait for their grades.
    A problem that failed in an earlier attempt is tried again. Of a complete evaluation the file is in order, so that
    the same answers give the same bytes however often it was interrupted. DataError where a record occurs twice, or
    is of a problem that has another text or answer now.

    `done(finished, total)` is called as traces finish. After `stop()`, or a Stopped from `sample`, no problem is begun
    and those under way are left out.
    """
    wanted = {(p.id, r): p for r in range(repeats) for p in problems}
    if len(wanted) < repeats * len(problems):
        raise DataError(f"{task.name}: two problems have the same id; give every problem its own")
    failed = dict(recorded(output, wanted)) if output.exists() else {}
    finished = {key for key, why in failed.items() if why is None}
    if len(finished) < len(failed):
        keep(output, [key for key in failed if key in finished])
    left = wanted.keys() - finished
    at_once = at_once or AT_ONCE
    sampling, begun = asyncio.Semaphore(at_once), asyncio.Semaphore(2 * at_once)

    async def one(key: Key) -> None:
        async with begun:
            async with sampling:
                if stop():
                    return
                scaffold = Scaffold(plan, templates, packer, seed + 7919 * key[1])
                try:
                    trace = await run(wanted[key], sample, scaffold)
                except Stopped:
                    return
            record = await grade_trace(task, trace, {"repeat": key[1]})
            records.append(output, [record])
            left.discard(key)
            done(len(wanted) - len(left), len(wanted))

    await together(*(one(key) for key in wanted if key in left))
    if left:
        return None
    order = [key for key, _ in recorded(output)]
    if order != list(wanted):
        keep(output, wanted)
    return list(records.read(output))


def is_complete(output: Path, problems: Sequence[Problem], repeats: int) -> bool:
    """Whether `evaluate` would have nothing to ask: every record is there and none is of a failed problem."""
    if not output.exists():
        return False
    finished = {key for key, why in recorded(output) if why is None}
    return all((p.id, r) in finished for p in problems for r in range(repeats))


def recorded(path: Path, wanted: Mapping[Key, Problem] | None = None) -> Iterator[tuple[Key, str | None]]:
    """The key of each record in a file and why its problem failed, in the file's order; DataError for a double.

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
    return [recorded.get("text"), recorded.get("answer")] == now


def key_of(row: dict[str, Any]) -> Key:
    try:
        return str(row["problem"]["id"]), int(row["extra"].get("repeat", 0))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError("not a record of a graded trace; remove or mend the line") from None


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
