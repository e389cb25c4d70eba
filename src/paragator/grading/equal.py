"""Equivalence of parsed answers, kind by kind. The reference decides what is asked for."""

from __future__ import annotations

from paragator.grading import regions, units
from paragator.grading.names import (
    as_printed,
    defines,
    folded,
    is_equation,
    is_name,
    is_renamed,
    same_argument,
    same_fonts,
    same_name,
    same_parameter,
    solutions,
    strip_names,
)
from paragator.grading.ordered import needs_order, same_ordered
from paragator.grading.quantity import difference, proportional, same_quantity, same_ratio
from paragator.grading.several import (
    are_misnamed,
    are_named,
    both_signs,
    has_sets,
    joined,
    members,
    same_product,
    unnumbered,
)
from paragator.grading.tree import Node
from paragator.grading.values import UndefinedError, exact, has, same_value, symbols, value

INEQUALITIES = frozenset(("<", ">", "<=", ">=", "!=", "in", "notin"))


def equal(reference: Node, answer: Node, kind: str | None = None) -> bool:
    """Whether `answer` is equivalent to `reference`; UndefinedError, OverLimitError or UnreadError where that cannot be decided."""
    answer = same_fonts(answer, reference)
    reference = same_fonts(reference, answer)
    if reference == answer:
        return not empty(answer)
    if answer.op == "list" and reference.op != "list" and answer.args[0].op != "rel" and len(set(answer.args)) == 1:
        answer = answer.args[0]  # the same value, repeated
    answer = unnumbered(answer, reference)
    if are_misnamed(reference, answer):
        return False
    reference, answer = solutions(reference), same_parameter(reference, solutions(answer, reference.op == "paren"))
    for node in (reference, answer):
        if is_condition(node):
            return same_condition(reference, answer)
    if is_rounded(reference) or is_rounded(answer):
        if is_false_rounding(answer):
            return False
        return any(
            equal(r, a, kind) for r in exact_parts(reference, first=False) for a in exact_parts(answer, first=True)
        )
    if is_equation(reference) or is_equation(answer):
        return same_equation(reference, answer, kind)
    if reference.op == answer.op == "rel":
        return same_relation(reference, answer)
    if has(reference, "pm", "mp") or has(answer, "pm", "mp"):
        return same_members(both_signs(reference), both_signs(answer))
    return same_object(reference, answer, kind)


def same_object(reference: Node, answer: Node, kind: str | None) -> bool:
    """Neither a condition nor an equation: cases, matrices, sets, tuples, intervals, texts, numbers."""
    if reference.op == answer.op == "case":
        return same_words(reference.args[1], answer.args[1]) and equal_or_not(reference.args[0], answer.args[0])
    if reference.op == "cases" or answer.op == "cases":
        return reference.op == answer.op and same_cases(reference, answer)
    a, b = as_rows(reference), as_rows(answer)
    if a and b:
        return same_rows(a, b)
    if a or b:
        return a == b is None or same_vector(reference, answer, a or b or [])
    if any(node.op in ("cup", "cap", "setminus", "builder") or node.value == "set R" for node in (reference, answer)):
        return same_set(reference, answer)
    ours, theirs = members(reference), members(answer)
    if ours is not None or theirs is not None:
        return same_collection(reference, answer, ours, theirs, kind)
    if reference.op == "text" or answer.op == "text":
        return reference.op == answer.op and units.plain_text(reference.value) == units.plain_text(answer.value)
    if reference.op == answer.op == "oper" and reference.value == answer.value:
        return all(equal(a, b) for a, b in zip(reference.args, answer.args, strict=True))
    if has_sets(reference) or has_sets(answer):
        return same_product(reference, answer)
    if reference.op == "ratio" and answer.op == "ratio":
        return same_ratio(reference, answer)
    return same_quantity(reference, answer) or same_quantity(reference, as_printed(reference, answer))


# ---- sets, lists, tuples, intervals


