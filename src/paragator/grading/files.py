"""Grading of JSONL files: every row gets a verdict, interrupted files are resumed, agreement with known verdicts is counted."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paragator.core.errors import DataError, UsageError
from paragator.core.types import Grade
from paragator.grading import check_kind, grade_each
from paragator.grading.decide import KINDS
from paragator.records import append_json_lines, numbered_lines, read_json_lines

ADDED = ("verdict", "reason", "answer")
EVERY_S = 1.0
"""Seconds of finished rows that an interruption may lose."""
SAY_S = 10.0
"""Seconds between two reports of progress."""


@dataclass(frozen=True, slots=True)
class FileGrading:
    """Which file is graded, and how.

    fields      names of the reference and of the prediction in a row
    kind        what the references are (an interval, a matrix, ...); None infers it from each
    kind_field  the field of a row's own kind, which comes first; None is "kind" where it holds a known one
    prefix      put before the names of the added fields verdict, reason and answer
    resume      continue after the rows that `output` already holds
    overwrite   replace `output`
    """

    file: Path
    output: Path
    fields: tuple[str, str] = ("gold", "prediction")
    kind: str | None = None
    kind_field: str | None = None
    prefix: str = ""
    resume: bool = False
    overwrite: bool = False

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The file's rows with their line numbers."""
        return numbered_lines(self.file, ours=False)

    def pair(self, row: dict[str, Any]) -> tuple[str, str, str | None]:
        """Text, reference and kind of a row."""
        words = []
        for name, flag in zip(self.fields, ("--gold-field", "--prediction-field"), strict=True):
            value = row.get(name)
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                what = "is missing" if name not in row else f"holds {json.dumps(value)[:40]}, not text or a number"
                raise UsageError(f"field {name!r} {what}; {flag} names another")
            words.append(str(value))
        return words[1], words[0], self.kind_of(row)

    def kind_of(self, row: dict[str, Any]) -> str | None:
        """A row's kind. A field that merely happens to be called kind may hold anything; one that was named may not."""
        if self.kind_field is not None:
            check_kind(row.get(self.kind_field))
            return row.get(self.kind_field) or self.kind
        return row["kind"] if row.get("kind") in KINDS else self.kind

    def check(self) -> int:
        """The number of rows; DataError for a file without any, or with one that cannot be graded."""
        count = 0
        for number, row in self.rows():
            try:
                self.pair(row)
                for name in ADDED:
                    if self.prefix + name in row:
                        taken = f"field {self.prefix + name!r} is taken"
                        raise UsageError(f"{taken}; choose other names with --prefix graded_")
            except UsageError as error:
                raise DataError(f"{self.file}:{number}: {error}") from None
            count += 1
        if not count:
            raise DataError(f"{self.file}: no rows in it; one JSON object a line")
        return count

    def finished(self) -> Iterator[tuple[dict[str, Any], Grade]]:
        """The rows that `output` already holds, with their verdicts; they must be the first rows of this file."""
        if not self.output.exists():
            return
        if self.output.samefile(self.file):
            raise UsageError(f"--output {self.output} is the file to grade; choose another one")
        if self.overwrite:
            self.output.unlink()
            return
        if not self.resume:
            raise UsageError(
                f"--output {self.output} exists; continue it with --resume, or replace it with --overwrite"
            )
        rows = self.rows()
        for place, written in enumerate(read_json_lines(self.output), 1):
            row = next(rows, (0, None))[1]
            found = {name: written.pop(self.prefix + name) for name in ADDED if self.prefix + name in written}
            if row is None or written != row or len(found) < len(ADDED):
                raise DataError(f"--output {self.output}: row {place} is not of {self.file}; use --overwrite")
            yield row, Grade(**found)

    def graded(self, row: dict[str, Any], found: Grade) -> dict[str, Any]:
        """A row as it is written: with its verdict."""
        return row | {self.prefix + name: getattr(found, name) for name in ADDED}


class VerdictCounts:
    """Counts of verdicts, and of agreement with the rows' own field `equal`; unscored counts as not accepted."""

    def __init__(self) -> None:
        self.verdicts: Counter[str] = Counter()
        self.agreement: Counter[str] = Counter()

    def add(self, row: dict[str, Any], found: Grade) -> None:
        self.verdicts[found.verdict] += 1
        if isinstance(row.get("equal"), bool):
            right = found.verdict == "correct"
            self.agreement["agrees" if right == row["equal"] else "accepted" if right else "refused"] += 1

    def to_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {verdict: self.verdicts[verdict] for verdict in ("correct", "incorrect", "unscored")}
        if judged := self.agreement.total():
            out["agreement"] = round(self.agreement["agrees"] / judged, 6)
            out |= {"wrong_accepted": self.agreement["accepted"], "right_refused": self.agreement["refused"]}
        return out


def grade_file(asked: FileGrading, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Grade a file's rows and write each with its verdict, in order and as they come; returns the counts as JSON values.

    `say` hears about progress every ten seconds. An interruption loses at most a second of rows; resume the rest.
    """
    total = asked.check()
    counts = VerdictCounts()
    resumed = 0
    for row, found in asked.finished():
        counts.add(row, found)
        resumed += 1
    number, start = resumed, time.perf_counter()
    said = start
    with closing(written(asked, resumed)) as rows:
        for number, (row, found) in enumerate(rows, resumed + 1):
            counts.add(row, found)
            now = time.perf_counter()
            if now - said > SAY_S:
                left = (now - start) / (number - resumed) * (total - number)
                say(f"grade: {number}/{total} rows, {left:.0f} s left")
                said = now
    seconds = time.perf_counter() - start
    rate = round((number - resumed) / seconds, 1)
    head = {"output": str(asked.output), "rows": total, "resumed": resumed}
    return head | {"seconds": round(seconds, 3), "rows_per_second": rate} | counts.to_dict()


def written(asked: FileGrading, skip: int) -> Generator[tuple[dict[str, Any], Grade], None, None]:
    """Grades the rows after the first `skip` and appends them to the output; gives each row and its verdict."""
    held: deque[dict[str, Any]] = deque()
    finished: list[dict[str, Any]] = []

    def pairs() -> Iterator[tuple[str, str, str | None]]:
        for place, (_, row) in enumerate(asked.rows()):
            if place >= skip:
                held.append(row)
                yield asked.pair(row)

    last = time.perf_counter()
    try:
        for found in grade_each(pairs()):
            row = held.popleft()
            finished.append(asked.graded(row, found))
            if time.perf_counter() - last > EVERY_S:
                append_json_lines(asked.output, finished)
                finished, last = [], time.perf_counter()
            yield row, found
    finally:
        append_json_lines(asked.output, finished)
