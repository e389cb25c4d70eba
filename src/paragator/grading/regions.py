"""Equality of sets of real numbers given as intervals, inequalities, set builders or branches: tested where membership can change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from paragator.grading.calls import is_function
from paragator.grading.tidy import OverLimitError
from paragator.grading.tree import Node
from paragator.grading.values import Env, UndefinedError, close, mp, points, symbols, value

MAX_DEGREE = 8
MAX_CRITICAL = 400
MAX_CHANGES = 24
ZERO = mp.mpf(10) ** -18
SCAN = [mp.mpf(n) * mp.mpf("0.37") + mp.mpf("0.011") for n in range(-130, 131)]
SCAN = [mp.mpf(-(10**k)) for k in (4, 3, 2)] + SCAN + [mp.mpf(10**k) for k in (2, 3, 4)]
COMPARED = ("<", ">", "<=", ">=", "=", "!=")


@dataclass(frozen=True, slots=True)
class Region:
    """A set of real numbers: `holds(x)`, and the points at which that may change."""

    holds: Callable[[Any], bool]
    critical: tuple[Any, ...] = ()


def same_region(a: Node, b: Node) -> bool:
    """Whether two conditions or sets hold for the same real numbers; UndefinedError where one is neither."""
    names = variables(a) | variables(b)
    if any(is_function(n) for node in (a, b) for n in node.walk()):
        raise UndefinedError("an unknown function")
    if len(names) > 1:
        raise UndefinedError(f"several unknowns: {', '.join(sorted(names))}")
    name = next(iter(names), "x")
    first, second = region(a, name, {}), region(b, name, {})
    return all(first.holds(x) == second.holds(x) for x in test_points(first.critical + second.critical))


def variables(node: Node) -> set[str]:
    return {name for name in symbols(node) if not name.startswith("set ")}


def test_points(critical: tuple[Any, ...]) -> Iterator[Any]:
    """The critical points, a point between each two neighbours, and one beyond each end."""
    found: list[Any] = []
    for x in sorted(x for x in critical if not mp.isinf(x)):
        if not found or abs(x - found[-1]) > ZERO * max(1, abs(x)):
            found.append(x)
    if len(found) > MAX_CRITICAL:
        raise OverLimitError(f"over the limits: a set with more than {MAX_CRITICAL} ends")
    if not found:
        yield mp.mpf("0.5")
        return
    yield found[0] - 1
    for left, right in pairwise(found):
        yield left
        yield (left + right) / 2
    yield found[-1]
    yield found[-1] + 1


def region(node: Node, name: str, env: Env) -> Region:
    """The set of values of `name` that a condition or a set describes, its other symbols taken from `env`."""
    op, args = node.op, node.args
    if op == "rel":
        return relation(node, name, env)
    if op == "or":
        return either([region(child, name, env) for child in args])
    if op == "list":
        parts = [region(child, name, env) for child in args]
        return listed(parts)
    if op == "cup":
        return either([region(child, name, env) for child in args])
    if op == "cap":
        return both([region(child, name, env) for child in args])
    if op == "setminus":
        left, right = (region(child, name, env) for child in args)
        return Region(lambda x: left.holds(x) and not right.holds(x), left.critical + right.critical)
    if op == "set":
        members = tuple(real(child, env) for child in args)
        return Region(lambda x: any(near(x, m) for m in members), members)
    if op == "builder":
        return built(node, name, env)
    if op == "paren" and len(args) == 2:
        return interval(node, env)
    if op == "sym" and node.value in ("set R", "reals"):
        return Region(lambda x: True)
    raise UndefinedError(f"{op} is not a set of real numbers")


def interval(node: Node, env: Env) -> Region:
    low, high = (real(child, env) for child in node.args)
    if low > high:
        raise UndefinedError("an interval whose ends are swapped")
    opening, closing = node.value

    def holds(x: Any) -> bool:
        above = (x > low and not near(x, low)) or (opening == "[" and near(x, low))
        return bool(above and ((x < high and not near(x, high)) or (closing == "]" and near(x, high))))

    return Region(holds, (low, high))


def built(node: Node, name: str, env: Env) -> Region:
    """{x | condition} or {x in S | condition}."""
    item, condition = node.args
    if item.op == "rel" and item.value == ("in",):
        return both([region(item, name, env), region(condition, name, env)])
    if item.op == "sym":
        return region(condition, name, env)
    raise UndefinedError("a set of expressions")


def either(parts: list[Region]) -> Region:
    return Region(lambda x: any(p.holds(x) for p in parts), tuple(x for p in parts for x in p.critical))


def both(parts: list[Region]) -> Region:
    return Region(lambda x: all(p.holds(x) for p in parts), tuple(x for p in parts for x in p.critical))


def listed(parts: list[Region]) -> Region:
    """Conditions with commas or "and" between them hold together; if that is impossible, each is a case of its own."""
    together = both(parts)
    return together if any(together.holds(x) for x in test_points(together.critical)) else either(parts)


def relation(node: Node, name: str, env: Env) -> Region:
    """A chain of comparisons; every neighbouring pair holds."""
    if "in" in node.value or "notin" in node.value:
        if len(node.value) != 1 or node.args[0].op != "sym":
            raise UndefinedError("membership of an expression")
        inner = region(node.args[1], name, env)
        return inner if node.value == ("in",) else Region(lambda x: not inner.holds(x), inner.critical)
    if any(sign not in COMPARED for sign in node.value):
        raise UndefinedError(f"{node.value} is not a comparison")
    parts = [
        comparison(left, sign, right, name, env)
        for left, sign, right in zip(node.args, node.value, node.args[1:], strict=False)
    ]
    return both(parts)


def comparison(left: Node, sign: str, right: Node, name: str, env: Env) -> Region:
    """left - right, compared with zero."""

    def sides(x: Any) -> tuple[Any, Any] | None:
        try:
            here = {**env, name: x}
            a, b = value(left, here), value(right, here)
        except (UndefinedError, OverLimitError):
            return None
        if any(mp.isinf(y) and not is_infinity(side) for y, side in ((a, left), (b, right))):
            return None
        real_ = all(abs(mp.im(y)) <= ZERO * max(1, abs(y)) for y in (a, b)) and not mp.isnan(a - b)
        return (mp.re(a), mp.re(b)) if real_ else None

    def difference(x: Any) -> Any:
        found = sides(x)
        return None if found is None else found[0] - found[1]

    def holds(x: Any) -> bool:
        found = sides(x)
        if found is None:
            return False
        a, b = found
        equal = near(a, b)
        above, below = a > b and not equal, a < b and not equal
        return bool({"<": below, ">": above, "<=": not above, ">=": not below, "=": equal, "!=": not equal}[sign])

    ends = [end for side in (left, right) for end in constants(side, env)]
    if all(sides(x) is None for x in SCAN[::13]):
        raise UndefinedError("a comparison that has no sides")
    spots = [spot for side in (left, right) for spot in vanishing(side, name, env)]
    return Region(holds, tuple(ends) + tuple(changes(difference, spots)))


def is_infinity(node: Node) -> bool:
    return node.op == "sym" or (node.op == "neg" and node.args[0].op == "sym")


def constants(node: Node, env: Env) -> list[Any]:
    """A side without unknowns is an endpoint."""
    if symbols(node) - env.keys():
        return []
    try:
        found = value(node, env)
    except UndefinedError:
        return []
    return [mp.re(found)] if abs(mp.im(found)) <= ZERO and not mp.isinf(found) else []


def changes(f: Callable[[Any], Any], spots: Sequence[Any] = ()) -> list[Any]:
    """Where f is zero, or changes sign, or begins or ends to have a value: the roots of a polynomial, else by scanning.

    `spots` are places where its parts vanish: they are searched more finely.
    """
    found = polynomial_roots(f)
    return [*spots, *scanned(f, spots)] if found is None else found


def vanishing(node: Node, name: str, env: Env) -> list[Any]:
    """Where the parts of a tree that are polynomials vanish: kinks of |...|, ends of roots and logarithms, poles."""
    out: list[Any] = []
    parts = [
        c for n in node.walk() if n.op in ("abs", "div", "func", "pow", "mul") for c in n.args if name in symbols(c)
    ]
    for part in parts[:12]:

        def f(x: Any, part: Node = part) -> Any:
            try:
                found = value(part, {**env, name: x})
            except (UndefinedError, OverLimitError):
                return None
            return mp.re(found) if abs(mp.im(found)) <= ZERO else None

        out += polynomial_roots(f) or []
    return out


def polynomial_roots(f: Callable[[Any], Any]) -> list[Any] | None:
    """The real roots if f is a polynomial of degree <= 8, else None. Newton's divided differences, then checked."""
    xs = [mp.mpf(k) / 3 + mp.mpf("0.1234567") for k in range(-5, MAX_DEGREE - 1)]
    ys = [f(x) for x in xs]
    if any(y is None or mp.isinf(y) for y in ys):
        return None
    table = list(ys)
    for order in range(1, len(xs)):
        for i in range(len(xs) - 1, order - 1, -1):
            table[i] = (table[i] - table[i - 1]) / (xs[i] - xs[i - order])
    scale = max(abs(y) for y in ys) or 1
    degree = max((i for i, c in enumerate(table) if abs(c) > scale * mp.mpf(10) ** -30), default=0)
    if degree >= len(xs) - 2:
        return None
    coefficients = [mp.mpf(0)]
    for i in range(degree, -1, -1):  # Horner on the Newton form
        shifted = [*coefficients, mp.mpf(0)]
        for j, c in enumerate(coefficients):
            shifted[j + 1] -= c * xs[i]
        shifted[-1] += table[i]
        coefficients = shifted
    coefficients = coefficients[-degree - 1 :]
    for probe in (mp.mpf("7.654321"), mp.mpf("-123.4567"), mp.mpf("123.4567"), mp.mpf("54321.09")):
        there = f(probe)
        if there is None or mp.isinf(there) or not agrees(mp.polyval(coefficients, probe), there):
            return None
    if degree == 0:
        return []
    try:
        roots = mp.polyroots(coefficients, maxsteps=200, extraprec=200)
    except mp.NoConvergence:
        return None
    return [rounded(mp.re(r)) for r in roots if abs(mp.im(r)) < mp.mpf(10) ** -15 * max(1, abs(r))]


