"""`paragator compare RUN...`: runs side by side, as a table and two pictures."""

from __future__ import annotations

import json
from pathlib import Path

from paragator.cli.main import parse, parser_for
from paragator.core.errors import UsageError


def main(arguments: list[str]) -> int:
    parser = parser_for("compare")
    parser.add_argument("runs", nargs="+", help="run directories; differences are to the first")
    parser.add_argument("--k", type=int, default=4, help="k of pass@k and maj@k (default 4)")
    parser.add_argument("--format", choices=("markdown", "latex", "csv"), default="markdown")
    parser.add_argument("--output", default="comparison", help="folder for the pictures (default ./comparison)")
    flags, rest = parse(parser, arguments)
    if rest:
        raise UsageError(f"unknown option {rest[0]}; see paragator compare --help")
    from paragator.report.compare import compare

    found = compare([Path(run) for run in flags.runs], flags.k)
    drawn = [str(path) for path in found.draw(Path(flags.output))]
    if flags.json:
        print(json.dumps({**found.to_dict(), "pictures": drawn}))
        return 0
    print(getattr(found, flags.format)())
    print("pictures: " + ", ".join(drawn))
    return 0
