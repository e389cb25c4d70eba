"""From a config to something that samples: an engine, its journal, its bill; and to a grader with a judge behind it."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, replace
from inspect import isawaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paragator.runs import resolve
from paragator.runs.folder import write_whole
from paragator.config import Config
from paragator.core.errors import DataError, ParagatorError, UsageError
from paragator.core.packing import Packer
from paragator.core.types import Failure, Group, Problem, Prompt, Sample, Stage
from paragator.engines.http.fitting import TokenCounter, Fitted, estimated_tokens
from paragator.engines.journal import Journal, at_most, one_by_one
from paragator.engines.replay import Replay
from paragator.runs.evaluate import is_complete
from paragator.tasks import Task

if TYPE_CHECKING:
    from paragator.engines.http.openai import OpenAIEngine
    from paragator.engines.http.spread import Spread

CALLS = "calls.jsonl"
BILL = "usage.json"
DECIDED = ("correct", "incorrect")


@dataclass(frozen=True, slots=True)
class Rollout:
    """What an evaluation samples with.

    sample   the engine as it is used: journaled, and for an endpoint one request a completion
    packer   fits aggregation prompts into the engine's context, as far as that is known
    at_once  problems at a time that keep the engine busy; None where it takes what comes
    journal  None where answers cost nothing (a recording)
    bill     an endpoint's usage; None in-process
    trouble  says how many attempts were repeated, and why the last one was; "" when none
    """

    sample: Sample
    packer: Packer
    at_once: int | None = None
    journal: Journal | None = None
    bill: Bill | None = None
    trouble: Callable[[], str] = lambda: ""


@asynccontextmanager
async def build_sample(
    config: Config, problems: list[Problem], run_dir: Path, stop: Callable[[], bool]
) -> AsyncIterator[Rollout]:
    """Connect the engine that `config.engine.kind` names, unless nothing is left to ask, and close it.

    Left in peace it waits for the requests under way and writes them down; left by an exception it gives them up.
    After `stop()` no request is begun.
    """
    if is_complete(run_dir / "eval.jsonl", problems, config.eval.repeats):
        yield Rollout(Replay({}), Packer())
        return
    if config.engine.kind == "replay":
        engine = resolve.recording(config)
        yield Rollout(engine, estimating_packer(config))
        return
    build = in_process if config.engine.kind == "transformers" else endpoint
    rollout, engine = await build(config, problems, run_dir, stop)
    finished = False
    try:
        yield rollout
        finished = True
    finally:
        if rollout.journal:
            await rollout.journal.close(wait=finished)
        if isawaitable(closing := engine.close()):
            await closing
        if rollout.bill:
            rollout.bill.write()


async def in_process(
    config: Config, problems: list[Problem], run_dir: Path, stop: Callable[[], bool]
) -> tuple[Rollout, Any]:
    """The model in this process. The siblings of a prompt stay one request, as they share its prefill."""
    from paragator.engines.local import loading
    from paragator.engines.local.compute import computed

    model, tokenizer = await computed(loading.load, config.model)
    engine = resolve.build_engine(config, model, tokenizer)
    resolve.check_prompts(config, problems, engine)
    journal = Journal(engine, run_dir / CALLS, settings=settings_of(config, resolve.facts_of(config).fingerprint))
    return Rollout(at_most(journal, sys.maxsize, stop), resolve.build_packer(config, engine), journal=journal), engine


async def endpoint(
    config: Config, problems: list[Problem], run_dir: Path, stop: Callable[[], bool]
) -> tuple[Rollout, Any]:
    """Servers: a finished call is one request for one completion."""
    engine = await reached(config)
    try:
        model = str(engine.model)
        bill = Bill(run_dir / BILL, model, lambda: asdict(engine.usage))
        journal = Journal(engine, run_dir / CALLS, settings=settings_of(config, model))
        most = config.engine.max_in_flight * len(engine.engines)
        sample, packer = fitted(config, problems, engine, one_by_one(at_most(journal, most, stop)))
    except BaseException:
        await engine.close()
        raise
    return Rollout(sample, packer, most, journal, bill, lambda: trouble(engine)), engine


def trouble(engine: Spread) -> str:
    """Retries so far and the last reason for one."""
    retries, reason = engine.usage.retries, engine.last_reason
    return f"{retries:,} retries, the last: {reason}" if retries and reason else ""


async def reached(config: Config) -> Spread:
    """The servers at engine.url, which answer; they know their model, and the context if they tell."""
    engines = resolve.build_endpoints(config.engine, resolve.samplings(config))
    try:
        for engine in engines.engines:
            await reach(engine, config.engine.model)
    except BaseException:
        await engines.close()
        raise
    return engines


async def reach(engine: OpenAIEngine, model: str | None) -> None:
    if model is None:
        await engine.served_model()
        return
    with suppress(ParagatorError):  # a server that lists nothing, or nothing under this name, may serve it all the same
        if await engine.served_model() != model:
            engine.context = None


def fitted(config: Config, problems: list[Problem], engine: Spread, sample: Sample) -> tuple[Sample, Packer]:
    """`sample` and a packer that keep to the server's context, where it tells that."""
    if engine.context is None:
        return sample, estimating_packer(config)
    kept = Fitted(
        sample,
        TokenCounter(engine.endpoint, str(engine.model), config.engine.extra_body),
        engine.context,
        max_tokens={"generate": config.generate.max_tokens, "aggregate": config.aggregate.max_tokens},
        templates=config.model.templates(),
        problems=problems,
        pool_size=config.eval.pool_size,
        strip_thinking=config.rollout.strip_thinking,
        limit=config.rollout.max_prompt_tokens,
    )
    return kept, kept.packer


