"""The page, live: an ASGI application that serves runs from their folders on this machine, and follows them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paragator.core.errors import DataError
from paragator.report.alarms import Alarm
from paragator.report.contents import (
    EVALUATIONS,
    STRATEGIES,
    Contents,
    find_runs,
    finite,
    one_evaluation,
    read_contents,
    run_json,
    sources,
)
from paragator.report.index import Mark, Query, TraceIndex, appended
from paragator.report.page import HEADERS, page
from paragator.report.rollouts import Credit, cleaned, crediting, detail
from paragator.stats.curves import EVALS
from paragator.stats.table import EvalTable

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = ("127.0.0.1", "localhost", "[::1]")
RESCAN_S = 1.0
PATIENCE = 10
"""A table that took t seconds is computed again after this many times t at the earliest."""


@dataclass(slots=True)
class Numbers:
    """An evaluation's table, as of a size of its file, and what is wrong with that."""

    size: int = -1
    table: EvalTable | None = None
    alarms: list[Alarm] = field(default_factory=list)
    after: float = 0.0


@dataclass(slots=True)
class Followed:
    """A run directory that is followed: its metrics so far, its tables, and a stamp that changes with any of them."""

    path: Path
    contents: Contents
    metrics: list[dict[str, Any]] = field(default_factory=list)
    epoch: int = 0
    mark: Mark = field(default_factory=Mark)
    numbers: dict[str, Numbers] = field(default_factory=dict)
    stamp: str = ""
    credit: Credit | None = None

    def file(self, name: str) -> Path:
        """A file of traces; DataError for anything else, and for a link that leads out of the run."""
        if name not in sources(self.path) or not self.owns(name):
            raise DataError("no such file of traces")
        return self.path / f"{name}.jsonl"

    def owns(self, name: str) -> bool:
        return (self.path / f"{name}.jsonl").resolve().is_relative_to(self.path.resolve())

    def read_metrics(self) -> None:
        """Take the rows that were appended; all of them again where the file was replaced."""
        try:
            mark, new = appended(self.path / "metrics.jsonl", self.mark)
            if mark.offset < self.mark.offset or mark.inode != self.mark.inode:
                self.metrics, self.epoch = [], self.epoch + 1
            for at, line in new:
                mark = replace(mark, offset=at + len(line))
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    self.metrics.append(finite(cleaned(row)))
            self.mark = mark
        except OSError:
            self.metrics, self.mark = [], Mark()

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Size and time of change of what it holds."""
        names = (
            "config.json",
            "manifest.json",
            STRATEGIES,
            "metrics.jsonl",
            EVALS,
            *(f"{name}.jsonl" for name in sources(self.path)),
        )
        found = {name: (self.path / name).stat() for name in names if (self.path / name).is_file()}
        return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


class Viewer:
    """Runs in some folders, and below them, read again as they change. `follow` does the reading, `start` in a thread."""

    def __init__(self, folders: list[Path], index: TraceIndex) -> None:
        self.folders, self.index = folders, index
        self.runs: dict[str, Followed] = {}
        self.lock, self.ended = threading.Lock(), threading.Event()

    def start(self) -> None:
        threading.Thread(target=self.loop, name="follow", daemon=True).start()

    def loop(self) -> None:
        while not self.ended.wait(RESCAN_S):
            with suppress(OSError):  # of a run that is deleted while it is read: it is gone the next time
                self.follow()

    def scan(self) -> None:
        """Find the runs, and read what is small: config, metrics."""
        found = find_runs(self.folders)
        with self.lock:
            for key in [key for key, run in self.runs.items() if found.get(key) != run.path]:
                del self.runs[key]
            for key, path in found.items():
                run = self.runs.setdefault(key, Followed(path, Contents(path)))
                stamp = repr((run.sizes(), [(name, one.size) for name, one in run.numbers.items()]))
                if stamp != run.stamp:
                    run.contents, run.stamp = read_contents(path), stamp
                    run.read_metrics()
                    run.credit = None

    def follow(self) -> None:
        """Read everything that has changed."""
        self.scan()
        runs = list(self.runs.values())
        for run in runs:
            for name in filter(run.owns, sources(run.path)):
                self.index.update(run.file(name))
        for run, name in ((run, name) for run in runs for name in EVALUATIONS if run.owns(name)):
            self.compute(run, name)
        self.scan()

    def compute(self, run: Followed, name: str) -> None:
        """An evaluation's table, where its file has changed and the last computation is long enough ago."""
        path, known, start = run.path / f"{name}.jsonl", run.numbers.get(name, Numbers()), time.monotonic()
        size = path.stat().st_size if path.is_file() else -1
        if size == known.size or start < known.after:
            return
        noted: list[Alarm] = []
        found = one_evaluation(run.contents, name, noted)
        spent = time.monotonic() - start
        run.numbers[name] = Numbers(size, found, noted, time.monotonic() + PATIENCE * spent)

    # ---- what the page asks for

    def overview(self) -> list[dict[str, Any]]:
        with self.lock:
            runs = dict(self.runs)
        out = []
        for key, run in runs.items():
            files = {name: self.index.counts(run.path / f"{name}.jsonl")[0] for name in sources(run.path)}
            stamp = f"{hash(run.stamp):x}-{sum(files.values())}"
            out.append(
                {
                    "key": key,
                    "stamp": stamp,
                    **cleaned(run.contents.overview()),
                    "files": {k: n for k, n in files.items() if n},
                }
            )
        return out

    def run(self, key: str) -> Followed:
        with self.lock:
            if key not in self.runs:
                raise DataError("no such run (any more)")
            return self.runs[key]

    def run_json(self, key: str, epoch: int, known: int) -> dict[str, Any]:
        """Everything of a run but its traces; of the metrics what the page does not know yet."""
        run = self.run(key)
        tables = {name: run.numbers[name].table for name in EVALUATIONS if name in run.numbers}
        noted = [alarm for name in EVALUATIONS if name in run.numbers for alarm in run.numbers[name].alarms]
        contents = replace(run.contents, alarms=[*run.contents.alarms, *noted])
        found = run_json(contents, {name: one for name, one in tables.items() if one})
        first = known if epoch == run.epoch and known <= len(run.metrics) else 0
        pending = [n for n in EVALUATIONS if n not in tables and (run.path / f"{n}.jsonl").is_file()]
        return {**found, "metrics": run.metrics[first:], "first": first, "epoch": run.epoch, "pending": pending}

    def problems(self, key: str, name: str, query: Query) -> dict[str, Any]:
        path = self.run(key).file(name)
        total, rows = self.index.rows(path, query)
        count, bad = self.index.counts(path)
        return {"total": total, "rows": rows, "count": count, "bad": bad}

    def traces(self, key: str, name: str, numbers: Iterable[int]) -> list[dict[str, Any]]:
        run = self.run(key)
        path = run.file(name)
        if name == "traces" and run.credit is None:
            run.credit = crediting(run.contents.config)
        credit = run.credit if name == "traces" else None
        return [{"n": n, **detail(self.index.record(path, n), credit)} for n in numbers]


