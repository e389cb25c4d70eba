"""Shared runs of 13 words."""

from __future__ import annotations

import pytest

from paragator.core.types import Problem
from paragator.tasks.overlap import LENGTH, Index, Match, runs

WORDS = [f"w{i}" for i in range(40)]
LONG = " ".join(WORDS)


def shared(indexed: str, other: str) -> float:
    """The share of the indexed problem's runs that the other one holds; 0 without a match."""
    matches = Index([Problem("a", indexed)]).matches([Problem("b", other)])
    return matches[0].share if matches else 0.0


@pytest.mark.parametrize(
    ("indexed", "other", "share"),
    [
        (LONG, LONG, 1.0),
        (LONG, f"before {LONG} after", 1.0),
        (LONG, LONG.upper().replace(" ", ",  $"), 1.0),
        (LONG, " ".join(WORDS[:13]), 1 / 28),
        (LONG, " ".join(WORDS[:12]), 0.0),
        (LONG, " ".join([*WORDS[:12], "x", *WORDS[12:24]]), 0.0),
        (LONG, " ".join(reversed(WORDS)), 0.0),
        (" ".join(WORDS[:20] + WORDS[:20]), " ".join(WORDS[:20]), 8 / 20),
        ("two words", "Two -- words!", 1.0),
        ("two words", f"two words {LONG}", 0.0),
        ("two words", "two other words", 0.0),
        ("", "", 0.0),
        ("!?", "...", 0.0),
    ],
)
def test_share_of_runs(indexed: str, other: str, share: float) -> None:
    assert shared(indexed, other) == pytest.approx(share)


def test_a_text_has_as_many_runs_as_it_has_places() -> None:
    assert [len(runs(" ".join(WORDS[:n]))) for n in (0, 1, 12, 13, 14, 40)] == [0, 1, 1, 1, 2, 40 - LENGTH + 1]


def test_each_indexed_problem_is_matched_once_by_the_other_that_holds_most_of_it() -> None:
    index = Index([Problem("none", "nothing of the kind"), Problem("long", LONG), Problem("short", "two words")])
    others = [Problem("some", " ".join(WORDS[:20])), Problem("most", " ".join(WORDS[:30])), Problem("2", "Two words.")]
    assert index.matches(others) == [Match(1, "most", 18 / 28), Match(2, "2", 1.0)]
    assert index.matches([]) == []
