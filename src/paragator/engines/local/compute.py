"""The one thread in which torch computes while an event loop runs in another: sampling and updates take turns there.

OpenMP gives every thread that computes helpers of its own, and makes all helpers sleep between products once together
they outnumber the cores. With sampling in one thread and updates in another, on two cores, sampling then took 1.5 to 1.7
times as long. On a busy machine, sleeping is the better way: see threads.py.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import torch

from paragator.engines.local.threads import SleepingThreads, ThreadWatch, gnu_openmp, threads_time, usable_cores

T = TypeVar("T")
SET_BY_USER = {"threads": ("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "waiting": ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
"""Environment variables in which a user chose how many threads compute, and how they wait for each other."""
_THREAD = ThreadPoolExecutor(1, "paragator-torch")
_UNDER_WAY: set[Future[Any]] = set()


def submit(function: Callable[..., T], *args: Any) -> Future[T]:
    """Run function(*args) in the computing thread, after what is queued there. That thread must not wait for the result."""
    future = _THREAD.submit(function, *args)
    _UNDER_WAY.add(future)
    future.add_done_callback(_UNDER_WAY.discard)
    if watched():
        watch().work.set()
    return future


def watched() -> bool:
    """Whether threads of the CPU wait for each other here, in a way that the user did not choose."""
    on_gpu = torch.cuda.is_initialized()
    return torch.get_num_threads() > 1 and not on_gpu and not set_by_user("waiting")


@cache
def watch() -> ThreadWatch:
    """What chooses how threads wait for each other; one for the process."""
    return ThreadWatch(busy, threads_time, lambda: SleepingThreads(gnu_openmp()))


def set_by_user(what: str) -> bool:
    """Whether the environment chooses "threads" or "waiting"."""
    return any(name in os.environ for name in SET_BY_USER[what])


def busy() -> bool:
    """Whether anything is queued or running: a program that exits would wait for it."""
    return bool(_UNDER_WAY)


async def computed(function: Callable[..., T], *args: Any) -> T:
    """The result of function(*args), computed while other tasks of the event loop run."""
    return await asyncio.wrap_future(submit(function, *args))


def computed_now(function: Callable[..., T], *args: Any) -> T:
    """The result of function(*args); the calling thread waits for it."""
    return submit(function, *args).result()


def set_threads(count: int | None) -> None:
    """CPU threads of a product, in the computing thread and in this one (OpenMP keeps a number for each).

    None: the environment's number, else torch's own, but no more than the cores that the process may use.
    """
    if count is None:
        if set_by_user("threads"):
            return
        count = min(torch.get_num_threads(), usable_cores())
    torch.set_num_threads(count)
    computed_now(torch.set_num_threads, count)
