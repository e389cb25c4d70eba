"""One answer on its way: whole or streamed, with its rounds told as they go, and given up when the client leaves."""

from __future__ import annotations

import asyncio
import logging

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from paragator.core.errors import ParagatorError
from paragator.runs.solve import Round, Solution
from paragator.serve.errors import ApiError
from paragator.serve.metrics import Metrics
from paragator.serve.protocol import DONE, Question, answer_of, comment, event, piece, usage_of, usage_piece
from paragator.serve.settings import ServeSettings
from paragator.serve.solver import Work

LOG = logging.getLogger("paragator.serve")
QUIET_S = 10.0
"""A stream says something at least this often, so that nothing in between closes it."""
PIECE_CHARS = 2_000


class Answering(Response):
    """A response that does its work while it is sent."""

    def __init__(self, question: Question, work: Work, settings: ServeSettings, metrics: Metrics) -> None:
        super().__init__()
        self.question, self.work, self.settings, self.metrics = question, work, settings, metrics
        self.queue: asyncio.Queue[Round | None] = asyncio.Queue()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        solving = asyncio.create_task(self.work.run(self.queue.put_nowait))
        leaving = asyncio.create_task(left(receive))
        for task in (solving, leaving):
            task.add_done_callback(lambda task: self.queue.put_nowait(None))
        begun = False
        try:
            if self.question.stream:
                begun = await self.tell(solving, leaving, send)
            else:
                await asyncio.wait((solving, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not solving.done():
                scope["left"] = 499
                return
            await self.finish(solving, scope, receive, send, begun=begun)
        finally:
            solving.cancel()
            leaving.cancel()
            await asyncio.gather(solving, leaving, return_exceptions=True)
            rounds = self.work.watch.rounds
            self.metrics.solutions += sum(len(round_.answers) for round_ in rounds)
            self.metrics.failed += sum(round_.failed for round_ in rounds)

    async def tell(self, solving: asyncio.Task[Solution], leaving: asyncio.Task[None], send: Send) -> bool:
        """Tell of rounds until there is an answer, or nobody to tell; whether the stream has begun."""
        begun = False
        while not (solving.done() or leaving.done()):
            try:
                async with asyncio.timeout(QUIET_S):
                    round_ = await self.queue.get()
            except TimeoutError:
                part = comment("still at work")
            else:
                if round_ is None or not (round_.answers or begun):  # an error before any solution keeps its status
                    continue
                part = self.progress(round_)
            if part:
                await self.send(send, part, begun)
                begun = True
        return begun

    def progress(self, round_: Round) -> bytes:
        what = "ratings" if round_.rates else f"round {round_.number}"
        text = f"{what}: {round_.done} of {round_.asked}"
        if self.settings.progress == "off":
            return b""
        if self.settings.progress == "reasoning" and self.question.chat:
            return piece(self.question, None, thought=text + "\n")
        return comment(text)

    async def finish(
        self, solving: asyncio.Task[Solution], scope: Scope, receive: Receive, send: Send, *, begun: bool
    ) -> None:
        """Send the answer, or the error that stands for it."""
        try:
            solution = solving.result()
        except ApiError as error:
            problem = error
        except ParagatorError as error:
            problem = ApiError(502, str(error), "upstream_error")
        except Exception:
            LOG.exception("a request failed by a mistake of the server")
            problem = ApiError(500, "a mistake of the server, which its log tells", "internal_error")
        else:
            rounds = self.work.watch.rounds
            if not self.question.stream:
                await JSONResponse(answer_of(self.question, solution, rounds))(scope, receive, send)
                return
            await self.send(send, b"".join(self.pieces(solution)), begun, more=False)
            return
        if begun:
            await self.send(send, event(problem.body), begun, more=False)
        else:
            await problem.response()(scope, receive, send)

    def pieces(self, solution: Solution) -> list[bytes]:
        """The answer and the end of a stream."""
        texts = [solution.text[i : i + PIECE_CHARS] for i in range(0, len(solution.text), PIECE_CHARS)]
        found = [*(piece(self.question, text) for text in texts), piece(self.question, None, solution.finish_reason)]
        if self.question.usage_in_stream:
            found.append(usage_piece(self.question, usage_of(self.work.watch.rounds)))
        return [*found, DONE]

    @staticmethod
    async def send(send: Send, body: bytes, begun: bool, *, more: bool = True) -> None:
        if not begun:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": more})


async def left(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
