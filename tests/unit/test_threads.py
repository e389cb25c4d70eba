"""How threads wait beside other programs: the choice from what they waited, the cores of a container, the watch. No torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from paragator.engines.local import threads
from paragator.engines.local.threads import (
    BUSY,
    CALM,
    CALM_S,
    Contention,
    ThreadWatch,
    can_start,
    cpu_limit,
    threads_time,
    usable_cores,
)


def windows(contention: Contention, share: float, seconds: float, computed: float = 0.2) -> list[bool]:
    """What is seen in windows of 0.1 s in which threads were active for `computed` and waited for this share of it."""
    return [contention.see((1 - share) * computed, share * computed, 0.1) for _ in range(round(seconds / 0.1))]


def test_a_quiet_machine_stays_calm() -> None:
    assert not any(windows(Contention(), 0.04, 60))


def test_one_window_of_waiting_is_enough_to_be_busy() -> None:
    contention = Contention()
    assert windows(contention, 0.01, 1)[-1] is False
    assert windows(contention, 0.3, 0.1) == [True]


def test_calm_is_believed_after_a_second_without_a_break() -> None:
    contention = Contention()
    windows(contention, 0.5, 0.3)
    assert all(windows(contention, 0.01, CALM_S - 0.1))
    assert windows(contention, 0.12, 0.1) == [True]  # neither calm nor busy: it starts over
    found = windows(contention, 0.01, CALM_S + 0.2)
    assert found[0] and not found[-1]


@pytest.mark.parametrize("busy", [False, True])
def test_between_the_two_shares_nothing_changes(busy: bool) -> None:
    contention = Contention(busy)
    assert set(windows(contention, (BUSY + CALM) / 2, 10)) == {busy}


def test_a_window_with_little_computing_tells_nothing() -> None:
    contention = Contention()
    assert not any(windows(contention, 0.9, 10, computed=0.04))
    contention.busy = True
    assert all(windows(contention, 0.0, 10, computed=0.04))


def task(folder: Path, number: int, text: str) -> None:
    (folder / str(number)).mkdir()
    (folder / str(number) / "schedstat").write_text(text)


def test_threads_time_adds_up_all_threads(tmp_path: Path) -> None:
    task(tmp_path, 1, "2000000000 500000000 7\n")
    task(tmp_path, 2, "1000000000 250000000 3\n")
    (tmp_path / "3").mkdir()  # it has just ended
    assert threads_time(tmp_path) == (3.0, 0.75)


def test_threads_time_is_none_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert threads_time(tmp_path / "none") is None
    task(tmp_path, 1, "0 0 0\n")
    assert threads_time(tmp_path) is None


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def group(root: Path, path: str, limit: str) -> None:
    (root / path).mkdir(parents=True, exist_ok=True)
    (root / path / "cpu.max").write_text(limit)


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({}, 16),
        ({"a/b": "max 100000\n"}, 16),
        ({"a/b": "400000 100000\n"}, 4),
        ({"a/b": "250000 100000\n"}, 3),
        ({"a/b": "10000 100000\n"}, 1),
        ({"a/b": "800000 100000\n", "a": "200000 100000\n"}, 2),
        ({"": "300000 100000\n"}, 3),
        ({"other": "100000 100000\n"}, 16),
        ({"a/b": "no number\n"}, 16),
    ],
)
@pytest.mark.usefixtures("sixteen")
def test_quotas_of_control_groups_limit_the_cores(tmp_path: Path, limits: dict[str, str], cores: int) -> None:
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    for path, limit in limits.items():
        group(tmp_path / "groups", path, limit)
    assert usable_cores(tmp_path / "groups", own) == cores


@pytest.mark.usefixtures("sixteen")
def test_quotas_of_version_1(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("7:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n0::/\n")  # in a container the path may not exist
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("500000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path, own) == 5
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cores(tmp_path, own) == 16
    assert cpu_limit(tmp_path / "none") == (0.0, 0.0)


@pytest.mark.usefixtures("sixteen")
def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, tmp_path / "none") == 16


def test_no_idle_threads_where_the_system_refuses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    start, allowed = threading.Thread.start, [3]

    def limited(self: threading.Thread) -> None:
        allowed[0] -= 1
        if allowed[0] < 0:
            raise RuntimeError("can't start new thread")
        start(self)

    before = threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", limited)
    assert can_start(3)
    allowed[0] = 3
    assert not can_start(4)
    assert threading.active_count() == before


class Standing:
    """In place of the sleeping threads: counts."""

    count = 0

    def __init__(self) -> None:
        Standing.count += 1

    def end(self) -> None:
        Standing.count -= 1


def test_the_watch_makes_threads_sleep_once_and_lets_them_spin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Standing, "count", 0)
    watch = ThreadWatch(lambda: False, lambda: None, Standing)  # type: ignore[arg-type]
    for busy, count in ((False, 0), (True, 1), (True, 1), (False, 0), (False, 0), (True, 1)):
        watch.settle(busy)
        assert Standing.count == count


def test_the_watch_looks_while_there_is_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "WINDOW_S", 0.01)
    slept, working = threading.Event(), threading.Event()
    steps: Iterator[tuple[float, float]] = ((10.0 * i, 5.0 * i) for i in range(10**6))  # a third of the time waiting
    watch = ThreadWatch(working.is_set, lambda: next(steps), slept.set)  # type: ignore[arg-type, return-value, func-returns-value]
    assert not watch.contention.busy
    working.set()
    watch.work.set()
    assert slept.wait(60)
    working.clear()
    assert watch.contention.busy


def test_libraries_below_a_folder_with_a_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "a folder" / "libgomp-1.so"
    library.parent.mkdir()
    library.touch()
    rows = [
        f"7f00-7f01 r-xp 00000000 fe:00 {n}    {path}" for n, path in enumerate((library, library, "/gone/libgomp.so"))
    ]
    (tmp_path / "maps").write_text("\n".join(["7fff-8000 rw-p 00000000 00:00 0 ", *rows]) + "\n")
    monkeypatch.setattr(threads.ctypes, "CDLL", lambda path: path)
    assert threads.gnu_openmp(tmp_path / "maps") == [str(library)]
