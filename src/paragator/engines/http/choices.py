"""Parsing of choices: servers differ in where they put text, thinking and counts; what is not a solution is a Failure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from paragator.core.errors import UsageError
from paragator.core.types import Completion, Failure, FinishReason
from paragator.engines.http.replies import code_in, meaning_of, message_in

WORDS: dict[FinishReason, str] = {
    "stop": "stop eos eos_token end_turn stop_sequence stop_token stop_str complete completed finished finish done end "
    "end_of_text end_of_sequence endoftext stopped success",
    "length": "length max_tokens max_token model_length max_length max_new_tokens max_output_tokens max_completion_tokens "
    "max_tokens_reached token_limit length_limit limit context_length model_context_window_exceeded incomplete",
    "cancelled": "abort aborted cancelled canceled cancel",
}
FINISHES: dict[str, FinishReason] = {word: finish for finish, words in WORDS.items() for word in words.split()}
"""What servers write, in small letters, and what it means here. With any other reason the completion is a Failure."""
LOST = frozenset(
    "error network_error server_error internal_error engine_error engine_overloaded overloaded unavailable timeout "  # noqa: SIM905
    "insufficient_system_resource insufficient_system_resources malformed_response".split()
)
"""The server lost the completion: it is asked again."""

THINKING = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
"""Where servers put a model's thinking."""

Clean = Callable[[str], str]
"""Cleans what a server said, so that it can be part of a reason."""


def is_answer(found: Any) -> str | None:
    """Why a JSON value is not an answer with choices; None if it is one."""
    if not isinstance(found, dict):
        return "no JSON object"
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        return "no choices"
    return None


def why_lost(found: dict[str, Any]) -> str | None:
    """Why every choice of an answer was lost on the server's side; None where one was not."""
    reasons = [lost(choice) for choice in found["choices"]]
    return reasons[0] if all(reasons) else None


def lost(choice: dict[str, Any]) -> str | None:
    """Why the server lost a choice, by its finish reason or by an error in place of one; None where it did not."""
    error = choice.get("error")
    status = (code_in(error) or meaning_of(message_in(error))) if error else 200
    if status == 429 or status >= 500:
        return f"an error in place of a completion: {message_in(error)}"
    reason = plain(choice.get("finish_reason"))
    return f"finish reason {reason!r}: the server lost this completion" if reason in LOST and status < 400 else None


def plain(reason: Any) -> str:
    """A finish reason in small letters, without what only some servers put around it."""
    if isinstance(reason, dict):  # SGLang
        reason = reason.get("type")
    word = "" if reason is None else str(reason).strip().lower().replace("-", "_").replace(" ", "_")
    return word.removeprefix("finishreason.").removeprefix("finish_reason_").strip("<|>")


def completion_of(
    choice: dict[str, Any], num_tokens: int | None, prompt_ids: tuple[int, ...] | None, clean: Clean
) -> Completion | Failure:
    """One choice of a chat or text answer; with `prompt_ids`, of an answer in tokens.

    `num_tokens` is the answer's own count where it has one choice; a choice may come with its own count. A finished choice
    that holds nothing but thinking is read from there: servers that misread the model's format put the whole answer into
    it. One that was cut has no answer yet.
    """
    message = choice.get("message")
    fields = message if isinstance(message, dict) else choice
    reason = choice.get("finish_reason")
    finish = FINISHES.get(plain(reason) or "stop")
    if error := choice.get("error"):
        return Failure(f"an error in place of a completion: {clean(message_in(error))}")
    if finish is None:
        ended = (
            "the server lost this completion"
            if plain(reason) in LOST
            else "the server ended this completion, not the model"
        )
        return Failure(f"finish reason {clean(str(reason))!r}: {ended}")
    if refusal := fields.get("refusal"):
        return Failure(f"refusal: {clean(str(refusal))}")
    text, thinking = texts_of(fields, fields.get("content") if fields is message else choice.get("text"))
    if text is None and thinking is None:
        return Failure("empty answer: the server sent no text")
    if prompt_ids is None and only_thought(text, thinking) and finish == "stop":
        text, thinking = thinking, None
    usage = choice.get("usage")
    if num_tokens is None and isinstance(usage, dict):
        num_tokens = count_of(usage.get("completion_tokens"))
    text = sound(text or "")
    if prompt_ids is None:
        thinking = None if thinking is None else sound(thinking)
        confidences = confidences_of(choice.get("logprobs"))
        return Completion(text, finish, num_tokens=num_tokens, thinking=thinking, confidences=confidences)
    return with_tokens(choice, text, finish, prompt_ids)


