"""Run configuration: every section and key of a run, with its default and what it means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from paragator.core.errors import UsageError
from paragator.core.hooks import NamedCredit
from paragator.core.methods import CreditSettings, Method, method_named
from paragator.core.prompts import BUILTIN, Templates
from paragator.server_config import ServerConfig
from paragator.settings import Section
from paragator.task_config import Hook
from paragator.task_config import TaskConfig as TaskConfig

SCHEDULES = ("constant", "cosine", "linear")


class ModelConfig(Section):
    path: str = "embedded"
    """"embedded" (ships with the package), a local directory, or a hub id."""
    revision: str | None = None
    """Hub revision, for a hub id."""
    template: Literal["compact", "chat", "compact-select", "chat-select"] = "compact"
    """Prompt templates: "compact" for the embedded model, "chat" for instruction-tuned ones; with "-select" an aggregation names one
    attempt, which is then its solution."""
    candidate_prompt: str | None = None
    """Replaces the candidate template; holds {problem}."""
    aggregation_prompt: str | None = None
    """Replaces the aggregation template; holds {problem} and {attempts}."""
    attempt_format: str | None = None
    """Replaces how one attempt is written; holds {attempt}, may hold {label} or {number}."""
    template_arguments: dict[str, Any] = Field({})
    """Arguments of the chat template, here or on a server, such as {enable_thinking = false}."""
    trust_remote_code: bool = False
    """Run code that comes with a hub model. Leave off unless you have read that code."""
    device: str = "auto"
    """"auto" (cuda where there is one, else cpu), "cpu", "cuda"."""
    lora_rank: int = Field(0, ge=0)
    """Train LoRA adapters of this rank instead of all weights; 0 is off. Needs the extra `lora`."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input for the backward pass and recompute the rest: less memory, a third more work."""

    def templates(self) -> Templates:
        """The prompt templates: a built-in pair with what this config replaces."""
        base = BUILTIN[self.template]
        return replace(
            base,
            candidate=self.candidate_prompt or base.candidate,
            aggregation=self.aggregation_prompt or base.aggregation,
            attempt=self.attempt_format or base.attempt,
        )


class EngineConfig(ServerConfig):
    kind: Literal["transformers", "openai", "vllm", "replay", "own"] = "transformers"
    """Who samples: this process, an OpenAI-compatible server, a vLLM that gets the trained weights, or recorded completions;
    "own" stands for an engine handed over in Python."""
    max_in_flight: int = Field(64, ge=1)
    """openai, vllm: most requests in flight at a server; fewer while it is overloaded."""
    request_timeout_s: float = Field(600, gt=0)
    """openai, vllm: longest one attempt may take."""
    total_timeout_s: float = Field(1800, gt=0)
    """openai, vllm: longest a request may take with all its retries; then it is a Failure."""
    wait_s: float = Field(120, ge=0)
    """openai, vllm: how long a run waits for a server once none is left; then it ends, and can be resumed."""
    launch: bool = False
    """vllm: start a server for the run, on this machine, and stop it afterwards; else `url` is one that is running."""
    sync: Literal["folder", "adapter"] = "folder"
    """vllm: how trained weights reach the servers: the whole model in a folder, or with model.lora_rank the adapters alone."""
    vllm_python: str = ".venv-vllm/bin/python"
    """vllm: the interpreter of the environment that holds vLLM (`make vllm`)."""
    vllm_arguments: list[str] = Field(
        ["--enforce-eager", "--no-enable-chunked-prefill", "--distributed-executor-backend=uni"]
    )
    """vllm: further arguments of the server that is started (here: no compilation, one process, and see docs/vllm.md)."""
    recording: str | None = None
    """A JSONL file with fields problem and completions. replay: all there is; openai: the candidates, the rest is sampled."""


