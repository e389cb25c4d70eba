"""Grading worker processes from the inside, and the fork server that starts them. POSIX.

Workers are forked from a small server process that has done the heavy imports, so that replacing a killed one takes
milliseconds. The server belongs to this package: it neither imports the caller's `__main__` nor inherits its memory or threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import context, forkserver, popen_forkserver, process, reduction, spawn, util
from typing import Any

from paragator.core.types import Grade

Item = tuple[str, str, str | None]
"""Text, reference, kind."""
SLICE_S = 0.4
"""A worker starts no further item of a chunk after this many seconds; the rest is returned ungraded."""
PATIENCE = 30.0
"""Seconds by the clock that an item may take for each second of CPU time: a busy machine must not change a grade."""
NICENESS = 5
"""The caller's event loop comes first where cores are few."""
HEAVY = ("sympy", "math_verify")
PR_SET_PDEATHSIG = 1


class _State:
    """What `prepare` leaves for `work` in a worker process."""

    decide: Callable[..., Grade]
    progress: Any
    timeout_s: float


def prepare(decide: str, timeout_s: float, memory_bytes: int, progress: Any) -> None:
    """Make this process a worker: limits, signals, and the import of `decide` ("module:function").

    `progress` is shared memory, one integer a chunk in flight: the index of the item that is being graded.
    """
    die_with_the_server()
    os.nice(NICENESS)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a Python handler would wait for C code to return
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    module, _, name = decide.partition(":")
    loaded = importlib.import_module(module)
    if hasattr(loaded, "warm"):
        loaded.warm()
    _State.decide, _State.progress, _State.timeout_s = getattr(loaded, name), progress, timeout_s
    with contextlib.suppress(ValueError, OSError):  # this system has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    devnull = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):  # parsers may print parts of an answer; that must not reach a terminal
        os.dup2(devnull, descriptor)
    os.close(devnull)


def die_with_the_server() -> None:
    """End the server with its client (workers hold the pipe that it watches), and this worker with the server."""
    server: Any = forkserver._forkserver
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def work(slot: int, items: Sequence[Item]) -> list[Grade]:
    """Grades of the first items, at least one. The kernel kills this process when one takes too long, by CPU time or by the clock."""
    end = time.monotonic() + SLICE_S
    grades: list[Grade] = []
    for index, item in enumerate(items):
        _State.progress[slot] = index
        signal.setitimer(signal.ITIMER_PROF, _State.timeout_s)
        signal.setitimer(signal.ITIMER_REAL, _State.timeout_s * PATIENCE)
        try:
            grades.append(grade_one(item))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        if time.monotonic() > end:
            break
    return grades


def grade_one(item: Item) -> Grade:
    """Grade one answer; whatever that raises becomes the reason of an unscored grade, never an error of the run."""
    try:
        found = _State.decide(*item)
        if not isinstance(found, Grade):
            raise TypeError(f"{_State.decide.__name__} gave {type(found).__name__}, not a Grade")
        return found
    except MemoryError:
        return Grade("unscored", None, "memory limit")
    except Exception as error:  # noqa: BLE001  the stated boundary
        return Grade("unscored", None, f"{type(error).__name__}: {error}"[:200])


def describe(code: int) -> str:
    """A process's exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


class Launch(popen_forkserver.Popen):
    """Starts a worker from the pool's own server, without the caller's `__main__`."""

    def _launch(self, process_obj: Any) -> None:
        data = spawn.get_preparation_data(process_obj.name)
        for key in ("init_main_from_name", "init_main_from_path"):
            data.pop(key, None)
        buffer = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(data, buffer)
            reduction.dump(process_obj, buffer)
        finally:
            context.set_spawning_popen(None)
        self.sentinel, write = process_obj.server.connect_to_new_process(self._fds)  # type: ignore[attr-defined]
        keep = os.dup(write)  # tells the worker that its client lives
        self.finalizer = util.Finalize(self, util.close_fds, (keep, self.sentinel))  # type: ignore[attr-defined]
        with open(write, "wb", closefd=True) as file:
            file.write(buffer.getbuffer())
        self.pid = forkserver.read_signed(self.sentinel)


class WorkerProcess(context.ForkServerProcess):
    """A process of a `Context`."""

    server: forkserver.ForkServer | None = None
    launch: Launch | None = None

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        process_obj.launch = Launch(process_obj)
        return process_obj.launch

    def ended(self) -> bool:
        """Whether its end was noticed; unlike `is_alive`, safe to ask from any thread."""
        return self.launch is not None and self.launch.returncode is not None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "server"}


class Context(context.ForkServerContext):
    """A multiprocessing context with its own fork server, which has the heavy modules and `module` imported."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.server = forkserver.ForkServer()
        self.server.set_forkserver_preload([*HEAVY, module])
        self.processes: list[WorkerProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> WorkerProcess:  # type: ignore[override]
        """A worker that is not started yet."""
        worker = WorkerProcess(*args, **kwargs)
        worker.server = self.server
        self.processes = [*(p for p in self.processes if not p.ended()), worker]
        return worker

    def pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        return [p.launch.pid for p in self.processes if p.launch is not None and not p.ended()]

    def stop(self) -> None:
        """End the server; its workers must have ended."""
        with contextlib.suppress(FileNotFoundError):  # multiprocessing removes the folder of its socket
            self.server._stop()  # type: ignore[attr-defined]

    def forget(self) -> None:
        """In a forked child: forget the parent's server and workers, so that only the parent ends them."""
        process._children.difference_update(self.processes)  # type: ignore[attr-defined]
        if self.server._forkserver_alive_fd is not None:  # type: ignore[attr-defined]
            os.close(self.server._forkserver_alive_fd)  # type: ignore[attr-defined]
        self.server = forkserver.ForkServer()
