"""From a config to something that samples: an engine, its journal and its usage log; for evaluation, solving, training."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from inspect import isawaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paragator.config import Config
from paragator.core.errors import ParagatorError
from paragator.core.packing import Packer
from paragator.core.types import Failure, Group, Problem, Prompt, Sample, Stage
from paragator.engines.journal import Journal, at_most, one_by_one
from paragator.engines.replay import Replay
from paragator.runs import resolve
from paragator.runs.servers import servers_of
from paragator.runs.usage import USAGE, UsageLog

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from paragator.engines.http.openai import OpenAIEngine
    from paragator.engines.http.spread import Spread
    from paragator.training.policy import Policy

    Publish = Callable[[int], Awaitable[None]]

CALLS = "calls.jsonl"
UNLIMITED = 2**31


@dataclass(frozen=True, slots=True)
class Connection:
    """What an evaluation samples with.

    sample   the engine as it is used: journaled, and for a server one request a completion
    packer   fits aggregation prompts into the engine's context, as far as that is known
    at_once  problems at a time that keep the engine busy; None where it takes what comes
    journal  None where answers cost nothing (a recording) or nothing is kept
    usage    a server's usage log; None in-process
    trouble  says how many attempts were repeated, and why the last one was; "" when none
    """

    sample: Sample
    packer: Packer
    at_once: int | None = None
    journal: Journal | None = None
    usage: UsageLog | None = None
    trouble: Callable[[], str] = lambda: ""


# ---- evaluation and solving ----


@asynccontextmanager
async def connected(
    config: Config,
    problems: list[Problem],
    run_dir: Path | None,
    stop: Callable[[], bool] = lambda: False,
    engine: Any = None,
) -> AsyncIterator[Connection]:
    """Connect `engine`, or else load the model that the config names, for these problems, and close it at the end.

    Answers are kept in `run_dir`, if there is one. On normal exit, waits for requests in flight and writes them down;
    left by an exception, gives them up. Once `stop()`, no request is begun.
    """
    engine = engine if engine is not None else await loaded(config)
    connection: Connection | None = None
    finished = False
    try:
        if hasattr(engine, "connect"):
            await engine.connect()
        elif hasattr(engine, "endpoint"):
            await reached(engine, config.engine.model)
        connection = connection_of(config, problems, run_dir, stop, engine)
        yield connection
        finished = True
    finally:
        if connection and connection.journal:
            await connection.journal.close(wait=finished)
        if isawaitable(closing := getattr(engine, "close", lambda: None)()):
            await closing
        if connection and connection.usage:
            connection.usage.write()


def connection_of(
    config: Config, problems: list[Problem], run_dir: Path | None, stop: Callable[[], bool], engine: Any
) -> Connection:
    """An engine that is ready, with its journal and limits."""
    if isinstance(engine, Replay):
        return Connection(engine, estimating_packer(config))
    remote = hasattr(engine, "endpoint")
    if not remote and hasattr(engine, "misfit"):
        resolve.check_prompts(config, problems, engine)
    own = engine if config.engine.kind == "own" else None
    model = str(engine.model) if remote else resolve.facts_of(config, own).fingerprint
    journal = usage = None
    sample: Sample = engine
    if run_dir is not None:
        sample = journal = Journal(engine, run_dir / CALLS, settings=settings_of(config, model))
        if hasattr(engine, "usage"):
            usage = UsageLog(run_dir / USAGE, model, lambda: asdict(engine.usage))
    if not remote:
        packer = packer_of(config, engine)
        at_once = getattr(engine, "at_once", None)
        return Connection(at_most(sample, UNLIMITED, stop), packer, at_once, journal, usage)
    most = config.engine.max_in_flight * len(engine.engines)
    sample, packer = fitted(config, problems, engine, one_by_one(at_most(sample, most, stop)))
    return Connection(sample, packer, most, journal, usage, partial(trouble, engine))


async def loaded(config: Config) -> Any:
    """The model that a config names, in this process."""
    from paragator.engines.local.compute import computed
    from paragator.engines.local.loading import load_model

    return local_engine(config, *await computed(load_model, config.model))


def local_engine(config: Config, model: Any, tokenizer: Any, **options: Any) -> Any:
    """The in-process engine with each stage's sampling, on as many CPU threads as configured; `options` are the engine's."""
    from paragator.engines.local.compute import set_threads
    from paragator.engines.local.transformers import TransformersEngine

    set_threads(config.train.threads)
    return TransformersEngine(model, tokenizer, sampling=resolve.samplings(config), **options)


def trouble(engine: Spread) -> str:
    """Retries so far and the last reason for one."""
    retries, reason = engine.usage.retries, engine.last_reason
    return f"{retries:,} retries, the last: {reason}" if retries and reason else ""


async def reached(engines: Spread, model: str | None) -> None:
    """Ask every server; they then know their model, and the context if they tell."""
    for engine in engines.engines:
        await reach(engine, model)


async def reach(engine: OpenAIEngine, model: str | None) -> None:
    if model is None:
        await engine.served_model()
        return
    with suppress(ParagatorError):  # a server that lists nothing, or nothing under this name, may serve it all the same
        if await engine.served_model() != model:
            engine.context = None


def fitted(config: Config, problems: list[Problem], engine: Spread, sample: Sample) -> tuple[Sample, Packer]:
    """`sample` and a packer that keep to the server's context, where it tells that."""
    from paragator.engines.http.fitting import Fitted, TokenCounter

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


