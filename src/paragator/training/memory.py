"""Memory of a training step from its config alone, and the most tokens of one pass that the free memory holds. No torch.

Counted for llama-like decoders (llama, mistral, qwen2, qwen3) as `packed.py`, `policy.py` and torch's sdpa run them.
FORMULAS of planning/estimate.py says in words what is computed; `benchmarks/memory.py` compares it with measured peaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from paragator.config import Config, ModelConfig
from paragator.core.errors import UsageError
from paragator.core.types import Stage
from paragator.engines.local.loading import folder_of, read_json
from paragator.training.rows import LOGITS_AT_ONCE, TOGETHER

FLOAT = 4
MOST_TOKENS = {False: 4096, True: 65_536}
"""Most tokens of one pass where no budget is set, on a CPU and on CUDA: a longer one is no faster a token."""
PROMPT_TOKENS = 256
"""Assumed length of a problem with its candidate template."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the formulas need of a decoder's config.json. A mixture of experts has `experts` of `inner` a layer, `used` a token."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    normed_heads: bool = False
    biased: bool = False
    experts: int = 1
    used: int = 1

    @property
    def q(self) -> int:
        return self.heads * self.head_size

    @property
    def kv(self) -> int:
        return self.kv_heads * self.head_size

    @property
    def head(self) -> int:
        """Numbers in the output head."""
        return self.vocabulary * self.hidden

    @property
    def ends(self) -> int:
        """Numbers in the embedding and the head; a tied head counts once."""
        return self.head * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.weights(self.experts)

    @property
    def active(self) -> int:
        """The weights that one token uses: all but the experts that it is not sent to."""
        return self.weights(self.used)

    def weights(self, experts: int) -> int:
        """Numbers in the model if each layer had that many experts."""
        h = self.hidden
        layer = 2 * h * self.q + 2 * h * self.kv + 3 * h * self.inner * experts + 2 * h
        layer += h * self.experts if self.experts > 1 else 0
        layer += 2 * self.head_size if self.normed_heads else 0
        layer += self.q + 2 * self.kv if self.biased else 0
        return self.layers * layer + h + self.ends

    def adapters(self, rank: int) -> int:
        """Numbers in LoRA adapters of that rank on every linear layer but the head."""
        ends = 2 * (self.hidden + self.q) + 2 * (self.hidden + self.kv)
        ends += 3 * (self.hidden + self.inner) * self.experts
        return self.layers * rank * ends


