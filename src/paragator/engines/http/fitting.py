"""Prompts that fit a server's context: texts are counted before they are packed, prompts once more before they are sent.

Short texts are not counted: no byte-level tokenizer makes more tokens of a text than it has UTF-8 bytes, and what was
sampled comes with its length. Others are counted by the server's /tokenize (vLLM has it), or estimated at three bytes a
token where it has no such route. A count depends on the text alone, not on what else was answered, so a resumed run packs
the same.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from paragator.core.errors import UsageError
from paragator.core.packing import KEEPS, Packer, tail
from paragator.core.prompts import Templates
from paragator.core.thinking import strip_thinking
from paragator.core.types import Completion, Failure, Group, Problem, Prompt, Sample, Stage
from paragator.engines.encoding import misfit
from paragator.engines.http.choices import count_of
from paragator.engines.http.client import Broken, Unreachable
from paragator.engines.http.endpoint import Endpoint

BYTES_PER_TOKEN = 3
"""Low enough that a prompt is usually shorter than estimated: English has four, formulas and digits fewer."""
SMALL = 8
"""A text counts as its bytes where these are at most this fraction (one in eight) of the tokens that it may have."""
CHAT_TOKENS = 64
"""What a chat template adds, where the server does not count."""
TIMEOUT_S = 10.0
ATTEMPTS = 3
AT_ONCE = 16


def estimated_tokens(prompt: Prompt) -> int:
    """A prompt's length where the server does not count, too long rather than too short: three bytes a token."""
    return estimate(prompt.text)


def estimate(text: str) -> int:
    return math.ceil(size(text) / BYTES_PER_TOKEN)


def size(text: str) -> int:
    """UTF-8 bytes."""
    return len(text.encode("utf-8", "replace"))


class HasEndpoint(Protocol):
    """An engine that names a server which any question can go to."""

    @property
    def endpoint(self) -> Endpoint: ...


class TokenCounter:
    """Tokens by the server's /tokenize, at its root; None where it has no such route, or does not answer.

    model   its name on the server
    extra   the request's further fields, of which those for the chat template count
    calls   requests sent
    """

    def __init__(self, engine: HasEndpoint, model: str, extra: Mapping[str, Any] | None = None) -> None:
        self.engine, self.model = engine, model
        self.chat = {"add_generation_prompt": True}
        self.chat |= {name: value for name, value in (extra or {}).items() if name.startswith("chat_template")}
        self.there = True
        self.calls = 0
        self.free = asyncio.Semaphore(AT_ONCE)

    async def prompt(self, prompt: Prompt) -> int | None:
        """Of a whole prompt, as the server will see it."""
        if prompt.chat:
            return await self.ask({"messages": [{"role": "user", "content": prompt.text}], **self.chat})
        return await self.ask({"prompt": prompt.text})

    async def text(self, text: str) -> int | None:
        """Of a part of a prompt."""
        return await self.ask({"prompt": text, "add_special_tokens": False})

    async def ask(self, fields: dict[str, Any]) -> int | None:
        data = json.dumps({"model": self.model, **fields}).encode()
        async with self.free:
            for attempt in range(ATTEMPTS):
                if not self.there:
                    return None
                endpoint = self.engine.endpoint
                if attempt:
                    await asyncio.sleep(endpoint.limits.backoff_s * 2.0**attempt)
                self.calls += 1
                path = urlsplit(endpoint.url).path.removesuffix("/v1") + "/tokenize"
                try:
                    async with asyncio.timeout(TIMEOUT_S):
                        answer = await endpoint.client.send("POST", path, endpoint.headers(), data)
                except (TimeoutError, Broken, Unreachable):
                    continue
                if answer.status == 429 or answer.status >= 500:
                    continue
                count = counted(answer.body) if answer.status == 200 else None
                self.there = count is not None
                return count
        return None


