"""Products whose order counts: matrices, operators and vectors, compared by what they are for random matrices modulo a prime.

A name in bold, with an arrow or with a hat does not commute, nor do capital letters once a transpose, an adjoint or a factor beside
its inverse shows that they are matrices. With a cross product the names are vectors: traceless 2x2 matrices, in which a x b is
(ab - ba) / 2i and a . b half the trace of ab. What is neither sum, product, power nor transpose stands for a random number.
"""

from __future__ import annotations

import random
from fractions import Fraction

from paragator.grading.calls import is_function
from paragator.grading.tree import Node, UnreadError

PRIME = 2**61 - 31
ROOT = 583529827753931384
"""A root of -1 modulo PRIME."""
TRIALS = 2
TRANSPOSES = ("T", "top", "dagger", "intercal", "H")
MAX_POWER = 1_000
Matrix = tuple[int, int, int, int]
"""a, b, c, d of ((a, b), (c, d))."""


def needs_order(*nodes: Node) -> bool:
    """Whether the order of factors counts somewhere in these trees."""
    names = order_names(nodes)
    return any(n.op in ("mul", "pow") and has_name(n, names) for node in nodes for n in node.walk())


def has_name(node: Node, names: set[str]) -> bool:
    return any(n.op == "sym" and n.value in names for n in node.walk())


def order_names(nodes: tuple[Node, ...]) -> set[str]:
    """The names that do not commute; one alone commutes with itself, unless it is transposed."""
    everything = [n for node in nodes for n in node.walk()]
    names = {str(n.value) for n in everything if n.op == "sym" and is_decorated(str(n.value))}
    if "nabla" in names:
        return {str(n.value) for n in everything if n.op == "sym"}
    if any(is_matrix_sign(n) for n in everything):
        return names | {str(n.value) for n in everything if n.op == "sym" and is_capital(str(n.value))}
    return names if len(names) > 1 else set()


def is_decorated(name: str) -> bool:
    return name.startswith(("bold ", "vec ", "hat ")) or name == "nabla"


def are_vectors(nodes: tuple[Node, ...], names: set[str]) -> bool:
    """Whether names are multiplied with a cross or a dot, and none is transposed."""
    everything = [n for node in nodes for n in node.walk()]
    return any(
        n.op == "mul" and n.value and all(has_name(child, names) for child in n.args) for n in everything
    ) and not any(n.op == "pow" and is_transpose(n) for n in everything)


def is_capital(name: str) -> bool:
    return name[0].isupper() and len(name.partition("_")[0].rstrip("'")) == 1 and name not in TRANSPOSES


def is_matrix_sign(node: Node) -> bool:
    """A^T, A^\\dagger, or A and A^{-1} with something between."""
    if node.op == "pow" and node.args[0].op == "sym":
        name = str(node.args[0].value)
        return is_transpose(node) and (is_capital(name) or is_decorated(name))
    if node.op != "mul":
        return False
    parts = factors(node)
    inverted = [p.args[0] for p in parts if p.op == "pow" and p.args[1] == MINUS_ONE]
    return any(base in parts for base in inverted)


MINUS_ONE = Node("neg", (Node("num", value=Fraction(1)),))


def is_transpose(node: Node) -> bool:
    return node.args[1].op == "sym" and node.args[1].value in TRANSPOSES


def factors(node: Node) -> list[Node]:
    return [leaf for child in node.args for leaf in factors(child)] if node.op == "mul" else [node]


def same_ordered(a: Node, b: Node) -> bool:
    """Whether two trees are equal with the order of factors kept; UnreadError where something in them could not be evaluated."""
    names = order_names((a, b))
    unread, vectors = any(name.startswith("hat ") or name == "nabla" for name in names), are_vectors((a, b), names)
    for trial in range(TRIALS):
        values = []
        for node in (a, b):
            world = World(names, f"{trial}", vectors=vectors)
            values.append(world.value(node))
            unread = unread or world.guessed
        if values[0] != values[1]:
            if unread and read_names(a) == read_names(b):
                raise UnreadError("unsure: the order of factors counts, and not all is read")
            return False
    return True


