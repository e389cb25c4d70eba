"""The other ways to make the same update: TRL's GRPOTrainer as it ships, and padded rows written with care.

TRL gets each stage's rollouts as its trainer holds them, made before the clock starts: prompts padded on the left and
completions on the right to the longest of that stage, in micro-batches of 8 rows (its `per_device_train_batch_size`),
which are in the order of the groups.
Its options are the default ones apart from three: float32 (on CUDA bfloat16 autocast), Dr.GRPO's loss without scaling
(the loss that ours has), and no gradient checkpointing, which is on by default and off in ours; a case "as by
default" has it on. On a CPU TRL sends every position through the output layer, on a GPU those of completions only:
the padded rows here do the latter.

prefix-grouper (verl's shared prefix) gets the trees, a prompt and its completions in a row, as many rows as our passes hold tokens.
It leaves attention, positions and loss to its user: sdpa with its masks, positions as its documentation asks, our loss.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor
from torch.nn import functional

from paragator.training import objective
from paragator.training.rows import STAGES, Tree

ROWS = 8
Inputs = dict[str, Tensor]


def trainer_of(
    model: Any,
    tokenizer: Any,
    folder: str,
    *,
    longest: int,
    group: int,
    steps: int = 1,
    checkpointing: bool = False,
    reward: Callable[..., list[float]] | None = None,
    device: str = "cpu",
    **options: Any,
) -> Any:
    """A GRPOTrainer (float32, on CUDA bfloat16) with its own optimiser, ready for `compute_loss`; `steps` micro-batches an update."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("trl").setLevel(logging.ERROR)
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        args = GRPOConfig(
            output_dir=folder,
            loss_type="dr_grpo",
            scale_rewards="none",
            max_completion_length=longest,
            num_generations=group,
            gradient_accumulation_steps=steps,
            gradient_checkpointing=checkpointing,
            bf16=device == "cuda",
            use_cpu=device == "cpu",
            report_to="none",
            **options,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward or (lambda completions, **_: [0.0] * len(completions)),
            args=args,
            train_dataset=Dataset.from_dict({"prompt": ["-"] * max(8, steps * ROWS)}),
            processing_class=tokenizer,
        )
    trainer.current_gradient_accumulation_steps = steps
    if checkpointing:
        trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trainer.create_optimizer()
    trainer.model.train()
    return trainer


def trl_backward(trainer: Any, batches: Sequence[Inputs]) -> float:
    """Accumulate the gradient of all micro-batches, as Trainer.training_step does; the summed loss."""
    trainer.current_gradient_accumulation_steps = len(batches)
    total = 0.0
    for inputs in batches:
        loss = trainer.compute_loss(trainer.model, inputs)
        trainer.accelerator.backward(loss)
        total += float(loss.detach())
    return total


def trl_update(trainer: Any, batches: Sequence[Inputs]) -> float:
    """One optimiser step of TRL on micro-batches."""
    total = trl_backward(trainer, batches)
    trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
    trainer.optimizer.step()
    trainer.model.zero_grad()
    return total


def trl_batches(trees: Sequence[Tree], constant: float, pad: int) -> list[Inputs]:
    """The rollouts as TRL's micro-batches; a branch's advantage is its credit divided by `constant`."""
    out = []
    for stage in STAGES:
        rows = [(tree.prompt_ids, branch) for tree in trees if tree.stage == stage for branch in tree.branches]
        if len(rows) % ROWS:
            raise SystemExit(f"{len(rows)} rows of stage {stage}: TRL's micro-batches need a multiple of {ROWS}")
        if not rows:
            continue
        width, length = max(len(p) for p, _ in rows), max(len(b.token_ids) for _, b in rows)
        whole = {
            "prompt_ids": [[pad] * (width - len(p)) + list(p) for p, _ in rows],
            "prompt_mask": [[0] * (width - len(p)) + [1] * len(p) for p, _ in rows],
            "completion_ids": [list(b.token_ids) + [pad] * (length - len(b.token_ids)) for _, b in rows],
            "completion_mask": [[1] * len(b.token_ids) + [0] * (length - len(b.token_ids)) for _, b in rows],
            "advantages": [b.credit / constant for _, b in rows],
        }
        for start in range(0, len(rows), ROWS):
            out.append({name: torch.tensor(column[start : start + ROWS]) for name, column in whole.items()})
    return out


def padded_backward(
    model: Any, batches: Sequence[Inputs], constant: float, dtype: torch.dtype = torch.float32
) -> float:
    """The same gradient from padded rows: logits of completion positions only, no entropy, no log of metrics.

    Another `dtype` than float32 is that of autocast in the forward pass.
    """
    total = 0.0
    for inputs in batches:
        keep = inputs["completion_ids"].shape[1]
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        with torch.autocast(mask.device.type, dtype, enabled=dtype != torch.float32):
            logits = model(
                input_ids=torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                logits_to_keep=keep + 1,
                use_cache=False,
            ).logits[:, :-1]
        real = inputs["completion_mask"].bool()
        chosen = -functional.cross_entropy(logits[real].float(), inputs["completion_ids"][real], reduction="none")
        credit = (inputs["advantages"] * constant)[:, None].expand(real.shape)[real]
        loss, _ = objective.loss(chosen, chosen.detach(), credit, objective.LossSettings())
        loss.backward()
        total += float(loss.detach())
    return total