def same_collection(
    reference: Node, answer: Node, ours: list[Node] | None, theirs: list[Node] | None, kind: str | None
) -> bool:
    if ours is None or theirs is None:
        ours, theirs = ours or [reference], theirs or [answer]
        return (
            len(ours) == len(theirs) == 1
            and reference.op in ("set", "list", "sym", "num")
            and equal(ours[0], theirs[0])
        )
    ordered = reference.op == "paren" or answer.op == "paren"
    if not ordered:
        return same_members(ours, theirs)
    if len(ours) != len(theirs):
        return False
    pair = {reference.op, answer.op}
    if (
        pair == {"paren"}
        and reference.value != answer.value
        and (len(ours) == 2 or kind == "interval")
        and kind not in ("tuple", "list")
    ):
        return False
    if "set" in pair and pair != {"set"} and not (reference.op == "paren" and reference.value == "[]"):
        return False
    if "list" in pair and any(node.op == "paren" and node.value not in ("()", "[]") for node in (reference, answer)):
        return False
    return all(equal(a, b) for a, b in zip(ours, theirs, strict=True))


def same_members(ours: list[Node], theirs: list[Node]) -> bool:
    """Equal one to one in any order, with nothing missing and nothing repeated."""
    if len(ours) != len(theirs):
        return False
    if are_named(ours) != are_named(theirs) and not any(
        item.op == "rel" for item in (theirs if are_named(ours) else ours)
    ):
        return all(
            equal_or_not(a, b) for a, b in zip(ours, theirs, strict=True)
        )  # bare values stand for names in order
    left = list(theirs)
    for item in ours:
        match = next((i for i, other in enumerate(left) if equal_or_not(item, other)), None)
        if match is None:
            return False
        del left[match]
    return True


def equal_or_not(a: Node, b: Node) -> bool:
    try:
        return equal(a, b)
    except UndefinedError:
        return False


def same_set(reference: Node, answer: Node) -> bool:
    if reference.op == answer.op != "sym" and len(reference.args) == len(answer.args):
        if all(equal_or_not(a, b) for a, b in zip(reference.args, answer.args, strict=True)):
            return True
        if reference.op in ("cup", "cap") and all(
            part.op not in ("paren", "set") for n in (reference, answer) for part in n.args
        ):
            return same_members(joined(reference, reference.op), joined(answer, reference.op))
    return regions.same_region(reference, answer)


# ---- matrices


def as_rows(node: Node) -> list[list[Node]] | None:
    """The rows of a matrix, or of brackets in brackets of one length."""
    if node.op == "matrix":
        return [list(row.args) for row in node.args]
    if node.op in ("mul", "neg", "div") and sum(child.op == "matrix" for child in node.args) == 1:
        return [
            [simple(Node(node.op, tuple(cell if c.op == "matrix" else c for c in node.args))) for cell in row.args]
            for row in the_matrix(node).args
        ]
    if (
        node.op == "paren"
        and node.value == "[]"
        and node.args
        and all(c.op == "paren" and c.value == "[]" for c in node.args)
    ):
        return [list(row.args) for row in node.args]
    return None


def simple(node: Node) -> Node:
    """An entry that is a rational number, as that number."""
    found = exact(node)
    return node if found is None else Node("num", value=found)


def the_matrix(node: Node) -> Node:
    return next(child for child in node.args if child.op == "matrix")


def same_rows(a: list[list[Node]], b: list[list[Node]]) -> bool:
    if len(a) != len(b) or any(len(x) != len(y) for x, y in zip(a, b, strict=True)):
        return False
    return all(equal(x, y) for row, other in zip(a, b, strict=True) for x, y in zip(row, other, strict=True))


def same_vector(reference: Node, answer: Node, rows: list[list[Node]]) -> bool:
    """A column or a row against a tuple."""
    other = answer if reference.op == "matrix" or as_rows(reference) else reference
    items = members(other)
    if not items or other.op == "set" or other.value not in ("()", "[]", None):
        return False
    flat = [row[0] for row in rows] if all(len(row) == 1 for row in rows) else rows[0] if len(rows) == 1 else []
    return len(flat) == len(items) and all(equal(a, b) for a, b in zip(flat, items, strict=True))


