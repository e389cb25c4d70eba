"""`paragator solve` and paragator.solve over a fake server and the embedded model; prompts never exceed a context."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import paragator
from paragator import records
from paragator.cli.main import run
from paragator.core.errors import DataError, RunError, UsageError
from paragator.runs.solve import Solution

TESTS = Path(__file__).parents[1]
HANG_S = 120.0
pytestmark = pytest.mark.e2e
Start = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts servers of tests/servers.py; the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("fake_servers", TESTS / "servers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(module.running(module.Server(**settings)))


def agreeing(prompt: str, seed: int, index: int) -> str:
    return r"Add them: \boxed{4.0}" if seed % 4 else r"Hm: \boxed{5}"


# ---- the command -----------------------------------------------------------------------------------------------------


def test_json_is_one_object(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    server = start(reply=agreeing)
    words = [
        "--rounds",
        "2",
        "--candidates",
        "5",
        "--json",
        "--engine.price_out",
        "1e6",
        "--output",
        "out/traces.jsonl",
    ]
    assert run(["solve", "What is 2 + 2?", "--url", server.url, *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problem"] == "What is 2 + 2?" and found["answer"] == "4" and found["failure"] is None
    assert found["solution"] == r"Add them: \boxed{4.0}" and found["votes"]["4"] > found["votes"].get("5", 0)
    assert [(r["round"], r["asked"], r["done"]) for r in found["rounds"]] == [(0, 5, 5), (1, 5, 5), (2, 5, 5)]
    assert found["tokens"] == sum(r["tokens"] for r in found["rounds"]) > 0 and found["cost"] > 0
    (record,) = records.read(Path("out/traces.jsonl"))
    assert record.trace.problem.text == "What is 2 + 2?" and set(record.rewards(2)) == {None}
    assert [path.name for path in Path().iterdir()] == ["out"]
    assert len([call for call in server.calls if call.path.endswith("completions")]) == 15


def test_lines_where_there_is_no_terminal(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["solve", "What is 2 + 2?", "--url", start(reply=agreeing).url, "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("round 0: 4/4  4 x") and lines[1].startswith("round 1: 4/4  ")
    assert "answer: 4  (" in "\n".join(lines) and not list(Path().iterdir())


def test_the_problem_from_a_file_or_standard_input(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start()
    Path("p.txt").write_text("From a file?\n")
    assert run(["solve", "--file", "p.txt", "--url", server.url, "--rounds", "0"]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("From a pipe?"))
    assert run(["solve", "-", "--url", server.url, "--rounds", "0", "--candidates", "2"]) == 0
    asked = [call.body["messages"][0]["content"] for call in server.calls if call.body]
    assert [text.partition("?")[0] for text in asked] == ["From a file"] * 4 + ["From a pipe"] * 2


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("", "one problem is needed"),
        ("x --file y", "one problem is needed"),
        ("--file none.txt", "none.txt cannot be read"),
        ("x --rounds many", "eval.rounds = 'many'"),
        ("x --url http://localhost:1/v1", "no server answers there"),
        ("x --rounds 1 --eval.rounds 2", "--rounds is short for --eval.rounds"),
    ],
)
def test_what_cannot_be_is_refused(start: Start, line: str, wanted: str) -> None:
    with pytest.raises((UsageError, DataError), match=wanted):
        run(["solve", *line.split()])


def test_when_every_request_fails_the_reason_is_given(start: Start) -> None:
    server = start(script=[(400, "bad luck")] * 99)
    with pytest.raises(RunError, match="no solution: http 400: bad luck"):
        run(["solve", "x", "--url", server.url])


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_ctrl_c_prints_what_is_there(start: Start) -> None:
    server = start(reply=agreeing, script=["ok", *["stall"] * 9])
    code = "from paragator.cli.main import main; main()"
    words = [sys.executable, "-c", code, "solve", "What?", "--url", server.url, "--candidates", "1", "--json"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    end = time.monotonic() + HANG_S
    while len(server.calls) < 3 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)  # the listing, the candidate, and then an aggregation has begun, which is not answered
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 130, err
    found = json.loads(out)
    assert found["failure"] == "interrupted" and found["answer"] in ("4", "5")
    assert [r["done"] for r in found["rounds"]] == [1, 0] and server.settled().outcomes["cancelled"] == 1


# ---- the function ----------------------------------------------------------------------------------------------------


def test_the_embedded_model_in_a_script_and_in_a_running_loop(start: Start) -> None:
    first = paragator.solve("3 4 7 8 -> 24", plan=paragator.Plan.method(4, 1))
    assert isinstance(first, Solution) and first.answer and first.tokens and len(first.trace.rounds) == 2

    async def notebook() -> Any:
        return paragator.solve("3 4 7 8 -> 24", plan=paragator.Plan.method(4, 1))

    assert asyncio.run(notebook()).votes == first.votes


def test_a_server_by_the_function(start: Start) -> None:
    server, seen = start(reply=agreeing), []
    found = paragator.solve(
        "What is 2 + 2?",
        server.url,
        plan=paragator.Plan.method(3, 1),
        config={"generate.max_tokens": 77, "engine.extra_body": {"note": [1]}},
        seen=lambda round_: seen.append(round_.done),
    )
    assert found.answer in ("4", "5") and seen == [0, 1, 2, 3, 0, 1, 2, 3]
    bodies = [call.body for call in server.calls if call.body]
    assert {body["max_tokens"] for body in bodies} == {77, 4096} and bodies[0]["note"] == [1]


# ---- the context -----------------------------------------------------------------------------------------------------


def long_winded(prompt: str, seed: int, index: int) -> str:
    """Solutions of which a token has two to eight bytes, with and without thinking, short and far too long."""
    rng = random.Random(f"{seed}:{index}")
    body = rng.choice(["7 ", "wording ", "數 "]) * rng.choice([5, 50, 300])
    body = f"<think>{body}</think> so " if rng.random() < 0.3 else body
    return f"{body}\\boxed{{{rng.randrange(5)}}}"


@pytest.mark.parametrize("tokenize", [True, False])
@pytest.mark.parametrize("context", [350, 700, 5000])
def test_no_prompt_exceeds_the_context(start: Start, context: int, tokenize: bool) -> None:
    server = start(reply=long_winded, max_model_len=context, tokenize=tokenize)
    config = {"generate.max_tokens": 150, "aggregate.max_tokens": 200}
    notes: set[str] = set()
    for seed in range(4):
        found = paragator.solve("1 " * 60, server.url, plan=paragator.Plan(6, 2, 4, 3, 6), seed=seed, config=config)
        notes |= {note for groups in found.trace.rounds for group in groups for note in group.reductions}
    assert server.settled().outcomes["400"] == 0
    kinds = {note.partition(":")[0] for note in notes}
    assert kinds >= ({"tail", "dropped"} if context == 350 else {"tail"} if context == 700 else set())
    assert context < 5000 or not kinds & {"tail", "dropped"}
    assert (server.counted > 0) == (tokenize and context < 5000)


@pytest.mark.parametrize("tokenize", [True, False])
def test_a_problem_longer_than_the_context_is_a_failure_with_its_reason(start: Start, tokenize: bool) -> None:
    server = start(max_model_len=400, tokenize=tokenize)
    with pytest.raises(RunError, match="no solution: context length: "):
        paragator.solve("1 " * 390, server.url, config={"generate.max_tokens": 50, "aggregate.max_tokens": 50})
    assert (server.settled().outcomes["400"] == 0) == tokenize
    assert not tokenize or server.counted == 1  # equal prompts are counted once


def test_max_tokens_beyond_the_context_is_refused(start: Start) -> None:
    with pytest.raises(UsageError, match=r"generate.max_tokens = 4000 leaves no room .* context of 4000; lower it"):
        paragator.solve("x", start(max_model_len=4000).url, config={"generate.max_tokens": 4000})


@pytest.mark.parametrize(("context", "lengths"), [(2048, {512}), (8192, {4096}), (None, {4096}), (300, {75})])
def test_lengths_that_nobody_set_fit_the_servers_context(start: Start, context: int | None, lengths: set[int]) -> None:
    server = start(max_model_len=context)
    paragator.solve("What is 2 + 2?", server.url)
    assert {call.body["max_tokens"] for call in server.settled().calls if "max_tokens" in (call.body or {})} == lengths


def test_an_evaluation_keeps_to_the_context_too(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    server = start(reply=long_winded, max_model_len=500, tokenize=True)
    rows = [{"id": f"r{i}", "problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(12)]
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = "--task sums.jsonl --candidates 4 --rounds 2 --generate.max_tokens 200 --aggregate.max_tokens 200 --name c"
    assert run(["eval", "--url", server.url, "--model", "fake", *line.split()]) == 0
    assert set(server.settled().outcomes) == {"ok"}
    found = list(records.read(Path("runs/c/eval.jsonl")))
    assert any(group.reductions for r in found for groups in r.trace.rounds for group in groups)
