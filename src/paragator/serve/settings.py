"""Settings of the server: where it listens, who may ask, how much, and presets. A TOML file of these keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from paragator.core.errors import UsageError
from paragator.engines.http.client import LOOPBACK, Secret, checked_key
from paragator.settings import Section

KEY_CHARS = 16
"""A key that others could try must have so many characters."""


class Preset(Section):
    """A name under which clients get a strategy with its sampling settings."""

    strategy: str = "aggregate_vote"
    """As behind the @ of a model's name: "aggregate_vote:n=8,k=4,rounds=2". Here also "module:function"."""
    temperature: float | None = Field(None, ge=0)
    """Of all solutions; None takes the config's."""
    top_p: float | None = Field(None, gt=0, le=1)
    """None takes the config's."""
    max_tokens: int | None = Field(None, ge=1)
    """Of one solution; None takes the config's."""


class ServeSettings(Section):
    host: str = "127.0.0.1"
    """Address to listen at. Any other than this machine's own (127.0.0.1, ::1, localhost) needs a key."""
    port: int = Field(8080, ge=0, le=65535)
    """0 takes a free one."""
    model_name: str | None = None
    """How clients call the model; None takes the engine's name of it."""
    key_env: str = Field("PARAGATOR_SERVE_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the key that clients must send. Where it is set, no request goes without."""
    key_file: str | None = None
    """A file that holds that key, instead of the environment."""
    allowed_hosts: list[str] = Field([])
    """On this machine only: further names that a request's Host header may have, such as that of a proxy in front."""
    max_body_bytes: int = Field(1_000_000, ge=1)
    """Longest request body."""
    max_requests: int = Field(64, ge=1)
    """Most requests at once; a further one gets status 429."""
    max_solutions: int = Field(256, ge=1)
    """Most completions that one request may make of its strategy, by the strategy's own count."""
    max_tokens: int = Field(32_768, ge=1)
    """Most tokens that a request may allow one solution."""
    max_tokens_total: int | None = Field(None, ge=1)
    """Tokens of prompts and completions after which nothing more is answered; None has no limit."""
    progress: Literal["reasoning", "comments", "off"] = "reasoning"
    """How a stream tells of rounds: as reasoning_content, which chat interfaces show as thinking, or as comments."""
    presets: dict[str, Preset] = Field({})
    """Name -> strategy and sampling; each is listed as a model."""

    @model_validator(mode="after")
    def names(self) -> ServeSettings:
        if wrong := next((name for name in self.presets if "@" in name or not name.strip()), None):
            raise ValueError(f"presets: {wrong!r} is no name; an @ stands between a model and its strategy")
        return self

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in LOOPBACK


def key_of(settings: ServeSettings) -> Secret | None:
    """The key that clients must send; None where none is set. UsageError where one is needed, or is no key."""
    if settings.key_file is None:
        where, text = f"the environment variable {settings.key_env}", Secret(os.environ.get(settings.key_env, ""))
    else:
        where = f"key_file = {settings.key_file}"
        try:
            text = Secret(Path(settings.key_file).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            what = error.strerror if isinstance(error, OSError) else "no text"
            raise UsageError(f"{where}: cannot be read ({what}); name a file that holds the key alone") from None
    key = checked_key(text.strip(), where)
    if settings.key_file is not None and not key:
        raise UsageError(f"{where}: the file is empty; write the key into it")
    if settings.is_local:
        return key or None
    if not key:
        raise UsageError(
            f"host = {settings.host} can be reached from elsewhere, so a key is needed: set {settings.key_env} or key_file"
        )
    if len(key) < KEY_CHARS:
        raise UsageError(f"{where}: a key that others could guess; take {KEY_CHARS} characters or more")
    return key
