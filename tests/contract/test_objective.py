"""The loss against a second implementation: numpy in float64, forward pass included."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

from paragator.core.errors import UsageError  # noqa: E402
from paragator.training.objective import LossSettings, Reference, k3, loss, merge  # noqa: E402
from paragator.training.packed import collate, log_probs  # noqa: E402
from paragator.training.rows import Branch, Tree, pack  # noqa: E402

torch.set_num_threads(1)
Array = np.ndarray[Any, np.dtype[np.float64]]
VOCAB, WIDTH, HEADS, KV_HEADS, LAYERS, THETA, EPS = 19, 16, 4, 2, 2, 10000.0, 1e-6
TEMPERATURE = {"generate": 0.8, "aggregate": 1.0}


class Rotary(torch.nn.Module):
    """cos and sin [1, T, D] in float64; the stock module computes them in float32 whatever the model's type."""

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        half = WIDTH // HEADS // 2
        angle = position_ids[..., None] * THETA ** (-torch.arange(half).double() / half)
        angle = torch.cat([angle, angle], -1)
        return angle.cos(), angle.sin()


def lift(model: Any) -> Any:
    """The model with the two parts that stock Llama keeps in float32, norms and rotary angles, in float64."""
    for name, module in list(model.named_modules()):
        if name.endswith("norm"):
            norm = torch.nn.RMSNorm(WIDTH, eps=EPS, dtype=torch.float64)
            norm.weight = module.weight
            model.set_submodule(name, norm)
    model.model.rotary_emb = Rotary()
    return model


