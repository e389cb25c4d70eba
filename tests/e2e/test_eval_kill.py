"""kill -9 at random instants of an evaluation over an endpoint; PARAGATOR_KILLS says how many (8 unless set).

A call is FINISHED when its answer stands as a whole line in calls.jsonl (or within a record in eval.jsonl) at the
instant of the kill: the server has answered it and the process has written it down. What is shown: no finished call
is ever requested again, no record is lost or doubled, and the last attempt leaves the file and prints the table that
an uninterrupted run does. A call that the server was answering, or had answered into a pipe that nobody read, is not
finished and is asked again; those are counted, and there can be no more of them than were under way.

Only the process itself is killed, as an out-of-memory killer would. Its children, in the same process group, have to
notice by themselves: none may be alive ten seconds later.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
KILLS = int(os.environ.get("PARAGATOR_KILLS", "8"))
IN_FLIGHT = 8
LATENCY_S = 0.2
CALLS = 10 * (4 + 2 * 4)
ORPHAN_S = 60.0
HANG_S = 120.0
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")]


def servers() -> Any:
    """tests/servers.py as a module."""
    spec = importlib.util.spec_from_file_location("fake_servers", TESTS / "servers.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Evaluation:
    """One evaluation in a folder of its own, in as many attempts as it takes."""

    def __init__(self, folder: Path, server: Any, more: str = "--pool-size 3 --pools 2 --rounds 2") -> None:
        self.folder, self.server, self.more = folder, server, more
        self.run_dir = folder / "runs" / "killed"
        folder.mkdir()
        rows = [{"id": f"q{i}", "problem": f"Digit {i} of which number?", "answer": str(i)} for i in range(10)]
        (folder / "digits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.first_call = len(server.calls)
        self.out = b""

    def start(self) -> subprocess.Popen[bytes]:
        """Begin an attempt, as the leader of a process group of its own."""
        line = (
            f"eval --name killed --task digits.jsonl --url {self.server.url} --candidates 4 "
            f"--engine.max_in_flight {IN_FLIGHT} {self.more}"
        )
        resume = ["--resume"] if (self.run_dir / "config.json").exists() else []
        return subprocess.Popen(
            [sys.executable, "-m", "paragator", *line.split(), *resume],
            cwd=self.folder,
            env={
                **os.environ,
                "PYTHONPATH": str(TESTS.parent / "src"),
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def attempt(self, kill_after_s: float | None) -> bool:
        """Run one attempt; False when it was killed. Anything but a kill and success fails the test."""
        process = self.start()
        killed = False
        try:
            self.out, err = process.communicate(timeout=HANG_S if kill_after_s is None else kill_after_s)
        except subprocess.TimeoutExpired:
            killed = kill_after_s is not None
            process.kill()
            self.out, err = process.communicate()
            assert killed, f"no end after {HANG_S} s: {err.decode()}"
        assert_no_orphans(process.pid)
        if killed and process.returncode == -signal.SIGKILL:
            return False
        assert process.returncode == 0, err.decode()
        return True

    def finished(self) -> set[str]:
        """The texts of finished calls; a text tells its call, as it holds 32 random bits of prompt and seed."""
        rows = [*whole_lines(self.run_dir / "calls.jsonl"), *whole_lines(self.run_dir / "eval.jsonl")]
        groups = [group for row in rows for groups in row.get("rounds", [[row]]) for group in groups]
        return {output["text"] for group in groups for output in group["outputs"]}

    def requested(self, since: int) -> list[str]:
        """The texts that answer the completion requests which came after the first `since` calls."""
        bodies = [call.body for call in self.server.calls[since:] if call.path.endswith("completions")]
        assert all(body.get("n") in (None, 1) for body in bodies)
        return [self.server.reply(prompt_of(body), body["seed"], 0) for body in bodies]

    def table(self) -> list[str]:
        """The printed numbers."""
        return [line for line in self.out.decode().splitlines() if line.startswith("  ")]


def prompt_of(body: Any) -> str:
    return "\n".join(str(message["content"]) for message in body["messages"])


def whole_lines(path: Path) -> list[Any]:
    """The rows of a file; a last line without its end does not count."""
    content = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


def assert_no_orphans(group: int) -> None:
    deadline = time.monotonic() + ORPHAN_S
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    os.killpg(group, signal.SIGKILL)
    raise AssertionError("children outlived the process by a minute")


def test_kill_at_random_instants(tmp_path: Path) -> None:
    fake = servers()
    rng = random.Random(os.environ.get("PARAGATOR_KILL_SEED", "0"))
    kills = evaluations = again = 0
    with fake.running(fake.Server(latency_s=LATENCY_S)) as server:
        whole = Evaluation(tmp_path / "whole", server)
        start = time.monotonic()
        assert whole.attempt(None)
        takes_s = time.monotonic() - start
        wanted, table = (whole.run_dir / "eval.jsonl").read_bytes(), whole.table()
        texts = whole.requested(whole.first_call)
        assert len(table) >= 4 and len(texts) == CALLS == len(set(texts))
        while kills < KILLS:
            evaluation = Evaluation(tmp_path / f"killed{evaluations}", server)
            evaluations += 1
            done = False
            while not done:
                since, finished = len(server.calls), evaluation.finished()
                done = evaluation.attempt(rng.uniform(0.1, takes_s) if kills < KILLS else None)
                kills += not done
                repeated = finished & set(evaluation.requested(since))
                assert not repeated, f"{len(repeated)} finished calls were requested again"
            requested = evaluation.requested(evaluation.first_call)
            assert set(requested) == set(texts)
            again += len(requested) - CALLS
            assert (evaluation.run_dir / "eval.jsonl").read_bytes() == wanted
            assert evaluation.table() == table
            assert not (evaluation.run_dir / "calls.jsonl").exists()
    print(f"{kills} kills in {evaluations} evaluations of {CALLS} calls, {again} unfinished calls asked again")
    assert again <= kills * IN_FLIGHT


def test_strategies_pay_for_nothing_twice_either(tmp_path: Path) -> None:
    """Killed once among the second strategy's requests, which are ratings of the candidates that all share."""
    fake = servers()
    names = ("majority", "judge", "aggregate_vote:rounds=1")
    wanted = 10 * (4 + 4 + 4)
    with fake.running(fake.Server(latency_s=LATENCY_S / 4)) as server:
        strategies = " ".join(f"--strategy {name}" for name in names)
        whole, killed = (Evaluation(tmp_path / name, server, strategies) for name in ("whole", "killed"))
        assert whole.attempt(None)
        server.script[:] = ["ok"] * 60 + ["stall"] * IN_FLIGHT
        process = killed.start()
        deadline = time.monotonic() + HANG_S
        while len(killed.finished()) < 60 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert_no_orphans(process.pid)
        server.settled().script.clear()
        finished, resumed = killed.finished(), len(server.calls)
        assert len(finished) == 60 < wanted and killed.attempt(None)
        assert not finished & set(killed.requested(resumed)), "a finished call was requested again"
        assert len(killed.requested(resumed)) == wanted - len(finished)
        for name in ("strategies.json", *(f"strategies/{name.replace(':', '-')}.jsonl" for name in names)):
            assert (killed.run_dir / name).read_bytes() == (whole.run_dir / name).read_bytes()


def test_ctrl_c_spends_no_call_twice(tmp_path: Path) -> None:
    """The first one lets calls under way finish and begins no other; the run is resumable and says so."""
    fake = servers()
    with fake.running(fake.Server(latency_s=LATENCY_S)) as server:
        evaluation = Evaluation(tmp_path / "stopped", server)
        process = evaluation.start()
        server.script[:] = ["ok"] * (CALLS // 3) + ["held"] * IN_FLIGHT
        deadline = time.monotonic() + HANG_S
        while len(server.held) < IN_FLIGHT and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stderr and any(b"again stops at once" in line for line in process.stderr)
        server.release()
        out, err = process.communicate(timeout=HANG_S)
        assert process.returncode == 130, err.decode()
        assert b"go on with --resume" in out
        assert_no_orphans(process.pid)
        assert len(evaluation.requested(0)) < CALLS
        assert len(evaluation.finished()) == len(evaluation.requested(0))
        assert evaluation.attempt(None)
        assert len(evaluation.requested(0)) == CALLS == len(set(evaluation.requested(0)))
