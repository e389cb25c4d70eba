"""A canary: a server's key reaches no file, output, log or traceback, though the server echoes it in whatever it refuses."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import paragator
from paragator.cli.main import run
from paragator.config import TaskConfig
from paragator.core.errors import ParagatorError
from paragator.core.types import Grade
from paragator.records import Graded
from paragator.runs.events import Events, Progress
from paragator.settings import read_values
from paragator.tasks import load_task

ROOT = Path(__file__).parents[2]
KEY = "sk-canary-0f4c1b7e92ad5d36"
PIECES = [KEY[i : i + 12] for i in range(len(KEY) - 11)]
"""Half of it is too much as well."""
pytestmark = pytest.mark.e2e
Start = Callable[..., Any]


def echoing(servers: Any) -> type:
    """A server that repeats its request's Authorization header in every error, cut, escaped and split in several ways."""

    @dataclass
    class Echo(servers.Server):  # type: ignore[misc, name-defined]
        count: int = 0

        def choose(self, call: Any) -> str | tuple[int, str]:
            said = call.headers.get("authorization")
            if self.key is not None and said != f"Bearer {self.key}":
                return 401, f"Incorrect API key provided: {said}"
            if not call.path.endswith("completions"):
                return "ok"
            self.count += 1
            split = KEY[:9] + "\u200b" + KEY[9:]
            late = " " * 9_978 + str(said)  # cut in the middle of the key where messages are cut
            errors = [
                (400, f"no: {said} {said}"),
                (429, f"slow down, {said}"),
                (500, f"oops {split}"),
                (422, late),
                "ok",
            ]
            return errors[self.count % 5] if self.count % 2 else "ok"

    return Echo


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts echoing servers; the current folder is empty, and the key is in the environment."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CANARY_KEY", KEY)
    spec = importlib.util.spec_from_file_location("fake_servers", ROOT / "tests" / "servers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    server = echoing(module)
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(module.running(server(**settings)))


@pytest.fixture(params=["environment", "file"])
def key(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The flags that name the key's place."""
    (tmp_path / "key").write_text(KEY + "\n")
    if request.param == "environment":
        return ["--engine.key_env", "CANARY_KEY"]
    return ["--engine.key_env", "UNSET_KEY", "--engine.key_file", str(tmp_path / "key")]


def leaks(*texts: str) -> list[str]:
    """Files below the current folder, and texts, that hold the key or half of it."""
    held = {
        path.as_posix(): path.read_bytes().decode("utf-8", "replace") for path in Path().rglob("*") if path.is_file()
    }
    held |= {f"text {i}": text for i, text in enumerate(texts)}
    return [name for name, text in held.items() if any(piece in text for piece in PIECES)]


def traced(error: BaseException) -> str:
    """The traceback with the values of all our local variables."""
    found = traceback.TracebackException.from_exception(error, capture_locals=True)
    for part in unwound(found):
        for frame in part.stack:
            if "/src/paragator/" not in frame.filename:  # a test holds the key of course
                frame.locals = None
    return "".join(found.format())


def unwound(found: traceback.TracebackException | None) -> Iterator[traceback.TracebackException]:
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def test_the_canary_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not leaks("nothing")
    Path("file").write_text(f"half of it: {KEY[3:16]}")
    assert leaks(f"Bearer {KEY}") == ["file", "text 0"]


def test_an_evaluation_keeps_the_key_to_itself(
    start: Start, key: list[str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = start(key=KEY)
    words = ["--url", server.url, *key, "--task.name", "arithmetic", "--eval.problems", "6", "--rounds", "1"]
    assert run(["eval", *words, "--name", "e", "--candidates", "4", "--engine.total_timeout_s", "2"]) in (0, 3)
    kept = {path.name for path in Path("runs/e").rglob("*")}
    assert {"config.json", "manifest.json", "report.html"} <= kept
    reasons = [word for word in Path("runs/e").rglob("*.jsonl") if "http 400" in word.read_text()]
    assert reasons, "the server's words are in the records"
    shown = capsys.readouterr()
    assert not leaks(shown.out, shown.err, caplog.text)


class Stops(Events):
    """Stops after the first trace."""

    traces = 0

    def on_trace(self, record: Graded, progress: Progress) -> None:
        self.traces += 1

    def should_stop(self) -> bool:
        return self.traces > 0


def test_a_journal_keeps_the_key_to_itself(start: Start) -> None:
    config = {"engine.key_env": "CANARY_KEY", "engine.total_timeout_s": 2, "engine.max_in_flight": 4}
    paragator.evaluate("arithmetic", start(key=KEY).url, folder="runs/e", config=config, events=Stops())
    assert Path("runs/e/calls.jsonl").stat().st_size and not leaks()


def test_one_problem_keeps_the_key_to_itself(
    start: Start, key: list[str], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    words = ["--url", start(key=KEY).url, *key, "--candidates", "8", "--rounds", "1", "--engine.total_timeout_s", "2"]
    for more in ([], ["--json"]):
        assert run(["solve", "2+2", *words, "--output", "solved.jsonl", *more]) in (0, 3)
    shown = capsys.readouterr()
    assert "http 4" in shown.out and not leaks(shown.out, shown.err, caplog.text)


def test_training_keeps_its_judges_key_to_itself(
    start: Start, toy: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = start(key=KEY, reply=lambda prompt, seed, index: "Yes")
    words = ["--judge.mode", "hybrid", "--judge.url", server.url, "--judge.key_env", "CANARY_KEY", "--train.steps", "2"]
    values = read_values(toy / "toy.toml", words)
    del values["task"]["reward"]
    problems = load_task(TaskConfig(name="jsonl", path=str(toy / "train.jsonl"), held_out_path=str(toy / "test.jsonl")))
    task = replace(problems, grade=lambda problem, texts: [Grade("unscored", text, "no rule") for text in texts])
    paragator.train(values, task=task)
    assert server.count > 8 and json.loads(Path("runs/toy/judge.json").read_text())["asked"] > 8
    shown = capsys.readouterr()
    assert not leaks(shown.out, shown.err, caplog.text)


@pytest.mark.parametrize("verb", ["eval", "solve"])
def test_a_refused_key_is_in_no_error_and_no_traceback(start: Start, verb: str, key: list[str]) -> None:
    server = start(key="another")
    words = ["--url", server.url, *key] + (["2+2"] if verb == "solve" else ["--task.name", "arithmetic"])
    with pytest.raises(ParagatorError, match="refuses the key") as caught:
        run([verb, *words])
    assert not leaks(str(caught.value), repr(caught.value), traced(caught.value))


def test_a_refused_judge_is_in_no_error_and_no_traceback(
    start: Start, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(toy))
    words = ["--judge.mode", "always", "--judge.url", start(key="another").url, "--judge.key_env", "CANARY_KEY"]
    with pytest.raises(ParagatorError, match="refuses the key") as caught:
        run(["train", str(toy / "toy.toml"), *words])
    assert not leaks(str(caught.value), traced(caught.value))


def test_debug_shows_no_key(start: Start) -> None:
    words = ["solve", "2+2", "--url", start(key="another").url, "--engine.key_env", "CANARY_KEY", "--debug"]
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-m", "paragator", *words], capture_output=True, text=True, env=env, timeout=120
    )
    assert done.returncode == 1 and "Traceback" in done.stderr and not leaks(done.stdout, done.stderr)


def test_a_key_that_cannot_be_sent_is_not_shown(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_KEY", f"{KEY} and more")
    with pytest.raises(ParagatorError, match="more than a key") as caught:
        run(["solve", "2+2", "--url", start().url, "--engine.key_env", "CANARY_KEY"])
    assert not leaks(str(caught.value), traced(caught.value))