def agrees(a: Any, b: Any) -> bool:
    return bool(abs(a - b) <= mp.mpf(10) ** -30 * max(1, abs(a), abs(b)))


def scanned(f: Callable[[Any], Any], spots: Sequence[Any] = ()) -> list[Any]:
    found: list[Any] = []
    near_spots = [
        s + sign * mp.mpf(k) * mp.mpf(10) ** j
        for s in spots[:8]
        for sign in (1, -1)
        for j in range(-3, 5)
        for k in (1, 3)
    ]
    places = sorted([*SCAN, *near_spots])
    states = [state(f(x)) for x in places]
    for left, right, a, b in zip(places, places[1:], states, states[1:], strict=False):
        if a != b:
            found.append(bisected(f, left, right, a))
        if len(found) > MAX_CHANGES:
            raise UndefinedError(f"changes its sign more than {MAX_CHANGES} times")
    return found


def state(y: Any) -> int | None:
    return None if y is None else (y > 0) - (y < 0)


def bisected(f: Callable[[Any], Any], left: Any, right: Any, before: int | None) -> Any:
    for _ in range(100):
        middle = (left + right) / 2
        if state(f(middle)) == before:
            left = middle
        else:
            right = middle
    return rounded(right)


def rounded(x: Any) -> Any:
    """The simple number that bisection came close to, where there is one."""
    near_ = mp.nint(x * 720720) / 720720
    return near_ if abs(near_ - x) <= mp.mpf(10) ** -30 * max(1, abs(x)) else x