@asynccontextmanager
async def open_sample(config: Config, problem: Problem) -> AsyncIterator[Rollout]:
    """An engine for one problem, closed at the end. Nothing is kept: no journal, no bill."""
    engine: Any
    if config.engine.kind == "transformers":
        from paragator.engines.local import loading
        from paragator.engines.local.compute import computed

        engine = resolve.build_engine(config, *await computed(loading.load, config.model))
        resolve.check_prompts(config, [problem], engine)
        rollout = Rollout(engine, resolve.build_packer(config, engine))
    else:
        engine = await reached(config)
    try:
        if config.engine.kind != "transformers":
            most = config.engine.max_in_flight * len(engine.engines)
            sample, packer = fitted(config, [problem], engine, at_most(engine, most))
            rollout = Rollout(sample, packer, most)
        yield rollout
    finally:
        if isawaitable(closing := engine.close()):
            await closing


async def nobody(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
    """A `Sample` where no engine is connected yet."""
    return Group(prompt, (Failure("no engine is connected"),) * n, stage=stage)


def settings_of(config: Config, model: str) -> str:
    """What decides an answer apart from the request, for the journal: the model and how it samples."""
    stages = [config.generate.model_dump(exclude={"weight"}), config.aggregate.model_dump(exclude={"weight"})]
    return json.dumps([model, stages, config.engine.extra_body], sort_keys=True)


def estimating_packer(config: Config) -> Packer:
    """Without tokenizer and context: rollout.max_prompt_tokens in estimated tokens, else no budget."""
    limit = config.rollout.max_prompt_tokens
    return Packer(config.rollout.strip_thinking, limit, None if limit is None else estimated_tokens)


class Bill:
    """An endpoint's usage, summed over the attempts of a run and kept in a file; a kill loses what `write` had not seen.

    UsageError when an earlier attempt was answered by another model.
    """

    def __init__(self, path: Path, model: str, usage: Callable[[], dict[str, Any]]) -> None:
        self.path, self.model, self.usage = path, model, usage
        self.earlier: dict[str, Any] = {}
        self.attempts = 1
        if not path.exists():
            return
        try:
            kept = json.loads(path.read_text())
            self.attempts, self.earlier, before = kept["attempts"] + 1, dict(kept["total"]), kept["model"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} cannot be read ({error!r}); remove it, and its counts start again") from None
        if before != model:
            raise UsageError(
                f"{path.parent} was answered by {before!r}, the server now has {model!r}; set engine.model"
            )

    def total(self) -> dict[str, Any]:
        """Usage of all attempts."""
        return summed(self.earlier, self.usage())

    def write(self) -> None:
        kept = {"model": self.model, "attempts": self.attempts, "total": self.total(), "this_attempt": self.usage()}
        write_whole(self.path, json.dumps(kept, indent=2) + "\n")


def read_bill(run_dir: Path) -> dict[str, Any] | None:
    """What usage.json holds; None in-process."""
    path = run_dir / BILL
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


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
    engine = resolve.build_judge_engine(settings)
    try:
        name = f"{settings.model or await engine.served_model()}@{settings.url}"
        judge = Judge(engine, name=name, cache=Path(settings.cache), mode=settings.mode)
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


def summed(earlier: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Counts of two attempts added up, also those in dicts; of other values the later ones."""
    out: dict[str, Any] = {}
    for name, value in now.items():
        if isinstance(value, dict):
            out[name] = summed(earlier.get(name) or {}, value)
        else:
            out[name] = value + (earlier.get(name) or 0) if isinstance(value, int | float) else value
    return out
