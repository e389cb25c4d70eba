"""Attention of rows that share prompts, against each row's own plain attention to all that it may see."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from paragator.engines.local.branching import SharedPrefixCache, branch_attention

HEADS, KEYS, SIZE, WIDTH, ROOM = 4, 2, 8, 7, 6
PROMPTS = [7, 3, 5, 1, 6]
"""Lengths; those below WIDTH are padded on the left."""


def alone(q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
    """One row: q [H, D], k and v [K, L, D]."""
    k, v = (x.repeat_interleave(HEADS // KEYS, 0) for x in (k, v))
    return ((q[:, None] * k).sum(-1) * scaling).softmax(-1)[:, None].matmul(v)[:, 0]


@pytest.mark.parametrize("counts", [[3, 3, 3, 3, 3], [1, 4, 2, 1, 3]])
@pytest.mark.parametrize("keeps", [[], [range(6)], [range(5, 9), range(1, 3)], [range(0, 9, 4)]])
def test_equals_every_rows_own_attention_as_rows_and_prompts_leave(counts: list[int], keeps: list[range]) -> None:
    torch.manual_seed(0)
    prompt_keys, prompt_values = torch.randn(2, len(PROMPTS), KEYS, WIDTH, SIZE)
    cache: Any = DynamicCache()
    cache.update(prompt_keys, prompt_values, 0)
    padded = torch.arange(WIDTH) < WIDTH - torch.tensor(PROMPTS)[:, None]
    owner = torch.repeat_interleave(torch.arange(len(PROMPTS)), torch.tensor(counts))
    branches = SharedPrefixCache(cache, owner, padded, ROOM)
    own_keys = own_values = torch.zeros(len(owner), KEYS, 0, SIZE)
    for step in range(ROOM):
        if 0 < step <= len(keeps):
            rows = torch.tensor(list(keeps[step - 1]))
            branches.keep(rows)
            owner, own_keys, own_values = owner[rows], own_keys[rows], own_values[rows]
        query = torch.randn(len(owner), HEADS, 1, SIZE)
        new = torch.randn(2, len(owner), KEYS, 1, SIZE)
        own_keys, own_values = torch.cat([own_keys, new[0]], 2), torch.cat([own_values, new[1]], 2)
        module = SimpleNamespace(layer_idx=0)
        found, _ = branch_attention(module, query, *cache.update(*new, 0), None, scaling=0.3, branches=branches)
        for row, p in enumerate(owner.tolist()):
            seen = slice(WIDTH - PROMPTS[p], None)
            k = torch.cat([prompt_keys[p, :, seen], own_keys[row]], 1)
            v = torch.cat([prompt_values[p, :, seen], own_values[row]], 1)
            torch.testing.assert_close(found[row, 0], alone(query[row, :, 0], k, v, 0.3))
        assert cache.get_seq_length() == WIDTH + step + 1
    assert len(branches.padded) == (len(set(owner.tolist())) if keeps else len(PROMPTS))
