"""The examples and scripts run and do what their first lines say."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import paragator
from paragator.config import Config
from paragator.tasks import check_distinct, check_splits
from servers import Server, running

ROOT = Path(__file__).parents[2]
Script = Callable[..., str]
EXAMPLES, SCRIPTS = ROOT / "examples", ROOT / "scripts"


def test_one_file_learns_both_jobs() -> None:
    main = runpy.run_path(str(EXAMPLES / "one_file.py"))["main"]
    candidates, aggregations = asyncio.run(main())
    assert aggregations > candidates > 0.6
    assert aggregations > 0.9


def test_one_file_is_short() -> None:
    assert len((EXAMPLES / "one_file.py").read_text().splitlines()) < 250


def python_in(document: str) -> list[str]:
    """The Python blocks of a document."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / document).read_text(encoding="utf-8"), re.S)


@pytest.fixture(scope="module")
def run_script() -> Iterator[Script]:
    """What a script prints, run by tests/forked.py as a user runs it."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    words, pipe = [sys.executable, str(ROOT / "tests" / "forked.py")], subprocess.PIPE
    with subprocess.Popen(words, env=env, stdin=pipe, stdout=pipe, text=True) as forking:
        orders, codes = forking.stdin, forking.stdout
        assert orders and codes

        def run(path: Path, *words: str, cwd: Path) -> str:
            with tempfile.NamedTemporaryFile("r") as output:
                order = {"words": ["python", str(path), *words], "folder": str(cwd), "output": output.name}
                print(json.dumps(order), file=orders, flush=True)
                assert codes.readline() == "0\n", output.read()
                return output.read()

        yield run
        orders.close()


def test_an_endpoint_is_evaluated(tmp_path: Path, run_script: Script) -> None:
    def reply(prompt: str, seed: int, index: int) -> str:
        number = int(prompt.split()[2])
        return f"\\boxed{{{2 * number + ('attempt' not in prompt) * (index + seed) % 2}}}"

    with running(Server(reply=reply)) as server:
        printed = run_script(EXAMPLES / "evaluate_endpoint.py", server.url, cwd=tmp_path)
    assert "evaluation: 20 traces" in printed and printed.rstrip().endswith("1.0, 1.0]")
    assert not list(tmp_path.iterdir())


def test_texts_are_aggregated(tmp_path: Path, run_script: Script) -> None:
    printed = run_script(EXAMPLES / "aggregate_texts.py", cwd=tmp_path)
    assert "votes: {" in printed and "answer: " in printed


def test_an_own_method_trains(tmp_path: Path, run_script: Script) -> None:
    printed = run_script(EXAMPLES / "own_method.py", cwd=tmp_path)
    assert "runs/own-method: 2 steps, finished" in printed and printed.count("pass@1") >= 2


def test_the_own_method_of_the_page_on_algorithms_trains(tmp_path: Path, run_script: Script) -> None:
    (tmp_path / "page.py").write_text(python_in("algorithm.md")[-1])
    assert "runs/median: 2 steps, finished" in run_script(tmp_path / "page.py", cwd=tmp_path)


def test_an_own_task_trains(tmp_path: Path, run_script: Script) -> None:
    assert "runs/own-task: 3 steps, finished" in run_script(EXAMPLES / "own_task.py", cwd=tmp_path)
    run = tmp_path / "runs" / "own-task"
    trained = {record.trace.problem.text for record in paragator.read_traces(run, "traces")}
    evaluated = {record.trace.problem.text for record in paragator.read_traces(run, "eval_after")}
    assert (len(trained), len(evaluated), len(trained & evaluated)) == (12, 8, 0)


def snippet(document: str, word: str) -> str:
    """The Python block of a document that has this word."""
    return next(b for b in re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.S) if word in b)


def test_the_own_task_of_the_documents_has_two_splits_and_a_strict_grader() -> None:
    own: dict[str, Any] = {"__name__": "document"}
    exec(compile(snippet("docs/own-task.md", "paragator.Task("), "own-task.md", "exec"), own)  # noqa: S102  (our own page)
    train, held_out = (own["problems"](split, 64, 0) for split in ("train", "held-out"))
    assert len(train) == len(held_out) == 64
    check_splits("own-task", train, held_out)
    check_distinct("own-task", train + held_out)
    five = paragator.Problem("p", "2 2 1 -> 5", "5")
    grades = own["grade"](five, ["2 * 2 + 11 = 15", "2 * 2 + 1 = 5", "5", "2 * 2 + 1 = 5 apples"])
    assert [grade.verdict for grade in grades] == ["incorrect", "correct", "incorrect", "incorrect"]


def test_the_page_on_engines_ends_in_an_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    exec_in_a_module(python_in("add-an-engine.md")[-1])
    printed = capsys.readouterr().out
    assert "evaluation: 5 traces, 1 failed" in printed and printed.rstrip().endswith("['p3']")


def exec_in_a_module(code: str) -> None:
    exec(compile(code, "document", "exec"), {"__name__": "document"})  # noqa: S102  (our own page)


def test_the_probe_along_the_gradient(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A move of nothing measures what was there; a long one does not."""
    spec = importlib.util.spec_from_file_location("along_gradient", SCRIPTS / "along_gradient.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, value in {"PROBLEMS": 4, "CANDIDATES": 4, "DISTANCES": (1e-9, 30.0)}.items():
        monkeypatch.setattr(script, name, value)
    config = {
        "task": {"min_numbers": 3},
        "train": {"problems": 2, "precision": "float32"},
        "method": {"name": "dr_grpo"},
    }
    asyncio.run(script.probe(Config.model_validate(config)))
    head, here, nothing, far, noise = capsys.readouterr().out.splitlines()
    assert head.startswith("gradient's norm ") and here.split("candidates")[1] == nothing.split("candidates")[1]
    assert "candidates   0.0" in far and noise.startswith("noise of norm 30")
