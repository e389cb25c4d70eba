"""One asynchronous job from a program or a notebook, where an event loop runs already."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def blocking(job: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """The form of an async function that waits for its result, also where an event loop runs."""

    @functools.wraps(job)
    def waited(*args: P.args, **kwargs: P.kwargs) -> T:
        return in_loop(lambda: job(*args, **kwargs))

    return waited


def in_loop(job: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """`asyncio.run` of a coroutine; in a thread of its own where a loop runs here already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(job())
    done: Future[T] = Future()
    begun: Future[tuple[asyncio.AbstractEventLoop, Callable[[], object]]] = Future()

    async def cancellable() -> T:
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
