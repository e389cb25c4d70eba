"""Engines of OpenAI-compatible servers as a config names them. Everything is checked here, and nothing is sent yet."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paragator.config import EngineConfig, JudgeConfig
from paragator.core.errors import UsageError
from paragator.core.types import Stage
from paragator.engines.sampling import Sampling

if TYPE_CHECKING:
    from paragator.engines.http.openai import OpenAI


def servers_of(
    config: EngineConfig,
    sampling: Mapping[Stage, Sampling],
    template_arguments: Mapping[str, Any] | None = None,
    section: str = "engine",
) -> OpenAI:
    """The engine of the servers at engine.url, which apply the chat template with these arguments.

    `section` is what messages call it: "aggregate" for a model that only aggregates.
    """
    from paragator.engines.http.openai import AggregatorEngine, Limits, OpenAI, Prices

    template = {"chat_template_kwargs": dict(template_arguments)} if template_arguments else {}
    return (OpenAI if section == "engine" else AggregatorEngine)(
        config.urls,
        config.model,
        sampling=sampling,
        key=read_key(config, section),
        limits=Limits(config.max_in_flight, config.request_timeout_s, config.total_timeout_s, wait_s=config.wait_s),
        extra_body={**template, **config.extra_body, **dict.fromkeys(config.omit)},
        prices=Prices(config.price_in, config.price_out, config.price_cached),
    )


def judge_engine(config: JudgeConfig) -> OpenAI:
    """The judge's server, asked at temperature 0."""
    from paragator.engines.http.openai import JudgeEngine

    once = Sampling(temperature=0, max_tokens=config.max_tokens)
    return JudgeEngine(str(config.url), config.model, sampling=once, key=environment_key(config.key_env))


def read_key(config: EngineConfig, section: str = "engine") -> str:
    """The key that a config names: of its file, else of its environment variable; "" where neither is set."""
    if config.key_file is None:
        return environment_key(config.key_env)
    from paragator.engines.http.client import Secret, checked_key

    where = f"{section}.key_file = {config.key_file}"
    try:
        key = Secret(Path(config.key_file).expanduser().read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "no text"
        raise UsageError(f"{where}: cannot be read ({what}); name a file that holds the key alone") from None
    if not key:
        raise UsageError(f"{where}: the file is empty; write the key into it")
    return checked_key(key, where)


def environment_key(name: str) -> str:
    """The key in an environment variable; "" where it is not set."""
    from paragator.engines.http.client import checked_key

    return checked_key(os.environ.get(name, "").strip(), f"the environment variable {name}")
