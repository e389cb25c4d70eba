"""The routes: chat completions, completions, models, health, metrics."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from paragator.engines.http.client import Secret
from paragator.serve.answering import Answering
from paragator.serve.errors import ApiError
from paragator.serve.guard import Guard
from paragator.serve.metrics import Metrics
from paragator.serve.protocol import ChatBody, TextBody, question_of
from paragator.serve.solver import Solver

BODY_S = 30.0
"""How long a body may take to arrive."""


class Api:
    """What each route answers."""

    def __init__(self, solver: Solver) -> None:
        self.solver, self.metrics, self.begun = solver, Metrics(), int(time.time())

    async def chat(self, request: Request) -> Response:
        return await self.answer(request, ChatBody)

    async def text(self, request: Request) -> Response:
        return await self.answer(request, TextBody)

    async def answer(self, request: Request, kind: type[ChatBody] | type[TextBody]) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "send the body as application/json", "invalid_content_type")  # no page of a site can
        question = question_of(await self.body(request), kind)
        return Answering(question, self.solver.work(question), self.solver.settings, self.metrics)

    async def body(self, request: Request) -> bytes:
        """A body within its limits of size and time."""
        most, data = self.solver.settings.max_body_bytes, bytearray()
        too_long = ApiError(413, f"the body is longer than {most} bytes", "request_too_large")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length[:18]) > most:
            raise too_long
        try:
            async with asyncio.timeout(BODY_S):
                async for part in request.stream():
                    data += part
                    if len(data) > most:
                        raise too_long
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {BODY_S:g} s", "request_timeout") from None
        except ClientDisconnect:
            raise ApiError(400, "the client left", "client_left") from None
        return bytes(data)

    async def models(self, request: Request) -> Response:
        rows = [
            {"id": name, "object": "model", "created": self.begun, "owned_by": "paragator"}
            for name in self.solver.models
        ]
        return JSONResponse({"object": "list", "data": rows})

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def counts(self, request: Request) -> Response:
        text = self.metrics.text(self.solver.tokens)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def told(request: Request, error: Any) -> Response:
    """An error of a route in OpenAI's form."""
    if isinstance(error, HTTPException):
        code = "not_found" if error.status_code == 404 else "invalid_request"
        error = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}", code)
    response: Response = error.response()
    return response


def app_of(solver: Solver, key: Secret | None = None) -> ASGIApp:
    """The server as an ASGI application; `key` is what every client must send, None asks for none."""
    api = Api(solver)
    routes = [
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.text, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/health", api.health),
        Route("/metrics", api.counts),
    ]
    app = Starlette(routes=routes, exception_handlers={ApiError: told, HTTPException: told})
    return Guard(app, solver.settings, key, api.metrics)
