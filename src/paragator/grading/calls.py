"""Whether a name before a bracket is a function or a factor."""

from __future__ import annotations

from paragator.grading.tree import Node

CONSTANTS = frozenset(("pi", "e", "i", "infty"))
FUNCTION_NAMES = frozenset(("f", "g", "h", "F", "G", "H"))
GREEK_FUNCTIONS = frozenset(("varphi", "phi", "psi", "Phi", "Psi", "Gamma", "zeta"))


def is_function(node: Node) -> bool:
    """Whether name(...) is a function of the name rather than a product: f(x), P(A), I(0), x(t); h(a + b) and x(3) are products."""
    if node.op != "call":
        return False
    name, argument = str(node.args[0].value).rstrip("'"), node.args[1]
    if name in CONSTANTS or name in names_in(argument):
        return False
    if name in GREEK_FUNCTIONS or argument.op == "paren" or argument.op in ("cap", "cup"):
        return True
    if argument.op == "sym":
        return True
    return (name[0].isupper() or name in FUNCTION_NAMES) and is_number(argument)


def is_number(node: Node) -> bool:
    return node.op in ("num", "div", "neg") and not names_in(node)


def names_in(node: Node) -> set[str]:
    return {str(n.value) for n in node.walk() if n.op == "sym"}
