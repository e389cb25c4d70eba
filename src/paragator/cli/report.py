"""`paragator report RUN`: write report.html again."""

from __future__ import annotations

import json
from pathlib import Path

from paragator.cli.main import parse, parser_for
from paragator.core.errors import UsageError


def main(arguments: list[str]) -> int:
    parser = parser_for("report")
    parser.add_argument("run", help="a run directory")
    flags, rest = parse(parser, arguments)
    if rest:
        raise UsageError(f"unknown option {rest[0]}; see paragator report --help")
    if not (Path(flags.run) / "config.json").is_file():
        raise UsageError(f"{flags.run} is not a run directory: it holds no config.json")
    from paragator.report.page import write_report

    path = str(write_report(Path(flags.run)))
    print(json.dumps({"report": path}) if flags.json else path)
    return 0
