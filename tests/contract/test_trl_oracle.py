"""Our gradient equals that of TRL's GRPOTrainer (loss_type="dr_grpo", scale_rewards="none") on the same rollouts.

TRL divides the token sum by (rollouts in the batch x max_completion_length), and the trainer then by the number of
accumulation steps, here 1. We put the same constant into the credit and sum, so the two losses and every parameter's
gradient agree without a further factor. Its KL term is plain k3 only with use_bias_correction_kl=False (1.16 defaults
to True, which multiplies k3 by the ratio).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")
pytest.importorskip("datasets")

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from paragator.training.objective import LossSettings, Reference, loss
from paragator.training.packed import collate, log_probs
from paragator.training.rows import Branch, Tree, pack

torch.set_num_threads(1)
VOCAB, PAD, EOS, MAX_COMPLETION, ROLLOUTS = 23, 0, 1, 12, 4


def toy_trainer(folder: Path, **options: Any) -> Any:
    """A GRPOTrainer on a random two-layer Llama, offline and on the CPU."""
    words = {"<pad>": PAD, "</s>": EOS} | {f"w{i}": i for i in range(2, VOCAB)}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        attn_implementation="sdpa",
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=EOS,
    )
    args = GRPOConfig(
        output_dir=str(folder),
        loss_type="dr_grpo",
        scale_rewards="none",
        use_bias_correction_kl=False,
        temperature=1.0,
        max_completion_length=MAX_COMPLETION,
        num_generations=ROLLOUTS,
        per_device_train_batch_size=2 * ROLLOUTS,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        **options,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")  # TRL loads its reference model from a path
    return GRPOTrainer(
        model=LlamaForCausalLM.from_pretrained(folder / "model", attn_implementation="sdpa"),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["w2 w3"] * 8}),
        processing_class=tokenizer,
    )


def make_trees() -> tuple[list[Tree], list[float]]:
    """Two groups of rollouts with Dr.GRPO advantages: reward minus the group's mean."""
    rng = random.Random(5)
    trees, advantages = [], []
    for prompt, rewards in ((4, (1, 0, 0, 1)), (7, (0, 0, 1, 0))):
        ids = tuple(rng.randrange(2, VOCAB) for _ in range(prompt))
        branches = []
        for reward in rewards:
            tokens = (*(rng.randrange(2, VOCAB) for _ in range(rng.randrange(2, MAX_COMPLETION))), EOS)
            advantages.append(reward - sum(rewards) / ROLLOUTS)
            credit = advantages[-1] / (MAX_COMPLETION * 2 * ROLLOUTS)
            branches.append(Branch(tokens, tuple(-rng.uniform(2, 4) for _ in tokens), credit))
        trees.append(Tree("generate", ids, tuple(branches)))
    return trees, advantages


def trl_inputs(trees: list[Tree], advantages: list[float]) -> dict[str, torch.Tensor]:
    """The same rollouts as TRL wants them: prompts padded on the left, completions on the right."""
    rows = [(tree.prompt_ids, branch) for tree in trees for branch in tree.branches]
    width, length = max(len(p) for p, _ in rows), max(len(b.token_ids) for _, b in rows)
    left = [[PAD] * (width - len(p)) + list(p) for p, _ in rows]
    right = [list(b.token_ids) + [PAD] * (length - len(b.token_ids)) for _, b in rows]
    old = [list(b.logprobs) + [0.0] * (length - len(b.logprobs)) for _, b in rows]
    return {
        "prompt_ids": torch.tensor(left),
        "prompt_mask": torch.tensor([[int(i >= width - len(p)) for i in range(width)] for p, _ in rows]),
        "completion_ids": torch.tensor(right),
        "completion_mask": torch.tensor([[int(i < len(b.token_ids)) for i in range(length)] for _, b in rows]),
        "advantages": torch.tensor(advantages),
        "old_per_token_logps": torch.tensor(old),
    }


def gradients(model: Any, value: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("moved", [False, True], ids=["on-policy", "clipped"])
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_loss_and_gradient_equal_trl(tmp_path: Path, moved: bool, beta: float) -> None:
    trainer = toy_trainer(tmp_path, beta=beta)
    model = trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trees, advantages = make_trees()
    inputs, batch = trl_inputs(trees, advantages), collate(pack(trees, 600)[0])
    if not moved:
        del inputs["old_per_token_logps"]
    if beta:
        inputs["ref_per_token_logps"] = torch.full(inputs["completion_ids"].shape, -3.0)
    theirs = trainer.compute_loss(model, inputs)
    want = gradients(model, theirs)
    ours, stats = loss(
        log_probs(model, batch),
        batch.sampled_logprobs,
        batch.credit,
        LossSettings(),
        old_logprobs=batch.sampled_logprobs if moved else None,
        reference=Reference(torch.full_like(batch.credit, -3.0), beta / (MAX_COMPLETION * 2 * ROLLOUTS))
        if beta
        else None,
    )
    got = gradients(model, ours)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-7)
    assert (stats["clipped"] > 0) == moved
    for name, value in want.items():
        assert value.norm() > 0
        assert (got[name] - value).norm() / value.norm() < 1e-5, name
