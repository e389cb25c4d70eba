"""`paragator sample CONFIG --output FILE`: candidate pools of the initial model, for offline_aggregation."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from paragator import records
from paragator.cli.main import parse, parser_for
from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.core.scaffold import Scaffold, run
from paragator.core.types import Plan, Problem
from paragator.records import Graded
from paragator.runs import resolve
from paragator.runs.folder import check_output
from paragator.settings import load
from paragator.tasks import grade_trace

AT_ONCE = 64
"""Problems sampled before their records are written."""


def main(arguments: list[str]) -> int:
    parser = parser_for("sample")
    parser.add_argument("config", nargs="?", help="a TOML file; without one, the defaults")
    parser.add_argument("--output", required=True, help="the JSONL file to write; an unfinished one is gone on with")
    parser.add_argument("--count", type=int, default=512, help="training problems to sample (default 512)")
    flags, overrides = parse(parser, arguments)
    if flags.count < 1:
        raise UsageError(f"--count = {flags.count}: at least 1 is needed")
    config = load(Config, flags.config, overrides)
    check_output(Path(flags.output))
    summary = asyncio.run(job(config, Path(flags.output), flags.count, quiet=flags.json))
    print(json.dumps(summary) if flags.json else f"{summary['problems']} problems in {summary['output']}")
    return 0


async def job(config: Config, output: Path, count: int, *, quiet: bool) -> dict[str, object]:
    """Sample what `output` lacks; its records carry the model's fingerprint."""
    checked = resolve.check(
        config.model_copy(update={"method": config.method.model_copy(update={"name": "base"})}), training=True
    )
    problems = checked.task.problems("train", count, config.seed)
    done: set[str] = set()
    for record in records.read(output) if output.exists() else ():
        if record.trace.extra.get("model") != checked.facts.fingerprint:
            raise UsageError(f"--output {output} holds pools of another model; delete it or choose another file")
        done.add(record.trace.problem.id)
    from paragator.engines.local import loading
    from paragator.engines.local.compute import computed

    model, tokenizer = await computed(loading.load, config.model)
    engine = resolve.build_engine(config, model, tokenizer)
    resolve.check_prompts(config, problems, engine)
    missing = [p for p in problems if p.id not in done]
    scaffold = Scaffold(Plan.sampling(config.rollout.candidates), config.model.templates(), seed=config.seed)

    async def one(problem: Problem) -> Graded:
        trace = await run(problem, engine, scaffold)
        return await grade_trace(checked.task, trace, {"model": checked.facts.fingerprint})

    for start in range(0, len(missing), AT_ONCE):
        records.append(output, await asyncio.gather(*(one(p) for p in missing[start : start + AT_ONCE])))
        if not quiet:
            print(f"{len(done) + min(start + AT_ONCE, len(missing))}/{count} problems", flush=True)
    return {"output": str(output), "problems": len(problems), "model": checked.facts.fingerprint}
