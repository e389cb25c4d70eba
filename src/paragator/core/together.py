"""Structured concurrency: coroutines that run together and end together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def together(*jobs: Awaitable[T]) -> list[T]:
    """The results, in order. When one raises or the caller is cancelled, the others are cancelled and awaited.

    A single one runs in the caller's task.
    """
    if len(jobs) == 1:
        return [await jobs[0]]
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
