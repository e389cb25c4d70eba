"""Worker processes for grading: killable, bounded in time and memory, never in the way of the caller.

`Workers.submit` hands items over and returns futures at once. One thread a pool owns everything else: it decides what is quick,
sends the rest in chunks to a pebble pool, and when a chunk does not come back it knows from shared memory which item was
being graded. That one is unscored with its reason; the others go again, in smaller chunks.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from paragator.core.errors import RunError, UsageError
from paragator.core.types import Grade
from paragator.grading import decide as rules
from paragator.grading.extract import final_answer

if TYPE_CHECKING:
    from pebble import ProcessPool

    from paragator.grading.sandbox import Context, Item

DECIDE = "paragator.grading.decide:decide"
LARGEST_CHUNK = 16
CHUNKS_A_WORKER = 2
"""Chunks in flight a worker: one that it works on and one that waits."""
TASKS_A_WORKER = 250
"""Chunks after which a worker is replaced, so that leaks are bounded."""
GRACE_S = 0.5
SILENCE_S = 30.0
"""Over all limits by this much without an answer, the pebble pool is thrown away and another one is made."""
ATTEMPTS = 3
BITE = 16
"""Items that are tried quickly before the workers are looked after again."""
T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Pending:
    """One item on its way; `deaths` counts workers that died on it, `tries` chunks that never began."""

    item: Item
    future: Future[Grade] = field(default_factory=Future)
    deaths: int = 0
    tries: int = 0

    def resolve(self, grade: Grade) -> None:
        """Hand the grade to whoever still waits for it."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(grade)

    def unscored(self, reason: str) -> None:
        self.resolve(Grade("unscored", attempt(final_answer, self.item[0]), reason))

    def fail(self, error: Exception) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(eq=False, slots=True)
class Chunk:
    """Jobs that are with a worker; `slot` is their place in the shared memory of progress."""

    jobs: list[Pending]
    slot: int
    future: Future[list[Grade]]


