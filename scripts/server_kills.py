"""kill -9 of servers under evaluations and trainings: `python scripts/server_kills.py [KILLS] [--seed N]`.

Three fake vLLM servers, processes whose answers depend on nothing but the request, serve a run. At random instants one or all
of them are killed. Some are started again, without the weights that they were given; others stay away. A run whose servers
are all gone must end in one line and be resumable. Whatever happened, it must end in the bytes of a run that nobody
disturbed: an evaluation's records; a training's weights, optimiser state, traces, metrics, evaluations.

Waits that are tens of seconds for people are one here. Needs POSIX. Prints a table and exits with 1 where an end differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS)]

from kills import attempt, left_by, nothing, prepared  # noqa: E402

from mortal import HURRY  # noqa: E402
from paragator.report import page  # noqa: E402
from paragator.runs import folder  # noqa: E402
from paragator.training import loop  # noqa: E402

SERVERS, LATENCY_S, LIMIT_S = 3, 0.05, 120.0
"""How many serve a run, how long one answer takes, and within what time an attempt must end."""
ENGINE = ("--engine.wait_s=2", "--engine.request_timeout_s=10", "--engine.max_in_flight=4")
EVALUATION = (
    "eval", "--task=digits.jsonl", "--candidates=4", "--pool-size=3", "--pools=2", "--rounds=2", "--engine.kind=openai",
)  # fmt: skip
TRAINING = ("--engine.kind=vllm", "--train.kl=0.05")
VOCABULARY = 60
"""Ids that the trained model has, too."""


class Servers:
    """Processes on ports of their own, some of which live."""

    def __init__(self) -> None:
        free = [socket.create_server(("127.0.0.1", 0)) for _ in range(SERVERS)]
        self.ports = [found.getsockname()[1] for found in free]
        for found in free:
            found.close()
        self.alive: dict[int, subprocess.Popen[bytes]] = {}
        self.url = json.dumps([f"http://127.0.0.1:{port}/v1" for port in self.ports])

    def start(self, port: int) -> None:
        words = ["--vllm", f"--vocabulary={VOCABULARY}", f"--port={port}", f"--latency={LATENCY_S}"]
        command = [sys.executable, str(TESTS / "servers.py"), *words]
        self.alive[port] = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.alive[port].stdout.readline(), "a server did not start"  # type: ignore[union-attr]

    def start_all(self) -> None:
        for port in self.ports:
            if port not in self.alive:
                self.start(port)

    def kill(self, port: int) -> None:
        process = self.alive.pop(port)
        process.kill()
        process.communicate()


class Served:
    """One configuration: what it leaves undisturbed, how long that takes, and runs whose servers are killed."""

    def __init__(self, name: str, words: list[str], home: Path, rng: Random, servers: Servers) -> None:
        self.name, self.home, self.rng, self.servers = name, home, rng, servers
        home.mkdir()
        self.words = [*words, *ENGINE, f"--engine.url={servers.url}", f"--runs={home}"]
        self.stopped = 0
        start = time.perf_counter()
        code, said = self.attempted("whole", 0, Counter())
        if code:
            sys.exit(f"{name}: an undisturbed run ends with {code}: {said}")
        self.seconds = time.perf_counter() - start
        self.whole = self.left("whole")

    def left(self, run: str) -> dict[str, Any]:
        run_dir = self.home / run
        return left_by(run_dir) if "train" in self.words else {"eval.jsonl": (run_dir / "eval.jsonl").read_bytes()}

    def attempted(self, run: str, most: int, kills: Counter[str]) -> tuple[int, str]:
        """An attempt's exit code and what it printed, with at most so many kills of servers meanwhile."""
        log, rng = self.home / "log", self.rng
        log.unlink(missing_ok=True)
        self.servers.start_all()
        more = ["--resume"] if folder.is_used(self.home / run) else []
        (process,) = attempt([*self.words, f"--name={run}", *more], log, before=nothing)
        end = time.monotonic() + LIMIT_S
        strike_at = time.monotonic() + rng.uniform(0.02, self.seconds / 2) if most else float("inf")
        while not (found := os.waitpid(process, os.WNOHANG))[0]:
            if (now := time.monotonic()) > end:
                sys.exit(f"{self.name}: an attempt did not end within {LIMIT_S:g} s; see {log}")
            if now > strike_at:
                strike_at = now + rng.uniform(0.02, self.seconds / 2)
                most -= self.strike(most, kills)
            time.sleep(0.005)
        return os.waitstatus_to_exitcode(found[1]), log.read_text()

    def strike(self, most: int, kills: Counter[str]) -> int:
        """Kill one server or all, or start one again; how many were killed."""
        alive = sorted(self.servers.alive)
        away = sorted(set(self.servers.ports) - set(alive))
        if away and (not alive or not most or self.rng.random() < 0.4):
            self.servers.start(self.rng.choice(away))
            return 0
        everyone = len(alive) <= most and self.rng.random() < 0.4
        for port in (struck := alive if everyone else self.rng.sample(alive, min(1, most))):
            self.servers.kill(port)
        kills["all at once" if everyone else "one"] += len(struck)
        return len(struck)

    def killed(self, most: int) -> tuple[Counter[str], list[str]]:
        """Kills in one run, `most` of them at most, and what differs at its end."""
        shutil.rmtree(self.home / "killed", ignore_errors=True)
        kills = Counter[str]()
        while True:
            code, said = self.attempted("killed", most - kills.total(), kills)
            if not code:
                break
            errors = [line for line in said.splitlines() if line.startswith("error: ")]
            if len(errors) != 1 or "no server" not in errors[0] or "Traceback" in said:
                return kills, [f"an attempt ended with {code}: {said}"]
            self.stopped += 1
        found = self.left("killed")
        return kills, [k for k in sorted(found.keys() | self.whole.keys()) if found.get(k) != self.whole.get(k)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kills", nargs="?", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that servers go, too
    for name, (module, seconds) in HURRY.items():
        setattr(module, name, seconds)
    loop.MISMATCH = loop.OTHER_MODEL = float("inf")  # what a fake says of its tokens is of no model
    page.write_report = lambda run_dir: run_dir / "report.html"  # drawn from what is compared anyway
    home, rng, servers = Path(tempfile.mkdtemp(prefix="kills-")), Random(options.seed), Servers()
    os.chdir(home)
    rows = [{"id": f"q{i}", "problem": f"Digit {i} of which number?", "answer": str(i)} for i in range(6)]
    (home / "digits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = {"evaluation": list(EVALUATION), "training": [*prepared(home), *TRAINING]}
    kills, by_case, runs, told = Counter[str](), Counter[str](), 0, "no kills"
    try:
        cases = [Served(name, more, home / name, rng, servers) for name, more in words.items()]
        while kills.total() < options.kills:
            case = cases[runs % len(cases)]
            found, differing = case.killed(min(rng.randint(1, 6), options.kills - kills.total()))
            kills += found
            by_case[case.name] += found.total()
            runs += 1
            stopped = sum(case.stopped for case in cases)
            told = f"{kills.total()} of {options.kills} kills in {runs} runs, {stopped} stopped and resumed"
            print(told, file=sys.stderr, flush=True)
            if differing:
                print(f"{case.name}, after {dict(found)}: {', '.join(differing)} (see {case.home})")
                return 1
    finally:
        for port in list(servers.alive):
            servers.kill(port)
    print(f"kills of servers by case: {dict(by_case)}; {dict(kills)}")
    print(f"{told}: every end that of an undisturbed run")
    shutil.rmtree(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
