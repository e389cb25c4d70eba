"""Updates compute what was sampled, in eval mode; gradient checkpointing changes memory, not gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.settings import validate
from paragator.training.compiled import recompute_layers
from paragator.training.packed import collate, log_probs
from paragator.training.policy import Policy
from paragator.training.recipe import PolicySettings
from paragator.training.rows import Branch, Tree, pack
from toys import padded_log_probs

KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama, attention dropout": (LlamaConfig, LlamaForCausalLM, {"attention_dropout": 0.3}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "opt, dropout": (OPTConfig, OPTForCausalLM, {"dropout": 0.3, "layerdrop": 0.5, "word_embed_proj_dim": 16}),
    "gpt2, dropout": (GPT2Config, GPT2LMHeadModel, {"resid_pdrop": 0.3, "attn_pdrop": 0.3, "embd_pdrop": 0.3}),
    "mixtral, router noise and logits": (
        MixtralConfig,
        MixtralForCausalLM,
        {"router_jitter_noise": 0.5, "num_local_experts": 4, "output_router_logits": True, "sliding_window": None},
    ),
}
TREES = [
    Tree("generate", (1, 2, 3), (Branch((4, 5), (-1.0, -1.0), 1.0), Branch((6, 7, 8), (-1.0,) * 3, -1.0))),
    Tree("aggregate", (3, 1, 4, 1, 5), (Branch((9, 2), (-1.0, -1.0), 1.0),)),
]


def toy(kind: str) -> Any:
    make_config, make, more = KINDS[kind]
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
        **more,
    )
    return make(config)


def settings(on: bool) -> Config:
    return validate(Config, {"model": {"gradient_checkpointing": on}, "train": {"precision": "float32"}})


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_without(kind: str) -> None:
    """And the log-probabilities are those of a plain forward in eval mode, whatever noise training mode would add."""
    model = toy(kind)
    want = padded_log_probs(copy.deepcopy(model).eval(), TREES)
    found = []
    for on in (False, True):
        policy = Policy(copy.deepcopy(model).train(), None, PolicySettings.from_config(settings(on)))
        layers: list[int] = []
        layer = next(m for m in policy.raw.modules() if isinstance(m, GradientCheckpointingLayer))
        next(layer.children()).register_forward_pre_hook(lambda *_, layers=layers: layers.append(1))
        values = log_probs(policy.model, collate(pack(TREES, 100)[0]))
        torch.testing.assert_close(values, want)
        values.sum().backward()
        assert len(layers) == 1 + on, "a checkpointed layer runs twice"
        found.append([p.grad for p in policy.raw.parameters()])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_a_checkpointed_layer_keeps_its_input_only() -> None:
    kept = []
    for on in (False, True):
        policy = Policy(toy("llama"), None, PolicySettings.from_config(settings(on)))
        sizes: list[int] = []

        def note(x: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            log_probs(policy.model, collate(pack(TREES, 100)[0]))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


def test_a_model_without_such_layers_is_refused() -> None:
    with pytest.raises(UsageError, match=r"model\.gradient_checkpointing = true: Sequential has no layer"):
        recompute_layers(torch.nn.Sequential(torch.nn.Linear(2, 2)))
