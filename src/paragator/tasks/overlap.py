"""Overlap of two problem sets: a common run of 13 words, the usual test of contamination (Brown et al. 2020, appendix C).

Words are runs of letters and digits in lower case. A problem of fewer than 13 words is compared whole. Stock phrases ("where
m and n are relatively prime positive integers, find m + n") are enough for a run of 13, so each match says what share of the
problem's runs the other one holds: 1 is the whole problem, one half often its twin with other numbers, near 0 a phrase.
Pure; linear in the words of both sets.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paragator.core.types import Problem

WORD = re.compile(r"[^\W_]+")
LENGTH = 13


@dataclass(frozen=True, slots=True)
class Match:
    """The problem of id `other` that holds most of an indexed problem's runs; `share` of them, above 0 and at most 1."""

    number: int
    """Which of the indexed problems, from 0."""
    other: str
    share: float


def runs(text: str, length: int = LENGTH) -> set[int]:
    """Hashes of the runs of `length` words in a text; of all its words when there are fewer.

    They are Python's own 64-bit hashes: comparable within one process only.
    """
    words = WORD.findall(text.lower())
    if len(words) < length:
        return {hash(tuple(words))} if words else set()
    return {hash(tuple(words[i : i + length])) for i in range(len(words) - length + 1)}


class Index:
    """The runs of a set's problems, to look other problems up in."""

    def __init__(self, problems: Sequence[Problem], length: int = LENGTH) -> None:
        self.length = length
        self.sizes: list[int] = []
        self.holders: dict[int, list[int]] = {}
        for number, problem in enumerate(problems):
            found = runs(problem.text, length)
            self.sizes.append(len(found))
            for run in found:
                self.holders.setdefault(run, []).append(number)

    def matches(self, others: Iterable[Problem]) -> list[Match]:
        """One match for each indexed problem that shares a run with any of the others, in the index's order."""
        best: dict[int, Match] = {}
        for other in others:
            shared = Counter(number for run in runs(other.text, self.length) for number in self.holders.get(run, ()))
            for number, count in shared.items():
                share = count / self.sizes[number]
                if number not in best or share > best[number].share:
                    best[number] = Match(number, other.id, share)
        return [best[number] for number in sorted(best)]
