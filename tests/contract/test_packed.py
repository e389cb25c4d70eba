"""Packed rows compute what one padded row per branch computes: log-probabilities, gradients, isolation, planning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

from paragator.core.errors import DataError, UsageError  # noqa: E402
from paragator.engines.local.branching import NO_MASK  # noqa: E402
from paragator.training import attention, packed  # noqa: E402
from paragator.training.attention import layout  # noqa: E402
from paragator.training.packed import Batch, collate, log_probs  # noqa: E402
from paragator.training.rows import Branch, Tree, first_fit, pack  # noqa: E402
from toys import TREES, VOCAB, gradients, packed_log_probs, padded_log_probs, relative, toy, tree  # noqa: E402

torch.set_num_threads(1)
BUDGETS = [1000, 30, 17, 1]
"""All in one row; trees share rows; cut trees; branches above the budget."""


ALIKE = [tree(9, 4, 4, 2), tree(8, 6, 5, 1, 4), tree(9, 4, seed=1), tree(7, 2, 4, 5, stage="aggregate"), tree(9, 1, 5)]
"""Prompts similar enough for one kernel call, with different numbers of branches in each of its lengths."""


def test_prompts_of_one_call_equal_padded() -> None:
    model = toy()
    plan = collate(pack(ALIKE, 1000)[0]).layout
    assert any(call.count == len(ALIKE) and len(call.branches) > 1 for call in plan.calls)
    assert any(len(set(part.counts)) > 1 for call in plan.calls for part in call.branches)
    fast, slow = packed_log_probs(model, ALIKE, 1000), padded_log_probs(model, ALIKE)
    assert relative(fast, slow) < 1e-5
    weights = torch.linspace(-1, 1, len(slow))
    got, want = gradients(model, (fast * weights).sum()), gradients(model, (slow * weights).sum())
    assert max(relative(got[name], want[name]) for name in want) < 1e-5


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
def test_packed_equals_padded(kind: str, budget: int) -> None:
    model = toy(kind)
    temperature = {"generate": 0.7, "aggregate": 1.3}
    fast = packed_log_probs(model, TREES, budget, temperature)
    slow = padded_log_probs(model, TREES, temperature)
    assert relative(fast, slow) < 1e-5
    weights = torch.linspace(-1, 1, len(slow))
    got, want = gradients(model, (fast * weights).sum()), gradients(model, (slow * weights).sum())
    assert got.keys() == want.keys() and len(got) > 10
    for name, value in want.items():
        assert relative(got[name], value) < 1e-5, name


WINDOWS: list[tuple[str, dict[str, Any]]] = [
    ("Mistral", {}),
    ("Mixtral", {"num_local_experts": 4}),
    ("Phi3", {}),
    ("Starcoder2", {}),
    ("Phimoe", {"num_local_experts": 4}),
    ("Qwen2", {"use_sliding_window": True, "max_window_layers": 1}),
    ("Qwen2Moe", {"use_sliding_window": True, "max_window_layers": 1, "num_experts": 4, "moe_intermediate_size": 8}),
    ("Qwen3", {"use_sliding_window": True, "max_window_layers": 1}),
    ("Gemma3", {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}),
    ("Olmo3", {"layer_types": ["sliding_attention", "full_attention"]}),
    ("Cohere2", {"layer_types": ["sliding_attention", "full_attention"]}),
    ("Ministral", {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}),
]


@pytest.mark.parametrize("kind,more", WINDOWS, ids=[kind for kind, _ in WINDOWS])
@pytest.mark.parametrize("window,budget", [(2, 1000), (7, 30), (11, 17)])
def test_windows_equal_padded(kind: str, more: dict[str, Any], window: int, budget: int) -> None:
    model = toy(kind, sliding_window=window, **more)
    trees = [*TREES, *ALIKE]
    fast, slow = packed_log_probs(model, trees, budget), padded_log_probs(model, trees)
    assert relative(fast, slow) < 1e-5
    weights = torch.linspace(-1, 1, len(slow))
    got, want = gradients(model, (fast * weights).sum()), gradients(model, (slow * weights).sum())
    assert max(relative(got[name], want[name]) for name in want) < 1e-4


def test_a_window_changes_what_is_seen() -> None:
    assert relative(*(padded_log_probs(toy("Mistral", sliding_window=w), TREES) for w in (4, 40))) > 1e-2


@pytest.mark.parametrize("kind", ["DeepseekV2", "DeepseekV3"])
def test_values_of_another_size_than_queries(kind: str) -> None:
    sizes = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
    experts = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 8,
    }
    model = toy(kind, num_key_value_heads=4, **sizes, **experts)
    fast, slow = packed_log_probs(model, TREES, 30), padded_log_probs(model, TREES)
    assert relative(fast, slow) < 1e-5
    got, want = gradients(model, fast.sum()), gradients(model, slow.sum())
    assert max(relative(got[name], want[name]) for name in want) < 1e-4


def test_chunked_output_layer_equals_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy()
    whole = packed_log_probs(model, TREES, 40)
    want = gradients(model, whole.sum())
    monkeypatch.setattr(packed, "LOGITS_AT_ONCE", 5 * VOCAB)
    chunked = packed_log_probs(model, TREES, 40)
    assert relative(chunked, whole) < 1e-6
    names, parameters = zip(*model.named_parameters(), strict=True)
    got = torch.autograd.grad(chunked.sum(), parameters)  # not only backward(), as some checkpointing
    assert max(relative(value, want[name]) for name, value in zip(names, got, strict=True)) < 1e-5


@pytest.mark.parametrize(("at_once", "most"), [(5 * VOCAB, 5), (6 * VOCAB - 1, 5), (VOCAB, 1), (VOCAB - 1, 1)])
def test_of_many_logits_only_a_chunk_exists_at_a_time(monkeypatch: pytest.MonkeyPatch, at_once: int, most: int) -> None:
    model, seen = toy(), []
    monkeypatch.setattr(packed, "LOGITS_AT_ONCE", at_once)
    packed.has_plain_head(model)  # looks at four positions, once
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.numel()))
    packed_log_probs(model, TREES, 40).sum().backward()
    assert max(seen) == most * VOCAB


def test_logits_are_many_from_the_first_that_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as may exist at once are one call; with one less allowed, they are two."""
    model, batch, calls = toy(), collate(pack([tree(3, 4, 2)], 100)[0]), []
    packed.has_plain_head(model)
    model.lm_head.register_forward_hook(lambda module, args, out: calls.append(out.shape[-2]))
    for at_once in (6 * VOCAB, 6 * VOCAB - 1):
        monkeypatch.setattr(packed, "LOGITS_AT_ONCE", at_once)
        log_probs(model, batch)
    assert calls == [5, 5, 1], "five positions predict, of which the prompt's last one predicts two tokens"


