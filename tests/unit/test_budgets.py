"""Size budgets: a file of 400 lines, a function of 60 (in core 40), 20 public names.

An exception is an entry in EXCEPTIONS with its own limit and the reason; one that is no longer needed fails too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import paragator

SOURCE = Path(__file__).parents[2] / "src" / "paragator"
FILE_LINES = 400
FUNCTION_LINES = 60
CORE_FUNCTION_LINES = 40
PUBLIC_NAMES = 20

# "training/step.py" or "training/step.py::Class.method" -> (its own limit, why it is better long than split)
EXCEPTIONS: dict[str, tuple[int, str]] = {}


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Qualified name and length in lines, signature and docstring included, of every function below `node`."""
    for child in ast.iter_child_nodes(node):
        name = prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{child.name}."
            if not isinstance(child, ast.ClassDef):
                assert child.end_lineno is not None
                yield name[:-1], child.end_lineno - child.lineno + 1
        yield from functions(child, name)


def measured() -> Iterator[tuple[str, int, int]]:
    """What is measured, its length, and its budget before exceptions."""
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        file = path.relative_to(SOURCE).as_posix()
        yield file, len(text.splitlines()), FILE_LINES
        limit = CORE_FUNCTION_LINES if file.startswith("core/") else FUNCTION_LINES
        for name, lines in functions(ast.parse(text)):
            yield f"{file}::{name}", lines, limit


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
