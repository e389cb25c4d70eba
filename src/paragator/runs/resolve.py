"""From settings to a run: its task, engine and plans, and every refusal that needs no weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from paragator import records
from paragator.config import Config, EngineConfig, StageConfig
from paragator.core.errors import DataError, UsageError
from paragator.core.hooks import function_named, multiplier
from paragator.core.packing import Packer
from paragator.core.scaffold import Scaffold
from paragator.core.types import Group, Plan, Problem, Sample, Stage
from paragator.engines.by_stage import Engines
from paragator.engines.local.loading import Facts, facts
from paragator.engines.replay import Replay
from paragator.engines.sampling import Sampling
from paragator.runs.backends import check_backend
from paragator.runs.folder import OWN_WEIGHTS
from paragator.runs.servers import judge_engine, servers_of
from paragator.server_config import ServerConfig
from paragator.strategies import Named, Sizes, strategy_named
from paragator.tasks import Task, load_task
from paragator.tasks.files import is_data_file

CONFIDENCE_TOKENS = 20
"""Of how many of the likeliest tokens a strategy wants the log-probabilities: what DeepConf's code asks for, and the most
that OpenAI's protocol allows."""
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


@dataclass(frozen=True, slots=True)
class Resolved:
    """A config that passed every check that needs no weights: its task, what is known of its model, and its engine.

    engine    one from Python, servers (nothing is sent yet) or a recording; None for a model whose weights must be loaded
    given     a recording that gives the candidates, where the engine samples what comes after them
    aggregator  a model of its own for aggregations and ratings, where there is one
    recorded  recorded candidates by problem id, where the method trains on such
    """

    config: Config
    task: Task
    facts: Facts
    engine: Any = None
    recorded: Mapping[str, tuple[Problem, Group]] | None = None
    given: Replay | None = None
    aggregator: Any = None


# ---- refusals ----


def resolve(
    config: Config,
    *,
    training: bool,
    task: Task | None = None,
    engine: Engines = None,
    recorded: bool = True,
) -> Resolved:
    """Refuse what cannot work, in one line each, without loading weights or drawing a problem.

    `task` and `engine` replace those that the config names. Without `recorded`, recorded candidates may be still to come.
    """
    engine, aggregator = engine if isinstance(engine, tuple) else (engine, None)
    check_aggregator(config, training, aggregator)
    if engine is None:
        check_engine(config, training)
    if training and config.tracker != "none" and find_spec(config.tracker) is None:
        raise UsageError(
            f"tracker = {config.tracker!r} is not installed: pip install {config.tracker}, or set tracker = 'none'"
        )
    if training:
        check_hooks(config)
        check_backend(config, engine)
    if config.model.lora_rank and not (training and config.train.backend == "tinker") and find_spec("peft") is None:
        raise UsageError(f"model.lora_rank = {config.model.lora_rank} needs peft: pip install 'paragator[lora]'")
    config.model.templates()
    known = facts_of(config, engine)
    if aggregator is not None:
        known = replace(known, fingerprint=f"{known.fingerprint} + {facts_of(config, aggregator).fingerprint}")
    if config.model.template.startswith("chat") and known.has_chat_template is False:
        raise UsageError(
            f"model.path = {config.model.path!r} has no chat template but model.template = {config.model.template!r}; "
            "set model.template = 'compact'"
        )
    for name in ("generate", "aggregate"):
        apart = name == "aggregate" and (aggregator is not None or config.aggregate.apart)
        check_stage(name, getattr(config, name), Facts(None, None, "") if apart else known, training)
    if config.judge.mode != "off":
        if not config.judge.url:
            raise UsageError("judge.url is not set: name the judge's server, or set judge.mode = 'off'")
        judge_engine(config.judge)
    if task is None:
        task = load_task(
            config.task, recorded=config.task.path is not None and config.task.path == config.engine.recording
        )
        if config.task.name == "jsonl" or is_data_file(config.task.name):  # the file of one's own, by either name
            task.problems("train" if training else "held-out", 1, config.seed)
    found, given = read_recorded(config, known) if training and recorded else None, None
    engine = engine if engine is not None else engine_of(config, task)
    if not training:
        given = recording_of(config, task) if config.engine.kind == "openai" and config.engine.recording else None
        if config.aggregate.apart:
            own = of_aggregator(config)
            aggregator = servers_of(own.engine, samplings(own), config.model.template_arguments, "aggregate")
        check_strategies(config, given or engine, beyond=bool(given or aggregator))
        check_prices(config)
    return Resolved(config, task, known, engine, found, given, aggregator)


