"""A task with an LLM judge behind its grader, and the judge's agreement with the rules."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from paragator.config import Config
from paragator.runs.folder import write_whole
from paragator.runs.servers import judge_engine
from paragator.runs.usage import summed
from paragator.tasks import Task

DECIDED = ("correct", "incorrect")


@asynccontextmanager
async def judging(config: Config, task: Task, run_dir: Path, say: Callable[[str], None]) -> AsyncIterator[Task]:
    """`task` with the judge behind its grader, where the config asks for one.

    Its agreement with the rules, summed over the attempts of a run that a kill did not end, is said and kept in a file.
    """
    settings = config.judge
    if settings.mode == "off":
        yield task
        return
    from paragator.grading.judge import Judge, judged

    path = run_dir / "judge.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    engine = judge_engine(settings)
    try:
        if settings.model is None:
            await engine.connect()
        name = f"{engine.model}@{settings.url}"
        judge = Judge(engine, name=name, cache=Path(settings.cache), mode=settings.mode, form=settings.form)
        try:
            yield replace(task, grade=judged(task.grade, judge))
        finally:
            judge.close()
            found = summed(earlier, judge.agreement)
            both = {(r, j): found["rules_by_judge"][r][j] for r in DECIDED for j in DECIDED}
            equal = sum(count for (rules, said), count in both.items() if rules == said)
            found["agree"] = equal / sum(both.values()) if any(both.values()) else None
            write_whole(path, json.dumps(found, indent=2) + "\n")
    finally:
        await engine.close()
    agree = "-" if found["agree"] is None else f"{100 * found['agree']:.1f}%"
    say(f"judge {name}: asked {found['asked']}, from the cache {found['cache_hits']}, agrees with the rules {agree}")
