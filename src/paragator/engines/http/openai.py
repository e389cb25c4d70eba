"""One engine for every OpenAI-compatible server: texts with any provider, exact tokens with vLLM.

Without a tokenizer a prompt is sent as one user message (Prompt.chat) or as plain text, and texts come back. With one,
prompts are rendered here and sent as token ids to /completions, and vLLM returns what it sampled: token ids and their
log-probabilities, which are those after temperature when it runs with --logprobs-mode processed_logprobs.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paragator.config import EngineConfig
from paragator.core.errors import UsageError
from paragator.core.together import together
from paragator.core.types import Completion, Failure, Group, Prompt, Stage
from paragator.engines.encoding import encode, misfit
from paragator.engines.http.choices import completion_of, count_of, is_answer
from paragator.engines.http.endpoint import Endpoint, Refused, checked_key
from paragator.engines.http.gate import Lane
from paragator.engines.sampling import Sampling

SEED_BITS = 31
"""What every server takes as a seed."""
LISTING_TIMEOUT_S = 20.0
NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Settings that vLLM would otherwise take from the model's generation_config.json."""

OURS = frozenset({"messages", "model", "n", "prompt", "stream"})
"""Fields of a request that extra_body may not set."""


@dataclass(slots=True)
class Usage:
    """What a server reported, and what was asked of it.

    calls    attempts sent, the failed ones included
    retries  attempts after a request's first
    cost     in the currency of the prices, which are per million tokens
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 0
    retries: int = 0
    cost: float = 0.0


class OpenAIEngine:
    """Satisfies `Sample` with a server that speaks the OpenAI protocol.

    url                base URL, as http://localhost:8000/v1
    model              its name on the server; None takes the first that the server lists
    sampling           the settings of each stage that will be asked for
    key                bearer token; it is in no text, log or repr
    max_in_flight      most requests at once; fewer while the server pushes back
    request_timeout_s  longest one attempt may take
    total_timeout_s    longest one request may take with its retries, from its first attempt; then it is a Failure
    extra_body         further request fields; they replace fields of the same name
    one_by_one         one request a sibling; None: n at once, until the server turns out not to do that
    tokenizer          turns on token mode, see the module; its model must be the server's
    backoff_s          longest pause before the first retry; it doubles with each
    section            the config's section that these settings come from, for messages: "engine" or "judge"
    context            tokens that prompt and completion may have together, once `served_model` has asked (vLLM tells)

    Sibling i asked on its own has the seed `random.Random(f"{seed}:{i}").getrandbits(31)`; n at once have sibling 0's,
    and the server sees to the rest. A refused key ends the run (RunError), a server that was never there is a
    UsageError; whatever else fails is a Failure in the group.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        sampling: Mapping[Stage, Sampling],
        key: str | None = None,
        max_in_flight: int = 64,
        request_timeout_s: float = 600.0,
        total_timeout_s: float = 1800.0,
        extra_body: Mapping[str, Any] | None = None,
        price_in: float = 0.0,
        price_out: float = 0.0,
        one_by_one: bool | None = None,
        tokenizer: Any = None,
        backoff_s: float = 0.5,
        section: str = "engine",
    ) -> None:
        if wrong := sorted(set(extra_body or ()) & OURS):
            raise UsageError(f"engine.extra_body sets {', '.join(wrong)}: that is this engine's to set; remove it")
        self.endpoint = Endpoint(url, key, max_in_flight, request_timeout_s, total_timeout_s, backoff_s, section)
        self.model = model
        self.sampling = dict(sampling)
        self.extra_body = dict(extra_body or {})
        self.price_in, self.price_out = price_in, price_out
        self.one_by_one = one_by_one
        self.tokenizer = tokenizer
        self.context: int | None = None
        self._limit_field = "max_tokens"
        self._prompt_tokens = self._completion_tokens = 0
        self._naming = asyncio.Lock()

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        """n samples of one prompt, in order; Failures where a request failed for good."""
        if stage not in self.sampling:
            raise UsageError(f"no sampling settings for stage {stage!r}: this engine has {sorted(self.sampling)}")
        async with self._naming:
            if self.model is None:
                await self.served_model()
        ids = None if self.tokenizer is None else tuple(encode(self.tokenizer, prompt))
        asked = Asked(prompt, ids, self.sampling[stage], seed, "last" if stage == "generate" else "next")
        if ids is not None and (reason := misfit(len(ids), asked.sampling.max_tokens, self.context)):
            return Group(prompt, (Failure(reason),) * n, ids, stage)
        outputs: list[Completion | Failure] = []
        if n > 1 and not self.one_by_one:
            outputs = await self._at_once(asked, n)
        alone = (self._alone(asked, index) for index in range(len(outputs), n))
        outputs += await together(*alone)
        return Group(prompt, tuple(outputs), ids, stage, num_prompt_tokens=asked.prompt_tokens)

    @property
    def usage(self) -> Usage:
        """Tokens, calls and cost so far."""
        cost = (self._prompt_tokens * self.price_in + self._completion_tokens * self.price_out) / 1e6
        sent, retries = self.endpoint.sent, self.endpoint.retries
        return Usage(self._prompt_tokens, self._completion_tokens, sent, retries, cost)

    async def served_model(self) -> str:
        """The first model that the server lists, which becomes `model` if none is set; UsageError if it lists none."""
        answer = await self.endpoint.get("/models", LISTING_TIMEOUT_S)
        rows = listed(answer.body) if answer.status == 200 else []
        if not rows:
            raise UsageError(await self._no_models(answer.status))
        row = next((row for row in rows if row["id"] == self.model), rows[0])
        self.context = count_of(row.get("max_model_len")) or self.context
        self.model = self.model or str(row["id"])
        return str(row["id"])

    def count(self, prompt: Prompt) -> int:
        """A prompt's length in tokens; for an engine with a tokenizer."""
        return len(encode(self.tokenizer, prompt))

    async def close(self) -> None:
        """Close the connections. The engine may be used again."""
        self.endpoint.wire.close()

    async def _no_models(self, status: int) -> str:
        """What to do about a server that lists no models, after a look whether /v1 was left out."""
        where, model = f"{self.endpoint.where}: ", f"{self.endpoint.section}.model"
        if not self.endpoint.url.endswith("/v1"):
            answer = await self.endpoint.get("/v1/models", LISTING_TIMEOUT_S)
            if answer.status == 200 and listed(answer.body):
                return f"{where}the path is wrong; write {self.endpoint.url}/v1"
        return f"{where}the server lists no models (http {status} for /models); correct the URL, or set {model}"

    async def _at_once(self, asked: Asked, n: int) -> list[Completion | Failure]:
        """Up to n siblings from one request; none where the server does not take an n, which is remembered."""
        try:
            outputs = await self._request(asked, n, seed_of(asked.seed, 0))
        except Refused as error:
            if error.status not in (400, 422) or str(error).startswith("context length"):
                return [Failure(str(error))] * n
            alone = await self._alone(asked, 0)
            if isinstance(alone, Failure):
                return [alone] * n
            outputs = [alone]
        if len(outputs) < n:
            self.one_by_one = True
        return outputs[:n]

    async def _alone(self, asked: Asked, index: int) -> Completion | Failure:
        """One sibling, asked for on its own."""
        try:
            return (await self._request(asked, 1, seed_of(asked.seed, index)))[0]
        except Refused as error:
            return Failure(str(error))

    async def _request(self, asked: Asked, n: int, seed: int) -> list[Completion | Failure]:
        """The choices of one request, in order, counted."""
        path = "/chat/completions" if asked.prompt.chat and asked.ids is None else "/completions"
        sent = self._limit_field  # a sibling may change it meanwhile
        try:
            found = await self.endpoint.post(path, self._body(asked, n, seed), is_answer, lane=asked.lane)
        except Refused as error:
            if error.status != 400 or "max_completion_tokens" not in str(error) or sent != "max_tokens":
                raise
            self._limit_field = "max_completion_tokens"
            found = await self.endpoint.post(path, self._body(asked, n, seed), is_answer, lane=asked.lane)
        usage = found.get("usage") or {}
        prompt_tokens, tokens = count_of(usage.get("prompt_tokens")), count_of(usage.get("completion_tokens"))
        asked.prompt_tokens = prompt_tokens if prompt_tokens is not None else asked.prompt_tokens
        self._prompt_tokens += prompt_tokens or 0
        self._completion_tokens += tokens or 0
        choices = sorted(found["choices"], key=lambda choice: count_of(choice.get("index")) or 0)
        known = tokens if len(choices) == 1 else None
        return [completion_of(choice, known, asked.ids, self.endpoint.clean) for choice in choices]

    def _body(self, asked: Asked, n: int, seed: int) -> dict[str, Any]:
        """The fields of a request."""
        sampling = asked.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self._limit_field: sampling.max_tokens,
            "seed": seed,
        }
        if n > 1:
            body["n"] = n
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if asked.ids is not None:
            body |= {"prompt": asked.ids, "top_k": sampling.top_k, "logprobs": 0, "return_token_ids": True, **NEUTRAL}
        elif asked.prompt.chat:
            body["messages"] = [{"role": "user", "content": asked.prompt.text}]
        else:
            body["prompt"] = asked.prompt.text
        return body | self.extra_body


