"""Random models of stock architectures, and trees of random tokens, small enough to compare everything with an oracle."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from paragator.engines.local.branching import without_router_logits
from paragator.training.packed import collate, log_probs
from paragator.training.rows import Branch, Tree, pack

VOCAB = 23


def toy(kind: str = "Llama", **extra: Any) -> Any:
    """A random two-layer model; `kind` is the prefix of a stock architecture's classes."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "sdpa"}
    more = {"initializer_range": 0.5, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    made = getattr(transformers, "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config")
    config = made(**(sizes | heads | more | extra))
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def tree(prompt: int, *branches: int, stage: Any = "generate", seed: int = 0) -> Tree:
    rng = random.Random(f"{prompt}:{branches}:{seed}")
    ids = [tuple(rng.randrange(VOCAB) for _ in range(n)) for n in branches]
    made = [Branch(t, tuple(-rng.random() for _ in t), rng.uniform(-1, 1)) for t in ids]
    return Tree(stage, tuple(rng.randrange(VOCAB) for _ in range(prompt)), tuple(made))


TREES = [tree(5, 3, 1, 7), tree(9, 4, 4, 2, 6, 5, stage="aggregate"), tree(1, 8), tree(3, 12, 11), tree(2, 1)]


def packed_log_probs(model: Any, trees: list[Tree], budget: int, temperature: Any = 1.0) -> Tensor:
    """Packed log-probabilities in the oracle's order: trees, branches, tokens."""
    batches = [collate(row) for row in pack(trees, budget)]
    values = torch.cat([log_probs(model, b, temperature) for b in batches])
    keys = torch.cat([b.trees * 1000 + b.branches for b in batches])
    return values[keys.argsort(stable=True)]


def padded_log_probs(model: Any, trees: Sequence[Tree], temperature: Any = 1.0) -> Tensor:
    """The slow oracle of `log_probs`: one padded row per branch, ordinary causal attention, full logits.

    Returns [B] in the order trees, their branches, their tokens.
    """
    rows = [(tree, branch) for tree in trees for branch in tree.branches]
    length = max(len(tree.prompt_ids) + len(branch.token_ids) for tree, branch in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long, device=model.device)
    mask = torch.zeros_like(ids)
    for r, (tree, branch) in enumerate(rows):
        tokens = torch.tensor(tree.prompt_ids + branch.token_ids)
        ids[r, : len(tokens)], mask[r, : len(tokens)] = tokens, 1
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **without_router_logits(model)).logits
    out = []
    for r, (tree, branch) in enumerate(rows):
        first, count = len(tree.prompt_ids), len(branch.token_ids)
        scaled = logits[r, first - 1 : first + count - 1].to(torch.promote_types(logits.dtype, torch.float32))
        divisor = temperature[tree.stage] if isinstance(temperature, dict) else temperature
        logprobs = (scaled / divisor).log_softmax(-1)
        out.append(logprobs.gather(-1, ids[r, first : first + count, None])[:, 0])
    return torch.cat(out)


def gradients(model: Any, value: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()
