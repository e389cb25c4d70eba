"""Dotted overrides of a TOML file, as a command line gives them: --optimizer.lr 1e-5."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from datetime import date, time
from typing import Any

from paragator.core.errors import UsageError

NUMBER = re.compile(r"[0-9]*\.?[0-9]+(e-?[0-9]+)?")


def pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """("key", "value") of "--key value" and "--key=value"."""
    out, rest = [], list(overrides)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise UsageError(f"{word!r}: expected an override such as --optimizer.lr 1e-5")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UsageError(f"--{key} has no value; write --{key} VALUE")
            value = rest.pop(0)
        out.append((key.replace("-", "_"), value))
    return out


def parse_value(text: str) -> Any:
    """A TOML value, or a number such as 1e5 and .5 that TOML does not take; else, and for a date, the text itself."""
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return float(text) if NUMBER.fullmatch(text) else text
    return text if isinstance(value, date | time) else value


def put(values: dict[str, Any], keys: list[str], value: Any, whole: str) -> None:
    """Set a key of nested sections, which are made where they lack; `whole` is what the user wrote."""
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UsageError(f"--{whole}: {key} is a value, not a section")
    values[keys[-1]] = value
