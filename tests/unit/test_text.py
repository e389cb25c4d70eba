"""Text that is safe for a terminal."""

from __future__ import annotations

import pytest

from paragator.core.text import one_line, printable


@pytest.mark.parametrize(
    ("text", "lines", "line"),
    [
        ("x²\ty\nz", "x²\ty\nz", "x²\\ty\\nz"),
        ("a\r\nb\rc", "a\nb\\rc", "a\\nb\\rc"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07", "\\x1b[31mred\\x07"),
        ("\u202eevil\ud800\u2028", "\\u202eevil\\ud800\\u2028", "\\u202eevil\\ud800\\u2028"),
    ],
)
def test_control_characters_become_visible(text: str, lines: str, line: str) -> None:
    assert (printable(text), one_line(text)) == (lines, line)


def test_a_long_line_is_cut() -> None:
    assert one_line("abcdef", 6) == "abcdef" and one_line("abcdef", 4) == "abc…"
