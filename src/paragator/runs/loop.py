"""One asynchronous job, from a program or from a notebook."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


def in_loop(job: Callable[[], Any]) -> Any:
    """`asyncio.run` of a coroutine; in a thread of its own where a loop runs here already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(job())
    done: Future[Any] = Future()
    begun: Future[tuple[asyncio.AbstractEventLoop, Callable[[], object]]] = Future()

    async def cancellable() -> Any:
        task = asyncio.ensure_future(job())
        begun.set_result((asyncio.get_running_loop(), task.cancel))
        return await task

    def work() -> None:
        try:
            done.set_result(asyncio.run(cancellable()))
        except BaseException as error:  # noqa: BLE001  (not hidden: raised in the caller's thread)
            done.set_exception(error)

    threading.Thread(target=work, name="paragator", daemon=True).start()
    try:
        return done.result()
    except KeyboardInterrupt:
        loop, cancel = begun.result()
        loop.call_soon_threadsafe(cancel)
        raise
