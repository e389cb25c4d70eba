"""Expression trees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class UnreadError(Exception):
    """The rules cannot say whether two answers are equal; the text says why, and a judge may decide."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of an answer's expression tree.

    num (value: Fraction)  sym (value: name)  text (value)  unit (1 child, value: text)
    add, mul, div, pow, neg, pm (+-), mp, fact, fact2, percent, deg, abs, call (name, argument), func (value: name)
    list (bare, with commas)  paren (value: its two brackets)  set  ratio
    rel (value: the signs between the children)  or  builder (item, condition)  cup, cap, setminus
    big (children: body, lower, upper; value: sum, prod, int, lim, ...)
    oper (two children; value: an operator of which only the order is known)
    matrix (children: rows)  row  det  cases (children: case)  case (value, condition)
    """

    op: str
    args: tuple[Node, ...] = ()
    value: Any = None

    def walk(self) -> list[Node]:
        """This node and all below it."""
        out, stack = [], [self]
        while stack:
            node = stack.pop()
            out.append(node)
            stack.extend(node.args)
        return out


def flat(node: Node) -> str:
    """A subscript as text."""
    if node.op in ("num", "sym", "text"):
        return str(node.value)
    return node.op + "(" + ",".join(flat(child) for child in node.args) + ")"
