"""Evaluation: problems times repeats through the scaffold, graded and streamed to a file; a second run goes on there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from paragator import records
from paragator.core.packing import Packer
from paragator.core.prompts import Templates
from paragator.core.scaffold import run
from paragator.core.types import Plan, Problem, Sample
from paragator.records import Graded
from paragator.tasks import Task, grade_trace

AT_ONCE = 64
"""Problems in flight."""


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
    done: Callable[[int, int], None] = lambda finished, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Graded] | None:
    """Evaluate what `output` does not hold yet and return all records by repeat and problem; None if `stop()` cut it short.

    `done(finished, total)` is called as traces finish.
    """
    found = {key(r): r for r in records.read(output)} if output.exists() else {}
    wanted = [(p, r) for r in range(repeats) for p in problems]
    missing = [(p, r) for p, r in wanted if (p.id, r) not in found]
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(problem: Problem, repeat: int) -> None:
        async with limit:
            if stop():
                return
            repeat_seed = seed + 7919 * repeat
            trace = await run(problem, sample, plan, templates=templates, packer=packer, seed=repeat_seed)
        record = grade_trace(task, trace, {"repeat": repeat})
        records.append(output, [record])
        found[problem.id, repeat] = record
        done(len(found), len(wanted))

    await asyncio.gather(*(one(p, r) for p, r in missing))
    return [found[p.id, r] for p, r in wanted] if len(found) >= len(wanted) else None


def key(record: Graded) -> tuple[str, int]:
    return record.trace.problem.id, int(record.trace.extra.get("repeat", 0))
