"""The published-size recipes load, with each of their sections, and say what fits which card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paragator.cli import doctor, train
from paragator.cli import eval as evaluate
from paragator.config import Config, EngineConfig
from paragator.core.errors import UsageError
from paragator.planning.estimate import estimate, fits, server_share
from paragator.settings import load, sections

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("qwen3-*.toml"))
MACHINES = ["one-card-lora", "one-card", "eight-cards", "cluster"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_resolves_and_is_estimated(path: Path) -> None:
    config = load(Config, path)
    assert config.name == path.stem
    assert config.eval.repeats * config.eval.candidates == 32
    assert (config.train.kl > 0) == path.stem.endswith("-kl")
    found = estimate(config, bfloat16=True, cuda=True, rate=4e14)
    assert found["memory_bytes"]["peak"] > 16 * found["parameters"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_section_changes_the_machine_and_fits_the_card_that_it_names(path: Path) -> None:
    assert sections(path) == MACHINES
    for name in MACHINES:
        config = load(Config, path, ["--on", name])
        same = ("task", "method", "rollout", "generate", "aggregate", "eval", "judge")
        assert all(getattr(config, part) == getattr(load(Config, path), part) for part in same)
        assert bool(config.engine.urls) != config.engine.launch
        found = estimate(config, bfloat16=True, cuda=True, rate=1.0)
        assert found["processes"] == {"eight-cards": 4, "cluster": 16}.get(name, 1)
        assert found["fits"] == {"80 GB": name != "one-card", "141 GB": True}


def test_a_section_wins_over_the_file_and_an_override_over_both(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("train.steps = 1\ntrain.problems = 2\n[on.big]\ntrain.steps = 3\nseed = 4\n")
    assert load(Config, path).train.steps == 1
    config = load(Config, path, ["--on", "big", "--seed", "5"])
    assert (config.train.steps, config.train.problems, config.seed) == (3, 2, 5)
    with pytest.raises(UsageError, match=r"--on small: .* has no section \[on\.small\]; known: big"):
        load(Config, path, ["--on", "small"])
    with pytest.raises(UsageError, match="no config has no section"):
        load(Config, None, ["--on=big"])
    path.write_text("[on.wrong]\ntrain.step = 3\n")
    with pytest.raises(UsageError, match=r"unknown key train\.step"):
        load(Config, path, ["--on", "wrong"])


def test_eval_takes_a_section_as_train_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    path.write_text("name = 'c'\neval.problems = 2\n[on.big]\neval.problems = 3\nseed = 4\n")
    words = [str(path), "--on", "big", "--seed", "5", "--dry-run"]
    for verb, name in ((evaluate, "c-eval"), (train, "c")):
        assert verb.main(words) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["name"], found["eval"]["problems"], found["seed"]) == (name, 3, 5)
    with pytest.raises(UsageError, match=r"--on small: .* has no section \[on\.small\]; known: big"):
        evaluate.main([str(path), "--on", "small", "--dry-run"])
    with pytest.raises(UsageError, match="--problems is short for"):
        evaluate.main([*words, "--problems", "3", "--eval.problems", "4"])
    assert evaluate.main([*words, "--problems", "7"]) == 0  # a short flag wins over the section, as an override does
    assert json.loads(capsys.readouterr().out)["eval"]["problems"] == 7


def test_a_server_on_the_trainers_card_takes_its_share() -> None:
    def config(**engine: object) -> Config:
        return Config(engine=EngineConfig.model_validate({"kind": "vllm", **engine}))

    assert server_share(Config()) == server_share(config(url="http://a/v1")) == 0
    assert server_share(config(launch=True)) == 0.9
    for words in (["--gpu-memory-utilization=0.5"], ["--gpu-memory-utilization", "0.5"]):
        shared = config(launch=True, vllm_arguments=words)
        assert fits(shared, 37e9, 80e9) and not fits(shared, 39e9, 80e9)
    with pytest.raises(UsageError, match="needs a share"):
        server_share(config(launch=True, vllm_arguments=["--gpu-memory-utilization"]))


def test_doctor_says_for_each_section_which_card_holds_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--config", str(RECIPES[0]), "--flops", "4e14"]) == 0
    said = capsys.readouterr().out
    assert all(f"--on {name}: " in said for name in MACHINES)
    assert "fits a card: 80 GB no, 141 GB yes" in said
    assert doctor.main(["--config", str(RECIPES[0]), "--flops", "4e14", "--on", "eight-cards", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sections"] == {} and found["processes"] == 4
