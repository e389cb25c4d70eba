"""Recorded outputs of real models through the scaffold and the grader: the numbers of the recordings, from text alone.

The recordings' own `correct` and `answer` fields are read to compare with, never to grade by. Their published maj@k
gives a tie to whichever answer came first; ours takes ties in expectation, so it is compared with the same estimate
from the recorded fields.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from paragator.core.estimators import majority_at_k, mean, pass_at_k
from paragator.core.packing import Packer
from paragator.core.prompts import CHAT
from paragator.core.scaffold import Scaffold, run
from paragator.core.types import Grade, Plan, Problem, Prompt, Trace
from paragator.engines.replay import Replay, problems
from paragator.engines.scripted import Scripted
from paragator.grading import grade_many

DATA = Path(os.environ.get("PARAGATOR_DATA") or Path(__file__).parents[3] / "shared" / "data")
HALF_A_POINT = 0.005


@dataclass(frozen=True)
class Published:
    """What a recording is said to hold, by its own labels and a plain vote on its own answers."""

    samples: int
    mean: float
    pass_at: float
    majority: float
    mislabelled: tuple[tuple[str, int], ...] = ()
    """(problem id, sample) that its labels call wrong although the answer is the reference, written differently."""


PUBLISHED = {
    "mo_math100_qwen8": Published(8, 0.910, 0.960, 0.930, (("mathcot100-72", 7),)),  # 10000 for 10{,}000
    "mo_gsm8k_6models": Published(6, 0.528, 0.917, 0.741),
}


def recording(name: str) -> Path:
    path = DATA / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in {DATA}; set PARAGATOR_DATA to the folder that holds it")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


async def replay(path: Path, count: int, seed: int = 0) -> list[Trace]:
    """Plain sampling of every problem of a recording."""
    engine, plan = Replay.read(path, CHAT), Plan.sampling(count)
    found = problems(path)
    engine.check(plan, [CHAT.for_candidate(p) for p in found])
    return list(await asyncio.gather(*(run(p, engine, Scaffold(plan, CHAT, seed=seed)) for p in found)))


def grade_all(traces: Sequence[Trace]) -> list[list[Grade]]:
    """The grades of every trace's candidates, in one batch."""
    pairs = ((c.text, str(t.problem.answer)) for t in traces for c in t.population(0))
    grades = iter(grade_many(pairs))
    return [[next(grades) for _ in t.population(0)] for t in traces]


def first_of_the_tied(answers: Sequence[str | None], rewards: Sequence[float | None]) -> float | None:
    """A plain vote's reward, a tie going to the answer that came first."""
    votes = Counter(a for a in answers if a is not None).most_common(1)
    return rewards[list(answers).index(votes[0][0])] if votes else 0.0


def numbers(answers: list[list[str | None]], rewards: list[list[float | None]], k: int) -> dict[str, float]:
    scored = [[r for r in row if r is not None] for row in rewards]
    return {
        "mean": mean(mean(row) for row in rewards),
        "pass": mean(pass_at_k(len(row), sum(r >= 1 for r in row), min(k, len(row))) for row in scored if row),
        "maj": mean(majority_at_k(a, r, k) for a, r in zip(answers, rewards, strict=True)),
        "maj, first of the tied": mean(first_of_the_tied(a, r) for a, r in zip(answers, rewards, strict=True)),
    }


def recorded_numbers(rows: list[dict[str, Any]], known: Published, *, corrected: bool) -> dict[str, float]:
    wrong = known.mislabelled if corrected else ()
    answers = [[c["answer"] for c in row["completions"]] for row in rows]
    rewards: list[list[float | None]] = [
        [1.0 if (row["id"], i) in wrong else float(c["correct"]) for i, c in enumerate(row["completions"])]
        for row in rows
    ]
    return numbers(answers, rewards, known.samples)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_numbers_follow_from_the_recorded_fields(name: str) -> None:
    known = PUBLISHED[name]
    found = recorded_numbers(rows_of(recording(name)), known, corrected=False)
    assert found["mean"] == pytest.approx(known.mean, abs=0.0006)
    assert found["pass"] == pytest.approx(known.pass_at, abs=0.0006)
    assert found["maj, first of the tied"] == pytest.approx(known.majority, abs=0.0006)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_texts_alone_reproduce_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    known, path = PUBLISHED[name], recording(name)
    rows = rows_of(path)
    traces = asyncio.run(replay(path, known.samples))
    for trace, row in zip(traces, rows, strict=True):
        assert [c.text for c in trace.population(0)] == [c["text"] for c in row["completions"]]
    grades = grade_all(traces)
    found = numbers(
        [[g.answer for g in row] for row in grades], [[g.reward for g in row] for row in grades], known.samples
    )
    wanted = recorded_numbers(rows, known, corrected=True)
    unscored = sum(g.verdict == "unscored" for row in grades for g in row)
    differ = [
        (row["id"], i, g.answer, row["answer"], g.verdict, g.reason)
        for row, graded in zip(rows, grades, strict=True)
        for i, (c, g) in enumerate(zip(row["completions"], graded, strict=True))
        if (g.verdict == "correct") != c["correct"]
    ]
    with capsys.disabled():
        print(f"\n{name}: {len(differ)} verdicts differ from the recorded ones, {unscored} are unscored")
        for key, value in found.items():
            print(f"  {key}: {value:.4f} from text, {wanted[key]:.4f} recorded")
    assert unscored <= 0.001 * len(rows) * known.samples
    assert found["mean"] == pytest.approx(known.mean, abs=HALF_A_POINT), differ
    assert found["pass"] == pytest.approx(wanted["pass"], abs=HALF_A_POINT), differ
    assert found["maj"] == pytest.approx(wanted["maj"], abs=HALF_A_POINT), differ


def test_draws_of_fewer_estimate_the_same_pass_at_k() -> None:
    """Repeats that draw 4 of 8 average to the unbiased pass@4 of all 8."""
    path = recording("mo_math100_qwen8")
    rows = rows_of(path)
    right = {(r["id"], c["text"]) for r in rows for c in r["completions"] if c["correct"]}
    exact = mean(pass_at_k(8, sum(c["correct"] for c in row["completions"]), 4) for row in rows)
    repeats = [
        mean(float(any((t.problem.id, c.text) in right for c in t.population(0))) for t in traces)
        for traces in (asyncio.run(replay(path, 4, seed)) for seed in range(30))
    ]
    assert len(set(repeats)) > 1
    assert mean(repeats) == pytest.approx(exact, abs=0.005)


def test_pools_of_real_solutions_keep_their_budget() -> None:
    path = recording("mo_physics_8models")

    def count(prompt: Prompt) -> int:
        return len(prompt.text) // 4

    async def all_of(found: list[Problem]) -> list[Trace]:
        aggregator = Scripted(lambda prompt, index, stage, seed: "\\boxed{0}")
        engine = Replay.read(path, CHAT, aggregator=aggregator)
        packer, plan = Packer(max_tokens=2000, count=count), Plan(5, 1, 4, 1, 2)
        return list(await asyncio.gather(*(run(p, engine, Scaffold(plan, CHAT, packer)) for p in found)))

    groups = [t.rounds[1][0] for t in asyncio.run(all_of([p for p in problems(path) if len(p.text) < 4000]))]
    assert all(count(g.prompt) <= 2000 for g in groups)
    assert any(g.reductions for g in groups) and any(not g.reductions for g in groups)
    assert all(len(g.pool) == 4 for g in groups if not any(r.startswith(("dropped", "empty")) for r in g.reductions))
