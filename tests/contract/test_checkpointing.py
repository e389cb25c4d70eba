"""Gradient checkpointing changes memory, not gradients, with the 4-D mask of packed rows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from paragator.config import Config
from paragator.settings import validate
from paragator.training.packed import collate, log_probs
from paragator.training.policy import Policy
from paragator.training.rows import Branch, Tree, pack

KINDS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
TREES = [
    Tree("generate", (1, 2, 3), (Branch((4, 5), (-1.0, -1.0), 1.0), Branch((6, 7, 8), (-1.0,) * 3, -1.0))),
    Tree("aggregate", (3, 1, 4, 1, 5), (Branch((9, 2), (-1.0, -1.0), 1.0),)),
]


def toy(kind: str) -> Any:
    make_config, make = KINDS[kind]
    torch.manual_seed(0)
    config = make_config(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    return make(config)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_without(kind: str) -> None:
    model = toy(kind)
    found = []
    for on in (False, True):
        settings = {"model": {"gradient_checkpointing": on}, "train": {"precision": "float32"}}
        policy = Policy.from_config(copy.deepcopy(model), None, validate(Config, settings))
        layers: list[int] = []
        policy.raw.model.layers[0].mlp.register_forward_pre_hook(lambda *_: layers.append(1))  # noqa: B023
        log_probs(policy.model, collate(pack(TREES, 100)[0])).sum().backward()
        assert len(layers) == 1 + on, "a checkpointed layer runs twice"
        found.append([p.grad for p in policy.raw.parameters()])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain)
