"""A listening server, in the event loop that is there: it touches no signal handlers and ends with its block."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn

from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.engines.by_stage import Engines
from paragator.serve.app import app_of
from paragator.serve.settings import ServeSettings, key_of
from paragator.serve.solver import Solver, opened

BACKLOG = 4096
GRACE_S = 2


class Uvicorn(uvicorn.Server):
    """Leaves signals to the program."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def listening(
    config: Config, settings: ServeSettings, *, engine: Engines = None
) -> AsyncIterator[tuple[str, Solver]]:
    """The server's base URL and its solver, until the block ends. UsageError for what cannot work."""
    key = key_of(settings)
    with socket_of(settings) as bound:
        async with opened(config, settings, engine=engine) as solver:
            options = uvicorn.Config(
                app_of(solver, key),
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_graceful_shutdown=GRACE_S,
            )
            server = Uvicorn(options)
            running = asyncio.create_task(server.serve(sockets=[bound]))
            try:
                host = f"[{settings.host}]" if ":" in settings.host else settings.host
                yield f"http://{host}:{bound.getsockname()[1]}/v1", solver
            finally:
                server.should_exit = True
                await running


def socket_of(settings: ServeSettings) -> socket.socket:
    """A socket bound to the address; UsageError where it cannot be had."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        where = f"host = {settings.host}, port = {settings.port}"
        raise UsageError(f"{where}: {error.strerror or error}; choose another port, or an address of here") from None
