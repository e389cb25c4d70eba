"""Strategies through evaluations: shared candidates, resumption, records, tables, and one new problem."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import paragator
from paragator import records
from paragator.core.errors import UsageError
from paragator.core.types import Choice, Completion, Failure, Grade, Group, Plan, Problem, Prompt, Stage, Trace
from paragator.engines.scripted import Scripted
from paragator.records import Graded
from paragator.runs.events import Events
from paragator.stats.resample import holm
from paragator.stats.strategies import StrategyTable, right_of
from paragator.tasks import Task

NAMES = ["majority", "aggregate_vote:rounds=1", "genselect", "pairwise", "judge", "agree", "pacore:widths=3"]


def sums(count: int = 5) -> Task:
    problems = [Problem(f"q{i}", f"What is {i} + 1?", str(i + 1)) for i in range(count)]

    def grade(problem: Problem, texts: Sequence[str]) -> list[Grade]:
        answers = [text.rpartition("=")[2] for text in texts]
        return [Grade("correct" if a == problem.answer else "incorrect", a) for a in answers]

    return Task("sums", lambda split, n, seed: problems[:n], grade)


def reply(prompt: Prompt, index: int, stage: Stage, seed: int) -> str | Completion:
    """Right two times in three; ratings prefer nobody in particular."""
    if "Judgment" in prompt.text:
        return f"Judgment: {1 + seed % 3}"
    if "Score A" in prompt.text:
        return f"Score A: {1 + seed % 10}\nScore B: {1 + seed // 7 % 10}"
    if "Score:" in prompt.text:
        return f"Score: {1 + seed % 10}"
    number = int(prompt.text.partition("What is ")[2].split()[0])
    return Completion(f"{seed % 1000} ={number + 1 + (seed % 3 == 0)}", num_tokens=10)


class StopsAfter(Scripted):
    """Raises once it has answered so many requests, as a killed process would stop."""

    def __init__(self, most: int) -> None:
        super().__init__(reply)
        self.most = most

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        if len(self.calls) >= self.most:
            raise KeyboardInterrupt
        return await super().__call__(prompt, n, stage=stage, seed=seed)


def evaluated(engine: Any, folder: Path, names: Sequence[str] = NAMES, **config: Any) -> paragator.aio.EvalResult:
    settings = {"eval.problems": 5, "eval.candidates": 6, "eval.pool_size": 3, "eval.rounds": 1, **config}
    return paragator.evaluate(sums(), engine, folder=folder, config=settings, strategy=names)


def test_several_strategies_share_their_candidates(tmp_path: Path) -> None:
    engine = Scripted(reply)
    result = evaluated(engine, tmp_path / "run")
    asked = [call for call in engine.calls if call[2] == "generate"]
    assert len(asked) == 5 * 6 and len(set(asked)) == len(asked)
    assert list(result.strategies) == NAMES and result.finished
    for name, found in result.strategies.items():
        assert [r.trace.extra["strategy"] for r in found] == [name] * 5
        assert all(r.trace.choice for r in found)
    mine = {name: [r.trace.population(0)[:3] for r in found] for name, found in result.strategies.items()}
    assert all(some == mine["majority"] for some in mine.values())
    again = evaluated(Scripted(lambda *_: pytest.fail("asked again")), tmp_path / "run")
    assert again.to_dict() == result.to_dict()
    more = Scripted(reply)
    evaluated(more, tmp_path / "run", [*NAMES, "majority:n=8"])
    assert len(more.calls) == 5 * 2, "another strategy pays for nothing twice"


def test_a_killed_run_pays_for_nothing_twice(tmp_path: Path) -> None:
    whole = Scripted(reply)
    expected = evaluated(whole, tmp_path / "whole")
    total, calls, at = len(whole.calls), 0, tmp_path / "killed"
    for most in (7, 30, 3, 50):
        engine = StopsAfter(most)
        with pytest.raises(KeyboardInterrupt):
            evaluated(engine, at)
        calls += len(engine.calls)
    last = StopsAfter(10**9)
    found = evaluated(last, at)
    assert calls + len(last.calls) == total
    assert found.to_dict() == expected.to_dict()
    for path in sorted((tmp_path / "whole" / "strategies").iterdir()):
        assert path.read_bytes() == (at / "strategies" / path.name).read_bytes()


def test_a_stopped_run_says_so_and_is_resumed(tmp_path: Path) -> None:
    class Stops(Events):
        def __init__(self) -> None:
            self.traces = 0

        def on_trace(self, record: Any, progress: Any) -> None:
            self.traces += 1

        def should_stop(self) -> bool:
            return self.traces >= 7

    settings = {"eval.problems": 5, "eval.candidates": 4}
    result = paragator.evaluate(
        sums(), Scripted(reply), folder=tmp_path / "r", config=settings, strategy=NAMES[:3], events=Stops()
    )
    assert not result.finished and "majority" in result.strategies
    whole = paragator.evaluate(sums(), Scripted(reply), folder=tmp_path / "r", config=settings, strategy=NAMES[:3])
    assert whole.finished and list(whole.strategies) == NAMES[:3]


def test_progress_is_of_the_strategy_that_runs(tmp_path: Path) -> None:
    """Its own requests and tokens, and the time left by what it is to ask, not by the rounds of the config."""
    last: dict[str, Any] = {}

    class Seen(Events):
        def on_trace(self, record: Any, progress: Any) -> None:
            last[progress.what] = progress

    names = ["majority:n=6", "genselect:n=6", "judge:n=6"]
    paragator.evaluate(
        sums(), Scripted(reply), folder=tmp_path / "r", strategy=names, events=Seen(), config={"eval.problems": 5}
    )
    assert [(last[name].calls, last[name].sampled) for name in names] == [(30, 1.0), (5, 1.0), (30, 1.0)]
    assert last["majority:n=6"].tokens == 300


def test_records_keep_choices_and_ratings(tmp_path: Path) -> None:
    result = evaluated(Scripted(reply), tmp_path / "run", ["judge"])
    path = tmp_path / "run" / "strategies" / "judge.jsonl"
    kept = list(paragator.read_traces(path))
    assert kept == list(result.traces) and kept[0].trace.choice and len(kept[0].trace.ratings) == 6
    row = json.loads(path.read_text().splitlines()[0])
    row["choice"]["weights"].append(0.0)
    with pytest.raises(paragator.ParagatorError, match="7 weights for 6 solutions"):
        records.decode(row)


def test_records_without_a_strategy_are_as_before() -> None:
    trace = Trace(Problem("p", "x"), Plan.sampling(1), 0, ((Group(Prompt("x"), (Completion("y"),)),),))
    row = records.encode(Graded(trace, (((Grade("correct", "y"),),),)))
    assert "choice" not in row and "ratings" not in row
    assert records.decode(json.loads(json.dumps(row))).trace == trace


def test_a_text_is_graded_once(tmp_path: Path) -> None:
    graded: list[tuple[str, str]] = []
    task = sums()

    async def grade(problem: Problem, texts: Sequence[str]) -> list[Grade]:
        await asyncio.sleep(0)
        graded.extend((problem.id, text) for text in texts)
        found = task.grade(problem, texts)
        assert isinstance(found, list)
        return found

    config = {"eval.problems": 5, "eval.candidates": 6}
    paragator.evaluate(replace(task, grade=grade), Scripted(reply), config=config, strategy="agree")
    assert graded and len(graded) == len(set(graded))


# ---- refusals --------------------------------------------------------------------------------------------------------


def recording(tmp_path: Path, **more: Any) -> paragator.Replay:
    completion = {"text": r"\boxed{2}", "num_tokens": 4, **more}
    row = {"id": "a", "problem": "What is 1 + 1? \n", "answer": "2", "completions": [completion] * 4}
    (tmp_path / "recorded.jsonl").write_text(json.dumps(row) + "\n")
    return paragator.Replay(tmp_path / "recorded.jsonl")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["genselect"], "asks for more than candidates"),
        (["confidence"], "needs confidences of tokens"),
        (["majority", "majority"], "names majority twice"),
        (["majority:n=5"], "5 candidates asked, 4 recorded"),
        (["majorty"], "did you mean"),
    ],
)
def test_what_cannot_work_is_refused_first(names: list[str], says: str, tmp_path: Path) -> None:
    recording(tmp_path)
    with pytest.raises(UsageError, match=says):
        paragator.evaluate(
            str(tmp_path / "recorded.jsonl"),
            "embedded",
            config={
                "engine.kind": "replay",
                "engine.recording": str(tmp_path / "recorded.jsonl"),
                "model.template": "chat",
            },
            strategy=names,
        )


def test_a_recording_may_tell_confidences(tmp_path: Path) -> None:
    recording(tmp_path, confidences=[3.0, 4, 5.5])
    config = {"engine.kind": "replay", "engine.recording": str(tmp_path / "recorded.jsonl"), "model.template": "chat"}
    task = str(tmp_path / "recorded.jsonl")
    result = paragator.evaluate(task, "embedded", config=config, strategy=["confidence", "majority"])
    choice = result.traces[0].trace.choice
    assert choice and choice.scores == pytest.approx((25 / 6,) * 4) and not choice.why


# ---- numbers ---------------------------------------------------------------------------------------------------------


def drawn(seed: int, problems: int = 12, candidates: int = 5) -> dict[str, list[Graded]]:
    """Graded traces of three strategies on the same random candidates."""
    rng = random.Random(seed)
    out: dict[str, list[Graded]] = {"majority": [], "judge": [], "aggregate": []}
    for i in range(problems):
        lengths = [rng.randrange(5, 50) for _ in range(candidates)]
        solutions = tuple(Completion(f"{i}:{j}", num_tokens=n) for j, n in enumerate(lengths))
        grades = tuple(
            Grade(rng.choice(["correct", "incorrect", "unscored"]), rng.choice(["a", "b", None])) for _ in solutions
        )
        first = Group(Prompt("x"), solutions, num_prompt_tokens=7)
        second = Group(Prompt("y"), solutions[:2], num_prompt_tokens=90, stage="aggregate", pool=(0, 1))
        rating = Group(Prompt("z"), (Completion("Score", num_tokens=3), Failure("x")), num_prompt_tokens=40)
        trace = Trace(Problem(f"p{i}", "x"), Plan.sampling(candidates), 0, ((first,),))
        raw = [rng.random() for _ in solutions]
        weights = tuple(w / sum(raw) for w in raw)
        out["majority"].append(Graded(replace(trace, choice=Choice(0, weights)), ((grades,),)))
        judged = replace(trace, choice=Choice(0, weights[::-1], why="x" * (i % 2)), ratings=(rating,))
        out["judge"].append(Graded(judged, ((grades,),)))
        chosen = None if i == 3 else Choice(1, (0.5, 0.5))
        both = replace(trace, rounds=((first,), (second,)), choice=chosen)
        out["aggregate"].append(Graded(both, ((grades,), (grades[:2],))))
    return out


def test_accuracy_is_the_expectation_over_scored_solutions() -> None:
    for record in drawn(1)["majority"]:
        choice = record.trace.choice
        assert choice
        pairs = [(w, g.verdict) for w, g in zip(choice.weights, record.of_round(0), strict=True)]
        scored = [(w, v == "correct") for w, v in pairs if v != "unscored"]
        if not scored:
            assert math.isnan(right_of(record))
            continue
        assert right_of(record) == pytest.approx(sum(w * r for w, r in scored) / sum(w for w, _ in scored))


def test_costs_by_stage_are_added_up() -> None:
    found = drawn(2)
    table = StrategyTable(found)
    for label, own in found.items():
        for i, record in enumerate(own):
            candidates = sum(c.length or 0 for c in record.trace.population(0))
            aggregated = sum(c.length or 0 for c in record.trace.population(1)) if label == "aggregate" else 0
            values = {
                name: table.values[label, name][i] for name in ("candidates", "aggregations", "ratings", "prompts")
            }
            prompts = 7 + 90 * (label == "aggregate") + 40 * (label == "judge")
            rated = 3 * (label == "judge")
            assert values == {
                "candidates": candidates, "aggregations": aggregated, "ratings": rated, "prompts": prompts
            }  # fmt: skip
            assert table.values[label, "tokens"][i] == sum(values.values())
            assert table.values[label, "requests"][i] == 5 + 2 * (label != "majority")
    assert table.intervals["judge", "fell_back"].mean == 0.5
    assert table.intervals["aggregate", "unanswered"].mean == pytest.approx(1 / 12)
    assert math.isnan(table.values["aggregate", "accuracy"][3])


def test_a_vote_at_equal_tokens_is_what_it_says() -> None:
    """At the cost of n candidates the exact maj@n; between, the mixture that costs as much."""
    table = StrategyTable(drawn(3))
    costs = [sum(column) / len(column) for column, _ in table.votes]
    assert len(costs) == 5
    for n, cost in enumerate(costs):
        assert table.vote_at(cost) == pytest.approx(table.votes[n][1], nan_ok=True)
    half = table.vote_at((costs[1] + costs[2]) / 2)
    assert half == pytest.approx(
        [(a + b) / 2 for a, b in zip(table.votes[1][1], table.votes[2][1], strict=True)], nan_ok=True
    )
    assert table.vote_at(costs[-1] + 1) is None and table.vote_at(costs[0] - 1) is None


def test_differences_are_paired_and_corrected_by_holm() -> None:
    table = StrategyTable(drawn(4))
    a, b = table.values["judge", "accuracy"], table.values["majority", "accuracy"]
    pairs = [x - y for x, y in zip(a, b, strict=True) if not math.isnan(x - y)]
    assert table.gains["judge", "first"].mean == pytest.approx(sum(pairs) / len(pairs))
    raw = [table.gains[label, "first"].p_value() for label in ("judge", "aggregate")]
    assert list(table.p_values("first").values()) == holm(raw)
    assert set(table.p_values("vote")) <= {"judge", "aggregate"}, "a vote is not compared with itself"
    text = table.text()
    assert "Accuracy - majority" in text and "Holm's p" in text and "12 problems" in text
    found = table.to_dict()
    assert table.markdown().count("| strategy |") >= 2 and json.loads(json.dumps(found, allow_nan=False)) == found
    assert [row["tokens"] for row in found["vote"]] == [tokens for tokens, _ in table.vote_curve()]
    assert found["strategies"]["judge"]["minus_first"]["mean"] == table.gains["judge", "first"].mean
    assert "strategies,,judge,accuracy,share" in table.csv()


def test_strategies_of_other_problems_are_not_compared() -> None:
    found = drawn(5)
    with pytest.raises(UsageError, match="run on other problems"):
        StrategyTable({"majority": found["majority"], "judge": found["judge"][:-1]})
    with pytest.raises(UsageError, match="no strategy was run"):
        StrategyTable({})


def test_the_picture_and_the_files(tmp_path: Path) -> None:
    from paragator.report.strategies import write_tables

    write_tables(StrategyTable(drawn(6)), tmp_path)
    assert (tmp_path / "strategies.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"strategies.{e}" for e in ("csv", "json", "md", "png")]


# ---- one new problem -------------------------------------------------------------------------------------------------


def test_solve_by_a_strategy() -> None:
    def boxed(prompt: Prompt, index: int, stage: Stage, seed: int) -> str:
        return "Judgment: 1" if stage == "aggregate" else rf"\boxed{{{seed}}}"

    seen: list[tuple[int, int, int]] = []
    found = paragator.solve(
        "2 + 2?", Scripted(boxed), strategy="genselect:n=5", seen=lambda r: seen.append((r.number, r.done, r.asked))
    )
    choice = found.trace.choice
    assert choice and found.text == found.trace.population(0)[choice.weights.index(1.0)].text
    assert found.trace.ratings[0].pool[0] == choice.weights.index(1.0)
    assert seen[-1] == (1, 1, 1) and (0, 5, 5) in seen

    found = paragator.solve("2 + 2?", Scripted(lambda *_: r"\boxed{4}"), strategy="agree:n=16")
    assert found.answer == "4" and found.votes == {"4": 4}
    with pytest.raises(UsageError, match="one problem takes one"):
        paragator.solve("2 + 2?", Scripted(boxed), config={"eval.strategies": ["majority", "agree"]})


# ---- budgets ---------------------------------------------------------------------------------------------------------


def test_a_budget_of_tokens_stops_cleanly_and_is_resumed(tmp_path: Path) -> None:
    engine = Scripted(reply)
    result = evaluated(engine, tmp_path / "run", ["majority", "agree"], **{"eval.max_tokens_total": 170})
    assert not result.finished and result.spent == "170 tokens of eval.max_tokens_total = 170"
    assert "2 traces, partial: 170 tokens" in repr(result)
    assert "PARTIAL: 170 tokens" in (tmp_path / "run" / "strategies.md").read_text()
    assert json.loads((tmp_path / "run" / "strategies.json").read_text())["partial"].startswith("170 tokens")
    again = Scripted(reply)
    whole = evaluated(again, tmp_path / "run", ["majority", "agree"], **{"eval.max_tokens_total": 10**9})
    assert whole.finished and not whole.spent
    assert "PARTIAL" not in (tmp_path / "run" / "strategies.md").read_text()
    other = Scripted(reply)
    evaluated(other, tmp_path / "other", ["majority", "agree"])
    assert len(engine.calls) + len(again.calls) == len(other.calls)


def test_budgets_by_what_is_counted(tmp_path: Path) -> None:
    from paragator.runs.usage import Budget, UsageLog

    usage: dict[str, Any] = {"prompt_tokens": 700, "completion_tokens": 300, "cost": 2.5}
    for tokens, cost, says in ((1001, None, ""), (1000, None, "1,000 tokens"), (None, 3.0, ""), (None, 2.5, "2.5 of")):
        budget = Budget(tokens, cost)
        budget.logs = [UsageLog(tmp_path / "usage.json", "m", lambda: usage)]
        assert budget.spent().startswith(says) and bool(budget.spent()) == bool(says)
    usage["completion_tokens"] = None
    assert "does not count" in budget.spent() and not Budget(None, None).spent()
    with pytest.raises(UsageError, match="needs prices"):
        evaluated(Scripted(reply), tmp_path / "run", ["majority"], **{"eval.max_cost": 1.0})


def test_pass_hat_k_is_all_of_k() -> None:
    import itertools

    from paragator.core.estimators import all_of_k

    for right in range(7):
        flags = [i < right for i in range(6)]
        for k in range(1, 7):
            subsets = [all(subset) for subset in itertools.combinations(flags, k)]
            assert all_of_k(6, right, k) == pytest.approx(sum(subsets) / len(subsets))
    assert math.isnan(all_of_k(2, 1, 3))


# ---- candidates that one already has -----------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [[], ["majority", "aggregate_vote:rounds=1", "judge"]])
def test_recorded_candidates_and_sampled_rounds(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked for a candidate; aggregations and ratings see recorded texts and come from the engine."""
    from paragator.runs import defaults, resolve
    from paragator.runs.evaluate import evaluate as evaluate_run
    from paragator.tasks.base import Task as TaskOfFile

    rows = []
    for i in range(5):
        recorded = [f"recorded {j} ={i + j}" for j in range(5)]
        rows.append({"id": f"q{i}", "problem": f"What is {i} + 1?", "answer": str(i + 1), "completions": recorded})
    path = tmp_path / "recorded.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": "run", "runs": str(tmp_path), "engine": {"kind": "openai", "url": "http://localhost:1/v1", "recording": str(path)},
        "eval": {"candidates": 4, "pool_size": 4, "rounds": 1, "strategies": names},
    }  # fmt: skip
    config = defaults.eval_config(values)
    assert config.task.path == str(path) and config.eval.problems == 5 and config.eval.rounds == 1
    engine = Scripted(reply)
    task: TaskOfFile = sums()
    result = asyncio.run(evaluate_run(config, task=task, engine=engine, report=False))
    assert engine.calls and all(stage == "aggregate" for _, _, stage, _ in engine.calls)
    assert all("recorded" in prompt.text for prompt, *_ in engine.calls)
    for record in result.traces:
        assert [one.text.split()[0] for one in record.trace.population(0)] == ["recorded"] * 4
    with pytest.raises(UsageError, match="6 candidates asked, 5 recorded"):
        resolve.resolve(defaults.with_values(config, {"eval.candidates": 6, "eval.strategies": []}), training=False)
