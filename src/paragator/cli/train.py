"""`paragator train CONFIG`: evaluate, train, evaluate, report."""

from __future__ import annotations

import asyncio
import json

from paragator.cli.main import INTERRUPTED, parse, run_parser, wide
from paragator.cli.show import Terminal
from paragator.results import run_json
from paragator.runs.folder import check_state
from paragator.runs.resolve import resolve, run_config
from paragator.settings import read_values, to_json


def main(arguments: list[str]) -> int:
    flags, overrides = parse(wide(run_parser("train")), arguments)
    config = run_config(read_values(flags.config, overrides))
    if flags.dry_run:
        from paragator.runs.train import data_of

        data_of(config, resolve(config, training=True))
        print(to_json(config))
        return 0
    check_state(config, resume=flags.resume, overwrite=flags.overwrite)  # before the trainer's libraries are imported
    from paragator.runs.train import train

    with Terminal(quiet=flags.json, wide=flags.wide) as terminal:
        result = asyncio.run(train(config, resume=flags.resume, overwrite=flags.overwrite, events=terminal))
    if flags.json:
        print(json.dumps(run_json(result.folder, config.eval.k)))
    return 0 if result.finished else INTERRUPTED
