"""Records of a run that was never run: graded traces and metrics."""

from __future__ import annotations

import random
from typing import Any

from paragator.core.types import Completion, Grade, Group, Plan, Problem, Prompt, Trace
from paragator.records import Graded


def fake_evaluation(gain: float, problems: int = 12, seed: int = 0, text: str = "problem") -> list[Graded]:
    """Traces of 4 candidates and 2 aggregation rounds, better by `gain` a round."""
    rng = random.Random(seed)
    out = []
    for i in range(problems):
        ease = rng.random()
        rounds, grades = [], []
        for t in range(3):
            some = [rng.random() < 0.6 * ease + gain * t for _ in range(4)]
            pool = () if t == 0 else (2, 0, 3, 1)
            outputs = tuple(Completion(f"{i}+{j}={right}", token_ids=(1,) * (5 + j)) for j, right in enumerate(some))
            rounds.append((Group(Prompt(f"{text} {i}"), outputs, pool=pool),))
            grades.append((tuple(Grade("correct" if r else "incorrect", str(int(r))) for r in some),))
        trace = Trace(Problem(f"p{i}", f"{text} {i}"), Plan.method(4, 2), 0, tuple(rounds))
        out.append(Graded(trace, tuple(grades)))
    return out


def fake_metrics(steps: int = 30) -> list[dict[str, Any]]:
    rng = random.Random(1)
    return [
        {
            "step": step,
            "generate/reward": 0.2 + 0.004 * step + rng.uniform(-0.05, 0.05),
            "aggregate/reward": 0.2 + 0.009 * step + rng.uniform(-0.05, 0.05),
            "generate/zero_credit": 0.4,
            "aggregate/zero_credit": 0.25,
            "grad_norm": 0.5,
            "seconds": 4.0,
            "seconds/generate": 2.5,
            "seconds/update": 1.5,
            "tokens": 12345,
        }
        for step in range(1, steps + 1)
    ]
