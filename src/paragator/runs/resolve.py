"""The composition root: from a config to a task, an engine and plans. Whatever can be refused is refused before weights load."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paragator import records
from paragator.runs.folder import OWN_WEIGHTS
from paragator.config import Config, EngineConfig, JudgeConfig, StageConfig
from paragator.core.errors import DataError, UsageError
from paragator.core.packing import Packer
from paragator.core.types import Group, Plan, Problem, Stage
from paragator.engines.local.loading import Facts, facts
from paragator.engines.sampling import Sampling
from paragator.tasks import Task
from paragator.tasks import load as load_task

if TYPE_CHECKING:
    from paragator.engines.http.openai import OpenAIEngine
    from paragator.engines.replay import Replay
    from paragator.engines.http.spread import Spread


@dataclass(frozen=True, slots=True)
class Checked:
    """A config that passed every check that needs no weights."""

    task: Task
    facts: Facts


def check(config: Config, *, training: bool, task: Task | None = None) -> Checked:
    """Refuse what cannot work, in one line each, without loading weights; `task` replaces the one that config names."""
    check_rollout(config, training)
    config.model.templates()
    known = facts_of(config)
    if config.model.template == "chat" and known.has_chat_template is False:
        raise UsageError(
            f"model.path = {config.model.path!r} has no chat template but model.template = 'chat'; "
            "set model.template = 'compact'"
        )
    for name in ("generate", "aggregate"):
        check_stage(name, getattr(config, name), known, training)
    if task is None:
        task = load_task(config.task)
    if config.task.name.endswith("jsonl"):  # the file of one's own, by either name
        task.problems("train" if training else "held-out", 1, config.seed)
    if config.engine.kind == "replay":
        candidates = map(config.model.templates().for_candidate, held_out(config, task))
        recording(config).check(eval_plan(config), candidates)
    if config.engine.kind in ("openai", "vllm"):
        build_endpoints(config.engine, samplings(config))
    if config.judge.mode != "off":
        if not config.judge.url:
            raise UsageError("judge.url is not set: name the judge's server, or set judge.mode = 'off'")
        build_judge_engine(config.judge)
    if training and config.method.recorded and config.method.name == "offline_aggregation":
        read_pools(Path(config.method.recorded), known, config)
    return Checked(task, known)


CHANGES_SAMPLING = {
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "logit_bias",
    "bad_words",
    "allowed_token_ids",
    "min_tokens",
} | {f"{name}_penalty" for name in ("repetition", "presence", "frequency")}


def check_rollout(config: Config, training: bool) -> None:
    engine = config.engine
    if training and engine.kind not in OWN_WEIGHTS:
        raise UsageError(
            f"engine.kind = {engine.kind!r}: training needs exact tokens; use 'transformers' or 'vllm'"
        )
    if training and config.tracker != "none" and find_spec(config.tracker) is None:
        raise UsageError(
            f"tracker = {config.tracker!r} is not installed: pip install {config.tracker}, or set tracker = 'none'"
        )
    if engine.kind != "vllm":
        return
    if wrong := sorted(set(engine.extra_body) & CHANGES_SAMPLING):
        raise UsageError(
            f"engine.extra_body sets {', '.join(wrong)}: training needs the log-probabilities of what was sampled; remove it"
        )
    if not training:
        raise UsageError("engine.kind = 'vllm' is for training; evaluate through the server: --url http://...")
    if engine.launch == bool(engine.url):
        raise UsageError(
            "engine.kind = 'vllm' needs engine.url, or engine.launch = true to start a server (not both)"
        )
    if engine.launch and not Path(engine.vllm_python).is_file():
        raise UsageError(f"engine.vllm_python = {engine.vllm_python}: no such file; run `make vllm`, or set engine.url")


def facts_of(config: Config) -> Facts:
    """What is known of whoever samples: a model folder, a name on a server, or a recording."""
    engine = config.engine
    if engine.kind in OWN_WEIGHTS:
        return facts(config.model)
    if engine.kind == "openai":
        if not engine.url:
            raise UsageError("engine.url is not set: name the server, as --url http://localhost:8000/v1")
        return Facts(None, None, f"{engine.model or 'first listed'}@{' '.join(engine.urls)}")
    if engine.recording is None:
        raise UsageError("engine.recording is not set: name the recording, as --recording FILE.jsonl")
    path = Path(engine.recording)
    if not path.is_file():
        raise UsageError(f"engine.recording = {engine.recording}: no such file")
    with path.open("rb") as file:
        return Facts(None, None, f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}")


def held_out(config: Config, task: Task) -> list[Problem]:
    """The problems that an evaluation is about."""
    return task.problems("held-out", config.eval.problems, config.eval.seed)


def check_stage(name: str, stage: StageConfig, known: Facts, training: bool) -> None:
    if training and stage.top_p < 1:
        raise UsageError(
            f"{name}.top_p = {stage.top_p}: training needs the log-probabilities of what was sampled; set it to 1"
        )
    if training and stage.top_k > 0:
        raise UsageError(
            f"{name}.top_k = {stage.top_k}: training needs the log-probabilities of what was sampled; set it to 0"
        )
    if known.context is not None and stage.max_tokens >= known.context:
        raise UsageError(
            f"{name}.max_tokens = {stage.max_tokens} leaves no room for a prompt in the model's context of {known.context}; lower it"
        )


def check_prompts(config: Config, problems: list[Problem], engine: Any) -> None:
    """Refuse problems whose candidate prompt does not fit the context."""
    templates = config.model.templates()
    for problem in problems:
        tokens = engine.count(templates.for_candidate(problem))
        if reason := engine.misfit(tokens, config.generate.max_tokens):
            raise UsageError(f"problem {problem.id}: {reason}; shorten it, or lower generate.max_tokens")


def build_engine(config: Config, model: Any, tokenizer: Any, **options: Any) -> Any:
    """The in-process engine with each stage's sampling, on as many CPU threads as configured; `options` are the engine's."""
    from paragator.engines.local.compute import set_threads
    from paragator.engines.local.transformers import TransformersEngine

    set_threads(config.train.threads)
    return TransformersEngine(model, tokenizer, sampling=samplings(config), **options)


def samplings(config: Config) -> dict[Stage, Sampling]:
    return {"generate": sampling_of(config.generate), "aggregate": sampling_of(config.aggregate)}


def build_endpoints(
    config: EngineConfig, sampling: Mapping[Stage, Sampling], tokenizer: Any = None, section: str = "engine"
) -> Spread:
    """The engines of the servers as one, in token mode with a tokenizer; nothing is sent yet. `section` is for messages."""
    from paragator.engines.http.openai import OpenAIEngine, read_key
    from paragator.engines.http.spread import Spread

    key = read_key(config)
    engines = [
        OpenAIEngine(
            url,
            config.model,
            sampling=sampling,
            tokenizer=tokenizer,
            key=key,
            max_in_flight=config.max_in_flight,
            request_timeout_s=config.request_timeout_s,
            total_timeout_s=config.total_timeout_s,
            extra_body=config.extra_body,
            price_in=config.price_in,
            price_out=config.price_out,
            section=section,
        )
        for url in config.urls
    ]
    return Spread(engines)


def build_judge_engine(config: JudgeConfig) -> OpenAIEngine:
    """The judge's server, asked without chance."""
    server = EngineConfig(kind="openai", url=config.url, model=config.model, key_env=config.key_env)
    once = Sampling(temperature=0, max_tokens=config.max_tokens)
    return build_endpoints(server, {"generate": once, "aggregate": once}, section="judge").engines[0]


