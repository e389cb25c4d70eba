"""Selection by a rule instead of a model, as strategies of one's own.

    paragator eval --recording outputs.jsonl --strategy majority --strategy rules:shortest --strategy rules:longest

from the folder that holds this file. A rule reads texts and answers; it never learns what is right.
"""

from __future__ import annotations

from paragator.core.types import Choice, Completion, Trace
from paragator.strategies import Asking
from paragator.strategies.choose import best


async def by(asking: Asking, sign: int) -> Trace:
    """Of the run's candidates with an answer the one with the fewest characters (sign -1), or the most (sign 1)."""
    found = await asking.candidates(asking.sizes.candidates)
    answers = await asking.answers(found.completions)
    scores = [
        None if answer is None else size(one, sign) for one, answer in zip(found.completions, answers, strict=True)
    ]
    weights = best(scores)
    return asking.selected(found, Choice(0, weights, tuple(scores)) if weights else None)


def size(solution: Completion, sign: int) -> float:
    return float(sign * len(solution.text))


async def shortest(asking: Asking) -> Trace:
    """The shortest solution with an answer."""
    return await by(asking, -1)


async def longest(asking: Asking) -> Trace:
    """The longest solution with an answer."""
    return await by(asking, 1)