# ---- equations and inequalities


def is_rounded(node: Node) -> bool:
    return node.op == "rel" and "~" in node.value and set(node.value) <= {"=", "~"}


def is_false_rounding(node: Node) -> bool:
    """12 ~ 99: the sides differ by more than a twentieth."""
    try:
        values = (
            [value(part, {}) for part in node.args[-2:]] if is_rounded(node) and not symbols(*node.args[-2:]) else []
        )
    except UndefinedError:
        return False
    return bool(values) and abs(values[0] - values[1]) > abs(values[0]) / 20


def exact_parts(node: Node, *, first: bool) -> list[Node]:
    """The values that "value ~ rounding" allows: the part before the sign; in a reference either part. x ~ 5 is x = 5."""
    if not is_rounded(node):
        return [node]
    at = node.value.index("~")
    left = Node("rel", node.args[: at + 1], node.value[:at]) if at else node.args[0]
    whole = Node("rel", node.args, ("=",) * len(node.value))
    if at == 0 and (is_name(left) or symbols(node.args[-1])):
        return [whole]  # an equation between formulas, no rounding
    return [left] if first else [left, node.args[-1]]


def is_condition(node: Node) -> bool:
    """An inequality, a membership, or several of them."""
    if node.op in ("or", "list"):
        return bool(node.args) and all(is_condition(child) for child in node.args)
    return (node.op == "rel" and bool(set(node.value) & INEQUALITIES)) or node.op == "builder"


def same_equation(reference: Node, answer: Node, kind: str | None) -> bool:
    """At least one is an equation. The left side of a single definition is ignored; all parts of a chain must agree."""
    if is_equation(reference) and is_equation(answer):
        return both_equations(reference, answer, kind) or both_equations(folded(reference), folded(answer), kind)
    if is_equation(reference):
        if not defines(reference):
            return False
        return any(equal(part, strip_names(answer), kind) for part in reference.args[1:])
    if answer.op != "rel":
        return equal(reference, strip_names(answer), kind)
    name, *values = answer.args
    if not is_name(name):
        values = list(answer.args)
    elif name.op != "call" and symbols(name) & symbols(answer.args[-1]):
        return False
    steps = all(equal(reference, item, kind) or same_step(reference, item) for item in values[:-1])
    return steps and equal(reference, values[-1], kind)


def same_step(reference: Node, step: Node) -> bool:
    """An intermediate step may be unfinished, but not false."""
    return (
        members(reference) is None and reference.op not in ("text", "matrix", "cases") and same_value(reference, step)
    )


def both_equations(reference: Node, answer: Node, kind: str | None) -> bool:
    if same_name(reference.args[0], answer.args[0]):
        answer = same_argument(reference, answer)
        return all(any(equal_or_not(r, a) for r in reference.args[1:]) for a in answer.args[1:])
    if len(reference.args) > 2 or len(answer.args) > 2:
        pairs_ = ((reference.args, answer.args), (answer.args, reference.args))
        return all(any(equal_or_not(a, b) for b in other) for one, other in pairs_ for a in one)
    (a, b), (c, d) = reference.args, answer.args
    if is_renamed(a, c, b) and equal_or_not(b, d):
        return True
    if same_name(a, d):
        return equal(b, c, kind)
    if any(not_a_number(side) for side in (a, b, c, d)):
        return (equal_or_not(a, c) and equal_or_not(b, d)) or (equal_or_not(a, d) and equal_or_not(b, c))
    if needs_order(a, b, c, d):
        ours, theirs = difference(a, b), difference(c, d)
        return same_ordered(ours, theirs) or same_ordered(ours, Node("neg", (theirs,)))
    return proportional(difference(a, b), difference(c, d), positive=False)


SYMMETRIC = frozenset(("sim", "cong", "equiv", "parallel", "perp", "leftrightarrow", "Leftrightarrow", "asymp"))
MIRRORED = {
    "supset": "subset", "supseteq": "subseteq", "supsetneq": "subsetneq", "succ": "prec", "succeq": "preceq", ">>": "<<", "from": "to",
}  # fmt: skip


