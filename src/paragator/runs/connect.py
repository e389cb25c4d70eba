"""From a config to something that samples: an engine, its journal and its usage log; for evaluation, solving, training."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from inspect import isawaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from paragator.config import Config, StageConfig
from paragator.core.packing import Packer
from paragator.core.types import Failure, Group, Problem, Prompt, Sample, Stage
from paragator.engines.by_stage import ByStage
from paragator.engines.journal import Journal, never
from paragator.engines.replay import Replay
from paragator.runs import defaults, resolve
from paragator.runs.servers import servers_of
from paragator.runs.usage import USAGE, USAGE_AGGREGATE, Budget, UsageLog

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from paragator.engines.http.openai import OpenAI
    from paragator.training.policy import Policy
    from paragator.training.tinker import TinkerLearner

    Publish = Callable[[int], Awaitable[None]]

CALLS = ("calls.jsonl", "calls_aggregate.jsonl")
"""Finished requests, and those of a model that only aggregates."""


@dataclass(frozen=True, slots=True)
class Connection:
    """What an evaluation samples with.

    sample   the engine as it is used: journaled, and for a server one request a completion
    packer   fits aggregation prompts into the engine's context, as far as that is known
    at_once  problems at a time that keep the engine busy; None where it takes what comes
    journal  None where answers cost nothing (a recording) or nothing is kept
    usage    a server's usage log; None in-process
    trouble  says how many attempts were repeated, and why the last one was; "" when none
    remarks  what a user should know about the answers, a line each
    aggregator  the connection of a model that only aggregates, where there is one
    """

    sample: Sample
    packer: Packer
    at_once: int | None = None
    journal: Journal | None = None
    usage: UsageLog | None = None
    trouble: Callable[[], str] = lambda: ""
    remarks: Callable[[], list[str]] = list
    aggregator: Connection | None = None

    @property
    def parts(self) -> list[Connection]:
        """This one, and the aggregator's."""
        return [self, self.aggregator] if self.aggregator else [self]

    @property
    def journals(self) -> list[Journal]:
        return [part.journal for part in self.parts if part.journal]

    @property
    def usages(self) -> list[UsageLog]:
        return [part.usage for part in self.parts if part.usage]

    def count(self, budget: Budget) -> None:
        """Let a budget know what is spent here."""
        budget.logs = self.usages
        own = [part.journal for part in self.parts if part.journal and not part.usage]
        budget.counted = lambda: sum(journal.tokens + journal.prompt_tokens for journal in own)

    def with_aggregator(self, other: Connection, models: tuple[str, str]) -> Connection:
        """The same where another model gives aggregations and ratings, within its own context."""
        return replace(
            self,
            sample=ByStage(self.sample, other.sample, models),
            packer=other.packer,
            trouble=lambda: "; ".join(filter(None, (self.trouble(), other.trouble()))),
            remarks=lambda: [*self.remarks(), *other.remarks()],
            aggregator=other,
        )


# ---- evaluation and solving ----


@asynccontextmanager
async def connected(
    config: Config,
    problems: list[Problem],
    run_dir: Path | None,
    stop: Callable[[], bool] = never,
    engine: Any = None,
    aggregator: Any = None,
) -> AsyncIterator[Connection]:
    """Connect `engine`, or else load the model that the config names, for these problems, and close it at the end.

    `aggregator`, where there is one, gives aggregations and ratings in its place. Answers are kept in `run_dir`, if there
    is one. On normal exit, waits for requests in flight and writes them down; left by an exception, gives them up. Once
    `stop()`, no request is begun.
    """
    async with AsyncExitStack() as stack:
        engine = engine if engine is not None else await loaded(config)
        found = await stack.enter_async_context(opened(config, problems, run_dir, stop, engine))
        if aggregator is not None:
            own = resolve.of_aggregator(config)
            other = await stack.enter_async_context(opened(own, problems, run_dir, stop, aggregator, aggregates=True))
            found = found.with_aggregator(other, (name_of(config, engine), name_of(own, aggregator)))
        yield found


@asynccontextmanager
async def opened(
    config: Config,
    problems: list[Problem],
    run_dir: Path | None,
    stop: Callable[[], bool],
    engine: Any,
    aggregates: bool = False,
) -> AsyncIterator[Connection]:
    """One engine, connected until the block ends."""
    connection: Connection | None = None
    finished = False
    try:
        if hasattr(engine, "connect"):
            await engine.connect()
        shorter = config if config.engine.kind == "own" else defaults.within(config, getattr(engine, "context", None))
        connection = connection_of(shorter, problems, run_dir, stop, engine, aggregates)
        if shorter is not config:
            connection = shortened(connection, shorter, engine)
        yield connection
        finished = True
    finally:
        if connection and connection.journal:
            await connection.journal.close(wait=finished)
        if isawaitable(closing := getattr(engine, "close", lambda: None)()):
            await closing
        if connection and connection.usage:
            connection.usage.write()