@dataclass(slots=True)
class Asked:
    """What the siblings of one call share; `prompt_tokens` is the server's count, once it answered.

    An aggregation waits in an earlier lane: problems under way end before others begin, and no stage waits for the other.
    """

    prompt: Prompt
    ids: tuple[int, ...] | None
    sampling: Sampling
    seed: int
    lane: Lane
    prompt_tokens: int | None = None


def seed_of(seed: int, index: int) -> int:
    """The seed of one sibling's own request."""
    return random.Random(f"{seed}:{index}").getrandbits(SEED_BITS)


def listed(body: bytes) -> list[dict[str, Any]]:
    """The models in a listing; none in anything else."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return []
    rows = found.get("data") if isinstance(found, dict) else None
    return [row for row in rows if isinstance(row, dict) and row.get("id")] if isinstance(rows, list) else []


def read_key(config: EngineConfig) -> str | None:
    """The key that a config names: of its file, else of its environment variable; None where neither is set."""
    if config.key_file is None:
        key, where = os.environ.get(config.key_env, ""), f"the environment variable {config.key_env}"
    else:
        where = f"engine.key_file = {config.key_file}"
        try:
            key = Path(config.key_file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            what = error.strerror if isinstance(error, OSError) else "no text"
            raise UsageError(f"{where}: cannot be read ({what}); name a file that holds the key alone") from None
    key = key.strip()
    if config.key_file is not None and not key:
        raise UsageError(f"{where}: the file is empty; write the key into it")
    return checked_key(key, where) if key else None
