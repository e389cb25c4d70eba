"""Strategies over an engine: one problem answered by one of them, its solutions read and graded once each."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paragator.core.scaffold import Scaffold
from paragator.core.types import Completion, Grade, Problem, Sample, Trace
from paragator.engines.by_stage import ByStage
from paragator.engines.replay import Replay
from paragator.strategies import Asking, Named, Read, Sizes
from paragator.tasks import Task

FOLDER = "strategies"
"""Where a run directory keeps each strategy's records."""


@dataclass(frozen=True, slots=True)
class Plays:
    """A strategy and what it takes of the run; `apart` as in an Asking."""

    named: Named
    sizes: Sizes
    apart: bool = True

    def over(self, sample: Sample) -> tuple[Plays, Sample]:
        """The same over an engine: of a recording the first n candidates, in one random order, never one twice."""
        if isinstance(sample, Replay):
            return replace(self, apart=False), sample.first
        if isinstance(sample, ByStage) and isinstance(sample.generate, Replay):
            return replace(self, apart=False), replace(sample, generate=sample.generate.first)
        return self, sample

    async def __call__(self, problem: Problem, sample: Sample, scaffold: Scaffold, read: Read) -> Trace:
        """The strategy's trace of one problem, marked with its name."""
        trace = await self.named(Asking(problem, sample, scaffold, read, self.sizes, self.apart))
        return replace(trace, extra={**trace.extra, "strategy": self.named.label})


def reading(task: Task) -> Read:
    """Answers as a task's grader reads them; its verdicts stay unknown."""

    async def read(problem: Problem, solutions: Sequence[Completion]) -> list[str | None]:
        found = task.grade(problem, [one.text for one in solutions])
        return [grade.answer for grade in (await found if isinstance(found, Awaitable) else found)]

    return read


def once(task: Task) -> Task:
    """`task` for one trace: a text is graded once, however often its answer is read."""
    known: dict[str, asyncio.Future[Grade]] = {}

    async def grade(problem: Problem, texts: Sequence[str]) -> list[Grade]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        for text in new:
            known[text] = asyncio.get_running_loop().create_future()
        if new:
            try:
                found = task.grade(problem, new)
                grades = await found if isinstance(found, Awaitable) else found
            except BaseException:
                for text in new:
                    known.pop(text).cancel()
                raise
            for text, one in zip(new, grades, strict=True):
                known[text].set_result(one)
        return [await known[text] for text in texts]

    return replace(task, grade=grade)


def file_of(run_dir: Path, label: str) -> Path:
    """A strategy's records in a run directory."""
    return run_dir / FOLDER / f"{re.sub(r'[^A-Za-z0-9._=,-]', '-', label)}.jsonl"
