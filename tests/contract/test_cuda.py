"""What a CUDA card must do as the CPU does: packed log-probabilities and gradients, sampling, a step. Skipped without one."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

from paragator.config import Config, ModelConfig  # noqa: E402
from paragator.core.types import Group, Prompt  # noqa: E402
from paragator.engines.local.loading import load_model  # noqa: E402
from paragator.engines.local.transformers import TransformersEngine  # noqa: E402
from paragator.engines.sampling import Sampling  # noqa: E402
from paragator.settings import validate  # noqa: E402
from paragator.training import flex, packed, warmup  # noqa: E402
from paragator.training.packed import collate, log_probs  # noqa: E402
from paragator.training.policy import Policy  # noqa: E402
from paragator.training.rows import Branch, Tree, pack  # noqa: E402
from toys import padded_log_probs  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
VOCAB = 211


def toy(kind: str = "Llama", dtype: torch.dtype = torch.float32) -> Any:
    """A random two-layer model with heads of 16 numbers, which flash attention takes."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "sdpa"}
    more = {"initializer_range": 0.2, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    config = getattr(transformers, f"{kind}Config")(**(sizes | heads | more))
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval().to("cuda", dtype)


def tree(prompt: int, *branches: int, stage: Any = "generate", seed: int = 0) -> Tree:
    rng = random.Random(f"{prompt}:{branches}:{seed}")
    ids = [tuple(rng.randrange(VOCAB) for _ in range(n)) for n in branches]
    made = [Branch(t, tuple(-rng.random() for _ in t), rng.uniform(-1, 1)) for t in ids]
    return Tree(stage, tuple(rng.randrange(VOCAB) for _ in range(prompt)), tuple(made))


TREES = [
    tree(5, 3, 1, 7),
    tree(90, 41, 40, 22, 63, 5, stage="aggregate"),
    tree(1, 8),
    tree(300, 12, 110, 128, 90, stage="aggregate"),
    tree(88, 30, 31, seed=1),
    tree(2, 1),
]


def packed_log_probs(model: Any, budget: int) -> Tensor:
    batches = [collate(row).to("cuda") for row in pack(TREES, budget)]
    values = torch.cat([log_probs(model, b) for b in batches])
    return values[torch.cat([b.trees * 1000 + b.branches for b in batches]).argsort(stable=True)]


def gradients(model: Any, value: Tensor) -> Tensor:
    model.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.detach() - b.detach()).norm() / b.detach().norm())


@pytest.mark.parametrize("budget", [2000, 250])
@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
def test_packed_equals_padded(kind: str, budget: int) -> None:
    model = toy(kind)
    fast, slow = packed_log_probs(model, budget), padded_log_probs(model, TREES)
    assert relative(fast, slow) < 1e-5
    weights = torch.linspace(-1, 1, len(slow), device="cuda")
    got, want = gradients(model, (fast * weights).sum()), gradients(model, (slow * weights).sum())
    assert relative(got, want) < 1e-4


@pytest.mark.parametrize("budget", [2000, 250])
def test_packed_is_as_near_to_float64_as_padded_is_in_bfloat16(budget: int) -> None:
    exact = padded_log_probs(toy(dtype=torch.float64), TREES)
    weights = torch.linspace(-1, 1, len(exact), device="cuda")
    model = toy()
    with torch.autocast("cuda", torch.bfloat16):
        fast, slow = packed_log_probs(model, budget), padded_log_probs(model, TREES)
    want = gradients(exact_model := toy(dtype=torch.float64), (padded_log_probs(exact_model, TREES) * weights).sum())
    apart = [relative(x.double(), exact) for x in (fast, slow)]
    steep = [relative(gradients(model, (x * weights).sum()), want) for x in (fast, slow)]
    assert apart[0] < max(1.5 * apart[1], 1e-3) and apart[0] < 0.02
    assert steep[0] < max(1.5 * steep[1], 1e-2) and steep[0] < 0.1


def test_flex_attention_works_here() -> None:
    assert flex.usable(torch.device("cuda", torch.cuda.current_device()), torch.bfloat16, (4, 2, 16))


def test_a_branch_is_invisible_to_the_others() -> None:
    model = toy()
    first, other = tree(70, 20, 20, 20), tree(70, 20, 20, 20, seed=1)
    changed = Tree(first.stage, first.prompt_ids, (first.branches[0], other.branches[1], first.branches[2]))
    for precise in (True, False):
        values = []
        for t in (first, changed):
            batch = collate(pack([t, tree(6, 3, 3)], 1000)[0]).to("cuda")
            with torch.autocast("cuda", torch.bfloat16, enabled=not precise):
                found = log_probs(model, batch)
            values.append(found[~((batch.trees == 0) & (batch.branches == 1))])
        assert float((values[0] - values[1]).abs().max().detach()) == 0.0


def test_chunks_of_the_output_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy()
    whole = packed_log_probs(model, 2000)
    monkeypatch.setattr(packed, "LOGITS_AT_ONCE", 50 * VOCAB)
    assert relative(packed_log_probs(model, 2000), whole) < 1e-6


def embedded(device: str) -> tuple[Any, Any]:
    return load_model(ModelConfig(device=device))


