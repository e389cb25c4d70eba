"""Configs: sparse TOML and dotted overrides in, frozen and resolved values out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.core.prompts import CHAT, COMPACT
from paragator.runs.resolve import resolve, samplings
from paragator.settings import MEANT, Section, keys, load, nested, pairs, parse_value, to_json, validate

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


def test_defaults_without_a_file() -> None:
    assert load(Config) == Config()


def test_a_file_sets_what_it_names_and_overrides_win(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('name = "mine"\n[optimizer]\nlr = 2e-3\nwarmup_steps = 1\n')
    config = load(Config, path, ["--optimizer.lr", "1e-5", "--train.steps=7"])
    assert (config.name, config.optimizer.lr, config.optimizer.warmup_steps) == ("mine", 1e-5, 1)
    assert config.train.steps == 7
    assert config.rollout == Config().rollout


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3", -3),
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("0.5", 0.5),
        ("true", True),
        ("[0.9, 0.99]", [0.9, 0.99]),
        ('"3"', "3"),
        ("embedded", "embedded"),
        ("/a/b c", "/a/b c"),
        ("owner/name", "owner/name"),
        ("module:function", "module:function"),
        ("", ""),
        (".5", 0.5),
        ("127.0.0.1", "127.0.0.1"),
        ("1.0.1", "1.0.1"),
        ("e-401", "e-401"),
        ("²", "²"),
        ("2024-01-05", "2024-01-05"),
    ],
)
def test_values_of_overrides(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value and type(found) is type(value)


def test_dashes_in_keys_and_equals_in_values() -> None:
    assert pairs(["--train.batch-tokens=64", "--model.path", "a=b"]) == [
        ("train.batch_tokens", "64"),
        ("model.path", "a=b"),
    ]


def test_configs_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Config().train.steps = 3  # type: ignore[misc]


def test_json_is_resolved_stable_and_comes_back() -> None:
    config = load(Config, None, ["--method.k", "2", "--seed", "5"])
    text = to_json(config)
    assert text == to_json(config)
    assert validate(Config, json.loads(text)) == config
    assert set(json.loads(text)) == set(Config.model_fields)


def fields(kind: type[BaseModel], prefix: str = "") -> list[tuple[str, str | None]]:
    out: list[tuple[str, str | None]] = []
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            out += fields(field.annotation, f"{prefix}{name}.")
        else:
            out.append((prefix + name, field.description))
    return out


def test_every_key_says_what_it_is() -> None:
    assert [name for name, text in fields(Config) if not text] == []
    assert sorted(keys(Config)) == sorted(name for name, _ in fields(Config))


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if not p.name.startswith(("study", "warmup"))], ids=lambda p: p.stem
)
def test_shipped_configs_are_valid_and_say_something_new(path: Path) -> None:
    assert load(Config, path) != Config()


def test_templates_are_built_in_and_replaced_part_by_part() -> None:
    assert Config().model.templates() == COMPACT
    assert load(Config, None, ["--model.template", "chat"]).model.templates() == CHAT
    mine = load(Config, None, ["--model.candidate_prompt", "Q: {problem} A:"]).model.templates()
    assert (mine.candidate, mine.aggregation, mine.attempt) == ("Q: {problem} A:", COMPACT.aggregation, COMPACT.attempt)


def test_rules_hold_only_where_they_matter() -> None:
    """pass@k's k needs N above it, but only for the method that uses pass@k; pool sizes need rounds."""
    assert load(Config, None, ["--method.k", "99", "--method.name", "dr_grpo"]).method.k == 99
    assert load(Config, None, ["--eval.rounds", "0", "--eval.pool_size", "99"]).eval.rounds == 0
    with pytest.raises(UsageError, match="must be below"):
        load(Config, None, ["--method.k", "99"])


def test_an_override_below_a_value_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("seed = 1\n")
    with pytest.raises(UsageError, match="seed is a value, not a section"):
        load(Config, path, ["--seed.deep", "2"])


def test_the_run_directory() -> None:
    assert load(Config, None, ["--runs", "/x", "--name", "y"]).run_dir == Path("/x/y")


@pytest.mark.parametrize(
    ("key", "meant"),
    [("learning_rate", "optimizer.lr"), ("max_new_tokens", "generate.max_tokens"), ("optimizer.steps", "train.steps")],
)
def test_names_of_other_libraries_lead_to_ours(key: str, meant: str) -> None:
    assert set(MEANT.values()) <= set(keys(Config))
    with pytest.raises(UsageError, match=rf"unknown key {key}; did you mean {meant}\?"):
        load(Config, None, [f"--{key}", "1"])


def test_a_config_in_python_gives_the_errors_of_the_command_line() -> None:
    for make in (Config.model_validate, lambda values: validate(Config, values)):
        with pytest.raises(UsageError, match=r"^optimizer.lr = 'fast': input should be a valid number"):
            make({"optimizer": {"lr": "fast"}})
    with pytest.raises(UsageError, match=r"key 3 is no text"):
        nested({3: 1})  # type: ignore[dict-item]


def test_greedy_evaluation_and_no_greedy_training() -> None:
    config = load(Config, None, ["--generate.temperature", "0"])
    assert samplings(config)["generate"].temperature == 0
    resolve(config, training=False)
    with pytest.raises(UsageError, match=r"generate.temperature = 0: training needs solutions that differ"):
        resolve(config, training=True)