def counted(body: bytes) -> int | None:
    """The count in an answer of /tokenize; None in anything else."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return count_of(found.get("count")) if isinstance(found, dict) else None


@dataclass(frozen=True, slots=True)
class Fitting:
    """What decides the size of an aggregation prompt.

    pool_size       solutions that an aggregation is shown
    strip_thinking  whether they are shown without their thinking
    limit           a budget of tokens below the server's context, or None
    """

    templates: Templates
    pool_size: int
    strip_thinking: bool = True
    limit: int | None = None


class Fitted:
    """Satisfies `Sample` by `sample`, whose server has a context of so many tokens; `packer` fits prompts into it.

    A prompt that does not fit all the same is a Failure that says so, and is not sent. How much of an aggregation prompt a
    solution takes up is found out when it arrives, as packing cannot wait.

    context     tokens that prompt and completion may have together
    max_tokens  of a completion, by stage
    problems    those that will be asked; the text of others is estimated
    """

    def __init__(
        self,
        sample: Sample,
        counter: TokenCounter,
        context: int,
        *,
        max_tokens: Mapping[Stage, int],
        fitting: Fitting,
        problems: Iterable[Problem],
    ) -> None:
        for stage, tokens in max_tokens.items():
            if tokens >= context:
                raise UsageError(
                    f"{stage}.max_tokens = {tokens} leaves no room for a prompt in the server's context of {context}; lower it"
                )
        self.sample, self.counter, self.context, self.max_tokens = sample, counter, context, dict(max_tokens)
        self.strip, templates = fitting.strip_thinking, fitting.templates
        self.bare = {templates.for_candidate(p).text: templates.for_aggregation(p, []) for p in problems}
        self.block = size(templates.attempt) - len("{attempt}") + 1
        self.budget = min(context - max_tokens["aggregate"], fitting.limit or context)
        self.share = max(1, self.budget // max(1, fitting.pool_size))
        self.packer = Packer(self.strip, self.budget, self.count, self.count_attempt)
        self.known: dict[int, int] = {}
        """hash of a text or a Prompt -> its tokens."""
        self.asking: dict[int, asyncio.Task[int | None]] = {}

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        """n samples of a prompt that fits; else n Failures."""
        if reason := await self.misfit(prompt, stage):
            return Group(prompt, (Failure(reason),) * n, stage=stage)
        group = await self.sample(prompt, n, stage=stage, seed=seed)
        if (bare := self.bare.get(prompt.text)) and hash(bare) not in self.known:
            self.known[hash(bare)] = await self.weigh_bare(bare, prompt, group.prompt_length)
        await asyncio.gather(*(self.weigh(completion) for completion in group.completions))
        return group

    def count(self, bare: Prompt) -> int:
        """Tokens of an aggregation prompt without its attempts."""
        return self.known.get(hash(bare)) or estimated_tokens(bare) + CHAT_TOKENS * bare.chat

    def count_attempt(self, shown: str) -> int:
        """Tokens of one attempt as it is shown, with what its template puts around it."""
        return (self.known.get(hash(shown)) or estimate(shown)) + self.block

    async def misfit(self, prompt: Prompt, stage: Stage) -> str | None:
        """Why a prompt does not fit, by the server's own count; None where it fits or that is not known."""
        longest = self.max_tokens[stage]
        if size(prompt.text) + 4 * CHAT_TOKENS + longest <= self.context:
            return None
        tokens = await self.exact(prompt)
        reason = misfit(tokens, longest, self.context) if tokens else None
        return f"context length: {reason}" if reason else None

    async def weigh_bare(self, bare: Prompt, asked: Prompt, asked_tokens: int | None) -> int:
        """What an aggregation prompt takes up without attempts, at least as much as the same problem asked plainly."""
        tokens = await self.tokens(bare, self.budget)
        more = max(0, size(bare.text) - size(asked.text))
        if hash(bare) in self.known or asked_tokens is None:
            return tokens
        return max(tokens, asked_tokens + math.ceil(more / BYTES_PER_TOKEN))

    async def weigh(self, completion: Completion) -> None:
        """Find out what a solution and, if it may have to be cut, its tails take up."""
        shown = strip_thinking(completion.text) if self.strip else completion.text.strip()
        if not shown or hash(shown) in self.known:
            return
        sampled = completion.length if completion.thinking is None and shown == completion.text.strip() else None
        tokens = min(sampled, size(shown)) if sampled else await self.tokens(shown, self.share)
        if 2 * tokens > self.share:
            cuts = [tail(shown, keep) for keep in KEEPS]
            found = await asyncio.gather(*(self.exact(cut) for cut in cuts))
            for cut, exact in zip(cuts, found, strict=True):
                in_proportion = math.ceil(tokens * len(cut) / len(shown))
                self.known[hash(cut)] = exact or min(size(cut), max(estimate(cut), in_proportion))
        self.known[hash(shown)] = tokens

    async def tokens(self, text: str | Prompt, most: int) -> int:
        """Of a text or prompt that may have `most`: its bytes where they are few, else counted, else estimated."""
        plain = text if isinstance(text, str) else text.text
        added = CHAT_TOKENS if isinstance(text, Prompt) and text.chat else 0
        if size(plain) * SMALL <= most:
            return size(plain) + added
        return await self.exact(text) or estimate(plain) + added

    async def exact(self, text: str | Prompt) -> int | None:
        """The server's count; equal texts at the same time are asked for once."""
        key = hash(text)
        if key in self.known:
            return self.known[key]
        task = self.asking.get(key)
        if task is None:
            ask = self.counter.text(text) if isinstance(text, str) else self.counter.prompt(text)
            task = self.asking[key] = asyncio.ensure_future(ask)
        found = await asyncio.shield(task)
        self.asking.pop(key, None)
        if found is not None:
            self.known[key] = found
        return found
