"""Where a solution's final answer stands in its text. Pure; equality is not decided here."""

from __future__ import annotations

import re

from paragator.core.packing import strip_thinking

MAX_CHARS = 100_000
BRACE = re.compile(r"\\boxed\{|\\fbox\{|\\[{}]|[{}]")


def final_box(text: str) -> str | None:
    """The content of the balanced \\boxed{...} or \\fbox{...} that starts last; None when there is none. One pass."""
    open_braces: list[int] = []
    start, end = -1, -1
    for match in BRACE.finditer(text):
        if match[0] == "}":
            if open_braces:
                opened = open_braces.pop()
                if opened > start:
                    start, end = opened, match.start()
        elif len(match[0]) != 2:  # an escaped brace is text
            open_braces.append(match.end() if len(match[0]) > 1 else -1)
    return None if start < 0 else text[start:end].strip()


def final_answer(text: str) -> str | None:
    """The last box outside thinking, else the whole text outside thinking; None when nothing is there."""
    shown = strip_thinking(text[-MAX_CHARS:] if len(text) > MAX_CHARS else text)
    if not shown:
        return None
    boxed = final_box(shown)
    return shown if boxed is None else boxed or None
