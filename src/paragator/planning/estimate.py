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
    StageTokens,
    load_of,
    memory_of,
    shape_of,
    stages,
    with_tokens,
)

FORMULAS = {
    "weights": "4 bytes x parameters (float32), and 2 more for the copies that bfloat16 autocast keeps. "
    "Under LoRA's adapters 4 bytes, with bfloat16 2, but 4 for embeddings and head",
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
    "not counted": "the rollout engine (its weights and key-value cache), the libraries themselves, fragmentation, sharding",
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
    found = [memory_of(config, shape, work, tokens, bfloat16, cuda) for work in full if work.trained]
    works = stages(config, prompt=prompt, fill=fill)
    work = flops(config, shape, works)
    return {
        "model": config.model.path,
        "parameters": shape.parameters,
        "trained_parameters": shape.adapters(config.model.lora_rank) if config.model.lora_rank else shape.parameters,
        "precision": "bfloat16" if bfloat16 else "float32",
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
    }
