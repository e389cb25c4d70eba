"""An engine for OpenAI-compatible servers: texts with any provider, exact tokens with vLLM.

Without a tokenizer a prompt is sent as one user message (Prompt.chat) or as plain text, and texts come back. With one,
prompts are rendered here and sent as token ids to /completions, and vLLM returns what it sampled: token ids and their
log-probabilities, which are those after temperature when it runs with --logprobs-mode processed_logprobs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from paragator.core.errors import UsageError
from paragator.core.types import Completion, Failure, Group, Prompt, Stage
from paragator.engines.encoding import encode, misfit, open_thinking
from paragator.engines.http.client import checked_key
from paragator.engines.http.endpoint import Endpoint, Limits, Nobody, Refused
from paragator.engines.http.fleet import Fleet
from paragator.engines.http.server import Asked, Server
from paragator.engines.sampling import Sampling

__all__ = ["JudgeEngine", "Limits", "OpenAI", "Prices", "Usage"]

KEY_ENV = "OPENAI_API_KEY"
DEFAULT_SAMPLING, DEFAULT_LIMITS = Sampling(max_tokens=4096), Limits()
OURS = frozenset({"messages", "model", "n", "prompt", "stream"})
"""Fields of a request that extra_body may not set."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What tokens cost, in any currency."""

    per_million_in: float = 0.0
    per_million_out: float = 0.0
    per_million_cached: float | None = None
    """Prompt tokens that the server had cached; None is as others."""

    def cost(self, prompt_tokens: int, completion_tokens: int, cached: int = 0) -> float:
        """Of so many tokens, of which `cached` prompt tokens were cached."""
        saved = 0.0 if self.per_million_cached is None else (self.per_million_in - self.per_million_cached) * cached
        return (prompt_tokens * self.per_million_in + completion_tokens * self.per_million_out - saved) / 1e6


FREE = Prices()


@dataclass(frozen=True, slots=True)
class Usage:
    """What the servers reported, and what they were asked.

    calls    attempts sent, the failed ones included
    retries  attempts after a request's first
    cost     in the currency of the prices
    cached_prompt_tokens  of the prompt tokens, those that the servers had cached; None where none told

    Tokens and cost are None where answers came and no server counts.
    """

    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    calls: int = 0
    retries: int = 0
    cost: float | None = 0.0
    cached_prompt_tokens: int | None = None


