"""Grading: text + reference -> correct | incorrect | unscored, with what was extracted and why.

What can be decided in microseconds is decided here; everything else in worker processes with limits (`workers`), which start
on first use and end with the interpreter. A crash, a timeout or a reference that cannot be read is unscored with its reason.

    from paragator.grading import grade, grade_many
    grade(r"so it is \\boxed{\\frac{1}{2}}", "0.5").verdict         # "correct"
    grade_many([(text, reference) for ...])                       # one Grade each, in order

In a running event loop await `grade_async` or `grade_many_async`, which never block it.
"""

from __future__ import annotations

import asyncio
import difflib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from itertools import islice

from paragator.core.errors import UsageError
from paragator.core.types import Grade
from paragator.grading import decide as rules
from paragator.grading.workers import Workers, attempt, shared

__all__ = ["Workers", "grade", "grade_async", "grade_each", "grade_many", "grade_many_async"]

Pair = tuple[str, str] | tuple[str, str, str | None]
"""Text and reference, or text, reference and kind."""
WINDOW = 4096
"""Items that `grade_each` reads ahead."""
BATCH = 256
"""Items that the asynchronous form submits, or collects, before it yields to the event loop."""


def grade(text: str, reference: str, kind: str | None = None) -> Grade:
    """The verdict on a solution's final answer; UsageError for a kind that is not known."""
    return next(grade_each([(text, reference, kind)]))


def grade_many(items: Iterable[Pair], *, workers: Workers | None = None) -> list[Grade]:
    """One verdict an item (text, reference) or (text, reference, kind), in order."""
    return list(grade_each(items, workers=workers))


def grade_each(items: Iterable[Pair], *, workers: Workers | None = None) -> Iterator[Grade]:
    """As `grade_many`, yielding each verdict while later items are being graded."""
    ahead: deque[Grade | Future[Grade]] = deque()
    try:
        for item in items:
            ahead.append(start(item, workers))
            while ahead and (len(ahead) >= WINDOW or ready(ahead[0])):
                yield result(ahead.popleft())
        while ahead:
            yield result(ahead.popleft())
    finally:
        withdraw(ahead)


async def grade_async(text: str, reference: str, kind: str | None = None) -> Grade:
    """As `grade`, for a running event loop."""
    return await asyncio.wrap_future(shared().submit([checked((text, reference, kind))])[0])


async def grade_many_async(items: Iterable[Pair], *, workers: Workers | None = None) -> list[Grade]:
    """As `grade_many`, for a running event loop; the work is done in worker processes."""
    used = workers or shared()
    ahead: deque[Future[Grade]] = deque()
    out: list[Grade] = []
    rest = iter(items)
    try:
        while True:
            batch = [checked(item) for item in islice(rest, BATCH)]
            ahead.extend(used.submit(batch))
            await asyncio.sleep(0)
            while len(ahead) > (WINDOW if batch else 0):
                out.append(await taken(ahead[0]))
                ahead.popleft()
            if not batch:
                return out
    finally:
        withdraw(ahead)


async def taken(future: Future[Grade]) -> Grade:
    """The result, without waiting if it is already there."""
    return future.result() if future.done() else await asyncio.wrap_future(future)


def checked(item: Pair) -> tuple[str, str, str | None]:
    """Text, reference and kind."""
    text, reference, kind = item if len(item) == 3 else (*item, None)
    check_kind(kind)
    return text, reference, kind


def start(item: Pair, workers: Workers | None) -> Grade | Future[Grade]:
    """The verdict if it takes microseconds, else its future."""
    full = checked(item)
    if not full[1].strip():
        return Grade("unscored", reason="the reference is empty")
    found = attempt(rules.quick, *full)
    return found if found is not None else (workers or shared()).submit([full])[0]


def ready(entry: Grade | Future[Grade]) -> bool:
    return not isinstance(entry, Future) or entry.done()


def result(entry: Grade | Future[Grade]) -> Grade:
    return entry.result() if isinstance(entry, Future) else entry


def withdraw(entries: Iterable[Grade | Future[Grade]]) -> None:
    """Cancel what nobody waits for any more."""
    for entry in entries:
        if isinstance(entry, Future):
            entry.cancel()


def check_kind(kind: str | None, name: str = "kind") -> None:
    """UsageError for a kind that is not known; it names those that are, and calls it `name`."""
    if kind is None or kind in rules.KINDS:
        return
    close = difflib.get_close_matches(str(kind), rules.KINDS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UsageError(f"{name} = {kind!r} is not known; {hint}known kinds: {', '.join(rules.KINDS)}")