def test_a_sharded_model_gives_its_hidden_states_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = toy(), []
    whole = packed_log_probs(model, TREES, 40)

    def gathering(**inputs: Any) -> Tensor:
        calls.append(inputs["input_ids"].shape[-1])
        return packed.hidden_states(model, **inputs)

    model.__dict__["hidden_states"] = gathering
    packed_log_probs(model, TREES, 40)
    assert not calls, "few logits: the model's own pass"
    monkeypatch.setattr(packed, "LOGITS_AT_ONCE", 5 * VOCAB)
    assert relative(packed_log_probs(model, TREES, 40), whole) < 1e-6
    assert calls == [row.num_tokens for row in pack(TREES, 40)]


def test_whether_a_head_is_plain_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = toy(), []
    model.model.register_forward_hook(
        lambda module, args, more, out: seen.append((more["input_ids"].shape, out.past_key_values)), with_kwargs=True
    )
    assert packed.has_plain_head(model) and packed.has_plain_head(model)
    assert seen == [((1, 4), None)] * 2, "by the whole model and by its base, without a cache"
    assert not packed.has_plain_head(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(("factor", "shift", "plain"), [
    (1 + 5e-5, 0, True), (1 + 1e-3, 0, False), (0, 5e-6, True), (0, 5e-5, False), (0, 0.5, False),
])  # fmt: skip
def test_a_head_is_plain_within_rounding(factor: float, shift: float, plain: bool) -> None:
    """Logits that are off by a factor, or by a number where all are 0."""
    model = toy()
    own = model.forward

    def off(**inputs: Any) -> Any:
        out = own(**inputs)
        out.logits = out.logits * factor + shift
        return out

    if not factor:
        torch.nn.init.zeros_(model.lm_head.weight)
    model.forward = off
    assert packed.has_plain_head(model) == plain


@pytest.mark.parametrize("kind", [None, torch.bfloat16, torch.float16])
def test_a_head_is_tried_in_the_types_of_the_pass_to_come(
    monkeypatch: pytest.MonkeyPatch, kind: torch.dtype | None
) -> None:
    """And leaves no casts without gradients behind, which that pass would take."""
    model, seen = toy(), set()
    handle = model.lm_head.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    with torch.autocast("cpu", kind, enabled=kind is not None):
        assert packed.has_plain_head(model)
        assert seen == {kind or torch.float32}
        handle.remove()
        monkeypatch.setattr(packed, "LOGITS_AT_ONCE", 5 * VOCAB)
        got = gradients(model, packed_log_probs(model, TREES, 40).sum())
    assert got.keys() == {name for name, _ in model.named_parameters()}


def test_no_pass_keeps_a_cache_or_builds_a_mask() -> None:
    model, seen = toy(), []
    model.register_forward_hook(lambda module, args, out: seen.append(out.past_key_values))
    model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda module, args, more: seen.append(more["attention_mask"]), with_kwargs=True
    )
    log_probs(model, collate(pack(TREES, 1000)[0]))
    assert seen == [NO_MASK, None]


