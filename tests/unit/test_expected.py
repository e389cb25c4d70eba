"""benchmarks/expected.py against all ways in which a small case can go, by the strategy's own rules."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paragator.strategies.agree import waves
from paragator.strategies.choose import agreed, voted

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def expected(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Four solutions a round, pools of two, two rounds."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import expected

    for name, value in {"N": 4, "K": 2, "ROUNDS": 2}.items():
        monkeypatch.setattr(expected, name, value)
    return expected


@pytest.mark.parametrize(("start", "confidence"), [(1, 0.7), (2, 0.8), (4, 2.0)])
def test_expectations_are_sums_over_all_ways(expected: Any, start: int, confidence: float) -> None:
    shares = dict(zip("01234", (1.0, *expected.WRONG), strict=True))

    @functools.cache
    def played(p: float, q: float, number: int) -> tuple[float, float, float]:
        """Right answers, candidates and aggregations from a round on in which each solution is right with p."""
        right, asked, later, goes_on = 0.0, 0.0, 0.0, [0.0] * 5
        for answers in itertools.product("01234", repeat=4):
            weight = math.prod(shares[a] * (p if a == "0" else 1 - p) for a in answers)
            size = next((m for m in waves(start, 4) if agreed(answers[:m], confidence)), None)
            asked += weight * (size or 4)
            if size is None and number < 2:
                goes_on[answers.count("0")] += weight
            else:
                shown = answers[:size]
                right += weight * sum(w for w, a in zip(voted(shown), shown, strict=True) if a == "0")
        for good, weight in enumerate(goes_on):
            if weight:
                pools = list(itertools.combinations([True] * good + [False] * (4 - good), 2))
                ahead = played(sum(expected.aggregated(sum(pool), 2, q) for pool in pools) / len(pools), q, number + 1)
                right += weight * ahead[0]
                later += weight * (ahead[1] + ahead[2])
        return right, asked, later

    for q in (0.2, 0.6):
        found = expected.spent(start, confidence, np.array([q]))
        assert [float(one[0]) for one in found] == pytest.approx(played(q, q, 0))
