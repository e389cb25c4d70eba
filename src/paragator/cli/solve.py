"""`paragator solve PROBLEM`: one problem over any engine, its rounds on screen. And the same as a function."""

from __future__ import annotations

import asyncio
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paragator import records
from paragator.cli import screen
from paragator.cli.eval import MORE, SHORT, is_set, read_config, with_values
from paragator.cli.main import Parser, parse, parser_for
from paragator.config import Config
from paragator.core.errors import DataError, UsageError
from paragator.core.types import Grade, Problem
from paragator.runs import connect, resolve
from paragator.runs.folder import check_output
from paragator.runs.loop import in_loop
from paragator.runs.solve import Round, Solution, Watch, stopped, unscored
from paragator.runs.solve import solve as solve_watched
from paragator.study.cells import toml_value
from paragator.tasks import Task

FLAGS = ("--model", "--url", "--rounds", "--candidates", "--pool-size", "--pools")
LOCAL_MAX_TOKENS = 1024
PROBLEM_ID = "problem"


def main(arguments: list[str]) -> int:
    flags, overrides = parse(build_parser(), arguments)
    problem = Problem(PROBLEM_ID, text_of(flags))
    for flag in SHORT.keys() - set(FLAGS):  # the rest of eval's, which it reads
        setattr(flags, flag[2:].replace("-", "_"), None)
    if (flags.candidates or "").isdecimal() and not flags.config and not flags.pool_size:
        flags.pool_size = pool_size_for(int(flags.candidates), overrides)
    config = checked(read_config(flags, overrides))
    if flags.output:
        check_output(Path(flags.output))
    view = screen.view(as_json=flags.json)
    watch = new_watch(config, view)
    interrupted = False
    try:
        with view:
            solution: Solution | None = asyncio.run(solved(config, problem, watch))
    except KeyboardInterrupt:
        interrupted = True
        solution = stopped(problem, watch, config.seed, prices(config))
    if solution is None:
        print("interrupted before anything arrived", file=sys.stderr)
        return 130
    if flags.output and not interrupted:
        records.append(Path(flags.output), [unscored(solution.trace)])
    print(json.dumps(to_dict(solution, watch)) if flags.json else screen.final(solution, watch))
    if interrupted:
        return 130
    return 3 if solution.trace.failure else 0


def build_parser() -> Parser:
    parser = parser_for("solve")
    parser.add_argument("problem", nargs="?", help="its text; - reads standard input")
    parser.add_argument("--file", help="a file that holds the problem's text")
    parser.add_argument("--config", help="a TOML file")
    parser.add_argument("--output", metavar="FILE.jsonl", help="append the record of all rounds to this file")
    for flag in FLAGS:
        section, _, name = SHORT[flag].partition(".")
        field = getattr(Config(), section).__class__.model_fields[name]
        text = f"{SHORT[flag]}: {field.description} {MORE.get(flag, '')}".strip().replace("%", "%%")
        parser.add_argument(flag, help=text, metavar="VALUE")
    return parser


def pool_size_for(candidates: int, overrides: Sequence[str]) -> str | None:
    """Of few candidates an aggregation sees all, unless an override says how many."""
    if any(word.replace("-", "_").startswith("__eval.pool_size") for word in overrides):
        return None
    return str(min(Config().eval.pool_size, max(1, candidates)))


def text_of(flags: Namespace) -> str:
    """The problem's text, from wherever it was given."""
    if (flags.problem is None) == (flags.file is None):
        raise UsageError("one problem is needed: its text, - for standard input, or --file FILE")
    try:
        if flags.file:
            text = Path(flags.file).read_text(encoding="utf-8")
        else:
            text = sys.stdin.read() if flags.problem == "-" else flags.problem
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(f"{flags.file or 'standard input'} cannot be read ({what})") from None
    return nonempty(text)


def nonempty(text: str) -> str:
    if not text.strip():
        raise UsageError("the problem is empty; give its text")
    return text.strip()


def checked(config: Config) -> Config:
    """The config with what suits a local model where nobody said otherwise; refuses what cannot work."""
    if config.engine.kind not in ("transformers", "openai"):
        raise UsageError(f"engine.kind = {config.engine.kind!r} is not for one new problem; use --model or --url")
    if config.engine.kind == "transformers" and not is_set(config, "model.template"):
        known = resolve.facts_of(config)
        if known.has_chat_template is not False:
            tokens = min(LOCAL_MAX_TOKENS, (known.context or 4 * LOCAL_MAX_TOKENS) // 4)
            wanted = {"generate.max_tokens": tokens, "aggregate.max_tokens": tokens}
            wanted = {key: value for key, value in wanted.items() if not is_set(config, key)}
            config = with_values(config, wanted | {"model.template": "chat"})
    nothing = Task("solve", lambda split, count, seed: [], lambda problem, texts: [Grade("unscored")] * len(texts))
    resolve.check(config, training=False, task=nothing)
    return config


def new_watch(config: Config, seen: Callable[[Round], None]) -> Watch:
    return Watch(connect.nobody, resolve.eval_plan(config), split=config.engine.kind == "openai", seen=seen)


def prices(config: Config) -> tuple[float, float]:
    return config.engine.price_in, config.engine.price_out


async def solved(config: Config, problem: Problem, watch: Watch) -> Solution:
    """Connect the engine, run the rounds, close it."""
    async with connect.open_sample(config, problem) as rollout:
        watch.sample = rollout.sample
        return await solve_watched(
            problem,
            watch,
            templates=config.model.templates(),
            packer=rollout.packer,
            seed=config.seed,
            prices=prices(config),
        )


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


def solve(
    problem: str,
    *,
    model: str | None = None,
    url: str | None = None,
    rounds: int = 3,
    candidates: int = 4,
    pool_size: int | None = None,
    pools: int = 1,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    seen: Callable[[Round], None] = lambda round_: None,
) -> Solution:
    """Solve one problem by `candidates` solutions and `rounds` rounds of aggregation; also where an event loop runs.

    model      "embedded" (the default without a url), a folder, a hub id, or with a url the model's name on the server
    url        an OpenAI-compatible server, as http://localhost:8000/v1
    pool_size  candidates that an aggregation sees, all of them if None; `pools` distinct ones a round
    config     further keys of the config, dotted, as {"generate.temperature": 0.8}; they come before the arguments
    seen       called with a Round when it begins and whenever something arrives

    UsageError for a wrong value, RunError with the reason when no request gave a solution.
    """
    plan = {"rounds": rounds, "candidates": candidates, "pool_size": pool_size or candidates, "pools": pools}
    given = {"seed": seed} | {f"eval.{name}": value for name, value in plan.items()} | dict(config or {})
    plain = {key: str(value) if isinstance(value, Path) else value for key, value in given.items() if value is not None}
    words = [f"--{key}={toml_value(value)}" for key, value in plain.items()]
    flags = Namespace(config=None, **{flag[2:].replace("-", "_"): None for flag in SHORT})
    flags.model, flags.url = model, url
    resolved = checked(read_config(flags, words))
    asked = Problem(PROBLEM_ID, nonempty(problem))
    return in_loop(lambda: solved(resolved, asked, new_watch(resolved, seen)))
