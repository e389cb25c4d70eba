"""Evaluation of expression trees: exact for rational numbers, else to 100 digits. Every operation is bounded."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import chain
from typing import Any

import mpmath

from paragator.grading.calls import is_function
from paragator.grading.ordered import needs_order, same_ordered
from paragator.grading.tidy import OverLimitError
from paragator.grading.tree import Node

DIGITS = 100
TOLERANCE = 75
"""Digits in which two values must agree."""
MAX_EXPONENT = 100_000
MAX_FACTORIAL = 3_000
MAX_BITS = 20_000
mp = mpmath.MPContext()
mp.dps = DIGITS
Env = Mapping[str, Any]


class UndefinedError(Exception):
    """The tree has no value here: a division by zero, a logarithm of zero, a sign that is not arithmetic."""


CONSTANTS = {"pi": mp.pi, "e": mp.e, "i": mp.mpc(0, 1), "infty": mp.inf}
TRIGONOMETRIC = {
    name: getattr(mp, name) for name in ["sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth"]
}
INVERSE = {
    "arcsin": mp.asin, "arccos": mp.acos, "arctan": mp.atan, "arccot": mp.acot, "arcsinh": mp.asinh, "arccosh": mp.acosh,
    "arctanh": mp.atanh, "asin": mp.asin, "acos": mp.acos, "atan": mp.atan, "arcsec": mp.asec, "arccsc": mp.acsc,
}  # fmt: skip


def exact(node: Node) -> Fraction | None:
    """The rational value of a tree of numbers under + - * / ^ ! and %, or None; OverLimitError when it would be huge."""
    match node.op:
        case "num":
            number: Fraction = node.value
            return number
        case "percent":
            inner = exact(node.args[0])
            return None if inner is None else inner / 100
        case "unit":
            return exact(node.args[0])
        case "paren" if node.value == "[]" and len(node.args) == 1:
            return exact(node.args[0])
        case "add" | "mul" | "div" | "pow" | "neg" | "fact":
            parts = [exact(child) for child in node.args]
            if any(part is None for part in parts):
                return None
            return operate(node.op, [part for part in parts if part is not None])
        case "func" if node.value in ("binom", "gcd", "lcm", "max", "min", "floor", "ceil"):
            parts = [exact(child) for child in node.args]
            return None if None in parts else whole_function(node.value, [p for p in parts if p is not None])
    return None


def operate(op: str, parts: list[Fraction]) -> Fraction | None:
    match op, parts:
        case "add", [a, b]:
            return a + b
        case "neg", [a]:
            return -a
        case "mul", [a, b]:
            return bounded(a * b)
        case "div", [a, b]:
            if b == 0:
                raise UndefinedError("division by zero")
            return bounded(a / b)
        case "fact", [a]:
            if a.denominator != 1 or a < 0:
                return None
            if a > MAX_FACTORIAL:
                raise OverLimitError(f"over the limits: a factorial above {MAX_FACTORIAL}!")
            return Fraction(math.factorial(int(a)))
        case "pow", [a, b]:
            if b.denominator != 1:
                return None
            if a == 0 and b <= 0:
                raise UndefinedError("zero to a power that is not positive")
            size = max(abs(a.numerator), a.denominator).bit_length()
            if abs(b) * (size if abs(a) != 1 else 0) > MAX_BITS * 4:
                raise OverLimitError("over the limits: a power of more than 80,000 bits")
            return a ** int(b) if abs(a) != 1 else (a if int(b) % 2 else Fraction(1))
    return None


def bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS * 8:
        raise OverLimitError("over the limits: a number of more than 160,000 bits")
    return value


def whole_function(name: str, parts: list[Fraction]) -> Fraction | None:
    if name in ("max", "min"):
        return max(parts) if name == "max" else min(parts)
    if name in ("floor", "ceil"):
        return Fraction(math.floor(parts[0]) if name == "floor" else math.ceil(parts[0]))
    if any(part.denominator != 1 for part in parts):
        return None
    values = [int(part) for part in parts]
    if name in ("gcd", "lcm"):
        return Fraction(math.gcd(*values) if name == "gcd" else math.lcm(*values))
    if len(values) != 2 or values[0] < 0 or values[1] < 0:
        return None
    if values[0] > MAX_FACTORIAL:
        raise OverLimitError(f"over the limits: a binomial coefficient above {MAX_FACTORIAL}")
    return Fraction(math.comb(*values))


def value(node: Node, env: Env) -> Any:
    """The complex value of a tree for an assignment of its symbols; UndefinedError where there is none.

    env["+-"] is the sign that \\pm takes.
    """
    if node.op == "num" or (node.op == "func" and node.value in ("gcd", "lcm")):
        found = exact(node)
        if found is None:
            raise UndefinedError(f"{node.value} of a non-integer")
        return mp.mpf(found.numerator) / found.denominator
    try:
        result = compute(node, env)
    except (ArithmeticError, KeyError, TypeError, ValueError, mp.NoConvergence) as error:
        raise UndefinedError(str(error)) from None
    if mp.isnan(result):
        raise UndefinedError("not a number")
    return result


KNOWN: dict[str, Any] = {"Gamma": mp.gamma, "zeta": mp.zeta}
"""Functions with a Greek name that are computed."""
MOST_ARGUMENT = 1_000


def opaque(node: Node, env: Env) -> Any:
    """An unknown function's value: any number will do, as long as equal arguments give the same one."""
    head = node.args[0].value if node.op == "call" else node.value
    said = []
    for argument in node.args[1:] if node.op == "call" else node.args:
        for part in argument.args if argument.op == "paren" else (argument,):
            try:
                said.append(mp.nstr(value(part, env), 30))
            except UndefinedError:
                said.append(repr(sorted(map(repr, part.args)) if part.op in ("cap", "cup") else part))
    return mp.mpf(random.Random(f"{head}({','.join(said)}){env.get('#')}").uniform(0.3, 3))


