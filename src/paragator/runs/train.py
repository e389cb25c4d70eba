"""Training: evaluate, train, evaluate, report, in a run directory that a later attempt continues."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.core.types import Group, Problem, Sample
from paragator.records import Graded
from paragator.results import EvalResult, TrainResult
from paragator.runs import connect, folder, launch, resolve
from paragator.runs.defaults import say_prompts
from paragator.runs.evaluate import Evaluation, Tally, measured, say_table
from paragator.runs.events import Events, Logged
from paragator.runs.judging import judging
from paragator.runs.trackers import Tracking
from paragator.tasks import Task, check_distinct, check_splits

if TYPE_CHECKING:
    from paragator.training.policy import Policy
    from paragator.training.team import Team
    from paragator.training.tinker import TinkerLearner

RESCHEDULED = (
    "train.steps was {old}: optimizer.schedule = {schedule!r} now ends at step {new}, but the learning rates of the steps taken "
    "led to {old}; the run differs from one of {new} steps"
)
NO_UPDATE = (
    "none of the {steps} steps changed a weight: in every group all rewards were alike, or all rollouts were cut; see "
    "zero_credit, truncated and unscored in metrics.jsonl"
)
TOLD = ("eval_before", "eval_after")
"""Evaluations whose tables are printed; one while training is a line."""
Measure = Callable[[str], Awaitable[list[Graded] | None]]
"""Evaluates the weights of the moment into run_dir/NAME.jsonl; None when it was stopped before its end."""
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What models call their number of experts in their configs."""


async def train(
    config: Config,
    *,
    task: Task | None = None,
    engine: Sample | None = None,
    resume: bool = False,
    overwrite: bool = False,
    events: Events | None = None,
) -> TrainResult:
    """Run a config from its checks to its report.

    `task` and `engine` replace those that the config names: problems and grades from Python, and whoever samples. An
    engine must return token ids and their log-probabilities; where it has an async `publish(step, export)` it is called
    after each step, and `export(folder)` writes the weights. Stopped by `events.should_stop`, the run can be resumed.

    Among several processes that torchrun started, all call this: rank 0 runs it, the others compute their share of updates.
    With `train.backend = "ray"` they are started here, on the cluster, and this process waits for them.
    """
    if config.train.backend == "ray" and not launch.launched():
        from paragator.runs.on_ray import train_on_ray

        if task is not None or engine is not None:
            raise UsageError("train.backend = 'ray' takes no task and no engine from Python: name them in the config")
        return await train_on_ray(config, events or Events(), resume=resume, overwrite=overwrite)
    launch.check_processes(config.train.processes, config.train.tensor_parallel)
    if launch.processes() == 1:
        return await led(config, None, task=task, engine=engine, resume=resume, overwrite=overwrite, events=events)
    from paragator.training.team import Team

    team = Team(config.train.process_timeout_s)
    try:
        if team.rank:
            return await followed(config, team)
        return await led(config, team, task=task, engine=engine, resume=resume, overwrite=overwrite, events=events)
    finally:
        team.close()


async def followed(config: Config, team: Team) -> TrainResult:
    """A process that is not rank 0: it does what that says; its result only says where the run is, and whether it ended."""
    from paragator.engines.local.compute import computed, set_threads
    from paragator.training.sharded import follow

    set_threads(config.train.threads)
    await computed(follow, team)
    return TrainResult(config.run_dir, finished=(config.run_dir / "model").is_dir())


