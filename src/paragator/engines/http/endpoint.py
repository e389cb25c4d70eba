"""HTTP requests with retries, backoff and adaptive concurrency.

An error in a body decides, whatever the status. Tried again: 408, 409, 425, 429, 5xx, timeouts, lost connections,
truncated and empty bodies, garbage instead of JSON. Anything else is Refused at once; 401, and 403 before any good answer,
end the run. What a server says is cleaned and cut before it becomes part of a reason, and a reason never enters a prompt.
docs/servers.md lists what is made of what.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from paragator.core.errors import RunError, UsageError
from paragator.engines.http.client import Answer, Broken, Client, Secret, Unreachable, checked_key, checked_url
from paragator.engines.http.gate import Gate, Lane, Word
from paragator.engines.http.replies import EMPTY, GARBLED, MODERATED, TOO_LONG, Trouble, held_in, said_in, trouble_in
from paragator.engines.journal import Stopped

REASON_CHARS = 300
LONGEST_PAUSE_S = 60.0
LEAST_PAUSE_S = 1.0
"""A server that asks for a shorter pause waits for ours, up to this: retries never become a busy loop."""
SILENT_S = 20.0
"""One of several servers, every attempt at which failed for this long, is lost."""
LEAST_ATTEMPT_S = 1.0
"""An attempt that would be cut after so long, or after a tenth of all time, is not begun: it would hide why the others failed."""
RECONNECT_S = 2.0
"""Pause between attempts to reach a server that takes no connection."""
GARBAGE = 3
"""A server whose first answers, this many in a row, are garbage is not a server of language models."""
RETRIED = frozenset({408, 409, 425, 429})


class Refused(Exception):
    """A request that failed for good; its text is the reason of a Failure. `status` is 0 without an answer.

    trouble  what the server said, where it said something
    """

    def __init__(self, reason: str, status: int = 0, trouble: Trouble | None = None) -> None:
        super().__init__(reason)
        self.status, self.trouble = status, trouble


class Nobody(UsageError):
    """No server answers at a URL; `reason` in a few words."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: no server answers there ({reason}); start it or correct the URL")
        self.reason = reason


class Lost(Exception):
    """A server that is taken for dead, see fleet.py; its text says why."""