def confidences_of(found: Any) -> tuple[float, ...] | None:
    """Each token's confidence, minus the mean log-probability of the likeliest tokens that came with it; None without.

    To three decimals, as DeepConf's code (arXiv 2508.15260) keeps them.
    """
    tokens = found.get("content") or found.get("top_logprobs") if isinstance(found, dict) else None
    if not isinstance(tokens, list):
        return None
    out = []
    for token in tokens:
        likeliest = token.get("top_logprobs", token) if isinstance(token, dict) else None
        values = [one.get("logprob") if isinstance(one, dict) else one for one in each_of(likeliest)]
        known = [float(value) for value in values if isinstance(value, float | int) and math.isfinite(value)]
        if not known:
            return None
        out.append(round(-math.fsum(known) / len(known), 3))
    return tuple(out) or None


def each_of(likeliest: Any) -> list[Any]:
    """The likeliest tokens of a place: a list of objects (chat) or log-probabilities by token (text)."""
    return list(likeliest.values()) if isinstance(likeliest, dict) else likeliest if isinstance(likeliest, list) else []


def with_tokens(
    choice: dict[str, Any], text: str, finish: FinishReason, prompt_ids: tuple[int, ...]
) -> Completion | Failure:
    """A completion with what vLLM sampled: token ids and their log-probabilities, one a token."""
    ids = choice.get("token_ids")
    if not isinstance(ids, list) or not all(type(id_) is int and id_ >= 0 for id_ in ids):
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


def only_thought(text: str | None, thinking: str | None) -> bool:
    """Whether an answer has thinking and no text beside it."""
    return not (text or "").strip() and bool((thinking or "").strip())


def texts_of(fields: dict[str, Any], content: Any) -> tuple[str | None, str | None]:
    """Text and thinking of a message: each in a field of its own, or both as parts of the content."""
    thinking = next((found for name in THINKING if (found := text_in(fields.get(name)))), None)
    parts = [content] if isinstance(content, dict) else content
    if not isinstance(parts, list):
        return text_in(content), thinking
    thought = [part for part in parts if isinstance(part, dict) and str(part.get("type")) in ("thinking", "reasoning")]
    text = text_in([part for part in parts if part not in thought])
    return text, thinking or "".join(text_in(part.get("thinking")) or text_in([part]) or "" for part in thought) or None


def text_in(value: Any) -> str | None:
    """A text, or the texts of a list of parts; None for anything else and for an empty list."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in value]
        return "".join(part for part in parts if isinstance(part, str)) if parts else None
    return None


def sound(text: str) -> str:
    """`text` without lone surrogates, which cannot be written to a file."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def count_of(value: Any) -> int | None:
    """A count, also as "7" or 7.0; None for anything else."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value.strip()[:18])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def cached_of(found: dict[str, Any]) -> int | None:
    """How many prompt tokens the server had cached, in the words of OpenAI and vLLM, DeepSeek, Anthropic; None untold."""
    usage = found.get("usage")
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    nested = details.get("cached_tokens") if isinstance(details, dict) else None
    told = (nested, usage.get("prompt_cache_hit_tokens"), usage.get("cache_read_input_tokens"))
    return next((count for value in told if (count := count_of(value)) is not None), None)


def usage_of(found: dict[str, Any]) -> tuple[int | None, int | None]:
    """How many tokens prompt and completions have by the server's count; None for what it does not tell."""
    usage = found.get("usage")
    if not isinstance(usage, dict):
        return None, None
    tokens_in, tokens_out = (
        next((count for name in names if (count := count_of(usage.get(name))) is not None), None)
        for names in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
    )
    return tokens_in, tokens_out
