"""Questions answered by rounds over one engine that all of them share."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any

from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.core.scaffold import Scaffold
from paragator.core.types import Group, Problem, Prompt, Stage
from paragator.engines.by_stage import Engines
from paragator.engines.journal import never
from paragator.runs import defaults, resolve
from paragator.runs.connect import connection_of, loaded, name_of
from paragator.runs.solve import NOTHING, Round, Seen, Solution, Watch, prices, problem_of, watch_of, watched
from paragator.serve.errors import ApiError, refused
from paragator.serve.protocol import Question
from paragator.serve.settings import ServeSettings
from paragator.strategies import strategy_named

STRATEGY = "eval.strategies"


class Tuned:
    """An engine in this process with a request's own sampling; requests of all of them share its batches."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.sampling = engine, engine.sampling

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        group: Group = await self.engine.sampled(prompt, n, stage=stage, seed=seed, sampling=self.sampling[stage])
        return group

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


@dataclass(slots=True)
class Work:
    """One question's rounds, ready to run; their tokens are counted as they arrive."""

    solver: Solver
    problem: Problem
    watch: Watch
    scaffold: Scaffold
    counted: int = 0

    async def run(self, seen: Seen) -> Solution:
        def noted(round_: Round) -> None:
            self.count()
            seen(round_)

        self.watch.seen = noted
        return await watched(self.problem, self.watch, self.scaffold, prices(self.solver.config))

    def count(self) -> None:
        """Count what arrived since the last time; ApiError once the server's budget is used up."""
        tokens = sum(round_.tokens for round_ in self.watch.rounds)
        self.solver.tokens += tokens - self.counted
        self.counted = tokens
        self.solver.check_budget()


class Solver:
    """What all questions share: config, engine, and the tokens spent so far."""

    def __init__(self, config: Config, engine: Any, settings: ServeSettings, aggregator: Any = None) -> None:
        self.config, self.engine, self.settings, self.aggregator = config, engine, settings, aggregator
        self.remote = hasattr(engine, "endpoint")
        self.name = settings.model_name or name_of(config, engine)
        self.tokens = 0
        for preset in settings.presets.values():
            self.watch(defaults.with_values(config, {STRATEGY: [preset.strategy]}))

    @property
    def models(self) -> list[str]:
        """What /v1/models lists."""
        return [self.name, *self.settings.presets]

    def work(self, question: Question) -> Work:
        """The rounds of a question; ApiError for one that cannot be answered."""
        self.check_budget()
        try:
            problem = problem_of(question.text)
            config = defaults.with_values(self.config, self.values_of(question))
            watch = self.watch(config)
            connection = connection_of(config, [problem], None, never, self.tuned(config, self.engine))
            if self.aggregator is not None:
                own = defaults.within(resolve.of_aggregator(config), getattr(self.aggregator, "context", None))
                other = connection_of(own, [problem], None, never, self.tuned(own, self.aggregator), aggregates=True)
                connection = connection.with_aggregator(other, (self.name, name_of(own, self.aggregator)))
        except UsageError as error:
            raise refused(error) from None
        watch.sample = connection.sample
        scaffold = Scaffold(watch.plan, config.model.templates(), connection.packer, question.seed)
        return Work(self, problem, watch, scaffold)

    def watch(self, config: Config) -> Watch:
        """A watch over the rounds, or the strategy, of one request; UsageError where it asks for too much."""
        strategy, sizes, most = config.eval.strategies, resolve.sizes_of(config), self.settings.max_solutions
        named = [strategy_named(text) for text in strategy]
        asked = max((one.candidates(sizes) for one in named), default=0)
        if asked <= most:  # so that what follows is quick
            watch = watch_of(config)
            told = watch.plays.named.requests(sizes) if watch.plays else None
            plan = watch.plan
            asked = plan.candidates + plan.rounds * plan.aggregations if told is None else told
        if asked > most:
            what = strategy[0] if strategy else "the config's rounds"
            raise UsageError(f"{what}: {asked} completions, this server asks for {most} a request at most")
        resolve.check_strategies(config, self.engine, beyond=self.aggregator is not None)
        watch.split = self.remote
        return watch

    def values_of(self, question: Question) -> dict[str, Any]:
        """What a model's name and a request's sampling set, as keys of the config."""
        name, at, strategy = question.model.partition("@")
        sampling: dict[str, Any] = {}
        preset = self.settings.presets.get(question.model)
        if preset:
            at, strategy = "@", preset.strategy
            sampling = preset.model_dump(include={"temperature", "top_p", "max_tokens"}, exclude_none=True)
        elif name != self.name:
            known = ", ".join(self.models)
            raise ApiError(404, f"no model {name!r:.200}; known: {known}", "model_not_found", param="model")
        sampling |= question.sampling
        if sampling.get("max_tokens", 1) > self.settings.max_tokens:
            most = self.settings.max_tokens
            raise ApiError(400, f"max_tokens: {most} at most", "invalid_request", param="max_tokens")
        if self.config.engine.kind == "own" and sampling:
            wrong = sorted(sampling)[0]
            raise ApiError(400, f"{wrong} is fixed by this engine; leave it out", "unsupported_parameter", param=wrong)
        values = {f"{stage}.{key}": value for stage in ("generate", "aggregate") for key, value in sampling.items()}
        if not at:
            return values
        if not preset:
            strategy_named(strategy, functions=False)  # a client may name what is there, and import nothing
        return values | {STRATEGY: [strategy]}

    @staticmethod
    def tuned(config: Config, engine: Any) -> Any:
        """An engine as one request uses it; connection_of gives it the request's sampling."""
        if config.engine.kind == "own":
            return engine
        return copy.copy(engine) if hasattr(engine, "endpoint") else Tuned(engine)

    def check_budget(self) -> None:
        limit = self.settings.max_tokens_total
        if limit is not None and self.tokens >= limit:
            raise ApiError(429, f"this server's {limit:,} tokens are used up", "insufficient_quota")


@asynccontextmanager
async def opened(config: Config, settings: ServeSettings, *, engine: Engines = None) -> AsyncIterator[Solver]:
    """A solver over the engine that the config names, or over `engine`, connected until the block ends."""
    resolved = resolve.resolve(config, training=False, task=NOTHING, engine=engine)
    used: Any = resolved.engine if resolved.engine is not None else await loaded(config)
    engines = [used] + ([resolved.aggregator] if resolved.aggregator is not None else [])
    try:
        for one in engines:
            if hasattr(one, "connect"):
                await one.connect()
        if config.engine.kind != "own":
            config = defaults.within(config, getattr(used, "context", None))
        connection_of(config, [], None, never, used)  # refuses what no question could be answered with
        yield Solver(config, used, settings, resolved.aggregator)
    finally:
        for one in engines:
            if isawaitable(closing := getattr(one, "close", lambda: None)()):
                await closing
