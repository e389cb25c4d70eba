"""The supervised start of SmolLM2, on a random model of the same shape of code: it learns, says so, and writes a model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from paragator.config import Config
from paragator.settings import load
from paragator.training.policy import Policy
from paragator.training.rows import Branch, Tree

SCRIPT = Path(__file__).parents[2] / "scripts" / "smollm2_cold_start.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("smollm2_cold_start", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_learns_and_writes_a_model(
    script: Any,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = load(Config, None, ["--train.precision=float32", "--train.steps=20", "--optimizer.lr=0.01"])
    branch = Branch((6, 7, 2), (0.0,) * 3, 1 / script.BATCH)
    trees = [Tree(stage, (1, 4, 5), (branch,)) for _ in range(10 * script.BATCH) for stage in ("generate", "aggregate")]
    script.learn(Policy.from_config(model, tokenizer, config), trees, trees[:2], tmp_path / "model")
    said = [line.split("nats a token: generate ")[1] for line in capsys.readouterr().out.splitlines() if "nats" in line]
    losses = [float(line.split(",")[0]) for line in said]
    assert len(losses) == 2 and losses[1] < losses[0] < 1
    assert (tmp_path / "model" / "config.json").is_file() and not (tmp_path / "model.writing").exists()