async def led(
    config: Config,
    team: Team | None,
    *,
    task: Task | None,
    engine: Sample | None,
    resume: bool,
    overwrite: bool,
    events: Events | None,
) -> TrainResult:
    """`train` in the one process, or in rank 0 of a team."""
    begun = config.run_dir / "config.json"
    resumed = folder.check_state(config, resume=resume, overwrite=overwrite) and not overwrite
    steps_before = folder.read_note(begun)["train"]["steps"] if resumed else config.train.steps
    resolved = resolve.resolve(config, training=True, task=task, engine=engine)
    data = data_of(config, resolved)
    for problems in (data.problems, data.held_out) if task is not None else ():
        check_distinct(resolved.task.name, problems)
    if config.method.mean == "reward":
        warnings.warn("method.mean = 'reward' is an ablation: it pushes pass@1 down", stacklevel=1)
    manifest = folder.manifest(config, resolved.facts, len(data.held_out))
    with folder.open_run(config, resume=resume, overwrite=overwrite, manifest=manifest) as run_dir:
        logged = Logged(events or Events(), run_dir)
        counts = f"{len(data.problems)} training and {len(data.held_out)} held-out problems"
        logged.say(f"{config.name}: method {config.method.name}, {counts}")
        say_prompts(config, logged.say)
        if steps_before != config.train.steps and config.optimizer.schedule != "constant":
            logged.say(RESCHEDULED.format(schedule=config.optimizer.schedule, old=steps_before, new=config.train.steps))
        async with judging(config, resolved.task, run_dir, logged.say) as judged:
            finished = await trained(config, judged, data, run_dir, logged, engine, team)
        result = TrainResult.read(run_dir, config.eval.k, finished=finished)
        if finished and result.metrics and not result.updated and config.method.definition.trains:
            logged.say(NO_UPDATE.format(steps=len(result.metrics)))
        return result


@dataclass(frozen=True, slots=True)
class Data:
    """Problems to train on, those held out, and recorded candidates by problem id where the method uses such."""

    problems: list[Problem]
    held_out: list[Problem]
    recorded: Mapping[str, Group] | None = None


def data_of(config: Config, resolved: resolve.Resolved) -> Data:
    """The problems of a run; UsageError where they are too few for a step, or a text is in both splits."""
    wanted = min(config.train.distinct_problems, config.train.steps * config.train.problems)
    held_out, found, recorded = resolve.held_out(config, resolved.task), resolved.recorded, None
    if found is None:
        problems = resolved.task.problems("train", max(1, wanted), config.seed)
    else:
        problems = [problem for problem, _ in found.values()]
        recorded = {id_: group for id_, (_, group) in found.items()}
    if problems and len(problems) < config.train.problems <= wanted:
        raise UsageError(
            f"train.problems = {config.train.problems}, but there are {len(problems)} training problems: lower it; "
            "a step takes each once"
        )
    check_splits(resolved.task.name, problems, held_out)
    return Data(problems, held_out, recorded)


async def trained(
    config: Config, task: Task, data: Data, run_dir: Path, events: Logged, own: Sample | None, team: Team | None
) -> bool:
    """Load, evaluate, train, evaluate, report; False when stopped, which skips to the report."""
    from paragator.engines.local.compute import computed
    from paragator.report.page import write_report
    from paragator.training.loop import Sampler, export
    from paragator.training.loop import train as train_steps
    from paragator.training.policy import as_begun
    from paragator.training.recipe import Recipe

    config = as_begun(config, run_dir)
    policy: Policy | TinkerLearner
    if config.train.backend == "tinker":
        policy = await adapter_of(config, events)
    else:
        policy = await learner_of(config, team, events, sampling=own is None and config.engine.kind == "transformers")
    async with connect.training_engine(config, policy, run_dir, events.say, own) as (engine, publish):
        if hasattr(engine, "misfit"):
            resolve.check_prompts(config, data.problems + data.held_out, engine)
        packer = connect.packer_of(config, engine)
        asked = Evaluation(data.held_out, task, resolve.eval_scaffold(config, packer), config.eval.repeats)

        async def measure(name: str) -> list[Graded] | None:
            tally = Tally(name, events)
            found = await measured(asked, engine, run_dir / f"{name}.jsonl", tally)
            if found is not None and name in TOLD:
                say_table(found, config.eval.k, tally)
                watched.seconds_after = tally.seconds
            return found

        async def around(name: str) -> bool:
            return await measure(name) is not None and not events.should_stop()

        watched, evaluating, finished = StepEvents(config, events, measure), config.eval.around_training, True
        if evaluating and not (run_dir / "checkpoints").exists():
            finished = await around("eval_before")
        if finished:
            recipe, sampler = Recipe.from_config(config, packer, data.recorded), Sampler(engine, publish)
            finished = await train_steps(run_dir, recipe, policy, sampler, task, data.problems, watched)
        if finished:
            await computed(export, policy, run_dir)
            if evaluating:
                watched.reuse()
                finished = await around("eval_after")
    watched.end()
    policy.close()
    events.say(f"report: {write_report(run_dir)}")
    if not finished:
        events.say(f"interrupted; go on with --resume (run directory {run_dir})")
    return finished


