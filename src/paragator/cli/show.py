"""What a person sees of a run on a terminal, and how Ctrl-C asks it to stop."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from paragator.runs.events import Printing

Found = TypeVar("Found")


class Terminal(Printing):
    """Prints a run's lines, unless quiet. Ctrl-C once asks to stop after `what` is under way; twice stops at once."""

    def __init__(self, what: str = "this step", *, quiet: bool = False, wide: bool = False) -> None:
        super().__init__()
        self.what, self.quiet, self.wide, self.asked = what, quiet, wide, False
        if sys.stdout.isatty():
            self.width = shutil.get_terminal_size().columns

    def say(self, line: str) -> None:
        if not self.quiet:
            super().say(line)

    def on_step(self, metrics: Mapping[str, float]) -> None:
        if not self.quiet:
            super().on_step(metrics)

    def should_stop(self) -> bool:
        return self.asked

    def __enter__(self) -> Self:
        try:
            self.former = signal.signal(signal.SIGINT, self.ask)
        except ValueError:  # not the main thread: Ctrl-C stays what it is there
            self.former = None
        return self

    def ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print(f"stopping after {self.what}; Ctrl-C again stops at once", file=sys.stderr)

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None:
        if self.former is not None:
            signal.signal(signal.SIGINT, self.former)


async def awake(job: Coroutine[Any, Any, Found]) -> Found:
    """The job's result; the event loop wakes up for signals that another thread took, or that came just before it waits."""
    if threading.current_thread() is not threading.main_thread():
        return await job
    loop, (heard, told) = asyncio.get_running_loop(), socket.socketpair()
    heard.setblocking(False)
    told.setblocking(False)
    loop.add_reader(heard, heard.recv, 64)
    former = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    try:
        return await job
    finally:
        signal.set_wakeup_fd(former)
        loop.remove_reader(heard)
        heard.close()
        told.close()