def shortened(connection: Connection, config: Config, engine: Any) -> Connection:
    """The same where the context is too small for the default length of completions, with a remark that says so."""
    stages = ", ".join(f"{name}.max_tokens = {s.max_tokens:,}" for name, s in resolve.samplings(config).items())
    remark = f"the context is {engine.context:,} tokens, so completions were kept shorter: {stages}; set them to choose"
    return replace(connection, remarks=lambda: [remark, *connection.remarks()])


def name_of(config: Config, engine: Any) -> str:
    """What an engine's model is called; "" of a recording."""
    if isinstance(engine, Replay):
        return ""
    own = getattr(engine, "model", None)
    if isinstance(own, str):
        return own
    return type(engine).__name__ if config.engine.kind == "own" else Path(config.model.path).name


def connection_of(
    config: Config,
    problems: list[Problem],
    run_dir: Path | None,
    stop: Callable[[], bool],
    engine: Any,
    aggregates: bool = False,
) -> Connection:
    """An engine that is ready, with its journal and limits; one that only `aggregates` sees no problem alone."""
    if isinstance(engine, Replay):
        return Connection(engine, estimating_packer(config))
    if config.engine.kind != "own":
        engine.sampling = resolve.samplings(config)
    if hasattr(engine, "misfit") and not aggregates:
        resolve.check_prompts(config, problems, engine)
    sample: Sample = engine
    journal = usage = None
    remote = hasattr(engine, "endpoint")
    if run_dir is not None:
        own = engine if config.engine.kind == "own" else None
        model = str(engine.model) if remote else resolve.facts_of(config, own).fingerprint
        settings, alone = settings_of(config, model), bool(getattr(engine, "one_by_one", False))
        sample = journal = Journal(engine, run_dir / CALLS[aggregates], settings=settings, one_by_one=alone, stop=stop)
        if remote:
            engine.stop_when(stop)
            usage = UsageLog(run_dir / (USAGE_AGGREGATE if aggregates else USAGE), model, lambda: asdict(engine.usage))
    packer = packer_of(config, engine)
    if remote and engine.context is not None:
        sample, packer = fitted(config, problems, engine, sample)
    told = {name: getattr(engine, name) for name in ("at_once", "trouble", "remarks") if hasattr(engine, name)}
    return Connection(sample, packer, journal=journal, usage=usage, **told)


async def loaded(config: Config) -> Any:
    """The model that a config names, in this process."""
    from paragator.engines.local.compute import computed
    from paragator.engines.local.loading import load_model
    from paragator.engines.local.proof import prove_sampling

    engine = local_engine(config, *await computed(load_model, config.model))
    await computed(prove_sampling, engine.model)
    return engine


def local_engine(config: Config, model: Any, tokenizer: Any, **options: Any) -> Any:
    """The in-process engine with each stage's sampling, on as many CPU threads as configured; `options` are the engine's."""
    from paragator.engines.local.compute import set_threads
    from paragator.engines.local.transformers import TransformersEngine

    set_threads(config.train.threads)
    options["template_arguments"] = config.model.template_arguments
    return TransformersEngine(model, tokenizer, sampling=resolve.samplings(config), **options)


def fitted(config: Config, problems: list[Problem], engine: OpenAI, sample: Sample) -> tuple[Sample, Packer]:
    """`sample` and a packer that keep to a server's context."""
    from paragator.engines.http.fitting import Fitted, Fitting, TokenCounter

    rollout = config.rollout
    kept = Fitted(
        sample,
        TokenCounter(engine, str(engine.model), engine.servers[0].extra_body),
        int(engine.context or 0),
        max_tokens={stage: sampling.max_tokens for stage, sampling in engine.sampling.items()},
        fitting=Fitting(
            config.model.templates(), config.eval.pool_size, rollout.strip_thinking, rollout.max_prompt_tokens
        ),
        problems=problems,
    )
    return kept, kept.packer