class Again(Exception):
    """An attempt that failed and may succeed when tried again, after `after` seconds if the server said so.

    status  of the answer; 0 without one
    """

    def __init__(self, reason: str, *, after: float | None = None, word: Word = "neither", status: int = 0) -> None:
        super().__init__(reason)
        self.after, self.status = after, status
        self.word: Word = word


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a server is asked at once, and for how long.

    max_in_flight      most requests at once; fewer while the server pushes back
    request_timeout_s  longest one attempt may take
    total_timeout_s    longest one request may take with its retries, from its first attempt; then it is a Failure
    backoff_s          longest pause before the first retry; it doubles with each
    wait_s             how long the run waits for a server that is gone, or for one of several, before it ends
    """

    max_in_flight: int = 64
    request_timeout_s: float = 600.0
    total_timeout_s: float = 1800.0
    backoff_s: float = 0.5
    wait_s: float = 20.0


@dataclass(slots=True)
class Clock:
    """Time and attempts of one request, from its first attempt on; waiting for a first turn costs nothing.

    last  why the last attempt failed
    """

    total_s: float
    end: float | None = None
    sent: int = 0
    last: str | None = None

    def start(self) -> None:
        self.sent += 1
        if self.end is None:
            self.end = time.monotonic() + self.total_s

    def left(self) -> float | None:
        return None if self.end is None else self.end - time.monotonic()


@dataclass(slots=True)
class Endpoint:
    """A server's base URL and how it is asked; `post` and `get` return the JSON object of a good answer.

    section      the config's section that the settings come from, for messages
    stop         once it is true, no request begins: `post` raises Stopped instead of a first attempt
    sent         attempts of all requests
    retries      attempts after a first one
    last_reason  why an attempt last failed, of those that are tried again; None while none did
    good         good answers
    bad          how many of the last answers in a row say that the URL, the model or the key is wrong, before a first good one
    since        the last request sent when these were enough to end the run; those sent before may still be answered well
    flying       numbers of the requests in flight
    heard        when the server last took a connection
    gone_since   since when it takes none; None while it does
    watched      one of a fleet: Lost instead of patience
    failing      since when every attempt failed; None while they do not
    """

    url: str
    key: str | None = field(default=None, repr=False)
    limits: Limits = Limits()
    section: str = "engine"
    stop: Callable[[], bool] = lambda: False
    gate: Gate = field(init=False)
    client: Client = field(init=False, repr=False)
    sent: int = 0
    retries: int = 0
    last_reason: str | None = None
    good: int = 0
    bad: int = 0
    since: int | None = None
    flying: set[int] = field(default_factory=set, repr=False)
    heard: float | None = None
    gone_since: float | None = None
    watched: bool = False
    failing: float | None = None

    def __post_init__(self) -> None:
        self.url = checked_url(self.url, self.section)
        self.key = checked_key(self.key, "key") if self.key else None
        self.gate = Gate(self.limits.max_in_flight)
        self.client = Client(self.url)

    async def post(
        self, path: str, body: Mapping[str, Any], check: Callable[[Any], str | None], *, lane: Lane = "last"
    ) -> dict[str, Any]:
        """The answer to `body`. Refused when it fails for good; `check` names what makes an answer garbage.

        Its first attempt waits for its turn in `lane`, further ones in front of all.
        """
        data = json.dumps(body).encode()
        clock = Clock(self.limits.total_timeout_s)
        while True:
            try:
                found: dict[str, Any] = await self.attempt(path, data, clock, check, lane)
                return found
            except Again as error:
                pause, left = self.pause(error, clock.sent), clock.left()
                if left is not None and left - pause <= min(LEAST_ATTEMPT_S, self.limits.total_timeout_s / 10):
                    raise Refused(self.given_up(error, clock.sent)) from None
            await asyncio.sleep(pause)

    async def attempt(
        self, path: str, data: bytes, clock: Clock, check: Callable[[Any], str | None], lane: Lane
    ) -> Any:
        """One attempt, in its turn; earlier ones of the same request put it first in the queue."""
        try:
            async with asyncio.timeout(clock.left()):
                ticket = await self.gate.enter("retry" if clock.sent else lane)
        except TimeoutError:
            raise Again(clock.last or "no turn in time") from None
        if not clock.sent and self.stop():
            self.gate.leave(ticket, "neither")
            raise Stopped
        clock.start()
        self.sent += 1
        self.retries += clock.sent > 1
        word: Word = "neither"
        start = time.monotonic()
        try:
            found = await self.exchange(path, data, min(self.limits.request_timeout_s, clock.left() or 0), check)
            word, self.failing = "fine", None
        except Again as error:
            word, self.last_reason = error.word, str(error)
            clock.last = str(error)
            self.doubt(start, error)
            raise
        except Refused:
            word, self.failing = "fine", None
            raise
        finally:
            self.gate.leave(ticket, word)
        return found

    def doubt(self, start: float, error: Again) -> None:
        """Lost where no attempt has succeeded for long; `start` is when the one that failed began. Push-backs are alive."""
        if not self.watched or error.status in RETRIED:
            return
        self.failing = start if self.failing is None else self.failing
        if (silent_s := time.monotonic() - self.failing) > SILENT_S:
            raise Lost(f"nothing but failures for {silent_s:.0f} s, the last: {error}")

    def fresh(self) -> None:
        """Forget what a server that is asked again did before it was lost."""
        self.failing = self.gone_since = None
        self.gate.limit = float(self.gate.most)

    async def exchange(self, path: str, data: bytes, limit_s: float, check: Callable[[Any], str | None]) -> Any:
        """A good answer to one attempt; else what the answer, or its absence, means."""
        number = self.sent
        self.flying.add(number)
        try:
            async with asyncio.timeout(limit_s):
                answer = await self.client.send("POST", self.path(path), self.headers(), data)
        except TimeoutError:
            raise Again(f"timeout of one attempt after {limit_s:.3g} s", word="pushed back") from None
        except Broken as error:
            self.connected()
            raise Again(str(error)) from None
        except Unreachable as error:
            raise self.gone(str(error)) from None
        finally:
            self.flying.discard(number)
        self.connected()
        found, trouble = self.read(answer)
        if trouble:
            raise self.meaning(trouble, answer)
        if found is EMPTY:
            raise Again(f"the server sends empty answers (http {answer.status} without a body)")
        if found is GARBLED:
            raise self.no_answer("garbage instead of JSON", answer.body)
        if problem := check(found):
            raise self.no_answer(f"garbage: {problem}", answer.body)
        self.good += 1
        return found

    def read(self, answer: Answer) -> tuple[Any, Trouble | None]:
        """What an answer's body holds, or the error that it tells, without the key, which servers like to repeat."""
        found = held_in(answer.body)
        if trouble := trouble_in(answer, found):
            answer = replace(answer, body=self.without_key(answer.body))
            return None, trouble_in(answer, held_in(answer.body)) or trouble
        return found, None

    async def get(self, path: str, timeout_s: float) -> Answer:
        """One attempt at a GET; UsageError when nothing answers there."""
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self.client.send("GET", self.path(path), self.headers())
        except TimeoutError:
            raise self.nobody("no answer in time") from None
        except (Broken, Unreachable) as error:
            raise self.nobody(str(error)) from None
        self.connected()
        if answer.status in (401, 403):
            raise self.refused_key(f"http {answer.status}: {self.said(answer.body)}")
        return answer

    @property
    def where(self) -> str:
        """The config's key and the URL, as a message begins."""
        return f"{self.section}.url = {self.url}"

    def path(self, path: str) -> str:
        return urlsplit(self.url).path + path

    def headers(self) -> list[tuple[str, str]]:
        found = [("user-agent", "paragator"), ("accept", "application/json"), ("accept-encoding", "identity")]
        found.append(("content-type", "application/json"))
        if self.key is not None:
            found.append(("authorization", Secret(f"Bearer {self.key}")))
        return found

    def pause(self, error: Again, attempts: int) -> float:
        """Seconds to the next attempt: what the server asked for, else exponential with jitter."""
        longest = min(LONGEST_PAUSE_S, self.limits.backoff_s * 2.0 ** min(max(attempts, 1) - 1, 30))
        ours = random.uniform(longest / 2, longest)
        return ours if error.after is None else max(error.after * random.uniform(1.0, 1.1), min(ours, LEAST_PAUSE_S))

    def given_up(self, error: Again, attempts: int) -> str:
        """Why there is no further attempt after `error`."""
        total_s = self.limits.total_timeout_s
        waits = error.after is not None and error.after > total_s
        why = f"no further attempt within {total_s:g} s" if waits else f"timeout after {total_s:g} s"
        return f"{why}: {attempts} attempt{'s' if attempts != 1 else ''}, the last: {error}"

    def meaning(self, trouble: Trouble, answer: Answer) -> Exception:
        """What an error means: Again, Refused, or the end of the run."""
        status, said = trouble.status, self.clean(trouble.said)
        reason = f"{trouble.kind}: {said}" if said else trouble.kind
        if TOO_LONG.search(trouble.words) and (status in (200, 400, 413, 422) or status >= 500):
            return Refused(f"context length: {said}"[:REASON_CHARS], 400, trouble)
        if status == 401 or (status == 403 and not MODERATED.search(trouble.words) and self.hopeless(1)):
            return self.refused_key(reason)
        if status == 402 or (status == 429 and b"insufficient_quota" in answer.body):
            return RunError(f"{self.where}: no credit is left ({reason}); add some and --resume")
        if 300 <= status < 400:
            reason += f"; it redirects to {self.clean(answer.headers.get('location', ''))}"
        if (300 <= status < 400 or status in (404, 405)) and self.hopeless(1):
            return UsageError(f"{self.where}: {reason}; correct the URL or {self.section}.model")
        if status == 200:
            return self.no_answer(trouble.kind, answer.body)
        if status not in RETRIED and status < 500:
            return Refused(reason[:REASON_CHARS], status, trouble)
        self.bad, self.since = 0, None
        if trouble.after is not None and trouble.after > self.limits.total_timeout_s:
            reason += f"; the server asks to wait {math.ceil(trouble.after)} s"
        word: Word = "pushed back" if status in (429, 503) else "neither"
        return Again(reason, after=trouble.after, word=word, status=status)

    def refused_key(self, reason: str) -> RunError:
        held = "refuses the key" if self.key else "wants a key, and none is set"
        keys = "engine.key_env, engine.key_file" if self.section == "engine" else f"{self.section}.key_env"
        return RunError(f"{self.where}: {reason}; the server {held}: see {keys}")

    def no_answer(self, what: str, body: bytes) -> Exception:
        """An answer that holds none: Again, or the caller's mistake where nothing else has ever come."""
        said = self.said(body)
        reason = f"{what}: {said}" if said else what
        if self.hopeless(GARBAGE):
            return UsageError(f"{self.where}: {reason}; correct the URL or {self.section}.model")
        return Again(reason)

    def hopeless(self, enough: int) -> bool:
        """One more bad answer: whether there were `enough` in a row and no good one ever came, or is still to come.

        One may come from any request that was in flight when there were enough: quick errors overtake slow answers.
        """
        self.bad += 1
        if self.good or self.bad < enough:
            return False
        self.since = self.sent if self.since is None else self.since
        return min(self.flying, default=self.sent + 1) > self.since

    def gone(self, reason: str) -> Exception:
        """No connection: Lost in a fleet; the caller's mistake if there never was one; after `wait_s` RunError; else Again."""
        if self.watched:
            return Lost(reason)
        if self.heard is None:
            return self.nobody(reason)
        now, wait_s = time.monotonic(), self.limits.wait_s
        self.gone_since = now if self.gone_since is None else self.gone_since
        if now - self.gone_since > wait_s:
            return RunError(
                f"{self.where}: the server is gone (for {wait_s:g} s: {reason}); start it again and --resume"
            )
        return Again(reason, after=min(RECONNECT_S, wait_s / 10), word="pushed back")

    def connected(self) -> None:
        self.heard, self.gone_since = time.monotonic(), None

    def nobody(self, reason: str) -> Nobody:
        return Nobody(self.where, reason)

    def without_key(self, body: bytes) -> bytes:
        """A body as it came without the key; before anything is cut off, which could leave a part of it."""
        for spelling in (self.key, self.key.replace("/", r"\/")) if self.key else ():
            body = body.replace(spelling.encode(), b"***")
        return body

    def said(self, body: bytes) -> str:
        """The message in an error's body as one short printable line, without the key."""
        return self.clean(said_in(self.without_key(body)))

    def clean(self, text: str) -> str:
        """What a server said as one short printable line, without the key."""
        line = "".join(char for char in " ".join(text.split()) if char.isprintable())
        line = line.replace(self.key, "***") if self.key else line
        return line if len(line) <= REASON_CHARS - 40 else line[: REASON_CHARS - 41] + "…"
