"""Clustered bootstrap of many columns at once, over problems and over seeds of a run. numpy loads on first use.

Every quantity keeps its draws. Quantities of the same problems are drawn with the same problems, so a difference of two
is paired, and an average over benchmarks is resampled within each: plain arithmetic on the draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from paragator.core.estimators import Interval, mean

DRAWS = 2000
CHUNK = 4_000_000
"""Most counts in memory at a time: draws times problems."""


@dataclass(frozen=True, slots=True, eq=False)
class Bootstrapped:
    """A mean with its bootstrap draws [DRAWS]; draws are NaN where fewer than two problems could be measured."""

    mean: float
    draws: Any

    def __sub__(self, other: Bootstrapped) -> Bootstrapped:
        return Bootstrapped(self.mean - other.mean, self.draws - other.draws)

    def interval(self, level: float = 0.95) -> Interval:
        """The mean with its percentile interval."""
        import numpy as np

        known = self.draws[~np.isnan(self.draws)]
        if math.isnan(self.mean) or not len(known):
            return Interval(self.mean, math.nan, math.nan)
        low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
        return Interval(self.mean, float(low), float(high))

    def p_value(self) -> float:
        """Two-sided bootstrap p of a mean of 0: twice the smaller share of draws on its other side; at least 2 / (draws + 1)."""
        import numpy as np

        known = self.draws[~np.isnan(self.draws)]
        if math.isnan(self.mean) or not len(known):
            return math.nan
        beyond = min(int((known <= 0).sum()), int((known >= 0).sum()))
        return min(1.0, 2 * (beyond + 1) / (len(known) + 1))


def resample(
    columns: Sequence[Sequence[float]], *, draws: int = DRAWS, seed: Sequence[int] = (0,)
) -> list[Bootstrapped]:
    """The mean of each column over problems (NaN left out), its problems drawn again with replacement.

    All columns hold the same problems in the same order and share each draw; so do two calls with the same seed.
    """
    import numpy as np

    values = np.asarray(columns, dtype=float).T
    scored = ~np.isnan(values)
    filled, known = np.where(scored, values, 0.0), scored.astype(float)
    parts = []
    for counts in problem_counts(len(values), draws, seed):
        with np.errstate(invalid="ignore"):  # a draw without any measured problem is NaN
            parts.append((counts @ filled) / (counts @ known))
    drawn = np.concatenate(parts)
    drawn[:, scored.sum(axis=0) < 2] = math.nan
    return [Bootstrapped(mean(column), drawn[:, i]) for i, column in enumerate(columns)]


def problem_counts(problems: int, draws: int, seed: Sequence[int]) -> Iterator[Any]:
    """How often each draw holds each problem, as arrays [some draws, problems]."""
    import numpy as np

    rng = np.random.default_rng(list(seed))
    step = max(1, CHUNK // problems)
    for first in range(0, draws, step):
        rows = min(step, draws - first)
        drawn = rng.integers(problems, size=(rows, problems)) + problems * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * problems).reshape(rows, problems).astype(float)


def over_seeds(parts: Sequence[Bootstrapped], *, seed: Sequence[int] = (1,)) -> Bootstrapped:
    """The average over seeds of one method, which are drawn again too, apart from the problems (both levels count).

    A draw's distance to the plain average over seeds is widened by sqrt(n / (n - 1)), as n drawn seeds vary by 1 - 1/n of
    what their variance is (Rao and Wu 1988, their rescaled bootstrap).
    """
    import numpy as np

    parts = [part for part in parts if not math.isnan(part.mean)]
    if len(parts) < 2:
        return parts[0] if parts else Bootstrapped(math.nan, np.full(DRAWS, math.nan))
    rng = np.random.default_rng([*seed, len(parts)])
    size = len(parts[0].draws)
    weights = seed_weights(rng.multinomial(len(parts), [1 / len(parts)] * len(parts), size=size))
    return Bootstrapped(
        mean(part.mean for part in parts), (weights * np.stack([part.draws for part in parts], 1)).sum(1)
    )


def seed_weights(counts: Any) -> Any:
    """How much each seed weighs in each draw, from how often it was drawn [draws, seeds]."""
    seeds = counts.shape[1]
    return 1 / seeds + (counts - 1) / seeds * math.sqrt(seeds / (seeds - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the order given: they hold the family-wise error; NaN is no comparison."""
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    out, highest = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        out[i] = highest
    return out


def average(parts: Sequence[Bootstrapped | None]) -> Bootstrapped | None:
    """The macro average over benchmarks; None unless every one of them was measured."""
    known = [part for part in parts if part is not None and not math.isnan(part.mean)]
    if not known or len(known) < len(parts):
        return None
    return Bootstrapped(mean(part.mean for part in known), sum(part.draws for part in known) / len(known))
