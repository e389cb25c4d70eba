"""Attention of packed trees: a prompt attends to itself, a branch to its prompt and itself, and nothing else is computed.

The tokens of many trees lie in one row; `layout` plans kernel calls that each serve trees of similar shape, and
`tree_attention` makes them in every layer. A branch's keys are its prompt's, repeated only inside the call, and its own.
Cost and memory are thus linear in the branches and in the prompt's length times theirs; no mask over the whole row exists.
In bfloat16 on CUDA one FlexAttention kernel takes the calls' place (flex.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import CausalBias, causal_lower_right
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from paragator.engines.local.branching import capped, check_plain, weights_of, window_of
from paragator.training import flex
from paragator.training.rows import TOGETHER

NAME = "paragator_tree"
"""As transformers' attn_implementation: with a layout this module's attention, without one exactly sdpa."""
ALIKE = 0.75
"""Prompts (branches) share a call when the shortest has this share of the longest's tokens: padding is computed too."""
TreeShape = flex.TreeShape
"""A tree's prompt tokens, and those of each branch."""


@dataclass(frozen=True, slots=True)
class Branches:
    """B branches of similar length, padded to L, in the order of the call's prompts, of which each has counts[r].

    tree [B] says which prompt is whose;
    prompts [B] are the prompts' lengths; None where none is padded. mask is made by `Layout.ready`.
    """

    length: int
    counts: tuple[int, ...]
    tree: Tensor
    prompts: Tensor | None
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True)
class SdpaCall:
    """R prompts of similar length, padded to P, and their branches. A mask of the prompts only where causal is not all."""

    count: int
    length: int
    branches: tuple[Branches, ...]
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a row's T tokens lie in the M slots of the padded calls: each call's prompts, then its branches.

    token [M] is the row's token of a slot, padding [M, 1] bool where there is none, slot [T] the slot of a token;
    trees are what was planned. With a `block` mask one kernel serves the row as it is, and the calls are not made.
    """

    trees: tuple[TreeShape, ...]
    calls: tuple[SdpaCall, ...]
    token: Tensor
    padding: Tensor
    slot: Tensor
    block: BlockMask | None = None

    def ready(
        self,
        device: torch.device,
        dtype: torch.dtype,
        heads_per_key: int = 1,
        window: int | None = None,
        *,
        fused: bool | None = None,
        block: bool = False,
    ) -> Layout:
        """The same on a device, with its masks: numbers to add to the scores, in their type, shared by all layers.

        They are written once for each head that shares a key, whose queries `tree_attention` lines up. Where the kernel
        knows how to be causal itself (`fused`; by default on CUDA), a mask that only says so is not written. For
        FlexAttention its `block` mask is all. With a window a token sees those at less than that distance.
        """
        if block:
            return replace(self, block=flex.block_mask(self.trees, device, window))
        fused = device.type == "cuda" if fused is None else fused

        def made(part: Branches, prompt: int) -> Branches:
            narrow = window if window and prompt + part.length > window else None
            if fused and part.prompts is None and narrow is None:
                mask: Tensor = causal_lower_right(part.length, prompt + part.length)
            else:
                sizes = None if part.prompts is None else part.prompts.to(device)
                mask = mask_of(sizes, prompt, part.length, device, dtype, narrow).repeat(1, 1, heads_per_key, 1)
            return Branches(part.length, part.counts, part.tree.to(device), part.prompts, mask)

        def call(of: SdpaCall) -> SdpaCall:
            banded = window is not None and of.length > window
            mask = mask_of(None, 0, of.length, device, dtype, window).repeat(1, 1, heads_per_key, 1) if banded else None
            return SdpaCall(of.count, of.length, tuple(made(b, of.length) for b in of.branches), mask)

        token, padding, slot = (x.to(device) for x in (self.token, self.padding, self.slot))
        return Layout(self.trees, tuple(call(c) for c in self.calls), token, padding, slot)


@dataclass(frozen=True, slots=True)
class Masks:
    """The layouts that a model's layers ask for: each kind is made for the first layer of it, and kept for the others."""

    layout: Layout
    kept: dict[tuple[Any, ...], Layout] = field(default_factory=dict)

    def of(self, query: Tensor, key: Tensor, value: Tensor, window: int | None, own: bool = False) -> Layout:
        """For heads of these shapes [1, heads, T, size] and this window; None sees all. `own`: scores are computed here."""
        longest = max(prompt + max(branches, default=0) for prompt, branches in self.layout.trees)
        window = window if window and window < longest else None
        dtype = autocast_type(query.device, query.dtype)
        heads = (query.shape[1], key.shape[1], query.shape[3])
        alike = value.shape[3] == query.shape[3] and not own
        kind = (query.device, dtype, heads, alike, own, window)
        if kind not in self.kept:
            block = alike and flex.usable(query.device, dtype, heads)
            fused = None if alike else False  # kernels that are causal themselves want one size
            per_key = 1 if own else heads[0] // heads[1]
            self.kept[kind] = self.layout.ready(query.device, dtype, per_key, window, fused=fused, block=block)
        return self.kept[kind]