async def sampled(model: Any, tokenizer: Any) -> list[Group]:
    engine = TransformersEngine(model, tokenizer, sampling={"generate": Sampling(1.0, 40)}, max_batch_tokens=2**16)
    texts = ("3 5 7 2 -> 24 \n solve:", "12 4 4 -> 20 \n solve:")
    return await asyncio.gather(*(engine(Prompt(t), 16, stage="generate", seed=i) for i, t in enumerate(texts)))


def test_sampled_log_probabilities_are_the_models() -> None:
    model, tokenizer = embedded("cuda")
    groups = asyncio.run(sampled(model, tokenizer))
    trees = [
        Tree("generate", tuple(g.prompt_ids or ()), tuple(Branch(c.token_ids, c.logprobs, 0.0) for c in g.completions))
        for g in groups
    ]
    told = torch.tensor([x for t in trees for b in t.branches for x in b.logprobs], device="cuda")
    assert len(told) > 200
    assert float((padded_log_probs(model, trees) - told).abs().max()) < 1e-3


def test_samples_are_the_cpus() -> None:
    """Streams are named, so but for rounding at a boundary the same tokens come."""
    groups = [asyncio.run(sampled(*embedded(device))) for device in ("cuda", "cpu")]
    texts = [[c.text for g in found for c in g.completions] for found in groups]
    same = sum(a == b for a, b in zip(*texts, strict=True))
    assert same >= 0.8 * len(texts[0])


def config_of(tmp_path: Path, **more: Any) -> Config:
    train = {"precision": "float32", "batch_tokens": 1000, **more}
    return validate(Config, {"train": train, "optimizer": {"lr": 1e-3}, "runs": str(tmp_path)})


def test_an_update_moves_the_weights_as_on_the_cpu(tmp_path: Path) -> None:
    moved = []
    for device in ("cuda", "cpu"):
        model, tokenizer = embedded(device)
        before = torch.cat([p.detach().cpu().flatten() for p in model.parameters()])
        told = Policy.from_config(model, tokenizer, config_of(tmp_path)).update(TREES_OF_WORDS, 1, {})
        moved.append((torch.cat([p.detach().cpu().flatten() for p in model.parameters()]) - before, told))
    assert moved[0][1]["grad_norm"] == pytest.approx(moved[1][1]["grad_norm"], rel=1e-3)
    assert relative(moved[0][0], moved[1][0]) < 0.05  # Adam's first step is the gradient's sign


TREES_OF_WORDS = [
    Tree(
        t.stage, tuple(4 + i % 150 for i in t.prompt_ids),
        tuple(Branch(tuple(4 + i % 150 for i in b.token_ids), b.logprobs, b.credit) for b in t.branches),
    )
    for t in TREES
]  # fmt: skip


def test_checkpointing_and_bfloat16_update(tmp_path: Path) -> None:
    norms = []
    for checkpointed in (False, True):
        model, tokenizer = embedded("cuda")
        config = config_of(tmp_path, precision="bfloat16")
        config = config.model_copy(update={"model": ModelConfig(gradient_checkpointing=checkpointed)})
        policy = Policy.from_config(model, tokenizer, config)
        norms.append(policy.update(TREES_OF_WORDS, 1, {})["grad_norm"])
        policy.save(tmp_path / f"step_{checkpointed:d}", {})
        policy.restore(tmp_path / f"step_{checkpointed:d}")
        policy.update(TREES_OF_WORDS, 2, {})
    assert norms[1] == pytest.approx(norms[0], rel=1e-2)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("rank", [0, 4])
def test_compiled_layers(tmp_path: Path, checkpointed: bool, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LOGITS_AT_ONCE", 50 * 160)
    found, norms = [], []
    for wanted in (False, True):
        torch.manual_seed(0)
        model, tokenizer = load_model(ModelConfig(device="cuda", lora_rank=rank))
        more = {"model": ModelConfig(gradient_checkpointing=checkpointed, lora_rank=rank)}
        policy = Policy.from_config(
            model, tokenizer, config_of(tmp_path, precision="bfloat16", compile=wanted).model_copy(update=more)
        )
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        values = [policy.loss(collate(row).to("cuda"), {})[0] for row in pack(TREES_OF_WORDS, 1000)]
        found.append(gradients(model, torch.stack(values).sum()))
        assert (torch._dynamo.utils.counters["stats"]["unique_graphs"] > before + 1) == wanted
        norms.append([policy.update(TREES_OF_WORDS, step, {})["grad_norm"] for step in (1, 2)])
    assert relative(found[1], found[0]) < 0.03 and norms[1] == pytest.approx(norms[0], rel=2e-2)


def test_a_cold_start(tmp_path: Path) -> None:
    task = {"name": "arithmetic", "min_numbers": 2, "max_numbers": 3, "max_value": 9}
    small = {"steps": 30, "solve_rows": 16, "review_rows": 4, "width": 64, "layers": 2, "task": task}
    said: list[str] = []
    folder = warmup.warmup(validate(warmup.WarmupConfig, {"output": str(tmp_path / "model"), **small}), said.append)
    assert (folder / "model.safetensors").is_file() and "step 30/30" in said[-1]
