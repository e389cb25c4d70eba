"""The public API without a model: evaluations, one-off solving and aggregation over engines handed over, in a loop or not."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import paragator
from paragator import aio, sync
from paragator.config import Config
from paragator.core.errors import DataError, RunError, UsageError
from paragator.core.types import Completion, Failure, Prompt, Stage
from paragator.records import Graded
from paragator.results import EvalResult
from paragator.runs import resolve
from paragator.runs.connect import connection_of
from paragator.runs.events import Events, Printing, Progress

PROBLEMS = [paragator.Problem(f"p{i}", f"What is {i} + 1?", str(i + 1)) for i in range(6)]
PLAN = paragator.Plan.method(4, 2)


def sums(prompt: Prompt, index: int, stage: Stage, seed: int) -> str:
    """Candidates are right one time in four, aggregations always."""
    number = int(prompt.text.split()[2])
    return f"\\boxed{{{number + 1 + (index % 4 if stage == 'generate' else 0)}}}"


class Noted(Events):
    """Keeps what it hears; asks to stop after so many traces."""

    def __init__(self, most: int = 10**9) -> None:
        self.lines: list[str] = []
        self.traces: list[tuple[str, int, int]] = []
        self.most = most

    def say(self, line: str) -> None:
        self.lines.append(line)

    def on_trace(self, record: Graded, progress: Progress) -> None:
        self.traces.append((record.trace.problem.id, progress.finished, progress.total))

    def should_stop(self) -> bool:
        return len(self.traces) >= self.most


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_engine_and_problems_from_python(tmp_path: Path) -> None:
    events, engine = Noted(), paragator.Scripted(sums)
    found = paragator.evaluate(PROBLEMS, engine, plan=PLAN, events=events)
    assert [cell.mean for cell in found.table().series("pass_at_1")] == [0.25, 1.0, 1.0]
    assert found.finished and not found.failed and found.folder is None and not list(tmp_path.iterdir())
    assert sorted(events.traces) == [(p.id, i + 1, 6) for i, p in enumerate(PROBLEMS)]
    assert any("6 held-out problems" in line for line in events.lines) and len(engine.calls) == 6 * 3


def test_the_same_in_a_running_loop_and_awaited() -> None:
    async def notebook() -> tuple[EvalResult, EvalResult]:
        waited = paragator.evaluate(PROBLEMS, paragator.Scripted(sums), plan=PLAN)
        return waited, await aio.evaluate(PROBLEMS, paragator.Scripted(sums), plan=PLAN)

    first, second = asyncio.run(notebook())
    assert first.traces == second.traces == paragator.evaluate(PROBLEMS, paragator.Scripted(sums), plan=PLAN).traces


def test_a_folder_is_completed_by_a_second_call(tmp_path: Path) -> None:
    folder, engine = tmp_path / "kept" / "sums", paragator.Scripted(sums)
    engine.at_once = 1  # type: ignore[attr-defined]
    config = {"eval.repeats": 2}
    part = paragator.evaluate(PROBLEMS, engine, plan=PLAN, folder=folder, config=config, events=Noted(3))
    assert not part.finished and 3 <= len(part.traces) < 12 and "stopped before all were finished" in repr(part)
    again = paragator.Scripted(sums)
    whole = paragator.evaluate(PROBLEMS, again, plan=PLAN, folder=folder, config=config)
    assert whole.finished and len(whole.traces) == 12 and whole.folder == folder and (folder / "report.html").is_file()
    assert len(engine.calls) + len(again.calls) == 12 * 3  # nothing was asked twice
    with pytest.raises(UsageError, match=r"was run with another eval.repeats \(2 -> 1\)"):
        paragator.evaluate(PROBLEMS, again, plan=PLAN, folder=folder)
    assert len(list(paragator.read_traces(folder))) == len(list(paragator.read_traces(folder / "eval.jsonl"))) == 12
    with pytest.raises(DataError, match=r"holds no traces.jsonl or eval.jsonl"):
        paragator.read_traces(tmp_path)


def test_what_a_result_shows() -> None:
    def some(prompt: Prompt, index: int, stage: Stage, seed: int) -> str | Completion | Failure:
        return Failure("busy") if index == 3 else Completion("<b>\\boxed{1}", num_tokens=5)

    found = paragator.evaluate(PROBLEMS[:2], paragator.Scripted(some), plan=paragator.Plan.sampling(4))
    rows = found.samples()
    assert len(rows) == 8 and [row["index"] for row in rows] == [0, 1, 2, 3] * 2
    assert rows[0]["verdict"] == "correct" and rows[4]["verdict"] == "incorrect" and rows[0]["tokens"] == 5
    assert rows[3]["failure"] == "busy" and "text" not in rows[3]
    assert "pass@1" in repr(found) and repr(found).startswith("evaluation: 2 traces")
    page = found._repr_html_()
    assert page.count("<table>") == 2 and "<td>50.0" in page and "<b>\\boxed" not in page
    frame = found.frame()
    assert list(frame.groupby("problem")["reward"].mean()) == [1.0, 0.0] and len(frame) == 8


def test_finished_requests_are_known_by_the_weights_and_not_by_a_models_attributes(tmp_path: Path) -> None:
    """An engine's own attributes may be of any type: one called model is the network itself in the in-process engine."""
    engine = paragator.Scripted(sums)
    engine.model, engine.usage, engine.fingerprint = object(), {"calls": 3}, "weights-1"  # type: ignore[attr-defined]
    for config in (Config.model_validate({"engine": {"kind": "own"}}), Config()):
        run_dir = tmp_path / config.engine.kind
        connection = connection_of(config, PROBLEMS, run_dir, lambda: False, engine)
        assert connection.journal is not None and connection.usage is None
        known = resolve.facts_of(config, engine if config.engine.kind == "own" else None).fingerprint
        assert json.loads(connection.journal.settings)[0] == known and "object" not in connection.journal.settings
        asyncio.run(connection.journal.close(wait=False))
    assert known != "weights-1"  # the embedded model's own


