"""`paragator report RUN...`: write report.html again, or one page of several runs."""

from __future__ import annotations

import json
from pathlib import Path

from paragator.cli.main import parse, parser_for
from paragator.core.errors import UsageError


def main(arguments: list[str]) -> int:
    parser = parser_for("report")
    parser.add_argument("runs", nargs="+", help="run directories, or folders that hold some, as a study's")
    parser.add_argument("--output", default="", help="the page (default: report.html in the run directory)")
    flags, rest = parse(parser, arguments)
    if rest:
        raise UsageError(f"unknown option {rest[0]}; see paragator report --help")
    from paragator.report.contents import find_runs
    from paragator.report.page import write_reports

    runs = existing(flags.runs)
    if not (found := find_runs(runs)):
        raise UsageError(f"{', '.join(flags.runs)}: no run directory, as none holds a config.json or records")
    if len(found) > 1 and not flags.output:
        raise UsageError(f"one page of {len(found)} runs needs a name: add --output FILE.html")
    path = str(write_reports(runs, Path(flags.output) if flags.output else next(iter(found.values())) / "report.html"))
    print(json.dumps({"report": path}) if flags.json else path)
    return 0


def existing(names: list[str]) -> list[Path]:
    """The folders that are named; UsageError where one is none."""
    if odd := next((name for name in names if not Path(name).is_dir()), None):
        raise UsageError(f"{odd} is not a folder; name a run directory, or a folder that holds some")
    return [Path(name) for name in names]
