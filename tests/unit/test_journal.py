"""The journal of finished requests, its companions, and the evaluation that stands on them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from paragator import records
from paragator.core.errors import DataError, RunError, UsageError
from paragator.core.prompts import COMPACT
from paragator.core.scaffold import Scaffold
from paragator.core.siblings import one_by_one
from paragator.core.types import Completion, Failure, Grade, Group, Plan, Problem, Prompt, Stage
from paragator.engines.journal import Journal, Stopped
from paragator.engines.scripted import Scripted
from paragator.runs.evaluate import Evaluation, Tally, measured
from paragator.runs.events import Events, Progress, Steps
from paragator.tasks import Task

SOURCE = Path(__file__).parents[2] / "src"
FULL = Completion("x = ½", "length", (5, 2), None, 2, "hm")
T = TypeVar("T")


def echo(prompt: Prompt, index: int, stage: Stage, seed: int) -> str:
    return f"{prompt.text}|{index}|{stage}|{seed % 1000}"


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


async def asked(journal: Journal, *requests: tuple[str, int, int]) -> list[Group]:
    """Groups of (text, n, seed) requests, asked together; the journal is closed after them."""
    found = await asyncio.gather(*(journal(Prompt(t), n, stage="generate", seed=s) for t, n, s in requests))
    await journal.close(wait=True)
    return list(found)


# ---- the journal -----------------------------------------------------------------------------------------------------


def test_a_second_attempt_asks_nothing_again_and_gets_the_same(tmp_path: Path) -> None:
    requests = [("a", 2, 0), ("a", 2, 1), ("a", 3, 0), ("b", 2, 0)]
    first, second = Scripted(echo), Scripted(lambda *_: Failure("not to be asked"))
    before = run(asked(Journal(first, tmp_path / "calls.jsonl"), *requests))
    journal = Journal(second, tmp_path / "calls.jsonl")
    assert run(asked(journal, *requests)) == before
    assert (len(first.calls), len(second.calls)) == (4, 0)
    assert (journal.asked, journal.reused) == (0, 4)


def test_all_of_a_group_comes_back_but_its_log_probabilities(tmp_path: Path) -> None:
    async def engine(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        output = Completion(FULL.text, "length", (5, 2), (-0.5, -1.5), 2, "hm")
        return Group(prompt, (output, Completion("plain")), (1, 7), stage, num_prompt_tokens=2)

    wanted = Group(Prompt("a"), (FULL, Completion("plain")), (1, 7), "generate", num_prompt_tokens=2)
    for _ in range(2):
        assert run(asked(Journal(engine, tmp_path / "c.jsonl"), ("a", 2, 0))) == [wanted]


def test_what_decides_an_answer_is_in_the_key(tmp_path: Path) -> None:
    journal = Journal(Scripted(echo), tmp_path / "c.jsonl")
    other = Journal(Scripted(echo), tmp_path / "d.jsonl", settings="another model")
    keys = {
        journal.key(Prompt("a"), 1, "generate", 0),
        journal.key(Prompt("a", chat=True), 1, "generate", 0),
        journal.key(Prompt("b"), 1, "generate", 0),
        journal.key(Prompt("a"), 2, "generate", 0),
        journal.key(Prompt("a"), 1, "aggregate", 0),
        journal.key(Prompt("a"), 1, "generate", 1),
        other.key(Prompt("a"), 1, "generate", 0),
    }
    assert len(keys) == 7


def test_equal_requests_at_the_same_time_share_a_call(tmp_path: Path) -> None:
    engine = Scripted(echo, delay=lambda prompt, seed: 0.01)
    first, second = run(asked(Journal(engine, tmp_path / "c.jsonl"), ("a", 1, 0), ("a", 1, 0)))
    assert first == second and len(engine.calls) == 1


def test_a_failure_is_used_but_not_written_down(tmp_path: Path) -> None:
    failing = Scripted(lambda prompt, index, stage, seed: Failure("down") if index else "fine")
    (group,) = run(asked(Journal(failing, tmp_path / "c.jsonl"), ("a", 2, 0)))
    assert group.outputs == (Completion("fine"), Failure("down"))
    (again,) = run(asked(Journal(Scripted(echo), tmp_path / "c.jsonl"), ("a", 2, 0)))
    assert len(again.completions) == 2


def test_every_prefix_of_the_file_is_a_journal(tmp_path: Path) -> None:
    """A kill can leave any number of bytes: whole lines count, a torn one is asked again, nothing is in the way."""
    path = tmp_path / "c.jsonl"
    requests = [("a", 1, 0), ("é", 2, 1)]
    wanted = run(asked(Journal(Scripted(echo), path), *requests))
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        journal = Journal(Scripted(echo), path)
        assert run(asked(journal, *requests)) == wanted
        assert journal.reused == whole[:length].count(b"\n")
        assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_a_line_is_in_the_file_before_its_group_is_used(tmp_path: Path) -> None:
    async def job() -> None:
        journal = Journal(Scripted(echo), tmp_path / "c.jsonl")
        await journal(Prompt("a"), 1, stage="generate", seed=0)
        assert json.loads((tmp_path / "c.jsonl").read_bytes())["outputs"]  # while the journal is open and unflushed
        await journal.close(wait=True)

    run(job())


def test_a_caller_that_gives_up_does_not_lose_the_call(tmp_path: Path) -> None:
    async def job() -> Journal:
        journal = Journal(Scripted(echo, delay=lambda prompt, seed: 0.02), tmp_path / "c.jsonl")
        caller = asyncio.ensure_future(journal(Prompt("a"), 1, stage="generate", seed=0))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        await journal.close(wait=True)
        return journal

    assert run(job()).tokens == 0
    assert (tmp_path / "c.jsonl").read_bytes().count(b"\n") == 1


def test_closing_without_waiting_gives_calls_up(tmp_path: Path) -> None:
    async def job() -> None:
        journal = Journal(Scripted(echo, delay=lambda prompt, seed: 60), tmp_path / "c.jsonl")
        caller = asyncio.ensure_future(journal(Prompt("a"), 1, stage="generate", seed=0))
        await asyncio.sleep(0.01)
        await journal.close(wait=False)
        assert caller.cancelled() or await asyncio.gather(caller, return_exceptions=True)

    run(job())
    assert (tmp_path / "c.jsonl").read_bytes() == b""


def test_an_error_of_the_engine_reaches_every_caller(tmp_path: Path) -> None:
    async def engine(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        raise UsageError("key refused")

    with pytest.raises(UsageError, match="key refused"):
        run(asked(Journal(engine, tmp_path / "c.jsonl"), ("a", 1, 0), ("a", 1, 0)))


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"no": "journal"}\n')
    with pytest.raises(DataError, match=r"c\.jsonl: no journal's line at byte 0"):
        Journal(Scripted(echo), tmp_path / "c.jsonl")


def test_a_broken_answer_is_named_when_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    run(asked(Journal(Scripted(echo), path), ("a", 1, 0)))
    path.write_bytes(path.read_bytes().replace(b'"outputs"', b'"output_"'))
    with pytest.raises(DataError, match="broken line at byte 0"):
        run(asked(Journal(Scripted(echo), path), ("a", 1, 0)))


def test_a_full_disk_is_said_so_and_leaves_whole_lines(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "c.jsonl"
    run(asked(Journal(Scripted(echo), path), ("a", 1, 0)))
    whole = path.read_bytes()
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, former[1]))
    try:
        with pytest.raises(RunError, match=r"c\.jsonl cannot be written \(File too large\)"):
            run(asked(Journal(Scripted(echo), path), ("b", 1, 0)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert path.read_bytes() == whole


def test_one_process_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    code = (
        "import sys; from pathlib import Path; from paragator.engines.journal import Journal\n"
        "journal = Journal(None, Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "c.jsonl")],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"open\n"
    with pytest.raises(UsageError, match="in use by another process"):
        Journal(Scripted(echo), tmp_path / "c.jsonl")
    holder.kill()
    holder.communicate()
    Journal(Scripted(echo), tmp_path / "c.jsonl")


def test_memory_holds_no_text(tmp_path: Path) -> None:
    big = "x" * 1_000_000
    path = tmp_path / "c.jsonl"
    run(asked(Journal(Scripted(lambda *_: big), path), *(("a", 1, seed) for seed in range(20))))
    code = (
        "import resource, sys; from pathlib import Path; from paragator.engines.journal import Journal\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert len(Journal(None, Path(sys.argv[1])).offsets) == 20\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8_000  # kB; the file has 20,000


# ---- one by one, and stopped ---------------------------------------------------------------------------------


def test_siblings_one_by_one(tmp_path: Path) -> None:
    engine = Scripted(echo, delay=lambda prompt, seed: (seed % 7) / 1000)
    journal = Journal(engine, tmp_path / "c.jsonl", one_by_one=True)

    async def job() -> tuple[Group, Group]:
        few = await journal(Prompt("a"), 3, stage="aggregate", seed=5)
        assert few == await one_by_one(Scripted(echo))(Prompt("a"), 3, stage="aggregate", seed=5)
        return few, await journal(Prompt("a"), 4, stage="aggregate", seed=5)

    few, more = run(job())
    assert [n for _, n, _, _ in engine.calls] == [1, 1, 1, 1]
    assert len(set(more.outputs)) == 4 and more.outputs[:3] == few.outputs and more.stage == "aggregate"


def test_one_by_one_keeps_failures_in_place_and_the_prompt_length() -> None:
    async def engine(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        seen.append(seed)
        output = Failure("down") if len(seen) == 1 else Completion("fine")
        return Group(prompt, (output,), stage=stage, num_prompt_tokens=None if len(seen) == 1 else 9)

    seen: list[int] = []
    group = run(one_by_one(engine)(Prompt("a"), 3, stage="generate", seed=0))
    assert group.outputs == (Failure("down"), Completion("fine"), Completion("fine")) and group.prompt_length == 9


def test_an_error_of_one_sibling_ends_the_others() -> None:
    async def engine(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        seen.append(seed)
        if len(seen) == 1:
            await asyncio.sleep(0.01)
            raise RunError("key refused")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append(seed)
            raise
        raise AssertionError

    async def job() -> None:
        with pytest.raises(RunError, match="key refused"):
            await one_by_one(engine)(Prompt("a"), 3, stage="generate", seed=0)
        assert ended == seen[1:] and len(ended) == 2

    seen: list[int] = []
    ended: list[int] = []
    run(job())


def test_after_stop_no_call_is_begun_and_those_under_way_are_kept(tmp_path: Path) -> None:
    engine = Scripted(echo, delay=lambda prompt, seed: 0.02)
    stopped = False

    async def job() -> None:
        nonlocal stopped
        journal = Journal(engine, tmp_path / "c.jsonl", one_by_one=True, stop=lambda: stopped)
        waiting = asyncio.ensure_future(journal(Prompt("a"), 2, stage="generate", seed=0))
        await asyncio.sleep(0.01)
        stopped = True
        with pytest.raises(Stopped):
            await journal(Prompt("a"), 6, stage="generate", seed=0)  # two of them are under way
        assert len((await waiting).completions) == 2
        assert (await journal(Prompt("a"), 2, stage="generate", seed=0)) == await waiting  # what is known is answered
        await journal.close(wait=True)
        assert journal.asked == 2

    run(job())
    assert len(engine.calls) == 2 == (tmp_path / "c.jsonl").read_bytes().count(b"\n")


# ---- the evaluation --------------------------------------------------------------------------------------------------

PROBLEMS = [Problem(f"p{i}", f"{i} + {i}", str(2 * i)) for i in range(6)]
PLAN = Plan.method(2, 1)


async def grade(problem: Problem, texts: Any) -> list[Grade]:
    await asyncio.sleep(0)
    return [Grade("correct" if len(text) % 2 else "incorrect", text[:3]) for text in texts]


def graded_with(grader: Any) -> Task:
    return Task("toy", lambda split, count, seed: PROBLEMS, grader)


class Stopping(Events):
    """Asks to stop when a function says so."""

    def __init__(self, stop: Callable[[], bool]) -> None:
        self.should_stop = stop  # type: ignore[method-assign]


async def evaluated(
    engine: Any,
    folder: Path,
    task: Task = graded_with(grade),  # noqa: B008
    stop: Callable[[], bool] = lambda: False,
    at_once: int | None = None,
) -> Any:
    journal = Journal(engine, folder / "calls.jsonl", one_by_one=True, stop=stop)
    asked = Evaluation(PROBLEMS, task, Scaffold(PLAN, COMPACT), repeats=2)
    try:
        return await measured(asked, journal, folder / "eval.jsonl", Tally("eval", Stopping(stop)), at_once=at_once)
    finally:
        await journal.close(wait=False)


def test_an_interrupted_evaluation_ends_in_the_same_bytes(tmp_path: Path) -> None:
    """Whatever order requests come back in, and wherever it stops: nothing asked twice, the same file in the end."""
    run(evaluated(Scripted(echo), tmp_path / "whole"))
    wanted = (tmp_path / "whole" / "eval.jsonl").read_bytes()
    assert [json.loads(line)["problem"]["id"] for line in wanted.splitlines()] == [p.id for p in PROBLEMS] * 2
    calls: list[Any] = []
    for after in range(1, 60, 3):
        engine = Scripted(echo, delay=lambda prompt, seed: seed % 3 / 2000)
        found = run(
            evaluated(engine, tmp_path / "cut", stop=lambda engine=engine, after=after: len(engine.calls) >= after)
        )
        calls += engine.calls
        if found is not None:
            break
    assert found is not None and len(calls) == 6 * 2 * 4 == len(set(calls))
    assert (tmp_path / "cut" / "eval.jsonl").read_bytes() == wanted


def test_a_failed_problem_is_tried_again_without_its_finished_calls(tmp_path: Path) -> None:
    def broken(prompt: Prompt, index: int, stage: Stage, seed: int) -> str | Failure:
        return (
            Failure("503") if stage == "aggregate" and prompt.text.startswith("3") else echo(prompt, index, stage, seed)
        )

    found = run(evaluated(Scripted(broken), tmp_path))
    assert [r.trace.problem.id for r in found if r.trace.failure] == ["p3", "p3"]
    engine = Scripted(echo)
    found = run(evaluated(engine, tmp_path))
    assert not any(r.trace.failure for r in found) and len(found) == 12
    assert [stage for _, _, stage, _ in engine.calls] == ["aggregate"] * 4
    run(evaluated(Scripted(echo), tmp_path / "whole"))
    assert (tmp_path / "eval.jsonl").read_bytes() == (tmp_path / "whole" / "eval.jsonl").read_bytes()


def test_a_doubled_record_is_an_error(tmp_path: Path) -> None:
    run(evaluated(Scripted(echo), tmp_path))
    path = tmp_path / "eval.jsonl"
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[3])
    with pytest.raises(DataError, match="problem 'p3', repeat 0 is recorded twice"):
        run(evaluated(Scripted(echo), tmp_path))


def test_two_problems_with_one_id_are_refused(tmp_path: Path) -> None:
    task = graded_with(grade)
    twice = [PROBLEMS[0], PROBLEMS[0]]
    with pytest.raises(DataError, match="same id"):
        asked = Evaluation(twice, task, Scaffold(PLAN, COMPACT))
        run(measured(asked, Scripted(echo), tmp_path / "e.jsonl", Tally("eval", Events())))


def test_slow_grades_do_not_keep_the_engine_waiting(tmp_path: Path) -> None:
    """Grading holds no place of a problem that samples, and only a bounded number of traces wait for it."""
    waiting, peak = 0, 0

    async def slow(problem: Problem, texts: Any) -> list[Grade]:
        nonlocal waiting, peak
        waiting += 1
        peak = max(peak, waiting)
        while len(engine.calls) < min(6 * 2 * 4, 4 * 4):  # until four problems were sampled
            await asyncio.sleep(0.001)
        waiting -= 1
        return [Grade("correct", "1") for _ in texts]

    engine = Scripted(echo)
    found = run(asyncio.wait_for(evaluated(engine, tmp_path, graded_with(slow), at_once=2), 120))
    assert len(found) == 12 and peak <= 4


def test_an_error_ends_the_evaluation_and_leaves_it_resumable(tmp_path: Path) -> None:
    async def raising(problem: Problem, texts: Any) -> list[Grade]:
        if problem.id == "p4":
            raise RunError("the grader is gone")
        return await grade(problem, texts)

    with pytest.raises(RunError, match="the grader is gone"):
        run(evaluated(Scripted(echo), tmp_path, graded_with(raising)))
    engine = Scripted(echo)
    assert len(run(evaluated(engine, tmp_path))) == 12
    assert len(list(records.read(tmp_path / "eval.jsonl"))) == 12


def test_time_left_counts_solutions() -> None:
    """Of problems that end together none is finished until all are: half of the solutions are half of the time."""
    assert Progress("eval", 0, 8, 0, 10.0, sampled=0.5).line() == "eval: 0/8 traces  10 s left"
    assert "left" not in Progress("eval", 0, 8, 0, 10.0).line()
    steps = Steps()
    line = steps.line({"step": 1, "steps": 3, "seconds": 2.0, "tokens": 4, "seconds_after": 30.0})
    assert line.endswith("2.0 s  34 s left")
