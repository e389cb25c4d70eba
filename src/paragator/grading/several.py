"""Answers of several parts: their members, what plus or minus stands for, and values that carry names."""

from __future__ import annotations

from itertools import product

from paragator.grading.names import is_equation, is_name, same_name
from paragator.grading.tree import Node, UnreadError
from paragator.grading.values import has

MOST_SIGNS = 4


def members(node: Node) -> list[Node] | None:
    """The items of a list, set, tuple or bracket; None for a single value."""
    if node.op in ("list", "set"):
        return list(node.args)
    if (node.op == "paren" and len(node.args) > 1) or (node.op == "paren" and node.value == "[]"):
        return list(node.args)
    return None


def both_signs(node: Node) -> list[Node]:
    """The members of a list, those with +- once for each choice of signs. With -+ all signs of a member change together."""
    out = []
    for item in (members(node) or [node]) if node.op != "paren" else [node]:
        count = sum(n.op == "pm" for n in item.walk())
        if has(item, "mp") or not 1 <= count <= MOST_SIGNS:
            choices: list[tuple[int, ...]] = [(sign,) * 99 for sign in (1, -1)] if has(item, "pm", "mp") else [()]
        else:
            choices = list(product((1, -1), repeat=count))
        out += [signed(item, list(signs)) for signs in choices]
    return out


def signed(node: Node, signs: list[int]) -> Node:
    """The tree with its +- as the next signs say."""
    if node.op in ("pm", "mp"):
        sign = signs.pop(0) if signs else 1
        inner = signed(node.args[0], signs)
        return inner if (sign > 0) == (node.op == "pm") else Node("neg", (inner,))
    return Node(node.op, tuple(signed(child, signs) for child in node.args), node.value)


def are_misnamed(reference: Node, answer: Node) -> bool:
    """Whether two lists of definitions name other things: y = x, y = 2 against y = x, w = 2; x = 1 or x = 2 against w = 1 or w = 2."""
    ours, theirs = (defined(node) for node in (reference, answer))
    if len(ours) != 1 or len(theirs) != 1:
        return bool(ours and theirs) and len(ours) != len(theirs)
    return not same_name(*ours, *theirs)


def defined(node: Node) -> set[Node]:
    """What a list of definitions defines; nothing where it is another list."""
    if node.op not in ("list", "or") or not all(
        is_equation(c) and len(c.args) == 2 and is_name(c.args[0]) for c in node.args
    ):
        return set()
    return {c.args[0] for c in node.args}


def unnumbered(answer: Node, reference: Node) -> Node:
    """x_1 = 1, x_2 = 2 as x = 1, x = 2, where a reference lists values of x alone."""
    wanted, found = defined(reference), defined(answer)
    if len(wanted) != 1 or len(found) != len(answer.args):
        return answer
    (name,) = wanted
    stems = {
        str(n.value).rstrip("0123456789").removesuffix("_") for n in found if n.op == "sym" and n.value[-1].isdigit()
    }
    if name.op != "sym" or stems != {name.value} or any(n.op != "sym" for n in found):
        return answer
    return Node(answer.op, tuple(Node(c.op, (name, *c.args[1:]), c.value) for c in answer.args), answer.value)


def are_named(items: list[Node]) -> bool:
    """Whether each is the definition of another name: x = 2, y = 3."""
    names = [item.args[0] for item in items if is_equation(item) and len(item.args) == 2 and is_name(item.args[0])]
    return len(items) > 1 and len(set(names)) == len(items)


def joined(node: Node, op: str) -> list[Node]:
    """The parts of a union of unions."""
    return [part for child in node.args for part in joined(child, op)] if node.op == op else [node]


def has_sets(node: Node) -> bool:
    """Whether a set such as Z is a factor, or part of one."""
    factors = [n for n in node.walk() if n.op in ("mul", "div", "pow")]
    return any(n.op == "sym" and str(n.value).startswith("set ") for factor in factors for n in factor.args)


def same_product(reference: Node, answer: Node) -> bool:
    """Products of groups or sets such as Z/2Z x Z/3Z, up to order; UnreadError where they differ otherwise."""
    sides = [crossed(node) for node in (reference, answer)]
    if sorted(map(repr, sides[0])) == sorted(map(repr, sides[1])):
        return True
    raise UnreadError("unsure: sets in a formula are not read")


def crossed(node: Node) -> list[Node]:
    """The factors of a x b x c. What follows a slash belongs to its factor: Z/2Z x Z."""
    return [*crossed(node.args[0]), node.args[1]] if node.op == "mul" and node.value == "x" else [node]
