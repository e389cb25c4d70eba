"""Where a solution's final answer stands in its text. Pure; equality is not decided here."""

from __future__ import annotations

from paragator.core.packing import strip_thinking

MAX_CHARS = 100_000


def final_box(text: str) -> str | None:
    """The content of the last balanced \\boxed{...} or \\fbox{...}; None when there is none."""
    for start in reversed(box_starts(text)):
        depth = 0
        for i in range(start, len(text)):
            depth += (text[i] == "{") - (text[i] == "}")
            if depth == 0:
                return text[start + 1 : i].strip()
    return None


def box_starts(text: str) -> list[int]:
    """Positions of the opening brace of each box."""
    out = []
    for name in ("\\boxed{", "\\fbox{"):
        at = text.find(name)
        while at >= 0:
            out.append(at + len(name) - 1)
            at = text.find(name, at + 1)
    return sorted(out)


def final_answer(text: str) -> str | None:
    """The last box outside thinking, else the whole text outside thinking; None when nothing is there."""
    shown = strip_thinking(text[-MAX_CHARS:] if len(text) > MAX_CHARS else text)
    if not shown:
        return None
    boxed = final_box(shown)
    return shown if boxed is None else boxed or None
