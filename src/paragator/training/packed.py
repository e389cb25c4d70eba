"""Groups as trees in packed rows: one prompt, N branches, each token computed once.

A row holds trees one after another, each as its prompt once and then its branches. A branch's position ids continue
from the prompt, and attention (attention.py) lets it see the prompt and itself only, so its log-probabilities are those
that it has alone. Of the logits only those that predict a branch token are computed. There is no padding.

    for row in pack(trees, batch_tokens):           # plan
        batch = collate(row)
        new = log_probs(model, batch, temperature)

Models take part through transformers' attention interface (>= 5.23), loaded with "sdpa".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from paragator.core.errors import UsageError
from paragator.core.types import Stage
from paragator.engines.local.branching import NO_MASK, check_rope, stock_attention, text_config, without_router_logits
from paragator.training.attention import NAME, Layout, Masks, layout
from paragator.training.rows import LOGITS_AT_ONCE, STAGES, PackedRow, Piece


@dataclass(frozen=True, slots=True)
class Batch:
    """A row of T tokens as tensors; B is the number of branch tokens in it.

    input_ids, position_ids [1, T] int64; layout plans the attention of the trees.
    sources [B] index the position that predicts a branch token; targets [B] is the token,
    sampled_logprobs and credit [B] float32 as in `Branch`; stages (into STAGES), trees and branches [B] say whose.
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: Layout
    sources: Tensor
    targets: Tensor
    sampled_logprobs: Tensor
    credit: Tensor
    stages: Tensor
    trees: Tensor
    branches: Tensor

    @property
    def sequences(self) -> Tensor:
        """[B]: which completion of the row a branch token is of, from 0."""
        found: Tensor = torch.stack([self.trees, self.branches]).unique(dim=1, return_inverse=True)[1]
        return found

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        moved: dict[str, Any] = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in values}
        return Batch(**moved)


def collate(row: PackedRow) -> Batch:
    """Turn a planned row into tensors (CPU)."""
    ids: list[int] = []
    positions: list[int] = []
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    for piece in row.pieces:
        prompt = piece.tree.prompt_ids
        root = len(ids)
        ids += prompt
        positions += range(len(prompt))
        for b, branch in enumerate(piece.tree.branches):
            start, count = len(ids), len(branch.token_ids)
            ids += branch.token_ids
            positions += range(len(prompt), len(prompt) + count)
            _add_branch(columns, piece, b, [root + len(prompt) - 1, *range(start, start + count)][:count])
    plan = layout([(len(p.tree.prompt_ids), [len(b.token_ids) for b in p.tree.branches]) for p in row.pieces])
    tensors = {name: torch.tensor(columns[name], dtype=dtype) for name, dtype in _COLUMNS.items()}
    return Batch(torch.tensor([ids]), torch.tensor([positions]), plan, **tensors)