def check_aggregator(config: Config, training: bool, aggregator: Sample | None) -> None:
    """Refuse a model of its own for aggregations where that cannot be."""
    own, engine = config.aggregate, config.engine
    if training and (own.apart or aggregator is not None):
        key = "url" if own.url else "model"
        what = f"aggregate.{key} = {getattr(own, key)}" if own.apart else "two engines"
        raise UsageError(
            f"{what}: training samples both stages from the policy; a model of its own is for eval, solve, serve"
        )
    if not own.apart:
        return
    if aggregator is not None:
        raise UsageError("aggregate.url and an engine for aggregations are both given; give one")
    if engine.kind == "replay":
        raise UsageError("aggregate.url with a recording: name the server that continues it by --url")
    if not own.url and engine.kind != "openai":
        raise UsageError(f"aggregate.model = {own.model} needs a server that knows it: set aggregate.url")


def check_prices(config: Config) -> None:
    """Refuse a cost that could not be told, or only in part."""
    own, of_engine = config.aggregate, bool(config.engine.price_in or config.engine.price_out)
    if own.apart and of_engine and not own.model_fields_set & {"price_in", "price_out"}:
        raise UsageError("engine.price_in and price_out are set, aggregate's are not: set them too (0 is free)")
    if config.eval.max_cost is not None and not (of_engine or own.price_in or own.price_out):
        raise UsageError("eval.max_cost needs prices: set engine.price_in and engine.price_out")


def of_aggregator(config: Config) -> Config:
    """The config as the model that only aggregates sees it: its server in the place of the engine.

    It keeps the engine's limits, and of the same servers all that `aggregate` does not set; "own" where it is from Python.
    """
    own = config.aggregate
    if not own.apart:
        return config.model_copy(update={"engine": EngineConfig(kind="own")})
    names = set(ServerConfig.model_fields)
    given = {name: getattr(own, name) for name in (names if own.url else names & own.model_fields_set)}
    return config.model_copy(
        update={"engine": config.engine.model_copy(update={"kind": "openai", "recording": None} | given)}
    )


def engine_of(config: Config, task: Task) -> Any:
    """The engine that a config names, as far as it needs no weights: servers or a recording; None for the others."""
    if config.engine.kind == "openai" or (config.engine.kind == "vllm" and not config.engine.launch):
        servers = servers_of(config.engine, samplings(config), config.model.template_arguments)
        return servers if config.engine.kind == "openai" else None  # vLLM is asked in tokens, once there is a tokenizer
    return recording_of(config, task) if config.engine.kind == "replay" else None


def recording_of(config: Config, task: Task) -> Replay:
    """The recording that a config names, with as many completions of each problem as will be asked for."""
    field = config.task.fields.get("problem", "problem")
    problems, path = held_out(config, task), Path(str(config.engine.recording))
    engine = Replay.read(path, config.model.templates(), problem_field=field, known=problems)
    named, sizes = strategies_of(config), sizes_of(config)
    plan = Plan.sampling(max(one.candidates(sizes) for one in named)) if named else eval_plan(config)
    if config.engine.kind == "openai":
        plan = Plan.sampling(plan.candidates)
    engine.check(plan, map(config.model.templates().for_candidate, problems))
    return engine


