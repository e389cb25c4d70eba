"""An index of graded traces in SQLite: built once, then only for what was appended, so that thousands are listed at once."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from paragator.core.errors import DataError
from paragator.report.rollouts import KINDS, ListRow, clean, list_row

VERSION = 1
HEAD_BYTES = 256
BATCH = 256
SEARCHED_CHARACTERS = 2000
COLUMNS = tuple(column.name for column in fields(ListRow))
SORTS = ("n", "problem", "step", "first", "last", "gain", "answers", "tokens")
PAGE = 500


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a file was read: which file it was, how it began, and the end of the last complete line."""

    inode: int = 0
    head: bytes = b""
    offset: int = 0


def appended(path: Path, mark: Mark) -> tuple[Mark, Iterator[tuple[int, bytes]]]:
    """Complete lines since a mark, each with where it begins; from the start if the file was replaced or cut. FileNotFoundError.

    The mark that is returned is the one that the lines begin at: move it on with the lines that were taken.
    """
    with path.open("rb") as file:
        status, head = os.fstat(file.fileno()), file.read(HEAD_BYTES)
    if status.st_ino != mark.inode or status.st_size < mark.offset or not head.startswith(mark.head):
        mark = Mark(status.st_ino, head if len(head) == HEAD_BYTES else b"")
    elif not mark.head and len(head) == HEAD_BYTES:
        mark = Mark(mark.inode, head, mark.offset)
    return mark, lines(path, mark.offset)


def lines(path: Path, offset: int) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield offset, line
            offset += len(line)


@dataclass(frozen=True, slots=True)
class Query:
    """Which rows of a file, in which order."""

    kind: str = ""
    text: str = ""
    step: int | None = None
    sort: str = "n"
    descending: bool = False
    offset: int = 0
    limit: int = 100