def padded_update(
    model: Any, optimizer: Any, batches: Sequence[Inputs], constant: float, dtype: torch.dtype = torch.float32
) -> float:
    """One optimiser step on padded rows."""
    total = padded_backward(model, batches, constant, dtype)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total


# ---- prefix-grouper --------------------------------------------------------------------------------------------------

GROUPED = "prefix_grouper_sdpa"


def grouped_attention(module: Any, query: Any, key: Any, value: Any, _: Any, scaling: float, **more: Any) -> Any:
    """prefix-grouper's attention by sdpa: its own hands masks of two dimensions to flash-attn, which needs a card."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        if q.shape[2] == k.shape[2] and mask.all():
            found = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
        else:
            seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
            allowed = (seen & mask[:, None]) | torch.eye(*seen.shape, dtype=torch.bool, device=q.device) & ~mask[
                :, None
            ]
            found = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed[:, None], scale=scaling)
        return found.transpose(1, 2)

    return more["prefix_grouper"].forward(attend, query, key, value), None


def grouped_model(model: Any) -> Any:
    """The model with prefix-grouper's attention."""
    from transformers import AttentionInterface

    AttentionInterface.register(GROUPED, grouped_attention)
    model.set_attn_implementation(GROUPED)
    return model.train()


def grouped_batches(trees: Sequence[Tree], tokens: int) -> list[list[Tree]]:
    """Groups that share a pass: as many as fit that many tokens, one at least."""
    out: list[list[Tree]] = []
    for tree in trees:
        if out and (len(out[-1]) + 1) * max(t.num_tokens for t in (*out[-1], tree)) <= tokens:
            out[-1].append(tree)
        else:
            out.append([tree])
    return out


def grouped_backward(
    model: Any, batches: Sequence[Sequence[Tree]], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> float:
    """The same gradient by prefix-grouper: one prompt a group, logits of completion positions only."""
    from prefix_grouper import PrefixGrouper

    total = 0.0
    for trees in batches:
        branches = [branch for tree in trees for branch in tree.branches]
        grouper = PrefixGrouper(
            [[len(t.prompt_ids), *(len(b.token_ids) for b in t.branches)] for t in trees], device=device
        )
        width = grouper.padding_mask.shape[1]
        ids, places = [], []
        for tree in trees:
            row = [*tree.prompt_ids, *(token for b in tree.branches for token in b.token_ids)]
            own = len(tree.prompt_ids)
            place = [*range(own), *(own + i for b in tree.branches for i in range(len(b.token_ids)))]
            ids.append(row + [0] * (width - len(row)))
            places.append(place + [0] * (width - len(place)))
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            states = model.model(
                input_ids=torch.tensor(ids, device=device),
                position_ids=torch.tensor(places, device=device),
                use_cache=False,
                prefix_grouper=grouper,
            ).last_hidden_state
            _, _, suffixes, mask = grouper.split_output(states, include_prefix_last=1)
            logits = model.lm_head(suffixes[:, :-1][mask[:, 1:]])
        chosen = -functional.cross_entropy(
            logits.float(),
            torch.tensor([token for b in branches for token in b.token_ids], device=device),
            reduction="none",
        )
        credit = torch.tensor([b.credit for b in branches for _ in b.token_ids], device=device)
        loss, _ = objective.loss(chosen, chosen.detach(), credit, objective.LossSettings())
        loss.backward()
        total += float(loss.detach())
    return total


def grouped_update(model: Any, optimizer: Any, batches: Sequence[Sequence[Tree]]) -> float:
    """One optimiser step by prefix-grouper."""
    total = grouped_backward(model, batches)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total


def liger_model(model: Any) -> Any:
    """A Qwen3 whose norms and gates are Liger's kernels; rotation, head and loss stay, and its classes too."""
    from unittest import mock

    from liger_kernel.transformers import apply_liger_kernel_to_qwen3
    from transformers.models.qwen3 import modeling_qwen3 as module

    with mock.patch.multiple(module, Qwen3RMSNorm=module.Qwen3RMSNorm, Qwen3MLP=module.Qwen3MLP):
        apply_liger_kernel_to_qwen3(rope=False, fused_linear_cross_entropy=False, model=model)
    return model


def gradients(model: Any) -> dict[str, Tensor]:
    """A copy of every gradient; the gradients are then cleared."""
    found = {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """|ours - theirs| / |theirs| over all parameters together."""
    if ours.keys() != theirs.keys():
        raise SystemExit("the gradients are of other parameters")
    apart = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in theirs)
    size = sum(float(value.double().square().sum()) for value in theirs.values())
    return (apart / size) ** 0.5
