"""FlexAttention's mask of packed trees: its blocks against the mask itself, and what it computes against the calls of sdpa."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from paragator.training import flex
from paragator.training.attention import layout, tree_attention

CPU = torch.device("cpu")
SMALL = [(5, [3, 1, 7]), (9, [4, 4, 2, 6, 5]), (1, [8]), (2, [1])]
LARGE = [(300, [40, 12, 200]), (128, [128, 128, 5]), (1, [700]), (500, [3, 3, 3])]


def by_hand(trees: list[flex.Shape]) -> torch.Tensor:
    """[T, T]: a branch sees its prompt and itself, nothing after."""
    where = [(t, b) for t, (p, bs) in enumerate(trees) for b, n in [(-1, p), *enumerate(bs)] for _ in range(n)]
    out = torch.zeros(len(where), len(where), dtype=torch.bool)
    for q, (tree, branch) in enumerate(where):
        for k in range(q + 1):
            out[q, k] = where[k][0] == tree and where[k][1] in (-1, branch)
    return out


@pytest.mark.parametrize("trees", [SMALL, LARGE, SMALL + LARGE + SMALL])
def test_blocks_hold_what_the_mask_lets_through(trees: list[flex.Shape]) -> None:
    want = by_hand(trees)
    mask = flex.block_mask(trees, CPU)
    size = mask.seq_lengths[0]
    assert size % flex.BLOCK == 0 and size - len(want) < flex.BLOCK
    index = torch.arange(size)
    got = mask.mask_mod(index, index, index[:, None], index[None])
    assert torch.equal(got[: len(want), : len(want)], want)
    assert torch.equal(got[len(want) :], torch.eye(size, dtype=torch.bool)[len(want) :])
    tiles = got.unflatten(0, (-1, flex.BLOCK)).unflatten(2, (-1, flex.BLOCK)).transpose(1, 2)
    whole = torch.zeros(tiles.shape[:2], dtype=torch.bool)
    partly = whole.clone()
    for blocks, counts, indices in (
        (whole, mask.full_kv_num_blocks, mask.full_kv_indices),
        (partly, mask.kv_num_blocks, mask.kv_indices),
    ):
        for q, count in enumerate(counts[0, 0].tolist()):
            blocks[q, indices[0, 0, q, :count].long()] = True
    assert not (whole & partly).any()
    assert torch.equal(whole | partly, tiles.any(-1).any(-1))
    assert tiles.all(-1).all(-1)[whole].all()
    assert trees is SMALL or whole.any()


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("trees", [SMALL, LARGE])
def test_equals_the_calls_of_sdpa(trees: list[flex.Shape], heads: int) -> None:
    torch.manual_seed(0)
    tokens = sum(p + sum(bs) for p, bs in trees)
    query, key, value = torch.randn(1, heads, tokens, 16), *torch.randn(2, 1, 2, tokens, 16)
    plan = layout(trees)
    module = SimpleNamespace(is_causal=True)
    slow, _ = tree_attention(module, query, key, value, None, layout=plan.ready(CPU, torch.float32, heads // 2))
    fast = flex.attend(query, key, value, flex.block_mask(plan.trees, CPU), None)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)


HEADS = (4, 2, 16)


def test_where_it_is_used() -> None:
    assert not flex.usable(CPU, torch.bfloat16, HEADS)
    assert not flex.usable(torch.device("cuda"), torch.float32, HEADS)


def test_where_it_does_not_compile_sdpa_is_used_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **more: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    monkeypatch.setattr(flex, "attend", broken)
    flex.compiles.cache_clear()
    with pytest.warns(UserWarning, match=r"^FlexAttention does not work here, .*: Failed to find C compiler\.$"):
        assert not flex.compiles(CPU, torch.bfloat16, HEADS)
    assert not flex.compiles(CPU, torch.bfloat16, HEADS)
    flex.compiles.cache_clear()


def test_a_longest_row_needs_no_mask_of_its_square() -> None:
    rng = random.Random(0)
    trees = [(2000, [rng.randrange(100, 1000) for _ in range(8)]) for _ in range(3)]
    mask = flex.block_mask(trees, CPU)
    assert mask.kv_indices.numel() == (mask.seq_lengths[0] // flex.BLOCK) ** 2
    assert mask.sparsity() > 60