async def nobody(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
    """A `Sample` where no engine is connected yet."""
    return Group(prompt, (Failure("no engine is connected"),) * n, stage=stage)


def settings_of(config: Config, model: str) -> str:
    """What decides an answer apart from the request, for the journal: the model and how it samples."""
    sampled = StageConfig.model_fields.keys() - {"weight"}
    stages = [stage.model_dump(include=set(sampled)) for stage in (config.generate, config.aggregate)]
    told = resolve.samplings(config)["generate"].confidence
    more = [value for value in (config.model.template_arguments, sorted(config.engine.omit), told) if value]
    return json.dumps([model, stages, config.engine.extra_body, *more], sort_keys=True)


def packer_of(config: Config, engine: Any) -> Packer:
    """Aggregation prompts within the context of an engine that counts tokens, or within rollout.max_prompt_tokens."""
    return resolve.build_packer(config, engine) if hasattr(engine, "misfit") else estimating_packer(config)


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
    config: Config, policy: Policy | TinkerLearner, run_dir: Path, say: Callable[[str], None], own: Any = None
) -> AsyncIterator[tuple[Any, Publish | None]]:
    """Who samples while a policy trains, and what hands it the weights after a step; None where it samples from the policy.

    `own` is an engine of the caller's.
    """
    from paragator.engines.local.compute import computed_now, set_threads

    if own is not None:
        export = partial(computed_now, policy.export)
        yield own, (lambda step: own.publish(step, export)) if hasattr(own, "publish") else None
        return
    if config.train.backend == "tinker":
        yield await tinker_engine(config, cast("TinkerLearner", policy), run_dir)
        return
    policy = cast("Policy", policy)
    if config.engine.kind == "transformers":
        from paragator.engines.local.compute import computed

        async def refreshed(step: int) -> None:
            await computed(policy.publish)

        engine = local_engine(config, policy.raw, policy.tokenizer, autocast=policy.accelerator.autocast)
        try:
            yield engine, None if policy.raw is policy.model else refreshed
        finally:
            engine.close()
        return
    set_threads(config.train.threads)
    async with vllm_engine(config, policy, run_dir, say) as found:
        yield found


async def tinker_engine(config: Config, learner: TinkerLearner, run_dir: Path) -> tuple[Any, Publish]:
    """The service that trains an adapter, sampling from it; each step is followed by a handle on its weights."""
    from paragator.engines.local.compute import computed
    from paragator.engines.tinker import TinkerEngine

    async def publish(step: int) -> None:
        await computed(learner.publish)

    engine = TinkerEngine(learner.service, lambda: learner.handle, config.model, resolve.samplings(config))
    if not (run_dir / "checkpoints").exists():  # an evaluation comes first, of these weights
        await publish(0)
    return engine, publish


@asynccontextmanager
async def vllm_engine(
    config: Config, policy: Policy, run_dir: Path, say: Callable[[str], None]
) -> AsyncIterator[tuple[Any, Publish]]:
    """vLLM servers that get the weights after each step; one is started where the config says so."""
    from paragator.engines.http.vllm import NAME, VllmEngine, served, written
    from paragator.engines.http.weights import Adapter, Weights, rank_for
    from paragator.engines.local.compute import computed_now

    weights, settings, adapters = run_dir / "weights", config.engine, config.engine.sync == "adapter"
    async with AsyncExitStack() as stack:
        if settings.launch:
            log, arguments = run_dir / "logs" / "vllm.log", settings.vllm_arguments
            say(f"starting vLLM ({settings.vllm_python}); its log is {log}")
            model = written(partial(computed_now, policy.export), weights, 0).resolve()  # adapters change nothing yet
            if not any(word.split("=")[0] == "--dtype" for word in arguments):
                arguments = [*arguments, "--dtype", policy.precision]  # the trainer's own: its log-probabilities match
            if adapters:
                arguments = ["--enable-lora", "--max-lora-rank", str(rank_for(config.model.lora_rank)), *arguments]
            url = await stack.enter_async_context(served(settings.vllm_python, model, log, arguments))
            settings = settings.model_copy(update={"url": url, "model": NAME, "wait_s": 0.0})  # nobody starts it again
        engine = servers_of(settings, resolve.samplings(config))
        engine.tokenizer, engine.template_arguments = policy.tokenizer, config.model.template_arguments
        stack.push_async_callback(engine.close)
        engine.fleet.tell = say
        await engine.connect(listed=True)
        remote = VllmEngine(engine, weights.resolve(), Adapter if adapters else Weights)
        stack.push_async_callback(remote.close)

        async def publish(step: int) -> None:
            await remote.publish(lambda folder: computed_now(policy.export, folder, adapters), step)

        if not (run_dir / "checkpoints").exists():  # an evaluation comes first, of these weights
            await publish(0)
        yield remote, publish
