"""Several servers of one model as one engine: all samples of a prompt go to one of them, the least busy one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

from paragator.core.errors import UsageError
from paragator.core.types import Group, Prompt, Stage
from paragator.engines.http.endpoint import Endpoint
from paragator.engines.http.openai import OpenAIEngine, Usage

MOST_HOMES = 16_384
"""Prompts whose server is remembered, so that siblings asked for one by one meet their cached prefix."""


class Spread:
    """Satisfies `Sample` with one or more engines of the same model.

    A prompt goes where its siblings went, else to the engine with the fewest completions under way, the first of equals.
    flying  completions under way by engine
    """

    def __init__(self, engines: Sequence[OpenAIEngine]) -> None:
        urls = [engine.endpoint.url for engine in engines]
        if double := next((url for i, url in enumerate(urls) if url in urls[:i]), None):
            raise UsageError(f"engine.url names {double} twice; name each server once")
        self.engines = list(engines)
        self.flying = [0] * len(engines)
        self.homes: dict[int, int] = {}

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        at = self.home(prompt)
        self.flying[at] += n
        try:
            return await self.engines[at](prompt, n, stage=stage, seed=seed)
        finally:
            self.flying[at] -= n

    def home(self, prompt: Prompt) -> int:
        """Which engine a prompt goes to."""
        key = hash(prompt)
        at = self.homes.pop(key, None)
        if at is None:
            at = min(range(len(self.engines)), key=self.flying.__getitem__)
        self.homes[key] = at  # now the youngest
        if len(self.homes) > MOST_HOMES:
            del self.homes[next(iter(self.homes))]
        return at

    @property
    def endpoint(self) -> Endpoint:
        """The first server, for questions that any can answer."""
        return self.engines[0].endpoint

    @property
    def model(self) -> str | None:
        """The name that all servers know the model by; UsageError where they have different ones."""
        names = sorted({str(engine.model) for engine in self.engines})
        if len(names) > 1:
            raise UsageError(f"engine.url: the servers serve {', '.join(names)}; set engine.model to a name they share")
        return self.engines[0].model

    @property
    def context(self) -> int | None:
        """Tokens that prompt and completion may have together on every server, as far as that is known."""
        return min((engine.context for engine in self.engines if engine.context is not None), default=None)

    @property
    def usage(self) -> Usage:
        """Tokens, calls and cost so far, of all servers."""
        return Usage(*map(sum, zip(*(astuple(engine.usage) for engine in self.engines), strict=True)))

    @property
    def last_reason(self) -> str | None:
        """Why an attempt was last in vain, at the first of the servers where one was."""
        return next((e.endpoint.last_reason for e in self.engines if e.endpoint.last_reason), None)

    def count(self, prompt: Prompt) -> int:
        """A prompt's length in tokens; for engines with a tokenizer."""
        return self.engines[0].count(prompt)

    async def close(self) -> None:
        """Close the connections."""
        for engine in self.engines:
            await engine.close()
