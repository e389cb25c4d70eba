"""Who may ask, and how much at once: checked from a request's head, before its body is read."""

from __future__ import annotations

import hmac
import time
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paragator.engines.http.client import LOOPBACK, Secret
from paragator.serve.errors import ApiError
from paragator.serve.metrics import Metrics
from paragator.serve.settings import ServeSettings

OPEN = ("/health",)
"""Paths that need no key and have no limit."""


class Guard:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, key: Secret | None, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.expected = None if key is None else key.encode()
        self.hosts = {*LOOPBACK, *(host.lower() for host in settings.allowed_hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        metrics, begun, status = self.metrics, time.perf_counter(), 499

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        metrics.inside += 1
        try:
            self.check(scope)
            await self.app(scope, receive, sent)
        except ApiError as error:
            await error.response()(scope, receive, sent)
        finally:
            metrics.inside -= 1
            metrics.statuses[scope.get("left", status)] += 1
            metrics.seconds += time.perf_counter() - begun

    def check(self, scope: Scope) -> None:
        """ApiError for a request that is not let in."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if self.settings.is_local:
            self.check_host([value for name, value in headers if name == b"host"])
        if scope["path"] in OPEN:
            return
        if self.expected is not None:
            self.check_key([value for name, value in headers if name == b"authorization"], self.expected)
        if scope["method"] == "POST" and self.metrics.inside > self.settings.max_requests:
            what = f"{self.settings.max_requests} requests are being answered; try again later"
            raise ApiError(429, what, "rate_limit_exceeded", retry_after_s=1)

    def check_host(self, found: list[bytes]) -> None:
        """A page of another site may reach this machine under its own name (DNS rebinding), not under ours."""
        try:
            name = urlsplit("//" + found[0].decode("ascii")).hostname if len(found) == 1 else None
        except ValueError:
            name = None
        if name not in self.hosts:
            raise ApiError(403, "the Host header names another machine; see allowed_hosts", "host_not_allowed")

    @staticmethod
    def check_key(found: list[bytes], expected: bytes) -> None:
        """One header, the right word, compared in constant time."""
        scheme, _, given = found[0].partition(b" ") if len(found) == 1 else (b"", b"", b"")
        if not hmac.compare_digest(given, expected) or scheme.lower() != b"bearer":
            raise ApiError(401, "no valid key in one header Authorization: Bearer KEY", "invalid_api_key")
