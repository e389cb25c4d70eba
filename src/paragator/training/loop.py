"""Training from a run directory: steps, metrics, traces, checkpoints; interrupted between steps, resumed after one."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

from paragator import records
from paragator.core.errors import DataError, RunError
from paragator.core.types import Problem, Sample
from paragator.engines.local.compute import computed
from paragator.tasks import Task
from paragator.training import checkpoint
from paragator.training.learner import Learner
from paragator.training.recipe import Recipe, Schedule
from paragator.training.step import step

MISMATCH, OTHER_MODEL = 0.01, 0.5
"""Mean KL(sampling policy || policy) per token, in nats, above which a step warns, and above which the run stops.

In this process the embedded model has 1e-13 in float32 and at most 6e-5 under bfloat16's autocast.
"""
KEPT = 2
"""Checkpoints that are kept, the newest ones."""
BAD_STEPS = 3
"""Steps in a row in which every rollout failed, before the run stops."""


class TrainEvents(Protocol):
    """What hears of each step, and may end the run after one."""

    def on_step(self, metrics: Mapping[str, float]) -> None: ...

    def should_stop(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Sampler:
    """Who samples, and what hands it the weights after a step; None where it samples from the policy itself."""

    sample: Sample
    publish: Callable[[int], Awaitable[None]] | None = None

    async def published(self, number: int) -> float:
        """Hand over the weights after a step where somebody takes them; returns the seconds that it took."""
        start = time.perf_counter()
        if self.publish:
            await self.publish(number)
        return time.perf_counter() - start


async def train(
    run_dir: Path,
    recipe: Recipe,
    policy: Learner,
    sampler: Sampler,
    task: Task,
    problems: Sequence[Problem],
    events: TrainEvents,
) -> bool:
    """Take the steps that the run directory does not have yet; False when `events.should_stop()` ended it early.

    Each step appends to metrics.jsonl and traces.jsonl; every `checkpoint_every` steps, when stopped, and when an error
    ends the run, a checkpoint is written from which a later call continues with the same draws as if nothing had
    happened.
    """
    schedule, failed = recipe.schedule, 0
    first = await computed(resume, policy, run_dir) + 1
    for number in range(first, schedule.steps + 1):
        chosen, updates = choose(problems, number, schedule), policy.updates
        try:
            spent = await sampler.published(number - 1)
            result = await step(number, chosen, sampler.sample, task, policy, recipe)
            failed = failed + 1 if math.isnan(result.metrics.get("generate/reward", math.nan)) else 0
            if failed == BAD_STEPS:
                raise RunError(f"every rollout of {BAD_STEPS} steps failed or is unscored: {why(result.records)}")
        except Exception:
            if number > first and policy.updates == updates:  # the policy is as the step before left it
                with suppress(RunError):  # of weights that are not finite: what is on disk is better
                    await computed(save, policy, run_dir, number - 1)
            raise
        if sampler.publish:
            result.metrics.update({"seconds/publish": spent, "seconds": result.metrics["seconds"] + spent})
        check_mismatch(result.metrics.get("mismatch_kl", 0.0), number)
        records.append_json_lines(run_dir / "metrics.jsonl", [plain(result.metrics)])
        records.append(run_dir / "traces.jsonl", result.records)
        events.on_step(result.metrics)
        stopping = events.should_stop()
        if stopping or number % schedule.checkpoint_every == 0 or number == schedule.steps:
            await computed(save, policy, run_dir, number)
        if stopping and number < schedule.steps:
            return False
    await sampler.published(schedule.steps)
    return True


def save(policy: Learner, run_dir: Path, number: int) -> None:
    """The checkpoint of a step, of which the newest are kept."""
    policy.save(run_dir / "checkpoints" / f"step_{number}", {"step": number})
    checkpoint.keep_newest(run_dir / "checkpoints", KEPT)


def export(policy: Learner, run_dir: Path) -> None:
    """The trained model as the run's folder `model`: whole or not there."""
    with checkpoint.appearing(run_dir / "model") as folder:
        policy.export(folder)


def check_mismatch(mismatch: float, number: int) -> None:
    """Warn where the engine's probabilities differ from the policy's; RunError where it must be another model."""
    if mismatch > OTHER_MODEL:
        raise RunError(
            f"step {number}: the engine samples from another model than the trainer's (mismatch {mismatch:.2f} nats a token): "
            "other weights, another temperature, or a model that is computed otherwise there; fix it and --resume"
        )
    if mismatch > MISMATCH:
        warnings.warn(
            f"step {number}: mismatch_kl = {mismatch:.4f} between engine and trainer, above {MISMATCH}", stacklevel=2
        )


def restore_newest(policy: Learner, folder: Path) -> int:
    """Restore the newest whole checkpoint and return its step, 0 without any; newer ones that are broken are removed."""
    broken: dict[Path, checkpoint.BrokenCheckpoint] = {}
    for found in reversed(checkpoint.steps(folder)):
        try:
            number = int(policy.restore(found)["step"])
        except checkpoint.BrokenCheckpoint as error:
            broken[found] = error
            continue
        for path, reason in broken.items():
            warnings.warn(f"{reason}; it is removed, and the run is resumed from {found.name}", stacklevel=2)
            checkpoint.remove(path)
        return number
    for reason in broken.values():
        raise RunError(f"{reason}, and no older one is there; put it back, or start again with --overwrite")
    return 0


def resume(policy: Learner, run_dir: Path) -> int:
    """Restore the newest checkpoint, drop what was recorded after it, and return its step; 0 without one."""
    number = restore_newest(policy, run_dir / "checkpoints")
    checkpoint.keep_newest(run_dir / "checkpoints", KEPT)  # a process that was killed may have left more
    step_of: Callable[[dict[str, Any]], int]
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


def choose(problems: Sequence[Problem], number: int, schedule: Schedule) -> list[Problem]:
    """The problems of one step: the next slice of the data, in the task's order, reshuffled for every further pass."""
    if not problems:
        raise DataError("the training set is empty: set task.path or widen the task's ranges")
    size = schedule.problems
    out: list[Problem] = []
    orders: dict[int, list[int]] = {}
    for position in range((number - 1) * size, number * size):
        epoch, at = divmod(position, len(problems))
        if epoch not in orders:
            orders[epoch] = list(range(len(problems)))
            if epoch:
                Random(f"{schedule.seed}:epoch:{epoch}").shuffle(orders[epoch])
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
