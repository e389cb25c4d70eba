"""Config files: TOML and dotted overrides in, frozen models out. An unknown key is an error with a suggestion."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date, time
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from paragator.core.errors import UsageError


class Section(BaseModel):
    """A part of a config: immutable, and strict about keys; the string under a field says what it is."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """pydantic's, but an error is a UsageError in one line that names key, value and remedy."""
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise UsageError(explain(cls, error.errors()[0])) from None


RENAMED = {
    "engine.rollout": "engine.kind",
    "method.pools": "method.recorded",
    "pools": "recorded_problems",
    "train.pool": "train.distinct_problems",
}
"""Keys of earlier versions, and what they are called now."""

MEANT = {
    "batch_size": "train.problems",
    "beta": "train.kl",
    "learning_rate": "optimizer.lr",
    "max_length": "generate.max_tokens",
    "max_new_tokens": "generate.max_tokens",
    "max_steps": "train.steps",
    "model_name": "model.path",
    "model_name_or_path": "model.path",
    "num_generations": "rollout.candidates",
    "num_samples": "eval.candidates",
    "output_dir": "runs",
}
"""What other libraries call a key, and what it is called here."""
ON = "on"
"""The table of a config file that holds sections for machines, and the flag that takes one of them."""
SHIPPED = " or the name of one that ships, such as quickstart (recipes)"

S = TypeVar("S", bound=Section)


def load(kind: type[S], path: str | Path | None = None, overrides: Sequence[str] = ()) -> S:
    """A config from a TOML file or a recipe's name (None: defaults) and overrides like ["--optimizer.lr", "1e-5"]."""
    return validate(kind, read_values(path, overrides))


def read_values(path: str | Path | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a TOML file and the overrides of a command line set, by section; UsageError for what cannot be read."""
    values = {} if path is None else read_toml(recipe(Path(path)), "config")
    sections = values.pop(ON, {})
    for _, name in (pair for pair in pairs(overrides) if pair[0] == ON):
        if name not in sections:
            known = ", ".join(sections) or "none"
            raise UsageError(f"--{ON} {name}: {path or 'no config'} has no section [{ON}.{name}]; known: {known}")
        values = merged(values, sections[name])
    return own_values(overrides, values)


def own_values(overrides: Sequence[str], under: dict[str, Any] | None = None) -> dict[str, Any]:
    """What the overrides of a command line set by themselves, by section, over the values `under` them."""
    values = {} if under is None else under
    for key, text in (pair for pair in pairs(overrides) if pair[0] != ON):
        put(values, key.split("."), parse_value(text), key)
    return values


def sections(path: str | Path) -> list[str]:
    """The names that `--on` takes for a config: what it says of machines, each a table [on.NAME] of keys that win."""
    return list(read_toml(recipe(Path(path)), "config").get(ON, {}))


def recipe(path: Path) -> Path:
    """A path as it is or, for a bare name such as `quickstart`, the config of that name that ships with the package."""
    if path.suffix or path.exists() or len(path.parts) != 1:
        return path
    package = Path(__file__).parent
    shipped = (package / "recipes" / f"{path}.toml", package.parents[1] / "configs" / f"{path}.toml")  # wheel; checkout
    return next((file for file in shipped if file.is_file()), path)


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """A TOML file's values; `what` it is to the user, for the messages."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{what} {path}: {error.strerror or error}; give the path of a TOML file{SHIPPED if what == 'config' else ''}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{what} {path} is not TOML: {error}; fix it") from None


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of dotted keys by section; a key may hold a whole section as well."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise UsageError(f"key {key!r} is no text; write keys as 'optimizer.lr'")
        put(out, key.split("."), str(value) if isinstance(value, Path) else value, key)
    return out


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values; where both have one, that of `over`."""
    out = {key: merged({}, value) if isinstance(value, Mapping) else value for key, value in under.items()}
    for key, value in over.items():
        old = out.get(key)
        if isinstance(value, Mapping):
            value = merged(old if isinstance(old, Mapping) else {}, value)
        out[key] = value
    return out


def validate(kind: type[S], values: Mapping[str, Any]) -> S:
    """`values` as a config; UsageError in one line that names key, value and remedy."""
    return kind.model_validate(values)


def explain(kind: type[BaseModel], error: Any) -> str:
    """One pydantic error as what, which value, what to do."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        if RENAMED.get(where) in keys(kind):
            return f"unknown key {where}: it is called {RENAMED[where]} now; rename it"
        word, known = where.rpartition(".")[2], keys(kind)
        close = [key for key in known if key == MEANT.get(word)] or [k for k in known if k.rpartition(".")[2] == word]
        close = close or difflib.get_close_matches(where, known, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(siblings(kind, where))}"
        return f"unknown key {where}; {hint}"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message
    if where.endswith("key_env"):  # perhaps the key itself, which no message shows
        return f"{where} is not the name of an environment variable; put the key into one, and name it here"
    if error["type"] in ("model_type", "dict_type"):
        return f"{where} = {error['input']!r}, but it is a section; set {where}.KEY"
    if error["type"] == "string_type":
        return (
            f"{where} = {error['input']!r}: a text is needed; write it in quotes of its own, as '\"{error['input']}\"'"
        )
    return f"{where} = {error['input']!r}: {message[0].lower() + message[1:]}"


def keys(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a config."""
    out = []
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            out += keys(field.annotation, f"{prefix}{name}.")
        else:
            out.append(prefix + name)
    return out


def siblings(kind: type[BaseModel], where: str) -> list[str]:
    prefix = where.rpartition(".")[0]
    return [k for k in keys(kind) if prefix and k.rpartition(".")[0] == prefix] or list(kind.model_fields)


def to_json(config: Section) -> str:
    """The resolved config, stable and readable."""
    return json.dumps(config.model_dump(mode="json"), indent=2)


# ---- overrides, as a command line gives them: --optimizer.lr 1e-5 ----

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
    """Set a key of nested sections, which are created where missing; `whole` is what the user wrote."""
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UsageError(f"--{whole}: {key} is a value, not a section")
    values[keys[-1]] = value
