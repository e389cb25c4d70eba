"""The routers' load-balancing loss: the model's own formula, its gradient through packed rows, and who is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import one_hot
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig
from transformers import Qwen3MoeForCausalLM as Qwen3Moe

from paragator.config import OptimizerConfig
from paragator.core.errors import UsageError
from paragator.training.objective import LossSettings
from paragator.training.policy import Policy
from paragator.training.recipe import PolicySettings
from paragator.training.routers import balance_loss
from paragator.training.rows import Branch, Tree

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
SETTINGS = PolicySettings(
    LossSettings(),
    OptimizerConfig(max_grad_norm=1e9),
    {"generate": 1.0, "aggregate": 1.0},
    steps=1,
    precision="float32",
)
# without credit: all of the gradient is the routers'
TREES = [
    Tree("generate", (1, 2, 3), (Branch((4, 5, 7), (-1.0,) * 3, 0.0),)),
    Tree("aggregate", (3, 1, 4, 1, 5), (Branch((9, 2, 6, 5), (-1.0,) * 4, 0.0),)),
]


def mixtral(**more: Any) -> Any:
    torch.manual_seed(0)
    config = MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2, sliding_window=None, **more)
    return MixtralForCausalLM(config)


def moe() -> Any:
    torch.manual_seed(0)
    return Qwen3Moe(Qwen3MoeConfig(**SIZES, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=8, head_dim=4))


def dense() -> Any:
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=4))


def test_the_formula_is_that_of_the_paper() -> None:
    """Brute force: loops over layers, tokens and experts."""
    torch.manual_seed(1)
    layers = [torch.randn(7, 5) for _ in range(3)]
    expected = 0.0
    for e in range(5):
        rows = [row for layer in layers for row in layer]
        picked = sum(float(one_hot(row.topk(2).indices, 5).sum(0)[e]) for row in rows) / len(rows)
        mean = sum(float(row.softmax(-1)[e]) for row in rows) / len(rows)
        expected += 5 * picked * mean
    assert float(balance_loss(layers, 2)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", [mixtral, moe])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradient_is_that_of_the_models_own_loss(make: Any, checkpointing: bool) -> None:
    """Two rows, each weighted by its share of the tokens, against transformers' auxiliary loss of plain sequences."""
    model = make()
    plain = copy.deepcopy(model).eval()
    for tree in TREES:  # one branch each, so that a row is a plain sequence
        ids = torch.tensor([tree.prompt_ids + tree.branches[0].token_ids])
        loss = plain(input_ids=ids, output_router_logits=True).aux_loss * (ids.numel() / 15)
        (loss * 0.5).backward()
    policy = Policy(model, None, replace(SETTINGS, router_loss=0.5, gradient_checkpointing=checkpointing))
    policy.batch_tokens = 9
    rows = policy.rows(TREES)
    assert len(rows) == 2
    stats, _ = policy.gradient(rows, [None, None], {})
    assert stats["router_loss"] > 0
    own, want = (
        {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in m.named_parameters()}
        for m in (policy.raw, plain)
    )
    torch.testing.assert_close(own, want, rtol=1e-4, atol=1e-6)
    assert any(grad.abs().max() > 0 for name, grad in own.items() if "gate" in name)


def test_an_update_reports_it_and_the_reference_does_not_count() -> None:
    trees = [replace(tree, branches=(replace(tree.branches[0], credit=1.0),)) for tree in TREES]
    found = []
    for kl in (0.0, 0.1):
        policy = Policy(mixtral(), None, replace(SETTINGS, router_loss=0.01, kl=kl))
        found.append(policy.update(trees, 1, {"generate": 0.1, "aggregate": 0.1})["router_loss"])
    assert found[0] == pytest.approx(found[1])
    assert "router_loss" not in Policy(mixtral(), None, SETTINGS).update(trees, 1, {})


def test_the_stages_gradients_are_measured_without_it() -> None:
    trees = [replace(tree, branches=(replace(tree.branches[0], credit=1.0),)) for tree in TREES]
    with_loss, without = (
        Policy(mixtral(), None, replace(SETTINGS, router_loss=x)).measure(trees, []) for x in (9.0, 0.0)
    )
    assert with_loss == pytest.approx(without)


def test_router_noise_does_not_disturb_the_proof() -> None:
    assert Policy(mixtral(router_jitter_noise=0.5).train(), None, replace(SETTINGS, router_loss=0.01)).routers


def other_loss() -> Any:
    model = mixtral()
    model.num_experts = 8  # its own loss is then scaled in another way
    return model


@pytest.mark.parametrize("make", [dense, other_loss])
def test_what_has_no_such_loss_is_refused(make: Any) -> None:
    with pytest.raises(UsageError, match=r"train.router_loss = 0.01: \w+ .*: set it to 0$"):
        Policy(make(), None, replace(SETTINGS, router_loss=0.01))
