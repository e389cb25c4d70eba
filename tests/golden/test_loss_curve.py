"""The golden loss curve: four updates of the embedded model on fixed rollouts. No change of a number goes unseen.

`python tests/golden/test_loss_curve.py` writes the file anew; a commit that does so says why in experiments/LOG.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch

from paragator.config import Config
from paragator.engines.local import loading
from paragator.training.policy import Policy
from paragator.training.rows import Branch, Tree

GOLDEN = Path(__file__).with_name("loss_curve.json")
STEPS = 4
CONFIG = {
    "train": {"steps": STEPS, "batch_tokens": 256, "kl": 0.02, "precision": "float32"},
    "optimizer": {"lr": 1e-4, "warmup_steps": 1},
}


def fixed_trees(step: int, vocabulary: int) -> list[Tree]:
    """Two groups of each stage; ids, log-probabilities and credit from a seed."""
    rng = Random(f"golden:{step}")
    trees = []
    for stage in ("generate", "aggregate") * 2:
        prompt = tuple(rng.randrange(4, vocabulary) for _ in range(20))
        branches = []
        for _ in range(3):
            ids = tuple(rng.randrange(4, vocabulary) for _ in range(rng.randrange(5, 15)))
            branches.append(Branch(ids, tuple(-rng.random() for _ in ids), rng.uniform(-0.01, 0.01)))
        trees.append(Tree(stage, prompt, tuple(branches)))  # type: ignore[arg-type]
    return trees


def curve() -> list[dict[str, float]]:
    torch.manual_seed(0)
    config = Config.model_validate(CONFIG)
    model, tokenizer = loading.load_model(config.model)
    policy = Policy.from_config(model, tokenizer, config)
    rows = []
    for step in range(1, STEPS + 1):
        found = policy.update(fixed_trees(step, model.config.vocab_size), step, {"generate": 0.01, "aggregate": 0.02})
        rows.append({name: found[name] for name in ("loss", "grad_norm", "kl", "mismatch_kl")})
    return rows


def test_the_loss_curve_is_the_golden_one() -> None:
    expected = json.loads(GOLDEN.read_text())
    for found, golden in zip(curve(), expected, strict=True):
        assert found == pytest.approx(golden, rel=1e-4, abs=1e-7)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(curve(), indent=1) + "\n")