def application(viewer: Viewer) -> Starlette:
    """The page at "/", and JSON below "/api". Only for this machine: see `LocalOnly`."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    def shown(request: Request) -> Response:
        return HTMLResponse(page({"live": True}, live=True))

    def answer(find: Any) -> Any:
        def handle(request: Request) -> Response:
            try:
                return JSONResponse(find(request.query_params))
            except DataError as error:
                return JSONResponse({"error": str(error)}, status_code=404)
            except ValueError:
                return JSONResponse({"error": "a parameter is not a number"}, status_code=400)

        return handle

    routes = {
        "/api/runs": lambda asked: viewer.overview(),
        "/api/run": lambda asked: viewer.run_json(asked.get("run", ""), number(asked, "epoch"), number(asked, "known")),
        "/api/problems": lambda asked: viewer.problems(asked.get("run", ""), asked.get("file", ""), query_of(asked)),
        "/api/traces": lambda asked: viewer.traces(
            asked.get("run", ""), asked.get("file", ""), map(int, asked.get("n", "").split(",")[:100])
        ),
        "/api/find": lambda asked: viewer.index.find(
            viewer.run(asked.get("run", "")).file(asked.get("file", "")),
            asked.get("problem", ""),
            number(asked, "repeat"),
        ),
    }
    icon = Route("/favicon.ico", lambda request: Response(status_code=204))
    found = [Route("/", shown), icon, *(Route(path, answer(find)) for path, find in routes.items())]
    return Starlette(routes=found, middleware=[Middleware(LocalOnly), Middleware(GZipMiddleware, minimum_size=2000)])


def number(asked: Any, name: str) -> int:
    return int(asked.get(name) or 0)


def query_of(asked: Any) -> Query:
    step = asked.get("step") or ""
    return Query(
        asked.get("kind", ""),
        asked.get("text", ""),
        int(step) if step else None,
        asked.get("sort", "n"),
        asked.get("descending") == "1",
        max(0, number(asked, "offset")),
        max(1, number(asked, "limit")),
    )


class LocalOnly:
    """Refuses whoever is not this page: another host name (DNS rebinding), another origin, anything but reading."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        from starlette.responses import PlainTextResponse

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", ())}
        host, origin = headers.get("host", ""), headers.get("origin")
        local = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            refusal = "this page is only read"
        elif local not in LOCAL:
            refusal = "open the page as localhost"
        elif origin not in (None, f"http://{host}") or headers.get("sec-fetch-site", "none") not in (
            "none",
            "same-origin",
        ):
            refusal = "another site asks"
        else:
            await self.app(scope, receive, with_headers(send))
            return
        if scope["type"] == "http":
            await PlainTextResponse(refusal, 403)(scope, receive, send)


def with_headers(send: Send) -> Send:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
        await send(message)

    return sending
