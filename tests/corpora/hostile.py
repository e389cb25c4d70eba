"""Hostile answers for a grader, made by code: payloads, crafted resource bombs and seeded fuzz. Stdlib only.

CODE_PAYLOADS: answers that would leave a file at {marker}, or print its path or a system file, if anything executed them;
    put the path in with text.replace("{marker}", path), not with format.
crafted(): (name, answer), each at most MAX_CHARS characters, that ask for unbounded time, memory or nesting.
fuzzed(count, seed): random answers, the same for the same seed; most are short, a few reach MAX_CHARS.

The words are in hostile.json. Nothing here may be evaluated: 9**9**9 stands in a string only.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MAX_CHARS = 100_000

DATA: dict[str, Any] = json.loads(Path(__file__).with_name("hostile.json").read_text(encoding="utf-8"))
CODE_PAYLOADS: list[str] = DATA["payloads"]

Case = tuple[str, str]


def nested(opening: str, core: str, closing: str, depth: int) -> str:
    """`core` inside `depth` pairs, cut to MAX_CHARS by taking fewer pairs."""
    depth = min(depth, (MAX_CHARS - len(core)) // max(1, len(opening) + len(closing)))
    return opening * depth + core + closing * depth


def filled(piece: str, size: int = MAX_CHARS) -> str:
    """`piece` again and again, at most `size` characters."""
    return piece * (size // len(piece))


def joined(separator: str, count: int, item: Callable[[int], str]) -> str:
    """`count` numbered items, at most MAX_CHARS characters, no item cut."""
    parts: list[str] = []
    size = 0
    for index in range(count):
        part = item(index)
        size += len(part) + len(separator)
        if size > MAX_CHARS:
            break
        parts.append(part)
    return separator.join(parts)


PAIRS = {
    "brace": ("{", "}"),
    "paren": ("(", ")"),
    "bracket": ("[", "]"),
    "left paren": (r"\left(", r"\right)"),
    "set": (r"\{", r"\}"),
    "frac": (r"\frac{1}{", "}"),
    "frac above": (r"\frac{", "}{2}"),
    "continued fraction": (r"1+\frac{1}{", "}"),
    "sqrt": (r"\sqrt{", "}"),
    "cube root": (r"\sqrt[3]{1+", "}"),
    "exponent": ("2^{", "}"),
    "subscript": ("x_{", "}"),
    "box": (r"\boxed{", "}"),
    "text": (r"\text{", "}"),
    "sin": (r"\sin(", ")"),
    "log": (r"\log_{2}{(", ")}"),
    "abs": (r"\left|", r"\right|"),
    "floor": (r"\lfloor ", r"\rfloor "),
    "binomial": (r"\binom{", "}{2}"),
    "matrix": (r"\begin{pmatrix}", r"\end{pmatrix}"),
    "cases": (r"\begin{cases}", r"&x>0\end{cases}"),
    "minus": ("-(", ")"),
    "product": ("2(x+", ")"),
    "factorial": ("(", ")!"),
    "derivative": (r"\frac{d}{dx}(", ")"),
    "integral": (r"\int_0^1 (", r") dx"),
    "mod": ("(", r" \bmod 7)"),
}


def nestings() -> list[Case]:
    """Balanced nesting at three depths, and floods of one half only."""
    cases: list[Case] = []
    for name, (opening, closing) in PAIRS.items():
        for depth in (60, 1_500, MAX_CHARS):
            cases.append((f"nested {name} {depth}", nested(opening, "1", closing, depth)))
    for name in ("brace", "paren", "bracket", "left paren", "frac", "sqrt", "box", "matrix", "cases", "set"):
        opening, closing = PAIRS[name]
        cases.append((f"only opened {name}", filled(opening)))
        cases.append((f"only closed {name}", filled(closing)))
    return cases


def numbers() -> list[Case]:
    """Short texts with giant values, and long digits."""
    cases = [(f"giant {text[:40]}", text) for text in DATA["giants"]]
    cases.append(("hexadecimal", "0x" + "f" * 90_000))
    long_digits = {
        "digits": filled("7"),
        "negative digits": "-" + filled("3", MAX_CHARS - 1),
        "decimal": "0." + filled("123456789", MAX_CHARS - 9),
        "repeating decimal": "0." + filled("3", MAX_CHARS - 2),
        "zeros": filled("0"),
        "one and zeros": "1" + filled("0", MAX_CHARS - 1),
        "fraction of giants": r"\frac{" + "7" * 45_000 + "}{" + "3" * 45_000 + "}",
        "semiprime": "1" * 997 + "3",
        "thousands": "1" + filled(",000", MAX_CHARS - 1),
        "digit comma": filled("1,"),
        "digit point": filled("1."),
        "digit slash": filled("1/"),
        "digit space": filled("1 "),
        "exponent of digits": "2^{" + "9" * 50_000 + "}",
        "e notation digits": "1e" + "9" * 50_000,
        "digits factorial": "9" * 5_000 + "!",
        "bang flood": "5" + filled("!", MAX_CHARS - 1),
        "root of digits": r"\sqrt{" + "8" * 60_000 + "}",
    }
    return cases + list(long_digits.items())


def algebra() -> list[Case]:
    """Expressions that are short to write and long to expand, and long ones."""
    return [
        ("power of a binomial", "(x+1)^{5000}"),
        ("power of five", "(a+b+c+d+e)^{60}"),
        ("power of powers", "((((x+1)^{20}+1)^{20}+1)^{20}+1)^{20}"),
        ("product of binomials", joined("", 5_000, lambda i: f"(x+{i})")),
        ("product of trinomials", joined("", 3_000, lambda i: f"(x+y_{{{i}}}+{i})")),
        ("factored giant", "(x^{100000}-1)/(x-1)"),
        ("difference of powers", "(x+y)^{300}-(x-y)^{300}"),
        ("symbolic power", "(x^{y^{z^{w^{v}}}})^{(a+b)^{(c+d)^{50}}}"),
        ("many terms", joined("+", 12_000, lambda i: f"{i}x^{{{i}}}")),
        ("many symbols", joined("+", 9_000, lambda i: f"x_{{{i}}}")),
        ("many roots", joined("+", 5_000, lambda i: rf"\sqrt{{{i + 2}}}")),
        ("roots in product", joined("", 40, lambda i: rf"(\sqrt{{{i * i + 2}}}+\sqrt[3]{{{i + 2}}}+1)")),
        ("many fractions", joined("+", 4_000, lambda i: rf"\frac{{1}}{{x+{i}}}")),
        ("many sines", joined("", 5_000, lambda i: rf"\sin({i}x)")),
        ("sines to a power", r"(\sin x+\cos y+\tan z)^{80}-(\cos y+\sin x+\tan z)^{80}"),
        ("tower of trig", nested(r"\sin(\cos(\tan(", "x", ")))", 300)),
        ("radical tower", nested(r"\sqrt{2+", "2", "}", 400)),
        ("factorial nest", nested("(", "3", "!)!", 40)),
        ("signs", filled("-", 50_000) + "5"),
        ("plus signs", filled("+", 50_000) + "5"),
        ("carets", "2" + filled("^2", 50_000)),
        ("stars", "2" + filled("**2", 50_000)),
        ("implicit product", filled("xy")),
        ("letters", filled("abcdefghij")),
        ("primes", "f" + filled("'", 50_000) + "(x)"),
        ("unary not", filled(r"\neg ", 50_000) + "p"),
        ("plus minus", joined("", 60, lambda i: rf"\pm {i}")),
        ("plus minus flood", filled(r"\pm 1")),
        ("equal signs", filled("=")),
        ("chain of equals", joined("=", 20_000, str)),
        ("chain of less", joined("<", 20_000, str)),
        ("chain of relations", joined(r"\le ", 10_000, lambda i: f"x_{i}")),
        ("alternating relations", filled("x<y>")),
        ("system of equations", joined(", ", 3_000, lambda i: f"x_{{{i}}}+y={i}")),
        ("equation of degree 200", "(x+1)^{200}+(y+1)^{200}=(z+1)^{200}"),
        ("inequality of degree 400", "(x-1)^{400}+\\sin(x^{400})>\\cos(e^{x})"),
        ("or chain", joined(r"\text{ or }", 5_000, lambda i: f"x={i}")),
        ("absolute values", joined("+", 24, lambda i: f"|x-{i}|") + "<7"),
        ("transcendental equation", r"x^{x^{x}}=\sin(x)^{e^{x}}+\Gamma(x)"),
        ("boolean bomb", joined(r"\land ", 3_000, lambda i: rf"(p_{{{i}}}\lor q_{{{i}}})")),
    ]


def containers() -> list[Case]:
    """Matrices, sets, intervals and piecewise functions of great size."""
    row = "&".join(["1"] * 300)
    symbols = r"\\".join("&".join(f"a_{{{i}{j}}}" for j in range(14)) for i in range(14))
    return [
        ("matrix 300", r"\begin{pmatrix}" + r"\\".join([row] * 160) + r"\end{pmatrix}"),
        ("matrix of rows", r"\begin{pmatrix}" + filled(r"1\\", 99_000) + r"\end{pmatrix}"),
        ("matrix as lists 220", "[" + ",".join(["[" + ",".join(["1"] * 220) + "]"] * 220) + "]"),
        ("ragged matrix", r"\begin{pmatrix}" + joined(r"\\", 400, lambda i: "&".join(["1"] * i)) + r"\end{pmatrix}"),
        ("determinant", rf"\det\begin{{pmatrix}}{symbols}\end{{pmatrix}}"),
        ("vertical bars", rf"\begin{{vmatrix}}{symbols}\end{{vmatrix}}"),
        ("inverse", rf"\begin{{pmatrix}}{symbols}\end{{pmatrix}}^{{-1}}"),
        ("matrix to a power", r"\begin{pmatrix}1&1\\1&0\end{pmatrix}^{10^{12}}"),
        ("symbolic matrix power", rf"\begin{{pmatrix}}{symbols}\end{{pmatrix}}^{{500}}"),
        ("set of 20000", r"\{" + joined(",", 20_000, str)[: MAX_CHARS - 20] + r"\}"),
        ("set of roots", r"\{" + joined(",", 4_000, lambda i: rf"\sqrt{{{i + 2}}}+{i}") + r"\}"),
        ("set of tuples", r"\{" + joined(",", 8_000, lambda i: f"({i},{i + 1})") + r"\}"),
        ("set of equal members", r"\{" + filled("1,", 99_000) + r"1\}"),
        ("set of near members", r"\{" + joined(",", 2_000, lambda i: rf"\sin({i})^2+\cos({i})^2") + r"\}"),
        ("dots", r"\{1,2,\ldots,10^{10^{10}}\}"),
        ("power set", r"\mathcal{P}(\{" + joined(",", 64, str) + r"\})"),
        ("cartesian product", filled(r"\{0,1\}\times ", 40_000) + r"\{0,1\}"),
        ("tuple of 20000", "(" + joined(",", 18_000, str) + ")"),
        ("list of 20000", joined(", ", 15_000, str)),
        ("union of intervals", joined(r"\cup ", 5_000, lambda i: f"({2 * i},{2 * i + 1})")),
        ("union of equal intervals", joined(r"\cup ", 7_000, lambda i: "(0,1)")),
        ("union and intersection", joined(r"\cup ", 3_000, lambda i: rf"([{i},{i + 5}]\cap ({i + 1},\infty))")),
        ("set minus", r"\mathbb{R}" + joined("", 5_000, lambda i: rf"\setminus\{{{i}\}}")),
        ("not equal", joined(r", ", 8_000, lambda i: rf"x\ne {i}")),
        (
            "piecewise 3000",
            r"\begin{cases}" + joined(r"\\", 3_000, lambda i: rf"{i}x,&{i}\le x<{i + 1}") + r"\end{cases}",
        ),
        ("piecewise giants", r"\begin{cases}9^{9^{9^9}},&x>2^{2^{40}}\\(x+1)^{9999},&x\le 2^{2^{40}}\end{cases}"),
        (
            "piecewise of polynomials",
            r"\begin{cases}" + joined(r"\\", 300, lambda i: rf"(x+1)^{{{i}}},&x^{{{i}}}>{i}") + r"\end{cases}",
        ),
        ("piecewise no rows", r"\begin{cases}" + filled(r"\\", 90_000) + r"\end{cases}"),
        ("ampersands", filled("&")),
        ("commas", filled(",")),
        ("semicolons", filled(";")),
        ("array columns", r"\begin{array}{" + filled("c", 50_000) + r"}1\end{array}"),
        ("set builder", r"\{x\mid " + joined(r"\land ", 5_000, lambda i: f"x>{i}") + r"\}"),
        ("interval of giants", r"(2^{2^{36}},9^{9^{9^9}})\cup(-\infty,-10^{10^{10}})"),
    ]


def characters() -> list[Case]:
    """Floods of single characters and commands, boxes, thinking, units and words."""
    cases = [(f"flood {name}", filled(piece)) for name, piece in DATA["pieces"].items()]
    return [
        *cases,
        ("spaces in box", r"\boxed{" + " " * 99_000 + "}"),
        ("spaces before a digit", " " * 99_999 + "5"),
        ("a and a bang", "a" * 99_999 + "!"),
        ("box after noise", filled("lorem ipsum ", 99_000) + r"\boxed{5}"),
        ("box before noise", r"\boxed{5}" + filled(" dolor sit", 99_000)),
        ("unclosed think, long", "<think>" + filled("hm ", 99_000)),
        ("think inside box", r"\boxed{" + filled("<think>", 99_000) + "}"),
        ("equals in box", r"\boxed{" + filled("=5", 99_000) + "}"),
        ("dollars around", "$" * 50_000 + "5" + "$" * 49_999),
        ("half a box", r"\boxed{" + nested("{", "5", "", 50_000)),
        ("empty", ""),
        ("one brace", "{"),
        ("lone backslash", "\\"),
        ("nul inside", r"\boxed{5" + "\0" + "6}"),
    ]


def crafted() -> list[Case]:
    """Every crafted hostile answer: (unique name, text of at most MAX_CHARS characters)."""
    return nestings() + numbers() + algebra() + containers() + characters()


VOCABULARY: list[str] = DATA["vocabulary"]
VALID: list[str] = DATA["valid"]
RANGES: list[list[int]] = [[int(end, 16) for end in pair.split("-")] for pair in DATA["ranges"]]


def soup(draw: random.Random, size: int) -> str:
    """Random words of the LaTeX vocabulary, about `size` characters."""
    return draw.choice(("", " ")).join(draw.choices(VOCABULARY, k=max(1, size // 4)))


def mutated(draw: random.Random, size: int) -> str:
    """A valid answer with up to five characters deleted, doubled, swapped in or replaced by a word."""
    text = draw.choice(VALID)
    for _ in range(draw.randint(1, 5)):
        at = draw.randint(0, len(text))
        kind = draw.randrange(4)
        if kind == 0:
            text = text[:at] + text[at + 1 :]
        elif kind == 1:
            text = text[:at] + draw.choice(VOCABULARY) + text[at:]
        elif kind == 2:
            text = text[:at] + text[at : at + 4] * 2 + text[at + 4 :]
        else:
            text = text[:at] + chr(draw.randint(32, 126)) + text[at + 1 :]
    return text


def unicode_noise(draw: random.Random, size: int) -> str:
    """Random characters of one to three Unicode ranges, digits mixed in."""
    ranges = draw.choices(RANGES, k=3)
    pool = [chr(draw.randint(*draw.choice(ranges))) for _ in range(12)] + list("15=,")
    return "".join(draw.choices(pool, k=max(1, size)))


def truncated(draw: random.Random, size: int) -> str:
    """Valid answers one after another, cut at both ends."""
    text = " ".join(draw.choices(VALID, k=max(1, size // 20)))
    start = draw.randint(0, min(20, len(text)))
    return text[start : draw.randint(start, len(text))]


def repeated(draw: random.Random, size: int) -> str:
    """A short piece again and again, with an ending or none."""
    piece = "".join(draw.choices(VOCABULARY, k=draw.randint(1, 3)))
    return piece * max(1, size // len(piece)) + draw.choice(("", "5", "}", r"\boxed{5}"))


def wrapped(draw: random.Random, size: int) -> str:
    """Soup in a box, nested a few times in valid pairs."""
    opening, closing = draw.choice(list(PAIRS.values()))
    depth = draw.choice((1, 2, 5, 30))
    return r"\boxed{" + opening * depth + soup(draw, size) + closing * depth + "}"


MAKERS = (soup, mutated, mutated, unicode_noise, truncated, repeated, wrapped)


def fuzzed(count: int, seed: int) -> Iterator[str]:
    """`count` random answers of at most MAX_CHARS characters, the same for the same seed.

    Sizes are about 3 to 80 characters; one in 50 up to 2,000, one in 1,000 between 2,000 and MAX_CHARS.
    """
    draw = random.Random(f"fuzz:{seed}")
    for index in range(count):
        largest = 2_000 if index % 50 == 49 else 80
        size = draw.randint(2_000, MAX_CHARS) if index % 1_000 == 999 else int(3 * (largest / 3) ** draw.random())
        yield draw.choice(MAKERS)(draw, size)[:MAX_CHARS]
