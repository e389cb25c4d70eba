"""Adaptive concurrency: how many requests a server takes at once, found by trying."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

from paragator.core.errors import UsageError

Word = Literal["fine", "pushed back", "neither"]
Lane = Literal["retry", "next", "last"]
LANES: tuple[Lane, ...] = ("retry", "next", "last")
"""Another attempt of a request; requests of problems already started; requests that start one."""

STARTS_A_PASS = 8
"""Requests let in during one pass of the event loop, so that ten thousand at once do not hold it up."""

WINDOW = 32
"""Fewest answers that say how often a server pushes back at times."""
CHANCE, RARE = 2 / WINDOW, 0.01
"""What of a window's share is chance, and a share that is none."""
TOLERATED = 0.4
"""A server that pushes back more often than this is overloaded, whatever halving did."""


@dataclass(slots=True)
class Window:
    """Answers to requests that came in since the limit was last halved or judged."""

    limit: float
    good: int = 0
    pushed: int = 0
    start: float = 0.0
    rate: float = 0.0
    """Good answers a second, of a whole window."""

    @property
    def answers(self) -> int:
        return self.good + self.pushed

    @property
    def share(self) -> float:
        """How often the server pushed back."""
        return self.pushed / self.answers

    def count(self, pushed: bool) -> None:
        self.start = self.start or time.monotonic()
        self.good += not pushed
        self.pushed += pushed


class Gate:
    """Lets at most `limit` in, and moves the limit: additive increase, multiplicative decrease (as in RFC 5681).

    limit   from 1 to `most`, where it starts. `limit` good answers raise it by 1; a server that pushes back halves it
    inside  how many are in now, and `most_inside` at most so far

    One congestion halves it once: a push back on a request that came in before the last halving changes nothing. Then the
    limit stays for a window of answers, which tell whether that helped. Where the server pushes back as before and gives
    fewer good answers a second, load is not the cause: the limit is restored, and halved again only when the server
    pushes back twice as often as that (`usual`).
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise UsageError(f"max_in_flight = {most}: at least 1 is needed")
        self.most = most
        self.limit = float(most)
        self.inside = self.most_inside = 0
        self.halvings = 0
        self.usual = 0.0
        self._before: Window | None = None
        self._window = Window(self.limit)
        self._on_trial = False
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
        window, pushed = self._window, word == "pushed back"
        if word == "fine" and not self._on_trial:
            self.limit = min(self.most, self.limit + 1 / self.limit)
        if word != "neither" and ticket == self.halvings:
            window.count(pushed)
            if pushed and not (self.usual or self._on_trial):
                self._halve(None)
            elif window.answers >= (max(WINDOW, self.limit) if window.good else self.limit):
                window.rate = window.good / max(1e-9, time.monotonic() - window.start)
                self._judge(window)
        self._open_soon()

    def _halve(self, before: Window | None) -> None:
        self.limit = max(1.0, self.limit / 2)
        self.halvings += 1
        self._before, self._window, self._on_trial = before, Window(self.limit), True

    def _judge(self, window: Window) -> None:
        """What a whole window of answers says of the limit."""
        before, share = self._before, window.share
        if before and before.share / 2 <= share <= TOLERATED and window.rate < 0.75 * before.rate:
            self.usual, self.limit = max(share, before.share), max(self.limit, before.limit)
        elif share > 2 * self.usual + (CHANCE if self.usual else 0):
            self._halve(window)
            return
        elif self.usual:
            usual = min(self.usual, 0.9 * self.usual + 0.1 * share)  # only a trial raises it
            self.usual = usual if usual > RARE else 0.0
        self._before, self._window, self._on_trial = None, Window(self.limit), False

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
