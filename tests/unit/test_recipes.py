"""The published-size recipes load, and say what the estimate needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from paragator.config import Config
from paragator.planning.estimate import estimate
from paragator.settings import load

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("qwen3-*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_resolves_and_is_estimated(path: Path) -> None:
    config = load(Config, path)
    assert config.name == path.stem
    assert config.eval.repeats * config.eval.candidates == 32
    assert (config.train.kl > 0) == path.stem.endswith("-kl")
    found = estimate(config, bfloat16=True, cuda=True, rate=4e14)
    assert found["memory_bytes"]["peak"] > 16 * found["parameters"]
