"""Size budgets: lines of a file, a function, a layer and the package; parameters; public names; one class of a name.

An exception is an entry in EXCEPTIONS or MANY_PARAMETERS with its own limit and the reason; one that is no longer needed fails too.
"""

from __future__ import annotations

import ast
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import paragator

SOURCE = Path(__file__).parents[2] / "src" / "paragator"
FILE_LINES = 400
FUNCTION_LINES = 60
CORE_FUNCTION_LINES = 40
PARAMETERS = 7
PUBLIC_NAMES = 30
PACKAGE_LINES = 33_400
"""A ratchet: the house moved in with 21,300 (experiments/LOG.md); then came checks, many processes, strategies, a
server, a page, services that train."""
LAYER_LINES = {"cli": 1_900}

# "training/step.py" or "training/step.py::Class.method" -> (its own limit, why it is better long than split)
EXCEPTIONS: dict[str, tuple[int, str]] = {}
# "engines/http/openai.py::OpenAIEngine.__init__" -> (its own limit, why its parameters stand alone better than in a value)
MANY_PARAMETERS: dict[str, tuple[int, str]] = {
    "engines/local/branching.py::branch_attention": (8, "transformers' attention interface calls it with these"),
    "training/attention.py::tree_attention": (8, "transformers' attention interface calls it with these"),
}
MOST_EXCEPTIONS = 5


@functools.cache
def sources() -> dict[str, tuple[str, ast.Module]]:
    """Text and syntax tree of every file of the package."""
    texts = {path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")}
    return {file: (text, ast.parse(text)) for file, text in sorted(texts.items())}


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Every function below `node`, with its qualified name."""
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, Function | ast.ClassDef):
            name = f"{prefix}{child.name}."
            if isinstance(child, Function):
                yield name[:-1], child
        yield from functions(child, name)


def measured() -> Iterator[tuple[str, int, int]]:
    """What is measured, its length in lines (signature and docstring included), and its budget before exceptions."""
    for file, (text, tree) in sources().items():
        yield file, len(text.splitlines()), FILE_LINES
        limit = CORE_FUNCTION_LINES if file.startswith("core/") else FUNCTION_LINES
        for name, function in functions(tree):
            assert function.end_lineno is not None
            yield f"{file}::{name}", function.end_lineno - function.lineno + 1, limit


def parameters(function: Function) -> int:
    """Positional and keyword-only parameters; self, cls, *args and **kwargs do not count."""
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def many_parameters() -> dict[str, int]:
    found = {f"{f}::{name}": parameters(one) for f, (_, tree) in sources().items() for name, one in functions(tree)}
    return {what: count for what, count in found.items() if count > PARAMETERS}


def test_files_and_functions_keep_their_budgets() -> None:
    over = [
        f"{what}: {lines} lines, at most {EXCEPTIONS.get(what, (limit, ''))[0]}"
        for what, lines, limit in measured()
        if lines > EXCEPTIONS.get(what, (limit, ""))[0]
    ]
    assert not over, "\n" + "\n".join(over)


def test_exceptions_are_needed_and_explained() -> None:
    needed = {what for what, lines, limit in measured() if lines > limit}
    assert set(EXCEPTIONS) <= needed, f"no longer needed: {sorted(set(EXCEPTIONS) - needed)}"
    assert all(reason for _, reason in EXCEPTIONS.values())


def test_public_names_are_few() -> None:
    names = paragator.__all__
    assert len(names) == len(set(names))
    assert len(names) <= PUBLIC_NAMES, names


def test_functions_have_few_parameters() -> None:
    over = {what: n for what, n in many_parameters().items() if n > MANY_PARAMETERS.get(what, (PARAMETERS, ""))[0]}
    assert not over, f"more than {PARAMETERS} parameters: {over}"


def test_exceptions_of_parameters_are_few_needed_and_explained() -> None:
    unneeded = set(MANY_PARAMETERS) - set(many_parameters())
    assert not unneeded, f"no longer needed: {sorted(unneeded)}"
    assert len(MANY_PARAMETERS) <= MOST_EXCEPTIONS
    assert all(reason for _, reason in MANY_PARAMETERS.values())


def test_parameters_are_counted() -> None:
    """Of every kind, without self and the starred ones."""
    source = "class A:\n  def f(self, a, /, b, *args, c=1, **kwargs): pass\nasync def g(a, *, b): pass"
    assert {name: parameters(one) for name, one in functions(ast.parse(source))} == {"A.f": 3, "g": 2}


def test_no_two_classes_have_one_name() -> None:
    trees = [tree for _, tree in sources().values()]
    names = Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert len(names) > 50
    assert [name for name, count in names.items() if count > 1] == []


def test_layers_and_the_package_keep_their_budgets() -> None:
    lines = {file: len(text.splitlines()) for file, (text, _) in sources().items()}
    layers = {layer: sum(n for file, n in lines.items() if file.startswith(f"{layer}/")) for layer in LAYER_LINES}
    assert all(0 < layers[layer] < limit for layer, limit in LAYER_LINES.items()), layers
    total = sum(lines.values())
    assert total < PACKAGE_LINES
