"""Several servers as one: a circuit breaker for each. Others take over what a dead one was asked; it is used again once fit.

A server is lost when it takes no connection, when for SILENT_S every attempt failed, when it is silent and answers no ping,
and when what it answers does not count (weights of another version). What it was asked is then asked elsewhere.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from paragator.core.errors import ParagatorError, RunError
from paragator.engines.http.endpoint import Lost, Refused
from paragator.engines.http.server import Server
from paragator.engines.journal import Stopped

T = TypeVar("T")
Look = Callable[[Server], Awaitable[None]]

MOST_HOMES = 16_384
"""Prompts whose server is remembered, so that siblings asked for one by one meet their cached prefix."""
MOST_LOSSES = 8
"""Servers that may be lost under one request before it fails: it may be what kills them."""
PING_EVERY_S, PING_TIMEOUT_S = 15.0, 30.0
"""A server with work that was silent for so long is pinged, and lost if it does not answer the ping in time."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0
"""Between looks at a lost server; the pause doubles."""
TRIAL_TIMEOUT_S = 60.0
"""How long a server that comes back may take for one token."""


class Fleet:
    """Which server answers what, and which are lost.

    watched  whether a server can be lost; a single one of somebody else's is only retried
    wait_s   how long a run waits for a server once none is left
    trial    asks a server for a token, to see that it samples
    fit      makes a server that comes back fit for use, else raises
    confirm  is awaited after each answer; raises Lost where it does not count
    tell     hears of each server that is lost or back
    """

    def __init__(self, servers: Sequence[Server], wait_s: float, trial: Look) -> None:
        self.servers, self.wait_s, self.trial = servers, wait_s, trial
        self.watched = False
        self.fit: Look = nothing
        self.confirm: Look = nothing
        self.tell: Callable[[str], None] = lambda text: warnings.warn(text, stacklevel=2)
        self.homes: dict[int, Server] = {}
        self.none_since = 0.0

    def watch(self) -> None:
        """From now on a server can be lost."""
        self.watched = True
        for server in self.servers:
            server.endpoint.watched = True

    @property
    def left(self) -> list[Server]:
        """Those that are not lost."""
        return [server for server in self.servers if not server.lost]

    async def ask(self, key: int, n: int, job: Callable[[Server], Awaitable[T]]) -> T:
        """What `job` gives on one server, from the start on another one where that is lost; `n` completions are in flight.

        RunError once no server is left for `wait_s`; Refused for a job under which server after server was lost.
        """
        reason = ""
        for _ in range(MOST_LOSSES):
            await self.some()
            server = self.home(key)
            server.in_flight += n
            try:
                return await self.on(server, job)
            except Lost as error:
                reason = str(error)
                self.lose(server, reason)
            finally:
                server.in_flight -= n
        raise Refused(f"{MOST_LOSSES} servers were lost while they were asked, the last one: {reason}")

    async def on(self, server: Server, job: Callable[[Server], Awaitable[T]]) -> T:
        """`job` on this server; Lost as soon as the server is, whoever finds it out."""
        if not self.watched:
            return await job(server)
        if server.lost:
            raise Lost(server.lost)
        task = asyncio.ensure_future(self.confirmed(server, job))
        server.jobs.add(task)
        if stale(server.pings):
            server.pings = asyncio.ensure_future(self.ping(server))
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if server.lost and not (current and current.cancelling()):
                raise Lost(server.lost) from None
            raise
        finally:
            server.jobs.discard(task)

    async def confirmed(self, server: Server, job: Callable[[Server], Awaitable[T]]) -> T:
        found = await job(server)
        await self.confirm(server)
        return found

    def home(self, key: int) -> Server:
        """Which server a prompt goes to: where its siblings went, else the least busy one, the first of equals."""
        found = self.homes.pop(key, None)
        if found is None or found.lost:
            found = min(self.left or self.servers, key=lambda server: server.in_flight)
        self.homes[key] = found  # now the youngest
        if len(self.homes) > MOST_HOMES:
            del self.homes[next(iter(self.homes))]
        return found

    async def some(self) -> None:
        """Wait until a server is there; RunError when none is for `wait_s`."""
        for server in self.servers:
            if server.lost and stale(server.revival):
                server.revival = asyncio.ensure_future(self.revive(server))
        while not self.left:
            left_s = self.none_since + self.wait_s - time.monotonic()
            if left_s <= 0:
                why = "; ".join(f"{server.endpoint.url}: {server.lost}" for server in self.servers)
                key = self.servers[0].endpoint.section
                raise RunError(f"{key}.url: no server is left, for {self.wait_s:g} s ({why}); start one and --resume")
            await asyncio.sleep(min(left_s, 0.1))

    def lose(self, server: Server, reason: str) -> None:
        """Use a server no more: what it was asked raises Lost, and it is asked again from time to time."""
        if server.lost:
            return
        server.lost = reason
        for task in server.jobs:
            task.cancel()
        left = len(self.left)
        others = f"{left} of {len(self.servers)} servers take over" if left else "no server is left"
        wait = "" if left else f", the run waits {self.wait_s:g} s for one"
        self.tell(f"{server.endpoint.where}: the server is lost ({reason}); {others}{wait}")
        if not left:
            self.none_since = time.monotonic()
        server.revival = asyncio.ensure_future(self.revive(server))

    async def revive(self, server: Server) -> None:
        """Ask a lost server from time to time, and use it once it is fit and samples."""
        pause = FIRST_PAUSE_S
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
            server.endpoint.fresh()
            try:
                await server.endpoint.get("/models", PING_TIMEOUT_S)
                await self.fit(server)
                async with asyncio.timeout(TRIAL_TIMEOUT_S):
                    await self.trial(server)
                await self.confirm(server)
            except (ParagatorError, Lost, Refused, Stopped) as error:
                server.lost = str(error)
            except TimeoutError:
                server.lost = f"no token within {TRIAL_TIMEOUT_S:g} s"
            else:
                break
        server.lost = ""
        self.tell(f"{server.endpoint.where}: the server is back")

    async def ping(self, server: Server) -> None:
        """While a server has work, see that it answers at all: completions may take long, a ping may not."""
        while server.jobs and not server.lost:
            await asyncio.sleep(PING_EVERY_S)
            heard = server.endpoint.heard
            if not server.jobs or server.lost or (heard and time.monotonic() - heard < PING_EVERY_S):
                continue
            try:
                await server.endpoint.get("/models", PING_TIMEOUT_S)
            except ParagatorError:
                if server.jobs:
                    self.lose(server, f"it does not answer a ping within {PING_TIMEOUT_S:g} s")

    async def close(self) -> None:
        """End what runs beside the requests."""
        tasks = [task for s in self.servers for task in (s.pings, s.revival) if not stale(task)]
        for server in self.servers:
            server.pings = server.revival = None
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)


async def nothing(server: Server) -> None:
    """A server of one model needs nothing to be fit, and all its answers count."""


def stale(task: asyncio.Task[None] | None) -> bool:
    """Whether nothing runs here: no task, one that ended, or one of an event loop that is gone."""
    return task is None or task.done() or task.get_loop() is not asyncio.get_running_loop()
