"""The one thread in which torch computes while an event loop runs in another: sampling and updates take turns there.

OpenMP gives every thread that computes helpers of its own, and lets all helpers sleep between products once together
they are more than the cores. With sampling in one thread and updates in another, on two cores, sampling then took 1.5
to 1.7 times as long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_THREAD = ThreadPoolExecutor(1, "paragator-torch")
_UNDER_WAY: set[Future[Any]] = set()


def submit(function: Callable[..., T], *args: Any) -> Future[T]:
    """function(*args) in the computing thread, after what waits there. Not to be waited for in that thread itself."""
    future = _THREAD.submit(function, *args)
    _UNDER_WAY.add(future)
    future.add_done_callback(_UNDER_WAY.discard)
    return future


def busy() -> bool:
    """Whether the thread computes: a program that ends would wait for it."""
    return bool(_UNDER_WAY)


async def computed(function: Callable[..., T], *args: Any) -> T:
    """The result, while other tasks of the loop go on."""
    return await asyncio.wrap_future(submit(function, *args))


def computed_now(function: Callable[..., T], *args: Any) -> T:
    """The result where nothing else is to go on: this thread waits."""
    return submit(function, *args).result()


def set_threads(count: int | None) -> None:
    """CPU threads of a product, in the computing thread and in this one (OpenMP keeps a number for each); None leaves them."""
    if count is None:
        return
    torch.set_num_threads(count)
    computed_now(torch.set_num_threads, count)
