"""`paragator eval CONFIG`: rounds of aggregation on held-out problems, with intervals."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from paragator.cli import compose, show
from paragator.cli.main import parse, run_parser
from paragator.cli.train import Stop, measure
from paragator.config import Config, load, to_json


def main(arguments: list[str]) -> int:
    flags, overrides = parse(run_parser("eval"), arguments)
    config = load(Config, flags.config, overrides)
    if not any(word.startswith("--name") for word in overrides):
        config = config.model_copy(update={"name": f"{config.name}-eval"})
    checked = compose.check(config, training=False)
    if flags.dry_run:
        print(to_json(config))
        return 0
    manifest = compose.manifest(config, checked.facts)
    run_dir = compose.open_run(config, resume=flags.resume, overwrite=flags.overwrite, manifest=manifest)
    say = show.Logger(run_dir, quiet=flags.json)
    with Stop() as stop:
        finished = asyncio.run(job(config, checked, run_dir, say, stop))
    if flags.json:
        print(json.dumps(show.result(run_dir, config.eval.k)))
    return 0 if finished else 130


async def job(config: Config, checked: compose.Checked, run_dir: Path, say: show.Logger, stop: Stop) -> bool:
    from paragator.engines import loading
    from paragator.report.page import write_report

    problems = checked.task.problems("held-out", config.eval.problems, config.eval.seed)
    model, tokenizer = loading.load(config.model)
    engine = compose.build_engine(config, model, tokenizer)
    compose.check_prompts(config, problems, engine)
    packer = compose.build_packer(config, engine)
    finished = await measure("eval", config, checked, engine, packer, problems, run_dir, say, stop)
    say(f"report: {write_report(run_dir)}")
    return finished
