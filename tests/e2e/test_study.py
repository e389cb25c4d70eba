"""A small study: stopped by Ctrl-C, killed, resumed, compared, and one of its runs repeated elsewhere to the same number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
HANG_S = 900
pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def start(toy: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `paragator study` on two methods by two seeds in an empty folder."""
    base = f'base = {{ file = "{toy}/toy.toml", train = {{ steps = 2, checkpoint_every = 1 }} }}'
    offline = (
        '{ method = "offline_aggregation", set = { method.hard_share = 1.0 } }'  # a few random candidates: any will do
    )
    cells = f'cells = [{{ method = "paragator" }}, {offline}]'
    settings = "[primary]\nround = 1\n[evaluation]\nproblems = 3\ncandidates = 4\npool_size = 2\nk = 2\nrounds = 2"
    text = f'name = "s"\nseeds = [0, 1]\n{base}\n{cells}\n{settings}\n'
    (tmp_path / "s.toml").write_text(text)
    env = {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{toy}"}
    started = []

    def call(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "paragator", "study", "s.toml", "--jobs", "2", *words]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.communicate()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + HANG_S
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.05)


def test_a_study_is_stopped_killed_and_resumed(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "s"
    process = start()
    wait_for(folder / "paragator-seed0" / "train" / "metrics.jsonl")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 130, err
    assert "stopping" in err and "resume with: paragator study s.toml" in out and "Traceback" not in err

    process = start()
    wait_for(folder / "paragator-seed0" / "eval" / "config.json")
    process.kill()  # its children outlive it; the next attempt waits for them
    process.communicate(timeout=HANG_S)

    process = start()
    out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, out + err
    assert "Primary outcome" in out and "results: runs/s/results" in out
    names = {path.parent.name for path in folder.glob("*/finished.json")}
    assert names == {f"{m}-seed{s}" for m in ("paragator", "offline_aggregation") for s in (0, 1)}
    for unit in folder.glob("*-seed?"):
        steps = [json.loads(line)["step"] for line in (unit / "train" / "metrics.jsonl").read_text().splitlines()]
        assert steps == [1, 2], unit
        assert len((unit / "eval" / "eval.jsonl").read_text().splitlines()) == 3
    assert len(list(folder.glob("candidates-*.jsonl"))) == 2
    assert (folder / "results" / "tables.md").is_file() and (folder / "results" / "reward_by_step.png").is_file()

    whole = {path: path.read_bytes() for path in folder.rglob("*.jsonl")}
    process = start("--json")
    found = json.loads(process.communicate(timeout=HANG_S)[0])
    assert set(found["runs"].values()) == {"finished"} and found["primary"][0]["minus"] == "paragator"
    assert {path: path.read_bytes() for path in folder.rglob("*.jsonl")} == whole

    process = start("--only", "paragator:1", "--runs", "again", "--results", str(folder / "results"))
    out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, out + err
    line = next(line for line in out.splitlines() if line.startswith("paragator-seed1: pass_at_1"))
    again, recorded = line.partition(" = ")[2].split()[0], line.partition("(")[2].split()[0]
    assert again == recorded
    assert not (tmp_path / "again" / "s" / "results").exists()

    unit = folder / "paragator-seed1"
    process = start("--only", "paragator:1", "--evaluation.problems", "2")  # evaluated anew, not trained anew
    out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, out + err
    assert len((unit / "eval" / "eval.jsonl").read_text().splitlines()) == 2
    metrics = unit / "train" / "metrics.jsonl"
    assert metrics.read_bytes() == whole[metrics]