def real(node: Node, env: Env) -> Any:
    found = value(node, env)
    if abs(mp.im(found)) > ZERO:
        raise UndefinedError("an end that is not real")
    return mp.re(found)


def near(a: Any, b: Any) -> bool:
    return bool(a == b) if mp.isinf(a) or mp.isinf(b) else bool(abs(a - b) <= ZERO * max(1, abs(b)))


# ---- piecewise functions


def same_branches(a: Node, b: Node) -> bool:
    """Whether two piecewise functions agree everywhere, ends of branches included; their conditions are on one variable."""
    names = set().union(
        *(variables(case.args[1]) for node in (a, b) for case in node.args if not is_rest(case.args[1]))
    )
    others = variables(a) | variables(b)
    candidates = [n for n in sorted(names) if n in ("x", "t", "y", "z", "n", "s", "r", "u")] or sorted(names)
    if not candidates:
        raise UndefinedError("an unsupported condition")
    name = candidates[0]
    for env in list(points(others - {name}))[:2]:
        first, second = branches(a, name, env), branches(b, name, env)
        ends = tuple(x for part in (*first, *second) for x in part[0].critical)
        for x in dense(ends):
            if not same_at(first, second, name, x, env):
                return False
    return True


def is_rest(condition: Node) -> bool:
    text = str(condition.value).lower() if condition.op == "text" else ""
    return any(word in text for word in ("otherwise", "else", "all other", "in all other"))


def branches(node: Node, name: str, env: Env) -> list[tuple[Region, Node]]:
    return [
        (Region(lambda x: True) if is_rest(case.args[1]) else region(case.args[1], name, env), case.args[0])
        for case in node.args
    ]


def dense(critical: tuple[Any, ...]) -> Iterator[Any]:
    """Test points, with three more in each interval: equal values at one point do not make branches equal."""
    sparse = list(test_points(critical))
    yield from sparse
    for left, right in pairwise(sparse):
        for share in ("0.21", "0.63"):
            yield left + (right - left) * mp.mpf(share)
    for step in ("0.413", "2.718", "7.39", "31.7", "317.3", "31700.9"):
        yield sparse[0] - mp.mpf(step)
        yield sparse[-1] + mp.mpf(step)


def value_or_none(node: Node, env: Env) -> Any:
    try:
        return value(node, env)
    except UndefinedError:
        return None


def contradictory(found: list[Any], parts: list[tuple[Region, Node]], active: list[Node]) -> bool:
    """Whether two branches hold at one place with different values; an "otherwise" branch yields to the others."""
    stated = [
        v
        for v, node in zip(found, active, strict=True)
        if not any(node is n and not r.critical and r.holds(0) for r, n in parts)
    ]
    return any((v is None) != (stated[0] is None) or (v is not None and not close(v, stated[0])) for v in stated[1:])


def same_at(first: list[tuple[Region, Node]], second: list[tuple[Region, Node]], name: str, x: Any, env: Env) -> bool:
    values = []
    for parts in (first, second):
        active = [node for holds, node in parts if holds.holds(x)]
        found = [value_or_none(node, {**env, name: x}) for node in active]
        if parts is second and contradictory(found, second, active):
            return False
        values.append(found[0] if found else None)
    a, b = values
    if a is None or b is None:
        return a is b
    return close(a, b) or abs(a - b) <= mp.mpf(10) ** -15 * max(1, abs(a))
