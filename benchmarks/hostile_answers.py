"""Hostile answers against the grader: their cost, and whether any of them is accepted.

    python benchmarks/hostile_answers.py [--count 100000] [--seed 0] [--output benchmarks/results/hostile_answers.json]

Every code payload and crafted answer of tests/corpora/hostile.py is tried with every reference below, and `--count` fuzzed ones
with one reference each, in a fresh folder. Exits with 1 when something is accepted, executed, left behind or over a limit.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import common

from paragator import grading
from paragator.core.types import Grade
from paragator.grading import decide as rules
from paragator.grading.workers import Workers

HERE = Path(__file__).resolve().parent
HOSTILE = HERE.parent / "tests" / "corpora" / "hostile.py"
REFERENCES = (
    "137",
    r"\frac{22}{7}",
    r"3\sqrt{5}-1",
    "x^2+3x+2",
    "(-2, 7]",
    r"x^2 + y^2 = 25",
    r"\{2, 3, 11\}",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}",
    r"2 < x \le 9",
    r"\binom{20}{7}",
)
CONTROL = """
import asyncio, sys, threading, time
threading.Thread(target=lambda: (sys.stdin.read(), print(longest, flush=True), __import__("os")._exit(0)), daemon=True).start()
longest = 0.0
async def tick():
    global longest
    while True:
        before = time.perf_counter()
        await asyncio.sleep(0.001)
        longest = max(longest, time.perf_counter() - before - 0.001)
asyncio.run(tick())
"""
"""An event loop with nothing to do, in a process of its own: how long the machine itself stalls it."""
SLICE = 250
HELD = "nothing: there is no peer; answers are the corpus and fuzzed ones of a fixed seed"
LIMITS = {"seconds": 6.0, "memory_mb": 2048.0, "stall_ms": 50.0}


def timed(text: str, reference: str, kind: str | None = None) -> Grade:
    """`decide` in a worker; the grade's value is the seconds it took."""
    start = time.perf_counter()
    found = rules.decide(text, reference, kind)
    return Grade(found.verdict, found.answer, found.reason, value=time.perf_counter() - start)


class Watch:
    """Peak resident memory of the workers, sampled; the kernel keeps each one's own peak."""

    def __init__(self, pool: Workers) -> None:
        self.pool, self.peak_kb, self.over = pool, 0, threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.over.wait(0.05):
            for pid in self.pool.pids():
                try:
                    status = Path(f"/proc/{pid}/status").read_text()
                except OSError:
                    continue
                for line in status.splitlines():
                    if line.startswith("VmHWM:"):
                        self.peak_kb = max(self.peak_kb, int(line.split()[1]))


