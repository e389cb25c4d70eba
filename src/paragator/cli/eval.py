"""`paragator eval CONFIG`: rounds of aggregation on held-out problems over any engine, with intervals."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import Any

from paragator.cli.main import INTERRUPTED, PARTIAL, Parser, parse, run_parser, wide
from paragator.cli.panel import terminal
from paragator.cli.show import awake
from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.results import run_json
from paragator.runs.defaults import eval_config, eval_name
from paragator.runs.evaluate import evaluate
from paragator.runs.resolve import held_out, resolve
from paragator.settings import merged, nested, own_values, parse_value, read_values, to_json
from paragator.tasks.files import is_data_file

SHORT = {
    "--task": "task.name",
    "--problems": "eval.problems",
    "--repeats": "eval.repeats",
    "--candidates": "eval.candidates",
    "--rounds": "eval.rounds",
    "--pool-size": "eval.pool_size",
    "--pools": "eval.pools",
    "--model": "model.path",
    "--url": "engine.url",
    "--recording": "engine.recording",
    "--aggregate-url": "aggregate.url",
    "--aggregate-model": "aggregate.model",
    "--max-cost": "eval.max_cost",
    "--max-tokens-total": "eval.max_tokens_total",
}
"""A flag and the key that it is short for."""
OF_EVALUATION = {"--task", "--problems", "--repeats", "--recording", "--max-cost", "--max-tokens-total"}
OF_PROBLEM = tuple(flag for flag in SHORT if flag not in OF_EVALUATION)
"""The short flags of what answers single problems: solve and serve."""
MORE = {
    "--task": "Or a .jsonl file, all of it.",
    "--model": "With a url: engine.model.",
    "--url": "Sets engine.kind to openai.",
    "--aggregate-url": "For aggregations and ratings only.",
    "--aggregate-model": "For aggregations and ratings only.",
    "--recording": "Sets engine.kind to replay, or with a url gives the candidates; also the task, if none is named.",
}


def main(arguments: list[str]) -> int:
    parser = wide(run_parser("eval"))
    add_short(parser, SHORT)
    add_strategy(parser, "append", "Several share their candidates; give the flag once for each.")
    flags, overrides = parse(parser, arguments)
    values = values_of(flags, overrides, SHORT)
    config = eval_config(values)
    if "name" not in own_values(overrides):
        name = f"{config.name}-eval" if "name" in values else eval_name(config)
        config = config.model_copy(update={"name": name})
    if flags.dry_run:
        resolved = resolve(config, training=False)
        held_out(config, resolved.task)
        print(to_json(config))
        return 0
    with terminal("the requests in flight", quiet=flags.json, wide=flags.wide) as shown:
        result = asyncio.run(awake(evaluate(config, resume=flags.resume, overwrite=flags.overwrite, events=shown)))
    code = PARTIAL if result.spent or (result.finished and result.failed) else 0 if result.finished else INTERRUPTED
    if flags.json:
        found = run_json(config.run_dir, config.eval.k)
        if result.strategies:
            found |= {"strategies": result.to_dict()}
        print(json.dumps(found | {"exit_code": code, "usage": result.usage, "spent": result.spent or None}))
    return code


def add_strategy(parser: Parser, action: str, more: str) -> None:
    """The flag --strategy."""
    what = f"a strategy: NAME, NAME:key=value,... or module:function (docs/strategies.md). {more}"
    parser.add_argument("--strategy", action=action, help=what, metavar="NAME")


def add_short(parser: Parser, names: Iterable[str]) -> None:
    """Short flags, with the help that stands under their keys in the config."""
    for flag in names:
        section, _, name = SHORT[flag].partition(".")
        field = getattr(Config(), section).__class__.model_fields[name]
        text = f"{SHORT[flag]}: {field.description} {MORE.get(flag, '')}".strip().replace("%", "%%")
        parser.add_argument(flag, help=text, metavar="VALUE")


def values_of(flags: Namespace, overrides: Sequence[str], names: Iterable[str]) -> dict[str, Any]:
    """What the config file, the overrides and the short flags set, by section."""
    given: dict[str, Any] = {}
    own = own_values(overrides)
    for flag in names:
        section, _, name = SHORT[flag].partition(".")
        value = getattr(flags, flag[2:].replace("-", "_"))
        if value is None:
            continue
        if value == "" and flag in ("--url", "--recording"):
            raise UsageError(f"{flag} is empty; give its value, or leave it out")
        if name in own.get(section, {}):
            raise UsageError(f"{flag} is short for --{SHORT[flag]}; give one of them")
        given[SHORT[flag]] = parse_value(value)
    values = read_values(flags.config, overrides)
    if kind := "openai" if "engine.url" in given else "replay" if "engine.recording" in given else "":
        given["engine.kind"] = kind
    if "model.path" in given and (kind or values.get("engine", {}).get("kind")) == "openai":
        given["engine.model"] = given.pop("model.path")
    if flags.strategy:
        given["eval.strategies"] = flags.strategy if isinstance(flags.strategy, list) else [flags.strategy]
    if is_data_file(task := str(given.get("task.name", ""))):
        given |= {"task.name": "jsonl", "task.path": task, "task.held_out_path": task}
    return merged(values, nested(given))
