"""Equations as definitions, and their names: x = 5, f(x) = x + 1, x = 1 or x = 2, k in Z."""

from __future__ import annotations

from paragator.grading.tree import Node
from paragator.grading.values import symbols

DIFFERENTIAL = frozenset(("d", "Delta", "delta", "partial", "dot", "ddot", "angle", "triangle"))


def is_equation(node: Node) -> bool:
    return node.op == "rel" and set(node.value) == {"="}


def is_name(node: Node) -> bool:
    """What a definition may have on its left: x, f(x), x_1, a + b, (x, y), \\text{area}; not 2x."""
    if node.op == "call":
        return node.args[0].value not in symbols(node.args[1])  # x(x - 1) is a product
    if node.op in ("sym", "text", "det", "big"):
        return True
    if node.op in ("func", "abs", "unit"):
        return bool(symbols(node)) or node.op == "unit"
    if node.op == "pow":
        return is_name(node.args[0])
    return (
        node.op in ("add", "mul", "paren", "list", "div", "set", "ratio")
        and bool(node.args)
        and all(is_name(child) for child in node.args)
    )


def defines(equation: Node) -> bool:
    """Whether an equation only defines its left side, so that the right side is the answer; x^2 + y^2 = 25 does not."""
    name, last = equation.args[0], equation.args[-1]
    if not is_name(name):
        return False
    if is_one_thing(name):
        return True
    return bool(symbols(last)) and not symbols(last) & symbols(name)


def is_one_thing(node: Node) -> bool:
    """x, f(x), (x, y), AB, Delta x, dy/dx, <s>: one quantity, whatever letters it is written with."""
    if node.op in ("paren", "list", "ratio"):
        return all(is_one_thing(child) for child in node.args)
    if node.op == "mul":
        letters = [child.value for child in factors(node) if child.op == "sym"]
        return len(letters) == len(factors(node)) and (
            letters[0] in DIFFERENTIAL or all(x[0].isupper() for x in letters)
        )
    if node.op == "div":
        return all(is_one_thing(child) and (child.op == "mul" or str(child.value)[0].isupper()) for child in node.args)
    if node.op == "abs":
        return node.args[0].op == "mul" and is_one_thing(node.args[0])
    return node.op in ("sym", "call", "text", "det", "unit", "big")


def factors(node: Node) -> list[Node]:
    return [leaf for child in node.args for leaf in factors(child)] if node.op == "mul" else [node]


def same_name(a: Node, b: Node) -> bool:
    """What is defined: the same name, or y and f(x), or one that differs only in case or by a subscript that one of them omits."""
    if not is_name(a) or not is_name(b):
        return False
    if a == b:
        return True
    if a.op == b.op == "call" and a.args[1] != b.args[1]:
        return a.args[0] == b.args[0] and all(n.args[1].op == "sym" and str(n.args[1].value).islower() for n in (a, b))
    heads = [node.args[0] if node.op == "call" else node for node in (a, b)]
    if any(head.op != "sym" for head in heads):
        return False
    first, second = (str(head.value).casefold() for head in heads)
    if first == second or {first, second} == {"y", "f"}:
        return True
    (stem, _, below), (other, _, index) = first.partition("_"), second.partition("_")
    parts = [text.removeprefix("list(").removesuffix(")").split(",") for text in (below, index)]
    return stem == other and (
        not below or not index or parts[0] == parts[1][: len(parts[0])] or parts[1] == parts[0][: len(parts[1])]
    )


def is_renamed(a: Node, b: Node, formula: Node) -> bool:
    """Two names for what a formula of several unknowns defines: sigma_p and sigma_b, a word for a letter, a letter for a sum."""
    names = symbols(formula)
    if len(names) < 2 or (symbols(a) | symbols(b)) & names:
        return False
    if {"text", "add"} & {a.op, b.op}:
        return a.op != b.op and all(node.op in ("sym", "call", "text", "add") for node in (a, b))
    heads = [node.args[0] if node.op == "call" else node for node in (a, b)]
    if any(head.op != "sym" for head in heads):
        return False
    (stem, _, below), (other, _, index) = (str(head.value).partition("_") for head in heads)
    return stem == other and all(len(part) == 1 and part.isalpha() for part in (below, index))