class Run:
    """The whole trial, and what it found."""

    def __init__(self, hostile: Any, count: int, seed: int, folder: Path) -> None:
        self.hostile, self.count, self.seed = hostile, count, seed
        self.marker = folder / "executed"
        self.verdicts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.accepted: list[tuple[str, str]] = []
        self.slowest = (0.0, "")
        self.slowest_quick = (0.0, "")
        self.timeouts: Counter[str] = Counter()
        self.stall = 0.0
        self.done = 0

    def items(self) -> Iterator[tuple[str, str, str]]:
        """Name, text, reference."""
        for number, payload in enumerate(self.hostile.CODE_PAYLOADS):
            for reference in REFERENCES:
                yield f"payload {number}", payload.replace("{marker}", str(self.marker)), reference
        for name, text in self.hostile.crafted():
            for reference in REFERENCES:
                yield name, text, reference
        for number, text in enumerate(self.hostile.fuzzed(self.count, self.seed)):
            yield f"fuzzed {number}", text, REFERENCES[number % len(REFERENCES)]

    async def go(self, pool: Workers) -> None:
        ticker = asyncio.create_task(self.tick())
        stream = self.items()
        lock = asyncio.Lock()
        await asyncio.gather(*(self.take(stream, lock, pool) for _ in range(4)))
        ticker.cancel()

    async def take(self, stream: Iterator[tuple[str, str, str]], lock: asyncio.Lock, pool: Workers) -> None:
        said = time.monotonic()
        while True:
            async with lock:  # texts are made in a thread: only grading may block the loop
                batch = await asyncio.to_thread(lambda: list(islice(stream, SLICE)))
            if not batch:
                return
            grades = await grading.grade_many_async([(text, reference) for _, text, reference in batch], workers=pool)
            for (name, text, reference), grade in zip(batch, grades, strict=True):
                self.note(name, text, reference, grade)
            if time.monotonic() - said > 10:
                said = time.monotonic()
                print(f"{self.done} answers, {dict(self.verdicts)}, stall {self.stall * 1e3:.0f} ms", flush=True)

    def note(self, name: str, text: str, reference: str, grade: Grade) -> None:
        self.done += 1
        self.verdicts[grade.verdict] += 1
        if grade.verdict == "unscored":
            self.reasons[grade.reason.partition(":")[0][:60]] += 1
        if grade.verdict == "correct":
            self.accepted.append((f"{name} for {reference}", ascii(text[-120:])))
        if "timeout" in grade.reason:
            self.timeouts[name] += 1
        seconds = grade.value or (5.0 if "timeout" in grade.reason else 0.0)
        self.slowest = max(self.slowest, (seconds, f"{name} for {reference}"))

    async def tick(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self.stall = max(self.stall, time.perf_counter() - before - 0.001)

    def quick(self, text: str, reference: str, kind: str | None = None) -> Grade | None:
        """The real one, with a clock."""
        start = time.perf_counter()
        found = QUICK(text, reference, kind)
        seconds = time.perf_counter() - start
        self.slowest_quick = max(self.slowest_quick, (seconds, f"{len(text)} characters {text[:40]!a}"))
        return found


QUICK = rules.quick


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("hostile", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["hostile"] = module
    spec.loader.exec_module(module)
    return module


def alive(pids: set[int]) -> list[int]:
    """Those that still run and belong to us."""
    return [
        p
        for p in pids
        if Path(f"/proc/{p}/cmdline").exists() and b"forkserver" in Path(f"/proc/{p}/cmdline").read_bytes()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--corpus", type=Path, default=HOSTILE)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "hostile_answers.json")
    flags = parser.parse_args()
    output = flags.output.resolve()
    hostile = load(flags.corpus.resolve())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run = Run(hostile, flags.count, flags.seed, Path(folder))
        grading.rules.quick = run.quick
        pool = Workers(flags.workers, decide="hostile_answers:timed")
        watch = Watch(pool)
        control = subprocess.Popen(
            [sys.executable, "-c", CONTROL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        start = time.perf_counter()
        asyncio.run(run.go(pool))
        seconds = time.perf_counter() - start
        idle_stall = float(control.communicate("")[0])
        watch.over.set()
        pids = set(pool.pids())
        pool.close()
        left = alive(pids)
        markers = sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*"))
        os.chdir(HERE)
    marker = getattr(run.hostile, "MARKER", None)  # where the payloads of the corpus leave a trace, if it says so
    if marker and Path(marker).exists():
        markers.append(str(marker))
    found = {
        "answers": run.done,
        "seconds": round(seconds, 1),
        "verdicts": dict(run.verdicts),
        "unscored": dict(run.reasons.most_common(20)),
        "timeouts": dict(run.timeouts.most_common(200)),
        "accepted": len(run.accepted),
        "longest_task_s": round(run.slowest[0], 3),
        "longest_task": run.slowest[1],
        "longest_quick_ms": round(run.slowest_quick[0] * 1e3, 2),
        "longest_quick": run.slowest_quick[1],
        "peak_worker_mb": round(watch.peak_kb / 1024, 1),
        "longest_stall_ms": round(run.stall * 1e3, 1),
        "longest_stall_of_an_idle_loop_ms": round(idle_stall * 1e3, 1),
        "orphans": left,
        "markers": markers,
    }
    for name, value in found.items():
        print(f"{name:<34} {value}")
    for what, text in run.accepted[:20]:
        print(f"ACCEPTED {what}: {text}")
    common.write(output, [common.case("hostile answers", [seconds], None, [], HELD, **found)])
    stalled = run.stall * 1e3 > LIMITS["stall_ms"] + idle_stall * 1e3
    bad = run.accepted or left or markers or run.slowest[0] > LIMITS["seconds"] or stalled
    sys.exit(1 if bad or watch.peak_kb / 1024 > LIMITS["memory_mb"] else 0)


if __name__ == "__main__":
    main()