def compute(node: Node, env: Env) -> Any:
    op, args = node.op, node.args
    if is_function(node):
        argument = value(args[1], env) if args[0].value in KNOWN and args[1].op != "paren" else None
        known = argument is not None and abs(argument) <= MOST_ARGUMENT
        return KNOWN[args[0].value](argument) if known else opaque(node, env)
    if op == "oper":
        return opaque(node, env)
    if op == "big":
        parts = [value(args[0], env), *(bound(child, env) for child in args[1:])]
        said = ",".join(part if isinstance(part, str) else mp.nstr(part, 30) for part in parts)
        return mp.mpf(random.Random(f"{node.value}:{said}:{env.get('#')}").uniform(0.3, 3))
    if op == "sym":
        if node.value in CONSTANTS and node.value not in env:
            return +CONSTANTS[node.value]
        if node.value not in env:
            raise UndefinedError(f"{node.value!r} has no value")
        return env[node.value]
    if op == "func":
        return function(node, [value(child, env) for child in args])
    if op == "det":
        return mp.det(mp.matrix([[value(cell, env) for cell in row.args] for row in args[0].args]))
    if (op == "paren" and len(args) > 1) or op not in ARITHMETIC:
        raise UndefinedError(f"{op} has no numeric value")
    return ARITHMETIC[op](*(value(child, env) for child in args), env)


def bound(node: Node, env: Env) -> Any:
    """A limit of a sum as what it is equal to: of k = 1 the name and the value."""
    if node.op == "text":
        return str(node.value)
    if node.op == "rel":
        return ",".join(mp.nstr(value(child, env), 30) for child in node.args) + "".join(node.value)
    return value(node, env)


def power(a: Any, b: Any, env: Env) -> Any:
    if abs(b) > MAX_EXPONENT or (abs(a) > 1e9 and abs(b) > 1000):
        raise OverLimitError(f"over the limits: an exponent above {MAX_EXPONENT}")
    return small(mp.power(a, b))


def factorial(a: Any, env: Env) -> Any:
    if abs(a) > MAX_FACTORIAL:
        raise OverLimitError(f"over the limits: a factorial above {MAX_FACTORIAL}!")
    return mp.factorial(a)


