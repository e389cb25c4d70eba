"""Memory, FLOPs and time of a training step from its config alone: no weights, no torch. Times are lower bounds.

FORMULAS says in words what is computed, here and in training/memory.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.training.memory import (
    MOST_TOKENS,
    PROMPT_TOKENS,
    Shape,
    Shards,
    StageTokens,
    load_of,
    memory_of,
    part_of,
    shape_of,
    stages,
    with_tokens,
)

CARDS = {"80 GB": 80e9, "141 GB": 141e9}
"""Cards that an estimate is held against, in bytes."""
CONTEXT = 2e9
"""Bytes of a card that CUDA and the libraries take."""
FORMULAS = {
    "weights": "4 bytes x parameters (float32), and 2 more for the copies that bfloat16 autocast keeps. "
    "Under LoRA's adapters 4 bytes, with bfloat16 2, but 4 for embeddings and head. With train.ahead = 1 in one process that samples "
    "too, 4 bytes x trained parameters more",
    "gradients": "4 bytes x trained parameters",
    "optimiser": "8 bytes x trained parameters (AdamW's two moments)",
    "reference": "4 bytes x parameters when train.kl > 0; 0 with LoRA, whose adapters are switched off",
    "activations": "tokens x layers x [e (4 f + 4 q) + 4 heads + norms]: f = intermediate size, q = heads x head size, e = 4 bytes, "
    "or 2 under bfloat16; norms = 24 h (LoRA 16 h; bfloat16 26 h or 18 h) + Qwen3's 8 (q + kv) (LoRA 4; bfloat16 6 or 4). "
    "And the branches' attention: e (2 kv) a key, of the prompt and its own for each branch, and e q a branch token. Gradient "
    "checkpointing: 4 h a layer, and one whole layer at a time. And the branches' masks, once: 2 e x heads a key head x L "
    "x (P + L), L = completion, P = prompt; on CUDA none for a prompt alone, else one; one a branch where "
    "several small prompts share a call. In bfloat16 on CUDA (FlexAttention): no masks, and of attention e (2 kv) a token",
    "working": "the largest of: logits (16 bytes x predicted tokens x vocabulary, 14 under bfloat16; never more than 2^26 logits "
    "at a time); gradients of the logits (e) + of the head (4 V h); a layer's backward 4 (3 f + 3 h) a token "
    "(+ 4 V h with tied embeddings)",
    "peak": "weights + gradients + optimiser + reference + max(activations + working, optimiser's temporaries), which are "
    "8 bytes x the largest matrix on a CPU and 4 bytes x trained parameters on CUDA",
    "sharded": "(train.processes) weights, gradients, optimiser and reference divided by processes / train.replicas, and whole at a "
    "time: weights and gradients of two layers, of embeddings and of the head; the copies for bfloat16 are not divided, and with "
    "checkpointing are those of what is whole; rank 0, where it samples itself, 4 bytes x parameters more. At least what rank 0 "
    "holds when it begins: two times 4 bytes x parameters, and the reference",
    "fits": "peak + 2 GB for CUDA and the libraries <= the card; with engine.launch less the share that vLLM takes of it "
    "(--gpu-memory-utilization in engine.vllm_arguments, else its default of 0.9)",
    "not counted": "servers that run elsewhere, fragmentation",
    "flops": "6 N a trained token (8 N with gradient checkpointing; LoRA 4 N, 6 N) + 2 N more with a KL, 2 N a generated or prefilled "
    "token, N the parameters that a token uses; and for "
    "attention's scores 4 layers q a pass, token and key: half of a prompt, a prompt and its branch; half of all in generation",
    "seconds": "FLOPs / rate: a lower bound, as generation is bound by memory traffic and small products are slower than large ones",
}


def pass_flops(shape: Shape, tokens: float, seen: float, predicted: float | None = None) -> float:
    """FLOPs of one forward pass over `tokens` that attend to `seen` positions each (a mean).

    `predicted` tokens go through the output head; None counts 2 N for every token.
    """
    dense = (
        shape.active * tokens if predicted is None else (shape.active - shape.ends) * tokens + shape.head * predicted
    )
    return 2.0 * dense + 4.0 * shape.layers * shape.q * seen * tokens


def passes(config: Config) -> tuple[int, int]:
    """Forward passes' worth of a training step: of the weights' products, and of attention's, which LoRA does not save."""
    lora = bool(config.model.lora_rank)
    count = (2 if lora else 3) + config.model.gradient_checkpointing + (config.train.kl > 0)
    return count, count + lora


