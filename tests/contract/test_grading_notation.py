"""What notation means: read right, or said not to be read. Each row of tests/corpora/notation.jsonl is one pair and its verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paragator.grading.decide import decide
from paragator.grading.ordered import same_ordered
from paragator.grading.syntax import parse
from paragator.grading.tidy import tidy
from paragator.grading.tree import Node, UnreadError
from paragator.records import read_json_lines

ROWS: list[dict[str, Any]] = list(read_json_lines(Path(__file__).parents[1] / "corpora" / "notation.jsonl", ours=False))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['kind']}: {row['reference']} <- {row['text']}")
def test_notation_is_read_right_or_not_at_all(row: dict[str, Any]) -> None:
    grade = decide(row["text"], row["reference"], "choice" if row.get("choice") else None)
    assert grade.verdict == row["verdict"], grade
    assert grade.verdict != "unscored" or grade.reason


def tree(text: str) -> Node:
    return parse(tidy(text))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"(\mathbf{A}+\mathbf{B})^2", r"\mathbf{A}^2+\mathbf{A}\mathbf{B}+\mathbf{B}\mathbf{A}+\mathbf{B}^2"),
        (r"(XY)^\dagger", r"Y^\dagger X^\dagger"),
        (r"\vec a\cdot(\vec b\times\vec c)", r"\vec b\cdot(\vec c\times\vec a)"),
        (r"\vec a\times\vec a + \vec b\times\vec c", r"-\vec c\times\vec b"),
        (r"(\mathbf{A}\mathbf{B})^{-1}", r"\mathbf{B}^{-1}\mathbf{A}^{-1}"),
    ],
)
def test_identities_of_ordered_products(a: str, b: str) -> None:
    assert same_ordered(tree(a), tree(b))


def test_what_an_ordered_product_holds_and_is_not_evaluated_is_not_called_unequal() -> None:
    with pytest.raises(UnreadError, match="order"):
        same_ordered(tree(r"\sin(\mathbf{A}\mathbf{B})"), tree(r"\sin(\mathbf{A}\mathbf{B}+\mathbf{B}-\mathbf{B})"))


def test_brackets_after_names_are_parsed_once() -> None:
    assert parse("x(" * 38 + "1" + ")" * 38).op == "call"
