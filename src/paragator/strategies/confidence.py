"""DeepConf (arXiv 2508.15260): the most confident candidates vote, each with its confidence; sampling may end early.

A token's confidence is minus the mean log-probability of the model's likeliest tokens there: high where the model sees
one way to go on. The server has to return log-probabilities of the likeliest tokens; a model in this process does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from paragator.core.errors import UsageError
from paragator.core.types import Choice, Trace
from paragator.strategies.base import Asking, Sizes
from paragator.strategies.choose import percentile, share, voted

By = Literal["lowest", "bottom", "tail", "mean"]


@dataclass(frozen=True, slots=True)
class Confidence:
    """n candidates; of those with an answer, the `keep` share with the highest confidence vote, weighted by it.

    by         of a candidate: the "lowest" mean over a window of tokens, the mean of the "bottom" tenth of windows, the
               mean over the "tail", or over all ("mean")
    window     tokens of a window and of the tail (published: 2,048)
    keep       share that votes (published: 0.1 or 0.9)
    warmup     on-line: the first `warmup` candidates (published: 16) set the bar of all; then as many more at a time, up
               to n, until the vote's share is `consensus`. Unset, it is off-line: all n set the bar
    consensus  share of the votes' weight that the answer has where sampling ends (published: 0.95)

    Where the engine tells nothing of tokens, the answer is the plain vote, and the choice says so.
    """

    n: int | None = None
    by: By = "lowest"
    window: int = 2048
    keep: float = 0.1
    warmup: int | None = None
    consensus: float = 0.95
    needs: ClassVar[str] = "confidence"

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise UsageError(f"confidence: by = {self.by!r}; use {', '.join(get_args(By))}")
        if not 0 < self.keep <= 1 or self.window < 1:
            raise UsageError(
                f"confidence: keep = {self.keep}, window = {self.window}; keep a share, of 1 token or more"
            )
        if self.warmup is not None and self.warmup < 1:
            raise UsageError(f"confidence: warmup = {self.warmup}; use 1 or more, fewer than the candidates")
        if not 0 < self.consensus <= 1:
            raise UsageError(f"confidence: consensus = {self.consensus}; use a share above 0, at most 1")

    async def __call__(self, asking: Asking) -> Trace:
        n, bar = self.candidates(asking.sizes), None
        step = self.warmup or n
        for size in [*range(step, n, step), n]:
            found = await asking.candidates(size)
            answers = await asking.answers(found.completions)
            scores = [confidence_of(one.confidences, self.by, self.window) for one in found.completions]
            known = [s for s, answer in zip(scores, answers, strict=True) if s is not None and answer is not None]
            if bar is None and known:
                bar = percentile(known, 1 - self.keep)
            votes = [s if bar is not None and s is not None and s >= bar else 0.0 for s in scores]
            if share(answers, votes) >= self.consensus:
                break
        if bar is None:
            weights = voted(answers)
            why = "no candidate has an answer and a confidence: a vote"
            return asking.selected(found, Choice(0, weights, tuple(scores), why) if weights else None)
        return asking.selected(found, Choice(0, voted(answers, votes), tuple(scores)))

    def candidates(self, sizes: Sizes) -> int:
        n = self.n or sizes.candidates
        if self.warmup is not None and self.warmup >= n:
            raise UsageError(
                f"confidence: warmup = {self.warmup} of {n} candidates leaves none to stop at; set it lower"
            )
        return n

    def requests(self, sizes: Sizes) -> int:
        return self.candidates(sizes)


def confidence_of(tokens: Sequence[float] | None, by: By, window: int) -> float | None:
    """One number for a candidate's tokens; None where nothing is known of them. Fewer tokens than a window are one."""
    if not tokens:
        return None
    if by == "mean" or len(tokens) <= window:
        return math.fsum(tokens) / len(tokens)
    if by == "tail":
        return math.fsum(tokens[-window:]) / window
    means = windows(tokens, window)
    if by == "lowest":
        return min(means)
    lowest = sorted(means)[: max(1, len(means) // 10)]
    return math.fsum(lowest) / len(lowest)


def windows(tokens: Sequence[float], window: int) -> list[float]:
    """The mean over each run of `window` tokens."""
    total = math.fsum(tokens[:window])
    means = [total / window]
    for gone, new in zip(tokens, tokens[window:], strict=False):
        total += new - gone
        means.append(total / window)
    return means
