"""Majority voting over candidates (self-consistency, arXiv 2203.11171)."""

from __future__ import annotations

from dataclasses import dataclass

from paragator.core.types import Choice, Trace
from paragator.strategies.base import Asking, Sizes
from paragator.strategies.choose import voted


@dataclass(frozen=True, slots=True)
class Majority:
    """n candidates, one vote each; n is the run's own unless set."""

    n: int | None = None

    async def __call__(self, asking: Asking) -> Trace:
        found = await asking.candidates(self.candidates(asking.sizes))
        weights = voted(await asking.answers(found.completions))
        return asking.selected(found, Choice(0, weights) if weights else None)

    def candidates(self, sizes: Sizes) -> int:
        return self.n or sizes.candidates

    def requests(self, sizes: Sizes) -> int:
        return self.candidates(sizes)