class OpenAI:
    """Satisfies `Sample` with one server that speaks the OpenAI protocol, or with several that serve the same model.

    url         base URL, as http://localhost:8000/v1, or several
    model       its name on the servers; None takes the first that each lists
    sampling    the settings of both stages, or of each stage that will be asked for
    key         bearer token; None takes the environment's OPENAI_API_KEY, "" sends none. It is in no text, log or repr
    limits      for each server
    extra_body  further request fields; they replace fields of the same name, and a field that is None here is left out
    tokenizer   set it to turn on token mode, see the module; its model must be the servers'
    section     the config's section that these settings come from, for messages

    It may be asked right away, or after `connect`, which finds out early what is wrong. A prompt goes where its siblings
    went, else to the server with the fewest completions in flight; the others take over from one of several that dies, see
    fleet.py. Sibling i asked on its own has the seed
    `random.Random(f"{seed}:{i}").getrandbits(31)`; n at once have sibling 0's, and the server sees to the rest. A refused
    key ends the run (RunError), a server that was never there is a UsageError; whatever else fails is a Failure in the
    group.
    """

    section: ClassVar[str] = "engine"
    one_by_one: ClassVar[bool] = True
    """An evaluation asks for single completions, so that each is journaled, and counted, when it arrives."""

    def __init__(
        self,
        url: str | Sequence[str],
        model: str | None = None,
        *,
        sampling: Sampling | Mapping[Stage, Sampling] = DEFAULT_SAMPLING,
        key: str | None = None,
        limits: Limits = DEFAULT_LIMITS,
        extra_body: Mapping[str, Any] | None = None,
        prices: Prices = FREE,
    ) -> None:
        extra = dict(extra_body or {})
        if wrong := sorted(name for name in OURS & extra.keys() if name != "n" or extra[name] is not None):
            raise UsageError(
                f"{self.section}.extra_body sets {', '.join(wrong)}: the engine sets these itself; remove it"
            )
        key = checked_key(os.environ.get(KEY_ENV, "").strip(), KEY_ENV) if key is None else key
        endpoints = [Endpoint(u, key, limits, self.section) for u in ([url] if isinstance(url, str) else url)]
        urls = [endpoint.url for endpoint in endpoints]
        if not urls:
            raise UsageError(f"{self.section}.url names no server; write it as http://localhost:8000/v1")
        if double := next((url for i, url in enumerate(urls) if url in urls[:i]), None):
            raise UsageError(f"{self.section}.url names {double} twice; name each server once")
        self.servers = [Server(endpoint, model, extra) for endpoint in endpoints]
        self.sampling: dict[Stage, Sampling] = (
            {"generate": sampling, "aggregate": sampling} if isinstance(sampling, Sampling) else dict(sampling)
        )
        self.prices = prices
        self.tokenizer: Any = None
        self.template_arguments: Mapping[str, Any] = {}
        self.fleet = Fleet(self.servers, limits.wait_s, self.trial)
        if len(self.servers) > 1:
            self.fleet.watch()
        self._naming = asyncio.Lock()

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        """n samples of one prompt, in order; Failures where a request failed for good."""
        if stage not in self.sampling:
            raise UsageError(f"no sampling settings for stage {stage!r}: this engine has {sorted(self.sampling)}")
        ids = None if self.tokenizer is None else tuple(encode(self.tokenizer, prompt, self.template_arguments))
        asked = Asked(prompt, ids, stage, self.sampling[stage], seed)

        async def answered(server: Server) -> list[Completion | Failure]:
            if server.model is None:
                await self._name(server)
            if ids is not None and (reason := misfit(len(ids), asked.sampling.max_tokens, server.context)):
                return [Failure(reason)] * n
            return [await server.one(asked)] if n == 1 else await server.siblings(asked, n)

        try:
            outputs = await self.fleet.ask(hash(prompt), n, answered)
        except Refused as error:
            outputs = [Failure(str(error))] * n
        if ids is not None and (opened := open_thinking(self.tokenizer, ids)):
            outputs = [replace(o, text=opened + o.text) if isinstance(o, Completion) else o for o in outputs]
        return Group(prompt, tuple(outputs), ids, stage, num_prompt_tokens=asked.prompt_tokens)

    async def connect(self, *, listed: bool = False) -> None:
        """Reach every server and learn the model's name and context; UsageError where none answers, or one cannot be used.

        So for a named model that a server does not list, as far as its list is complete; all must be `listed` in training.
        One of several servers that does not answer is lost, see fleet.py.
        """
        for server in self.servers:
            try:
                await (server.first_model() if listed else server.connect())
            except Nobody as error:
                if self.fleet.left == [server]:
                    raise
                self.fleet.lose(server, error.reason)
        _ = self.model

    async def trial(self, server: Server) -> None:
        """Ask a server for one token, to see that it samples."""
        if server.model is None:
            await self._name(server)
            _ = self.model
        await server.trial(in_tokens=self.tokenizer is not None)

    @property
    def endpoint(self) -> Endpoint:
        """The first server that is not lost, for questions that any can answer."""
        return (self.fleet.left or self.servers)[0].endpoint

    @property
    def model(self) -> str | None:
        """The name that all servers know the model by; UsageError where they have different ones."""
        names = sorted({server.model for server in self.servers if server.model is not None})
        if len(names) > 1:
            where = f"{self.section}.url: the servers serve {', '.join(names)}"
            raise UsageError(f"{where}; set {self.section}.model to a name they share")
        return names[0] if names else None

    @property
    def context(self) -> int | None:
        """Tokens that prompt and completion may have together on every server, as far as that is known."""
        return min((server.context for server in self.servers if server.context is not None), default=None)

    @property
    def at_once(self) -> int:
        """Requests that keep the servers busy."""
        return sum(server.endpoint.limits.max_in_flight for server in self.servers)

    @property
    def usage(self) -> Usage:
        """Tokens, calls and cost so far, of all servers."""
        tokens_in = sum(server.prompt_tokens for server in self.servers)
        tokens_out = sum(server.completion_tokens for server in self.servers)
        told = [server.cached_tokens for server in self.servers if server.cached_tokens is not None]
        cached = sum(told) if told else None
        cost = self.prices.cost(tokens_in, tokens_out, cached or 0)
        calls = sum(server.endpoint.sent for server in self.servers)
        retries = sum(server.endpoint.retries for server in self.servers)
        if not tokens_in + tokens_out and any(server.uncounted for server in self.servers):
            return Usage(None, None, calls, retries, None)
        return Usage(tokens_in, tokens_out, calls, retries, cost, cached)

    def trouble(self) -> str:
        """How many attempts were repeated, and why the last one was; "" when none."""
        retries = self.usage.retries
        reason = next((s.endpoint.last_reason for s in self.servers if s.endpoint.last_reason), None)
        return f"{retries:,} retr{'y' if retries == 1 else 'ies'}, the last: {reason}" if retries and reason else ""

    def remarks(self) -> list[str]:
        """What a user should know about the servers' answers so far, a line each."""
        return [f"{server.endpoint.where}: {remark}" for server in self.servers for remark in server.remarks]

    def stop_when(self, stop: Callable[[], bool]) -> None:
        """Once `stop()`, requests under way finish, and calls that wait for their turn, or come later, raise Stopped."""
        for server in self.servers:
            server.endpoint.stop = stop

    def count(self, prompt: Prompt) -> int:
        """A prompt's length in tokens; in token mode."""
        return len(encode(self.tokenizer, prompt, self.template_arguments))

    async def close(self) -> None:
        """Close the connections. The engine may be used again."""
        await self.fleet.close()
        for server in self.servers:
            await server.endpoint.client.close()

    async def _name(self, server: Server) -> None:
        async with self._naming:
            if server.model is None:
                await server.first_model()


class JudgeEngine(OpenAI):
    """The judge's server: messages name the config's section `judge`."""

    section = "judge"


class AggregatorEngine(OpenAI):
    """The server of a model that only aggregates: messages name the config's section `aggregate`."""

    section = "aggregate"
