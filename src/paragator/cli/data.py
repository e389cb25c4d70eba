"""`paragator data list | check | show`: benchmarks and training sets, what is wrong with them, what is in them."""

from __future__ import annotations

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import asdict

from paragator.cli.main import Parser
from paragator.core.errors import UsageError
from paragator.core.text import one_line, printable
from paragator.tasks.benchmarks import TABLE
from paragator.tasks.checks import EXAMPLES, FINDINGS, CheckedSet, Shared, check_sets, first_problems
from paragator.tasks.reasoning_gym import PREFIX
from paragator.tasks.sources import locate, place_of, suggest

VERBS = {
    "list": "the known sets: rows, kind of answers, licence, and where each is found",
    "check": "counts, duplicates, empty answers, and problems shared by training and evaluation sets",
    "show": "the first problems of a set or a file",
}
CHECK = """
A NAME is a row of `paragator data list` or a data file; without one, every set with a local file is checked. Training sets and
files are compared with every evaluation set that has a local file, or with those of --against: "13 words" counts the evaluation
problems that share a run of 13 words with a problem there, "half" those with half of their runs there (often twins with other
numbers), "whole" those with all of them.
Exit code 0: nothing found; 3: findings.
"""


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = "\n".join(f"  {verb:<6} {what}" for verb, what in VERBS.items())
        print(f"usage: paragator data VERB ...\n\n{lines}\n\n`paragator data VERB --help` tells more.")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        hint = suggest(verb, VERBS).replace("see paragator data list", f"known: {', '.join(VERBS)}")
        raise UsageError(f"paragator data: unknown verb {verb!r}; {hint}")
    return {"list": list_sets, "check": check, "show": show}[verb](rest)


def parser_for(verb: str, more: str = "") -> Parser:
    about = VERBS[verb] + "\n" + more
    parser = Parser(prog=f"paragator data {verb}", description=about, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    parser.add_argument("--debug", action="store_true", help="a traceback instead of one line")
    return parser


def list_sets(arguments: list[str]) -> int:
    flags = parser_for("list").parse_args(arguments)
    rows = [{**asdict(row), "found": place_of(row)} for row in TABLE.values()]
    if flags.json:
        print(json.dumps(rows))
        return 0
    table = [["name", "rows", "use", "answers", "licence", "found"]]
    for row in TABLE.values():
        count = row.subset or (row.file_rows if row.file_rows and locate(row) else row.rows)
        use = "train" if row.training else "eval"
        table.append([row.name, f"{count:,}" if count else "?", use, row.kind or "any", row.licence, place_of(row)])
    print(columns(table))
    print(f"\n{PREFIX}NAME, for a generator of reasoning-gym, and any JSONL file are tasks as well.")
    return 0


def check(arguments: list[str]) -> int:
    parser = parser_for("check", CHECK)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a set, or a JSONL file")
    parser.add_argument("--against", action="append", metavar="NAME", help="compare with this set or file (repeatable)")
    parser.add_argument("--references", action="store_true", help="grade every answer against itself too (minutes)")
    flags = parser.parse_args(arguments)
    checked, shared = check_sets(flags.names, flags.against or (), references=flags.references)
    clean = all(c.clean for c in checked) and not shared
    if flags.json:
        sets, overlaps = [c.to_dict() for c in checked], [s.to_dict() for s in shared]
        print(json.dumps({"clean": clean, "sets": sets, "overlaps": overlaps}))
    else:
        print(printable(report(checked, shared)))
    return 0 if clean else 3


def report(checked: Sequence[CheckedSet], shared: Sequence[Shared]) -> str:
    """The findings as two tables, and the rows that they are about."""
    heads = ["set", "rows", "expected", "missing", "double ids", "double problems", "empty", "not text"]
    heads += ["no answer", "unknown kind", "unverified"]
    table, lines = [heads], []
    for c in checked:
        lists = [getattr(c, name) for name in FINDINGS]
        expected = "" if c.expected is None else f"{c.expected:,}"
        table.append([c.name, f"{c.rows:,}", expected, *(str(len(found) or "") for found in lists)])
        lines += [f"{c.name}: {head}: {sample(found)}" for head, found in zip(heads[3:], lists, strict=True) if found]
        if c.read_within:
            lines.append(f"{c.name}: answers read within their references: {sample(c.read_within)}")
        if c.miscounted:
            lines.append(f"{c.name}: {c.rows:,} rows where {c.expected:,} are expected")
    parts = [columns(table), "\n".join(lines)]
    if shared:
        rows = [["in", "of", "problems", "13 words", "half", "whole", "for instance"]]
        for s in shared:
            id_, match = s.matches[0]
            counts = [str(n) for n in (len(s.matches), s.at_least(0.5), s.at_least(1))]
            example = f"{id_} = {match.other} ({match.share:.0%})"
            rows.append([s.within, s.of, f"{s.total:,}", *counts, example])
        parts.append(columns(rows))
    if not lines and not shared:
        parts.append("nothing found")
    return "\n\n".join(part for part in parts if part)


def sample(found: Sequence[str]) -> str:
    more = f" and {len(found) - EXAMPLES:,} more" if len(found) > EXAMPLES else ""
    return ", ".join(found[:EXAMPLES]) + more


def show(arguments: list[str]) -> int:
    parser = parser_for("show")
    parser.add_argument("name", help="a set, a JSONL file, or reasoning-gym/NAME")
    parser.add_argument("--count", type=int, default=3, help="how many (default 3)")
    flags = parser.parse_args(arguments)
    if flags.count < 1:
        raise UsageError(f"--count = {flags.count}: at least 1 is needed")
    problems = first_problems(flags.name, flags.count)
    if flags.json:
        print(json.dumps([asdict(problem) for problem in problems]))
        return 0
    for problem in problems:
        text = printable(problem.text).replace("\n", "\n  ")
        print(f"{one_line(problem.id)}\n  {text}\n  answer: {one_line(str(problem.answer))}\n")
    return 0


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text columns, the first row being the head; numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = [all(row[i].replace(",", "").isdigit() for row in rows[1:] if row[i]) for i in range(len(widths))]
    cells = [[c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in cells)