def double_factorial(a: Any, env: Env) -> Any:
    if abs(a) > MAX_FACTORIAL:
        raise OverLimitError(f"over the limits: a factorial above {MAX_FACTORIAL}!")
    return mp.fac2(a)


def divide(a: Any, b: Any, env: Env) -> Any:
    if b == 0:
        raise UndefinedError("division by zero")
    return a / b


def small(a: Any) -> Any:
    """A value whose logarithm fits; mpmath's own exponents would grow without end."""
    if a != 0 and not mp.isinf(a) and abs(mp.mag(a)) > 10_000_000:
        raise OverLimitError("over the limits: a number of more than 10 million bits")
    return a


ARITHMETIC: dict[str, Any] = {
    "add": lambda a, b, env: a + b,
    "mul": lambda a, b, env: small(a * b),
    "call": lambda a, b, env: small(a * b),
    "div": divide,
    "neg": lambda a, env: -a,
    "pow": power,
    "fact": factorial,
    "fact2": double_factorial,
    "percent": lambda a, env: a / 100,
    "deg": lambda a, env: a * mp.pi / 180,
    "unit": lambda a, env: a,
    "paren": lambda a, env: a,
    "abs": lambda a, env: abs(a),
    "pm": lambda a, env: env["+-"] * a,
    "mp": lambda a, env: -env["+-"] * a,
    "ratio": divide,
}


def function(node: Node, args: list[Any]) -> Any:
    name = node.value
    for arg in args:
        if abs(arg) > 1e12 and name not in ("ln", "log", "lg", "root", "max", "min", "abs"):
            raise OverLimitError(f"over the limits: {name} of a number above 10^12")
    match name, args:
        case ("ln", [a]) | ("log", [a]):
            return mp.log(a)
        case ("log", [a, base]):
            return mp.log(a) / mp.log(base)
        case ("lg", [a]):
            return mp.log(a) / mp.log(10)
        case ("exp", [a]):
            return power(mp.e, a, {})
        case ("root", [a, n]):
            if a.imag == 0 and a.real < 0 and n == int(n.real) and int(n.real) % 2:
                return -mp.root(-a.real, int(n.real))
            return mp.power(a, 1 / n)
        case ("abs", [a]):
            return abs(a)
        case ("Re", [a]):
            return mp.re(a)
        case ("Im", [a]):
            return mp.im(a)
        case ("sgn" | "sign", [a]):
            return mp.sign(a)
        case (("floor" | "ceil"), [a]):
            return mp.floor(mp.re(a)) if name == "floor" else mp.ceil(mp.re(a))
        case (("max" | "min"), _) if all(mp.im(a) == 0 for a in args):
            return (max if name == "max" else min)(mp.re(a) for a in args)
        case ("binom", [a, b]) if abs(a) <= MAX_FACTORIAL:
            return mp.binomial(a, b)
        case (_, [a]) if name in TRIGONOMETRIC:
            return TRIGONOMETRIC[name](a)
        case (_, [a]) if name in INVERSE:
            return INVERSE[name](a)
    raise UndefinedError(f"{name} of {len(args)} arguments")


def close(a: Any, b: Any) -> bool:
    """Equal to 75 digits, relatively; an infinity equals itself."""
    if mp.isinf(a) or mp.isinf(b):
        return bool(a == b)
    scale = max(abs(a), abs(b))
    return (
        bool(abs(a - b) <= scale * mp.mpf(10) ** -TOLERANCE)
        if scale > 1
        else bool(abs(a - b) <= mp.mpf(10) ** -TOLERANCE)
    )


def symbols(*nodes: Node) -> set[str]:
    """The names that a tree's value depends on; an unknown function's as "f()"."""
    found: set[str] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node.op == "sym" and node.value not in CONSTANTS:
            found.add(str(node.value))
        function_ = is_function(node)
        if function_ and node.args[0].value not in KNOWN:
            found.add(f"{node.args[0].value}()")
        stack.extend(node.args[1:] if function_ else node.args)
    return found


