"""Grading workers: what hangs, crashes, raises or eats memory costs its own verdict only; no process outlives its parent."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from paragator import grading
from paragator.core.errors import RunError, UsageError
from paragator.core.types import Grade
from paragator.grading import workers
from paragator.grading.workers import Workers

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers need POSIX")
SOURCE = Path(__file__).parents[2] / "src"
HANG_S = 120
"""No test takes so long, on however busy a machine: what does is stuck."""
DECIDE = """
import os, signal, sys, time
from paragator.core.types import Grade

def decide(text, reference, kind=None):
    if text == "hang":
        while True:
            pass
    if text == "hang in C":
        os.close(os.open(f"{__file__}.{os.getpid()}", os.O_CREAT))  # a sign that it does
        3 ** (10 ** 10)
    if text == "sleep":
        time.sleep(3600)
    if text == "memory":
        bytearray(8 << 30)
    if text == "hoard":
        hoard = []
        while True:
            hoard.append(bytearray(10 << 20))
    if text == "exit":
        os._exit(3)
    if text == "exit 0":
        os._exit(0)
    if text == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if text == "stop":
        sys.exit(1)
    if text == "raise":
        raise ArithmeticError("no such number")
    if text == "deep":
        return decide2(text)
    if text == "junk":
        return "correct"
    if text == "pid":
        return Grade("correct", str(os.getpid()))
    if text == "slow":
        time.sleep(0.2)
    return Grade("correct" if text == reference else "incorrect", text)

def decide2(text):
    return decide2(text)

def raising(text, reference, kind=None):
    raise AssertionError