def layout(trees: Sequence[TreeShape]) -> Layout:
    """Plan the attention of trees that lie one after another, each as its prompt and then its branches."""
    starts, at = [], 0
    for prompt, branches in trees:
        starts.append(at)
        at += prompt + sum(branches)
    calls, token = [], []
    for group in alike([prompt for prompt, _ in trees]):
        length = max(trees[t][0] for t in group)
        token += [padded(starts[t], trees[t][0], length) for t in group]
        ends, owners = [], []
        for r, t in enumerate(group):
            start = starts[t] + trees[t][0]
            for size in trees[t][1]:
                ends.append((start, size))
                owners.append(r)
                start += size
        even = all(trees[t][0] == length for t in group)
        parts = []
        for members in alike([size for _, size in ends], together=len(ends)):
            longest = max(ends[b][1] for b in members)
            members.sort()
            token += [padded(*ends[b], longest) for b in members]
            tree = torch.tensor([owners[b] for b in members])
            counts = tuple(torch.bincount(tree, minlength=len(group)).tolist())
            prompts = None if even else torch.tensor([trees[group[owners[b]]][0] for b in members])
            parts.append(Branches(longest, counts, tree, prompts))
        calls.append(SdpaCall(len(group), length, tuple(parts)))
    slots = torch.cat(token)
    slot = torch.empty(at, dtype=torch.long)
    real = (slots >= 0).nonzero()[:, 0]
    slot[slots[real]] = real
    return Layout(tuple(trees), tuple(calls), slots.clamp(min=0), (slots < 0)[:, None], slot)


