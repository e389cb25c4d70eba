"""Best of N by a score from 1 to 10 that the model gives each solution alone (pointwise self-verification)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from paragator.core.prompts import Templates
from paragator.core.thinking import strip_thinking
from paragator.core.together import together
from paragator.core.types import Group, Trace
from paragator.strategies.base import Asking, Sizes
from paragator.strategies.choose import by_score

SCORE = Templates(
    candidate="{problem}",
    aggregation=(
        "{problem}\n\nA solution of this problem follows.\n\n{attempts}"
        "Check it step by step. How likely is its final answer right? Give a score from 1 (surely wrong) to 10 (surely "
        "right). End with a line of the form\nScore: NUMBER"
    ),
    attempt="<solution>\n{attempt}\n</solution>\n\n",
)
NUMBER = re.compile(r"Score\W{0,8}(\d+(?:\.\d+)?)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class BestByScore:
    """n candidates, each scored `votes` times from 1 to 10; the highest mean is the answer.

    A score that cannot be read, or is out of range, is left out. Where none can be read, the answer is the vote.
    """

    n: int | None = None
    votes: int = 1

    async def __call__(self, asking: Asking) -> Trace:
        found = await asking.candidates(self.candidates(asking.sizes))
        solutions = found.completions
        asked = await together(
            *(
                asking.rate(SCORE, [(i, solution.text)], f"judge:{i}:{vote}")
                for i, solution in enumerate(solutions)
                for vote in range(self.votes)
            )
        )
        read = [score_of(group) for group, _ in asked]
        own = [[s for s in read[i * self.votes : (i + 1) * self.votes] if s is not None] for i in range(len(solutions))]
        scores = [math.fsum(some) / len(some) if some else None for some in own]
        choice = by_score(scores, await asking.answers(solutions))
        return asking.selected(found, choice, [group for group, _ in asked])

    def candidates(self, sizes: Sizes) -> int:
        return self.n or sizes.candidates

    def requests(self, sizes: Sizes) -> int:
        return self.candidates(sizes) * (1 + self.votes)


def score_of(group: Group) -> float | None:
    """The last score that a rating gives, outside its thinking; None without one from 1 to 10."""
    texts = [strip_thinking(one.text) for one in group.completions]
    found = NUMBER.findall(texts[0]) if texts else []
    score = float(found[-1][:9]) if found else 0.0
    return score if 1 <= score <= 10 else None
