"""`paragator train CONFIG`: evaluate, train, evaluate, report."""

from __future__ import annotations

import json
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from paragator.cli import show
from paragator.cli.main import parse, run_parser
from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.core.packing import Packer
from paragator.core.types import Group, Problem, Sample
from paragator.records import Graded
from paragator.runs import connect, folder, resolve
from paragator.runs.loop import in_loop
from paragator.settings import load, to_json
from paragator.tasks import Task


def main(arguments: list[str]) -> int:
    flags, overrides = parse(run_parser("train"), arguments)
    config = load(Config, flags.config, overrides)
    if flags.dry_run:
        resolve.check(config, training=True)
        print(to_json(config))
        return 0
    return train(config, resume=flags.resume, overwrite=flags.overwrite, as_json=flags.json)


def train(
    config: Config, *, task: Task | None = None, resume: bool = False, overwrite: bool = False, as_json: bool = False
) -> int:
    """Run a config from check to report; returns the exit code (130 when interrupted, then resumable).

    `task` replaces the one that the config names: problems and grades from Python.
    """
    checked = resolve.check(config, training=True, task=task)
    pools: dict[str, Group] | None = None
    if config.method.name == "offline_aggregation" and config.method.recorded:
        pools = resolve.read_pools(Path(config.method.recorded), checked.facts, config)
    train_problems, held_out = problems_of(config, checked, pools)
    if config.method.mean == "reward":
        warnings.warn("method.mean = 'reward' is an ablation: it pushes pass@1 down", stacklevel=1)
    manifest = folder.manifest(config, checked.facts, len(held_out))
    with folder.open_run(config, resume=resume, overwrite=overwrite, manifest=manifest) as run_dir, Stop() as stop:
        say = show.Logger(run_dir, quiet=as_json)
        counts = f"{len(train_problems)} training and {len(held_out)} held-out problems"
        say(f"{config.name}: method {config.method.name}, {counts}")

        async def judged() -> int:
            async with connect.judging(config, checked.task, run_dir, say) as task:
                now = replace(checked, task=task)
                return await job(config, now, run_dir, train_problems, held_out, pools, say, stop)

        code: int = in_loop(judged)
    if as_json:
        print(json.dumps(show.result(run_dir, config.eval.k)))
    return code


def problems_of(
    config: Config, checked: resolve.Checked, pools: dict[str, Group] | None
) -> tuple[list[Problem], list[Problem]]:
    """Training problems (those with recorded pools, offline) and held-out ones."""
    held_out = checked.task.problems("held-out", config.eval.problems, config.eval.seed)
    wanted = min(config.train.distinct_problems, config.train.steps * config.train.problems)
    if pools is None:
        found = checked.task.problems("train", max(1, wanted), config.seed)
    else:
        from paragator import records

        recorded = (r.trace.problem for r in records.read(Path(str(config.method.recorded))))
        found = [p for p in recorded if p.id in pools]
    if found and len(found) < config.train.problems <= wanted:
        raise UsageError(
            f"train.problems = {config.train.problems}, but there are {len(found)} training problems: lower it; "
            "a step takes each once"
        )
    return found, held_out