def flops(config: Config, shape: Shape, works: Sequence[StageTokens]) -> dict[str, float]:
    """Floating-point operations of a step by part: generate (rollouts of both stages) and update. See FORMULAS."""
    dense, scores = passes(config)
    sampling = update = 0.0
    for work in works:
        sampling += pass_flops(shape, work.generated + work.prefilled, (work.prompt + work.completion) / 2)
        products = pass_flops(shape, work.trained, 0)
        update += dense * products + scores * (pass_flops(shape, work.trained, work.seen) - products)
    return {"generate": sampling, "update": config.train.updates * update}


def estimate(
    config: Config, *, bfloat16: bool, cuda: bool, rate: float, prompt: int = PROMPT_TOKENS, fill: float = 1.0
) -> dict[str, Any]:
    """Everything that `paragator doctor --config` prints, as plain numbers: bytes, tokens, FLOPs and seconds.

    `rate` in FLOP/s; `prompt` tokens of a problem; `fill` is the mean completion length over the longest. Without
    `train.batch_tokens` it is the most that training would choose.
    """
    tokens = config.train.batch_tokens or MOST_TOKENS[cuda]
    if rate <= 0 or not 0 < fill <= 1 or prompt < 1:
        raise UsageError(f"flops = {rate}, fill = {fill}, prompt = {prompt}: use flops > 0, 0 < fill <= 1, prompt >= 1")
    shape, config = shape_of(config.model), with_tokens(config, tokens)
    full = stages(config, prompt=prompt)
    count = (config.train.processes or 1) // config.train.replicas
    shards = Shards(count, config.engine.kind == "transformers" and (count > 1 or config.train.ahead > 0))
    alone = [memory_of(config, shape, work, tokens, bfloat16, cuda) for work in full if work.trained]
    checkpointed = config.model.gradient_checkpointing
    found = [part_of(one, shape, shards, checkpointed=checkpointed, bfloat16=bfloat16) for one in alone]
    works = stages(config, prompt=prompt, fill=fill)
    work = flops(config, shape, works)
    return {
        "model": config.model.path,
        "parameters": shape.parameters,
        "trained_parameters": shape.adapters(config.model.lora_rank) if config.model.lora_rank else shape.parameters,
        "precision": "bfloat16" if bfloat16 else "float32",
        "processes": config.train.processes or 1,
        "memory_bytes": asdict(max(found, key=lambda m: m.peak)) if found else {},
        "micro_batch": {w.stage: asdict(load_of(w, tokens)) for w in full if w.trained},
        "tokens_per_step": {
            w.stage: {"generated": w.generated, "prefilled": w.prefilled, "trained": w.trained} for w in works
        },
        "flops_per_step": work,
        "flops_per_second": rate,
        "seconds_per_step": {name: value / rate for name, value in work.items()},
        "assumed": {"prompt_tokens": prompt, "fill": fill},
        "formulas": FORMULAS,
        "fits": {card: fits(config, max(m.peak for m in found), size) for card, size in CARDS.items()} if found else {},
    }


def fits(config: Config, peak: float, card: float) -> bool:
    """Whether a card of so many bytes holds a trainer's process, and the server's share where that is on the same card."""
    return peak + CONTEXT <= card * (1 - server_share(config))


def server_share(config: Config) -> float:
    """The share of the trainer's card that a vLLM takes which the run starts; 0 where it starts none."""
    if config.engine.kind != "vllm" or not config.engine.launch:
        return 0.0
    words = [word for argument in config.engine.vllm_arguments for word in argument.split("=", 1)]
    flag = "--gpu-memory-utilization"
    try:
        return float(words[words.index(flag) + 1]) if flag in words else 0.9
    except (IndexError, ValueError):
        raise UsageError(f"engine.vllm_arguments: {flag} needs a share, as in {flag}=0.3") from None
