"""The reference answer and the problem's text in a row of a file of one's own: read where they can be, else refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from paragator.core.errors import DataError
from paragator.grading.extract import ANNOUNCED, final_answer, final_box, is_sentence

MARK = "####"
NOTHING = frozenset(
    {"none", "null", "nan", "n/a", "na", "<na>", "nil", "undefined", "unknown", "tbd", "todo", "?", "[]", "{}"}
)
"""What programs write where there is no value; of "None" and "unknown" only the spelling of programs counts."""
QUOTED = r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\""""
LISTED = re.compile(rf"[\[(]\s*(?:{QUOTED})(?:\s*,\s*(?:{QUOTED}))*\s*,?\s*[\])]", re.S)
KEYED = re.compile(rf"\{{\s*(?:{QUOTED})\s*:.*\}}", re.S)
VERB = re.compile(
    r"\b(is|are|was|has|have|takes?|gives?|equals?|therefore|thus|hence|so|we|because|since|then|must)\b", re.I
)
PROSE_WORDS = 4
SHOWN_CHARS = 60


class NoReference(DataError):
    """A reference that cannot be an answer."""


def reference_of(text: str, where: str, *, kind: str | None = None, prose: bool = False) -> str:
    """The answer in a reference: after ####, in a worked solution's box or last sentence, in a list that became text.

    NoReference for what holds no answer. `prose` allows sentences, which a reward function may read.
    """
    text = text.strip()
    if MARK in text:
        return text.rpartition(MARK)[2].strip().partition("\n")[0].strip()
    if LISTED.fullmatch(text):
        found = [single or double for single, double in re.findall(QUOTED, text)]
        return ", ".join(re.sub(r"\\([\\'\"])", r"\1", part).strip() for part in found)
    if KEYED.fullmatch(text):
        raise refused(text, where, "an object that became text")
    if text.lower() in NOTHING and text not in ("none", "unknown", "undefined", "Undefined", "Unknown"):
        raise refused(text, where, "no value")
    if prose or kind in ("text", "choice") or not is_prose(text):
        return text
    if (boxed := final_box(text, strict=False)) is not None:
        return boxed
    announced = final_answer(text) if ANNOUNCED.search(text) else None
    if announced is None or announced == text or is_sentence(announced):
        raise refused(text, where, "a sentence")
    return announced


def is_prose(text: str) -> bool:
    """Whether a text is a sentence or a worked solution rather than an answer in words."""
    if not is_sentence(text):
        return False
    words = re.findall(r"[^\W\d_]{2,}", text)
    return "\n" in text or (len(words) >= PROSE_WORDS and (text.endswith((".", "!", "?")) or bool(VERB.search(text))))


def refused(text: str, where: str, what: str) -> NoReference:
    shown = text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"
    return NoReference(f"{where}: answer = {shown!r} is {what}: write the final answer alone, or after ####")


def problem_text(value: Any, where: str) -> str | None:
    """A problem as text: itself, or a chat of which the model's own last words are left out; None for anything else.

    One message is its text. A system message stands before it. Of a conversation each message begins with its role.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    messages = [turn(part) for part in ([value] if isinstance(value, Mapping) else value)] if is_chat(value) else []
    while messages and messages[-1][0] == "assistant":
        messages.pop()
    if any(text is None for _, text in messages):
        raise DataError(f"{where}: the problem has a message without text, or with more than text; write it as text")
    texts = [str(text).strip() for _, text in messages]
    asked = [role for role, _ in messages if role not in ("system", "developer")]
    if len(asked) > 1:
        texts = [f"{role.capitalize()}: {text}" for (role, _), text in zip(messages, texts, strict=True)]
    return "\n\n".join(texts) if asked else None


def is_chat(value: Any) -> bool:
    """Whether a value is a list of chat messages, or one of them."""
    parts = [value] if isinstance(value, Mapping) else value
    return (
        isinstance(parts, list | tuple)
        and bool(parts)
        and all(
            isinstance(part, Mapping) and ({"role", "content"} <= part.keys() or {"from", "value"} <= part.keys())
            for part in parts
        )
    )


def turn(message: Mapping[str, Any]) -> tuple[str, str | None]:
    """Role and text of a message; None where it has no text, or more than text."""
    role = str(message.get("role") or message.get("from") or "user").lower()
    role = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "ai": "assistant"}.get(
        role, role
    )
    content = message.get("content", message.get("value"))
    if isinstance(content, list) and content:
        parts: list[Any] = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
    return role, content if isinstance(content, str) else None
