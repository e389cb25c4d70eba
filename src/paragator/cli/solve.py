"""`paragator solve PROBLEM`: one problem over any engine, its rounds on screen."""

from __future__ import annotations

import asyncio
import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from paragator import records
from paragator.cli import screen
from paragator.cli.eval import OF_PROBLEM, add_short, add_strategy, values_of
from paragator.cli.main import INTERRUPTED, PARTIAL, parse, parser_for
from paragator.cli.show import awake
from paragator.core.errors import DataError, UsageError
from paragator.runs.defaults import solve_config
from paragator.runs.folder import check_output
from paragator.runs.solve import Solution, Watch, prices, problem_of, solve, stopped, unscored, watch_of


def main(arguments: list[str]) -> int:
    parser = parser_for("solve")
    parser.add_argument("problem", nargs="?", help="its text; - reads standard input")
    parser.add_argument("--file", help="a file that holds the problem's text")
    parser.add_argument("--config", help="a TOML file")
    parser.add_argument("--output", metavar="FILE.jsonl", help="append the record of all rounds to this file")
    add_short(parser, OF_PROBLEM)
    add_strategy(parser, "store", "Without one, the rounds of the plan and a vote.")
    flags, overrides = parse(parser, arguments)
    problem = problem_of(text_of(flags))
    config = solve_config(values_of(flags, overrides, OF_PROBLEM))
    if flags.output:
        check_output(Path(flags.output))
    view = screen.view(as_json=flags.json)
    watch = watch_of(config, view)
    interrupted = False
    try:
        with view:
            solution: Solution | None = asyncio.run(awake(solve(config, problem, watch)))
    except KeyboardInterrupt:
        interrupted = True
        solution = stopped(problem, watch, config.seed, prices(config))
    if solution is None:
        print("interrupted before anything arrived", file=sys.stderr)
        return INTERRUPTED
    if flags.output and not interrupted:
        records.append(Path(flags.output), [unscored(solution.trace)])
    print(json.dumps(to_dict(solution, watch)) if flags.json else screen.final(solution, watch))
    return INTERRUPTED if interrupted else PARTIAL if solution.trace.failure else 0


def text_of(flags: Namespace) -> str:
    """The problem's text, from wherever it was given."""
    if (flags.problem is None) == (flags.file is None):
        raise UsageError("one problem is needed: its text, - for standard input, or --file FILE")
    try:
        if flags.file:
            return Path(flags.file).read_text(encoding="utf-8")
        return sys.stdin.read() if flags.problem == "-" else str(flags.problem)
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(f"{flags.file or 'standard input'} cannot be read ({what})") from None


def to_dict(solution: Solution, watch: Watch) -> dict[str, Any]:
    """What --json prints."""
    return {
        "problem": solution.trace.problem.text,
        "answer": solution.answer,
        "solution": solution.text,
        "votes": solution.votes,
        "rounds": [round_.to_dict() for round_ in watch.rounds],
        "tokens": solution.tokens,
        "seconds": round(solution.seconds, 3),
        "cost": solution.cost,
        "failure": solution.trace.failure,
    }