def folded(node: Node) -> Node:
    """With its names in lower case, as long as that merges none."""
    names = symbols(node)
    return lowered(node) if len({name.casefold() for name in names}) == len(names) else node


def lowered(node: Node) -> Node:
    args = tuple(lowered(child) for child in node.args)
    return Node(
        node.op, args, node.value.casefold() if node.op == "sym" and not node.value.startswith("set ") else node.value
    )


def solutions(node: Node, any_name: bool = False) -> Node:
    """x = 1 or x = 2, as the list 1, 2; other names may differ too where a tuple is asked for."""
    if node.op not in ("list", "or") or not all(is_equation(c) and len(c.args) == 2 and defines(c) for c in node.args):
        return node
    if not any_name and len({c.args[0] for c in node.args}) > 1:
        return node
    children = (
        sorted(node.args, key=lambda c: str(c.args[0].value))
        if any_name and all(c.args[0].op == "sym" for c in node.args)
        else node.args
    )
    return Node("list", tuple(child.args[1] for child in children))


def parameter(node: Node) -> str | None:
    """k of "..., k in Z"."""
    last = node.args[-1] if node.op == "list" and len(node.args) > 1 else None
    if (
        last is None
        or last.op != "rel"
        or last.value != ("in",)
        or last.args[1].value != "set Z"
        or last.args[0].op != "sym"
    ):
        return None
    return str(last.args[0].value)


def same_parameter(reference: Node, answer: Node) -> Node:
    """The answer, its integer parameter named as in the reference."""
    ours, theirs = parameter(reference), parameter(answer)
    return renamed(answer, theirs, ours) if ours and theirs and ours not in symbols(answer) else answer


def as_printed(reference: Node, answer: Node) -> Node:
    """The answer with E and I for e and i, as computer algebra prints them, where the reference does not use those letters."""
    for printed, constant in (("E", "e"), ("I", "i")):
        if printed in symbols(answer) and printed not in symbols(reference):
            answer = renamed(answer, printed, constant)
    return answer


def same_argument(reference: Node, answer: Node) -> Node:
    """f(t) = ..., written as f(x) = ... where the reference calls its variable x."""
    ours, theirs = reference.args[0], answer.args[0]
    if ours.op == theirs.op == "call" and ours.args[1].op == theirs.args[1].op == "sym":
        new, old = str(ours.args[1].value), str(theirs.args[1].value)
        return renamed(renamed(answer, new, f"{new} "), old, new) if new != old else answer
    return answer


def renamed(node: Node, old: str, new: str) -> Node:
    if node.op == "sym" and node.value == old:
        return Node("sym", value=new)
    return Node(node.op, tuple(renamed(child, old, new) for child in node.args), node.value)


FONTS = ("bold ", "calligraphic ", "fraktur ")


def same_fonts(node: Node, other: Node) -> Node:
    """The tree with its names in the font that the other one writes them in, as long as no name is written in two."""
    ours, theirs = ({str(n.value) for n in tree.walk() if n.op == "sym"} for tree in (node, other))
    for name in theirs - ours:
        font = next((font for font in (*FONTS, "vec ") if name.startswith(font)), None)
        if font is None:
            continue
        plain = name.removeprefix(font)
        spellings = [plain] if font != "vec " else []
        spellings += [other_font + plain for other_font in (*FONTS, "vec ") if other_font != font]
        found = [spelling for spelling in spellings if spelling in ours]
        if len(found) == 1 and found[0] not in theirs and not (found[0].startswith("vec ") and plain in ours):
            node = renamed(node, found[0], name)
    return node


def strip_names(node: Node) -> Node:
    """x = 1, x = 2  or  x = 1, 2  as the list 1, 2."""
    if node.op in ("list", "or", "set"):
        return Node(
            "list" if node.op == "or" else node.op, tuple(strip_names(child) for child in node.args), node.value
        )
    return node.args[-1] if is_equation(node) and len(node.args) == 2 and is_name(node.args[0]) else node
