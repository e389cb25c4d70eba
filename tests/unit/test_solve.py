"""One problem, watched: rounds and votes as they arrive, the solution, what is printed of it."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest

import paragator
from paragator import records
from paragator.cli import screen
from paragator.core.errors import RunError, UsageError
from paragator.core.prompts import CHAT
from paragator.core.scaffold import Scaffold, derive
from paragator.core.types import Completion, Failure, Plan, Problem, Prompt, Stage
from paragator.engines.scripted import Scripted
from paragator.runs.loop import in_loop
from paragator.runs.solve import Round, Solution, Watch, stopped, unscored
from paragator.runs.solve import watched as run_watched

PROBLEM = Problem("p", "What is 6 times 7?")
Output = str | Completion | Failure


def boxed(prompt: Prompt, index: int, stage: Stage, seed: int) -> Output:
    """Candidates say 41 or 42, aggregations 42.0."""
    return rf"So \boxed{{{'42.0' if stage == 'aggregate' else 41 + index % 2}}}"


def watched(reply: Any, plan: Plan, **options: Any) -> tuple[Solution, Watch]:
    watch = Watch(Scripted(reply), plan, **options)
    return asyncio.run(run_watched(PROBLEM, watch, Scaffold(watch.plan, CHAT))), watch


def test_rounds_answers_and_votes() -> None:
    solution, watch = watched(boxed, Plan(4, 2, 2, 2, 4))
    assert [(r.number, r.asked, r.done, r.failed) for r in watch.rounds] == [(0, 4, 4, 0), (1, 4, 4, 0), (2, 4, 4, 0)]
    assert watch.rounds[0].votes == {"41": 2, "42": 2} and watch.rounds[2].votes == {"42": 4}
    assert solution.answer == "42" and solution.votes == {"42": 4} and solution.trace.failure is None
    assert str(solution) == "So \\boxed{42.0}\n\nAnswer: 42"
    assert all(r.end for r in watch.rounds)


@pytest.mark.parametrize("split", [False, True])
def test_each_completion_is_seen_where_they_come_apart(split: bool) -> None:
    seen: list[tuple[int, int]] = []
    watched(boxed, Plan(3, 1, 3, 1, 3), split=split, seen=lambda r: seen.append((r.number, r.done)))
    apart = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]
    assert seen == (apart if split else [(0, 0), (0, 3), (1, 0), (1, 3)])


def test_rounds_that_overlap_are_counted_apart() -> None:
    """The first aggregation of round 1 answers last of all; what can do without it goes on, and counts where it belongs."""
    plan, slow = Plan.population(6, 2, 3), derive(0, PROBLEM, 1, 0)
    engine = Scripted(
        lambda prompt, index, stage, seed: rf"\boxed{{{seed + index}}}",
        delay=lambda prompt, seed: 0.05 if seed == slow else 0.0,
    )
    seen: list[tuple[int, int]] = []
    watch = Watch(engine, plan, seen=lambda r: seen.append((r.number, r.done)))
    solution = asyncio.run(run_watched(PROBLEM, watch, Scaffold(watch.plan, CHAT)))
    assert [(r.number, r.asked, r.done) for r in watch.rounds] == [(t, 6, 6) for t in range(4)]
    assert seen.index((3, 1)) < seen.index((1, 6))
    for t, round_ in enumerate(watch.rounds):
        assert {g.prompt for g in round_.groups} == {g.prompt for g in solution.trace.rounds[t]}


def test_failures_and_truncated_solutions_are_counted() -> None:
    def reply(prompt: Prompt, index: int, stage: Stage, seed: int) -> Output:
        outputs = [Failure("http 500"), Completion("and then", "length", num_tokens=7), Completion(r"\boxed{5}")]
        return outputs[index]

    solution, watch = watched(reply, Plan.sampling(3))
    round_ = watch.rounds[0]
    assert (round_.failed, round_.truncated, round_.tokens, round_.done) == (1, 1, 7, 3)
    assert solution.answer == "5" and round_.to_dict()["reasons"] == ["http 500"]


def test_nothing_but_failures_is_an_error_with_its_reason() -> None:
    with pytest.raises(RunError, match="no solution: http 500"):
        watched(lambda *_: Failure("http 500"), Plan.method(2, 1))


def test_the_last_round_that_has_a_solution_counts() -> None:
    def reply(prompt: Prompt, index: int, stage: Stage, seed: int) -> Output:
        return r"\boxed{3}" if stage == "generate" else Failure("gone")

    solution, watch = watched(reply, Plan.method(2, 2))
    assert solution.answer == "3" and solution.trace.failure == "round 1 left 0 solutions, 1 are needed"
    assert "round 1 left 0 solutions, 1 are needed (gone)" in screen.final(solution, watch)


def test_without_any_answer_the_first_solution_is_given() -> None:
    solution, watch = watched(lambda *_: "<think>hm</think>", Plan.sampling(2))
    assert solution.answer is None and solution.votes == {} and solution.text == "<think>hm</think>"
    assert "answer: none found" in screen.final(solution, watch)


def test_cost_by_prices() -> None:
    watch = Watch(Scripted(lambda *_: Completion(r"\boxed{1}", num_tokens=500)), Plan.sampling(2))
    found = asyncio.run(run_watched(PROBLEM, watch, Scaffold(watch.plan, CHAT), ((1.0, 2000.0), (0.0, 0.0))))
    assert found.tokens == 1000 and found.cost == pytest.approx(2.0)


def test_what_arrived_before_an_interruption_is_a_solution() -> None:
    async def hangs(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Any:
        if stage == "aggregate":
            raise KeyboardInterrupt
        return await Scripted(boxed)(prompt, n, stage=stage, seed=seed)

    watch = Watch(hangs, Plan.method(3, 2))
    assert stopped(PROBLEM, watch, 0) is None
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(run_watched(PROBLEM, watch, Scaffold(watch.plan, CHAT)))
    found = stopped(PROBLEM, watch, 0)
    assert found is not None and found.answer == "41" and found.trace.failure == "interrupted"


def test_the_record_is_unscored_and_holds_the_answers(tmp_path: Any) -> None:
    solution, _ = watched(boxed, Plan.method(2, 1))
    records.append(tmp_path / "out.jsonl", [unscored(solution.trace)])
    (found,) = records.read(tmp_path / "out.jsonl")
    assert found.answers(1) == ["42", "42"] and found.rewards(0) == [None, None]
    assert {g.verdict for groups in found.grades for gs in groups for g in gs if g} == {"unscored"}


# ---- what is shown ---------------------------------------------------------------------------------------------------

HOSTILE = "\x1b[31m[bold]x[/nothing]\x1b]0;title\x07\u202e"


def shown(round_: Round) -> str:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=100, force_terminal=True, color_system=None).print(screen.panel(round_))
    return out.getvalue()


def test_a_panel_shows_answers_votes_and_counts() -> None:
    _, watch = watched(boxed, Plan.sampling(3))
    text = shown(watch.rounds[0])
    assert "candidates 3/3" in text and "2 ██ 41" in text and "1 █ 42" in text and "0 truncated  0 failed" in text


def test_text_of_a_model_is_neither_markup_nor_control() -> None:
    solution, watch = watched(lambda *_: Completion(f"{HOSTILE}\n\\boxed{{{HOSTILE}}}"), Plan.sampling(1))
    texts = [shown(watch.rounds[0]), screen.line(watch.rounds[0]), screen.final(solution, watch), str(solution)]
    for text in texts:
        assert not set(text) & set("\x1b\x07\u202e"), repr(text)
    assert "[bold]x[/nothing]" in texts[2] and "[bold]" in texts[0]


def test_many_answers_are_cut() -> None:
    _, watch = watched(lambda prompt, index, stage, seed: rf"\boxed{{{'9' * 80}{index}}}", Plan.sampling(9))
    assert "and 3 other answers" in shown(watch.rounds[0])
    assert max(map(len, screen.line(watch.rounds[0]).split(", "))) < 130


# ---- from Python -----------------------------------------------------------------------------------------------------


def test_a_running_loop_is_no_obstacle() -> None:
    async def outer() -> Any:
        return in_loop(inner)

    async def inner() -> int:
        await asyncio.sleep(0)
        return 3

    assert in_loop(inner) == 3 and asyncio.run(outer()) == 3

    async def fails() -> None:
        raise UsageError("no")

    async def around() -> None:
        in_loop(fails)

    with pytest.raises(UsageError, match="no"):
        asyncio.run(around())


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"problem": " "}, "the problem is empty"),
        ({"problem": "x", "config": {"eval.rounds": -1}}, "eval.rounds = -1"),
        (
            {"problem": "x", "config": {"eval.candidates": 2, "eval.pool_size": 3}},
            "eval.pool_size = 3 is above eval.candidates = 2",
        ),
        ({"problem": "x", "plan": Plan(4, 1, 4, 1, 8)}, "8 aggregations of 4 candidates"),
        ({"problem": "x", "engine": 3}, "engine = 3: give a model's name"),
        ({"problem": "x", "config": {"generate.temperatur": 1}}, "did you mean generate.temperature"),
        ({"problem": "x", "config": {"engine.kind": "replay"}}, "is not for one new problem"),
        ({"problem": "x", "engine": "http://localhost:1/v1/models"}, "leave out /models"),
        ({"problem": "x", "engine": "./nowhere"}, "no such folder"),
    ],
)
def test_wrong_values_are_refused(arguments: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted):
        paragator.solve(**arguments)
