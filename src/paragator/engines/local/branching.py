"""Shared-prefix decoding: a prompt's keys and values are stored once and read once for all of its rows.

A row's keys are its prompt's and its own. Scores against a prompt are one product for all rows of it; the softmax goes
over both parts together, so the result is plain attention. Per token it reads (prompts x their length + rows x what they
have sampled) keys, where a cache of whole rows reads rows x (prompt + sampled).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache, DynamicLayer

from paragator.core.errors import UsageError

NAME = "paragator_branches"
"""As transformers' attn_implementation, while rows are decoded."""
NO_MASK = torch.zeros(1, 1, 1, 0)
"""A mask that makes transformers build none. Only attention that masks for itself can use it."""
DROP_BELOW = 0.75
"""Prompts without rows are dropped once fewer than this share of the stored prompts has any."""


class SharedPrefixLayer(DynamicLayer):
    """One layer's keys and values: of the prompts [P, K, W, D], and of what the rows sampled, [B, K, at most `room`, D]."""

    def __init__(self, filled: DynamicLayer, rows: int, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        keys, values = filled.keys, filled.values
        assert keys is not None and values is not None, "a prefilled layer has keys and values"
        self.lazy_initialization(keys, values)
        self.prompt_keys, self.prompt_values = keys, values
        self.buffers = tuple(x.new_empty(rows, x.shape[1], room, x.shape[3]) for x in (keys, values))
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append in place; the rows' own keys and values so far."""
        start, self.length = self.length, self.length + key_states.shape[-2]
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self.length] = states
        own_keys, own_values = (buffer[:, :, : self.length] for buffer in self.buffers)
        return own_keys, own_values

    def get_seq_length(self) -> int:
        return self.prompt_keys.shape[-2] + self.length

    def keep(self, rows: Tensor, prompts: Tensor | None) -> None:
        self.buffers = tuple(buffer[rows] for buffer in self.buffers)
        if prompts is not None:
            self.prompt_keys, self.prompt_values = self.prompt_keys[prompts], self.prompt_values[prompts]


