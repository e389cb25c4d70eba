"""Training from a run directory: steps, metrics, traces, checkpoints; interrupted between steps, resumed after one."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

from paragator import records
from paragator.core.errors import DataError, RunError
from paragator.core.types import Problem, Sample
from paragator.engines.local.compute import computed
from paragator.stats.curves import EVALS, METRICS, best_step, read_metrics
from paragator.tasks import Task
from paragator.training import checkpoint
from paragator.training.ahead import Ahead
from paragator.training.learner import Learner
from paragator.training.recipe import Keeping, Recipe, Schedule
from paragator.training.step import step
from paragator.training.telemetry import why_idle

MISMATCH, STALE_MISMATCH, OTHER_MODEL = 0.01, 0.1, 0.5
"""Mean KL(sampling policy || policy) per token, in nats, above which a step warns (the second where the policy has taken a step
since), and above which the run stops.

In this process the embedded model has 1e-13 in float32 and at most 6e-5 under bfloat16's autocast.
"""
STEP_OF: dict[str, Callable[[dict[str, Any]], int]] = {
    METRICS: lambda row: int(row["step"]),
    "traces.jsonl": lambda row: int(row["extra"]["step"]),
    EVALS: lambda row: int(row["step"]),
}
"""The step of a row of the files that grow with the steps."""
REFILLS = 8
"""How many times its own problems a step may add, with `train.refill`."""
BAD_STEPS = 3
"""Steps in a row in which every rollout failed, before the run stops."""


class TrainEvents(Protocol):
    """What hears of each step, evaluates the weights now and then, and may end the run after a step."""

    def on_step(self, metrics: Mapping[str, float], sampled: Sequence[records.Graded]) -> None: ...

    async def evaluate(self, number: int) -> Mapping[str, Any] | None:
        """The numbers of the weights that a step left, as `EvalTable.to_dict`; None when it was stopped before its end."""

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

    Each step appends to metrics.jsonl and traces.jsonl; when the schedule says so, when stopped, and when an error ends
    the run, a checkpoint is written from which a later call continues with the same draws as if nothing had happened
    (with `schedule.ahead` its first batch is sampled again, from the newest weights).
    """
    schedule, failed, saved_at = recipe.schedule, 0, time.monotonic()
    first = await computed(resume, policy, run_dir, schedule) + 1

    def chosen(number: int) -> tuple[Sequence[Problem], ...]:
        own = choose(problems, number, schedule)
        return (own, further(problems, number, schedule)) if recipe.refill else (own,)

    async with aclosing(Ahead(sampler.sample, task, chosen, recipe)) as ahead:
        for number in range(first, schedule.steps + 1):
            updates = policy.updates
            try:
                await ahead.settled()
                spent = await sampler.published(number - 1)
                if not await evaluated(run_dir, number - 1, schedule, events):
                    return False
                if schedule.ahead:
                    result = await ahead.step(number, policy)
                else:
                    own, *spare = chosen(number)
                    result = await step(number, own, sampler.sample, task, policy, recipe, *spare)
                failed = failed + 1 if math.isnan(result.metrics.get("generate/reward", math.nan)) else 0
                if failed == BAD_STEPS:
                    raise RunError(f"every rollout of {BAD_STEPS} steps failed or is unscored: {why(result.records)}")
            except Exception:
                if number > first and policy.updates == updates:  # the policy is as the step before left it
                    with suppress(RunError):  # of weights that are not finite: what is on disk is better
                        await computed(save, policy, run_dir, number - 1, schedule)
                raise
            if sampler.publish:
                result.metrics.update({"seconds/publish": spent, "seconds": result.metrics["seconds"] + spent})
            check_mismatch(result.metrics.get("mismatch_kl", 0.0), number, stale=bool(result.metrics.get("staleness")))
            if recipe.crediting.method.trains and not result.metrics["updated"] and "refused" not in result.metrics:
                warnings.warn(f"step {number}: no weight was changed ({why_idle(result.metrics)})", stacklevel=2)
            records.append_json_lines(run_dir / METRICS, [plain(result.metrics)])
            records.append(run_dir / "traces.jsonl", result.records)
            events.on_step(result.metrics, result.records)
            stopping = events.should_stop()
            if stopping or schedule.is_saved(number, (time.monotonic() - saved_at) / 60):
                await computed(save, policy, run_dir, number, schedule)
                saved_at = time.monotonic()
            if stopping and number < schedule.steps:
                return False
    await sampler.published(schedule.steps)
    return await evaluated(run_dir, schedule.steps, schedule, events)


