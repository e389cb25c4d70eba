"""Equality of numbers and expressions, with units and percent signs, and of equations up to a factor."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from paragator.grading import units
from paragator.grading.tree import Node
from paragator.grading.values import Env, UndefinedError, close, exact, has, mp, points, same_value, symbols, value


def same_quantity(reference: Node, answer: Node) -> bool:
    """Numbers and expressions. A unit, a percent or a degree sign that only one side has is taken as understood."""
    if (
        reference.op == "unit"
        and answer.op == "unit"
        and units.is_unit(reference.value)
        and units.is_unit(answer.value)
    ):
        return same_units(reference, answer)
    if not all(units.is_unit(node.value) for node in (reference, answer) if node.op == "unit"):
        return reference == answer
    if {reference.op, answer.op} == {"unit", "percent"}:
        return False
    if reference.op == "unit" or answer.op == "unit":
        return same_quantity(without(reference, "unit"), without(answer, "unit"))
    if reference.op == "sym" and answer.op == "num" and reference.value.partition("_")[0].isdigit():
        return bool(reference.value.partition("_")[0] == str(answer.value))  # the base is omitted
    if not symbols(reference) and symbols(answer):
        return False
    if reference.op == "num" and unfinished(answer):
        return False
    if same_value(reference, answer) or rounds_to(reference, answer):
        return True
    for sign in ("percent", "deg"):
        if has(reference, sign) != has(answer, sign):
            return same_value(without(reference, sign), without(answer, sign))
    return False


def rounds_to(reference: Node, answer: Node) -> bool:
    """A reference of four or more decimal digits is taken as rounded; an exact answer within one unit of its last digit equals it."""
    wanted, found = exact(reference), exact(answer)
    if wanted is None or (found is not None and is_decimal(found)) or not is_decimal(wanted) or symbols(answer):
        return False
    places = next(p for p in range(60) if (wanted * 10**p).denominator == 1)
    if places == 0 or len(str(abs(int(wanted * 10**places)))) < 4:
        return False
    there = value(answer, {})
    return bool(abs(there - mp.mpf(wanted.numerator) / wanted.denominator) <= mp.mpf(10) ** -places)


def is_decimal(number: Fraction) -> bool:
    """Whether its decimal digits end (within 60)."""
    return 10**60 % number.denominator == 0


def without(node: Node, op: str) -> Node:
    if node.op == op:
        return without(node.args[0], op)
    if node.op in ("neg", "add", "list", "set", "paren"):
        return Node(node.op, tuple(without(child, op) for child in node.args), node.value)
    return node


def same_units(reference: Node, answer: Node) -> bool:
    """The same unit, or one that converts; a word that only says what is counted may differ."""
    ours, theirs = units.canonical(reference.value), units.canonical(answer.value)
    a, b = reference.args[0], answer.args[0]
    if ours == theirs:
        return same_quantity(a, b)
    if isinstance(ours, str) and isinstance(theirs, str):
        return not set("^/") & set(ours + theirs) and same_quantity(a, b)
    if isinstance(ours, str) or isinstance(theirs, str) or ours[0] != theirs[0]:
        return False
    return same_value(Node("mul", (a, Node("num", value=ours[1]))), Node("mul", (b, Node("num", value=theirs[1]))))


def unfinished(node: Node) -> bool:
    """A sum, difference or product of bare integers: the question, or a step on the way, rather than an answer."""
    if node.op in ("neg", "paren") and node.args:
        return unfinished(node.args[0])
    if node.op not in ("add", "mul"):
        return False
    terms = leaves(node, node.op)
    if node.op == "mul" and any(t.op == "pow" for t in terms):
        return False
    return len(terms) > 1 and all(t.op == "num" or (t.op == "neg" and t.args[0].op == "num") for t in terms)


def leaves(node: Node, op: str) -> list[Node]:
    return [leaf for child in node.args for leaf in leaves(child, op)] if node.op == op else [node]


def same_ratio(reference: Node, answer: Node) -> bool:
    a, b = reference.args, answer.args
    if any(exact(part) == 0 for part in (*a, *b)):
        return len(a) == len(b) and all(same_value(x, y) for x, y in zip(a, b, strict=True))
    return len(a) == len(b) and all(
        same_value(Node("mul", (a[0], y)), Node("mul", (b[0], x))) for x, y in zip(a, b, strict=True)
    )


def difference(a: Node, b: Node) -> Node:
    return Node("add", (a, Node("neg", (b,))))


def proportional(f: Node, g: Node, *, positive: bool) -> bool:
    """Whether f = c g for one constant c, positive where asked; elsewhere c may hold powers of unknowns that cannot be zero."""
    names = symbols(f, g)
    if not names or symbols(f) != symbols(g):
        return False
    envs = list(points(names))
    ratios = [ratio(f, g, env) for env in envs]
    known = [(r, env) for r, env in zip(ratios, envs, strict=True) if r is not None]
    if len(known) < 2 or any(r == 0 for r, _ in known):
        return False
    if positive:
        return all(close(r, known[0][0]) for r, _ in known) and mp.re(known[0][0]) > 0
    powers = {name: factor_power(f, g, name) for name in names}
    if None in powers.values():
        return False
    rests = [r / mp.fprod(env[name] ** power for name, power in powers.items()) for r, env in known]
    return all(close(rest, rests[0]) for rest in rests)


def ratio(f: Node, g: Node, env: Env) -> Any:
    """f / g at a point; 0 where either is zero by accident or everywhere, None where it has no value."""
    try:
        a, b = value(f, env), value(g, env)
    except UndefinedError:
        return None
    return mp.mpf(0) if min(abs(a), abs(b)) < mp.mpf(10) ** -30 else a / b


def factor_power(f: Node, g: Node, name: str) -> int | None:
    """k where f / g holds `name` only as name^k, and name = 0 solves neither f = 0 nor g = 0; None otherwise."""
    powers = set()
    for env in points(symbols(f, g)):
        first, second = ratio(f, g, env), ratio(f, g, {**env, name: 2 * env[name]})
        if not first or not second:
            continue
        power = mp.log(abs(second / first)) / mp.log(2)
        powers.add(int(mp.nint(power)) if abs(power - mp.nint(power)) < mp.mpf(10) ** -20 else None)
    if len(powers) != 1 or None in powers:
        return None
    (found,) = powers
    env = {**next(points(symbols(f, g))), name: mp.mpf(0)}
    for side in (f, g) if found else ():
        try:
            if abs(value(side, env)) < mp.mpf(10) ** -30:
                return None
        except UndefinedError:
            pass
    return found