def test_pandas_is_asked_for_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = paragator.evaluate(PROBLEMS[:1], paragator.Scripted(sums), plan=paragator.Plan.sampling(1))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match=r"pip install pandas, or use .samples\(\)"):
        found.frame()


def test_texts_that_one_has_are_aggregated() -> None:
    asked: list[str] = []

    def reply(prompt: Prompt, index: int, stage: Stage, seed: int) -> str:
        asked.append(prompt.text)
        assert stage == "aggregate"
        return "\\boxed{7}" if index else "\\boxed{8}"

    found = paragator.aggregate("What?", ["first", "second", "third"], paragator.Scripted(reply), aggregations=5)
    assert found.votes == {"7": 4, "8": 1} and found.answer == "7" and len(set(asked)) == 1
    assert all(text in asked[0] for text in ("first", "second", "third", "What?"))
    assert [o.text for o in found.trace.population(0)] == ["first", "second", "third"]
    for wrong in ([], ["a", " "], [3]):
        with pytest.raises(UsageError, match="give one text or more"):
            paragator.aggregate("What?", wrong, paragator.Scripted(reply))  # type: ignore[list-item]


def test_one_problem_over_an_engine_of_ones_own() -> None:
    rounds: list[tuple[int, int]] = []
    engine = paragator.Scripted(lambda prompt, index, stage, seed: f"\\boxed{{{index}}}")
    plan = paragator.Plan.method(3, 1)
    found = paragator.solve("What?", engine, plan=plan, seen=lambda r: rounds.append((r.number, r.done)))
    assert found.trace.plan == plan and rounds[-1] == (1, 3)
    with pytest.raises(RunError, match="no solution: gone"):
        paragator.solve("What?", paragator.Scripted(lambda *_: Failure("gone")))


def test_a_recording_is_an_engine(tmp_path: Path) -> None:
    line = '{{"id": "r{0}", "problem": "{0}?", "answer": "1", "completions": ["\\\\boxed{{1}}", "\\\\boxed{{2}}"]}}\n'
    (tmp_path / "r.jsonl").write_text("".join(line.format(i) for i in range(4)))
    engine = paragator.Replay(tmp_path / "r.jsonl")
    found = paragator.evaluate(tmp_path.joinpath("r.jsonl").as_posix(), engine, plan=paragator.Plan.sampling(2))
    assert found.table().cell("pass_at_1", 0).mean == 0.5 and len(found.traces) == 4


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"task": "countdow", "engine": "embedded"}, "task.name = 'countdow' is not a task; did you mean countdown"),
        ({"task": PROBLEMS, "engine": 7}, "engine = 7: give a model's name"),
        ({"task": [3], "engine": "embedded"}, "is no Problem with its reference"),
        ({"task": [paragator.Problem("a", "b")], "engine": "embedded"}, "is no Problem with its reference"),
        ({"task": PROBLEMS, "config": {"eval.roundz": 3}}, "did you mean eval.rounds"),
        ({"task": PROBLEMS, "engine": "http://127.0.0.1:1/v1"}, "no server answers there"),
        ({"task": [PROBLEMS[0], PROBLEMS[0]], "engine": paragator.Scripted(sums)}, "same id"),
    ],
)
def test_what_cannot_be_is_refused(arguments: Mapping[str, Any], wanted: str) -> None:
    with pytest.raises((UsageError, DataError), match=wanted):
        paragator.evaluate(**arguments)


def test_an_answer_is_graded() -> None:
    assert paragator.grade("so \\boxed{\\frac12}", "0.5").verdict == "correct"
    assert asyncio.run(aio.grade("\\boxed{3}", "4")).verdict == "incorrect"


def test_a_terminal_shows_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    Printing().say("a\x1b[31mb")
    assert capsys.readouterr().out == "a\\x1b[31mb\n"


def test_both_forms_are_one_function() -> None:
    """Each public function has its async form of the same parameters, and what the package hands out is what types see."""
    names = [name for name, found in vars(sync).items() if inspect.isfunction(found) and name != "blocking"]
    assert names == ["aggregate", "evaluate", "grade", "solve", "train"]
    for name in names:
        waited, awaited = getattr(paragator, name), getattr(aio, name)
        assert inspect.iscoroutinefunction(awaited) and inspect.signature(waited) == inspect.signature(awaited)
        assert waited.__doc__ and len(inspect.signature(waited).parameters) <= 7
    source = Path(str(paragator.__file__)).read_text()
    declared = {line.rpartition(" as ")[2] for line in source.splitlines() if line.startswith("    from paragator")}
    assert declared | {"__version__"} == set(paragator.__all__) and len(paragator.__all__) <= 30


SAME = [paragator.Problem("a", "1 + 1"), paragator.Problem("b", "1 + 1")]


@pytest.mark.parametrize(
    ("train", "what"), [(PROBLEMS, "6 of 6 held-out problems are training"), (SAME, r"text '1 \+ 1'")]
)
def test_a_task_whose_splits_or_problems_are_alike_is_not_trained_on(
    train: list[paragator.Problem], what: str, tmp_path: Path
) -> None:
    def problems(split: str, count: int, seed: int) -> list[paragator.Problem]:
        return train if split == "train" else PROBLEMS

    with pytest.raises(UsageError, match=what):
        paragator.train({"train.problems": 2}, task=paragator.Task("own", problems, lambda problem, texts: []))
    assert not list(tmp_path.iterdir())
