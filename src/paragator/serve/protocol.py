"""The OpenAI protocol: what a request's body asks, and an answer's body, whole or in pieces."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from secrets import randbelow, token_hex
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paragator.runs.solve import Round, Solution
from paragator.serve.errors import ApiError

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "response_format": ({"type": "text"},), "modalities": (["text"],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
}  # fmt: skip
REFUSED = frozenset(NEUTRAL) | {
    "tools", "functions", "logprobs", "top_logprobs", "stop", "logit_bias", "presence_penalty", "frequency_penalty", "audio",
    "echo", "suffix", "prediction",
}  # fmt: skip
"""Fields that would change the answer and that rounds of aggregation cannot honour; others that are not known are ignored."""
SPEAKERS = {"user": "User", "assistant": "Assistant"}


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True)
    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        parts = self.content
        return (parts if isinstance(parts, str) else "\n".join(part.text for part in parts)).strip()


class StreamOptions(BaseModel):
    include_usage: bool = False


class Body(BaseModel):
    """The fields that both kinds of request have."""

    model_config = ConfigDict(strict=True, extra="allow")
    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)


class ChatBody(Body):
    messages: list[Message] = Field(min_length=1)

    @property
    def text(self) -> str:
        """The one user's message; a longer talk as system texts, then turns with who speaks."""
        system = [message.text for message in self.messages if message.role in ("system", "developer")]
        turns = [message for message in self.messages if message.role in SPEAKERS]
        if not turns or turns[-1].role != "user":
            raise ApiError(400, "messages: the last one must be the user's", "invalid_request", param="messages")
        if len(turns) > 1:
            return "\n\n".join([*system, *(f"{SPEAKERS[turn.role]}: {turn.text}" for turn in turns)])
        return "\n\n".join([*system, turns[0].text])


class TextBody(Body):
    prompt: str | list[str]

    @property
    def text(self) -> str:
        if isinstance(self.prompt, str):
            return self.prompt
        if len(self.prompt) != 1:
            raise ApiError(400, "prompt: one text a request", "invalid_request", param="prompt")
        return self.prompt[0]


@dataclass(frozen=True, slots=True)
class Question:
    """What a client asks.

    sampling  temperature, top_p and max_tokens, as far as the client names them
    seed      the client's, else a random one
    """

    model: str
    text: str
    chat: bool
    stream: bool
    usage_in_stream: bool
    sampling: Mapping[str, float]
    seed: int
    id: str = field(default_factory=lambda: token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))


def question_of(data: bytes, kind: type[ChatBody] | type[TextBody]) -> Question:
    """The question in a request's body; ApiError for one that cannot be answered as it is asked."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not JSON", "invalid_json") from None
    if not isinstance(values, dict):
        raise ApiError(400, "the body is no JSON object", "invalid_json")
    if wrong := next(
        (n for n in sorted(REFUSED & values.keys()) if values[n] and values[n] not in NEUTRAL.get(n, ())), ""
    ):
        raise ApiError(400, f"{wrong} is not supported; leave it out", "unsupported_parameter", param=wrong)
    try:
        body = kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part.islower())
        raise ApiError(400, f"{where}: {first['msg']}", "invalid_request", param=where) from None
    tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    sampling = {"temperature": body.temperature, "top_p": body.top_p, "max_tokens": tokens}
    return Question(
        body.model,
        body.text,
        chat=kind is ChatBody,
        stream=bool(body.stream),
        usage_in_stream=body.stream_options is not None and body.stream_options.include_usage,
        sampling={name: value for name, value in sampling.items() if value is not None},
        seed=body.seed if body.seed is not None else randbelow(2**31),
    )


# ---- answers ----


def usage_of(rounds: Iterable[Round]) -> dict[str, int] | None:
    """Tokens over all rounds, by the engine's count; None where it does not count."""
    kept = list(rounds)
    groups = [group for round_ in kept for group in round_.groups]
    if any(c.length is None for group in groups for c in group.completions):
        return None
    prompt, completion = sum(r.prompt_tokens for r in kept), sum(r.completion_tokens for r in kept)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def answer_of(question: Question, solution: Solution, rounds: Iterable[Round]) -> dict[str, Any]:
    """A whole answer; what is not OpenAI's stands under `paragator`."""
    kept = list(rounds)
    said = {"message": {"role": "assistant", "content": solution.text}} if question.chat else {"text": solution.text}
    choice = {"index": 0, **said, "finish_reason": solution.finish_reason, "logprobs": None}
    kind = "chat.completion" if question.chat else "text_completion"
    return head(question, kind) | {"choices": [choice], "usage": usage_of(kept), "paragator": summary(solution, kept)}


def summary(solution: Solution, rounds: Iterable[Round]) -> dict[str, Any]:
    """What the rounds gave: the answer and its votes, and each round's counts."""
    counts = [
        {"round": r.number, "asked": r.asked, "done": r.done, "failed": r.failed, "votes": r.votes} for r in rounds
    ]
    return {"answer": solution.answer, "votes": solution.votes, "rounds": counts, "failure": solution.trace.failure}


def head(question: Question, kind: str) -> dict[str, Any]:
    prefix = "chatcmpl" if question.chat else "cmpl"
    return {"id": f"{prefix}-{question.id}", "object": kind, "created": question.created, "model": question.model}


def piece(question: Question, text: str | None, finish: str | None = None, *, thought: str | None = None) -> bytes:
    """A piece of a stream: text of the answer, or of what is shown as thinking."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
    if question.chat:
        delta = {"role": "assistant", "content": text, "reasoning_content": thought}
        choice["delta"] = {name: value for name, value in delta.items() if value is not None and finish is None}
    else:
        choice["text"] = text or ""
    kind = "chat.completion.chunk" if question.chat else "text_completion"
    more = {"usage": None} if question.usage_in_stream else {}
    return event(head(question, kind) | {"choices": [choice]} | more)


def usage_piece(question: Question, usage: Mapping[str, int] | None) -> bytes:
    """The last piece of a stream whose client wants to know its tokens."""
    kind = "chat.completion.chunk" if question.chat else "text_completion"
    return event(head(question, kind) | {"choices": [], "usage": usage})


def event(value: Any) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def comment(text: str) -> bytes:
    """A line that clients skip."""
    return f": {text}\n\n".encode()