"""


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Workers]]:
    """Makes pools over the functions above; they are closed at the end, and then none of their processes is left."""
    (tmp_path / "hostile_decide.py").write_text(DECIDE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("paragator.grading.rules.quick", lambda *_: None)
    made: list[Workers] = []

    def make(**kwargs: object) -> Workers:
        settings = {"workers": 2, "timeout_s": 1.0, "decide": "hostile_decide:decide"} | kwargs
        made.append(Workers(**settings))  # type: ignore[arg-type]
        return made[-1]

    before = {p for p, _ in family(os.getpid())}
    yield make
    for one in made:
        one.close()
    names = {p: name for p, name in family(os.getpid()) if p not in before and "resource_tracker" not in name}
    assert names == {}


def family(root: int) -> list[tuple[int, str]]:
    """Process ids and command lines of all descendants that run."""
    parents: dict[int, tuple[int, str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if state != "Z":
            parents[int(folder.name)] = (int(parent), line)
    found = [root]
    for one in found:
        found += [child for child, (parent, _) in parents.items() if parent == one]
    return [(one, parents[one][1]) for one in found[1:]]


def same_session(session: int) -> set[int]:
    """Running processes of a session."""
    out = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[3]) == session:
            out.add(int(folder.name))
    return out


def innocent(count: int) -> list[tuple[str, str]]:
    return [(f"{i}", f"{i - i % 2}") for i in range(count)]


def check_innocent(grades: list[Grade]) -> None:
    for i, grade in enumerate(grades):
        assert grade == Grade("incorrect" if i % 2 else "correct", str(i))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hang", "timeout after "),  # 1 s of CPU time, or 30 s by the clock where the machine is very busy
        ("hang in C", "timeout after "),
        ("memory", "memory limit"),
        ("hoard", "memory limit"),
        ("exit", "worker died (exit code 3)"),
        ("segfault", "worker died (SIGSEGV)"),
        ("stop", "SystemExit: 1"),
        ("raise", "ArithmeticError: no such number"),
        ("deep", "RecursionError: maximum recursion depth exceeded"),
        ("junk", "TypeError: decide gave str, not a Grade"),
    ],
)
def test_only_the_guilty_is_unscored(pool: Callable[..., Workers], text: str, reason: str) -> None:
    items = [*innocent(20), (text, "1"), *innocent(20)]
    seconds = 1.0 if "hang" in text else 60.0  # on a busy machine, filling the memory takes more than one
    grades = grading.grade_many(items, workers=pool(memory_bytes=400 << 20, timeout_s=seconds))
    assert grades[20].verdict == "unscored"
    assert grades[20].answer == text
    assert grades[20].reason.startswith(reason)
    check_innocent(grades[:20])
    check_innocent(grades[21:])


@pytest.mark.parametrize("text", ["sleep", "exit 0"])
def test_what_takes_no_cpu_time_ends_by_the_clock(pool: Callable[..., Workers], text: str) -> None:
    grades = grading.grade_many([*innocent(5), (text, "1")], workers=pool(timeout_s=0.1))
    assert grades[5] == Grade("unscored", text, "timeout after 3 s")
    check_innocent(grades[:5])


def test_a_mix_keeps_its_order(pool: Callable[..., Workers]) -> None:
    hostile = ["hang", "memory", "exit", "raise", "segfault", "hang in C"]
    items: list[tuple[str, str]] = []
    for i in range(60):
        items.append((hostile[i // 5 % 6], "1") if i % 5 == 0 else (str(i), str(i)))
    grades = grading.grade_many(items, workers=pool(timeout_s=0.5))
    for i, grade in enumerate(grades):
        assert grade.answer == items[i][0]
        assert grade.verdict == ("unscored" if i % 5 == 0 else "correct"), (i, grade)


def test_a_slow_chunk_is_no_timeout(pool: Callable[..., Workers]) -> None:
    """Sixteen items of 0.2 s take longer than the limit of one."""
    grades = grading.grade_many([("slow", "slow")] * 16, workers=pool())
    assert grades == [Grade("correct", "slow")] * 16


@pytest.mark.slow
def test_the_event_loop_never_waits(pool: Callable[..., Workers]) -> None:
    hostile = [(t, "1") for t in ("hang", "exit", "memory", "raise", "hang in C", "segfault", "junk", "deep")]
    items = [hostile[i % 8] for i in range(200)]
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before)

    async def both() -> list[Grade]:
        ticker = asyncio.create_task(tick())
        try:
            return await grading.grade_many_async(items, workers=pool(timeout_s=0.2))
        finally:
            ticker.cancel()

    start = time.perf_counter()
    grades = asyncio.run(both())
    total = time.perf_counter() - start
    assert {g.verdict for g in grades} == {"unscored"}
    assert (
        longest < total / 4
    )  # a busy machine stalls an idle loop too; benchmarks/hostile_answers.py has the milliseconds


def test_cancelling_withdraws_what_waits(pool: Callable[..., Workers], monkeypatch: pytest.MonkeyPatch) -> None:
    used, sent = pool(workers=1, timeout_s=0.1), list[workers.Pending]()
    send = used._send
    monkeypatch.setattr(used, "_send", lambda jobs: (sent.extend(jobs), send(jobs)))

    async def give_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(grading.grade_many_async([("hang", "1")] * 1000, workers=used), 0.5)

    asyncio.run(give_up())
    assert grading.grade_many([("a", "a")], workers=used)[0].verdict == "correct"
    assert (
        len(sent) <= workers.CHUNKS_A_WORKER * workers.LARGEST_CHUNK + 1
    )  # what was with a worker by then, and the last


def test_from_several_threads(pool: Callable[..., Workers]) -> None:
    used = pool()
    out: dict[int, list[Grade]] = {}

    def one(number: int) -> None:
        out[number] = grading.grade_many([*innocent(50), ("exit", "1")], workers=used)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for grades in out.values():
        check_innocent(grades[:50])
        assert grades[50].verdict == "unscored"


def test_inside_a_running_loop_the_plain_form_works_too(pool: Callable[..., Workers]) -> None:
    async def inside() -> list[Grade]:
        return grading.grade_many(innocent(5), workers=used)

    used = pool()
    check_innocent(asyncio.run(inside()))


def test_after_a_fork_both_sides_grade(pool: Callable[..., Workers], monkeypatch: pytest.MonkeyPatch) -> None:
    used = pool()
    monkeypatch.setattr(workers, "_shared", used)
    check_innocent(grading.grade_many(innocent(5)))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        answer = b"bad"
        try:
            workers._shared = Workers(workers=1, decide="hostile_decide:decide")
            answer = grading.grade("1", "1").verdict.encode()
            workers.close_all()
            multiprocessing.util._exit_function()  # type: ignore[attr-defined]
        finally:
            os.write(write, answer)
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        assert file.read() == b"correct"
    os.waitpid(child, 0)
    check_innocent(grading.grade_many(innocent(5)))


def test_a_decide_that_cannot_be_imported_is_an_error(pool: Callable[..., Workers]) -> None:
    with pytest.raises(RunError, match="do not start"):
        grading.grade_many(innocent(3), workers=pool(decide="no_such_module:decide"))


def test_closing_fails_what_waits(pool: Callable[..., Workers]) -> None:
    used = pool(timeout_s=60.0)
    futures = used.submit([("sleep", "1", None)] * 40)
    used.close()
    used.close()
    for future in futures:
        with pytest.raises(RunError, match="closed"):
            future.result(timeout=HANG_S)
    with pytest.raises(RunError, match="closed"):
        used.submit([("1", "1", None)])


def test_a_worker_that_somebody_kills_costs_nothing(pool: Callable[..., Workers]) -> None:
    used = pool()
    check_innocent(grading.grade_many(innocent(5), workers=used))
    for _ in range(3):
        for pid in used.pids():
            os.kill(pid, signal.SIGKILL)
        check_innocent(grading.grade_many(innocent(50), workers=used))


def test_limits_that_cannot_work_are_refused() -> None:
    with pytest.raises(UsageError, match="workers = 0"):
        Workers(0)
    with pytest.raises(UsageError, match="timeout_s = 0"):
        Workers(timeout_s=0)


SCRIPT = """
import glob, os, sys, threading, time
sys.path[:0] = {path!r}
import paragator.grading as grading
from paragator.grading.workers import Workers
grading.rules.quick = lambda *_: None
pool = Workers(2, timeout_s=60.0, decide="hostile_decide:decide")
print(grading.grade_many([("1", "1")], workers=pool)[0].verdict, flush=True)
futures = pool.submit([("hang in C", "1", None)] * 8)
while len(glob.glob({path[0]!r} + "/hostile_decide.py.*")) < 2:
    time.sleep(0.01)