async def nobody(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
    """A `Sample` where no engine is connected yet."""
    return Group(prompt, (Failure("no engine is connected"),) * n, stage=stage)


def settings_of(config: Config, model: str) -> str:
    """What decides an answer apart from the request, for the journal: the model and how it samples."""
    stages = [config.generate.model_dump(exclude={"weight"}), config.aggregate.model_dump(exclude={"weight"})]
    return json.dumps([model, stages, config.engine.extra_body], sort_keys=True)


def packer_of(config: Config, engine: Any) -> Packer:
    """Aggregation prompts within the context of an engine that counts tokens, or within rollout.max_prompt_tokens."""
    return resolve.build_packer(config, engine) if hasattr(engine, "count") else estimating_packer(config)


def estimating_packer(config: Config) -> Packer:
    """Without tokenizer and context: rollout.max_prompt_tokens in estimated tokens, else no budget."""
    limit = config.rollout.max_prompt_tokens
    if limit is None:
        return Packer(config.rollout.strip_thinking)
    from paragator.engines.http.fitting import estimated_tokens

    return Packer(config.rollout.strip_thinking, limit, estimated_tokens)


# ---- training ----


@asynccontextmanager
async def training_engine(
    config: Config, policy: Policy, run_dir: Path, say: Callable[[str], None], own: Any = None
) -> AsyncIterator[tuple[Any, Publish | None]]:
    """Who samples while a policy trains, and what hands it the weights after a step; None where it samples from the policy.

    `own` is an engine of the caller's.
    """
    from paragator.engines.local.compute import computed_now, set_threads

    if own is not None:
        export = partial(computed_now, policy.export)
        yield own, (lambda step: own.publish(step, export)) if hasattr(own, "publish") else None
        return
    if config.engine.kind == "transformers":
        engine = local_engine(config, policy.raw, policy.tokenizer, autocast=policy.accelerator.autocast)
        try:
            yield engine, None
        finally:
            engine.close()
        return
    set_threads(config.train.threads)
    async with vllm_engine(config, policy, run_dir, say) as found:
        yield found


@asynccontextmanager
async def vllm_engine(
    config: Config, policy: Policy, run_dir: Path, say: Callable[[str], None]
) -> AsyncIterator[tuple[Any, Publish]]:
    """vLLM servers that get the weights after each step; one is started where the config says so."""
    from paragator.engines.http.vllm import NAME, VllmEngine, served, written
    from paragator.engines.local.compute import computed_now

    weights, export, settings = run_dir / "weights", partial(computed_now, policy.export), config.engine
    async with AsyncExitStack() as stack:
        if settings.launch:
            log, arguments = run_dir / "logs" / "vllm.log", settings.vllm_arguments
            say(f"starting vLLM ({settings.vllm_python}); its log is {log}")
            model = written(export, weights, 0).resolve()
            if not any(word.split("=")[0] == "--dtype" for word in arguments):
                arguments = [*arguments, "--dtype", policy.precision]  # the trainer's own: its log-probabilities match
            url = await stack.enter_async_context(served(settings.vllm_python, model, log, arguments))
            settings = settings.model_copy(update={"url": url, "model": NAME})
        engines = servers_of(settings, resolve.samplings(config), policy.tokenizer)
        stack.push_async_callback(engines.close)
        for engine in engines.engines:
            await engine.served_model()
        remote = VllmEngine(engines, weights.resolve())
        stack.push_async_callback(remote.close)

        async def publish(step: int) -> None:
            await remote.publish(export, step)

        if not (run_dir / "checkpoints").exists():  # an evaluation comes first, of these weights
            await publish(0)
        yield remote, publish