QWEN3_4B = Shape(36, 2560, 9728, 32, 8, 128, 151_936, tied=True, normed_heads=True)
HUB = {
    "Qwen/Qwen3-4B": QWEN3_4B,
    "Qwen/Qwen3-4B-Base": QWEN3_4B,
    "Qwen/Qwen3-4B-Instruct-2507": QWEN3_4B,
    "Qwen/Qwen3-32B": Shape(64, 5120, 25_600, 64, 8, 128, 151_936, tied=False, normed_heads=True),
    "Qwen/Qwen3-235B-A22B": Shape(
        94, 4096, 1536, 64, 4, 128, 151_936, tied=False, normed_heads=True, experts=128, used=8
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Shape(30, 576, 1536, 9, 3, 64, 49_152, tied=True),
}
"""Hub ids whose sizes are known here; any other model needs a local folder."""
KNOWN_TYPES = ("llama", "mistral", "qwen2", "qwen3")


def shape_of(config: ModelConfig) -> Shape:
    """The sizes of a config's model from its local config.json, or from HUB. UsageError where neither says them."""
    folder = folder_of(config)
    if folder is not None:
        return from_json(read_json(folder / "config.json"), config.path)
    if config.path not in HUB:
        raise UsageError(
            f"model.path = {config.path!r}: sizes known are those of {', '.join(HUB)}; download it and give its folder"
        )
    return HUB[config.path]


def from_json(values: dict[str, Any], where: str) -> Shape:
    """A Shape from the object in config.json."""
    kind = values.get("model_type")
    if kind not in KNOWN_TYPES:
        raise UsageError(
            f"model.path = {where!r} is of type {kind!r}; the estimate knows {', '.join(KNOWN_TYPES)}: measure a step instead"
        )
    try:
        heads, hidden = int(values["num_attention_heads"]), int(values["hidden_size"])
        return Shape(
            int(values["num_hidden_layers"]),
            hidden,
            int(values["intermediate_size"]),
            heads,
            int(values.get("num_key_value_heads") or heads),
            int(values.get("head_dim") or hidden // heads),
            int(values["vocab_size"]),
            bool(values.get("tie_word_embeddings", False)),
            normed_heads=kind == "qwen3",
            biased=kind == "qwen2",
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UsageError(
            f"model.path = {where!r}: config.json lacks a size ({error!r}); copy the model again"
        ) from None


@dataclass(frozen=True, slots=True)
class Load:
    """One packed row: `trees` prompts of `prompt` tokens, each with `branches` of `completion` tokens."""

    trees: int
    prompt: int
    branches: int
    completion: int

    @property
    def predicted(self) -> int:
        """Branch tokens."""
        return self.trees * self.branches * self.completion

    @property
    def tokens(self) -> int:
        return self.trees * self.prompt + self.predicted

    @property
    def keys(self) -> int:
        """Keys of the branches' attention: each branch has its prompt's and its own."""
        return self.trees * self.branches * (self.prompt + self.completion)

    def mask(self, heads_per_key: int, cuda: bool) -> int:
        """Numbers in the branches' masks: one for all of a prompt alone (CUDA: none), one a branch where prompts share a call."""
        alone = self.trees == 1 or 2 * self.prompt > TOGETHER
        count = (0 if cuda else 1) if alone else min(self.trees, TOGETHER // self.prompt) * self.branches
        return count * heads_per_key * self.completion * (self.prompt + self.completion)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by part; `peak` is their highest sum at one time."""

    weights: float
    gradients: float
    optimiser: float
    reference: float
    activations: float
    working: float
    peak: float


def memory(
    shape: Shape, load: Load, *, bfloat16: bool, checkpointed: bool, lora: int = 0, kl: bool = False, cuda: bool = False
) -> Memory:
    """Bytes at the peak of a step in the steady state (moments exist, gradients accumulate). See FORMULAS."""
    trained = shape.adapters(lora) if lora else shape.parameters
    weights = (6 if bfloat16 else FLOAT) * trained
    if lora:
        weights += FLOAT * shape.ends + (2 if bfloat16 else FLOAT) * (shape.parameters - shape.ends)
    reference = FLOAT * shape.parameters if kl and not lora else 0
    flex = cuda and bfloat16
    activations, layer = kept(shape, load, bfloat16, bool(lora), flex)
    if checkpointed:
        activations = FLOAT * shape.hidden * load.tokens * shape.layers
    activations += 0 if flex else 2 * (2 if bfloat16 else FLOAT) * load.mask(shape.heads // shape.kv_heads, cuda)
    work = working(shape, load, bfloat16, layer if checkpointed else 0, bool(lora))
    temporaries = FLOAT * trained if cuda else 2 * FLOAT * (0 if lora else shape.head)
    static = weights + 3 * FLOAT * trained + reference
    peak = static + max(activations + work, temporaries)
    return Memory(weights, FLOAT * trained, 2 * FLOAT * trained, reference, activations, work, peak)


@dataclass(frozen=True, slots=True)
class Shards:
    """How a process's part of the policy is held: one of `count` shards, and where an engine samples from a copy, `whole` as well."""

    count: int = 1
    whole: bool = False


def part_of(
    found: Memory, shape: Shape, shards: Shards, *, checkpointed: bool = False, bfloat16: bool = False
) -> Memory:
    """The memory of one process whose weights, gradients and moments are sharded, from that of one alone. See FORMULAS."""
    if shards.count == 1:
        copied = found.gradients if shards.whole else 0  # as large as what is trained: the rest is shared
        return replace(found, weights=found.weights + copied, peak=found.peak + copied) if copied else found
    layer = (shape.parameters - shape.ends) / shape.layers
    gathered = 2 * layer + shape.ends  # whole at a time: two layers, and embeddings and head throughout
    held = (found.weights - (2 * shape.parameters if bfloat16 else 0)) / shards.count
    copies = 2 * (gathered if checkpointed else shape.parameters) if bfloat16 else 0
    weights = held + copies + FLOAT * gathered + (FLOAT * shape.parameters if shards.whole else 0)
    gradients = found.gradients / shards.count + FLOAT * gathered
    optimiser, reference = found.optimiser / shards.count, found.reference / shards.count
    peak = weights + gradients + optimiser + reference + found.activations + found.working
    begin = 2 * FLOAT * shape.parameters + found.reference  # rank 0 copies what it loaded before it shards that
    return Memory(weights, gradients, optimiser, reference, found.activations, found.working, max(peak, begin))


def kept(shape: Shape, load: Load, bfloat16: bool, lora: bool, flex: bool) -> tuple[float, float]:
    """Bytes that the forward pass keeps for the backward one: of all layers, and of one."""
    e = 2 if bfloat16 else FLOAT
    norms = (26 if bfloat16 else 24) - (8 if lora else 0)
    inside = (6 if bfloat16 else 8) - (2 if bfloat16 else 4) * lora
    token = e * (4 * shape.inner * shape.used + 4 * shape.q) + norms * shape.hidden + FLOAT * shape.heads
    token += inside * (shape.q + shape.kv) if shape.normed_heads else 0
    keys, repeated = (load.tokens, 0) if flex else (load.keys, load.predicted)
    layer = float(token * load.tokens + e * (2 * shape.kv * keys + shape.q * repeated))
    return shape.layers * layer, layer


def working(shape: Shape, load: Load, bfloat16: bool, recomputed: float, lora: bool) -> float:
    """Bytes of the largest temporaries beside what is kept: at the logits, at the head, or in one layer's backward."""
    e = 2 if bfloat16 else FLOAT
    logits = min(load.predicted * shape.vocabulary, LOGITS_AT_ONCE)
    at_logits = (14 if bfloat16 else 16) * logits
    head = 0 if lora else FLOAT * shape.head
    at_head = e * logits + head
    in_layer = FLOAT * 3 * (shape.inner * shape.used + shape.hidden) * load.tokens + recomputed
    return max(at_logits, at_head, in_layer + (head if shape.tied else 0))


@dataclass(frozen=True, slots=True)
class StageTokens:
    """One stage's tokens in a step; a tree of it has `branches`, fewer than the candidates where the budget is small."""

    stage: Stage
    prompt: int
    completion: int
    generated: int
    prefilled: int
    trained: int
    branches: int

    @property
    def seen(self) -> float:
        """Keys that a trained token attends to, on average: half of a prompt, or the prompt and its own branch."""
        predicted = self.branches * self.completion
        pairs = self.prompt**2 / 2 + predicted * (self.prompt + self.completion)
        return pairs / (self.prompt + predicted)


def stages(config: Config, *, prompt: int = PROMPT_TOKENS, fill: float = 1.0) -> list[StageTokens]:
    """What each stage samples and trains on in a step, every completion `fill` of its longest length."""
    method, n = config.method.definition, config.rollout.candidates
    tokens = config.train.batch_tokens or MOST_TOKENS[False]
    out, attempt = [], round(fill * config.generate.max_tokens)
    room = config.rollout.max_prompt_tokens
    names: Sequence[Stage] = ("generate", "aggregate") if method.aggregate else ("generate",)
    for name in names:
        if name == "aggregate":
            prompt += config.rollout.pool_size * attempt
            prompt = min(prompt, room) if room else prompt
        completion = max(1, round(fill * getattr(config, name).max_tokens))
        share = config.rollout.pools if name == "aggregate" else 1  # prompts of a problem and round
        group, groups = n // share, config.train.problems * share * (method.rounds if name == "aggregate" else 1)
        sampled = 0 if name == "generate" and method.source == "offline" else groups
        branches = max(1, min(group, (tokens - prompt) // completion))
        trained = groups * (group * completion + -(-group // branches) * prompt) if method.scheme(name) else 0
        out.append(
            StageTokens(name, prompt, completion, sampled * group * completion, sampled * prompt, trained, branches)
        )
    return out


def with_tokens(config: Config, tokens: int) -> Config:
    """The config with that many `train.batch_tokens`."""
    return config.model_copy(update={"train": config.train.model_copy(update={"batch_tokens": tokens})})


def budget(config: Config, shape: Shape, free: float, *, bfloat16: bool, cuda: bool) -> int:
    """`train.batch_tokens`; where it is not set, the power of two whose pass half of `free` bytes hold.

    `free` is what the weights leave; gradients and moments come out of it as well.
    """
    if config.train.batch_tokens:
        return config.train.batch_tokens
    tokens = MOST_TOKENS[cuda]

    def needs(tokens: int) -> float:
        works = stages(with_tokens(config, tokens))
        found = [memory_of(config, shape, work, tokens, bfloat16, cuda) for work in works if work.trained]
        return max((m.activations + m.working + m.gradients + m.optimiser for m in found), default=0.0)

    while tokens > 512 and needs(tokens) > free / 2:
        tokens //= 2
    return tokens


def memory_of(config: Config, shape: Shape, work: StageTokens, tokens: int, bfloat16: bool, cuda: bool) -> Memory:
    """Memory at the fullest row of a stage."""
    return memory(
        shape,
        load_of(work, tokens),
        bfloat16=bfloat16,
        checkpointed=config.model.gradient_checkpointing,
        lora=config.model.lora_rank,
        kl=config.train.kl > 0,
        cuda=cuda,
    )


def load_of(work: StageTokens, batch_tokens: int) -> Load:
    """The fullest row of a stage: as many trees as the budget holds, one at least."""
    trees = max(1, batch_tokens // (work.prompt + work.branches * work.completion))
    return Load(trees, work.prompt, work.branches, work.completion)


def free_memory(groups: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that this process may still take: what the machine has free or, if that is less, what a container's limit leaves."""
    left = [psutil.virtual_memory().available]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most, now = (int((groups / name).read_text()) for name in (limit, used))
            stat = dict(line.split() for line in (groups / limit).with_name("memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such control group, or no limit ("max")
            continue
        left.append(most - now + int(stat.get("inactive_file", 0)))  # files that were read can be dropped
    return max(0.0, float(min(left)))