def log_probs(model: Any, batch: Batch, temperature: Mapping[Stage, float] | float = 1.0) -> Tensor:
    """Log-probabilities [B] float32 of the branch tokens under `model`, after each stage's sampling temperature.

    Goes through the model's own forward with `logits_to_keep`, which respects adapters, shards
    (FSDP) and heads that scale or cap their logits; or, where many logits meet a plain head, through
    its hidden states, so that never more than LOGITS_AT_ONCE logits exist. Raises UsageError for an attention that cannot pack.
    """
    use_tree_attention(model, longest=int(batch.position_ids.max()) + 1)
    keep = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    keep[0, batch.sources] = True
    rows = (keep[0].cumsum(0) - 1)[batch.sources]
    temperatures = _temperatures(temperature)
    scale = temperatures.to(batch.input_ids.device)[batch.stages]
    pick = partial(_pick, scaled=bool((temperatures != 1).any()))
    inputs = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "use_cache": False,
        "layout": Masks(batch.layout),
        "attention_mask": NO_MASK,  # or transformers would make one
        **without_router_logits(model),
    }
    vocabulary = text_config(model).vocab_size
    few = rows.numel() * vocabulary <= LOGITS_AT_ONCE
    head, states = _whole, None
    if not few and has_plain_head(model):
        head, rows = without_adapter_wrapper(model).get_output_embeddings(), batch.sources
        sharded = vars(model).get("hidden_states")  # gathers the weights first, see sharded.py
        states = sharded(**inputs) if sharded else hidden_states(model, **inputs)
    if states is None:
        states = model(**inputs, logits_to_keep=keep).logits
    states = states.view(-1, states.shape[-1])
    if few:
        return pick(head, states, rows, batch.targets, scale)
    size = max(1, LOGITS_AT_ONCE // vocabulary)
    chunks = (torch.split(column, size) for column in (rows, batch.targets, scale))
    return torch.cat(list(map(partial(checkpoint, pick, head, states, use_reentrant=False), *chunks)))


def hidden_states(model: Any, **inputs: Any) -> Tensor:
    """What the output layer takes, of all positions."""
    found: Tensor = without_adapter_wrapper(model).base_model(**inputs).last_hidden_state
    return found


def has_plain_head(model: Any) -> bool:
    """Whether the logits are the output layer of the last hidden states and nothing else: tried once a model.

    Not so for a head that scales or caps its logits. A model is tried before it is sharded.
    """
    model = without_adapter_wrapper(model)
    if not isinstance(model, PreTrainedModel):
        return False
    known = getattr(model, "_paragator_plain_head", None)
    if known is None:
        ids, kind = torch.arange(4, device=model.device)[None], model.device.type
        # as in the pass to come, since frozen weights may be in bfloat16; casts made without gradients must not be remembered
        as_it_is = torch.autocast(kind, enabled=torch.is_autocast_enabled(kind), cache_enabled=False)
        with torch.no_grad(), as_it_is:
            expected = model(input_ids=ids, use_cache=False).logits
            found = model.get_output_embeddings()(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
        known = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
        model.__dict__["_paragator_plain_head"] = known  # a plain attribute; nn.Module's are tensors and modules
    return bool(known)


def without_adapter_wrapper(model: Any) -> Any:
    """The model inside peft's wrapper; its layers hold the adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def use_tree_attention(model: Any, longest: int) -> None:
    """Have `model` attend by `tree_attention`; UsageError unless it can, for sequences of `longest` tokens."""
    config = text_config(model)
    name = config._attn_implementation
    if name not in (stock_attention(model), NAME):
        wanted = stock_attention(model)
        raise UsageError(f"attn_implementation = {name!r} cannot attend in packed rows: load the model with {wanted!r}")
    config._attn_implementation = NAME
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise UsageError(f"layers of type {min(kinds)!r} cannot be packed: use a model with attention in every layer")
    check_rope(config, longest)


_COLUMNS = {
    "sources": torch.long,
    "targets": torch.long,
    "sampled_logprobs": torch.float32,
    "credit": torch.float32,
    "stages": torch.long,
    "trees": torch.long,
    "branches": torch.long,
}


def _add_branch(columns: dict[str, list[Any]], piece: Piece, index: int, sources: list[int]) -> None:
    """Append one branch's tokens to the per-token columns of a batch."""
    branch, count = piece.tree.branches[index], len(sources)
    columns["sources"] += sources
    columns["targets"] += branch.token_ids
    columns["sampled_logprobs"] += branch.logprobs
    columns["credit"] += [branch.credit] * count
    columns["stages"] += [STAGES.index(piece.tree.stage)] * count
    columns["trees"] += [piece.tree_id] * count
    columns["branches"] += [piece.branch_ids[index]] * count


def _pick(head: Any, states: Tensor, rows: Tensor, targets: Tensor, scale: Tensor, scaled: bool) -> Tensor:
    """log softmax(head(states[rows]) / scale)[targets], [B], in float32 or better."""
    # indexing by [rows] would add gradients up in any order, with several threads
    logits = head(states.index_select(0, rows))
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if scaled:
        precise = precise / scale[:, None]
    return -functional.cross_entropy(precise, targets, reduction="none")


def _whole(logits: Tensor) -> Tensor:
    """The head of states that are logits already."""
    return logits


def _temperatures(temperature: Mapping[Stage, float] | float) -> Tensor:
    """One float32 temperature per entry of STAGES."""
    values = [temperature.get(s, 1.0) if isinstance(temperature, Mapping) else temperature for s in STAGES]
    if min(values) <= 0:
        raise UsageError(f"temperature = {min(values)}: log-probabilities need a temperature above 0")
    return torch.tensor(values)
