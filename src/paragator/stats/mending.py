"""What an aggregation made of the attempts that it was shown: edit distance to the nearest, and steps taken from them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from paragator.core.estimators import mean

MOST_WORDS = 4_000
"""A longer text is not compared by edits: a pair of this length takes about 30 ms."""
STEP_ENDS = re.compile(r"[\n,;]+|(?<=[.!?])\s+")


def mending(pool: Sequence[str], aggregations: Sequence[str]) -> dict[str, float]:
    """Means over the aggregations of one pool, texts without thinking; NaN where nothing can be compared.

    edits           word edits to the nearest attempt, as a share of the longer text's words: 0 is a copy
    steps_taken     share of steps that stand in some attempt, whatever the white space
    steps_from_one  share of steps that stand in the one attempt that most of them are from; below steps_taken, it combines
    """
    attempts = [text for text in pool if text.strip()]
    known = [set(steps(text)) for text in attempts]
    found: dict[str, list[float]] = {"edits": [], "steps_taken": [], "steps_from_one": []}
    for text in aggregations if attempts else ():
        found["edits"].append(min(apart(text, other) for other in attempts))
        if own := steps(text):
            shares = [sum(step in one for step in own) / len(own) for one in known]
            found["steps_taken"].append(sum(any(step in one for one in known) for step in own) / len(own))
            found["steps_from_one"].append(max(shares))
    return {name: mean(values) for name, values in found.items()}


def steps(text: str) -> list[str]:
    """The steps of a text: its lines, sentences, and what commas and semicolons separate, without white space."""
    return [step for part in STEP_ENDS.split(text) if (step := "".join(part.split()))]


def apart(text: str, other: str) -> float:
    """Word edits between two texts as a share of the longer one's words; NaN where one is too long."""
    a, b = text.split(), other.split()
    if max(len(a), len(b)) > MOST_WORDS:
        return math.nan
    return distance(a, b) / max(len(a), len(b), 1)


def distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Least insertions, deletions and replacements that make `a` into `b` (Levenshtein).

    A column of the table at a time, its differences as bits of two numbers (Myers 1999, as written by Hyyrö 2003).
    """
    if not a:
        return len(b)
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    every, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    rises, falls, found = every, 0, len(a)
    for word in b:
        equal = places.get(word, 0)
        same = (((equal & rises) + rises) ^ rises) | equal | falls
        up, down = falls | ~(same | rises) & every, rises & same
        found += bool(up & last) - bool(down & last)
        up, down = (up << 1 | 1) & every, (down << 1) & every
        rises, falls = down | ~(same | up) & every, up & same
    return found
