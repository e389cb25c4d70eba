"""The cold start: a small causal LM and its tokenizer, trained from scratch on demonstrations.

`paragator warmup configs/warmup-countdown.toml` writes the model that ships as "embedded".
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from paragator.config import ModelConfig, TaskConfig
from paragator.core.errors import RunError, UsageError
from paragator.engines.local.loading import folder_of, placed
from paragator.settings import Section
from paragator.tasks.demonstrations import DEMONSTRATORS, Demonstrator, Piece
from paragator.training import checkpoint

SAVE_EVERY = 200
"""Steps between checkpoints."""


class WarmupConfig(Section):
    """A cold start."""

    output: str
    """Where the model goes: config, safetensors, tokenizer."""
    start: str | None = None
    """A model to start from, as model.path names one, with the task's own words as its tokens; None: from nothing."""
    seed: int = 0
    task: TaskConfig = TaskConfig()
    width: int = Field(160, ge=32, multiple_of=32)
    """Hidden size; heads are 32 wide."""
    layers: int = Field(6, ge=1)
    context: int = Field(512, ge=64)
    """Longest sequence, in tokens."""
    steps: int = Field(2000, ge=1)
    """Optimiser steps."""
    solve_rows: int = Field(112, ge=1)
    """Solving demonstrations a step."""
    review_rows: int = Field(48, ge=1)
    """Reviewing demonstrations a step."""
    pool_size: int = Field(4, ge=1, le=8)
    """The usual pool; one batch in four has another size, from 2 to 6."""
    lr: float = Field(1.5e-3, gt=0)
    """Peak learning rate (AdamW)."""
    decay_steps: int = Field(2000, ge=1)
    """Length of the cosine from the peak to a twentieth of it."""
    prefer: float = Field(0.0, ge=0, le=1)
    """Share of late reviews that choose an attempt they call right, where there is one."""
    prefer_from: int = Field(1800, ge=0)
    """The step after which `prefer` holds; the learning rate then restarts at three tenths of its peak."""
    mend: float = Field(0.0, ge=0, le=1)
    """Share of reviews in which every attempt is wrong and the one that is chosen is written with its fault repaired."""
    careless: float = Field(0.0, ge=0, le=0.5)
    """Sums: how often a step that leaves its tens is wrong in a demonstrated solution; other steps an eighth as often."""
    threads: int | None = Field(None, ge=1)
    device: str = "auto"
    """Where it is trained: "auto" (CUDA if there is any), "cpu", "cuda"."""


