"""Errors as servers tell them: in a status, in a body whatever its status, in words; and how long they ask to wait."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from paragator.engines.http.client import Answer

MOST_CHARS = 10_000
EMPTY, GARBLED = object(), object()
"""What a body holds that is blank or null, and one that is no JSON."""
TOO_LONG = re.compile(
    r"context.{0,2}(length|window|size|limit)|exceeds?.{0,30}context|max_model_len"
    r"|max(imum)?.{0,2}(allowed|context|input|model|prompt|sequence)?.{0,2}(context|input|model|prompt|sequence|allowed).{0,2}len"
    r"|(input|prompt|request|question|messages?).{0,60}\b(too (long|large (for|to process))|exceeds?.{0,12}max.{0,12}len)"
    r"|(input|prompt)\b.{0,40}\btoo (large|big)"
    r"|too (long|many).{0,30}(input|prompt|prefill) tokens?|(input|prompt)s? tokens? (is |are )?too|too many (input |prompt )?tokens"
    r"|(input|prompt).{0,12}token count.{0,40}exceed|number of tokens in the prompt.{0,20}exceed"
    r"|exceed\w*.{0,30}(model )?token limit|range of input length|reduce the length|max_new_tokens`? must be <"
    r"|`?inputs`? must have less|reduce your (prompt|input)",
    re.I | re.S,
)
"""A prompt that is longer than the context, in the words of llama.cpp, vLLM, SGLang, TGI, LM Studio and of providers."""
MODERATED = re.compile(
    r"moderat|flagged|content.?(policy|filter|management|safety)|safety|harmful|inappropriate|risk", re.I
)
MEANINGS = (
    (429, r"rate.?limit|too many requests|resource.?exhausted|quota|throttl|queue is full|slow down"),
    (503, r"overload|unavailable|busy|capacity|loading|not ready|timed? ?out|timeout|temporar|try again|retry|upstream|no healthy"),
    (500, r"internal|server.?error|api.?error|provider returned"),
    (401, r"unauthori[sz]ed|authenticat|api.?key"),
    (403, r"permission.?(denied|error)|forbidden|" + MODERATED.pattern),
    (404, r"not.?found|does not exist|no such model|unknown model"),
    (400, r"invalid|bad.?request|unsupported|not supported|unknown (field|param)|unrecognized|not permitted|validation"),
)  # fmt: skip
"""The status that an error's words stand for where it comes with status 200 and without a code."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """An error as a server told it.

    status  what it means: its own code where it has one, else the answer's; 200 where neither says
    http    the answer's status
    said    its message
    words   its message, type and code, to look for a meaning in
    named   the request fields that it names as its cause
    after   how many seconds the server asks to wait
    """

    status: int
    http: int
    said: str
    words: str
    named: tuple[str, ...] = ()
    after: float | None = None

    @property
    def kind(self) -> str:
        """How a reason begins."""
        if self.status == self.http:
            return f"http {self.http}" if self.http != 200 else "an error in an answer with http 200"
        return f"error {self.status} in an answer with http {self.http}"


def held_in(body: bytes) -> Any:
    """The JSON value of a body; EMPTY or GARBLED where there is none."""
    if not body.strip():
        return EMPTY
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return GARBLED
    return EMPTY if found is None else found


def trouble_in(answer: Answer, found: Any) -> Trouble | None:
    """The error that an answer holds, or that its status tells; None where neither is one."""
    error = error_in(found)
    fine = 200 <= answer.status < 300
    if error is None and fine:
        return None
    value = found if error is None else error
    said = said_in(answer.body) if found in (EMPTY, GARBLED) else message_in(value)
    words = " ".join([said, *words_in(value)])[:MOST_CHARS]
    status = code_in(error) or (meaning_of(words) if fine else answer.status)
    return Trouble(status, answer.status, said, words, tuple(named_in(value)), retry_after(answer.headers))


def error_in(found: Any) -> Any:
    """The error in a body, wherever servers put it; None in a body without one."""
    if isinstance(found, list):  # Gemini
        found = found[0] if len(found) == 1 else None
    if not isinstance(found, dict):
        return None
    for name in ("error", "errors"):
        if error := found.get(name):
            return error if isinstance(error, str | dict | list) else found
    if found.get("object") == "error" or found.get("type") == "error":
        return found
    coded = any(found.get(name) for name in ("code", "status", "error_code", "error_msg"))
    told = any(isinstance(found.get(name), str | dict) for name in ("message", "msg", "detail", "error_msg"))
    return found if coded and told and not found.get("choices") else None


def code_in(error: Any) -> int | None:
    """An error's own code, where it is one of HTTP's."""
    if not isinstance(error, dict):
        return None
    for name in ("code", "status", "status_code", "http_status", "error_code"):
        text = str(error.get(name, ""))
        if text.isascii() and text.isdigit() and 400 <= int(text[:9]) < 600:
            return int(text)
    return None


def meaning_of(words: str) -> int:
    """The status that words stand for; 200 where they tell none."""
    if TOO_LONG.search(words):
        return 400
    return next((status for status, pattern in MEANINGS if re.search(pattern, words, re.I)), 200)


def said_in(body: bytes) -> str:
    """The message in an error's body; else the body's beginning."""
    found = held_in(body)
    return body[:MOST_CHARS].decode("utf-8", "replace") if found in (EMPTY, GARBLED) else message_in(found)


def message_in(value: Any, depth: int = 6) -> str:
    """The words of an error, wherever servers put them: a field, a list of faults, another server's answer within."""
    if isinstance(value, str):
        return value[:MOST_CHARS]
    if isinstance(value, list) and value and depth:
        return "; ".join(message_in(part, depth - 1) for part in value[:3])
    if isinstance(value, dict) and depth:
        if "loc" in value and "msg" in value:  # pydantic
            return f"{'.'.join(map(str, value['loc'] or ()))}: {value['msg']}"
        for name in ("error", "errors", "message", "detail", "msg", "error_msg", "error_message"):
            part = value.get(name)
            if part and isinstance(part, str | dict | list):
                raw = value.get("metadata")
                inner = raw.get("raw") if isinstance(raw, dict) else None  # OpenRouter: what the provider said
                return message_in(part, depth - 1) + (f": {inner}" if isinstance(inner, str) else "")
    return json.dumps(value)[:MOST_CHARS]


def words_in(error: Any) -> list[str]:
    """Type and code of an error, where they are words."""
    inner = error.get("error") if isinstance(error, dict) else None
    holders = [holder for holder in (error, inner) if isinstance(holder, dict)]
    found = [holder.get(name) for holder in holders for name in ("type", "code", "status")]
    return [word for word in found if isinstance(word, str)]


def named_in(error: Any, depth: int = 6) -> list[str]:
    """The request fields that an error names as its cause."""
    if not depth:
        return []
    if isinstance(error, list):
        return [name for part in error[:20] for name in named_in(part, depth - 1)]
    if not isinstance(error, dict):
        return []
    place = error.get("loc")
    found = [str(place[-1])] if isinstance(place, list) and place else []
    found += [error["param"]] if isinstance(error.get("param"), str) else []
    return found + [
        name for key in ("error", "errors", "message", "detail") for name in named_in(error.get(key), depth - 1)
    ]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, from Retry-After (a number or a date) or retry-after-ms; None if it does not.

    A time that is over, or none at all, says nothing.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds > 0:
            return seconds
    try:
        seconds = parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return seconds if seconds > 0 else None