def check_engine(config: Config, training: bool) -> None:
    """Refuse an engine that cannot do what is asked of it."""
    engine = config.engine
    if engine.kind == "own":
        raise UsageError("engine.kind = 'own' stands for an engine handed over in Python; name another kind")
    if training and engine.kind not in OWN_WEIGHTS:
        raise UsageError(f"engine.kind = {engine.kind!r}: training needs exact tokens; use 'transformers' or 'vllm'")
    if engine.kind != "vllm":
        return
    if wrong := sorted(set(engine.extra_body) & CHANGES_SAMPLING):
        raise UsageError(
            f"engine.extra_body sets {', '.join(wrong)}: training needs the log-probabilities of what was sampled; remove it"
        )
    if wrong := sorted(set(engine.omit) & (CHANGES_SAMPLING | {"max_tokens"})):
        raise UsageError(
            f"engine.omit leaves out {', '.join(wrong)}: training needs to know how it is sampled; remove it from engine.omit"
        )
    if not training:
        raise UsageError("engine.kind = 'vllm' is for training; evaluate through the server: --url http://...")
    if engine.launch == bool(engine.url):
        raise UsageError("engine.kind = 'vllm' needs engine.url, or engine.launch = true to start a server (not both)")
    if engine.launch and not Path(engine.vllm_python).is_file():
        raise UsageError(f"engine.vllm_python = {engine.vllm_python}: no such file; run `make vllm`, or set engine.url")


def facts_of(config: Config, engine: Sample | None = None) -> Facts:
    """What is known of whoever samples: a model folder, a name on a server, a recording, or an engine from Python."""
    settings = config.engine
    if engine is not None:
        return Facts(None, None, str(getattr(engine, "fingerprint", "") or type(engine).__name__))
    if settings.kind in OWN_WEIGHTS:
        return facts(config.model)
    if settings.kind == "openai":
        if not settings.url:
            raise UsageError("engine.url is not set: name the server, as --url http://localhost:8000/v1")
        return Facts(None, None, f"{settings.model or 'first listed'}@{' '.join(settings.urls)}")
    if settings.recording is None:
        raise UsageError("engine.recording is not set: name the recording, as --recording FILE.jsonl")
    path = Path(settings.recording)
    if not path.is_file():
        raise UsageError(f"engine.recording = {settings.recording}: no such file")
    with path.open("rb") as file:
        return Facts(None, None, f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}")


def check_hooks(config: Config) -> None:
    """Refuse a schedule or a credit function that is not there, and a schedule that fails at any step."""
    if ":" in config.optimizer.schedule:
        for step in range(1, config.train.steps + 1):
            multiplier(config.optimizer.schedule, step, config.train.steps)
    if config.method.credit is not None:
        function_named(config.method.credit, "method.credit", "rewards")


def check_stage(name: str, stage: StageConfig, known: Facts, training: bool) -> None:
    """Refuse a stage whose sampling training cannot follow, or whose completions fill the context."""
    for key, off in (("top_p", 1), ("top_k", 0)):
        if training and getattr(stage, key) != off:
            raise UsageError(
                f"{name}.{key} = {getattr(stage, key)}: training needs the log-probabilities of what was sampled; set it to {off}"
            )
    if training and stage.temperature == 0:
        raise UsageError(f"{name}.temperature = 0: training needs solutions that differ; set it above 0")
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


# ---- small values of a config ----


def held_out(config: Config, task: Task) -> list[Problem]:
    """The problems that an evaluation is about."""
    return task.problems("held-out", config.eval.problems, config.eval.seed)


def samplings(config: Config) -> dict[Stage, Sampling]:
    """Each stage's sampling settings."""
    told = CONFIDENCE_TOKENS if any(one.needs for one in strategies_of(config)) else 0
    generate = replace(sampling_of(config.generate), confidence=told)
    return {"generate": generate, "aggregate": sampling_of(config.aggregate)}


def sampling_of(stage: StageConfig) -> Sampling:
    return Sampling(stage.temperature, stage.max_tokens, stage.top_p, stage.top_k)


