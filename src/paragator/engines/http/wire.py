"""HTTP/1.1 to one server: h11 reads and writes the protocol, asyncio moves the bytes.

Why not an HTTP library: processor time a request with 64 in flight was 0.2 ms this way, 1.0 ms over httpx2 and 2.5 ms
through the openai SDK on top of it. With 10,000 in flight httpx2 alone took 1.8 to 2.5 ms and held the event loop up for
seconds; the whole engine takes 0.9 ms (benchmarks/endpoint.py). Nothing here knows of language models.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import h11

from paragator.core.errors import UsageError

CHUNK = 65_536
MOST_BYTES = 2**30
"""A longer answer is not read to its end."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")

Headers = Sequence[tuple[str, str]]


class Broken(Exception):
    """The connection ended, or what came over it is no HTTP, before the answer was whole."""


class Unreachable(Exception):
    """No connection could be made."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)


@dataclass(slots=True, eq=False)
class Line:
    """One open connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    protocol: h11.Connection

    @property
    def usable(self) -> bool:
        return not self.reader.at_eof() and not self.writer.transport.is_closing()


class Wire:
    """Requests to the server of `url`, each on its own connection; finished ones are used again.

    Proxies come from the environment, as for curl (HTTPS_PROXY, HTTP_PROXY, NO_PROXY); this machine is always reached
    directly. A cancelled request closes its connection at once. Redirects are answers like others.
    """

    def __init__(self, url: str) -> None:
        self.url = urlsplit(url)
        self.tls = ssl.create_default_context() if self.url.scheme == "https" else None
        self.proxy = proxy_for(self.url)
        self._idle: list[Line] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    async def send(self, method: str, path: str, headers: Headers, body: bytes = b"") -> Answer:
        """One request; Broken or Unreachable when no whole answer came."""
        line = await self._line()
        try:
            answer = await self._exchange(line, method, path, headers, body)
        except BaseException as error:
            line.writer.transport.abort()
            if isinstance(error, OSError | h11.RemoteProtocolError):
                raise Broken(why(error)) from None
            raise
        if line.protocol.our_state is h11.DONE and line.protocol.their_state is h11.DONE:
            line.protocol.start_next_cycle()
            self._idle.append(line)
        else:
            line.writer.close()
        return answer

    def close(self) -> None:
        """Close the connections that wait for a next request; those of an event loop that has ended are forgotten."""
        for line in self._idle:
            if self._loop and not self._loop.is_closed():
                line.writer.close()
        self._idle.clear()

    async def _line(self) -> Line:
        """A connection that waits, or a new one. Those of an event loop that has ended are forgotten."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._idle = loop, []
        while self._idle:
            line = self._idle.pop()
            if line.usable:
                return line
            line.writer.close()
        try:
            return await self._connect()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise UsageError(
                    "too many open files: lower engine.max_in_flight, or raise the limit with ulimit -n"
                ) from None
            raise Unreachable(why(error)) from None

    async def _connect(self) -> Line:
        if self.proxy is None:
            reader, writer = await asyncio.open_connection(*place(self.url), ssl=self.tls)
            return Line(reader, writer, h11.Connection(h11.CLIENT))
        reader, writer = await asyncio.open_connection(*place(self.proxy))
        if self.tls is not None:
            await self._tunnel(reader, writer)
        return Line(reader, writer, h11.Connection(h11.CLIENT))

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Have the proxy connect to the server, and speak TLS with the server through it."""
        host, port = place(self.url)
        line = Line(reader, writer, h11.Connection(h11.CLIENT))
        target = f"{host}:{port}"
        asked = h11.Request(method="CONNECT", target=target, headers=[("host", target), *self._proxy_headers()])
        writer.write(line.protocol.send(asked) or b"")
        answer = await self._next(line)
        if not isinstance(answer, h11.Response) or answer.status_code != 200:
            writer.close()
            raise OSError(f"the proxy {self.proxy.hostname if self.proxy else ''} refused to connect")
        await writer.start_tls(self.tls, server_hostname=host)  # type: ignore[arg-type]

    async def _exchange(self, line: Line, method: str, path: str, headers: Headers, body: bytes) -> Answer:
        line.writer.write(self._request(line, method, path, headers, body))  # bound to no name: it holds the key
        await line.writer.drain()
        return await self._receive(line)

    def _request(self, line: Line, method: str, path: str, headers: Headers, body: bytes) -> bytes:
        """A request as bytes; through a proxy without TLS it names the server in full."""
        target, extra = path, []
        if self.proxy is not None and self.tls is None:
            target, extra = f"http://{self.url.netloc}{path}", self._proxy_headers()
        sent = [("host", self.url.netloc), *headers, *extra, ("content-length", str(len(body)))]
        events = (h11.Request(method=method, target=target, headers=sent), h11.Data(body), h11.EndOfMessage())
        return b"".join(line.protocol.send(event) or b"" for event in events)

    async def _receive(self, line: Line) -> Answer:
        status, headers, parts, size = 0, {}, [], 0
        while True:
            event = await self._next(line)
            if isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
            elif isinstance(event, h11.Data):
                parts.append(bytes(event.data))
                size += len(event.data)
                if size > MOST_BYTES:
                    raise Broken(f"the answer is longer than {MOST_BYTES} bytes")
            elif isinstance(event, h11.EndOfMessage):
                return Answer(status, headers, b"".join(parts))
            elif isinstance(event, h11.ConnectionClosed):
                raise Broken("the connection ended before the answer")

    async def _next(self, line: Line) -> Any:
        while (event := line.protocol.next_event()) is h11.NEED_DATA:
            line.protocol.receive_data(await line.reader.read(CHUNK))
        return event

    def _proxy_headers(self) -> list[tuple[str, str]]:
        if self.proxy is None or self.proxy.username is None:
            return []
        word = f"{unquote(self.proxy.username)}:{unquote(self.proxy.password or '')}"
        return [("proxy-authorization", f"Basic {base64.b64encode(word.encode()).decode()}")]


def place(url: SplitResult) -> tuple[str, int]:
    """Host and port of a URL."""
    return url.hostname or "", url.port or (443 if url.scheme == "https" else 80)


def proxy_for(url: SplitResult) -> SplitResult | None:
    """The environment's proxy for a URL, if any."""
    host = url.hostname or ""
    if host in LOOPBACK or proxy_bypass(host):
        return None
    proxies = getproxies()
    found = proxies.get(url.scheme) or proxies.get("all")
    return urlsplit(found if "://" in found else f"http://{found}") if found else None


def why(error: BaseException) -> str:
    """An error of the network in a few words."""
    text = str(error)
    if isinstance(error, ConnectionRefusedError) or f"[Errno {errno.ECONNREFUSED}]" in text:
        return "connection refused"
    if isinstance(error, socket.gaierror):
        return "unknown host"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate cannot be trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "it does not speak TLS; try http:// instead of https://"
    if isinstance(error, ConnectionError):
        return "connection reset"
    if isinstance(error, OSError):
        return (error.strerror or text or "connection failed").lower()
    return f"broken answer: {text}"
