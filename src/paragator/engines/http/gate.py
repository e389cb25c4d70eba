"""Adaptive concurrency: how many requests a server takes at once, found by trying."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Literal

from paragator.core.errors import UsageError

Word = Literal["fine", "pushed back", "neither"]
Lane = Literal["retry", "next", "last"]
LANES: tuple[Lane, ...] = ("retry", "next", "last")
"""Another attempt of a request; requests of problems already started; requests that start one."""

STARTS_A_PASS = 8
"""Requests let in during one pass of the event loop, so that ten thousand at once do not hold it up."""


class Gate:
    """Lets at most `limit` in, and moves the limit: additive increase, multiplicative decrease (as in RFC 5681).

    limit   from 1 to `most`, where it starts. `limit` good answers raise it by 1; a server that pushes back halves it
    inside  how many are in now, and `most_inside` at most so far

    One congestion halves it once: a push back on a request that came in before the last halving changes nothing.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise UsageError(f"max_in_flight = {most}: at least 1 is needed")
        self.most = most
        self.limit = float(most)
        self.inside = self.most_inside = 0
        self.halvings = 0
        self._lanes: dict[Lane, deque[asyncio.Future[None]]] = {lane: deque() for lane in LANES}
        self._opening: asyncio.AbstractEventLoop | None = None
        """The loop that will call `_open`; one that has ended never does."""

    async def enter(self, lane: Lane = "last") -> int:
        """Wait for a place; an earlier lane goes first. The ticket is for `leave`."""
        turn = asyncio.get_running_loop().create_future()
        self._lanes[lane].append(turn)
        self._open_soon()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(self.halvings, "neither")
            raise
        return self.halvings

    def leave(self, ticket: int, word: Word) -> None:
        """Give the place back, and say how the server took the request."""
        self.inside -= 1
        if word == "fine":
            self.limit = min(self.most, self.limit + 1 / self.limit)
        elif word == "pushed back" and ticket == self.halvings:
            self.limit = max(1.0, self.limit / 2)
            self.halvings += 1
        self._open_soon()

    def _open_soon(self) -> None:
        loop = asyncio.get_running_loop()
        if any(self._lanes.values()) and self._opening is not loop:
            self._opening = loop
            loop.call_soon(self._open)

    def _open(self) -> None:
        self._opening = None
        started = 0
        while self.inside < int(self.limit) and started < STARTS_A_PASS:
            lane = next((lane for lane in self._lanes.values() if lane), None)
            if lane is None:
                return
            turn = lane.popleft()
            if not turn.done():
                self.inside += 1
                self.most_inside = max(self.most_inside, self.inside)
                started += 1
                turn.set_result(None)
        if self.inside < int(self.limit):
            self._open_soon()