class Workers:
    """Worker processes that call `decide` ("module:function", importable) on items.

    workers       processes; default the number of cores, at most 4
    timeout_s     limit of one item in CPU time, and thirty times as much by the clock; the kernel kills its worker, whatever it does
    memory_bytes  limit of a worker's address space, imports included

    Thread-safe; starts on the first item; `close` ends every process. UsageError for a limit that cannot work.
    """

    def __init__(
        self,
        workers: int | None = None,
        *,
        timeout_s: float = 5.0,
        memory_bytes: int = 2 << 30,
        decide: str = DECIDE,
    ) -> None:
        self.workers = min(4, os.cpu_count() or 1) if workers is None else workers
        if self.workers < 1:
            raise UsageError(f"workers = {workers}: at least 1 is needed")
        if timeout_s <= 0:
            raise UsageError(f"timeout_s = {timeout_s}: above 0 is needed")
        self.timeout_s, self.memory_bytes, self.decide = timeout_s, memory_bytes, decide
        self._inbox: SimpleQueue[list[Pending] | Chunk | None] = SimpleQueue()
        self._unread: deque[Pending] = deque()
        self._waiting: deque[Pending] = deque()
        self._flying: set[Chunk] = set()
        self._free: list[int] = []
        self._progress: Any = None
        self._processes: ProcessPool | None = None
        self._context: Context | None = None
        self._size = LARGEST_CHUNK
        self._breakdowns = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.closed = False

    def submit(self, items: Iterable[Item]) -> list[Future[Grade]]:
        """The future grades of (text, reference, kind) items. Never blocks; cancelling a future withdraws its item."""
        jobs = [Pending(item) for item in items]
        with self._lock:
            if self.closed:
                raise RunError("the grading workers are closed; make a new Workers")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="grading", daemon=True)
                _open.add(self)
                self._thread.start()
            self._inbox.put(jobs)
        return [job.future for job in jobs]

    def close(self) -> None:
        """End all processes and fail what still waits with a RunError. Safe to call twice."""
        with self._lock:
            self.closed = True
            thread, self._thread = self._thread, None
        _open.discard(self)
        if thread is not None:
            self._inbox.put(None)
            thread.join()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pids(self) -> list[int]:
        """Process ids of the workers that run now."""
        context = self._context
        return [] if context is None else context.pids()

    # ---- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._handle_one():
                self._dispatch()
        finally:
            self._shut_down()

    def _handle_one(self) -> bool:
        """Take new jobs, a chunk's return or the end (false), else try some jobs quickly."""
        wait = 0.0 if self._unread else self._limit() + SILENCE_S if self._flying else None
        try:
            event = self._inbox.get(timeout=wait)
        except Empty:
            if self._unread:
                self._read()
            else:
                self._break_down()
            return True
        if isinstance(event, list):
            self._unread.extend(event)
        elif event is not None:
            self._land(event)
        return event is not None

    def _read(self) -> None:
        """Decide what is quick; the rest waits for a worker."""
        for _ in range(min(BITE, len(self._unread))):
            job = self._unread.popleft()
            found = None if job.future.cancelled() else attempt(rules.quick, *job.item)
            if found is None:
                self._waiting.append(job)
            else:
                job.resolve(found)

    def _dispatch(self) -> None:
        """Send chunks while there are jobs and free places."""
        while self._waiting and len(self._flying) < self.workers * CHUNKS_A_WORKER:
            jobs = self._take()
            if not jobs:
                return
            try:
                self._send(jobs)
            except (OSError, RuntimeError, AssertionError) as error:  # the processes do not start, or just broke down
                self._waiting.extendleft(reversed(jobs))
                self._break_down(error)

    def _take(self) -> list[Pending]:
        """The next chunk: cancelled jobs are left out, one that a worker died on goes alone."""
        size = min(self._size, -(-len(self._waiting) // self.workers))
        jobs: list[Pending] = []
        while self._waiting and len(jobs) < size:
            job = self._waiting[0]
            suspected = job.deaths + job.tries > 0
            if suspected and jobs:
                break
            self._waiting.popleft()
            if job.future.cancelled():
                continue
            jobs.append(job)
            if suspected:
                break
        return jobs

    def _send(self, jobs: list[Pending]) -> None:
        from paragator.grading import sandbox

        processes = self._processes or self._start()
        slot = self._free.pop()
        self._progress[slot] = -1
        items = [job.item for job in jobs]
        try:
            future = processes.schedule(sandbox.work, args=(slot, items), timeout=self._limit())
        except RuntimeError:
            self._free.append(slot)
            raise
        chunk = Chunk(jobs, slot, future)
        self._flying.add(chunk)
        future.add_done_callback(lambda _: self._inbox.put(chunk))

    def _limit(self) -> float:
        """Seconds by the clock after which a chunk's worker, which the kernel should have killed, is killed from here."""
        from paragator.grading import sandbox

        return sandbox.SLICE_S + self.timeout_s * sandbox.PATIENCE + GRACE_S

    def _start(self) -> ProcessPool:
        from pebble import ProcessPool

        from paragator.grading import sandbox

        self._context = self._context or sandbox.Context(self.decide.partition(":")[0])
        atexit.unregister(close_all)  # must run before what the two modules above have registered: last in, first out
        atexit.register(close_all)
        places = self.workers * CHUNKS_A_WORKER
        self._progress, self._free = self._context.RawArray("i", places), list(range(places))
        self._processes = ProcessPool(
            self.workers,
            TASKS_A_WORKER,
            sandbox.prepare,
            (self.decide, self.timeout_s, self.memory_bytes, self._progress),
            self._context,
        )
        return self._processes

    def _land(self, chunk: Chunk) -> None:
        """A chunk came back, or did not."""
        if chunk not in self._flying:  # given up with the pool that had it
            return
        error = chunk.future.exception()
        if isinstance(error, BrokenExecutor):
            self._break_down(error)
            return
        self._flying.remove(chunk)
        self._free.append(chunk.slot)
        if error is not None:
            self._size = max(1, self._size // 2)
            self._accuse(chunk, error)
            return
        self._size = min(LARGEST_CHUNK, self._size * 2)
        self._breakdowns = 0
        grades = chunk.future.result()
        for job, grade in zip(chunk.jobs, grades, strict=False):
            if grade.verdict == "unscored" and grade.answer is None:
                job.unscored(grade.reason)
            else:
                job.resolve(grade)
        self._waiting.extendleft(reversed(chunk.jobs[len(grades) :]))

    def _accuse(self, chunk: Chunk, error: BaseException) -> None:
        """Find the item that a lost chunk was at, judge it, and let the others go again."""
        from paragator.grading import sandbox

        at = self._progress[chunk.slot]
        code = getattr(error, "exitcode", None)
        again: list[Pending] = []
        for index, job in enumerate(chunk.jobs):
            if at < 0:
                job.tries += 1
            if index != at:
                again.append(job)
            elif code == -signal.SIGPROF:
                job.unscored(f"timeout after {self.timeout_s:g} s of CPU time")
            elif isinstance(error, TimeoutError) or code == -signal.SIGALRM:
                job.unscored(f"timeout after {self.timeout_s * sandbox.PATIENCE:g} s")
            elif code is None:
                job.unscored(f"{type(error).__name__}: {error}"[:200])
            elif job.deaths:
                job.unscored(f"worker died ({sandbox.describe(code)})")
            else:
                job.deaths = 1
                again.append(job)
        for job in [job for job in again if job.tries >= ATTEMPTS]:
            again.remove(job)
            job.unscored("worker died before it began")
        self._waiting.extendleft(reversed(again))

    def _break_down(self, error: BaseException | None = None) -> None:
        """Throw the processes away; what they had goes again, alone. Workers that never work fail everything."""
        self._breakdowns += 1
        for chunk in self._flying:
            for job in chunk.jobs:
                job.tries += 1
                self._waiting.appendleft(job)
        self._flying.clear()
        if self._processes is not None:
            self._processes.stop()
            threading.Thread(target=self._processes.join, daemon=True).start()
            self._processes = None
        if self._breakdowns >= ATTEMPTS:
            self._breakdowns = 0
            self._fail_all(
                RunError(f"the grading workers do not start ({error or 'no answer'}); is {self.decide} right?")
            )

    def _fail_all(self, error: RunError) -> None:
        jobs = [job for chunk in self._flying for job in chunk.jobs] + [*self._waiting, *self._unread]
        self._waiting.clear()
        self._unread.clear()
        self._flying.clear()
        for job in jobs:
            job.fail(error)

    def _shut_down(self) -> None:
        with self._lock:
            self.closed = True
        while not self._inbox.empty():
            event = self._inbox.get()
            if isinstance(event, list):
                self._unread.extend(event)
        self._fail_all(RunError("the grading workers were closed before this answer's turn"))
        if self._processes is not None:
            self._processes.stop()
            self._processes.join()
            self._processes = None
        if self._context is not None:
            self._context.stop()
            self._context = None

    def _forget(self) -> None:
        """In a forked child: the processes belong to the parent; hold nothing that would keep them alive or end them."""
        self.closed, self._thread = True, None
        if self._context is not None:
            self._context.forget()


def attempt(function: Callable[..., T], *args: object) -> T | None:
    """What a pure function says of a text; None when it raises: then a worker, whose boundary it is, will tell the reason."""
    try:
        return function(*args)
    except Exception:  # noqa: BLE001
        return None


# ---- the pool that everyone shares ---------------------------------------------------------------------------------

_open: set[Workers] = set()
_shared: Workers | None = None
_lock = threading.Lock()


def shared() -> Workers:
    """The pool of this process, made on first use and closed when the interpreter ends."""
    global _shared
    with _lock:
        if _shared is None or _shared.closed:
            _shared = Workers()
        return _shared


@atexit.register
def close_all() -> None:
    """End every process of every pool."""
    for pool in list(_open):
        pool.close()


def _after_fork() -> None:
    global _shared, _lock
    _lock, _shared = threading.Lock(), None
    for pool in list(_open):
        pool._forget()
    _open.clear()


os.register_at_fork(after_in_child=_after_fork)
