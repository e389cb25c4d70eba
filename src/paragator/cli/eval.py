"""`paragator eval CONFIG`: rounds of aggregation on held-out problems over any engine, with intervals."""

from __future__ import annotations

import asyncio
import json
import time
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from paragator.cli import show
from paragator.cli.main import Parser, parse, run_parser
from paragator.cli.train import Stop, measure
from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.core.types import Failure, Problem
from paragator.records import Graded
from paragator.runs import connect, folder, resolve
from paragator.runs.evaluate import recorded
from paragator.settings import load, to_json

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
}
"""A flag and the key that it is short for."""
MORE = {
    "--task": "Or a .jsonl file, all of it.",
    "--model": "With a url: engine.model.",
    "--url": "Sets engine.kind to openai.",
    "--recording": "Sets engine.kind to replay; also the task, if none is named.",
}
ENDPOINT_MAX_TOKENS = 4096
UNDER_WAY = "the requests under way"
EVERY_S = 10.0


def main(arguments: list[str]) -> int:
    parser = run_parser("eval")
    add_short(parser)
    flags, overrides = parse(parser, arguments)
    config = read_config(flags, overrides)
    checked = resolve.check(config, training=False)
    if flags.dry_run:
        print(to_json(config))
        return 0
    problems = resolve.held_out(config, checked.task)
    manifest = folder.manifest(config, checked.facts, len(problems))
    resume, overwrite = flags.resume, flags.overwrite
    with (
        folder.open_run(config, resume=resume, overwrite=overwrite, manifest=manifest) as run_dir,
        Stop(UNDER_WAY) as stop,
    ):
        say = show.Logger(run_dir, quiet=flags.json)
        code = asyncio.run(job(config, checked, problems, run_dir, say, stop))
    if flags.json:
        print(
            json.dumps(show.result(run_dir, config.eval.k) | {"exit_code": code, "usage": connect.read_bill(run_dir)})
        )
    return code


def add_short(parser: Parser) -> None:
    """The flags of SHORT, with the help that stands under their keys in the config."""
    for flag, key in SHORT.items():
        section, _, name = key.partition(".")
        field = getattr(Config(), section).__class__.model_fields[name]
        text = f"{key}: {field.description} {MORE.get(flag, '')}".strip().replace("%", "%%")
        parser.add_argument(flag, help=text, metavar="VALUE")


def read_config(flags: Namespace, overrides: Sequence[str]) -> Config:
    """The config with its short forms, and what follows from the engine where nobody said otherwise."""
    given = {
        key: value for flag, key in SHORT.items() if (value := getattr(flags, flag[2:].replace("-", "_"))) is not None
    }
    for flag in ("url", "recording"):
        if getattr(flags, flag) == "":
            raise UsageError(f"--{flag} is empty; give its value, or leave it out")
    if flags.url and flags.recording:
        raise UsageError("--url and --recording are two engines; name one")
    for flag, key in SHORT.items():
        if key in given and any(word.partition("=")[0] == f"--{key}" for word in overrides):
            raise UsageError(f"{flag} is short for --{key}; give one of them")
    if flags.url or flags.recording:
        given["engine.kind"] = "openai" if flags.url else "replay"
    if flags.model and (flags.url or load(Config, flags.config, overrides).engine.kind == "openai"):
        given["engine.model"] = given.pop("model.path")
    if flags.task and flags.task.endswith(".jsonl"):
        given |= {"task.name": "jsonl", "task.path": flags.task, "task.held_out_path": flags.task}
    words = [f"--{key}={value}" for key, value in given.items()]
    config = with_defaults(load(Config, flags.config, [*words, *overrides]))
    if any(word.startswith("--name") for word in overrides):
        return config
    return config.model_copy(update={"name": f"{config.name}-eval"})


def with_defaults(config: Config) -> Config:
    """What suits the engine and the task, for keys that nobody set; config.json records it."""
    wanted: dict[str, Any] = {}
    if config.engine.kind != "transformers":
        wanted |= {"model.template": "chat", "task.style": "words"}
    if config.engine.kind == "openai":
        wanted |= {"generate.max_tokens": ENDPOINT_MAX_TOKENS, "aggregate.max_tokens": ENDPOINT_MAX_TOKENS}
    if config.engine.kind == "replay":
        wanted["eval.rounds"] = 0
        if not config.task.model_fields_set & {"name", "path"}:
            path = config.engine.recording
            config = with_values(config, {"task.name": "jsonl", "task.path": path, "task.held_out_path": path})
    task = config.task
    if task.name == "jsonl" and task.path == task.held_out_path and task.path and Path(task.path).is_file():
        with Path(task.path).open("rb") as file:
            wanted["eval.problems"] = max(1, sum(1 for line in file if line.strip()))
    return with_values(config, {key: value for key, value in wanted.items() if not is_set(config, key)})


