"""Parser functions for operands: brackets, fractions, bars, sets, LaTeX environments. Each reads from an AnswerReader."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

from paragator.grading.tree import Node

if TYPE_CHECKING:
    from paragator.grading.syntax import AnswerReader

NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?")
MATRICES = (
    "matrix",
    "pmatrix",
    "bmatrix",
    "Bmatrix",
    "smallmatrix",
    "vmatrix",
    "array",
    "aligned",
    "align",
    "gathered",
    "split",
)
BIG = ("sum", "prod", "int", "iint", "iiint", "oint", "lim", "limsup", "liminf", "sup", "inf", "bigcap")
CASES = ("cases", "dcases", "rcases")


def fraction(r: AnswerReader) -> Node:
    r.at += 1
    return Node("div", (r.argument(), r.argument()))


def binomial(r: AnswerReader) -> Node:
    r.at += 1
    return Node("func", (r.argument(), r.argument()), "binom")


def square_root(r: AnswerReader) -> Node:
    r.at += 1
    return r.root("sqrt")


def brackets(r: AnswerReader) -> Node:
    """(a), (a, b), [a, b), [[a], [b]]."""
    opening = r.take("(", "[")
    if r.peek(1) == ")" and (sign := r.take("+", "-")):
        r.need(")")
        return Node("text", value=sign)
    bars, r.bars = r.bars, 0
    inner = r.alternatives()
    r.bars = bars
    closing = r.take(")", "]")
    if not closing:
        raise SyntaxError("a bracket that never closes")
    items = inner.args if inner.op == "list" else (inner,)
    if len(items) == 1 and (inner.op == "matrix" or (opening == "(" and closing == ")")):
        return inner
    return Node("paren", items, opening + closing)


def braces(r: AnswerReader) -> Node:
    r"""\{a, b\} or \{x | condition\}; a \{ before an array opens cases."""
    r.at += 1
    if r.peek() == r"\begin":
        rows = environment_rows(r)
        r.take(r"\}")
        return as_cases(rows)
    if r.take(r"\}"):
        return Node("set")
    r.bars += 1
    inner = r.alternatives()
    if r.take("|", ":", r"\|"):
        inner = Node("builder", (inner, r.alternatives()))
    r.bars -= 1
    r.need(r"\}")
    if inner.op == "builder":
        return inner
    return Node("set", inner.args if inner.op == "list" else (inner,))


def bar(r: AnswerReader) -> Node:
    closing = r.take("|", r"\|")
    bars, r.bars = r.bars, r.bars + 1
    inner = r.sum()
    r.bars = bars
    r.need(closing)
    return Node("abs", (inner,))


def between(r: AnswerReader) -> Node:
    closing = {r"\lfloor": (r"\rfloor", "floor"), r"\lceil": (r"\rceil", "ceil")}[r.take(r"\lfloor", r"\lceil")]
    inner = r.sum()
    r.need(closing[0])
    return Node("func", (inner,), closing[1])


def named_set(r: AnswerReader) -> Node:
    r.at += 1
    return r.subscripted(Node("sym", value=f"set {r.tokens[r.at - 1].value}"))


def named(r: AnswerReader) -> Node:
    """A decorated letter: another name than the letter."""
    return r.subscripted(Node("sym", value=r.text()))


def empty_set(r: AnswerReader) -> Node:
    r.at += 1
    return Node("set")


def big(r: AnswerReader) -> Node:
    """A sum, product, integral or limit: (body, lower, upper), parsed but never computed."""
    name = r.peek()
    r.at += 1
    bounds = {"_": Node("text", value=""), "^": Node("text", value="")}
    while sign := r.take("_", "^"):
        bounds[sign] = r.group() if r.peek() == "{" else r.atom()
    return Node("big", (r.product(), bounds["_"], bounds["^"]), name[1:])


def modulus(r: AnswerReader) -> Node:
    r.at += 1
    return Node("func", (r.argument(),), "pmod")


def words(r: AnswerReader) -> Node:
    words_ = r.text()
    if words_.strip().lower() in ("all real numbers", "all reals", "real numbers", "reals"):
        return Node("sym", value="set R")
    number = NUMBER.fullmatch(words_.strip())
    return Node("num", value=Fraction(number[0].replace(",", ""))) if number else Node("text", value=words_)


# ---- environments


def environment(r: AnswerReader) -> Node:
    name = r.tokens[r.at].value
    rows = environment_rows(r)
    if name in CASES:
        return as_cases(rows)
    node = Node("matrix", tuple(Node("row", tuple(row)) for row in rows))
    return Node("det", (node,)) if name == "vmatrix" else node


def environment_rows(r: AnswerReader) -> list[list[Node]]:
    name = r.tokens[r.at].value
    if name not in MATRICES and name not in CASES:
        raise SyntaxError(f"environment {name!r} is not supported")
    r.at += 1
    rows: list[list[Node]] = [[]]
    bars, r.bars = r.bars, 0
    while r.peek() != r"\end":
        if r.peek().startswith("\\\\"):
            r.at += 1
            rows.append([])
        elif not r.take("&", r"\hline"):
            rows[-1].append(cell(r))
    r.bars = bars
    r.at += 1
    if not (filled := [row for row in rows if row]):
        raise SyntaxError(f"an empty {name}")
    return filled


def cell(r: AnswerReader) -> Node:
    if r.take("otherwise"):
        r.take(",", ".")
        return Node("text", value="otherwise")
    r.take("if")
    node = cell_content(r)
    while r.take(",", ";", "if", "."):
        pass
    return node


def cell_content(r: AnswerReader) -> Node:
    """A cell: commas inside it separate a list only where another relation follows."""
    items, separators = [r.relation()], set()
    while r.peek() in (",", ";", "or", "and") and not (
        r.peek(1) in ("&", "if", "otherwise", r"\end", "text") or r.peek(1).startswith("\\\\")
    ):
        separators.add(r.take(",", ";", "or", "and"))
        items.append(r.relation())
    return items[0] if len(items) == 1 else Node("or" if "or" in separators else "list", tuple(items))


def as_cases(rows: list[list[Node]]) -> Node:
    """Rows of (value, condition); a row without a condition is "otherwise"."""
    if all(len(row) == 1 and row[0].op == "rel" for row in rows):
        return Node("list", tuple(row[0] for row in rows), "and")  # a system
    cases = []
    for row in rows:
        value, *conditions = row
        if value.op == "list" and not conditions:
            value, *conditions = value.args
        if value.op == "unit" and not conditions:
            value, conditions = value.args[0], [Node("text", value=value.value)]
        condition = (
            Node("text", value="otherwise")
            if not conditions
            else conditions[0]
            if len(conditions) == 1
            else Node("list", tuple(conditions))
        )
        cases.append(Node("case", (value, condition)))
    return Node("cases", tuple(cases))


ATOMS: dict[str, Callable[[AnswerReader], Node]] = {
    "number": lambda r: r.number(), "word": lambda r: r.word(), "name": named,
    "set": named_set, "text": words, "(": brackets, "[": brackets,
    "{": lambda r: r.group(), r"\{": braces, "|": bar, r"\|": bar, r"\frac": fraction, r"\binom": binomial,
    r"\sqrt": square_root, r"\lfloor": between, r"\lceil": between,
    r"\begin": environment,
    **{f"\\{name}": big for name in BIG},
    r"\emptyset": empty_set, r"\pmod": modulus, r"\bmod": modulus, "otherwise": words,
}  # fmt: skip