def has(node: Node, *ops: str) -> bool:
    return any(n.op in ops for n in node.walk())


RANGES = ((0.3, 0.95), (1.1, 2.9), (-2.9, -1.1), (3.1, 9.7), (-0.95, -0.2), (0.4, 3.3))


def points(names: set[str]) -> Iterator[dict[str, Any]]:
    """Fixed assignments at which no identity holds by accident: positive, negative and mixed ones."""
    for index, span in enumerate(RANGES):
        env: dict[str, Any] = {"#": index}
        for name in sorted(names):
            low, high = span if index < 5 else RANGES[random.Random(name).randrange(5)]
            env[name] = mp.mpf(random.Random(f"{index}:{name}").uniform(low, high)) + mp.mpf(1) / 10**20
        yield env


KINKED_FUNCTIONS = ("floor", "ceil", "max", "min", "sgn", "sign", "root", "abs")


def has_kinks(node: Node) -> bool:
    """Whether its formula may change from place to place."""
    return any(n.op == "abs" or (n.op == "func" and n.value in KINKED_FUNCTIONS) for n in node.walk())


def far_points(names: set[str], *nodes: Node) -> Iterator[dict[str, Any]]:
    """Large assignments, alike and different for each name, and some on either side of each number in the trees."""
    numbers = {abs(n.value) for node in nodes for n in node.walk() if n.op == "num"}
    spots = [31.7, 317.3, 31700.9, *(float(x) for x in sorted(numbers)[:8] if x < 10**9)]
    for spot in spots:
        for sign, step in ((1, 0.37), (1, -0.37), (-1, 0.37), (1, 0.003), (1, -0.003)):
            env: dict[str, Any] = {"#": spot}
            for name in sorted(names):
                env[name] = mp.mpf(sign * spot + step + random.Random(f"far:{name}").uniform(0, 0.002))
            yield env
        yield {"#": spot, **{n: mp.mpf(spot * random.Random(f"{spot}:{n}").uniform(0.1, 3)) for n in sorted(names)}}


def integer_points(names: set[str]) -> Iterator[dict[str, Any]]:
    for index in range(1, 7):
        yield {name: mp.mpf(index * (rank + 1) + 2 * rank) for rank, name in enumerate(sorted(names))}


def same_value(a: Node, b: Node) -> bool:
    """Whether two trees are equal wherever both are real, or, where they never are, wherever both have a value."""
    x, y = exact(a), exact(b)
    if x is not None and y is not None:
        return x == y
    if needs_order(a, b):
        return same_ordered(a, b)
    names = symbols(a, b)
    if names and (has_alternation(a) or has_alternation(b)):
        return agree(a, b, integer_points(names), real=False)
    if not names:
        return agree(a, b, iter([{}]), real=False)
    if has_kinks(a) or has_kinks(b):
        return agree(a, b, chain(points(names), far_points(names, a, b)), real=True)
    complex_ = any(n.op == "sym" and n.value == "i" for node in (a, b) for n in node.walk())
    return agree(a, b, points(names), real=not complex_)


def has_alternation(node: Node) -> bool:
    """Whether it contains something like (-1)^n, which is meant for integers."""
    return any(n.op == "pow" and (exact(n.args[0]) or 0) < 0 and symbols(n.args[1]) for n in node.walk())


def agree(a: Node, b: Node, envs: Iterator[dict[str, Any]], *, real: bool) -> bool:
    """Equal at every point where both have a (real) value, and at least one such point; real ones count where there are any."""
    verdicts: dict[bool, list[bool]] = {True: [], False: []}
    for env in envs:
        pair = []
        for node in (a, b):
            try:
                pair.append(value(node, env))
            except UndefinedError:
                break
        if len(pair) < 2:
            continue
        is_real = all(abs(mp.im(v)) <= abs(v) * mp.mpf(10) ** -TOLERANCE for v in pair)
        verdicts[is_real or not real].append(close(*pair))
    decisive = verdicts[True] or verdicts[False]
    return bool(decisive) and all(decisive)