def recording(config: Config) -> Replay:
    """The engine of recorded completions."""
    from paragator.engines.replay import Replay

    field = config.task.fields.get("problem", "problem")
    return Replay.read(Path(str(config.engine.recording)), config.model.templates(), problem_field=field)


def sampling_of(stage: StageConfig) -> Sampling:
    return Sampling(stage.temperature, stage.max_tokens, stage.top_p, stage.top_k)


def build_packer(config: Config, engine: Any) -> Packer:
    """Aggregation prompts within the context, or within rollout.max_prompt_tokens."""
    limit = config.rollout.max_prompt_tokens
    if engine.context is not None:
        room = engine.context - config.aggregate.max_tokens
        limit = room if limit is None else min(limit, room)
    return Packer(config.rollout.strip_thinking, limit, engine.count if limit is not None else None)


def eval_plan(config: Config) -> Plan:
    """The evaluation's plan: pools = 1 shows everyone the same pool, more gives each its own subset."""
    settings = config.eval
    if settings.rounds == 0:
        return Plan.sampling(settings.candidates)
    return Plan(settings.candidates, settings.rounds, settings.pool_size, settings.pools, settings.candidates)


def read_pools(path: Path, known: Facts, config: Config) -> dict[str, Group]:
    """Recorded candidates by problem id, easy and hard ones mixed as configured; of this very model, or a DataError."""
    easy: list[records.Graded] = []
    hard: list[records.Graded] = []
    for record in records.read(path):
        made_by = record.trace.extra.get("model")
        if made_by != known.fingerprint:
            raise DataError(
                f"{path}: pools of model {made_by}, but model.path is {known.fingerprint}; run paragator sample again"
            )
        scored = [r for r in record.rewards(0) if r is not None]
        if len(record.trace.population(0)) < config.rollout.pool_size or not scored:
            continue
        (easy if sum(r >= 1 for r in scored) * 2 > len(scored) else hard).append(record)
    share = config.method.hard_share
    total = min(len(hard) / share if share else len(easy), len(easy) / (1 - share) if share < 1 else len(hard))
    chosen = hard[: round(total * share)] + easy[: round(total * (1 - share))]
    if not chosen:
        raise DataError(
            f"{path}: {len(easy)} easy and {len(hard)} hard pools cannot give hard_share = {share}; change method.hard_share"
        )
    return {r.trace.problem.id: r.trace.rounds[0][0] for r in chosen}