class JudgeConfig(Section):
    mode: Literal["off", "hybrid", "always"] = "off"
    """hybrid asks a model where the rules cannot decide; always asks it for every answer, and reports the agreement."""
    form: Literal["ours", "principia"] = "ours"
    """How it is asked: in our words, or as the published Principia verifier, which sees the last box and says yes or no."""
    url: str | None = None
    """The judge's OpenAI-compatible base URL."""
    model: str | None = None
    """The judge's name on that server; None takes the first that it lists."""
    key_env: str = Field("OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the judge's key."""
    cache: str = "judgements.sqlite"
    """Verdicts already paid for, shared by all runs that name the same file."""
    max_tokens: int = Field(2048, ge=1)
    """Longest judgement, in tokens."""


class MethodConfig(Section):
    name: str = "paragator"
    """Which method: a row of the table in docs/algorithm.md, or one that was registered."""
    k: int = Field(4, ge=1)
    """pass@k's k."""
    mean: Literal["subset", "reward"] = "subset"
    """pass@k's baseline for rewards of 0 and 1: the mean over subsets, or the plain mean of rewards (an ablation that warns)."""
    scale: Literal["none", "std"] = "none"
    """Divide credit by the group's standard deviation (plain GRPO); Dr.GRPO does not, nor pass@k of rewards other than 0 and 1."""
    recorded: str | None = None
    """Offline methods: the file of candidates that `paragator sample` wrote from the initial model."""
    credit: Hook | None = None
    """A credit function "module:function" (rewards of a group, with its texts and problem) -> one number a rollout; it
    replaces the method's credit of every stage that the method trains."""
    hard_share: float = Field(0.5, ge=0, le=1)
    """Offline methods: share of recorded pools whose majority is wrong; the rest are easy ones."""

    @field_validator("name")
    @classmethod
    def known(cls, name: str) -> str:
        try:
            return method_named(name).name
        except UsageError as error:
            raise ValueError(f"method.name = {error}") from None

    @property
    def definition(self) -> Method:
        """The method of that name, with the credit function that this section names in place of its own."""
        method = method_named(self.name)
        return method if self.credit is None else method.credited_by(NamedCredit(self.credit))

    @property
    def credit_settings(self) -> CreditSettings:
        """What built-in credits take of this section."""
        return CreditSettings(self.k, self.mean, "std" if self.scale == "std" else None)


class StageConfig(Section):
    weight: float = Field(1.0, ge=0)
    """Multiplies this stage's credit."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature; training's log-probabilities are taken at the same one. 0 takes the likeliest token, for
    evaluation only."""
    max_tokens: int = Field(40, ge=1)
    """Longest completion; also the constant that Dr.GRPO divides the token sum by."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling, for evaluation only."""
    top_k: int = Field(0, ge=0)
    """Top-k sampling, for evaluation only; 0 is off."""


class StagesConfig(Section):
    balance: Literal["weights", "gradient"] = "weights"
    """How much each stage's loss counts: by the stages' weights alone, or (gradient) candidates' credit is scaled too, so that
    the norm of their gradient is `ratio` times that of aggregations'."""
    ratio: float = Field(1.0, gt=0)
    """gradient: the norm of candidates' gradient over that of aggregations'."""
    measure_every: int = Field(0, ge=0)
    """Steps between measurements of both gradients (norms and cosines, in metrics.jsonl); each costs two or three backward
    passes. 0 is off."""


class AggregateConfig(ServerConfig, StageConfig):
    """The stage, and a model of its own where `url` or `model` is set: for aggregations and ratings, in evaluation only."""

    @property
    def apart(self) -> bool:
        """Whether another model than the engine's aggregates."""
        return bool(self.url or self.model)

    @model_validator(mode="after")
    def told(self) -> AggregateConfig:
        given = [name for name, field in ServerConfig.model_fields.items() if getattr(self, name) != field.default]
        if given and not self.apart:
            raise ValueError(f"aggregate.{given[0]} is of a model of its own: set aggregate.url or aggregate.model too")
        return self


class RolloutConfig(Section):
    candidates: int = Field(16, ge=2)
    """N: candidates a problem, and aggregations a round."""
    pool_size: int = Field(4, ge=1)
    """m: candidates shown to an aggregation."""
    pools: int = Field(1, ge=1)
    """Distinct pools a training round, each with its share of the N aggregations as a credit group."""
    pool_mix: dict[Literal["none", "mixed", "all"], Annotated[float, Field(ge=0, le=1)]] = Field({})
    """Shares of a training round's pools without a right member, with some, or with right ones only, where the candidates allow it;
    the rest is as drawn. {} leaves all as drawn; each candidate that a pool is chosen from is graded twice."""
    strip_thinking: bool = True
    """Show candidates without their thinking."""
    max_prompt_tokens: int | None = Field(None, ge=16)
    """Budget of an aggregation prompt; a pool that does not fit is reduced, and the reduction recorded."""


class TrainConfig(Section):
    steps: int = Field(60, ge=0)
    """Optimiser steps."""
    problems: int = Field(16, ge=1)
    """Problems a step."""
    refill: int = Field(0, ge=0)
    """Tokens of completions that a step may spend on further problems while fewer than `problems` have credit; 0 is off."""
    distinct_problems: int = Field(4096, ge=1)
    """Distinct training problems; longer training repeats them."""
    truncated: Literal["mask", "drop", "wrong"] = "mask"
    """A rollout cut at max_tokens: counts in its group but is not trained on (mask), leaves the group (drop), or counts as wrong."""
    unreadable: Literal["wrong", "drop"] = "wrong"
    """An answer that the rules cannot read and no judge decided: counts as wrong, or leaves its group (drop: a policy can learn to
    escape a wrong answer's credit so)."""
    soft_length: float = Field(0.0, ge=0, lt=1)
    """The last share of a stage's max_tokens in which a reward falls, by 1 at the limit (DAPO's soft punishment); 0 is off."""
    updates: int = Field(1, ge=1)
    """Optimiser steps on a step's rollouts. 1 is on-policy; from the second on, the ratio to the policy before them is clipped."""
    max_refused: int = Field(0, ge=0)
    """Updates that may be skipped because credit, a log-probability, the loss or the gradient is not finite; one more ends the run."""
    ahead: int = Field(0, ge=0, le=1)
    """1 samples the next step's rollouts while this one is trained, from weights of one version before; 0 is on-policy. In this
    process they take turns, so that 1 measures what the lag costs and saves nothing."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """Ratio clipping below 1; acts from the second update on."""
    clip_high: float = Field(0.2, gt=0)
    """Ratio clipping above 1; acts from the second update on."""
    ratio: Literal["token", "sequence", "cispo"] = "token"
    """What is clipped, off-policy: each token's ratio; its completion's (GSPO; clip_low and clip_high of about 0.0004 then); or each
    token's as a mere weight, which cuts no token's gradient to 0 (CISPO)."""
    weight_cap: float = Field(2.0, gt=0)
    """vllm, tinker: cap of the importance weight policy / sampler of a token (truncated importance sampling)."""
    kl: float = Field(0.0, ge=0)
    """Weight of the KL to the initial model (frozen copy, or adapters off); 0 keeps no reference."""
    router_loss: float = Field(0.0, ge=0)
    """Mixture of experts: weight of the routers' load-balancing loss; models are trained with 0.001 to 0.02. 0 is off."""
    batch_tokens: int | None = Field(None, ge=64)
    """Tokens of one forward and backward pass; gradients accumulate, a larger group is cut by branches. None: what half of
    the free memory holds, at most 4,096 on a CPU and 65,536 on a GPU."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto times both on this machine and takes the faster."""
    compile: bool = False
    """torch.compile the decoder layers for updates: half a minute once, then faster on a GPU. On a CPU it needs a C++ compiler."""
    checkpoint_every: int = Field(20, ge=1)
    """Steps between checkpoints."""
    checkpoint_minutes: float = Field(10.0, gt=0)
    """Minutes after which a step is followed by a checkpoint even before `checkpoint_every` steps."""
    keep_last: int = Field(2, ge=1)
    """Checkpoints that are kept: the newest ones."""
    keep_every: int = Field(0, ge=0)
    """Also kept for good: a checkpoint every so many steps; 0 keeps none."""
    keep_best: bool = True
    """Also kept: the checkpoint whose evaluation (`eval_every`) has the highest pass@1 in the last round."""
    eval_every: int = Field(0, ge=0)
    """Steps between evaluations of the held-out problems while training, each after a checkpoint; 0 is off."""
    backend: Literal["torch", "ray", "tinker"] = "torch"
    """Who starts the processes of a run: torchrun (or nobody, for one process), or a Ray cluster that is running. "tinker": a
    service that speaks the Tinker API trains an adapter and samples from it."""
    tinker_url: str | None = None
    """tinker: where the service is, such as http://127.0.0.1:8000; None is the hosted one. The key is in TINKER_API_KEY."""
    processes: int | None = Field(None, ge=1)
    """ray: how many processes, each with a card where the cluster has such. torchrun: refused where it started another number."""
    replicas: int = Field(1, ge=1)
    """Several processes: groups of them that each hold all of the weights (HSDP). 1 shards them over all processes (FSDP)."""
    tensor_parallel: int = Field(1, ge=1)
    """Several processes: so many neighbours split each product of the model among them and compute the same rows (tensor
    parallelism, by transformers' plan of the model). 1 is off; see docs/scale.md."""
    process_timeout_s: float = Field(45.0, gt=0)
    """Several processes: how long one waits for another that was killed or hangs, before all end."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; None: OMP_NUM_THREADS, else the cores that the process may use. Another number can change last digits."""


class OptimizerConfig(Section):
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate (AdamW)."""
    warmup_steps: int = Field(5, ge=0)
    """Linear warm-up, of the built-in schedules."""
    schedule: Hook = "constant"
    """After the warm-up: "constant", "cosine" or "linear". Or a function "module:function" (step, steps) -> multiplier of lr,
    for every step, counted from 1."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's weight decay, of matrices; norms and biases never decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping by global norm."""

    @field_validator("schedule")
    @classmethod
    def known(cls, schedule: str) -> str:
        if schedule not in SCHEDULES and ":" not in schedule:
            known = ", ".join(map(repr, SCHEDULES))
            raise ValueError(f"optimizer.schedule = {schedule!r}: use {known}, or a function as 'module:function'")
        return schedule


class EvalConfig(Section):
    problems: int = Field(128, ge=1)
    """Held-out problems."""
    seed: int = 0
    """Seed that draws the held-out problems; apart from the run's seed, so that runs of several seeds share them."""
    candidates: int = Field(4, ge=1)
    """Initial candidates a problem."""
    rounds: int = Field(3, ge=0)
    """Aggregation rounds."""
    pool_size: int = Field(4, ge=1)
    """Candidates an aggregation sees."""
    pools: int = Field(1, ge=1)
    """Distinct pools a round: 1 shows everyone the same, `candidates` gives each its own subset."""
    repeats: int = Field(1, ge=1)
    """Independent repeats of every problem."""
    k: int = Field(4, ge=1)
    """k of the reported pass@k and maj@k."""
    max_cost: float | None = Field(None, gt=0)
    """Stop asking once this much is spent, by engine.price_in and price_out; requests under way still count. Can be resumed."""
    max_tokens_total: int | None = Field(None, ge=1)
    """Stop asking once prompts and completions have so many tokens: of a server over all attempts, in-process in this one."""
    strategies: list[str] = Field([])
    """How `eval` spends tokens (docs/strategies.md), as ["majority", "pairwise:budget=2"]; none is the rounds above."""
    around_training: bool = True
    """`train` evaluates before the first and after the last step."""


class Config(Section):
    """One run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run directory."""
    seed: int = 0
    """Seed of every random draw."""
    runs: str = "runs"
    """Where run directories go."""
    tracker: Literal["none", "tensorboard", "wandb", "trackio", "mlflow"] = "none"
    """A tracker that also gets the metrics, and some rollouts of each step."""
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    engine: EngineConfig = EngineConfig()
    judge: JudgeConfig = JudgeConfig()
    method: MethodConfig = MethodConfig()
    rollout: RolloutConfig = RolloutConfig()
    generate: StageConfig = StageConfig()
    aggregate: AggregateConfig = AggregateConfig()
    stages: StagesConfig = StagesConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def consistent(self) -> Config:
        if self.rollout.pool_size > self.rollout.candidates:
            raise ValueError(
                f"rollout.pool_size = {self.rollout.pool_size} is above rollout.candidates = {self.rollout.candidates}"
            )
        if self.rollout.candidates % self.rollout.pools:
            raise ValueError(
                f"rollout.pools = {self.rollout.pools} does not divide rollout.candidates = {self.rollout.candidates}"
            )
        method = self.method.definition
        refusal = method.refusal(
            k=self.method.k,
            candidates=self.rollout.candidates,
            pools=self.rollout.pools,
            recorded=self.method.recorded is not None,
            shown=self.rollout.pool_size if self.model.templates().names else None,
        )
        if refusal:
            raise ValueError(refusal)
        if self.train.soft_length and "relative" in (method.generate, method.aggregate, method.between):
            raise ValueError(
                f"train.soft_length = {self.train.soft_length} makes rewards negative, and {method.name} divides by their mean: "
                "set it to 0"
            )
        if sum(self.rollout.pool_mix.values()) > 1:
            raise ValueError(f"rollout.pool_mix = {self.rollout.pool_mix}: its shares sum to more than 1; lower one")
        if self.stages.balance == "gradient" and not self.stages.measure_every:
            raise ValueError("stages.balance = 'gradient' needs measurements: set stages.measure_every, such as 5")
        if self.eval.rounds and self.eval.pool_size > self.eval.candidates:
            raise ValueError(
                f"eval.pool_size = {self.eval.pool_size} is above eval.candidates = {self.eval.candidates}"
            )
        unsplit = {"model.lora_rank": self.model.lora_rank, "train.compile": self.train.compile}
        unsplit["train.replicas"] = self.train.replicas > 1
        if self.train.tensor_parallel > 1 and any(unsplit.values()):
            key = next(key for key, used in unsplit.items() if used)
            raise ValueError(
                f"train.tensor_parallel = {self.train.tensor_parallel} does not go with {key}: leave one at its default"
            )
        if self.train.compile and self.train.router_loss:
            raise ValueError("train.router_loss cannot be computed in compiled layers: set train.compile = false")
        if self.eval.candidates % self.eval.pools:
            raise ValueError(f"eval.pools = {self.eval.pools} does not divide eval.candidates = {self.eval.candidates}")
        return self

    @property
    def run_dir(self) -> Path:
        return Path(self.runs) / self.name