def is_set(config: Config, key: str) -> bool:
    section, _, name = key.partition(".")
    return name in getattr(config, section).model_fields_set


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """A copy with other values of dotted keys."""
    for key, value in values.items():
        section, _, name = key.partition(".")
        changed = getattr(config, section).model_copy(update={name: value})
        config = config.model_copy(update={section: changed})
    return config


async def job(
    config: Config, checked: resolve.Checked, problems: list[Problem], run_dir: Path, say: show.Logger, stop: Stop
) -> int:
    """Evaluate, print, report; returns the exit code."""
    from paragator.report.page import write_report

    output, total = run_dir / "eval.jsonl", len(problems) * config.eval.repeats
    async with (
        connect.judging(config, checked.task, run_dir, say) as task,
        connect.build_sample(config, problems, run_dir, stop) as rollout,
        Progress(say, rollout, finished_in(output), total).shown() as progress,
    ):
        judged, sample, packer = replace(checked, task=task), rollout.sample, rollout.packer
        found = await measure(
            "eval", config, judged, sample, packer, problems, run_dir, say, stop, done=progress, at_once=rollout.at_once
        )
    if bill := connect.read_bill(run_dir):
        spent = ", ".join(f"{name.replace('_', ' ')} {value:,.10g}" for name, value in bill["total"].items())
        say(f"usage of {bill['model']} in {bill['attempts']} attempts: {spent}")
    if found is None:
        say(f"interrupted; go on with --resume (run directory {run_dir})")
        return 130
    say(f"report: {write_report(run_dir)}")
    failed = [record for record in found if record.trace.failure]
    if failed:
        say(f"{len(failed)} of {len(found)} traces failed, most by: {main_reason(failed)}; --resume tries them again")
        return 3
    (run_dir / connect.CALLS).unlink(missing_ok=True)
    return 0


def finished_in(output: Path) -> int:
    """Traces of earlier attempts that need not be tried again."""
    return sum(why is None for _, why in recorded(output)) if output.exists() else 0


def main_reason(failed: Sequence[Graded]) -> str:
    """The commonest reason of calls that failed; of traces where no call did."""
    outputs = [o for r in failed for groups in r.trace.rounds for group in groups for o in group.outputs]
    reasons = [o.reason for o in outputs if isinstance(o, Failure)] or [str(r.trace.failure) for r in failed]
    return Counter(reasons).most_common(1)[0][0]


class Progress:
    """Counts traces; while `shown`, says every ten seconds how far a long evaluation is, and keeps the bill current."""

    def __init__(self, say: show.Logger, rollout: connect.Rollout, finished: int, total: int) -> None:
        self.say, self.rollout = say, rollout
        self.start = time.perf_counter()
        self.taken, self.finished, self.total = 0, finished, total

    def __call__(self, finished: int, total: int) -> None:
        self.taken += 1
        self.finished, self.total = finished, total

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[Progress]:
        task = asyncio.ensure_future(self.tick())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def tick(self) -> None:
        said = self.start
        while True:
            await asyncio.sleep(1)
            if self.rollout.bill:
                self.rollout.bill.write()
            if time.perf_counter() - said >= EVERY_S:
                said = time.perf_counter()
                self.say(self.line())

    def line(self) -> str:
        """Traces done, calls and tokens a second of this attempt, and the time left once a trace is done."""
        seconds = time.perf_counter() - self.start
        parts = [f"{self.finished}/{self.total} traces"]
        if journal := self.rollout.journal:
            parts += [f"{journal.asked / seconds:,.1f} calls/s", f"{journal.tokens / seconds:,.0f} tokens/s"]
        if self.taken:
            parts.append(f"{seconds / self.taken * (self.total - self.finished):,.0f} s left")
        if trouble := self.rollout.trouble():
            parts.append(trouble)
        return "eval: " + "  ".join(parts)
