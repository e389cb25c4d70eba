"""Self-certainty (arXiv 2502.18581): candidates ranked by how far the model's distributions are from uniform; Borda votes.

It needs the log-probabilities of the whole vocabulary, which no server returns: a model in this process gives them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from paragator.core.errors import UsageError
from paragator.core.types import Choice, Trace
from paragator.strategies.base import Asking, Sizes
from paragator.strategies.choose import borda, voted


@dataclass(frozen=True, slots=True)
class SelfCertainty:
    """n candidates ranked by certainty; rank r of N has (N - r + 1) ** power votes (published code: 0.5).

    Candidates without an answer keep their rank and do not vote. Where the engine tells no certainty, the answer is the
    plain vote, and the choice says so.
    """

    n: int | None = None
    power: float = 0.5
    needs: ClassVar[str] = "certainty"

    def __post_init__(self) -> None:
        if not 0 <= self.power <= 10:
            raise UsageError(f"self_certainty: power = {self.power}; use 0 to 10")

    async def __call__(self, asking: Asking) -> Trace:
        found = await asking.candidates(self.candidates(asking.sizes))
        answers = await asking.answers(found.completions)
        scores = [one.certainty for one in found.completions]
        known = [score for score in scores if score is not None]
        if len(known) < len(scores) or not scores:
            weights = voted(answers)
            why = "the engine tells no certainty: a vote"
            return asking.selected(found, Choice(0, weights, tuple(scores), why) if weights else None)
        return asking.selected(found, Choice(0, voted(answers, borda(known, self.power)), tuple(scores)))

    def candidates(self, sizes: Sizes) -> int:
        return self.n or sizes.candidates

    def requests(self, sizes: Sizes) -> int:
        return self.candidates(sizes)