def same_relation(reference: Node, answer: Node) -> bool:
    """The same sign between the same sides in order, which only some signs let change."""
    sides = []
    for node in (reference, answer):
        turned = all(sign in MIRRORED for sign in node.value)
        signs = tuple(MIRRORED.get(sign, sign) for sign in (reversed(node.value) if turned else node.value))
        sides.append((signs, node.args[::-1] if turned else node.args))
    (signs, ours), (others, theirs) = sides
    orders = [theirs, theirs[::-1]] if len(signs) == 1 and signs[0] in SYMMETRIC else [theirs]
    return signs == others and any(all(map(equal_or_not, ours, order)) for order in orders)


def not_a_number(node: Node) -> bool:
    return node.op in ("cases", "matrix", "set", "list", "text") or (node.op == "paren" and len(node.args) > 1)


def same_words(a: Node, b: Node) -> bool:
    """Two conditions; if one is in words ("n even"), they are compared word for word."""
    if has(a, "unit", "text") or has(b, "unit", "text"):
        return worded(a) == worded(b)
    return equal_or_not(a, b)


def worded(node: Node) -> str:
    said = units.plain_text(node.value).removeprefix("is ") if node.op in ("unit", "text") else str(node.value or "")
    return f"{node.op}({said},{','.join(worded(child) for child in node.args)})"


def same_condition(reference: Node, answer: Node) -> bool:
    """Inequalities, memberships and sets of one unknown by where they hold; of several unknowns, part by part up to a factor."""
    a, b = plain_membership(reference), plain_membership(answer)
    if not is_condition(a) and not is_condition(b):
        named = a is not reference and b is not answer
        return (not named or same_name(reference.args[0], answer.args[0])) and equal(a, b)
    names = [regions.variables(node) for node in (reference, answer)]
    if names[0] and names[1] and names[0] != names[1]:
        return False
    try:
        if len(names[0] | names[1]) == 1:
            return regions.same_region(reference, answer)
    except UndefinedError:
        pass
    ours, theirs = (pairs(node) for node in (reference, answer))
    return (
        len(ours) == len(theirs)
        and all(any(same_comparison(x, y) for y in theirs) for x in ours)
        and all(any(same_comparison(x, y) for x in ours) for y in theirs)
    )


def plain_membership(node: Node) -> Node:
    """x in S as S."""
    if node.op == "rel" and node.value == ("in",) and is_name(node.args[0]):
        return node.args[1]
    return node


def pairs(node: Node) -> list[tuple[Node, str, Node]]:
    """The comparisons of a chain, or of several, each as (left, sign, right) with the sign < <= = or !=."""
    if node.op in ("list", "or"):
        return [pair for child in node.args for pair in pairs(child)]
    if node.op != "rel":
        raise UndefinedError("not a comparison")
    out = []
    for left, sign, right in zip(node.args, node.value, node.args[1:], strict=False):
        turned = {">": "<", ">=": "<="}.get(sign)
        out.append((right, turned, left) if turned else (left, sign, right))
    return out


def same_comparison(a: tuple[Node, str, Node], b: tuple[Node, str, Node]) -> bool:
    if a[1] != b[1]:
        return False
    if a[1] not in ("<", "<=", "=", "!=") or not symbols(a[0], a[2], b[0], b[2]):
        return equal_or_not(a[0], b[0]) and equal_or_not(a[2], b[2])
    return proportional(difference(a[0], a[2]), difference(b[0], b[2]), positive=a[1] in ("<", "<="))


# ---- piecewise functions


def same_cases(reference: Node, answer: Node) -> bool:
    """Branch by branch at every point where something can change; conditions in words must match one by one."""
    try:
        return regions.same_branches(reference, answer)
    except UndefinedError:
        pass
    return same_members(list(reference.args), list(answer.args))


def empty(node: Node) -> bool:
    return node.op == "text" and not str(node.value).strip()