def build_packer(config: Config, engine: Any) -> Packer:
    """Aggregation prompts within the engine's context, or within rollout.max_prompt_tokens."""
    limit = config.rollout.max_prompt_tokens
    if engine.context is not None:
        room = engine.context - config.aggregate.max_tokens
        limit = room if limit is None else min(limit, room)
    return Packer(config.rollout.strip_thinking, limit, engine.count if limit is not None else None)


def strategies_of(config: Config) -> list[Named]:
    """The strategies that an evaluation compares; [] where it is about the plan's rounds."""
    found = [strategy_named(text) for text in config.eval.strategies]
    if double := next((one.label for i, one in enumerate(found) if one.label in [o.label for o in found[:i]]), None):
        raise UsageError(f"eval.strategies names {double} twice; name each once")
    return found


def sizes_of(config: Config) -> Sizes:
    """What strategies take of a run for settings that they leave open."""
    return Sizes(config.eval.candidates, config.eval.pool_size, config.eval.rounds)


def check_strategies(config: Config, engine: Any, *, beyond: bool) -> None:
    """Refuse a strategy that the engine cannot serve, before anything is spent; `beyond` a recording another one samples."""
    recorded = isinstance(engine, Replay)
    for one in strategies_of(config):
        if recorded and not beyond and engine.aggregator is None and not one.only_candidates(sizes_of(config)):
            raise UsageError(f"strategy {one.label} asks for more than candidates, which a recording lacks; add --url")
        if one.needs == "confidence" and recorded and not engine.tells_confidence:
            raise UsageError(
                f"strategy {one.label} needs confidences of tokens, and the recording has none; leave it out"
            )
        if one.needs == "certainty" and config.engine.kind not in ("transformers", "own"):
            raise UsageError(
                f"strategy {one.label} needs the whole vocabulary's probabilities, which a server does not tell; "
                "use a model in this process (--model)"
            )


def eval_plan(config: Config) -> Plan:
    """The evaluation's plan: pools = 1 shows everyone the same pool, more gives each its own subset."""
    settings = config.eval
    if settings.rounds == 0:
        return Plan.sampling(settings.candidates)
    return Plan(settings.candidates, settings.rounds, settings.pool_size, settings.pools, settings.candidates)


def eval_scaffold(config: Config, packer: Packer) -> Scaffold:
    """The evaluation's scaffold; its draws are apart from those of training."""
    return Scaffold(eval_plan(config), config.model.templates(), packer, config.seed + 1)


def read_recorded(config: Config, known: Facts) -> dict[str, tuple[Problem, Group]] | None:
    """Recorded candidates of this very model by problem id, easy and hard problems mixed as configured; None where the
    method samples its own. DataError for those of another model.
    """
    if config.method.definition.source == "online":
        return None
    path, share = Path(str(config.method.recorded)), config.method.hard_share
    easy: list[records.Graded] = []
    hard: list[records.Graded] = []
    for record in records.read(path):
        made_by = record.trace.extra.get("model")
        if made_by != known.fingerprint:
            raise DataError(
                f"{path}: candidates of model {made_by}, but model.path is {known.fingerprint}; run paragator sample again"
            )
        scored = [right for right in record.right(0) if right is not None]
        if len(record.trace.population(0)) < config.rollout.pool_size or not scored:
            continue
        (easy if sum(scored) * 2 > len(scored) else hard).append(record)
    total = min(len(hard) / share if share else len(easy), len(easy) / (1 - share) if share < 1 else len(hard))
    chosen = hard[: round(total * share)] + easy[: round(total * (1 - share))]
    if not chosen:
        raise DataError(
            f"{path}: {len(easy)} easy and {len(hard)} hard problems cannot give hard_share = {share}; "
            "change method.hard_share"
        )
    kept = {r.trace.problem.id for r in chosen}
    return {  # in the file's order, as training goes through them
        r.trace.problem.id: (r.trace.problem, r.trace.rounds[0][0])
        for r in records.read(path)
        if r.trace.problem.id in kept
    }
