"""CPU threads: how many the process may use, and whether they spin or sleep while they wait for each other.

Threads that compute one product wait for each other at its end. By default OpenMP lets them spin, which is fastest on a
quiet machine. On a busy one the thread that the others wait for may have no core while they spin on theirs: a step beside
four busy processes took 14 times as long, where its share of the cores explains 3 times. Threads that sleep use only what
they need, but take a third longer on a quiet machine. So `ThreadWatch` measures how long threads that are ready wait for
a core, and chooses. The number of threads stays the same, and so does every result.

GNU's OpenMP, which torch's Linux wheels contain, lets threads sleep (after a very short spin) while it has more threads
than the machine has cores, even idle ones. `SleepingThreads` adds such idle threads. With another OpenMP, or on a system
that does not report how long threads wait, nothing changes.
"""

from __future__ import annotations

import ctypes
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

WINDOW_S = 0.1
"""Seconds between two looks at the threads."""
LEAST_ACTIVE = 0.5
"""A window in which all threads together computed or waited for less than this share of it tells nothing."""
BUSY, CALM = 0.15, 0.08
"""Above this share of the threads' time spent waiting for a core the machine is busy; below the second it is calm."""
CALM_S = 1.0
"""Seconds of calm after which threads spin again."""


def usable_cores(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that this process may use: its affinity, and the quotas of its control groups (version 2 or 1) rounded up."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return count
    for _, kinds, path in lines:
        base = groups / ("cpu" if kinds else "")
        group = base / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(base):
                break
            quota, period = cpu_limit(folder)
            if quota > 0 and period > 0 and kinds in ("", "cpu", "cpu,cpuacct"):
                count = min(count, math.ceil(quota / period))
    return max(1, count)


def cpu_limit(folder: Path) -> tuple[float, float]:
    """(quota, period) of a control group in microseconds; a quota of 0 where it has none."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return (0.0 if quota == "max" else float(quota)), float(period)
    except (OSError, ValueError):
        return 0.0, 0.0


@dataclass(slots=True)
class Contention:
    """Whether the machine is busy with other programs, from what threads computed and waited in window after window."""

    busy: bool = False
    calm_s: float = 0.0

    def see(self, computed_s: float, waited_s: float, window_s: float) -> bool:
        """Add a window: seconds that all threads together computed, and were ready and waited for a core."""
        active = computed_s + waited_s
        if active < LEAST_ACTIVE * window_s:
            return self.busy
        share = waited_s / active
        if share > BUSY:
            self.busy = True
        self.calm_s = self.calm_s + window_s if share < CALM else 0.0
        if self.calm_s >= CALM_S:
            self.busy = False
        return self.busy


def threads_time(tasks: Path = Path("/proc/self/task")) -> tuple[float, float] | None:
    """Seconds that this process's threads have computed, and were ready and waited; None where Linux does not tell."""
    computed, waited = 0, 0
    try:
        for task in os.scandir(tasks):
            try:
                ran, ready, _ = Path(task.path, "schedstat").read_text().split()
            except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended, or a kernel without it
                continue
            computed, waited = computed + int(ran), waited + int(ready)
    except (OSError, ValueError):
        return None
    return (computed / 1e9, waited / 1e9) if computed else None


def gnu_openmp(maps: Path = Path("/proc/self/maps")) -> list[ctypes.CDLL]:
    """The copies of GNU's OpenMP that this process has loaded."""
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return []
    paths = dict.fromkeys(line.split(maxsplit=5)[5] for line in lines if "/libgomp" in line)  # a path may hold spaces
    return [ctypes.CDLL(path) for path in paths if Path(path).is_file()]


def can_start(count: int) -> bool:
    """Whether the system lets this process start so many more threads."""
    started: list[threading.Thread] = []
    over = threading.Event()
    try:
        for _ in range(count):
            thread = threading.Thread(target=over.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        return False
    finally:
        over.set()
        for thread in started:
            thread.join()
    return True


class SleepingThreads:
    """Idle OpenMP threads, more than there are cores: until `end`, threads that wait for each other sleep.

    They belong to a thread that waits for `end`, and end with it.
    """

    def __init__(self, libraries: list[ctypes.CDLL]) -> None:
        self.libraries = libraries
        self.ready, self.over = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.stand, name="paragator-sleeping", daemon=True)
        self.thread.start()
        self.ready.wait()

    def stand(self) -> None:
        for library in self.libraries:
            count = library.omp_get_num_procs() + 1
            if can_start(count):  # where OpenMP cannot, it ends the process
                nothing = ctypes.cast(library.omp_get_num_procs, ctypes.c_void_p)  # what each thread calls, once
                library.GOMP_parallel(nothing, None, count, 0)
        self.ready.set()
        self.over.wait()

    def end(self) -> None:
        self.over.set()
        self.thread.join()


class ThreadWatch:
    """A thread that makes computing threads sleep while the machine is busy. It looks only while there is work.

    working    whether anything is being computed; set `work` when that begins
    times      what threads have computed and waited so far, see `threads_time`
    sleeping   makes threads sleep until the `end` of what it returns
    """

    def __init__(
        self,
        working: Callable[[], bool],
        times: Callable[[], tuple[float, float] | None],
        sleeping: Callable[[], SleepingThreads],
    ) -> None:
        self.working, self.times, self.sleeping = working, times, sleeping
        self.contention = Contention()
        self.standing: SleepingThreads | None = None
        self.work = threading.Event()
        threading.Thread(target=self.follow, name="paragator-watch", daemon=True).start()

    def follow(self) -> None:
        """Look at each window while there is work, then wait for more work."""
        while True:
            self.work.wait()
            self.work.clear()
            before, start = self.times(), time.monotonic()
            while before is not None and self.working():
                time.sleep(WINDOW_S)
                now, at = self.times(), time.monotonic()
                if now is not None:
                    self.settle(self.contention.see(now[0] - before[0], now[1] - before[1], at - start))
                before, start = now, at

    def settle(self, busy: bool) -> None:
        """Make threads sleep if `busy`, else let them spin."""
        if busy and self.standing is None:
            self.standing = self.sleeping()
        elif not busy and self.standing is not None:
            self.standing.end()
            self.standing = None
