"""Text, tables and pictures as HTML. Everything shown is escaped."""

from __future__ import annotations

import base64
import html
import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

SHOWN_CHARACTERS = 3000

STYLE = """
:root{color-scheme:light dark;--ink:#24292f;--soft:#667;--line:#d8dce2;--back:#fff;--panel:#f6f7f9;--good:#0b7a55;
--bad:#b3470a;--link:#0059a3}
@media(prefers-color-scheme:dark){:root{--ink:#dde1e6;--soft:#9aa3ad;--line:#3a4048;--back:#16191d;--panel:#1f2329;
--good:#4cc79a;--bad:#f0a070;--link:#7ab8f5}}
body{margin:0 auto;max-width:60rem;padding:1.5rem 1rem 4rem;font:16px/1.55 system-ui,sans-serif;color:var(--ink);
background:var(--back)}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}h3{font-size:.95rem;margin:1rem 0 .3rem}
p{margin:.4rem 0}.soft{color:var(--soft)}
.notice{border-left:3px solid var(--bad);padding:.2rem .8rem;background:var(--panel)}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.87rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{color:var(--soft);font-weight:600;vertical-align:bottom;white-space:normal}th:first-child,td:first-child{text-align:left;padding-left:0;white-space:normal}
img{width:100%;max-width:700px;height:auto;border-radius:6px;background:#fff}
details{border-top:1px solid var(--line);padding:.4rem 0}details details{border:0;margin-left:.2rem}
summary{cursor:pointer}pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--panel);padding:.5rem .7rem;
border-radius:6px;font:.82rem/1.45 ui-monospace,monospace;margin:.2rem 0 .6rem}
.correct{color:var(--good)}.incorrect{color:var(--bad)}.unscored,.failed{color:var(--soft)}.tag{font-size:.8rem;color:var(--soft)}
.marks{font-family:ui-monospace,monospace;letter-spacing:.1em}
"""


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, headings first."""
    lines = [
        "<tr>" + "".join(f"<{tag}>{show(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, part in (("th", rows[:1]), ("td", rows[1:]))
        for row in part
    ]
    return '<div class="scroll"><table>' + "\n".join(lines) + "</table></div>"


def as_image(png: bytes, alt: str) -> str:
    return f'<img alt="{show(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def as_text(text: str) -> str:
    """A block of model or data text; a very long one without its middle."""
    left_out = len(text) - SHOWN_CHARACTERS
    if left_out > 0:
        half = SHOWN_CHARACTERS // 2
        text = f"{text[:half]}\n[... {left_out:,} characters left out ...]\n{text[-half:]}"
    return f"<pre>{show(text)}</pre>"


def as_details(title: str, value: Mapping[str, Any]) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return f"<details><summary>{show(title)}</summary><pre>{show(text)}</pre></details>"


def show(text: object) -> str:
    """Text for HTML: escaped, and with what has no look of its own (control, format, surrogate) spelled out."""
    return html.escape("".join(c if c in "\n\t" else visible(c) for c in str(text)))


def visible(character: str) -> str:
    r"""The character, or \x1b, \u202e and the like spelled out."""
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return ascii(character)[1:-1]
    return character
