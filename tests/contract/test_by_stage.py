"""A model for candidates and another one for what comes after them: who is asked what, what is kept, what it costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import paragator
from paragator import records
from paragator.cli.main import run
from paragator.core.errors import UsageError
from paragator.core.types import Completion, Group, Problem, Prompt, Stage
from paragator.engines.scripted import Scripted
from servers import Server, running

PROBLEMS = [Problem(f"q{i}", f"What is {i} + 1?", str(i + 1)) for i in range(3)]


def cheap(prompt: str, seed: int, index: int) -> str:
    return rf"cheap \boxed{{{seed % 3}}}"


def strong(prompt: str, seed: int, index: int) -> str:
    return "strong Score: 7" if "Score:" in prompt else r"strong \boxed{2}"


@pytest.fixture
def two() -> Iterator[tuple[Server, Server]]:
    with running(Server(model="cheap", reply=cheap)) as first, running(Server(model="strong", reply=strong)) as second:
        yield first, second


def bodies(server: Server) -> list[Any]:
    return [call.body for call in server.settled().calls if call.body]


def config(two: tuple[Server, Server], **more: Any) -> dict[str, Any]:
    prices = {"engine.price_out": 1, "aggregate.price_out": 1000}
    sampling = {"generate.max_tokens": 50, "aggregate.max_tokens": 70, "aggregate.temperature": 0.5}
    sizes = {"eval.candidates": 4, "eval.pool_size": 2, "eval.rounds": 1}
    return {"aggregate.url": two[1].url, **prices, **sampling, **sizes, **more}


@pytest.mark.parametrize("strategy", [None, "judge", "aggregate_vote"])
def test_each_stage_has_its_model(two: tuple[Server, Server], strategy: str | None, tmp_path: Path) -> None:
    found = paragator.evaluate(PROBLEMS, two[0].url, folder=tmp_path / "r", config=config(two), strategy=strategy)
    first, second = map(bodies, two)
    assert len(first) == len(second) == 3 * 4
    assert {(b["model"], b["max_tokens"], b["temperature"]) for b in first} == {("cheap", 50, 1)}
    assert {(b["model"], b["max_tokens"], b["temperature"]) for b in second} == {("strong", 70, 0.5)}
    for record in found.traces:
        later = record.trace.ratings or record.trace.rounds[1]
        assert {group.model for group in record.trace.rounds[0]} == {"cheap"}
        assert {group.model for group in later} == {"strong"}
        assert records.decode(json.loads(json.dumps(records.encode(record)))).trace == record.trace
    if strategy:
        kept = json.loads((tmp_path / "r" / "strategies.json").read_text())["strategies"][strategy]["models"]
        assert kept == {"candidates": ["cheap"], "ratings" if strategy == "judge" else "aggregations": ["strong"]}
    usage = found.usage
    assert usage and usage["model"] == "cheap" and usage["aggregate"]["model"] == "strong"
    assert usage["total"]["calls"] == usage["aggregate"]["total"]["calls"] == 12
    assert usage["total"]["cost"] == usage["total"]["completion_tokens"] / 1e6
    assert usage["aggregate"]["total"]["cost"] == usage["aggregate"]["total"]["completion_tokens"] / 1e3
    again = paragator.evaluate(PROBLEMS, two[0].url, folder=tmp_path / "r", config=config(two), strategy=strategy)
    assert len(bodies(two[0])) + len(bodies(two[1])) == 24 and again.to_dict() == found.to_dict()


def test_both_bills_count_in_a_budget_and_a_resumed_run_asks_nobody_twice(
    two: tuple[Server, Server], tmp_path: Path
) -> None:
    limit = {"eval.max_cost": 0.02, "engine.max_in_flight": 1}
    part = paragator.evaluate(PROBLEMS, two[0].url, folder=tmp_path / "r", config=config(two, **limit))
    assert not part.finished and part.spent.endswith("of eval.max_cost = 0.02")
    paragator.evaluate(PROBLEMS, two[0].url, folder=tmp_path / "r", config=config(two))
    asked = [json.dumps(body) for server in two for body in bodies(server)]
    assert len(asked) == len(set(asked)) == 24
    assert not list((tmp_path / "r").glob("calls*"))


def test_a_model_of_the_same_server_and_one_problem(two: tuple[Server, Server]) -> None:
    two[0].others = ("small", "large")
    values = {"engine.model": "small", "aggregate.model": "large", "engine.price_out": 1, "aggregate.price_out": 10}
    found = paragator.solve("1 + 1?", two[0].url, plan=paragator.Plan.method(3, 1), config=values)
    assert [body["model"] for body in bodies(two[0])] == ["small"] * 3 + ["large"] * 3
    first, last = (sum(c.length or 0 for c in found.trace.population(t)) for t in (0, 1))
    assert found.cost == pytest.approx((first + 10 * last) / 1e6)


def test_two_engines_from_python(two: tuple[Server, Server]) -> None:
    def reply(prompt: Prompt, index: int, stage: Stage, seed: int) -> str:
        return rf"{stage} \boxed{{1}}"

    first, last = Scripted(reply), Scripted(reply)
    found = paragator.evaluate(PROBLEMS, (first, last), config={"eval.candidates": 4})
    assert {call[2] for call in first.calls} == {"generate"} and {call[2] for call in last.calls} == {"aggregate"}
    assert found.traces[0].trace.rounds[1][0].model == "Scripted"
    found = paragator.evaluate(PROBLEMS, (first, two[1].url), config={"eval.candidates": 4}, strategy="genselect")
    assert found.traces[0].trace.ratings[0].model == "strong"
    solved = paragator.solve("1 + 1?", (two[0].url, last))
    assert {group.model for group in solved.trace.rounds[0]} == {"cheap"} and solved.text.startswith("aggregate")


@pytest.mark.parametrize("strategy", ["majority", "aggregate_vote", "judge"])
def test_a_recording_gives_each_candidate_once(strategy: str, tmp_path: Path, two: tuple[Server, Server]) -> None:
    """Alone, continued by a server, and continued by a model that only aggregates."""
    rows = [{"id": p.id, "problem": p.text, "answer": p.answer, "completions": list("abcdef")} for p in PROBLEMS]
    path = tmp_path / "recorded.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (two[0].url, {"engine.recording": str(path)}),
        ((paragator.Replay(path), two[1].url), {"model.template": "chat"}),
    ]
    if strategy == "majority":
        kinds.append(("embedded", {"engine.kind": "replay", "engine.recording": str(path), "model.template": "chat"}))
    for engine, values in kinds:
        sizes = {"eval.candidates": 6, "eval.rounds": 1}
        found = paragator.evaluate(str(path), engine, config={**sizes, **values}, strategy=strategy)
        for record in found.traces:
            assert sorted(one.text for one in record.trace.population(0)) == list("abcdef")
    assert not any("cheap" in str(body) for body in bodies(two[1]))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"aggregate.price_in": 1}, "aggregate.price_in is of a model of its own: set aggregate.url"),
        ({"aggregate.model": "m"}, "needs a server that knows it: set aggregate.url"),
        ({"aggregate.url": "http://localhost:1/v1", "engine.price_in": 1}, "aggregate's are not: set them too"),
        ({"aggregate.url": "localhost:1"}, "aggregate.url = localhost:1"),
        ({"aggregate.url": "http://localhost:1/v1"}, "aggregate.url = http://localhost:1/v1: no server answers there"),
        ({"aggregate.url": "http://localhost:1/v1", "aggregate.key_file": "absent"}, "aggregate.key_file = absent"),
    ],
)
def test_what_cannot_work_is_one_line(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        paragator.evaluate("countdown", "embedded", config={"eval.problems": 1, **values})
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_training_and_recordings_refuse_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="training samples both stages from the policy"):
        run(["train", "quickstart", "--aggregate.url", "http://localhost:1/v1", "--runs", str(tmp_path)])
    (tmp_path / "r.jsonl").write_text('{"problem": "x", "answer": "1", "completions": ["a"]}\n')
    words = ["--recording", str(tmp_path / "r.jsonl"), "--aggregate-url", "http://localhost:1/v1"]
    with pytest.raises(UsageError, match="name the server that continues it by --url"):
        run(["eval", *words, "--runs", str(tmp_path)])
    engine = Scripted(lambda *_: Completion("x"))
    for wrong in ((engine, "embedded"), (engine, engine, engine)):
        with pytest.raises(UsageError, match="give two, the second one a server's URL or an engine"):
            paragator.evaluate(PROBLEMS, wrong)  # type: ignore[arg-type]


def test_groups_without_a_model_are_recorded_as_before() -> None:
    group = Group(Prompt("x"), (Completion("y"),))
    assert "model" not in records.encode_group(group, (None,))