async def job(
    config: Config,
    checked: resolve.Checked,
    run_dir: Path,
    problems: list[Problem],
    held_out: list[Problem],
    pools: dict[str, Group] | None,
    say: show.Logger,
    stop: Callable[[], bool],
) -> int:
    """Load, evaluate, train, evaluate, report; an interruption skips to the report."""
    from paragator.engines.local import loading
    from paragator.engines.local.compute import computed
    from paragator.report.page import write_report
    from paragator.runs.rollouts import rollouts
    from paragator.training.loop import train as train_steps
    from paragator.training.policy import Policy, as_begun

    config = as_begun(config, run_dir)
    model, tokenizer = await computed(loading.load, config.model)
    policy = await computed(Policy, model, tokenizer, config)
    size = sum(p.numel() for p in model.parameters())
    say(f"{size:,} parameters, {policy.precision}, {policy.accelerator.device}")
    tell = teller(config, policy, say)
    async with rollouts(config, policy, run_dir, say) as (engine, publish):
        resolve.check_prompts(config, problems + held_out, engine)
        packer = resolve.build_packer(config, engine)

        async def evaluated(name: str) -> bool:
            found = await measure(name, config, checked, engine, packer, held_out, run_dir, say, stop)
            return found is not None and not stop()

        evaluating, finished = config.eval.around_training, True
        if evaluating and not (run_dir / "checkpoints").exists():
            finished = await evaluated("eval_before")
        if finished:
            finished = await train_steps(
                config,
                policy,
                engine,
                checked.task,
                packer,
                problems,
                pools=pools,
                publish=publish,
                report=tell,
                stop=stop,
            )
        if finished:
            await computed(policy.export, run_dir / "model")
            finished = not evaluating or await evaluated("eval_after")
    if config.tracker != "none":
        policy.accelerator.end_training()
    say(f"report: {write_report(run_dir)}")
    if not finished:
        say(f"interrupted; go on with --resume (run directory {run_dir})")
    return 0 if finished else 130


def teller(config: Config, policy: Any, say: show.Logger) -> Callable[[dict[str, float]], None]:
    """What becomes of a step's metrics: the progress line, the tracker where one is set, and no evaluation of older weights."""
    progress, after = show.Steps(config.train.steps, say), config.run_dir / "eval_after.jsonl"
    tracked = config.tracker != "none"
    if tracked:
        settings = folder.flat(config.model_dump(mode="json"))
        plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in settings.items()}
        policy.accelerator.init_trackers("paragator", plain)  # tensorboard takes no other values

    def tell(metrics: dict[str, float]) -> None:
        progress(metrics)
        after.unlink(missing_ok=True)  # of an earlier end, when train.steps was lower: other weights
        if tracked:
            policy.accelerator.log(metrics, step=int(metrics["step"]))

    return tell


async def measure(
    name: str,
    config: Config,
    checked: resolve.Checked,
    sample: Sample,
    packer: Packer,
    problems: list[Problem],
    run_dir: Path,
    say: show.Logger,
    stop: Callable[[], bool],
    done: Callable[[int, int], None] | None = None,
    at_once: int | None = None,
) -> list[Graded] | None:
    """One evaluation into the run directory, printed; None when interrupted before it was complete."""
    from paragator.runs.evaluate import evaluate
    from paragator.stats.table import table

    start = time.perf_counter()
    found = await evaluate(
        problems,
        sample,
        resolve.eval_plan(config),
        checked.task,
        run_dir / f"{name}.jsonl",
        templates=config.model.templates(),
        packer=packer,
        repeats=config.eval.repeats,
        seed=config.seed + 1,
        at_once=at_once,
        done=done or show.Counter(name, say),
        stop=stop,
    )
    if found is None:
        return None
    what = f"{name.replace('_', ' ')} training" if "_" in name else name
    say(f"{what}: {len(problems)} held-out problems, {time.perf_counter() - start:.0f} s")
    show.print_table(table(found, config.eval.k), say)
    return found


class Stop:
    """Ctrl-C once asks to stop after `what` is under way; twice stops at once."""

    def __init__(self, what: str = "this step") -> None:
        self.what, self.asked = what, False

    def __call__(self) -> bool:
        return self.asked

    def __enter__(self) -> Stop:
        try:
            self.former = signal.signal(signal.SIGINT, self.ask)
        except ValueError:  # not the main thread: Ctrl-C stays what it is there
            self.former = None
        return self

    def ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print(f"stopping after {self.what}; Ctrl-C again stops at once", file=sys.stderr)

    def __exit__(self, *_: object) -> None:
        if self.former is not None:
            signal.signal(signal.SIGINT, self.former)
