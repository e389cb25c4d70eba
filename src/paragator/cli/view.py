"""`paragator view RUN...`: the page, live, on this machine."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from paragator.cli.main import parse, parser_for
from paragator.cli.report import existing
from paragator.core.errors import UsageError

if TYPE_CHECKING:
    from paragator.report.index import TraceIndex

SWITCH_S = 0.0005
"""How long the thread that reads runs may keep the page waiting."""
EPILOG = """\
RUN is a run directory, a study's folder, or any folder with runs below it; ones that appear later are shown too.
The page is for this machine only. From another one, forward the port:

  ssh -L 8765:localhost:8765 MACHINE     and open http://localhost:8765 there"""


def main(arguments: list[str]) -> int:
    parser = parser_for("view")
    parser.epilog = EPILOG
    parser.add_argument("runs", nargs="*", default=["runs"], help="folders (default: runs)")
    parser.add_argument("--port", type=int, default=8765, help="default 8765; 0: a free one")
    flags, rest = parse(parser, arguments)
    if rest:
        raise UsageError(f"unknown option {rest[0]}; see paragator view --help")
    runs = existing(flags.runs)
    try:
        import uvicorn

        from paragator.report.view import Viewer, application
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed: pip install 'paragator[serve]'") from None
    index = cached_index(runs)
    viewer = Viewer(runs, index)
    viewer.scan()
    config = uvicorn.Config(application(viewer), host="127.0.0.1", port=flags.port, log_level="warning")
    try:
        socket = config.bind_socket()
    except SystemExit:
        raise UsageError(f"port {flags.port} is taken; choose another by --port, or 0 for a free one") from None
    socket.listen()  # a browser that comes before the server has started waits
    print(f"http://localhost:{socket.getsockname()[1]}  (Ctrl-C ends it)", flush=True)
    sys.setswitchinterval(SWITCH_S)
    viewer.start()
    try:
        uvicorn.Server(config).run(sockets=[socket])
    finally:
        viewer.ended.set()
    return 0


def cached_index(folders: list[Path]) -> TraceIndex:
    """The index of these folders from last time; in memory where the cache cannot be written."""
    from paragator.report.index import TraceIndex

    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paragator"
    name = hashlib.sha256("\n".join(str(folder.resolve()) for folder in folders).encode()).hexdigest()[:16]
    try:
        home.mkdir(parents=True, exist_ok=True)
        return TraceIndex(home / f"view-{name}.sqlite")
    except (OSError, sqlite3.Error):
        return TraceIndex()