async def evaluated(run_dir: Path, number: int, schedule: Schedule, events: TrainEvents) -> bool:
    """Evaluate after a step where that is due and not done; False when stopped before its end, which a later call continues."""
    if not schedule.is_evaluated(number) or any(row["step"] == number for row in read_metrics(run_dir, EVALS)):
        return True
    found = await events.evaluate(number)
    if found is not None:
        records.append_json_lines(run_dir / EVALS, [{"step": number, **found}])
        prune(run_dir, schedule.keeping)  # it may be the best one now
    return found is not None and not events.should_stop()


def save(policy: Learner, run_dir: Path, number: int, schedule: Schedule) -> None:
    """The checkpoint of a step, once its rows are on disk; older ones stay as the schedule says."""
    for name in STEP_OF:
        if (run_dir / name).exists():
            checkpoint.sync(run_dir / name)
    policy.save(run_dir / "checkpoints" / f"step_{number}", {"step": number})
    prune(run_dir, schedule.keeping)


def prune(run_dir: Path, keeping: Keeping) -> None:
    """Remove the checkpoints that need not stay, and what a process that was killed left unfinished."""
    folder = run_dir / "checkpoints"
    best = best_step(read_metrics(run_dir, EVALS)) if keeping.best else None
    found = map(checkpoint.number_of, checkpoint.steps(folder))
    also = {n for n in found if n == best or (keeping.every and n % keeping.every == 0)}
    checkpoint.keep_newest(folder, keeping.last, also)


def export(policy: Learner, run_dir: Path) -> None:
    """The trained model as the run's folder `model`: whole or not there."""
    with checkpoint.appearing(run_dir / "model") as folder:
        policy.export(folder)


def check_mismatch(mismatch: float, number: int, *, stale: bool = False) -> None:
    """Warn where the engine's probabilities differ from the policy's; RunError where it must be another model."""
    if mismatch > OTHER_MODEL:
        raise RunError(
            f"step {number}: the engine samples from another model than the trainer's (mismatch {mismatch:.2f} nats a token): "
            "other weights, another temperature, or a model that is computed otherwise there; fix it and --resume"
        )
    if mismatch > (most := STALE_MISMATCH if stale else MISMATCH):
        warnings.warn(
            f"step {number}: mismatch_kl = {mismatch:.4f} between engine and trainer, above {most}", stacklevel=2
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


def resume(policy: Learner, run_dir: Path, schedule: Schedule) -> int:
    """Restore the newest whole checkpoint, drop what was recorded after it, and return its step; 0 without one."""
    number = restore_newest(policy, run_dir / "checkpoints")
    for name, step_of in STEP_OF.items():
        path = run_dir / name
        if not path.exists():
            continue
        kept = [row for row in records.read_json_lines(path) if step_of(row) <= number]
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        records.append_json_lines(temporary, kept)
        checkpoint.sync(temporary)
        temporary.replace(path)
    for path in (run_dir / "evals").glob(
        "step_*.jsonl"
    ):  # of weights that may come out otherwise where sums are not exact
        if int(path.stem.removeprefix("step_")) > number:
            path.unlink()
    prune(run_dir, schedule.keeping)  # a process that was killed may have left more
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


def further(problems: Sequence[Problem], number: int, schedule: Schedule) -> list[Problem]:
    """Problems that a step may add to its own: up to REFILLS times as many, drawn from the others by the step alone."""
    own = {problem.id for problem in choose(problems, number, schedule)}
    count = min(len(problems), (REFILLS + 1) * schedule.problems)
    drawn = Random(f"{schedule.seed}:refill:{number}").sample(range(len(problems)), count)
    return [problems[i] for i in drawn if problems[i].id not in own][: REFILLS * schedule.problems]


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
