"""Text of models and data files made safe for a terminal: control characters are shown, never sent."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with control characters made visible; newlines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text.replace("\r\n", "\n"))


def one_line(text: str, width: int | None = None) -> str:
    """The same in one line, newlines and tabs made visible too; cut after `width` characters."""
    text = printable(text).replace("\n", "\\n").replace("\t", "\\t")
    return text if width is None or len(text) <= width else text[: width - 1] + "…"
