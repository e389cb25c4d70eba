"""Training from a run directory: steps, metrics, traces, checkpoints; interrupted between steps, resumed after one."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from random import Random

from paragator import records
from paragator.config import Config
from paragator.core.errors import DataError, RunError
from paragator.core.packing import Packer
from paragator.core.types import Group, Problem, Sample
from paragator.engines.local.compute import computed
from paragator.tasks import Task
from paragator.training import checkpoint
from paragator.training.policy import Policy
from paragator.training.step import step

MISMATCH, OTHER_MODEL = 0.01, 0.5
"""Mean KL(sampling policy || policy) per token, in nats, above which a step warns, and above which the run stops."""
BAD_STEPS = 3
"""Steps in a row in which every rollout failed, before the run stops."""


async def train(
    config: Config,
    policy: Policy,
    sample: Sample,
    task: Task,
    packer: Packer,
    problems: Sequence[Problem],
    *,
    pools: Mapping[str, Group] | None = None,
    publish: Callable[[int], Awaitable[None]] | None = None,
    report: Callable[[dict[str, float]], None] = lambda metrics: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Take the steps that the run directory does not have yet; False when `stop()` ended it early.

    Each step appends to metrics.jsonl and traces.jsonl; every `checkpoint_every` steps, when stopped, and when an error
    ends the run, a checkpoint is written from which a later call goes on with the same draws as if nothing had
    happened. `publish(step)` hands the weights after a step to an engine that samples elsewhere.
    """
    run_dir = config.run_dir
    first = await computed(resume, policy, run_dir) + 1
    failed = 0
    for number in range(first, config.train.steps + 1):
        chosen, updates = choose(problems, number, config), policy.updates
        try:
            spent = await timed(publish, number - 1)
            result = await step(number, chosen, sample, task, policy, packer, config, pools)
            failed = failed + 1 if math.isnan(result.metrics.get("generate/reward", math.nan)) else 0
            if failed == BAD_STEPS:
                raise RunError(f"every rollout of {BAD_STEPS} steps failed or is unscored: {why(result.records)}")
        except Exception:
            if number > first and policy.updates == updates:  # the policy is as the step before left it
                await computed(save, policy, run_dir, number - 1)
            raise
        if publish:
            result.metrics.update({"seconds/publish": spent, "seconds": result.metrics["seconds"] + spent})
            check_mismatch(result.metrics.get("mismatch_kl", 0.0), number)
        records.append_json_lines(run_dir / "metrics.jsonl", [plain(result.metrics)])
        records.append(run_dir / "traces.jsonl", result.records)
        report(result.metrics)
        stopping = stop()
        if stopping or number % config.train.checkpoint_every == 0 or number == config.train.steps:
            await computed(save, policy, run_dir, number)
        if stopping and number < config.train.steps:
            return False
    await timed(publish, config.train.steps)
    return True


async def timed(publish: Callable[[int], Awaitable[None]] | None, number: int) -> float:
    """Hand over the weights after a step, if to anybody; the seconds that it took."""
    start = time.perf_counter()
    if publish:
        await publish(number)
    return time.perf_counter() - start


def save(policy: Policy, run_dir: Path, number: int) -> None:
    """The checkpoint of a step, of which the newest two are kept."""
    policy.save(run_dir / "checkpoints" / f"step_{number}", {"step": number})
    checkpoint.keep_newest(run_dir / "checkpoints", 2)


def check_mismatch(mismatch: float, number: int) -> None:
    """Warn when the engine samples from something else than the trainer's policy; RunError when it is another model."""
    if mismatch > OTHER_MODEL:
        raise RunError(
            f"step {number}: the engine samples from other weights than the trainer's (mismatch {mismatch:.2f} nats)"
        )
    if mismatch > MISMATCH:
        warnings.warn(
            f"step {number}: mismatch_kl = {mismatch:.4f} between engine and trainer, above {MISMATCH}", stacklevel=2
        )


def resume(policy: Policy, run_dir: Path) -> int:
    """Restore the newest checkpoint, drop what was recorded after it, and return its step; 0 without one."""
    found = checkpoint.newest(run_dir / "checkpoints")
    number = int(policy.restore(found)["step"]) if found else 0
    for name, step_of in (("metrics.jsonl", lambda r: r["step"]), ("traces.jsonl", lambda r: r["extra"]["step"])):
        path = run_dir / name
        if not path.exists():
            continue
        kept = [row for row in records.read_json_lines(path) if step_of(row) <= number]
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        records.append_json_lines(temporary, kept)
        temporary.replace(path)
    return number


def choose(problems: Sequence[Problem], number: int, config: Config) -> list[Problem]:
    """The problems of one step: slices of the data in the order that the task gave, which is reshuffled for every further pass."""
    if not problems:
        raise DataError("the training set is empty: set task.path or widen the task's ranges")
    size = config.train.problems
    out: list[Problem] = []
    orders: dict[int, list[int]] = {}
    for position in range((number - 1) * size, number * size):
        epoch, at = divmod(position, len(problems))
        if epoch not in orders:
            orders[epoch] = list(range(len(problems)))
            if epoch:
                Random(f"{config.seed}:epoch:{epoch}").shuffle(orders[epoch])
        out.append(problems[orders[epoch][at]])
    return out


def plain(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics as JSON values: NaN becomes null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}


def why(found: Sequence[records.Graded]) -> str:
    """The first failure among some records."""
    for record in found:
        if record.trace.failure:
            return record.trace.failure
        for row in records.encode(record)["rounds"]:
            for group in row:
                for output in group["outputs"]:
                    if "failure" in output:
                        return str(output["failure"])
    return "no rollout could be scored"
