"""Parsing of choices: servers differ in where they put text, thinking and counts; what is not a solution is a Failure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from paragator.core.errors import UsageError
from paragator.core.types import Completion, Failure, FinishReason

FINISHES: dict[Any, FinishReason] = {
    None: "stop",
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "abort": "cancelled",
    "cancelled": "cancelled",
}
"""What servers write, and what it means here. With any other reason the completion is a Failure."""

Clean = Callable[[str], str]
"""Cleans what a server said, so that it can be part of a reason."""


def is_answer(found: Any) -> str | None:
    """Why a JSON value is not an answer with choices; None if it is one."""
    if not isinstance(found, dict):
        return "no JSON object"
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        return "no choices"
    if not isinstance(found.get("usage") or {}, dict):
        return "usage is no object"
    return None


def completion_of(
    choice: dict[str, Any], num_tokens: int | None, prompt_ids: tuple[int, ...] | None, clean: Clean
) -> Completion | Failure:
    """One choice of a chat or text answer; with `prompt_ids`, of an answer in tokens.

    `num_tokens` is the answer's own count where it has one choice; a choice may come with its own count.
    """
    message = choice.get("message")
    fields = message if isinstance(message, dict) else choice
    reason = choice.get("finish_reason")
    finish = FINISHES.get(reason) if reason is None or isinstance(reason, str) else None
    if finish is None:
        return Failure(f"finish reason {clean(str(reason))!r}: the server ended this completion, not the model")
    if refusal := fields.get("refusal"):
        return Failure(f"refusal: {clean(str(refusal))}")
    text = text_in(fields.get("content") if fields is message else choice.get("text"))
    thinking = text_in(fields.get("reasoning_content")) or text_in(fields.get("reasoning"))
    if text is None and thinking is None:
        return Failure("empty answer: the server sent no text")
    usage = choice.get("usage")
    if num_tokens is None and isinstance(usage, dict):
        num_tokens = count_of(usage.get("completion_tokens"))
    text = sound(text or "")
    if prompt_ids is None:
        return Completion(text, finish, num_tokens=num_tokens, thinking=None if thinking is None else sound(thinking))
    return with_tokens(choice, text, finish, prompt_ids)


def with_tokens(
    choice: dict[str, Any], text: str, finish: FinishReason, prompt_ids: tuple[int, ...]
) -> Completion | Failure:
    """A completion with what vLLM sampled: token ids and their log-probabilities, one a token."""
    ids = choice.get("token_ids")
    if not isinstance(ids, list) or not all(count_of(id_) is not None for id_ in ids):
        raise UsageError(
            "engine.url: the server returns no token ids, which training needs; use vLLM, a version with return_token_ids"
        )
    found, sent = choice.get("logprobs") or {}, choice.get("prompt_token_ids")
    logprobs = (found.get("token_logprobs") or []) if isinstance(found, dict) else None
    if not isinstance(logprobs, list) or not isinstance(sent, list | None):
        return Failure("garbage: logprobs or prompt_token_ids are of another type than vLLM's")
    if len(logprobs) != len(ids):
        return Failure(f"token mode: {len(ids)} tokens came with {len(logprobs)} log-probabilities")
    if not all(isinstance(value, float | int) and math.isfinite(value) for value in logprobs):
        return Failure("token mode: a log-probability is no finite number")
    if sent is not None and tuple(sent) != prompt_ids:
        return Failure("token mode: the server changed the prompt")
    return Completion(text, finish, tuple(ids), tuple(float(value) for value in logprobs))


def text_in(value: Any) -> str | None:
    """A text, or the texts of a list of parts; None for anything else and for an empty list."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [part.get("text") for part in value if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str)) if parts else None
    return None


def sound(text: str) -> str:
    """`text` without lone surrogates, which cannot be written to a file."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def count_of(value: Any) -> int | None:
    """A count; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