def alike(sizes: Sequence[int], together: int | None = None) -> list[list[int]]:
    """Indices in groups of similar size, the largest first: see ALIKE, and TOGETHER where a group's size is not given."""
    groups: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        longest = sizes[groups[-1][0]] if groups else 0
        if groups and sizes[i] >= ALIKE * longest and len(groups[-1]) < (together or TOGETHER // longest):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def padded(start: int, count: int, length: int) -> Tensor:
    """Positions [length]: `count` from `start`, then -1."""
    out = torch.full((length,), -1)
    out[:count] = torch.arange(start, start + count)
    return out


def mask_of(
    prompts: Tensor | None,
    length: int,
    longest: int,
    device: torch.device,
    dtype: torch.dtype,
    window: int | None = None,
) -> Tensor:
    """[B or 1, 1, L, P + L], 0 or -inf: a branch sees its prompt (`prompts` [B] tokens of P = `length`), and is causal within
    itself (L = `longest`); of both what is less than a window away."""
    own = torch.full((longest, longest), -torch.inf, device=device, dtype=dtype).triu(1)
    if window:
        own = own + torch.full_like(own, -torch.inf).tril(-window)
    count = 1 if prompts is None else len(prompts)
    prompt = torch.zeros(count, longest, length, device=device, dtype=dtype)
    column = torch.arange(length, device=device)
    if prompts is not None:
        prompt.masked_fill_((column >= prompts[:, None])[:, None], -torch.inf)
    if window:
        ends = torch.tensor([length], device=device) if prompts is None else prompts
        place = ends[:, None] + torch.arange(longest, device=device)
        prompt.masked_fill_(place[:, :, None] - column >= window, -torch.inf)
    return torch.cat([prompt, own.expand(count, -1, -1)], 2)[:, None]


class Gather(torch.autograd.Function):
    """x[index] along the first axis, whose gradient is a gather too: `back` says where each row of x went.

    `hidden` are the rows of x that nothing asks for. (index_select alone adds gradients up, row by row.)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor, hidden: Tensor | None) -> Tensor:
        ctx.back, ctx.hidden = back, hidden
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        found = grad.index_select(0, ctx.back)
        return found if ctx.hidden is None else found.masked_fill_(ctx.hidden, 0), None, None, None


gather: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] = Gather.apply


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | Masks | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """query [1, H, T, D], key [1, K, T, D] and value [1, K, T, E]: attention of the row that `layout` plans, [1, T, H, E].

    The signature is transformers' attention interface's. Raises UsageError for scores that are not computed here.
    """
    own = more.get("softcap") is not None or more.get("s_aux") is not None
    if layout is None and own:
        return scored(query, key, value, attention_mask, scaling, more).transpose(1, 2), None
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **more)
    check_plain(more)
    if isinstance(layout, Masks):
        layout = layout.of(query, key, value, window_of(module, more), own)
    if layout.block is not None:
        kind = autocast_type(query.device, query.dtype)
        return flex.attend(query.to(kind), key.to(kind), value.to(kind), layout.block, scaling), None
    return by_calls(layout, (query, key, value), scaling, dropout, more if own else None), None


def by_calls(
    layout: Layout,
    inputs: tuple[Tensor, Tensor, Tensor],
    scaling: float | None,
    dropout: float,
    own: Mapping[str, Any] | None,
) -> Tensor:
    """The same by the calls of a layout. `own` is what a model gives an attention whose scores are computed here."""
    query, key, value = inputs
    tokens = query.shape[2]
    sizes = [t.shape[1] * t.shape[3] for t in (query, key, value)]
    row = torch.cat([t[0].transpose(0, 1).reshape(tokens, -1) for t in (query, key, value)], 1)
    queries, keys, values = gather(row, layout.token, layout.slot, None).split(sizes, 1)
    heads, groups, width, wide = query.shape[1], key.shape[1], query.shape[3], value.shape[3]
    options: dict[str, Any] = {"dropout_p": dropout, "scale": scaling}

    def slots(of: Tensor, start: int, count: int, length: int, size: int = width) -> Tensor:
        """[count, heads, length, size] of a run of slots."""
        return of[start : start + count * length].view(count, length, -1, size).transpose(1, 2)

    def seen(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | CausalBias | None) -> Tensor:
        """What queries [B, H, L, D] find, [B L, H E]."""
        if own is not None:
            found = scored(q, k, v, mask, scaling, own)
        elif mask is None:
            found = attend(q, k, v, None, is_causal=True, enable_gqa=heads != groups, **options)
        elif isinstance(mask, CausalBias):  # it chooses its kernel before autocast would have its say
            q, k, v = (x.to(autocast_type(x.device, x.dtype)) for x in (q, k, v))
            found = attend(q, k, v, mask, enable_gqa=heads != groups, **options)
        else:  # heads that share keys become further queries of them: fewer and larger products
            found = attend(q.reshape(len(q), groups, -1, width), k, v, mask, **options)
            found = found.reshape(len(q), heads, -1, wide)
        return found.transpose(1, 2).reshape(-1, heads * wide)

    out, at = [], 0
    for call in layout.calls:
        shape = (call.count, call.length)
        k, v = slots(keys, at, *shape), slots(values, at, *shape, wide)
        out.append(seen(slots(queries, at, *shape), k, v, call.mask))
        at += call.count * call.length
        for part in call.branches:
            shape = (len(part.tree), part.length)
            k2 = torch.cat([repeated(k, part), slots(keys, at, *shape)], 2)
            v2 = torch.cat([repeated(v, part), slots(values, at, *shape, wide)], 2)
            out.append(seen(slots(queries, at, *shape), k2, v2, part.mask))
            at += len(part.tree) * part.length
    found = gather(torch.cat(out), layout.slot, layout.token, layout.padding)
    return found.view(1, tokens, heads, wide)


def scored(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, more: Mapping[str, Any]
) -> Tensor:
    """Attention with the soft cap or the sinks that a model asks for, which no kernel of sdpa has: [B, H, L, E].

    A mask of None is causal; bool ones say what is seen, others are added.
    """
    (count, heads, length, size), groups = query.shape, key.shape[1]
    q = query.reshape(count, groups, -1, size) * (size**-0.5 if scaling is None else scaling)
    scores = capped(q @ key.transpose(-1, -2), more.get("softcap")).view(count, heads, length, -1)
    if mask is None and length > 1:
        mask = torch.ones(length, scores.shape[-1], dtype=torch.bool, device=q.device).tril(scores.shape[-1] - length)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    weights = weights_of(scores.view(count, groups, -1, scores.shape[-1]), more.get("s_aux")).to(value.dtype)
    return (weights @ value).view(count, heads, length, -1)


def autocast_type(device: torch.device, otherwise: torch.dtype) -> torch.dtype:
    """The type in which autocast multiplies on a device; `otherwise` where it is off."""
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else otherwise


class Repeat(torch.autograd.Function):
    """x[tree] along the first axis, for counts[r] neighbours of each r.

    index_select's own backward is 10 times as slow where gradients are views, as those of attention are.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, tree: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.counts = counts
        return x.index_select(0, tree)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return torch.stack([part.sum(0) for part in grad.split(ctx.counts)]), None, None


repeat: Callable[[Tensor, Tensor, tuple[int, ...]], Tensor] = Repeat.apply


def repeated(prompts: Tensor, part: Branches) -> Tensor:
    """prompts [R, K, P, D] as [B, K, P, D], each branch's own; a single prompt is expanded, not copied."""
    if len(prompts) == 1:
        return prompts.expand(len(part.tree), -1, -1, -1)
    return repeat(prompts, part.tree, part.counts)


attend = functional.scaled_dot_product_attention
AttentionInterface.register(NAME, torch.compiler.disable(tree_attention))  # called whole where layers are compiled
AttentionMaskInterface.register(NAME, sdpa_mask)