class SharedPrefixCache:
    """Which of P stored prompts each of B rows continues, and a cache in which only the rows grow.

    cache   as the prefill of the prompts left it; its layers are replaced
    prompt  [B] each row's prompt; rows of one prompt stand together, in the prompts' order
    padded  [P, W] True where a prompt is padding
    room    how many tokens a row may add
    """

    def __init__(self, cache: Any, prompt: Tensor, padded: Tensor, room: int) -> None:
        self.cache = cache
        self.cache.layers = [SharedPrefixLayer(layer, len(prompt), room) for layer in cache.layers]
        self.prompt, self.padded = prompt, padded
        self.arrange()

    def arrange(self) -> None:
        """Give each row a place in a grid of P prompts by n rows, n being the most rows of a prompt."""
        prompts, counts = len(self.padded), torch.bincount(self.prompt, minlength=len(self.padded))
        self.width = int(counts.max())
        first = (counts.cumsum(0) - counts)[self.prompt]
        rows = torch.arange(len(self.prompt), device=self.prompt.device)
        self.place = self.prompt * self.width + rows - first
        self.row = torch.zeros(prompts * self.width, dtype=torch.long, device=rows.device)
        self.row[self.place] = rows
        self.full = len(rows) == len(self.row)
        self.mask = self.padded[:, None, None] if bool(self.padded.any()) else None

    def keep(self, rows: Tensor) -> None:
        """Keep these rows [at most B], in this order, and drop the others."""
        self.prompt = self.prompt[rows]
        used, prompt = torch.unique(self.prompt, return_inverse=True)
        drop = len(used) < DROP_BELOW * len(self.padded)
        for layer in self.cache.layers:
            layer.keep(rows, used if drop else None)
        if drop:
            self.prompt, self.padded = prompt, self.padded[used]
        self.arrange()

    def by_prompt(self, x: Tensor) -> Tensor:
        """[B, K, G, X] of the rows as [P, K, n G, X]; where a prompt has fewer than n rows, some row stands in."""
        placed = x if self.full else x.index_select(0, self.row)
        return placed.view(len(self.padded), self.width, *x.shape[1:]).transpose(1, 2).flatten(2, 3)

    def by_row(self, x: Tensor) -> Tensor:
        """The inverse of `by_prompt`."""
        split = x.view(*x.shape[:2], self.width, x.shape[2] // self.width, x.shape[3]).transpose(1, 2).flatten(0, 1)
        return split if self.full else split.index_select(0, self.place)


def text_config(model: Any) -> Any:
    """The text model's config, also of a wrapped model."""
    return getattr(model, "module", model).config.get_text_config()


def stock_attention(model: Any) -> str:
    """transformers' own attention that a model is loaded with: sdpa, or eager where sdpa lacks what its scores need."""
    inner = getattr(model, "module", model)
    inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return "sdpa" if getattr(inner, "_supports_sdpa", True) else "eager"


def can_branch(model: Any, cache: Any) -> bool:
    """Whether this model attends in every layer through transformers' attention interface, and keeps all keys."""
    compressed = getattr(text_config(model), "kv_lora_rank", None)  # what is cached are no keys yet
    through_interface = bool(getattr(model, "_supports_attention_backend", False)) and not compressed
    return through_interface and all(type(layer) is DynamicLayer for layer in cache.layers)


@contextmanager
def attending(model: Any) -> Iterator[None]:
    """`branch_attention` in all layers of `model`."""
    config = text_config(model)
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def without_router_logits(model: Any) -> dict[str, bool]:
    """What keeps a mixture of experts from computing a loss of its router, which its config may ask for."""
    return {"output_router_logits": False} if hasattr(text_config(model), "output_router_logits") else {}


def full_cache(model: Any) -> DynamicCache | None:
    """A cache that keeps what windows no longer show, for models with windows and nothing else that is special; else None.

    `branch_attention` shows each layer its window; transformers' own cache of such a layer drops the rest, and cannot be shared.
    """
    config = text_config(model)
    kinds = set(getattr(config, "layer_types", None) or ())
    plain = kinds <= {"full_attention", "sliding_attention"} and not getattr(config, "num_kv_shared_layers", 0)
    return DynamicCache() if plain and getattr(config, "sliding_window", None) else None


def window_of(module: Any, more: Mapping[str, Any]) -> int | None:
    """How far a layer of attention sees: a key at this distance is hidden; None where it sees all.

    Most models tell their attention; some only make their masks by the config.
    """
    if "sliding_window" in more:
        found: int | None = more["sliding_window"]
        return found
    config = getattr(module, "config", None)
    if not hasattr(sys.modules[type(module).__module__], "create_sliding_window_causal_mask"):
        return None
    kinds = getattr(config, "layer_types", None)
    sliding = kinds is None or kinds[module.layer_idx] == "sliding_attention"
    return getattr(config, "sliding_window", None) if sliding else None


def rope_limit(config: Any) -> int | None:
    """Tokens beyond which rotary frequencies depend on a sequence's length, so that no cache and no packed row is right."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    limits = []
    for each in nested:
        original = each.get("original_max_position_embeddings") or getattr(
            config, "original_max_position_embeddings", None
        )
        if each.get("rope_type") == "longrope":
            limits.append(original or config.max_position_embeddings)
        elif each.get("rope_type") == "dynamic":
            limits.append(config.max_position_embeddings)
    return min(limits, default=None)


def check_rope(config: Any, longest: int) -> None:
    """UsageError where a sequence of so many tokens has other rotary frequencies than its beginning had."""
    limit = rope_limit(config)
    if limit is not None and longest > limit:
        raise UsageError(
            f"{longest} tokens exceed {limit}, where this model's rotary frequencies change: shorten prompts or completions"
        )


def check_plain(more: Mapping[str, Any]) -> None:
    """UsageError for scores that depend on where queries and keys lie; `more` is what a model gives its attention."""
    if more.get("position_bias") is not None:
        raise UsageError("attention with position_bias cannot share prompts: use a model with plain attention")


def capped(scores: Tensor, cap: float | None) -> Tensor:
    """Scores between -cap and cap (Gemma 2), before anything is masked."""
    return scores if cap is None else (scores / cap).tanh() * cap


def weights_of(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """softmax of scores [B, K, Q, X] in float32 or better; with sinks [H] (gpt-oss) each head has a key more, of no value.

    Q lists the queries of H / K heads, head by head.
    """
    precise = torch.promote_types(scores.dtype, torch.float32)
    if sinks is None:
        return scores.softmax(-1, dtype=precise)
    per_head = sinks.view(scores.shape[1], -1).repeat_interleave(scores.shape[2] * scores.shape[1] // len(sinks), 1)
    sink = per_head[None, :, :, None].expand(len(scores), -1, -1, -1).to(scores.dtype)
    return torch.cat([scores, sink], -1).softmax(-1, dtype=precise)[..., :-1]


def branch_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    branches: SharedPrefixCache | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """query [B, H, 1, D], the rows' own key and value [B, K, t, D]: attention to prompt and own, [B, 1, H, D].

    The signature is transformers' attention interface's.
    """
    check_plain(more)
    if branches is None:
        raise UsageError(
            "the model passes no further arguments to its attention, so it cannot be sampled in process: use vLLM"
        )
    layer = branches.cache.layers[module.layer_idx]
    rows, heads, _, size = query.shape
    q = query.reshape(rows, key.shape[1], -1, size) * (size**-0.5 if scaling is None else scaling)
    prompt_keys, prompt_values, mask = layer.prompt_keys, layer.prompt_values, branches.mask
    if window := window_of(module, more):  # all rows are at one distance from their prompts' last tokens
        hidden = max(0, prompt_keys.shape[2] + key.shape[2] - window)
        prompt_keys, prompt_values = prompt_keys[:, :, hidden:], prompt_values[:, :, hidden:]
        mask = None if mask is None else mask[..., hidden:]
        key, value = key[:, :, -window:], value[:, :, -window:]
    to_prompt = capped(branches.by_prompt(q) @ prompt_keys.transpose(-1, -2), more.get("softcap"))
    if mask is not None:
        to_prompt = to_prompt.masked_fill(mask, -torch.inf)
    to_own = capped(q @ key.transpose(-1, -2), more.get("softcap"))
    weights = weights_of(torch.cat([branches.by_row(to_prompt), to_own], -1), more.get("s_aux")).to(value.dtype)
    of_prompt, of_own = weights[..., : to_prompt.shape[-1]], weights[..., to_prompt.shape[-1] :]
    found = branches.by_row(branches.by_prompt(of_prompt) @ prompt_values) + of_own @ value
    return found.reshape(rows, 1, heads, -1), None


AttentionInterface.register(NAME, branch_attention)
