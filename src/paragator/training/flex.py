"""Attention of packed trees on CUDA by FlexAttention: one kernel for the whole row, which skips blocks that are masked.

It needs neither copies of a prompt's keys for its branches nor padding to equal lengths, both of which attention.py's
calls of sdpa need (`benchmarks/gpu.py` has the difference). Used in bfloat16 and float16; float32 stays with sdpa.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128
"""Queries and keys that a kernel takes at a time; a block that is masked throughout costs nothing."""
ANY_LENGTH: dict[str, Any] = {"dynamic": True, "fullgraph": True}
"""Past its limit of recompilations torch would compute every score of the row's square; with fullgraph that is an error."""
RECOMPILE_LIMIT = 64
"""Kernels a process: torch's own limit of 8 is that of all models together."""
TreeShape = tuple[int, Sequence[int]]


def usable(device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int]) -> bool:
    """Whether the kernel serves scores of this type on this device; `heads` are those of queries, of keys, and their size."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and compiles(device, dtype, heads)


@cache
def compiles(device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int]) -> bool:
    """Tried once, on a small row: Triton needs a C compiler, and a card may lack the memory for large heads."""
    queries, keys, size = heads
    trees, tokens = [(BLOCK, [BLOCK, BLOCK // 2])], BLOCK * 5 // 2
    try:
        with torch.enable_grad():
            q, k, v = (
                torch.zeros(1, n, tokens, size, device=device, dtype=dtype, requires_grad=True)
                for n in (queries, keys, keys)
            )
            attend(q, k, v, block_mask(trees, device), None).sum().backward()
    except torch.OutOfMemoryError:  # of the moment, not of the kernel
        raise
    except Exception as error:  # noqa: BLE001 - whatever a compiler raises; training goes on with the slower kernels
        warnings.warn(f"FlexAttention does not work here, sdpa is used, which is slower: {reason(error)}", stacklevel=2)
        return False
    return True


def reason(error: Exception) -> str:
    """What a compiler's error says, in a line."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def seen(trees: Sequence[TreeShape], window: int | None = None) -> Tensor:
    """[3, T]: a token sees keys from the first number to before the second (its prompt), from the third on (its own), and
    none after itself. A window moves the first and the third.

    T is padded to whole blocks, two at least, with tokens that see themselves.
    """
    rows, at = [], 0
    for prompt, branches in trees:
        end, start = at + prompt, at
        for place, length in [(0, prompt), *((prompt, n) for n in branches)]:
            row = torch.tensor([start, end, at])[:, None].repeat(1, length)
            if window:
                nearest = torch.arange(length) - window + 1
                row[0] = row[0].maximum(start + place + nearest)
                row[2] = row[2].maximum(at + nearest)
            rows.append(row)
            at += length
    alone = torch.arange(at, max(at + -at % BLOCK, 2 * BLOCK))
    return torch.cat([*rows, alone.expand(3, -1)], 1)


def block_mask(trees: Sequence[TreeShape], device: torch.device, window: int | None = None) -> BlockMask:
    """The mask of a row of trees, each its prompt and then its branches: which blocks are seen at all, and which wholly."""
    first, end, own = seen(trees, window).to(device).unbind()

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k >= first[q]) & ((k < end[q]) | (k >= own[q])) & (k <= q)

    token = torch.arange(len(own), device=device)[:, None]
    low = torch.arange(0, len(own), BLOCK, device=device)
    high = low + BLOCK
    until = torch.minimum(end[:, None], token + 1)
    some = ((low < until) & (high > first[:, None])) | ((low <= token) & (high > own[:, None]))
    every = ((low >= first[:, None]) & (high <= until)) | ((low >= own[:, None]) & (high <= token + 1))
    some, every = some.unflatten(0, (-1, BLOCK)).any(1), every.unflatten(0, (-1, BLOCK)).all(1)
    (partly, which), (wholly, those) = listed(some & ~every), listed(every)
    return BlockMask.from_kv_blocks(
        partly, which, wholly, those, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(len(own), len(own))
    )


def listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """[Q, K] bool as BlockMask has it: how many of each row, and their indices first."""
    order = torch.argsort(blocks.int(), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: float | None) -> Tensor:
    """query [1, H, T, D], key and value [1, K, T, D]: [1, T, H, D]."""
    tokens = query.shape[2]
    room = (0, 0, 0, mask.seq_lengths[0] - tokens)
    # contiguous: strides that vary would be compiled anew
    q, k, v = (functional.pad(x, room).contiguous() for x in (query, key, value))
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    kernel = compiled() if q.device.type == "cuda" else flex_attention  # uncompiled it is an oracle, without gradients
    with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
        found: Any = kernel(q, k, v, block_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1])
    out: Tensor = found[:, :, :tokens].transpose(1, 2)
    return out


@cache
def compiled() -> Any:
    """The kernel: compiled for rows of any length, once or twice with gradients and without, for each kind of model."""
    return torch.compile(flex_attention, **ANY_LENGTH)
