"""HTTP to one server over aiohttp: whole answers, and every failure of the network in a few words.

Nothing here knows of language models. aiohttp is imported with the first request, so a run without a server never loads it.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import socket
import ssl
import weakref
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from paragator.core.errors import UsageError

if TYPE_CHECKING:
    from aiohttp import ClientSession

MOST_BYTES = 2**30
"""A longer answer is not read to its end."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")

Headers = Sequence[tuple[str, str]]


class Broken(Exception):
    """The connection ended, or what came over it is no HTTP, before the answer was whole."""


class Unreachable(Exception):
    """No connection could be made."""


class Secret(str):
    """A text that does not show itself in a traceback or a repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)


class Client:
    """Requests to the server of `url`, each on a connection of its own; finished ones are used again.

    Proxies come from the environment, as for curl (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY); this machine is always
    reached directly. A cancelled request closes its connection at once. Redirects are answers like others. It can be used
    in one event loop after another: each has its own connections.
    """

    def __init__(self, url: str) -> None:
        self._sessions: dict[asyncio.AbstractEventLoop, ClientSession] = {}
        weakref.finalize(self, forget_ended, self._sessions)  # before its connections' own, which would complain
        self.url = urlsplit(url)
        self.tls = ssl.create_default_context() if self.url.scheme == "https" else None
        self.proxy = proxy_for(self.url)

    async def send(self, method: str, path: str, headers: Headers, body: bytes = b"") -> Answer:
        """One request; Broken or Unreachable when no whole answer came."""
        from aiohttp import ClientError

        session = self._sessions.get(asyncio.get_running_loop()) or self._open()
        url, proxy = f"{self.url.scheme}://{self.url.netloc}{path}", None
        sent, to_proxy = dict(headers), None
        if self.proxy is not None:
            proxy, to_proxy = f"{self.proxy.scheme}://{self.proxy.netloc.rpartition('@')[2]}", self._proxy_headers()
            sent |= {} if self.tls else to_proxy
        try:
            async with session.request(
                method, url, data=body, headers=sent, allow_redirects=False, proxy=proxy, proxy_headers=to_proxy
            ) as response:
                parts, size = [], 0
                async for part in response.content.iter_any():
                    parts.append(part)
                    size += len(part)
                    if size > MOST_BYTES:
                        response.close()
                        raise Broken(f"the answer is longer than {MOST_BYTES} bytes")
                found = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status, found, unzipped(b"".join(parts)))
        except (ClientError, OSError) as error:
            failure = failure_of(error)
        raise failure  # outside the block: aiohttp's error holds the request's headers, and so the key

    async def close(self) -> None:
        """Close the connections of this event loop, and forget those of loops that have ended."""
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()
        forget_ended(self._sessions)

    def _open(self) -> ClientSession:
        """A session for this event loop."""
        from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

        forget_ended(self._sessions)
        session = self._sessions[asyncio.get_running_loop()] = ClientSession(
            connector=TCPConnector(limit=0, ssl=self.tls or True),
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(total=None, sock_connect=None),
        )
        return session

    def _proxy_headers(self) -> dict[str, str]:
        if self.proxy is None or self.proxy.username is None:
            return {}
        word = f"{unquote(self.proxy.username)}:{unquote(self.proxy.password or '')}"
        return {"proxy-authorization": Secret(f"Basic {base64.b64encode(word.encode()).decode()}")}


def forget_ended(sessions: dict[asyncio.AbstractEventLoop, ClientSession]) -> None:
    """Close sessions whose event loop has ended, which takes no waiting; else aiohttp complains of them."""
    for loop in [loop for loop in sessions if loop.is_closed()]:
        closing = sessions.pop(loop).close()
        with suppress(StopIteration):
            for _ in range(9):
                closing.send(None)


def proxy_for(url: SplitResult) -> SplitResult | None:
    """The environment's proxy for a URL, if any; UsageError for one of a kind that is not supported."""
    host = url.hostname or ""
    if host in LOOPBACK or proxy_bypass(host):
        return None
    proxies = getproxies()
    found = proxies.get(url.scheme) or proxies.get("all")
    if not found:
        return None
    proxy = urlsplit(found if "://" in found else f"http://{found}")
    if proxy.scheme not in ("http", "https") or not proxy.hostname:
        raise UsageError(
            f"the environment names a {proxy.scheme}:// proxy for {host}, which is not supported; "
            f"set {url.scheme.upper()}_PROXY to one with http://, or add {host} to NO_PROXY"
        )
    return proxy


def unzipped(body: bytes) -> bytes:
    """A body that a server zipped without saying so, as it was before; any other as it is."""
    if not body.startswith(b"\x1f\x8b"):
        return body
    try:
        return zlib.decompressobj(31).decompress(body, MOST_BYTES)
    except zlib.error:
        return body


def failure_of(error: BaseException) -> Exception:
    """Broken or Unreachable with the reason in words; UsageError where no more files can be opened."""
    from aiohttp import ClientConnectorError, ClientHttpProxyError

    if isinstance(error, ClientHttpProxyError):
        return Unreachable(f"the proxy refused to connect (http {error.status})")
    if not isinstance(error, ClientConnectorError):
        return Broken(why(error))
    cause = getattr(error, "certificate_error", error.os_error)
    if cause.errno in (errno.EMFILE, errno.ENFILE) or f"[Errno {errno.EMFILE}]" in str(cause):
        return UsageError("too many open files: lower engine.max_in_flight, or raise the limit with ulimit -n")
    return Unreachable(why(cause))


def why(error: BaseException) -> str:
    """An error of the network in a few words."""
    from aiohttp import ClientPayloadError, ClientResponseError, ServerDisconnectedError

    text = str(error)
    if isinstance(error, ConnectionRefusedError) or f"[Errno {errno.ECONNREFUSED}]" in text:
        return "connection refused"
    if isinstance(error, socket.gaierror):
        return "unknown host"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate cannot be trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "it does not speak TLS; try http:// instead of https://"
    if isinstance(error, ClientPayloadError) and "decode" in text:
        return "broken answer: its content-encoding cannot be decoded"
    if isinstance(error, ClientPayloadError | ServerDisconnectedError):
        return "the connection ended before the answer"
    if isinstance(error, ClientResponseError):
        return f"broken answer: {' '.join(error.message.split())}"
    if isinstance(error, ConnectionError):
        return "connection reset"
    if isinstance(error, OSError):
        return (error.strerror or text or "connection failed").lower()
    return f"broken answer: {text}"


def checked_key(key: str, where: str) -> Secret:
    """A key that can be sent; UsageError, which does not show it, for one that cannot."""
    key = Secret(key)
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"{where} holds more than a key: it must be one word of ASCII")
    return key


def checked_url(url: str, section: str = "engine") -> str:
    """A base URL without its last slash; UsageError with a hint for one that cannot work."""
    url = url.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{section}.url = {url}: {error}; write it as http://localhost:8000/v1") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        guess = url.split("://")[-1] or "localhost:8000/v1"
        raise UsageError(f"{section}.url = {url}: it must begin with http:// or https://; write http://{guess}")
    if parts.username is not None:
        raise UsageError(f"{section}.url holds a user or a key; remove it and set {section}.key_env")
    if parts.query or parts.fragment or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(f"{section}.url = {url}: only scheme, host, port and path belong there, in ASCII")
    for ending in ("/chat/completions", "/completions", "/models"):
        if url.endswith(ending):
            raise UsageError(f"{section}.url = {url}: leave out {ending}; write {url.removesuffix(ending)}")
    return url
