"""Selection of one answer from the last population. Each function takes the extracted answers in population order and
returns an index into them, or None where there is no answer. A missing answer (None) is never chosen and never votes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence


def first(answers: Sequence[str | None]) -> int | None:
    """The first solution that has an answer."""
    return next((i for i, answer in enumerate(answers) if answer is not None), None)


def heaviest(weights: Sequence[float], rng: random.Random) -> int:
    """The place of the largest weight; `rng` breaks ties."""
    most = max(weights)
    return rng.choice([i for i, weight in enumerate(weights) if weight >= most * (1 - 1e-12)])


def majority(answers: Sequence[str | None], rng: random.Random) -> int | None:
    """The first solution with the most frequent answer; `rng` breaks ties between answers, not their order."""
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return None
    most = max(votes.values())
    return answers.index(rng.choice(sorted(answer for answer, count in votes.items() if count == most)))