async def adapter_of(config: Config, events: Logged) -> TinkerLearner:
    """An adapter on a Tinker service, which was asked how it divides losses."""
    from paragator.engines.local.compute import computed, set_threads
    from paragator.training.tinker import TinkerLearner

    set_threads(config.train.threads)
    learner = await computed(TinkerLearner.from_config, config)
    service = learner.service
    events.say(f"adapter of rank {config.model.lora_rank} on {service.base} at {service.url}, {learner.reduction}")
    return learner


async def learner_of(config: Config, team: Team | None, events: Logged, *, sampling: bool) -> Policy:
    """The model and its optimiser, in this process or in a team's; proved to compute what the model computes alone."""
    from paragator.engines.local.compute import computed
    from paragator.engines.local.loading import load_model
    from paragator.training.policy import Policy
    from paragator.training.proof import prove

    model, tokenizer = await computed(load_model, config.model, config.seed)
    proved = partial(prove, sampling=sampling)
    await computed(proved, model)
    size = sum(p.numel() for p in model.parameters())
    if team is None:
        policy: Policy = await computed(Policy.from_config, model, tokenizer, config)
    else:
        from paragator.training.sharded import lead

        policy = await computed(lead, team, model, tokenizer, config)
    where = f"{policy.accelerator.device}, {team.size} processes" if team else str(policy.accelerator.device)
    events.say(f"{size:,} parameters, {policy.precision}, {where}")
    if policy.precision != "float32":
        await computed(partial(proved, policy.raw, autocast=policy.accelerator.autocast))
    if (experts := num_experts(policy.raw)) and not config.train.router_loss:
        events.say(f"{experts} experts a layer: their load-balancing loss is not trained (train.router_loss = 0)")
    return policy


def num_experts(model: Any) -> int:
    """Experts of a layer; 0 of a model that has none."""
    sizes = model.config.get_text_config()
    return next((int(n) for name in EXPERTS if (n := getattr(sizes, name, None) or 0) > 1), 0)


class StepEvents:
    """What becomes of a step: events, the tracker where one is set, its evaluation, and none of older weights."""

    def __init__(self, config: Config, events: Events, measure: Measure) -> None:
        self.config, self.events, self.measure = config, events, measure
        self.after = config.run_dir / "eval_after.jsonl"
        self.tracking = Tracking(config, events.say)
        self.seconds_after = 0.0

    def on_step(self, metrics: Mapping[str, float], sampled: Sequence[Graded]) -> None:
        self.events.on_step({**metrics, "steps": self.config.train.steps, "seconds_after": self.seconds_after})
        self.events.on_rollouts(sampled)
        self.after.unlink(missing_ok=True)  # of an earlier end, when train.steps was lower: other weights
        self.tracking.step(metrics, int(metrics["step"]), sampled)

    async def evaluate(self, number: int) -> dict[str, Any] | None:
        """The held-out problems under the weights of a step, in evals/step_<n>.jsonl, completed where it was begun."""
        (self.config.run_dir / "evals").mkdir(exist_ok=True)
        found = await self.measure(f"evals/step_{number}")
        if found is None:
            return None
        table = EvalResult(found, self.config.eval.k).table()
        means = {f"eval/round_{t}": cell.mean for t, cell in enumerate(table.series("pass_at_1"))}
        shown = "  ".join(f"round {t} {100 * mean:.1f}%" for t, mean in enumerate(means.values()))
        self.events.say(f"evaluation after step {number}: pass@1  {shown}")
        self.tracking.step(means, number)
        return table.to_dict()

    def should_stop(self) -> bool:
        return self.events.should_stop()

    def reuse(self) -> None:
        """Take the last step's evaluation, where there is one, as that after training: same weights, same draws."""
        last = self.config.run_dir / "evals" / f"step_{self.config.train.steps}.jsonl"
        if last.exists() and not self.after.exists():
            shutil.copyfile(last, self.after)

    def end(self) -> None:
        """Close the tracker."""
        self.tracking.close()
