"""`paragator sample CONFIG --output FILE`: candidates of the initial model, for offline_aggregation."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from paragator.cli.main import parse, parser_for
from paragator.cli.show import awake
from paragator.core.errors import UsageError
from paragator.runs.defaults import run_config
from paragator.runs.events import Events, Printing
from paragator.runs.sample import sample
from paragator.settings import read_values


def main(arguments: list[str]) -> int:
    parser = parser_for("sample")
    parser.add_argument("config", nargs="?", help="a TOML file; without one, the defaults")
    parser.add_argument("--output", required=True, help="the JSONL file to write; an unfinished one is resumed")
    parser.add_argument("--count", type=int, default=512, help="training problems to sample (default 512)")
    flags, overrides = parse(parser, arguments)
    if flags.count < 1:
        raise UsageError(f"--count = {flags.count}: at least 1 is needed")
    config = run_config(read_values(flags.config, overrides))
    events = Events() if flags.json else Printing()
    summary = asyncio.run(awake(sample(config, Path(flags.output), flags.count, events=events)))
    print(json.dumps(summary) if flags.json else f"{summary['problems']} problems in {summary['output']}")
    return 0
