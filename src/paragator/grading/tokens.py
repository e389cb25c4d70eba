"""Tokenizer for normalised answers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from paragator.grading.tidy import GREEK

FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan arccot asin acos atan sinh cosh tanh coth arcsinh arccosh arctanh "  # noqa: SIM905
    "ln log lg exp max min gcd lcm det tr Re Im sgn sign floor ceil abs sqrt cbrt binom".split()
)
NAMES = frozenset(GREEK.values()) | FUNCTIONS | {"pi", "oo", "inf", "infty", "infinity", "and", "or"}
TOKEN = re.compile(
    r"\s*(?:(?P<command>\\\\(?:\[[^\]]{0,9}\])?|\\[a-zA-Z]+|\\[{}|])|(?P<number>\d+(?:\.\d+)?|\.\d+)|(?P<word>[a-zA-Z]+)|(?P<sign><=|>=|!=|==|=>|->|\*\*|.))",
    re.S,
)
DECORATED = re.compile(r"\\[a-zA-Z]+|[A-Za-z0-9]")
SPLIT_WORD = 3
"""An unknown word of at most this many letters is a product of letters; a longer one is a word."""


DECORATIONS = {
    f"\\{command}": name
    for name, commands in {
        "bold": "mathbf boldsymbol bm", "calligraphic": "mathcal mathscr", "fraktur": "mathfrak", "bar": "bar overline",
        "hat": "hat widehat", "tilde": "tilde widetilde", "vec": "vec overrightarrow", "dot": "dot", "ddot": "ddot",
        "check": "check breve", "arc": "overparen wideparen overarc",
    }.items()
    for command in commands.split()
}  # fmt: skip
"""Commands that make another name of what they stand over."""


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    value: str


def tokens_of(text: str) -> list[Token]:
    """The tokens of a normalised answer; a \\text{...} is one token."""
    out: list[Token] = []
    at = 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match:
            break
        at = match.end()
        kind = str(match.lastgroup)
        value = match[kind]
        if value in DECORATIONS:
            at, name = decorated(text, at)
            letters = name if DECORATIONS[value] == "bold" and name.isalpha() and name not in NAMES else [name]
            out += [Token("name", f"{DECORATIONS[value]} {letter}") for letter in letters]
        elif value in (r"\text", r"\operatorname", r"\mathbb"):
            at, content = braced(text, at)
            out.append(Token("set" if value == r"\mathbb" else "text", content.strip()))
        elif value in (r"\begin", r"\end"):
            at, content = braced(text, at)
            out.append(Token(value, content.strip().rstrip("*")))
            if value == r"\begin" and content.strip() in ("array", "alignedat"):
                at = skip_columns(text, at)
        elif kind == "word" and value not in NAMES and len(value) <= SPLIT_WORD:
            out += [Token("word", letter) for letter in value]
        elif kind == "command" and value[1:] in NAMES:
            out.append(Token("word", value[1:]))
        elif value.strip():
            out.append(Token(kind, "^" if value == "**" else value))
    return out


def decorated(text: str, at: int) -> tuple[int, str]:
    """What a decoration stands over, without spaces, and where it ends."""
    while at < len(text) and text[at] == " ":
        at += 1
    if text[at : at + 1] == "{":
        at, inner = braced(text, at)
        return at, "".join(inner.split())
    match = DECORATED.match(text, at)
    if not match:
        raise SyntaxError("a decoration over nothing")
    return match.end(), match[0]


def braced(text: str, at: int) -> tuple[int, str]:
    """The group that starts at `at`, and where it ends."""
    while at < len(text) and text[at] == " ":
        at += 1
    if at >= len(text) or text[at] != "{":
        raise SyntaxError("a command without its group")
    depth = 0
    for end in range(at, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return end + 1, text[at + 1 : end]
    raise SyntaxError("a group that never ends")


def skip_columns(text: str, at: int) -> int:
    return braced(text, at)[0] if text[at:].lstrip().startswith("{") else at
