"""`paragator train CONFIG`: evaluate, train, evaluate, report."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from argparse import Namespace

from paragator.cli.main import INTERRUPTED, parse, run_parser, wide
from paragator.cli.panel import terminal
from paragator.cli.show import awake
from paragator.core.errors import ParagatorError, RunError
from paragator.results import run_json
from paragator.runs import launch
from paragator.runs.defaults import run_config
from paragator.runs.folder import check_state
from paragator.runs.resolve import resolve
from paragator.settings import read_values, to_json


def main(arguments: list[str]) -> int:
    flags, overrides = parse(wide(run_parser("train")), arguments)
    if launch.rank():
        return follow(flags, overrides)
    config = run_config(read_values(flags.config, overrides))
    if flags.dry_run:
        from paragator.runs.train import data_of

        data_of(config, resolve(config, training=True))
        print(to_json(config))
        return 0
    check_state(config, resume=flags.resume, overwrite=flags.overwrite)  # before the trainer's libraries are imported
    from paragator.runs.train import train

    if launch.processes() > 1:
        say_the_end()
    with terminal(quiet=flags.json, wide=flags.wide) as shown:
        result = asyncio.run(awake(train(config, resume=flags.resume, overwrite=flags.overwrite, events=shown)))
    if flags.json:
        print(json.dumps(run_json(result.folder, config.eval.k)))
    return 0 if result.finished else INTERRUPTED


def follow(flags: Namespace, overrides: list[str]) -> int:
    """A process that is not rank 0: it is silent but for its own end, and rank 0 decides when to stop."""
    try:
        config = run_config(read_values(flags.config, overrides))
        launch.check_processes(config.train.processes, config.train.tensor_parallel)
    except ParagatorError:
        return 2  # rank 0 says it
    if flags.dry_run:
        return 0
    from paragator.runs.train import train

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if int(os.environ.get("LOCAL_RANK", "0")) < 2:  # one of each machine says it
        say_the_end()
    try:
        asyncio.run(train(config))
    except Exception as error:
        if flags.debug:
            raise
        raise RunError(f"rank {launch.rank()} ended: {error}") from None
    return 0


def say_the_end() -> None:
    """Where the launcher ends all processes because one of them ended: say which, and that what is on disk is whole."""
    from paragator.training.team import Team

    def ended(*_: object) -> None:
        if os.isatty(1):
            os.write(1, b"\x1b[?25h\n")  # the panel hides the cursor
        gone = Team.gone()
        if launch.rank() and 0 in Team.neighbours and 0 not in gone:
            os._exit(1)  # rank 0 says it
        who = " and ".join(f"rank {rank}" for rank in gone)
        said = f"{who} ended or was killed" if gone else "the launcher ended this run"
        os.write(2, f"error: {said}; start all processes again with --resume added to the same command\n".encode())
        os._exit(1)

    signal.signal(signal.SIGTERM, ended)