def toy() -> Any:
    """A random two-layer Llama in float64 throughout, with norm gains that are not 1."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        rms_norm_eps=EPS,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        initializer_range=0.4,
        attn_implementation="sdpa",
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = lift(transformers.LlamaForCausalLM(config).eval().double())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.add_(0.3 * torch.randn_like(p))
    return model


def rms_norm(x: Array, gain: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * gain


def rotate(x: Array) -> Array:
    """Rotary embedding (arXiv 2104.09864) of [T, heads, D], halves paired."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[0])[:, None] * THETA ** (-np.arange(half) / half)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def forward(weights: dict[str, Array], ids: tuple[int, ...]) -> Array:
    """Logits [T, V] of a Llama, one sequence, causal."""
    count, size = len(ids), WIDTH // HEADS
    x = weights["model.embed_tokens.weight"][list(ids)]
    for layer in range(LAYERS):
        w = {k.split(f"layers.{layer}.")[1]: v for k, v in weights.items() if f"layers.{layer}." in k}
        h = rms_norm(x, w["input_layernorm.weight"])
        q = rotate((h @ w["self_attn.q_proj.weight"].T).reshape(count, HEADS, size))
        k = rotate((h @ w["self_attn.k_proj.weight"].T).reshape(count, KV_HEADS, size))
        v = (h @ w["self_attn.v_proj.weight"].T).reshape(count, KV_HEADS, size)
        k, v = np.repeat(k, HEADS // KV_HEADS, 1), np.repeat(v, HEADS // KV_HEADS, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(size)
        scores = np.where(np.tri(count, dtype=bool), scores, -np.inf)
        mixed = np.einsum("hqk,khd->qhd", softmax(scores), v).reshape(count, WIDTH)
        x = x + mixed @ w["self_attn.o_proj.weight"].T
        h = rms_norm(x, w["post_attention_layernorm.weight"])
        gate = h @ w["mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
    return rms_norm(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T


def as_numpy(model: Any) -> dict[str, Array]:
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


def branch_logprobs(weights: dict[str, Array], tree: Tree, branch: Branch) -> Array:
    first = len(tree.prompt_ids)
    logits = forward(weights, tree.prompt_ids + branch.token_ids) / TEMPERATURE[tree.stage]
    logits = logits[first - 1 : -1]
    return np.log(softmax(logits))[np.arange(len(branch.token_ids)), list(branch.token_ids)]


def make_trees(weights: dict[str, Array]) -> list[Tree]:
    """Two groups whose sampling log-probabilities are the model's own, moved a little."""
    rng = np.random.default_rng(3)
    trees = []
    for stage, prompt, lengths in (("generate", 4, (5, 3, 6)), ("aggregate", 7, (4, 5))):
        ids = tuple(int(t) for t in rng.integers(VOCAB, size=prompt))
        branches = []
        for length in lengths:
            tokens = tuple(int(t) for t in rng.integers(VOCAB, size=length))
            bare = Branch(tokens, (0.0,) * length, 0.0)
            logprobs = branch_logprobs(weights, Tree(stage, ids, ()), bare) + rng.normal(0, 0.3, length)
            branches.append(Branch(tokens, tuple(logprobs.tolist()), float(rng.uniform(-0.2, 0.2))))
        trees.append(Tree(stage, ids, tuple(branches)))
    return trees


def numpy_loss(weights: dict[str, Array], reference: dict[str, Array], trees: list[Tree], kl_weight: float) -> float:
    """The clipped objective with the sampling policy as the old one, plus KL, token by token."""
    total = 0.0
    for tree in trees:
        for branch in tree.branches:
            new, ref = branch_logprobs(weights, tree, branch), branch_logprobs(reference, tree, branch)
            for now, then, fixed in zip(new, np.float32(branch.logprobs).astype(float), ref, strict=True):
                ratio = math.exp(now - then)
                credit = float(np.float32(branch.credit))
                total -= min(ratio * credit, min(max(ratio, 0.9), 1.2) * credit)
                total += kl_weight * (math.exp(fixed - now) - (fixed - now) - 1)
    return total


def test_whole_loss_and_its_slope_equal_numpy_in_float64() -> None:
    model, other = toy(), toy()
    weights = as_numpy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.05 * torch.randn_like(p))
    trees = make_trees(weights)
    batch = collate(pack(trees, 400)[0])
    with torch.no_grad():
        reference = log_probs(other, batch, TEMPERATURE)
    new = log_probs(model, batch, TEMPERATURE)
    got, stats = loss(
        new,
        batch.sampled_logprobs,
        batch.credit,
        LossSettings(clip_low=0.1, clip_high=0.2),
        old_logprobs=batch.sampled_logprobs,
        reference=Reference(reference, 0.03),
    )
    assert got.item() == pytest.approx(numpy_loss(weights, as_numpy(other), trees, 0.03), abs=1e-6, rel=1e-6)
    assert 0 < stats["clipped"] < 1 and stats["kl"] > 0 and stats["tokens"] == 23

    got.backward()
    step = {name: np.sign(p.grad.numpy()) * 1e-6 for name, p in model.named_parameters()}
    ends = [numpy_loss({n: w + s * step[n] for n, w in weights.items()}, as_numpy(other), trees, 0.03) for s in (1, -1)]
    slope = sum((p.grad.numpy() * step[name]).sum() for name, p in model.named_parameters())
    assert (ends[0] - ends[1]) / 2 == pytest.approx(slope, rel=1e-6)


NEW = torch.tensor([-1.0, -2.0, -0.5, -3.0])
SAMPLED = torch.tensor([-1.1, -1.0, -0.5, -3.5])
CREDIT = torch.tensor([0.5, 0.5, -0.25, -0.25])
PLAIN, CAPPED = LossSettings(), LossSettings(weight_cap=1.2)


def slope(settings: LossSettings = PLAIN, **options: Any) -> tuple[list[float], dict[str, float]]:
    new = NEW.clone().requires_grad_()
    total, stats = loss(new, SAMPLED, CREDIT, settings, **options)
    total.backward()
    return new.grad.tolist(), stats  # type: ignore[union-attr]


def test_on_policy_step_is_minus_credit_per_token() -> None:
    grad, stats = slope()
    assert grad == pytest.approx((-CREDIT).tolist())
    assert stats["ratio"] == 1.0 and stats["clipped"] == 0.0 and stats["weight"] == 1.0
    assert stats["mismatch"] == pytest.approx(k3(NEW - SAMPLED).mean().item(), rel=1e-6)


def test_truncated_importance_sampling_scales_the_slope() -> None:
    grad, stats = slope(CAPPED)
    weight = (NEW - SAMPLED).exp().clamp(max=1.2)
    assert grad == pytest.approx((-CREDIT * weight).tolist())
    assert stats["truncated"] == 0.25 and stats["weight"] == pytest.approx(weight.mean().item())


def test_old_equal_to_sampled_is_corrected_by_the_ratio_alone() -> None:
    assert slope(LossSettings(weight_cap=2.0), old_logprobs=SAMPLED)[0] == slope(old_logprobs=SAMPLED)[0]


def test_clipping_cuts_only_moves_that_went_too_far() -> None:
    grad, stats = slope(LossSettings(0.2, 0.2), old_logprobs=SAMPLED)
    ratio = (NEW - SAMPLED).exp()  # 1.105, 0.368, 1, 1.649
    assert grad == pytest.approx((-CREDIT * ratio).tolist())
    flipped = NEW.clone().requires_grad_()
    total, stats = loss(flipped, SAMPLED, -CREDIT, PLAIN, old_logprobs=SAMPLED)
    total.backward()
    assert flipped.grad is not None and flipped.grad[[1, 3]].tolist() == [0.0, 0.0] and stats["clipped"] == 0.5


def several(seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], list[float]]:
    """New, old and sampled log-probabilities of completions of several lengths, and a credit each."""
    draw = torch.Generator().manual_seed(seed)
    old = [-torch.rand(length, generator=draw, dtype=torch.float64) * 3 for length in (1, 4, 7, 3)]
    moved = [o + 0.3 * torch.randn(len(o), generator=draw, dtype=torch.float64) for o in old]
    sampled = [o + 0.2 * torch.randn(len(o), generator=draw, dtype=torch.float64) for o in old]
    return moved, old, sampled, torch.randn(4, generator=draw, dtype=torch.float64).tolist()


def gspo(new: torch.Tensor, old: torch.Tensor, credit: float, low: float, high: float) -> torch.Tensor:
    """Equations 5 to 7 of arXiv 2507.18071 for one completion, times its length (the sum over tokens that Dr.GRPO has)."""
    ratio = (new.sum() - old.sum()).div(len(new)).exp()
    return -len(new) * torch.min(ratio * credit, ratio.clip(1 - low, 1 + high) * credit)


def cispo(new: torch.Tensor, old: torch.Tensor, credit: float, low: float, high: float) -> torch.Tensor:
    """Equations 4 and 5 of arXiv 2506.13585 for one completion: a clipped, detached weight on the log-probability."""
    return -((new - old).exp().clip(1 - low, 1 + high).detach() * credit * new).sum()


@pytest.mark.parametrize(("ratio", "naive"), [("sequence", gspo), ("cispo", cispo)])
def test_other_ratios_have_the_slope_of_their_plain_form(ratio: Any, naive: Any) -> None:
    """Completion by completion, with the importance weight (the sampler's, a completion's for "sequence") beside it."""
    settings, clipped = LossSettings(0.05, 0.1, 1.1, ratio), 0.0
    for seed in range(5):
        new, old, sampled, credit = several(seed)
        flat = torch.cat(new).requires_grad_()
        sequences = torch.tensor([i for i, part in enumerate(new) for _ in part])
        per_token = torch.tensor([credit[i] for i in sequences], dtype=torch.float64)
        order = torch.randperm(
            len(flat), generator=torch.Generator().manual_seed(seed)
        )  # tokens may stand in any order
        columns = [torch.cat(column)[order] for column in (sampled, old)]
        total, stats = loss(
            flat[order], columns[0], per_token[order], settings, old_logprobs=columns[1], sequences=sequences[order]
        )
        total.backward()
        own = [part.clone().requires_grad_() for part in new]
        for now, then, drawn, worth in zip(own, old, sampled, credit, strict=True):
            apart = then - drawn
            weight = (apart.mean() if ratio == "sequence" else apart).exp().clip(max=1.1)
            if ratio == "sequence":
                (weight * naive(now, then, worth, 0.05, 0.1)).backward()
            else:
                torch.stack(
                    [w * naive(n[None], t[None], worth, 0.05, 0.1) for w, n, t in zip(weight, now, then, strict=True)]
                ).sum().backward()
        expected = torch.cat([part.grad for part in own])  # type: ignore[misc]
        assert flat.grad is not None and torch.allclose(flat.grad, expected, rtol=1e-12, atol=1e-14)
        clipped += stats["clipped"]
        if ratio == "cispo":
            assert flat.grad.all()  # no token is silenced
    assert 0 < clipped < 5


def test_completions_of_a_row_are_told_apart() -> None:
    one = Branch((3, 4), (-1.0, -1.0), 0.1)
    batch = collate(pack([Tree("generate", (1,), (one, one)), Tree("aggregate", (1, 2), (one,))], 100)[0])
    assert len(batch.sequences.unique()) == 3 and all(
        len(set(batch.sequences[i : i + 2].tolist())) == 1 for i in (0, 2, 4)
    )


def test_no_credit_and_no_tokens_change_nothing() -> None:
    new = NEW.clone().requires_grad_()
    loss(new, SAMPLED, torch.zeros(4), PLAIN)[0].backward()
    assert new.grad is not None and not new.grad.any()
    empty = torch.zeros(0)
    total, stats = loss(empty, empty, empty, PLAIN)
    assert total.item() == 0 and stats["tokens"] == 0 and all(math.isfinite(v) for v in stats.values())


def test_any_split_into_micro_batches_is_the_same_loss() -> None:
    weight = torch.tensor([0.1, 0.1, 0.2, 0.2])
    whole, stats = loss(NEW, SAMPLED, CREDIT, CAPPED, reference=Reference(SAMPLED, weight))
    parts = []
    for cut in (slice(0, 1), slice(1, 4)):
        parts.append(loss(NEW[cut], SAMPLED[cut], CREDIT[cut], CAPPED, reference=Reference(SAMPLED[cut], weight[cut])))
    assert sum(p[0].item() for p in parts) == pytest.approx(whole.item())
    assert merge([p[1] for p in parts]) == pytest.approx(stats)


def test_wrong_options_are_errors() -> None:
    with pytest.raises(UsageError, match="weight_cap = 0"):
        LossSettings(weight_cap=0.0)
    with pytest.raises(UsageError, match=r"clip_low = 1\.5"):
        LossSettings(clip_low=1.5)


def test_cispo_in_numbers() -> None:
    """Its loss is -clip(r) * credit a token, and `clipped` is the share whose ratio was bounded, whatever the credit's sign."""
    ratios = torch.tensor([1.5, 1.1, 0.5, 0.9])
    logs = ratios.log()
    total, stats = loss(
        logs,
        torch.zeros(4),
        torch.tensor([1.0, 1.0, 1.0, -1.0]),
        LossSettings(ratio="cispo"),
        old_logprobs=torch.zeros(4),
    )
    assert float(total) == pytest.approx(-(1.2 + 1.1 + 0.8 - 0.9), rel=1e-5)
    assert stats["clipped"] == 0.5 and stats["tokens"] == 4.0


def test_a_token_counts_as_clipped_only_where_its_gradient_is_cut() -> None:
    """At the bound itself it is not cut, nor without credit, nor where the clip helps the wrong way."""
    settings = LossSettings(0.5, 0.5)
    ratio = torch.tensor([2.0, 2.0, 2.0, 0.25, 0.25, 0.25])
    credit = torch.tensor([0.5, 0.0, -0.5, -0.5, 0.0, 0.5])
    _, stats = loss(ratio.log(), torch.zeros(6), credit, settings, old_logprobs=torch.zeros(6))
    assert stats["clipped"] == pytest.approx(2 / 6)
    at = LossSettings(clip_low=0.0, clip_high=0.0)  # the ratio is 1, which is both bounds
    for sign in (1.0, -1.0):
        _, stats = loss(torch.zeros(2), torch.zeros(2), torch.full((2,), sign), at, old_logprobs=torch.zeros(2))
        assert stats["clipped"] == 0.0


def test_bounds_that_are_just_allowed() -> None:
    LossSettings(clip_low=1.0, clip_high=0.0, weight_cap=0.5)


def test_statistics_of_one_batch_and_of_none() -> None:
    one = {"ratio": 2.0, "kl": 0.5, "tokens": 1.0}
    assert merge([one]) == one
    assert merge([]) == {"tokens": 0}
