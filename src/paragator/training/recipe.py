"""How a run trains, as small values that are made once from its config; the functions of a step take these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from paragator.config import Config, OptimizerConfig
from paragator.core.methods import CreditSettings, Method
from paragator.core.mix import Kind
from paragator.core.packing import Packer
from paragator.core.scaffold import Scaffold
from paragator.core.types import Group, Plan, Stage
from paragator.training.objective import LossSettings

Truncated = Literal["mask", "drop", "wrong"]
"""A rollout cut at its longest length: counts in its group but is not trained on, leaves the group, or counts as wrong."""
Unreadable = Literal["wrong", "drop"]
"""A rollout whose answer the rules cannot read: counts as wrong, or leaves the group."""
SEEDS_A_RUN = 1_000_003
"""The seed of a step is the run's times this, plus the step's number."""


@dataclass(frozen=True, slots=True)
class StageTerms:
    """What credit takes of a stage: its weight, and its longest completion in tokens."""

    weight: float
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Crediting:
    """How a graded trace becomes credited trees.

    candidates  N, the rollouts of a problem and round
    keep_idle   rollouts without credit are trained on too, for the KL
    soft_length  the last share of a stage's longest completion, in which a reward falls by up to 1
    """

    method: Method
    settings: CreditSettings
    stages: Mapping[Stage, StageTerms]
    candidates: int
    truncated: Truncated = "mask"
    unreadable: Unreadable = "wrong"
    keep_idle: bool = False
    soft_length: float = 0.0

    @classmethod
    def from_config(cls, config: Config) -> Crediting:
        return cls(
            config.method.definition,
            config.method.credit_settings,
            {
                "generate": StageTerms(config.generate.weight, config.generate.max_tokens),
                "aggregate": StageTerms(config.aggregate.weight, config.aggregate.max_tokens),
            },
            config.rollout.candidates,
            config.train.truncated,
            config.train.unreadable,
            config.train.kl > 0,
            config.train.soft_length,
        )


@dataclass(frozen=True, slots=True)
class Keeping:
    """Which checkpoints stay: the `last` ones, those of every `every` steps (0: none), the `best` by an evaluation."""

    last: int = 2
    every: int = 0
    best: bool = True


@dataclass(frozen=True, slots=True)
class Schedule:
    """How many steps of how many problems, the seed that reshuffles problems, and when to save and to evaluate.

    checkpoint_every, checkpoint_minutes  a checkpoint follows the step at which either has passed
    eval_every                            steps between evaluations, each after a checkpoint; 0 is off
    ahead                                 steps whose rollouts are sampled while an earlier one is trained: 0 or 1
    """

    steps: int
    problems: int
    checkpoint_every: int
    seed: int
    checkpoint_minutes: float = 10.0
    eval_every: int = 0
    keeping: Keeping = Keeping()
    ahead: int = 0

    def is_evaluated(self, number: int) -> bool:
        """Whether an evaluation follows a step."""
        return bool(number and self.eval_every) and number % self.eval_every == 0

    def is_saved(self, number: int, minutes: float) -> bool:
        """Whether a checkpoint follows a step, `minutes` after the last one."""
        steps = (self.checkpoint_every, self.keeping.every)
        by_number = number == self.steps or any(every and number % every == 0 for every in steps)
        return by_number or self.is_evaluated(number) or minutes >= self.checkpoint_minutes


@dataclass(frozen=True, slots=True)
class Recipe:
    """All of training apart from the model, the engine, the task and its problems.

    scaffold  plan, prompts and packing of a step's rollouts; the seed is the run's, see `at_step`
    recorded  candidates by problem id, which replace those that a step would sample (offline aggregation)
    refill    completion tokens that a step may spend on further problems while too few have credit; 0 is off
    pool_mix  shares of pools by what they hold, see `core.mix`; without any, pools are as drawn
    measure_every  steps between measurements of the stages' gradients; 0 is off
    """

    crediting: Crediting
    scaffold: Scaffold
    schedule: Schedule
    recorded: Mapping[str, Group] = field(default_factory=dict)
    measure_every: int = 0
    refill: int = 0
    pool_mix: Mapping[Kind, float] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Config, packer: Packer, recorded: Mapping[str, Group] | None = None) -> Recipe:
        """The recipe of a config; `packer` knows how long a prompt the engine takes."""
        rollout, method = config.rollout, config.method.definition
        plan = Plan.sampling(rollout.candidates)
        if method.aggregate:
            plan = Plan.training(rollout.candidates, rollout.pool_size, rollout.pools, method.rounds)
        scaffold = Scaffold(plan, config.model.templates(), packer, config.seed * SEEDS_A_RUN)
        train = config.train
        schedule = Schedule(
            train.steps,
            train.problems,
            train.checkpoint_every,
            config.seed,
            train.checkpoint_minutes,
            train.eval_every,
            Keeping(train.keep_last, train.keep_every, train.keep_best),
            train.ahead,
        )
        return cls(
            Crediting.from_config(config),
            scaffold,
            schedule,
            recorded or {},
            config.stages.measure_every,
            train.refill,
            config.rollout.pool_mix,
        )

    def at_step(self, number: int) -> Scaffold:
        """The scaffold with a step's own seed."""
        return replace(self.scaffold, seed=self.scaffold.seed + number)

    def is_measured(self, number: int) -> bool:
        """Whether a step, counted from 1, measures the stages' gradients: the first, and then one in `measure_every`."""
        return bool(self.measure_every) and (number - 1) % self.measure_every == 0


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """How the policy is updated.

    temperature             of each stage's sampling, at which log-probabilities are taken too
    steps, updates          steps of the run (for the learning rate's schedule), and optimiser steps on each one's rollouts
    max_refused             updates that may be skipped because something is not finite, before the run ends
    stage_ratio             of the norm of candidates' gradient to that of aggregations'; None leaves both as they are
    kl                      weight of the KL to the initial model; 0 keeps no reference
    router_loss             weight of the load-balancing loss of a mixture of experts
    gradient_checkpointing  keep only each layer's input for the backward pass
    lagging                 an engine in this process samples from the weights last published, not from those being trained
    """

    loss: LossSettings
    optimizer: OptimizerConfig
    temperature: Mapping[Stage, float]
    steps: int
    updates: int = 1
    max_refused: int = 0
    stage_ratio: float | None = None
    kl: float = 0.0
    router_loss: float = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    lagging: bool = False

    @classmethod
    def from_config(cls, config: Config) -> PolicySettings:
        train, local = config.train, config.engine.kind == "transformers"
        # other weights sample, or another program, with log-probabilities of its own
        corrected = config.engine.kind == "vllm" or train.backend == "tinker" or bool(train.ahead)
        return cls(
            loss=LossSettings(train.clip_low, train.clip_high, train.weight_cap if corrected else None, train.ratio),
            optimizer=config.optimizer,
            temperature={"generate": config.generate.temperature, "aggregate": config.aggregate.temperature},
            steps=train.steps,
            updates=train.updates,
            max_refused=train.max_refused,
            stage_ratio=config.stages.ratio if config.stages.balance == "gradient" else None,
            kl=train.kl,
            router_loss=train.router_loss,
            precision=train.precision,
            gradient_checkpointing=config.model.gradient_checkpointing,
            compile=train.compile,
            lagging=bool(train.ahead) and local,
        )