def build_tokenizer(known: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a number, symbol or word; numbers above the vocabulary are <unk>; decoding joins by spaces.

    A sign belongs to its number, if no space is between them, where the vocabulary has negative numbers.
    """
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    number = r"-?\d+" if "-1" in known else r"\d+"
    words = Regex(rf"\n|->|</?think>|solve:|review:|{number}|[A-Za-z]+|[^\s\w]")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"[ \t\r]+"), "removed"), pre_tokenizers.Split(words, "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def build_model(config: WarmupConfig, words: int) -> LlamaForCausalLM:
    """A freshly initialised Llama with a vocabulary of `words`, seeded."""
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=words,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.width // 32,
            num_key_value_heads=config.width // 32,
            intermediate_size=config.width * 11 // 4 // 16 * 16,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def started(path: str, words: Sequence[str]) -> tuple[LlamaForCausalLM, Sequence[str]]:
    """A small model made before, in float32, and its words; UsageError where it lacks some of `words`."""
    folder = folder_of(ModelConfig(path=path))
    tokens = json.loads((folder / "tokenizer.json").read_bytes())["model"]["vocab"] if folder else {}
    lacking = [word for word in words if word not in tokens]
    if folder is None or lacking:
        raise UsageError(
            f"start = {path!r}: no local model that knows the words of this task, such as {lacking[0]!r}; start from nothing"
        )
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), sorted(tokens, key=tokens.__getitem__)


def collate(rows: Sequence[Sequence[Piece]], ids: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [R, T] and loss weights [R, T], right-padded with zeros."""
    tokens = [[ids[w] for text, _ in row for w in text.split(" ")] for row in rows]
    weights = [[weight for text, weight in row for _ in text.split(" ")] for row in rows]
    length = max(map(len, tokens))
    padded = [t + [0] * (length - len(t)) for t in tokens]
    return torch.tensor(padded), torch.tensor([w + [0.0] * (length - len(w)) for w in weights])


def batch(
    demonstrator: Demonstrator, config: WarmupConfig, step: int, ids: dict[str, int]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The two batches of a step, drawn from (seed, step) alone."""
    rng = Random(f"{config.seed}:warmup:{step}")
    pool_size = config.pool_size if rng.random() < 0.75 else rng.randint(2, 6)
    solve = [demonstrator.solve(rng) for _ in range(config.solve_rows)]
    prefer = config.prefer if step > config.prefer_from else 0.0
    review = [demonstrator.review(rng, pool_size, prefer, config.mend) for _ in range(config.review_rows)]
    return [collate(solve, ids), collate(review, ids)]


def weighted_loss(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The summed, weighted cross entropy of ids [R, T]; a token's weight counts where it is the target."""
    logits = model(ids[:, :-1]).logits
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum()


def warmup(config: WarmupConfig, say: Callable[[str], None]) -> Path:
    """Train from scratch, or resume from a checkpoint, and write the model; return its folder."""
    if config.task.name not in DEMONSTRATORS:
        raise UsageError(
            f"task.name = {config.task.name!r}: demonstrations exist for {' and '.join(DEMONSTRATORS)}; set one of them"
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    output = Path(config.output)
    placed(torch.nn.Linear(1, 1), config.device, "device")  # before demonstrations take their time
    say(f"{config.task.name}: preparing demonstrations")
    demonstrator = DEMONSTRATORS[config.task.name](config.task, config.seed, config.careless)
    words: Sequence[str] = demonstrator.words
    if config.start is None:
        model = build_model(config, len(words))
    else:
        model, words = started(config.start, words)
    model, tokenizer = placed(model, config.device, "device"), build_tokenizer(words)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    done, spent = resume(config, model, optimizer, say)
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(words)} tokens")
    ids = {word: i for i, word in enumerate(words)}
    start = time.perf_counter() - spent
    for step in range(done + 1, config.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        batches = [
            (rows.to(model.device), weights.to(model.device))
            for rows, weights in batch(demonstrator, config, step, ids)
        ]
        losses = update(model, optimizer, batches)
        seconds = time.perf_counter() - start
        if step % 25 == 0 or step == config.steps:
            left = seconds / step * (config.steps - step)
            shown = "  ".join(f"{name} {loss:.3f}" for name, loss in zip(("solve", "review"), losses, strict=True))
            say(f"step {step}/{config.steps}  {shown}  {seconds:.0f} s, {left:.0f} s left")
        if step % SAVE_EVERY == 0 and step < config.steps:
            meta = {"step": step, "seconds": seconds, "config": meaning(config)}
            weights = dict(model.named_parameters())
            moments = checkpoint.moments_of(optimizer, weights)
            checkpoint.save(output / "checkpoints" / f"step_{step}", weights, moments, meta)
            checkpoint.keep_newest(output / "checkpoints", 1)
    export(model, tokenizer, output)
    return output


def resume(
    config: WarmupConfig, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, say: Callable[[str], None]
) -> tuple[int, float]:
    """(steps done, seconds spent) by the newest checkpoint, now in `model` and `optimizer`; (0, 0) without one."""
    found = checkpoint.newest(Path(config.output) / "checkpoints")
    if found is None:
        return 0, 0.0
    if checkpoint.read_meta(found)["config"] != meaning(config):
        raise UsageError(
            f"output = {config.output} holds checkpoints of another warm-up; delete them or choose another"
        )
    meta = checkpoint.read_into(found, dict(model.named_parameters()), optimizer)
    say(f"resuming after step {meta['step']}")
    return meta["step"], meta["seconds"]


def meaning(config: WarmupConfig) -> dict[str, Any]:
    """What must be the same for a resumed warm-up."""
    return config.model_dump(mode="json", exclude={"output", "threads", "device"})


def learning_rate(config: WarmupConfig, step: int) -> float:
    """Linear over 150 steps, times a cosine to a twentieth; with `prefer`, another cosine from 0.3 after `prefer_from`."""
    if config.prefer and step > config.prefer_from:
        progress = (step - config.prefer_from) / max(1, config.steps - config.prefer_from)
        return config.lr * (0.05 + 0.125 * (1 + math.cos(math.pi * progress)))
    cosine = 0.05 + 0.475 * (1 + math.cos(math.pi * min(1.0, step / config.decay_steps)))
    return config.lr * min(1.0, step / 150) * cosine


def update(
    model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> list[float]:
    """One optimiser step on the weighted mean over all batches; returns each batch's own mean loss.

    RunError, and no step, where the gradient is not finite.
    """
    losses = [weighted_loss(model, ids, weights) for ids, weights in batches]
    sizes = [float(weights[:, 1:].sum()) for _, weights in batches]
    (torch.stack(losses).sum() / sum(sizes)).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if not torch.isfinite(norm):
        optimizer.zero_grad()
        raise RunError("warm-up: the gradient is not finite, so no weight was changed; start again with a lower lr")
    optimizer.step()
    optimizer.zero_grad()
    return [float(loss.detach()) / size for loss, size in zip(losses, sizes, strict=True)]


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write a folder that transformers loads."""
    model.generation_config.update(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
