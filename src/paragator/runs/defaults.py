"""What a config says where nobody set a key: what suits the model, the engine and the task."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from paragator.config import Config, EvalConfig
from paragator.core.errors import UsageError
from paragator.engines.local.loading import shape
from paragator.runs.folder import OWN_WEIGHTS
from paragator.settings import merged, validate
from paragator.tasks.files import count_rows

ENDPOINT_MAX_TOKENS, LOCAL_MAX_TOKENS = 4096, 1024
SMALL_CONTEXT = 512
"""Of the embedded model and of those warmed up here, whose solutions are short."""


def run_config(values: Mapping[str, Any]) -> Config:
    """A run's config from nested values, with what suits its model for keys that nobody set."""
    return suited(validate(Config, values))


def suited(config: Config) -> Config:
    """A model of the user's may answer at length; one with a chat template is asked through it, in words."""
    if config.engine.kind not in OWN_WEIGHTS or config.model.path == "embedded":
        return config
    context, has_template = shape(config.model)
    if is_set(config, "model.template") and config.model.template.startswith("compact"):
        return config
    if has_template is not False:
        config = with_defaults(config, {"model.template": "chat", "task.style": "words"})
    elif context is None or context <= SMALL_CONTEXT:
        return config
    return with_lengths(config, min(LOCAL_MAX_TOKENS, (context or 4 * LOCAL_MAX_TOKENS) // 4))


def say_prompts(config: Config, say: Callable[[str], None]) -> None:
    """How a model of the user's is asked where they left it open: a line for them, or none."""
    if config.engine.kind not in OWN_WEIGHTS or config.model.path == "embedded" or is_set(config, "model.template"):
        return
    _, has_template = shape(config.model)
    known = {True: "with a chat template", False: "without a chat template", None: "of the hub, as yet unread"}
    lengths = " and ".join(f"{stage.max_tokens:,}" for stage in (config.generate, config.aggregate))
    say(
        f"a model {known[has_template]}: model.template = '{config.model.template}', completions of up to {lengths} tokens"
    )


def eval_config(values: Mapping[str, Any]) -> Config:
    """An evaluation's config from nested values, with what suits the engine and the task for keys that nobody set."""
    config = run_config(values)
    if config.engine.kind != "transformers":
        config = with_defaults(config, {"model.template": "chat", "task.style": "words"})
    if config.engine.kind in ("openai", "own"):
        config = with_lengths(config, ENDPOINT_MAX_TOKENS)
    if config.aggregate.apart:
        config = with_defaults(config, {"aggregate.max_tokens": ENDPOINT_MAX_TOKENS})
    if config.engine.kind == "replay":
        config = with_defaults(config, {"eval.rounds": 0})
    path, of_file = config.engine.recording, config.engine.kind in ("replay", "openai")
    if path and of_file and not config.task.model_fields_set & {"name", "path"}:
        config = with_values(config, {"task.name": "jsonl", "task.path": path, "task.held_out_path": path})
    task = config.task
    if task.name == "jsonl" and task.path == task.held_out_path and task.path and Path(task.path).is_file():
        config = with_defaults(config, {"eval.problems": max(1, count_rows(Path(task.path)))})
    return config


def eval_name(config: Config) -> str:
    """What an evaluation without a name is called: its task and who answers."""
    task, engine = config.task, config.engine
    asked = Path(task.path or "").stem if task.name == "jsonl" else task.name
    who = Path(config.model.path).name
    if engine.kind == "openai":
        who = engine.model or (urlsplit(engine.urls[0]).hostname if engine.urls else None) or ""
    elif engine.kind == "replay":
        who = Path(engine.recording or "").stem
    words = dict.fromkeys(re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-._") for word in (asked, who))
    return "-".join(filter(None, words)) or "evaluation"


def solve_config(values: Mapping[str, Any]) -> Config:
    """The config of one new problem: of few candidates an aggregation sees all."""
    given = values.get("eval", {})
    if isinstance(given, Mapping) and isinstance(count := given.get("candidates"), int) and "pool_size" not in given:
        values = merged(values, {"eval": {"pool_size": min(EvalConfig().pool_size, max(1, count))}})
    config = eval_config(values)
    if config.engine.kind not in ("transformers", "openai", "own"):
        raise UsageError(f"engine.kind = {config.engine.kind!r} is not for one new problem; use --model or --url")
    return config


def within(config: Config, context: int | None) -> Config:
    """The same with shorter completions, where the context that an engine turned out to have is too small for defaults."""
    if context is None or not config.model.template.startswith("chat"):
        return config
    long = [stage for stage in ("generate", "aggregate") if 2 * getattr(config, stage).max_tokens > context]
    return with_defaults(config, {f"{stage}.max_tokens": max(1, context // 4) for stage in long})


def with_lengths(config: Config, tokens: int) -> Config:
    """A copy in which completions of both stages may have so many tokens, where nobody set it."""
    return with_defaults(config, {"generate.max_tokens": tokens, "aggregate.max_tokens": tokens})


def is_set(config: Config, key: str) -> bool:
    """Whether somebody gave this dotted key a value."""
    section, _, name = key.partition(".")
    return name in getattr(config, section).model_fields_set


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy with other values of dotted keys."""
    for key, value in values.items():
        section, _, name = key.partition(".")
        changed = getattr(config, section).model_copy(update={name: value})
        config = config.model_copy(update={section: changed})
    return config


def with_defaults(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy with other values of those dotted keys that nobody set; they still count as not set."""
    for key, value in values.items():
        section, _, name = key.partition(".")
        if is_set(config, key):
            continue
        own = section in config.model_fields_set
        config = with_values(config, {key: value})
        getattr(config, section).model_fields_set.discard(name)
        if not own:
            config.model_fields_set.discard(section)
    return config
