"""`paragator grade`: the verdict on one answer, or on every row of a JSONL file."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paragator.cli.main import parse, parser_for
from paragator.core.errors import DataError, UsageError
from paragator.core.text import printable
from paragator.core.types import Grade
from paragator.grading import check_kind, grade, grade_each
from paragator.grading.decide import KINDS
from paragator.records import append_json_lines, read_json_lines

ADDED = ("verdict", "reason", "answer")
EVERY_S = 1.0
"""Seconds of finished rows that an interruption may lose."""
Row = dict[str, Any]


def main(arguments: list[str]) -> int:
    parser = parser_for("grade")
    parser.add_argument("file", nargs="?", help="a JSONL file whose rows hold a gold answer and a prediction")
    parser.add_argument("--gold", help="the reference answer of one pair")
    parser.add_argument(
        "--answer", help="the solution or answer of one pair; write --answer=-x if it starts with a dash"
    )
    parser.add_argument("--kind", help="what the references are, e.g. interval; a row's own kind comes first")
    parser.add_argument("--kind-field", help="the field of a row's kind (default kind, where it holds a known one)")
    parser.add_argument("--output", help="the JSONL file to write: every input field, and verdict, reason, answer")
    parser.add_argument("--gold-field", default="gold", help="the field of the reference (default gold)")
    parser.add_argument(
        "--prediction-field", default="prediction", help="the field of the solution (default prediction)"
    )
    parser.add_argument("--prefix", default="", help="put before verdict, reason and answer where FILE has such fields")
    parser.add_argument("--resume", action="store_true", help="go on where --output stops")
    parser.add_argument("--overwrite", action="store_true", help="replace --output")
    flags, rest = parse(parser, arguments)
    if rest:
        raise UsageError(f"unknown option {rest[0]}; see paragator grade --help")
    check_kind(flags.kind)
    if flags.file is None:
        return one(flags)
    if flags.gold is not None or flags.answer is not None:
        raise UsageError("grade takes FILE, or --gold and --answer, not both")
    if flags.output is None:
        raise UsageError(f"grade {flags.file}: name the file to write with --output")
    if flags.resume and flags.overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    summary = Grading(flags).run()
    print(json.dumps(summary) if flags.json else described(summary))
    return 0


def one(flags: Any) -> int:
    """Grade one pair and print what was found."""
    for name in ("gold", "answer"):
        if getattr(flags, name) is None:
            raise UsageError(f"--{name} is missing: grade takes --gold and --answer, or FILE and --output")
    found = grade(flags.answer, flags.gold, flags.kind)
    shown = {"verdict": found.verdict, "answer": found.answer, "reason": found.reason}
    if flags.json:
        print(json.dumps(shown))
        return 0
    for name, value in shown.items():
        print(f"{name:<8} {one_line(value or '-')}")
    return 0


def one_line(text: str) -> str:
    """Model text as a terminal may see it."""
    return printable(text).replace("\n", "\\n")


class Grading:
    """One file on its way: what the flags ask for, and the counts so far."""

    def __init__(self, flags: Any) -> None:
        self.file, self.output = Path(flags.file), Path(flags.output)
        self.fields = (flags.gold_field, flags.prediction_field)
        self.kind, self.kind_field = flags.kind, flags.kind_field
        self.prefix, self.quiet = flags.prefix, flags.json
        self.counts: Counter[str] = Counter()
        self.agreement: Counter[str] = Counter()
        self.total = sum(1 for index, row in self.rows() if self.check(row, index))
        if not self.total:
            raise DataError(f"{self.file}: no rows in it; one JSON object a line")
        self.done = self.already(flags.resume, flags.overwrite)

    def rows(self) -> Iterator[tuple[int, Row]]:
        return enumerate(read_json_lines(self.file, ours=False))

    def check(self, row: Row, index: int) -> bool:
        """DataError for a row that cannot be graded."""
        try:
            self.pair(row)
            for name in ADDED:
                if self.prefix + name in row:
                    raise UsageError(f"field {self.prefix + name!r} is taken; choose other names with --prefix graded_")
        except UsageError as error:
            raise DataError(f"{self.file}:{line_number(self.file, index)}: {error}") from None
        return True

    def pair(self, row: Row) -> tuple[str, str, str | None]:
        """Text, reference and kind of a row."""
        words = []
        for name, flag in zip(self.fields, ("--gold-field", "--prediction-field"), strict=True):
            value = row.get(name)
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                what = "is missing" if name not in row else f"holds {json.dumps(value)[:40]}, not text or a number"
                raise UsageError(f"field {name!r} {what}; {flag} names another")
            words.append(str(value))
        return words[1], words[0], self.kind_of(row)

    def kind_of(self, row: Row) -> str | None:
        """A row's kind. A field that merely happens to be called kind may hold anything; one that was named may not."""
        if self.kind_field is not None:
            check_kind(row.get(self.kind_field))
            return row.get(self.kind_field) or self.kind
        return row["kind"] if row.get("kind") in KINDS else self.kind

    def already(self, resume: bool, overwrite: bool) -> int:
        """Rows that `output` holds; it must be the beginning of this very job."""
        if not self.output.exists():
            return 0
        if self.output.samefile(self.file):
            raise UsageError(f"--output {self.output} is the file to grade; choose another one")
        if overwrite:
            self.output.unlink()
            return 0
        if not resume:
            raise UsageError(f"--output {self.output} exists; go on with it by --resume, or replace it by --overwrite")
        count = 0
        rows = self.rows()
        for written in read_json_lines(self.output):
            _, row = next(rows, (0, None))
            names = [self.prefix + name for name in ADDED]
            if row is None or any(name not in written for name in names):
                raise DataError(f"--output {self.output}: row {count + 1} is not of {self.file}; use --overwrite")
            found = Grade(written.pop(names[0]), reason=written.pop(names[1]), answer=written.pop(names[2]))
            if written != row:
                raise DataError(f"--output {self.output}: row {count + 1} is not of {self.file}; use --overwrite")
            self.count(row, found)
            count += 1
        return count

    def run(self) -> dict[str, Any]:
        """Grade what `output` lacks and write it as it comes, in order."""
        start = written = said = time.perf_counter()
        held: deque[Row] = deque()
        finished: list[Row] = []
        number = self.done

        def pairs() -> Iterator[tuple[str, str, str | None]]:
            for index, row in self.rows():
                if index >= self.done:
                    held.append(row)
                    yield self.pair(row)

        try:
            for found in grade_each(pairs()):
                row = held.popleft()
                self.count(row, found)
                finished.append(row | {self.prefix + name: getattr(found, name) for name in ADDED})
                number += 1
                now = time.perf_counter()
                if now - written > EVERY_S:
                    append_json_lines(self.output, finished)
                    finished, written = [], now
                if now - said > 10 and not self.quiet:
                    left = (now - start) / (number - self.done) * (self.total - number)
                    print(f"grade: {number}/{self.total} rows, {left:.0f} s left", flush=True)
                    said = now
        finally:
            append_json_lines(self.output, finished)
        return self.summary(time.perf_counter() - start)

    def count(self, row: Row, found: Grade) -> None:
        self.counts[found.verdict] += 1
        if isinstance(row.get("equal"), bool):
            right = found.verdict == "correct"
            self.agreement["agrees" if right == row["equal"] else "accepted" if right else "refused"] += 1

    def summary(self, seconds: float) -> dict[str, Any]:
        """What `--json` prints. Agreement is with the rows' own field `equal`; unscored counts as not accepted."""
        out: dict[str, Any] = {"output": str(self.output), "rows": self.total, "resumed": self.done}
        out |= {verdict: self.counts[verdict] for verdict in ("correct", "incorrect", "unscored")}
        out |= {"seconds": round(seconds, 3), "rows_per_second": round((self.total - self.done) / seconds, 1)}
        judged = self.agreement.total()
        if judged:
            out["agreement"] = round(self.agreement["agrees"] / judged, 6)
            out |= {"wrong_accepted": self.agreement["accepted"], "right_refused": self.agreement["refused"]}
        return out


def line_number(path: Path, index: int) -> int:
    """The line of a file on which its `index`-th row stands; blank lines are no rows."""
    with path.open("rb") as file:
        lines = (number for number, line in enumerate(file, 1) if line.strip())
        return next(number for count, number in enumerate(lines) if count == index)


def described(summary: dict[str, Any]) -> str:
    """A summary in a line or two."""
    parts = ", ".join(f"{summary[verdict]} {verdict}" for verdict in ("correct", "incorrect", "unscored"))
    text = f"{summary['rows']} rows: {parts}; {summary['rows_per_second']:,.0f} rows/s; {summary['output']}"
    if "agreement" in summary:
        text += f"\nagreement with field equal: {summary['agreement']:.2%}"
        text += f" ({summary['wrong_accepted']} wrong accepted, {summary['right_refused']} right refused)"
    return text
