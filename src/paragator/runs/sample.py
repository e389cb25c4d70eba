"""Recorded candidates of the initial model, for offline aggregation; an unfinished file is resumed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from paragator import records
from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.core.scaffold import Scaffold, run
from paragator.core.types import Plan, Problem
from paragator.records import Graded
from paragator.runs import connect, resolve
from paragator.runs.events import Events
from paragator.runs.folder import check_output
from paragator.tasks import grade_trace

AT_ONCE = 64
"""Problems sampled before their records are written."""


async def sample(config: Config, output: Path, count: int, *, events: Events | None = None) -> dict[str, object]:
    """Sample what `output` lacks of `count` training problems; its records carry the model's fingerprint."""
    events = events or Events()
    if count < 1:
        raise UsageError(f"count = {count}: at least 1 is needed")
    check_output(output)
    resolved = resolve.resolve(config, training=True, recorded=False)
    fingerprint = resolved.facts.fingerprint
    done: set[str] = set()
    for record in records.read(output) if output.exists() else ():
        if record.trace.extra.get("model") != fingerprint:
            raise UsageError(f"--output {output} holds candidates of another model; delete it or choose another file")
        done.add(record.trace.problem.id)
    problems = resolved.task.problems("train", count, config.seed)
    engine = await connect.loaded(config)
    resolve.check_prompts(config, problems, engine)
    missing = [p for p in problems if p.id not in done]
    scaffold = Scaffold(Plan.sampling(config.rollout.candidates), config.model.templates(), seed=config.seed)

    async def one(problem: Problem) -> Graded:
        return await grade_trace(resolved.task, await run(problem, engine, scaffold), {"model": fingerprint})

    for start in range(0, len(missing), AT_ONCE):
        records.append(output, await asyncio.gather(*(one(p) for p in missing[start : start + AT_ONCE])))
        events.say(f"{len(done) + min(start + AT_ONCE, len(missing))}/{count} problems")
    return {"output": str(output), "problems": len(problems), "model": fingerprint}
