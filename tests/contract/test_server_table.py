"""The table of docs/servers.md: a server of each kind is asked, and what a user reads is what the table says."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from paragator.core.errors import ParagatorError
from paragator.core.types import Failure, Prompt
from paragator.engines.http.openai import Limits, OpenAI
from paragator.engines.sampling import Sampling

TABLE = Path(__file__).parents[2] / "docs" / "servers.md"
Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]]
"""Status, body (JSON value or bytes), and headers."""


def good(**changes: Any) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": "It is 4."}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 7}
    return 200, {"choices": [choice | changes.pop("choice", {})], "usage": usage} | changes


def said(text: str | None, reasoning: str | None, finish: Any = "stop") -> Reply:
    return good(choice={"message": {"content": text, "reasoning_content": reasoning}, "finish_reason": finish})


def error(status: int, message: Any, **fields: Any) -> Reply:
    return status, {"error": {"message": message, **fields}}


def refusing(name: str, status: int, body: Any) -> Callable[[Any], Reply]:
    return lambda asked: (status, body) if name in asked else good()


PAST = {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}
BUSY = error(200, "Rate limit exceeded", code=429)
EXTRA = {
    "message": {
        "detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]
    }
}
HOT = error(400, "Unsupported value: 'temperature' does not support 0.7 with this model.", param="temperature")[1]
NEWER = error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")[1]
TOKENS = "`inputs` tokens + `max_new_tokens` must be <= 4096."
LOADING = error(503, "Loading model")

CASES: dict[str, Any] = {
    "200 with an error that has a code of 429, twice": [BUSY, BUSY],
    "200 with an error that has a code of 400": [error(200, "temperature must be at most 1", code=400)],
    "200 with an error without a code, in known words": [(200, {"error": "the model is overloaded"})],
    "200 with an error in words that say nothing, always": (200, {"error": {"message": "no"}}),
    "502 with an error whose code is 400": [error(502, "bad value", code=400)],
    "200 with an empty body, twice": [(200, b""), (200, b"\n\n")],
    "200 with `null` as the body, always": (200, None),
    "200 with a page of HTML, always": (200, b"<html>Welcome</html>"),
    "200 with no choices, once": [(200, {"choices": []})],
    "no content and no reasoning": [said(None, None)],
    "all text in `reasoning_content`, finished": [said(None, "so 4")],
    "all text in `reasoning_content`, cut": [said("", "so", "length")],
    "empty content": [said("", None)],
    "403 for one prompt, in words of moderation": [error(403, "Your input was flagged by moderation")],
    "403 for one prompt, after a good answer": [good(), error(403, "not this one")],
    "403 before any good answer": error(403, "not in your country"),
    "401": error(401, "no key"),
    "402": error(402, "pay first"),
    "429 with `Retry-After: 0`, always": (*error(429, "slow down"), {"retry-after": "0"}),
    "429 with a `Retry-After` that is over, once": [(*error(429, "slow down"), PAST)],
    "429 with `Retry-After: -5`, once": [(*error(429, "slow down"), {"retry-after": "-5"})],
    "429 with `Retry-After: 3600`": (*error(429, "slow down"), {"retry-after": "3600"}),
    "500, once": [error(500, "oops")],
    "500 for a prompt that is too long (llama.cpp)": [error(500, "Context size has been exceeded.")],
    "400 in a list for a prompt that is too long (Gemini)": [
        (400, [{"error": {"message": "The input token count (12) exceeds the maximum number of tokens allowed (8)."}}])
    ],
    "422 for a prompt that is too long (TGI)": [(422, {"error": f"Input validation error: {TOKENS}"})],
    "422 that refuses `seed`": refusing("seed", 422, EXTRA),
    "400 that refuses `temperature`": refusing("temperature", 400, HOT),
    "400 that refuses `max_tokens`": refusing("max_tokens", 400, NEWER),
    "400 for a value out of range": [error(400, "temperature must be at most 1")],
    "finish reason `STOP`": [good(choice={"finish_reason": "STOP"})],
    "finish reason `MAX_TOKENS`": [good(choice={"finish_reason": "MAX_TOKENS"})],
    "finish reason `content_filter`": [good(choice={"finish_reason": "content_filter"})],
    "finish reason `error`, once": [good(choice={"finish_reason": "error"})],
    "an error in place of a choice, once": [good(choice={"error": {"code": 502, "message": "upstream died"}})],
    "usage in strings and floats": [good(usage={"prompt_tokens": "10", "completion_tokens": 7.0})],
    "no usage": [good(usage=None)],
    "a body that is zipped without saying so": [(200, gzip.compress(json.dumps(good()[1]).encode()))],
    "404": error(404, "no such model"),
    "301": (301, b"", {"location": "https://elsewhere/v1"}),
    "models listed as a bare array": {"models": [(200, [{"id": "m"}])]},
    "models listed by name": {"models": [(200, {"models": [{"name": "m"}]})]},
    "503 for the models, twice": {"models": [LOADING, LOADING]},
    "503 for the models, always": {"models": LOADING},
}
"""Replies to the requests in order, a good one after the last; one reply, or a function of the request, for all of them."""


@contextmanager
def server_of(case: Any) -> Iterator[str]:
    """A server that replies like that; gives its URL."""
    completions, listing = (
        (good(), case["models"]) if isinstance(case, dict) else (case, (200, {"data": [{"id": "m"}]}))
    )
    left = {
        kind: list(replies) if isinstance(replies, list) else replies
        for kind, replies in (("POST", completions), ("GET", listing))
    }
    after = {"POST": good(), "GET": (200, {"data": [{"id": "m"}]})}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, asked: Any = None) -> None:
            replies = left[self.command]
            if isinstance(replies, list):
                found = replies.pop(0) if replies else after[self.command]
            else:
                found = replies(asked) if callable(replies) else replies
            status, body, headers = (*found, {})[:3]
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"content-length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.reply()

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            thread.join()


async def asked(engine: OpenAI, times: int) -> Any:
    try:
        await engine.connect()
        for _ in range(times):
            (output,) = (await engine(Prompt("2 + 2?", chat=True), 1, stage="generate", seed=1)).outputs
        return output
    finally:
        await engine.close()


def read(case: Any, times: int = 1) -> str:
    """What a user reads of the last of so many requests."""
    with server_of(case) as url, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limits = Limits(total_timeout_s=1.0, backoff_s=0.01)
        engine = OpenAI(url, sampling=Sampling(temperature=0.7), key="", limits=limits)
        try:
            output = asyncio.run(asked(engine, times))
        except ParagatorError as failure:
            return str(failure).replace(url, "URL")
    if isinstance(output, Failure):
        return output.reason
    parts = ["a solution" if output.finish_reason == "stop" else "a solution that was cut", engine.trouble()]
    parts += engine.remarks()
    used = engine.usage
    parts += ["tokens not told"] if used.completion_tokens is None else []
    assert used.completion_tokens is None or used.completion_tokens % 7 == 0
    return "; ".join(part for part in parts if part).replace(url, "URL")


def rows() -> dict[str, str]:
    """The table: what the server does -> what the user reads."""
    found = re.findall(r"^\| (.+?) \| `` ?(.+?) ?`` \|$", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(found)


def test_every_row_is_tried_and_everything_tried_has_its_row() -> None:
    assert list(rows()) == list(CASES) and len(CASES) >= 30


@pytest.mark.parametrize("name", CASES)
def test_the_user_reads_what_the_table_says(name: str) -> None:
    shown = read(CASES[name], times=2 if "after a good answer" in name else 1)
    pattern = ".+".join(map(re.escape, rows()[name].split("…")))
    assert re.fullmatch(pattern, shown), shown