def read_names(node: Node) -> set[str]:
    """The names in a tree, but for the T of a transpose."""
    if node.op == "sym":
        return {str(node.value)}
    parts = node.args[:1] if node.op == "pow" and is_transpose(node) else node.args
    return {name for child in parts for name in read_names(child)}


class World:
    """One assignment of random matrices and numbers. `guessed` once a part was only given a random number."""

    def __init__(self, names: set[str], seed: str, *, vectors: bool) -> None:
        self.names, self.seed, self.vectors, self.guessed = names, seed, vectors, False

    def draw(self, name: str) -> int:
        return random.Random(f"{self.seed}:{name}").randrange(2, PRIME)

    def named(self, name: str) -> Matrix:
        if name not in self.names:
            return scalar(self.draw(name))
        a, b, c, d = (self.draw(f"{name}:{place}") for place in range(4))
        return (a, b, c, -a % PRIME) if self.vectors else (a, b, c, d)

    def value(self, node: Node) -> Matrix:
        """A tree's value."""
        match node.op, node.args:
            case "num", ():
                return scalar(node.value.numerator * pow(node.value.denominator, -1, PRIME))
            case "sym", ():
                return self.named(str(node.value))
            case "add", (a, b):
                return plus(self.value(a), self.value(b))
            case "neg", (a,):
                return times(scalar(-1), self.value(a))
            case "mul", (a, b):
                return self.product(self.value(a), self.value(b), node.value)
            case "call", (a, b) if not is_function(node):
                return self.product(self.value(a), self.value(b), None)
            case "div", (a, b) if is_scalar(below := self.value(b)) and below[0]:
                return times(self.value(a), scalar(pow(below[0], -1, PRIME)))
            case "pow", (base, _) if is_transpose(node) and has_name(base, self.names):
                return self.transposed(self.value(base), str(node.args[1].value))
            case "pow", (a, b) if (n := whole(b)) is not None and abs(n) <= MAX_POWER:
                return power(self.value(a), n)
            case (("unit" | "paren"), (a,)):
                return self.value(a)
        self.guessed = True
        return scalar(self.draw(repr(node)))

    def product(self, a: Matrix, b: Matrix, sign: object) -> Matrix:
        if not self.vectors or is_scalar(a) or is_scalar(b):
            return times(a, b)
        ab = times(a, b)
        if sign == "x":
            half = pow(2 * ROOT, -1, PRIME)
            return times(plus(ab, times(scalar(-1), times(b, a))), scalar(half))
        return scalar((ab[0] + ab[3]) * pow(2, -1, PRIME))

    def transposed(self, m: Matrix, kind: str) -> Matrix:
        """A transpose or an adjoint: both reverse products, and are their own inverses."""
        a, b, c, d = m
        k = 1 if kind in ("T", "top", "intercal") else 7
        return a, k * c % PRIME, b * pow(k, -1, PRIME) % PRIME, d


def whole(node: Node) -> int | None:
    if node.op == "neg":
        inner = whole(node.args[0])
        return None if inner is None else -inner
    return int(node.value) if node.op == "num" and node.value.denominator == 1 else None


def scalar(n: int) -> Matrix:
    return n % PRIME, 0, 0, n % PRIME


def is_scalar(m: Matrix) -> bool:
    return m[1] == m[2] == 0 and m[0] == m[3]


def plus(m: Matrix, n: Matrix) -> Matrix:
    return (m[0] + n[0]) % PRIME, (m[1] + n[1]) % PRIME, (m[2] + n[2]) % PRIME, (m[3] + n[3]) % PRIME


def times(m: Matrix, n: Matrix) -> Matrix:
    (a, b, c, d), (e, f, g, h) = m, n
    return (a * e + b * g) % PRIME, (a * f + b * h) % PRIME, (c * e + d * g) % PRIME, (c * f + d * h) % PRIME


def power(m: Matrix, n: int) -> Matrix:
    if n < 0:
        a, b, c, d = m
        determinant = (a * d - b * c) % PRIME
        if not determinant:
            return scalar(0)
        m, n = times((d, -b % PRIME, -c % PRIME, a), scalar(pow(determinant, -1, PRIME))), -n
    out = scalar(1)
    while n:
        out, m, n = (times(out, m) if n & 1 else out), times(m, m), n >> 1
    return out