def test_temperatures_of_stages() -> None:
    """Numbers that are the same for both, one stage alone (the other's is 1), and none for which nothing is divided."""
    model = toy()
    for temperature in (2.0, {"generate": 0.7}, {"aggregate": 1.5}):
        both = {"generate": 1.0, "aggregate": 1.0} | (temperature if isinstance(temperature, dict) else {})
        slow = padded_log_probs(model, TREES, both if isinstance(temperature, dict) else temperature)
        assert relative(packed_log_probs(model, TREES, 30, temperature), slow) < 1e-5
    with pytest.raises(UsageError, match=r"^temperature = -1: log-probabilities need a temperature above 0$"):
        log_probs(model, collate(pack(TREES, 30)[0]), {"generate": 1, "aggregate": -1})


@pytest.mark.parametrize(("kind", "found"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_log_probabilities_are_in_float32_or_better(kind: torch.dtype, found: torch.dtype) -> None:
    assert log_probs(toy().to(kind), collate(pack(TREES, 1000)[0])).dtype == found


def test_all_layers_share_one_mask_and_none_is_as_large_as_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, attend = [], attention.attend

    def spy(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **more: Any) -> Tensor:
        if mask is not None:
            seen.append((mask.data_ptr(), mask.dtype, mask.shape))
        return attend(q, k, v, mask, **more)

    monkeypatch.setattr(attention, "attend", spy)
    model = toy()
    log_probs(model, collate(pack([tree(50, 9, 10, 8, 9)], 2000)[0]))
    assert len(seen) == model.config.num_hidden_layers > 1
    assert len(set(seen)) == 1 and seen[0][1] == torch.float32
    assert seen[0][2] == (1, 1, 2 * 10, 50 + 10)  # two heads a key


@pytest.mark.parametrize("many", [True, False])
def test_many_logits_of_a_head_that_is_not_plain(monkeypatch: pytest.MonkeyPatch, many: bool) -> None:
    model = toy("Granite", logits_scaling=3.0)
    monkeypatch.setattr(packed, "LOGITS_AT_ONCE", 5 * VOCAB if many else 2**26)
    assert not packed.has_plain_head(model)
    assert relative(packed_log_probs(model, TREES, 30), padded_log_probs(model, TREES)) < 1e-5


@pytest.mark.parametrize("many", [True, False])
def test_adapters_on_and_off(monkeypatch: pytest.MonkeyPatch, many: bool) -> None:
    monkeypatch.setattr(packed, "LOGITS_AT_ONCE", 5 * VOCAB if many else 2**26)
    peft = pytest.importorskip("peft")
    plain = padded_log_probs(toy(), TREES)
    model = peft.get_peft_model(toy(), peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    assert packed.has_plain_head(model), "that of the model inside peft's wrapper"
    on = packed_log_probs(model.eval(), TREES, 30)
    assert relative(on, padded_log_probs(model, TREES)) < 1e-5
    with model.disable_adapter():
        assert relative(packed_log_probs(model, TREES, 30), plain) < 1e-5
    assert relative(on, plain) > 1e-2


def leak_between_branches(batch: Batch) -> Batch:
    """The mutant: plain causal attention along the row."""
    return replace(batch, layout=layout([(batch.input_ids.numel() - 1, [1])]))


def change_seen_by_others(mutate: Callable[[Batch], Batch]) -> float:
    """How far other log-probabilities move when one branch's tokens change."""
    model = toy()
    base = tree(5, 4, 4, 4)
    noisy = replace(base.branches[1], token_ids=tuple((t + 1) % VOCAB for t in base.branches[1].token_ids))
    changed = replace(base, branches=(base.branches[0], noisy, base.branches[2]))
    out = []
    for first in (base, changed):
        batch = mutate(collate(pack([first, tree(6, 3, 3)], 100)[0]))
        values = log_probs(model, batch)
        out.append(values[~((batch.trees == 0) & (batch.branches == 1))])
    return (out[0] - out[1]).abs().max().item()


def test_a_branch_is_invisible_to_the_others() -> None:
    assert change_seen_by_others(lambda batch: batch) == 0.0


def test_the_isolation_test_notices_a_leak() -> None:
    assert change_seen_by_others(leak_between_branches) > 1e-3


def test_a_small_row() -> None:
    batch = collate(pack([tree(2, 2, 1)], 10)[0])
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert batch.sources.tolist() == [1, 2, 1]
    (call,) = batch.layout.calls
    assert (call.count, call.length, [b.length for b in call.branches]) == (1, 2, [2, 1])
    made = batch.layout.ready(torch.device("cpu"), torch.float32).calls[0].branches[0].mask
    assert made is not None and (made[0, 0] == 0).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.layout.token.tolist() == batch.layout.slot.tolist() == [0, 1, 2, 3, 4]


def test_trees_of_similar_shape_share_calls() -> None:
    plan = layout([(10, [4, 4]), (9, [4, 3]), (2, [4])])
    assert [(c.count, c.length, [(len(b.tree), b.length) for b in c.branches]) for c in plan.calls] == [
        (2, 10, [(4, 4)]),
        (1, 2, [(1, 4)]),
    ]
    assert plan.token[plan.slot].tolist() == list(range(10 + 8 + 9 + 7 + 2 + 4))
    assert int(plan.padding.sum()) == len(plan.token) - len(plan.slot) == 2
    made = plan.ready(torch.device("cpu"), torch.float32).calls[0].branches[0].mask
    assert made is not None and (made[:, 0, 0, 9] == 0).tolist() == [True, True, False, False]


def test_large_trees_have_calls_of_their_own() -> None:
    assert [
        c.count for c in layout([(attention.TOGETHER // 2 + 1, [3]), (attention.TOGETHER // 2 + 1, [3])]).calls
    ] == [1, 1]


@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
def test_a_kernel_that_is_causal_itself_needs_no_mask(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What CUDA does: torch's bias object, which a CPU writes out."""
    ready = attention.Layout.ready
    monkeypatch.setattr(attention.Layout, "ready", lambda self, *args, **_: ready(self, *args, fused=True))
    model = toy(kind)
    made = collate(pack(TREES, 17)[0]).layout.ready(torch.device("cpu"), torch.float32).calls[0].branches[0].mask
    assert isinstance(made, attention.CausalBias)
    fast, slow = packed_log_probs(model, TREES, 17), padded_log_probs(model, TREES)
    assert relative(fast, slow) < 1e-5
    got, want = gradients(model, fast.sum()), gradients(model, slow.sum())
    assert max(relative(got[name], want[name]) for name in want) < 1e-5


def test_a_kernel_that_is_causal_itself_is_chosen_for_the_type_that_autocast_multiplies_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It chooses before autocast casts: float32 would keep it from the kernels that need no mask."""
    ready, attend, seen = attention.Layout.ready, attention.attend, set()

    def noted(q: Tensor, k: Tensor, v: Tensor, mask: Any, **more: Any) -> Tensor:
        if isinstance(mask, attention.CausalBias):
            seen.update((q.dtype, k.dtype, v.dtype))
        return attend(q, k, v, mask, **more)

    model = toy("Qwen3")
    with torch.autocast("cpu", torch.bfloat16):
        want = packed_log_probs(model, TREES, 17)
        monkeypatch.setattr(attention.Layout, "ready", lambda self, *args, **_: ready(self, *args, fused=True))
        monkeypatch.setattr(attention, "attend", noted)
        assert relative(packed_log_probs(model, TREES, 17), want) < 0.02
    assert seen == {torch.bfloat16}


def test_an_attention_that_is_not_given_the_layout_is_an_error() -> None:
    model = toy()
    model.config._attn_implementation = attention.NAME
    with pytest.raises(RuntimeError):  # never quietly the wrong attention
        model(input_ids=torch.arange(4)[None], attention_mask=NO_MASK, use_cache=False)


def test_batch_carries_what_the_engine_sampled() -> None:
    trees = [tree(4, 3, 2), tree(2, 5, stage="aggregate")]
    batch = collate(pack(trees, 100)[0])
    for t, one in enumerate(trees):
        for b, branch in enumerate(one.branches):
            mine = (batch.trees == t) & (batch.branches == b)
            assert batch.targets[mine].tolist() == list(branch.token_ids)
            assert torch.allclose(batch.sampled_logprobs[mine], torch.tensor(branch.logprobs))
            assert torch.allclose(batch.credit[mine], torch.tensor(branch.credit))
            assert {packed.STAGES[s] for s in batch.stages[mine]} == {one.stage}


def test_a_batch_has_its_types_and_moves() -> None:
    """Whole numbers as credit and log-probabilities are floats too; nothing of a moved batch stays behind but its plan."""
    one = Tree("aggregate", (1, 2), (Branch((3, 4), (-1, -2), 1), Branch((5,), (0,), 0)))  # type: ignore[arg-type]
    batch = collate(pack([one], 100)[0])
    whole = {"input_ids", "position_ids", "sources", "targets", "stages", "trees", "branches"}
    kinds = {f.name: getattr(batch, f.name).dtype for f in fields(Batch) if f.name != "layout"}
    assert kinds == dict.fromkeys(whole, torch.int64) | dict.fromkeys(("sampled_logprobs", "credit"), torch.float32)
    assert batch.sequences.tolist() == [0, 0, 1]
    moved = batch.to("meta")
    assert moved.layout is batch.layout
    for name, kind in kinds.items():
        value = getattr(moved, name)
        assert (value.device.type, value.dtype, value.shape) == ("meta", kind, getattr(batch, name).shape)
        assert getattr(batch, name).device.type == "cpu"


@pytest.mark.parametrize("budget", [1, 10, 13, 17, 30, 64, 1000])
def test_every_branch_is_packed_once_and_within_budget(budget: int) -> None:
    rows = pack(TREES, budget)
    placed = [(p.tree_id, b) for row in rows for p in row.pieces for b in p.branch_ids]
    assert sorted(placed) == [(t, b) for t, one in enumerate(TREES) for b in range(len(one.branches))]
    for row in rows:
        alone = len(row.pieces) == 1 and len(row.pieces[0].branch_ids) == 1
        assert row.num_tokens <= budget or alone
        for p in row.pieces:
            assert p.tree.prompt_ids == TREES[p.tree_id].prompt_ids
            assert p.tree.branches == tuple(TREES[p.tree_id].branches[b] for b in p.branch_ids)
    assert rows == pack(TREES, budget)
    assert pack([tree(4)], budget) == []


def test_wrong_inputs_are_one_line_errors() -> None:
    with pytest.raises(UsageError, match="max_tokens = 0"):
        pack(TREES, 0)
    with pytest.raises(DataError, match="empty prompt"):
        pack([tree(0, 3)], 10)
    with pytest.raises(DataError, match="3 tokens but 1 log-prob"):
        pack([Tree("generate", (1,), (Branch((1, 2, 3), (-1.0,), 0.0),))], 10)
    batch = collate(pack(TREES, 30)[0])
    with pytest.raises(UsageError, match="temperature = 0"):
        log_probs(toy(), batch, 0.0)
    with pytest.raises(UsageError, match=r"attn_implementation = 'eager' .*: load the model with 'sdpa'$"):
        log_probs(toy(attn_implementation="eager"), batch)
    without_sdpa = toy()
    without_sdpa._supports_sdpa = False
    with pytest.raises(UsageError, match=r"attn_implementation = 'sdpa' .*: load the model with 'eager'$"):
        log_probs(without_sdpa, batch)
    longrope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.0],
        "long_factor": [4.0, 4.0],
        "original_max_position_embeddings": 8,
        "factor": 4.0,
    }
    with pytest.raises(UsageError, match="14 tokens exceed 8, where this model's rotary"):
        log_probs(
            toy("Phi3", rope_parameters=longrope, original_max_position_embeddings=8, max_position_embeddings=32),
            collate(pack([tree(5, 9)], 30)[0]),
        )
    with pytest.raises(UsageError, match="layers of type 'chunked_attention' cannot be packed"):
        log_probs(toy(layer_types=["full_attention", "chunked_attention"]), batch)


def test_first_fit_decreasing_fills_bins_to_the_brim() -> None:
    assert first_fit([2, 3, 4, 5], 7) == [[0, 3], [1, 2]]
    assert first_fit([1, 9, 7], 7) == [[1], [2], [0]], "what is too long is alone"