class TraceIndex:
    """The rows of files of graded traces. Every method may be called from any thread."""

    def __init__(self, path: Path | None = None) -> None:
        """In a file, or in memory. A file that is no index of this version is begun again."""
        self.lock = threading.Lock()
        self.database = sqlite3.connect(path or ":memory:", check_same_thread=False)
        self.database.execute("PRAGMA journal_mode=WAL")
        self.database.execute("PRAGMA synchronous=OFF")
        if self.database.execute("PRAGMA user_version").fetchone()[0] != VERSION:
            self.create()

    def create(self) -> None:
        self.database.executescript(
            "DROP TABLE IF EXISTS files; DROP TABLE IF EXISTS traces;"
            "CREATE TABLE files (path TEXT PRIMARY KEY, inode INTEGER, head BLOB, offset INTEGER, count INTEGER, bad INTEGER);"
            "CREATE TABLE traces (path TEXT, n INTEGER, at INTEGER, size INTEGER, search TEXT,"
            f" {', '.join(COLUMNS)}, gain, PRIMARY KEY (path, n)) WITHOUT ROWID;"
            "CREATE INDEX by_problem ON traces (path, problem, repeat);"
            f"PRAGMA user_version={VERSION};"
        )

    def close(self) -> None:
        with self.lock:
            self.database.close()

    def state(self, path: Path) -> tuple[Mark, int, int]:
        """How far a file is indexed, its number of rows, and of lines that are none."""
        row = self.database.execute(
            "SELECT inode, head, offset, count, bad FROM files WHERE path = ?", (str(path),)
        ).fetchone()
        return (Mark(*row[:3]), row[3], row[4]) if row else (Mark(), 0, 0)

    def counts(self, path: Path) -> tuple[int, int]:
        """Rows of a file so far, and lines that are none."""
        with self.lock:
            return self.state(path)[1:]

    def update(self, path: Path) -> bool:
        """Index what was appended to a file; whether there was anything. A file that is gone loses its rows."""
        with self.lock:
            before, count, bad = self.state(path)
        try:
            mark, new = appended(path, before)
        except OSError:
            self.forget(path)
            return count > 0
        if mark.offset < before.offset or mark.inode != before.inode:
            self.forget(path)
            count, bad = 0, 0
        batch: list[tuple[object, ...]] = []
        offset, changed = mark.offset, False
        for at, line in new:
            offset, changed = at + len(line), True
            try:
                batch.append(values(path, count, at, line))
                count += 1
            except (DataError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
                bad += 1
            if len(batch) >= BATCH:
                self.write(path, batch, (mark.inode, mark.head, offset, count, bad))
                batch = []
        if changed or mark != before:
            self.write(path, batch, (mark.inode, mark.head, offset, count, bad))
        return changed

    def write(self, path: Path, batch: list[tuple[object, ...]], state: tuple[object, ...]) -> None:
        with self.lock, self.database:
            marks = ", ".join("?" * (5 + len(COLUMNS) + 1))
            self.database.executemany(f"INSERT OR REPLACE INTO traces VALUES ({marks})", batch)
            self.database.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", (str(path), *state))

    def forget(self, path: Path) -> None:
        with self.lock, self.database:
            self.database.execute("DELETE FROM traces WHERE path = ?", (str(path),))
            self.database.execute("DELETE FROM files WHERE path = ?", (str(path),))

    def rows(self, path: Path, query: Query) -> tuple[int, list[dict[str, Any]]]:
        """How many rows match, and a page of them."""
        where, given = ["path = ?"], [str(path)]
        found: list[object] = list(given)
        if query.kind in KINDS:
            where.append("kinds & ?")
            found.append(1 << KINDS.index(query.kind))
        if query.text:
            where.append("instr(search, ?)")
            found.append(clean(query.text).lower())
        if query.step is not None:
            where.append("step = ?")
            found.append(query.step)
        sort = query.sort if query.sort in SORTS else "n"
        order = f"{sort} IS NULL, {sort} {'DESC' if query.descending else 'ASC'}, n"
        condition = " AND ".join(where)
        with self.lock:
            # names are those of SORTS and COLUMNS; everything that a request says is bound
            count = f"SELECT count(*) FROM traces WHERE {condition}"  # nosec B608
            page = f"SELECT n, {', '.join(COLUMNS)} FROM traces WHERE {condition} ORDER BY {order} LIMIT ? OFFSET ?"  # nosec B608
            total = self.database.execute(count, found).fetchone()[0]
            some = self.database.execute(
                page,
                [*found, min(query.limit, PAGE), query.offset],
            ).fetchall()
        return total, [dict(zip(("n", *COLUMNS), row, strict=True)) for row in some]

    def find(self, path: Path, problem: str, repeat: int) -> int | None:
        """The row of a problem: of that repeat, or else its first."""
        with self.lock:
            row = self.database.execute(
                "SELECT n FROM traces WHERE path = ? AND problem = ? ORDER BY repeat != ?, n",
                (str(path), problem, repeat),
            ).fetchone()
        return None if row is None else int(row[0])

    def record(self, path: Path, n: int) -> dict[str, Any]:
        """A row's record; DataError where there is none (any more)."""
        with self.lock:
            row = self.database.execute(
                "SELECT at, size FROM traces WHERE path = ? AND n = ?", (str(path), n)
            ).fetchone()
        if row is None:
            raise DataError(f"{path.name} holds no trace {n}")
        try:
            with path.open("rb") as file:
                file.seek(row[0])
                found = json.loads(file.read(row[1]))
        except (OSError, ValueError):
            raise DataError(f"{path.name} has changed; open the list again") from None
        return dict(found)


def values(path: Path, n: int, at: int, line: bytes) -> tuple[object, ...]:
    """A line as a row of the table."""
    raw = json.loads(line)
    row = list_row(raw)
    gain = None if row.first is None or row.last is None else row.last - row.first
    return (str(path), n, at, len(line), searched(raw), *asdict(row).values(), gain)


def searched(raw: dict[str, Any]) -> str:
    """What a text filter looks into: the problem's name and text, and every answer."""
    outputs = (output for groups in raw["rounds"] for group in groups for output in group["outputs"])
    answers = {str(grade["answer"]) for o in outputs if (grade := o.get("grade")) and grade["answer"] is not None}
    parts = [str(raw["problem"]["id"]), str(raw["problem"]["text"])[:SEARCHED_CHARACTERS], *sorted(answers)]
    return clean("\n".join(parts)[: 3 * SEARCHED_CHARACTERS].lower())
