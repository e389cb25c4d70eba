"""The processes of one run: rank 0 gives orders, the others follow; what dies or hangs ends all of them.

An order is a name and JSON. It is announced in the launcher's key-value store, where followers look for it however long
rank 0 samples, and its text is broadcast; nothing is pickled. While it lives, rank 0 changes a "beat" in the store.
A process that raises leaves its reason there, one that is killed or hangs makes the next collective call fail. Where no
launcher holds the store, rank 0 does, so that followers wait for an answer of it in a thread that they can leave behind.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from paragator.core.errors import ParagatorError, RunError

BEAT_S = 2.0
"""Seconds between signs of life of rank 0."""
BEGIN_S = 50.0
"""Seconds that others wait for rank 0 at first, which starts with them; longer where `timeout_s` is."""
POLL_S = 0.02
"""Seconds between looks into the store."""
LOST = ("closed", "reset", "timed out", "timeout", "refused", "broken pipe", "nccl", "peer")
"""Words in what a collective call says when another process is gone or does not answer."""
Answer = TypeVar("Answer")


class Team:
    """All processes that a launcher (torchrun) started for this run."""

    runs = 0
    """Teams of this process so far: each has a part of the store to itself."""
    neighbours: ClassVar[dict[int, int]] = {}
    """Process ids on this machine by rank, of the latest team: rank 0 at first, all of them once they are ready."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s, self.orders, self.broken = timeout_s, 0, ""
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: nothing listens to others
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        Team.runs += 1
        prefix, follows = f"run/{Team.runs}", os.environ["RANK"] != "0"
        begin_s = max(BEGIN_S, timeout_s)
        silent = RunError(f"no sign of rank 0 in {begin_s:g} s; start all processes again with --resume")
        if follows and not self.wait_for(listens, begin_s):  # torch waits as well, twice as long and in a hundred lines
            raise silent
        wait: dict[str, Any] = {"timeout": timedelta(seconds=begin_s)} if follows else {}
        try:
            store, self.rank, self.size = next(rendezvous("env://", **wait))
            self.store = PrefixStore(prefix, store)
            self.store.set(f"process/{self.rank}", f"{platform.node()} {os.getpid()}")
            Team.neighbours = self.found([0])
        except dist.DistError:
            if not follows:
                raise
            raise silent from None
        store.set_timeout(default_pg_timeout)
        self.closed = threading.Event()
        self.heard = time.monotonic()
        if self.rank == 0:
            own = PrefixStore(prefix, store.clone())
            threading.Thread(target=self._beat, args=(own,), name="beat", daemon=True).start()

    def join(self) -> None:
        """Set up collective calls, once all are here."""
        if dist.is_initialized():
            return
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=PrefixStore("collectives", self.store),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=self.timeout_s),
        )

    def _beat(self, store: Any) -> None:
        """Show that this process lives, until the team is closed."""
        beats = 0
        while not self.closed.wait(BEAT_S if beats else 0):
            beats += 1
            store.set("beat", str(beats))

    # ---- rank 0 ----

    @contextmanager
    def order(self, name: str, **values: Any) -> Iterator[None]:
        """Have the others do `name`, and do this process's part inside the block; RunError where one of them is gone."""
        if self.broken:
            raise RunError(self.broken)
        with self.guarded():
            self.orders += 1
            text = json.dumps({"name": name, **values}).encode()
            self.store.set(f"order/{self.orders}", str(len(text)))
            self.join()
            dist.broadcast(torch.frombuffer(bytearray(text), dtype=torch.uint8), src=0)
            yield

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Say which process ended, and why, where a collective call fails for it."""
        try:
            yield
        except ParagatorError:
            raise
        except RuntimeError as error:
            reason = self.reason()
            if reason is None and not lost(error):
                self.broken = "this process failed in the middle of an order; --resume starts all again"
                raise
            said = reason or f"a process was killed or does not answer within {self.timeout_s:g} s"
            self.broken = f"{said}; all {self.size} processes of the run end; start them again with --resume"
            raise RunError(self.broken) from None

    def reason(self) -> str | None:
        """What a process that ended left in the store, if it had the time."""
        end = time.monotonic() + BEAT_S
        while time.monotonic() < end:
            for rank in range(self.size):
                if self.store.check([f"failed/{rank}"]):
                    return f"rank {rank}: {self.store.get(f'failed/{rank}').decode()}"
            time.sleep(POLL_S)
        return None

    def close(self) -> None:
        """Let the others go."""
        if self.closed.is_set():
            return
        if self.rank == 0:
            self.orders += 1
            self.store.set(f"order/{self.orders}", "0")
            gone = [f"gone/{rank}" for rank in range(1, self.size)]
            self.wait_for(lambda: bool(self.store.check(gone)), 0 if self.broken else self.timeout_s)
            if self.broken:
                self.end(range(1, self.size))
        self.closed.set()
        if dist.is_initialized() and not self.broken:
            dist.destroy_process_group()

    # ---- the others ----

    def next_order(self) -> dict[str, Any] | None:
        """The next order, None for the last; RunError once rank 0 shows no sign of life."""
        self.orders += 1
        self.heard = time.monotonic()
        try:
            size = self.answered(self._announced, lambda: time.monotonic() - self.heard < self.timeout_s)
        except TimeoutError:
            self.broken = f"no sign of life of rank 0 for {self.timeout_s:g} s"
            raise RunError(f"{self.broken}; start all processes again with --resume") from None
        if not size:
            self.store.set(f"gone/{self.rank}", "")
            return None
        self.join()
        text = torch.empty(size, dtype=torch.uint8)
        dist.broadcast(text, src=0)
        found: dict[str, Any] = json.loads(bytes(text.numpy()))
        return found

    def _announced(self) -> int:
        """The bytes of the next order, once there is one; `heard` is when rank 0 last showed that it lives."""
        key, beat = f"order/{self.orders}", b""
        while not self.store.check([key]):
            time.sleep(POLL_S)
            now = self.store.get("beat") if self.store.check(["beat"]) else b""
            if now != beat or not now:
                beat, self.heard = now, time.monotonic()
        return int(self.store.get(key))

    def failed(self, error: BaseException) -> None:
        """Leave the reason why this process ends; RunError where it is another one that is gone."""
        if self.broken:
            return
        said = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        with suppress(RuntimeError, TimeoutError):
            self.within(2 * BEAT_S, lambda: self.store.set(f"failed/{self.rank}", said))
        if isinstance(error, RuntimeError) and lost(error):
            self.broken = "another process of the run ended or hangs"
            with suppress(RuntimeError):
                if not self.beats():
                    self.end([0])
            raise RunError(f"{self.broken}; start all of them again with --resume") from None

    def beats(self) -> bool:
        """Whether rank 0 shows that it lives."""

        def changes() -> bool:
            before = self.store.get("beat")
            time.sleep(3 * BEAT_S)
            return bool(self.store.get("beat") != before)

        try:
            return self.within(4 * BEAT_S, changes)
        except TimeoutError:
            return False

    def answered(self, question: Callable[[], Answer], hopeful: Callable[[], bool]) -> Answer:
        """What the store says, which may hang with rank 0; TimeoutError once there is no more hope, and rank 0 is ended."""
        answer: Future[Answer] = Future()

        def ask() -> None:
            try:
                answer.set_result(question())
            except RuntimeError as error:
                answer.set_exception(error)

        thread = threading.Thread(target=ask, name="store", daemon=True)
        thread.start()
        while True:
            try:
                return answer.result(POLL_S)
            except TimeoutError:
                if hopeful():
                    continue
                self.end([0])
                thread.join(BEAT_S)  # its question fails now; a thread inside torch aborts a Python that ends
                raise

    def within(self, seconds: float, question: Callable[[], Answer]) -> Answer:
        """`answered`, with so much time."""
        end = time.monotonic() + seconds
        return self.answered(question, lambda: time.monotonic() < end)

    # ---- all ----

    def found(self, ranks: Iterable[int]) -> dict[int, int]:
        """Process ids of those ranks that are on this machine."""
        pairs = ((rank, self.store.get(f"process/{rank}").decode().split(" ")) for rank in ranks)
        return {rank: int(pid) for rank, (machine, pid) in pairs if machine == platform.node()}

    def end(self, ranks: Iterable[int]) -> None:
        """Kill processes on this machine: one that hangs would keep the launcher waiting, and none can go on."""
        for rank in ranks:
            with suppress(OSError, KeyError):
                os.kill(self.neighbours[rank], signal.SIGKILL)

    @classmethod
    def gone(cls) -> list[int]:
        """Ranks on this machine that have ended, as far as it is known which there were."""
        return [rank for rank, pid in cls.neighbours.items() if not psutil.pid_exists(pid)]

    def ready(self, name: str) -> None:
        """Wait until all have come here, for as long as none has failed: loading takes longer on some machines."""
        self.store.set(f"{name}/{self.rank}", "")
        everybody = [f"{name}/{rank}" for rank in range(self.size)]

        def arrived() -> bool:
            for rank in range(self.size):
                if rank != self.rank and self.store.check([f"failed/{rank}"]):
                    raise RunError(f"rank {rank}: {self.store.get(f'failed/{rank}').decode()}")
            return bool(self.store.check(everybody))

        self.wait_for(arrived)
        Team.neighbours = self.found(range(self.size))

    def wait_for(self, happened: Callable[[], bool], most_s: float = float("inf")) -> bool:
        """Poll until something happened, or so long; whether it did."""
        end = time.monotonic() + most_s
        while not (found := happened()) and time.monotonic() < end:
            time.sleep(POLL_S)
        return found

    def summed(self, values: list[float]) -> list[float]:
        """Sums over all processes, in float64."""
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        out: list[float] = tensor.tolist()
        return out

    def least(self, value: float) -> float:
        """The least of a value over all processes."""
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
        return float(tensor)


def listens() -> bool:
    """Whether a store can be reached: rank 0's, or the launcher's."""
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    with suppress(OSError), socket.create_connection(address, 1.0):
        return True
    return False


def lost(error: Exception) -> bool:
    """Whether a call failed since another process is gone or does not answer."""
    return any(word in str(error).lower() for word in LOST)
