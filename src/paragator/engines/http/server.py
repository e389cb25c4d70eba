"""One OpenAI-compatible server: what a request for completions says, and what its answer becomes."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from paragator.core.errors import ParagatorError, UsageError
from paragator.core.together import together
from paragator.core.types import Completion, Failure, Prompt, Stage
from paragator.engines.http.choices import completion_of, count_of, is_answer
from paragator.engines.http.endpoint import Endpoint, Refused
from paragator.engines.http.gate import Lane
from paragator.engines.sampling import Sampling

SEED_BITS = 31
"""What every server takes as a seed."""
LISTING_TIMEOUT_S = 20.0
NEUTRAL = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Settings that vLLM would otherwise take from the model's generation_config.json."""


@dataclass(slots=True)
class Asked:
    """What the siblings of one call share; `prompt_tokens` is the server's count, once it answered.

    ids  the prompt in tokens, in token mode
    """

    prompt: Prompt
    ids: tuple[int, ...] | None
    stage: Stage
    sampling: Sampling
    seed: int
    prompt_tokens: int | None = None


class Server:
    """A server and what is known of it.

    model      its name on the server; None until it is asked for the first that it lists
    context    tokens that prompt and completion may have together, where the server tells (vLLM does)
    takes_n    whether it gives n completions at once; False once it turns out not to
    in_flight  completions that were asked for and have not come
    """

    def __init__(self, endpoint: Endpoint, model: str | None, extra_body: Mapping[str, Any]) -> None:
        self.endpoint, self.model, self.extra_body = endpoint, model, dict(extra_body)
        self.context: int | None = None
        self.takes_n = True
        self.in_flight = self.prompt_tokens = self.completion_tokens = 0
        self._limit_field = "max_tokens"

    async def connect(self) -> None:
        """Learn the model's name and context. A server may serve a named model that it does not list."""
        if self.model is None:
            await self.first_model()
            return
        with suppress(ParagatorError):
            if await self.first_model() != self.model:
                self.context = None

    async def first_model(self) -> str:
        """The model that the server lists under our name, else its first; UsageError if it lists none.

        It becomes `model` if none is set, and its context becomes `context`.
        """
        answer = await self.endpoint.get("/models", LISTING_TIMEOUT_S)
        rows = listed(answer.body) if answer.status == 200 else []
        if not rows:
            raise UsageError(await self._no_models(answer.status))
        row = next((row for row in rows if row["id"] == self.model), rows[0])
        self.context = count_of(row.get("max_model_len")) or self.context
        self.model = self.model or str(row["id"])
        return str(row["id"])

    async def siblings(self, asked: Asked, n: int) -> list[Completion | Failure]:
        """n completions, from one request where the server does that; what is missing is asked for one by one."""
        outputs = await self._at_once(asked, n) if self.takes_n else []
        return outputs + await together(*(self.one(asked, index) for index in range(len(outputs), n)))

    async def one(self, asked: Asked, index: int = 0) -> Completion | Failure:
        """One sibling, asked for on its own."""
        try:
            return (await self._request(asked, 1, seed_of(asked.seed, index)))[0]
        except Refused as error:
            return Failure(str(error))

    async def _at_once(self, asked: Asked, n: int) -> list[Completion | Failure]:
        """Up to n siblings from one request; a server that does not take an n is remembered."""
        try:
            outputs = await self._request(asked, n, seed_of(asked.seed, 0))
        except Refused as error:
            if error.status not in (400, 422) or str(error).startswith("context length"):
                return [Failure(str(error))] * n
            alone = await self.one(asked)
            if isinstance(alone, Failure):
                return [alone] * n
            outputs = [alone]
        if len(outputs) < n:
            self.takes_n = False
        return outputs[:n]

    async def _request(self, asked: Asked, n: int, seed: int) -> list[Completion | Failure]:
        """The choices of one request, in order, counted. Aggregations go first: problems finish before others begin."""
        path = "/chat/completions" if asked.prompt.chat and asked.ids is None else "/completions"
        lane: Lane = "last" if asked.stage == "generate" else "next"
        sent = self._limit_field  # a sibling may change it meanwhile
        try:
            found = await self.endpoint.post(path, self.body(asked, n, seed), is_answer, lane=lane)
        except Refused as error:
            if error.status != 400 or "max_completion_tokens" not in str(error) or sent != "max_tokens":
                raise
            self._limit_field = "max_completion_tokens"
            return await self._request(asked, n, seed)
        usage = found.get("usage") or {}
        prompt_tokens, tokens = count_of(usage.get("prompt_tokens")), count_of(usage.get("completion_tokens"))
        asked.prompt_tokens = prompt_tokens if prompt_tokens is not None else asked.prompt_tokens
        self.prompt_tokens += prompt_tokens or 0
        self.completion_tokens += tokens or 0
        choices = sorted(found["choices"], key=lambda choice: count_of(choice.get("index")) or 0)
        known = tokens if len(choices) == 1 else None
        return [completion_of(choice, known, asked.ids, self.endpoint.clean) for choice in choices]

    def body(self, asked: Asked, n: int, seed: int) -> dict[str, Any]:
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

    async def _no_models(self, status: int) -> str:
        """What to do about a server that lists no models, after a look whether /v1 was left out."""
        where, model = f"{self.endpoint.where}: ", f"{self.endpoint.section}.model"
        if not self.endpoint.url.endswith("/v1"):
            answer = await self.endpoint.get("/v1/models", LISTING_TIMEOUT_S)
            if answer.status == 200 and listed(answer.body):
                return f"{where}the path is wrong; write {self.endpoint.url}/v1"
        return f"{where}the server lists no models (http {status} for /models); correct the URL, or set {model}"


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
