"""One OpenAI-compatible server: what a request for completions says, and what its answer becomes."""

from __future__ import annotations

import asyncio
import random
import re
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote

from paragator.core.errors import ParagatorError, UsageError
from paragator.core.together import together
from paragator.core.types import Completion, Failure, Prompt, Stage
from paragator.engines.http.choices import (
    cached_of,
    completion_of,
    count_of,
    is_answer,
    only_thought,
    texts_of,
    usage_of,
    why_lost,
)
from paragator.engines.http.client import Answer
from paragator.engines.http.endpoint import Again, Endpoint, Lost, Refused
from paragator.engines.http.gate import Lane
from paragator.engines.http.replies import held_in
from paragator.engines.sampling import Sampling

SEED_BITS = 31
"""What every server takes as a seed."""
LISTING_TIMEOUT_S = 20.0
LOADING_S = 60.0
"""How long a server that is still loading its model is waited for."""
CHECK_TIMEOUT_S = 5.0
CATALOGUE = 32
"""A server that lists more models is a provider's, where an account may have names that are not listed."""
TELLING = ("logprobs", "top_logprobs")
"""Fields that ask what the model thought of other tokens."""
LENGTHS = ("max_tokens", "max_completion_tokens")
OPTIONAL = ("seed", "top_k", "top_p", "temperature", *LENGTHS[::-1], *TELLING)
"""Fields that are left out once a server refuses them."""
HARMLESS = ("seed",)
"""The only one of them that training does without: the others change what is sampled."""
REFUSAL = re.compile(
    r"unsupported|not support|n.t support|not (currently |yet )?(supported|permitted|allowed|accepted|recogni[sz]ed|available)"
    r"|unknown|unrecogni[sz]ed|unexpected|forbidden|extra (input|field|param)|additional propert|no such|cannot (both )?be"
    r"|can.t be|deprecated|not implemented|n.t accept|not accept|remove|invalid (param|field|arg|prop|temp|top|seed)"
    r"|only (the )?(default|1|one)|may only",
    re.I,
)
OUT_OF_RANGE = re.compile(
    r"must be (?!removed|unset|omitted|left|1\b)|between|range|(greater|less) than|at (most|least)", re.I
)
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
    adapter    the LoRA adapter of it that requests ask for, see weights.py; Lost where an answer is of anything else
    context    tokens that prompt and completion may have together, where the server tells (vLLM does)
    takes_n    whether it gives n completions at once; False once it turns out not to
    without    fields that requests leave out: those of `extra_body` that are None, and those that the server refuses
    in_flight  completions that were asked for and have not come
    answers    completions that came; of them `thoughts` had thinking and no text, `blank` neither
    lost       why it is not used now, see fleet.py; "" while it is. `jobs` are what it is asked
    """

    def __init__(self, endpoint: Endpoint, model: str | None, extra_body: Mapping[str, Any]) -> None:
        self.endpoint, self.model = endpoint, model
        self.adapter: str | None = None
        self.extra_body = {name: value for name, value in extra_body.items() if value is not None}
        self.without = {name for name, value in extra_body.items() if value is None}
        self.refused: list[str] = []
        self.context: int | None = None
        self.takes_n = "n" not in self.without
        self.cached_tokens: int | None = None
        self.in_flight = self.prompt_tokens = self.completion_tokens = 0
        self.answers = self.thoughts = self.blank = self.uncounted = 0
        self._limit_field = "max_tokens"
        self.lost = ""
        self.jobs: set[asyncio.Task[Any]] = set()
        self.pings: asyncio.Task[None] | None = None
        self.revival: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Learn the model's name and context; UsageError for a named model that the server does not have."""
        if self.model is None:
            await self.first_model()
        elif others := await self._instead_of(self.model):
            shown = self.endpoint.clean(", ".join(others[:5])) + ", ..." * (len(others) > 5)
            raise UsageError(
                f"{self.endpoint.where}: no model {self.model!r} there; it serves {shown}; correct {self.endpoint.section}.model"
            )

    async def _instead_of(self, model: str) -> list[str]:
        """What the server has instead of a model, the likeliest first; [] where it has it, or may have it: where it does
        not list its models, lists very many, or knows the name all the same, as that of an alias.
        """
        try:
            rows = listed_in(await self._listing(0.0, CHECK_TIMEOUT_S))
            row = next((row for row in rows if same_model(model, row["id"])), None)
            self.context = count_of(row.get("max_model_len")) if row else None
            if row or len(rows) > CATALOGUE:
                return []
            if rows and (await self.endpoint.get(f"/models/{quote(model)}", CHECK_TIMEOUT_S)).status not in (400, 404):
                return []
            return get_close_matches(model, [row["id"] for row in rows], CATALOGUE, 0.0)
        except ParagatorError:
            return []

    async def first_model(self) -> str:
        """The model that the server lists under our name, else its first; UsageError if it lists none.

        It becomes `model` if none is set, and its context becomes `context`.
        """
        answer = await self._listing(min(LOADING_S, self.endpoint.limits.total_timeout_s))
        if not (rows := listed_in(answer)):
            raise UsageError(await self._no_models(answer))
        row = next((row for row in rows if row["id"] == self.model), rows[0])
        self.context = count_of(row.get("max_model_len")) or self.context
        self.model = self.model or str(row["id"])
        return str(row["id"])

    async def _listing(self, patience_s: float, timeout_s: float = LISTING_TIMEOUT_S) -> Answer:
        """The answer of /models, asked again while the server is loading."""
        end, pause_s = time.monotonic() + patience_s, self.endpoint.limits.backoff_s
        while True:
            answer = await self.endpoint.get("/models", timeout_s)
            if answer.status != 503 or time.monotonic() + pause_s > end:
                return answer
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 5.0)

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

    async def trial(self, *, in_tokens: bool) -> None:
        """Ask for one token; any answer is good, Refused where none comes in time."""
        ids = (0,) if in_tokens else None
        try:
            await self._request(Asked(Prompt("1", chat=not in_tokens), ids, "generate", Sampling(1.0, 1), 0), 1, 0)
        except Refused as error:
            if not error.status:
                raise

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
        while True:
            body = self.body(asked, n, seed)
            try:
                found = await self.endpoint.post(path, body, checked, lane=lane)
                break
            except Refused as error:
                if self.adapter and error.status == 404:
                    raise Lost(f"it has no adapter {self.adapter!r}, which it was given: restarted") from None
                if not self._adapted(error, body, training=asked.ids is not None):
                    raise
        if self.adapter and (named := found.get("model")) != body["model"]:
            raise Lost(self.endpoint.clean(f"it answers as {named!r} where {self.adapter!r} was asked for"))
        prompt_tokens, tokens = usage_of(found)
        asked.prompt_tokens = prompt_tokens if prompt_tokens is not None else asked.prompt_tokens
        self.prompt_tokens += prompt_tokens or 0
        if (cached := cached_of(found)) is not None:
            self.cached_tokens = (self.cached_tokens or 0) + min(cached, prompt_tokens or cached)
        self.completion_tokens += tokens or 0
        self.uncounted += prompt_tokens is None and tokens is None
        choices = sorted(found["choices"], key=lambda choice: count_of(choice.get("index")) or 0)
        known = tokens if len(choices) == 1 else None
        outputs = [completion_of(choice, known, asked.ids, self.endpoint.clean) for choice in choices]
        self._look(choices, outputs)
        return outputs

    def _adapted(self, error: Refused, sent: Mapping[str, Any], *, training: bool) -> bool:
        """Whether another request, with other fields, may succeed where one with the fields `sent` was refused."""
        if error.status not in (400, 422) or error.trouble is None or str(error).startswith("context length"):
            return False
        said = error.trouble.said
        name = refused_field(said, error.trouble.named, [field for field in sent if field not in self.extra_body])
        if "max_tokens" in sent and (name == "max_tokens" or "max_completion_tokens" in said):
            self._limit_field = "max_completion_tokens"
            return True
        if name is None or (training and name not in HARMLESS):
            return False
        if name not in self.without:
            self.without |= set(TELLING) if name in TELLING else {name}
            self.refused.append(name)
            key = (
                f"; engine.omit = ['{name}'] leaves it out from the start"
                if self.endpoint.section == "engine" and name not in TELLING
                else ""
            )
            refusal = f"the server refuses {name} ({self.endpoint.clean(said)[:160]})"
            warnings.warn(f"{self.endpoint.where}: {refusal}; it is left out{key}", stacklevel=2)
        return True

    def _look(self, choices: list[dict[str, Any]], outputs: list[Completion | Failure]) -> None:
        """Count answers that were no plain texts."""
        for choice, output in zip(choices, outputs, strict=True):
            if isinstance(output, Failure):
                continue
            message = choice.get("message")
            text, thinking = (
                texts_of(message, message.get("content")) if isinstance(message, dict) else (output.text, None)
            )
            thought = only_thought(text, thinking)
            self.answers += 1
            self.thoughts += thought
            self.blank += not thought and not output.text.strip()

    @property
    def remarks(self) -> list[str]:
        """What a user should know about the answers so far, a line each."""
        found = [f"the server refuses {name}: it is left out" for name in self.refused]
        if self.thoughts:
            found.append(
                f"{self.thoughts:,} of {self.answers:,} answers had no content, only reasoning; finished ones were read from it"
            )
        if self.blank:
            found.append(f"{self.blank:,} of {self.answers:,} answers had no text at all")
        return found

    def body(self, asked: Asked, n: int, seed: int) -> dict[str, Any]:
        """The fields of a request."""
        sampling = asked.sampling
        body: dict[str, Any] = {
            "model": self.adapter or self.model,
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
        if sampling.confidence and "messages" in body:
            body |= {"logprobs": True, "top_logprobs": sampling.confidence}
        elif sampling.confidence:
            body["logprobs"] = sampling.confidence
        left_out = set(self.without)
        for pair in (LENGTHS, TELLING):  # one does not go without the other
            left_out |= set(pair) if pair[0] in left_out else set()
        return {name: value for name, value in body.items() if name not in left_out} | self.extra_body

    async def _no_models(self, reply: Answer) -> str:
        """What to do about a server that lists no models, after a look whether /v1 was left out."""
        where, model = f"{self.endpoint.where}: ", f"{self.endpoint.section}.model"
        if not self.endpoint.url.endswith("/v1"):
            answer = await self.endpoint.get("/v1/models", LISTING_TIMEOUT_S)
            if listed_in(answer):
                return f"{where}the path is wrong; write {self.endpoint.url}/v1"
        said = "" if reply.status == 200 and isinstance(held_in(reply.body), list) else self.endpoint.said(reply.body)
        status = f"http {reply.status} for /models" + (f": {said[:160]}" if said else "")
        if reply.status == 503:
            return f"{where}the server is not ready ({status}); try again once it is"
        return f"{where}the server lists no models ({status}); correct the URL, or set {model}"


def seed_of(seed: int, index: int) -> int:
    """The seed of one sibling's own request."""
    return random.Random(f"{seed}:{index}").getrandbits(SEED_BITS)


def checked(found: Any) -> str | None:
    """Why an answer is garbage, or None; Again where the server lost its completions."""
    if reason := is_answer(found):
        return reason
    if reason := why_lost(found):
        raise Again(reason)
    return None


def refused_field(said: str, named: Sequence[str], sent: Sequence[str]) -> str | None:
    """The optional field of a request that a server refuses as such; None where it refuses a value or something else."""
    if not REFUSAL.search(said) or OUT_OF_RANGE.search(said):
        return None
    optional = [name for name in OPTIONAL if name in sent]
    if found := next((name for name in named if name in optional), None):
        return found
    places = {name: match.start() for name in optional if (match := re.search(rf"(?<!\w){name}(?!\w)", said))}
    if "top_p" in places and re.search(r"\b(both|together|only one)\b", said):
        return "top_p"
    return min(places, key=lambda name: places[name], default=None)


def listed(body: bytes) -> list[dict[str, Any]]:
    """The models in a listing, each with its id: an array of them or of names, bare or in a field; none in anything else."""
    found = held_in(body)
    rows = (found.get("data") or found.get("models")) if isinstance(found, dict) else found
    if isinstance(rows, dict):
        rows = [{"id": name, **row} if isinstance(row, dict) else name for name, row in rows.items()]
    out: list[dict[str, Any]] = []
    for row in rows if isinstance(rows, list) else []:
        fields = row if isinstance(row, dict) else {"id": row}
        id_ = next((fields[name] for name in ("id", "name", "model") if isinstance(fields.get(name), str | int)), None)
        if id_:
            out.append({**fields, "id": str(id_)})
    return out


def listed_in(answer: Answer) -> list[dict[str, Any]]:
    """The models in the answer of a listing; none in an error."""
    return listed(answer.body) if answer.status == 200 else []


def same_model(name: str, listed: str) -> bool:
    """Whether a listed model is meant: by its name, without its path or tag (models/a, a:latest), or as one of a/*."""
    return listed in (name, f"models/{name}", f"{name}:latest") or ("*" in listed and fnmatchcase(name, listed))