print("working", flush=True)
{rest}
"""


@pytest.fixture
def script(pool: Callable[..., Workers], tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a program, without a guard for its main module, whose two workers hang in C code."""
    started: list[subprocess.Popen[str]] = []

    def start(rest: str) -> subprocess.Popen[str]:
        path = tmp_path / "program.py"
        path.write_text(SCRIPT.format(path=[str(tmp_path), str(SOURCE)], rest=rest))
        process = subprocess.Popen(
            [sys.executable, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout
        assert [process.stdout.readline() for _ in range(2)] == ["correct\n", "working\n"]
        assert len(same_session(process.pid)) >= 4
        return process

    yield start
    for process in started:
        for pid in same_session(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def assert_nobody_left(session: int) -> None:
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline and same_session(session):
        time.sleep(0.05)
    assert same_session(session) == set()


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGTERM])
def test_killing_the_parent_leaves_no_process(script: Callable[[str], subprocess.Popen[str]], signal_: int) -> None:
    process = script("time.sleep(600)")
    process.send_signal(signal_)
    process.wait()
    assert_nobody_left(process.pid)


@pytest.mark.parametrize(
    "rest", ["", "sys.exit(3)", "raise ValueError", "threading.Thread(target=time.sleep, args=(1,)).start()"]
)
def test_the_interpreter_ends_and_its_workers_with_it(
    script: Callable[[str], subprocess.Popen[str]], rest: str
) -> None:
    process = script(rest)
    _, err = process.communicate(timeout=HANG_S)
    assert "rading" not in err and "multiprocessing" not in err, err
    assert_nobody_left(process.pid)


def test_a_forked_child_keeps_no_worker_alive(script: Callable[[str], subprocess.Popen[str]]) -> None:
    process = script("print(*pool.pids(), flush=True)\nos.fork()\ntime.sleep(600)")
    assert process.stdout
    workers = {int(pid) for pid in process.stdout.readline().split()}
    assert len(workers) == 2 and workers < same_session(process.pid)
    end = time.monotonic() + HANG_S
    while sum(b"program.py" in line for line in lines(process.pid)) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    process.kill()
    process.wait()
    while workers & same_session(process.pid):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert any(b"program.py" in line for line in lines(process.pid))  # the child


def lines(session: int) -> list[bytes]:
    """Command lines of a session's processes."""
    return [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in same_session(session)]


def test_an_interrupt_ends_everything(script: Callable[[str], subprocess.Popen[str]]) -> None:
    process = script("grading.grade_many([('hang in C', '1')] * 8, workers=pool)")
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=HANG_S)
    assert err.count("KeyboardInterrupt") == 1
    assert process.returncode != 0
    assert_nobody_left(process.pid)


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, paragator.grading; print([m for m in ('sympy', 'pebble', 'math_verify', 'torch') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)}
    )
    assert done.stdout == "[]\n", done.stderr


def test_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="known kinds: "):
        grading.grade("1", "1", "no such kind")
