"""Settings of a model on a server, shared by the engine and the aggregations."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from paragator.settings import Section


class ServerConfig(Section):
    url: str | list[str] | None = None
    """The server's base URL, such as http://localhost:8000/v1, or a list of several that serve the same model."""
    model: str | None = None
    """The name under which the server knows the model; None takes the first that it lists."""
    key_env: str = Field("OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the server's key; a server without keys needs none."""
    key_file: str | None = None
    """A file that holds the key, instead of the environment."""
    extra_body: dict[str, Any] = Field({})
    """Further request fields, passed on unchanged; in training, none that changes what is sampled."""
    omit: list[Literal["seed", "temperature", "top_p", "top_k", "n", "max_tokens"]] = Field([])
    """Request fields that the server refuses; in training, none that changes what is sampled."""
    price_in: float = Field(0, ge=0)
    """Price of a million prompt tokens, to print a cost."""
    price_out: float = Field(0, ge=0)
    """Price of a million completion tokens."""
    price_cached: float | None = Field(None, ge=0)
    """Price of a million prompt tokens that the server had cached, where it tells them; None is price_in."""

    @property
    def urls(self) -> list[str]:
        """The servers, none where no URL is set."""
        return [self.url] if isinstance(self.url, str) and self.url else list(self.url or ())
