"""`paragator grade`: the verdict on one answer, or on every row of a JSONL file."""

from __future__ import annotations

import json
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

from paragator.cli.main import parse, parser_for
from paragator.core.errors import UsageError
from paragator.core.text import one_line
from paragator.grading import check_kind, grade
from paragator.grading.files import FileGrading, grade_file


def main(arguments: list[str]) -> int:
    flags, rest = parse(parser(), arguments)
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
    fields = (flags.gold_field, flags.prediction_field)
    same = {name: getattr(flags, name) for name in ("kind", "kind_field", "prefix", "resume", "overwrite")}
    asked = FileGrading(Path(flags.file), Path(flags.output), fields, **same)
    summary = grade_file(asked) if flags.json else grade_file(asked, partial(print, flush=True))
    print(json.dumps(summary) if flags.json else described(summary))
    return 0


def parser() -> Any:
    found = parser_for("grade")
    add = found.add_argument
    add("file", nargs="?", help="a JSONL file whose rows hold a gold answer and a prediction")
    add("--gold", help="the reference answer of one pair")
    add("--answer", help="the solution or answer of one pair; write --answer=-x if it starts with a dash")
    add("--kind", help="what the references are, e.g. interval; a row's own kind comes first")
    add("--kind-field", help="the field of a row's kind (default kind, where it holds a known one)")
    add("--output", help="the JSONL file to write: every input field, and verdict, reason, answer")
    add("--gold-field", default="gold", help="the field of the reference (default gold)")
    add("--prediction-field", default="prediction", help="the field of the solution (default prediction)")
    add("--prefix", default="", help="put before verdict, reason and answer where FILE has such fields")
    add("--resume", action="store_true", help="continue where --output stops")
    add("--overwrite", action="store_true", help="replace --output")
    return found


def one(flags: Namespace) -> int:
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


def described(summary: dict[str, Any]) -> str:
    """A summary in a line or two."""
    parts = ", ".join(f"{summary[verdict]} {verdict}" for verdict in ("correct", "incorrect", "unscored"))
    text = f"{summary['rows']} rows: {parts}; {summary['rows_per_second']:,.0f} rows/s; {summary['output']}"
    if "agreement" in summary:
        text += f"\nagreement with field equal: {summary['agreement']:.2%}"
        text += f" ({summary['wrong_accepted']} wrong accepted, {summary['right_refused']} right refused)"
    return text
