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
    from paragator.engines.http.openai import OpenAIEngine
    from paragator.engines.http.spread import Spread


def servers_of(
    config: EngineConfig, sampling: Mapping[Stage, Sampling], tokenizer: Any = None, section: str = "engine"
) -> Spread:
    """The engines of the servers as one, in token mode with a tokenizer; nothing is sent yet. `section` is for messages."""
    from paragator.engines.http.openai import OpenAIEngine
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


def judge_engine(config: JudgeConfig) -> OpenAIEngine:
    """The judge's server, asked at temperature 0."""
    server = EngineConfig(kind="openai", url=config.url, model=config.model, key_env=config.key_env)
    once = Sampling(temperature=0, max_tokens=config.max_tokens)
    return servers_of(server, {"generate": once, "aggregate": once}, section="judge").engines[0]


def read_key(config: EngineConfig) -> str | None:
    """The key that a config names: of its file, else of its environment variable; None where neither is set."""
    from paragator.engines.http.endpoint import checked_key

    if config.key_file is None:
        key, where = os.environ.get(config.key_env, ""), f"the environment variable {config.key_env}"
    else:
        where = f"engine.key_file = {config.key_file}"
        try:
            key = Path(config.key_file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            what = error.strerror if isinstance(error, OSError) else "no text"
            raise UsageError(f"{where}: cannot be read ({what}); name a file that holds the key alone") from None
    key = key.strip()
    if config.key_file is not None and not key:
        raise UsageError(f"{where}: the file is empty; write the key into it")
    return checked_key(key, where) if key else None
