"""FlexAttention's mask of packed trees: its blocks against the mask itself, and what it computes against the calls of sdpa."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as flex_attention_module
from transformers import LlamaConfig, LlamaForCausalLM

from paragator.training import flex
from paragator.training.attention import layout, tree_attention
from paragator.training.packed import collate, log_probs
from paragator.training.rows import Branch, Tree, pack
from toys import padded_log_probs

CPU = torch.device("cpu")
SMALL = [(5, [3, 1, 7]), (9, [4, 4, 2, 6, 5]), (1, [8]), (2, [1])]
LARGE = [(300, [40, 12, 200]), (128, [128, 128, 5]), (1, [700]), (500, [3, 3, 3])]
WHOLE = [(128, [64, 64]), (100, [28, 128]), (130, []), (126, [0, 256])]
"""A number of whole blocks, a prompt without branches, an empty branch."""


def by_hand(trees: list[flex.TreeShape], window: int | None = None) -> torch.Tensor:
    """[T, T]: a branch sees its prompt and itself, nothing after, and nothing a window away."""
    where = [(t, b) for t, (p, bs) in enumerate(trees) for b, n in [(-1, p), *enumerate(bs)] for _ in range(n)]
    place = [i for p, bs in trees for first, n in [(0, p), *((p, n) for n in bs)] for i in range(first, first + n)]
    out = torch.zeros(len(where), len(where), dtype=torch.bool)
    for q, (tree, branch) in enumerate(where):
        for k in range(q + 1):
            near = window is None or place[q] - place[k] < window
            out[q, k] = where[k][0] == tree and where[k][1] in (-1, branch) and near
    return out


@pytest.mark.parametrize("window", [None, 5, 300])
@pytest.mark.parametrize("trees", [SMALL, LARGE, WHOLE, SMALL + LARGE + SMALL])
def test_blocks_hold_what_the_mask_lets_through(trees: list[flex.TreeShape], window: int | None) -> None:
    want = by_hand(trees, window)
    mask = flex.block_mask(trees, CPU, window)
    size = mask.seq_lengths[0]
    assert size % flex.BLOCK == 0 and size == max(2 * flex.BLOCK, len(want) + -len(want) % flex.BLOCK)
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
    seen = tiles.any(-1).any(-1)
    assert torch.equal((whole | partly) & seen, seen), "a block that is seen is computed"
    assert window is not None or torch.equal(whole | partly, seen)
    assert tiles.all(-1).all(-1)[whole].all()
    assert trees is SMALL or window is not None or whole.any()


@pytest.mark.parametrize("window", [None, 3, 90])
@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("trees", [SMALL, LARGE, WHOLE[:2]])
def test_equals_the_calls_of_sdpa(trees: list[flex.TreeShape], heads: int, window: int | None) -> None:
    torch.manual_seed(0)
    tokens = sum(p + sum(bs) for p, bs in trees)
    query, key, value = torch.randn(1, heads, tokens, 16), *torch.randn(2, 1, 2, tokens, 16)
    plan = layout(trees)
    module = SimpleNamespace(is_causal=True)
    slow, _ = tree_attention(module, query, key, value, None, layout=plan.ready(CPU, torch.float32, heads // 2, window))
    fast = flex.attend(query, key, value, flex.block_mask(plan.trees, CPU, window), None)
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


def test_most_blocks_of_a_long_row_are_skipped() -> None:
    rng = random.Random(0)
    trees = [(2000, [rng.randrange(100, 1000) for _ in range(8)]) for _ in range(3)]
    assert flex.block_mask(trees, CPU).sparsity() > 60


def test_rows_of_any_shape_share_a_few_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What dynamo sees is the same on CUDA: only the check of the device is left out."""
    kernels: list[object] = []

    def backend(graph: Any, inputs: Any) -> Any:
        kernels.append(graph)
        return graph

    monkeypatch.setattr(flex_attention_module, "_validate_device", lambda *_: None)
    kernel = torch.compile(flex_attention_module.flex_attention, backend=backend, **flex.ANY_LENGTH)
    for trees in (SMALL, LARGE, WHOLE[:2], [(3, [1])], [(64, [64])]):
        for grad in (True, False):
            mask = flex.block_mask(trees, CPU)
            q, k, v = (torch.randn(1, n, mask.seq_lengths[0], 16, requires_grad=grad) for n in (4, 2, 2))
            with torch.set_grad_enabled(grad):
                kernel(q, k, v, block_mask=mask, scale=0.25, enable_gqa=True)
    assert len(kernels) <= 4


def test_a_model_computes_through_it_what_padded_rows_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(flex, "usable", lambda *args: asked.append(args) or True)
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    config = LlamaConfig(vocab_size=19, hidden_size=64, intermediate_size=32, num_hidden_layers=2, **heads)
    model = LlamaForCausalLM(config).eval()
    trees = [tree_of(130, 40, 3, 100), tree_of(7, 5, 1), tree_of(60, 130)]
    with torch.no_grad():
        fast = log_probs(model, collate(pack(trees, 1000)[0]))
        slow = padded_log_probs(model, trees)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    assert asked == [(CPU, torch.float32, (4, 2, 16))]


def tree_of(prompt: int, *branches: int) -> Tree:
    rng = random.Random(prompt)
    made = [Branch(tuple(rng.randrange(19) for _ in range(n)), (0.0,) * n, 1.0) for n in branches]
    return Tree("generate", tuple(rng.randrange(19) for _ in range(prompt)), tuple(made))
