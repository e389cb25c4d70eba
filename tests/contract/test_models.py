"""docs/models.md: which architectures can be trained and sampled in this process, from tiny random models of each.

What a run proves before it starts decides; the numbers beside it are against an oracle of their own (padded rows, whole
forwards). `python tests/contract/test_models.py` writes the document anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script

from paragator.core.errors import UsageError
from paragator.engines.local.branching import rope_limit
from paragator.engines.local.generation import SequenceRequest, sample_rows
from paragator.engines.local.proof import plain_log_probs, prove_sampling
from paragator.engines.sampling import Sampling
from paragator.training.proof import prove
from toys import TREES, gradients, packed_log_probs, padded_log_probs, relative

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
WINDOW, SWITCH = 6, 40
BASE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BASE |= {"max_position_embeddings": 128, "vocab_size": 80, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**BASE, "num_key_value_heads": 2}
HEAD = {**GROUPED, "head_dim": 12}
MIXED = ["sliding_attention", "full_attention"]
WINDOWED = {"sliding_window": WINDOW, "layer_types": MIXED}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16}
LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4}
LATENT |= {"v_head_dim": 10}
N_STYLE = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 80, "num_kv_shared_layers": 0}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0, **more}}


LONG = rope("longrope", short_factor=[1.0] * 4, long_factor=[3.0] * 4, original_max_position_embeddings=SWITCH)
NO_DROPOUT = "with dropout in its config"

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Apertus": ("Apertus", GROUPED),
    "Arcee": ("Arcee", GROUPED),
    "BART decoder": ("Bart", {**BASE, "d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 48}),
    f"BioGPT, {NO_DROPOUT}": ("BioGpt", BASE),
    "BLOOM": ("Bloom", {**BASE, "n_layer": 2, "n_head": 4}),
    "Cohere": ("Cohere", GROUPED),
    "Cohere 2, windows": ("Cohere2", {**GROUPED, **WINDOWED}),
    "DeepSeek V2": ("DeepseekV2", {**BASE, **LATENT, **ROUTED, "first_k_dense_replace": 1, "n_shared_experts": 1}),
    "DeepSeek V3": ("DeepseekV3", {**BASE, **LATENT, **ROUTED, "first_k_dense_replace": 1}),
    "DiffLlama": ("DiffLlama", GROUPED),
    "Doge": ("Doge", GROUPED),
    "Ernie 4.5": ("Ernie4_5", HEAD),
    "EXAONE 4, windows": ("Exaone4", {**GROUPED, **WINDOWED}),
    "Falcon": ("Falcon", {**BASE, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "Falcon-H1": (
        "FalconH1",
        {**GROUPED, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_d_ssm": 32},
    ),
    "Gemma": ("Gemma", HEAD),
    "Gemma 2, soft caps and windows": ("Gemma2", {**HEAD, **WINDOWED, "attn_logit_softcapping": 3.0}),
    "Gemma 3, windows": ("Gemma3Text", {**HEAD, **WINDOWED}),
    "Gemma 3n, windows": (
        "Gemma3nText",
        {**HEAD, **WINDOWED, **PER_LAYER, "intermediate_size": [48] * 2, "activation_sparsity_pattern": [0.0] * 2}
        | {"laurel_rank": 4, "altup_num_inputs": 2},
    ),
    "Gemma 4, two head sizes and windows": ("Gemma4Text", {**HEAD, **WINDOWED, **PER_LAYER, "global_head_dim": 24}),
    "GLM-4": ("Glm4", {**GROUPED, "head_dim": 8}),
    "GLM-4 MoE": ("Glm4Moe", {**GROUPED, **ROUTED, "head_dim": 8, "first_k_dense_replace": 1}),
    f"GPT-2, {NO_DROPOUT}": ("GPT2", {**BASE, **N_STYLE}),
    "GPT-J": ("GPTJ", {**BASE, **N_STYLE, "rotary_dim": 8}),
    "GPT-NeoX": ("GPTNeoX", BASE),
    "gpt-oss, sinks and windows": ("GptOss", {**HEAD, **WINDOWED, **LOCAL}),
    "Granite": ("Granite", {**GROUPED, "attention_multiplier": 0.2, "logits_scaling": 2.0}),
    "Granite MoE": ("GraniteMoe", {**GROUPED, **LOCAL}),
    "Helium": ("Helium", {**GROUPED, "head_dim": 8}),
    "HunYuan": ("HunYuanDenseV1", HEAD),
    "JetMoE": ("JetMoe", {**BASE, "num_key_value_heads": 4, "kv_channels": 8, **LOCAL, "num_experts_per_tok": 1}),
    "LFM2": ("Lfm2", {**GROUPED, "full_attn_idxs": [1]}),
    "Llama": ("Llama", GROUPED),
    "Llama, Llama 3's rotary frequencies": (
        "Llama",
        GROUPED | rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=SWITCH),
    ),
    "Llama, YaRN": ("Llama", GROUPED | rope("yarn", original_max_position_embeddings=SWITCH)),
    "Llama, dynamic rotary frequencies": ("Llama", GROUPED | rope("dynamic") | {"max_position_embeddings": SWITCH}),
    "Llama 4, chunks": ("Llama4Text", {**HEAD, **LOCAL, "intermediate_size_mlp": 48, "attention_chunk_size": WINDOW}),
    "Mamba": ("Mamba", {**BASE, "state_size": 8}),
    "MiniCPM 3": ("MiniCPM3", {**BASE, **LATENT}),
    "Ministral, windows": ("Ministral", {**HEAD, **WINDOWED}),
    "Mistral, windows": ("Mistral", {**GROUPED, "sliding_window": WINDOW}),
    "Mixtral, router noise and windows": (
        "Mixtral",
        {**GROUPED, **LOCAL, "sliding_window": WINDOW, "router_jitter_noise": 0.3},
    ),
    "Nemotron": ("Nemotron", GROUPED),
    "OLMo 2": ("Olmo2", GROUPED),
    "OLMo 3, windows": ("Olmo3", {**GROUPED, **WINDOWED}),
    "OLMoE": ("Olmoe", {**GROUPED, **EXPERTS}),
    f"OPT, {NO_DROPOUT}": ("OPT", {**BASE, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "Persimmon": ("Persimmon", BASE),
    "Phi": ("Phi", BASE),
    "Phi-3, windows": ("Phi3", {**GROUPED, "sliding_window": WINDOW}),
    "Phi-3, longrope": ("Phi3", {**GROUPED, **LONG, "original_max_position_embeddings": SWITCH}),
    "Phi MoE, windows": ("Phimoe", {**GROUPED, **LOCAL, "sliding_window": WINDOW}),
    "Qwen 2, windows": ("Qwen2", {**GROUPED, **WINDOWED, "use_sliding_window": True}),
    "Qwen 2 MoE, windows": (
        "Qwen2Moe",
        {**GROUPED, **WINDOWED, **EXPERTS, "use_sliding_window": True, "shared_expert_intermediate_size": 16},
    ),
    "Qwen 3": ("Qwen3", HEAD),
    "Qwen 3 MoE": ("Qwen3Moe", {**HEAD, **EXPERTS}),
    "Qwen3-Next": (
        "Qwen3Next",
        {**HEAD, **EXPERTS, **LINEAR, "shared_expert_intermediate_size": 16, "num_hidden_layers": 4},
    ),
    "RoBERTa decoder": ("Roberta", {**BASE, "is_decoder": True}),
    "Seed-OSS": ("SeedOss", HEAD),
    "SmolLM 3, windows": ("SmolLM3", {**GROUPED, **WINDOWED, "use_sliding_window": True, "no_rope_layers": [1, 0]}),
    "StableLM": ("StableLm", GROUPED),
    "Starcoder 2, windows": ("Starcoder2", {**GROUPED, "sliding_window": WINDOW}),
}


@dataclass(frozen=True)
class Row:
    """What is said of an architecture; numbers are differences from the oracle, None where it is refused."""

    name: str
    updates: str
    sampling: str
    numbers: tuple[float | None, float | None, float | None]

    def verdict(self) -> str:
        return f"| {self.name} | {self.updates} | {self.sampling} |"

    def line(self) -> str:
        shown = ("" if x is None else f"{max(x, 1e-7):.0e}" for x in self.numbers)
        return f"{self.verdict()} {' | '.join(shown)} |"


def made(kind: str, settings: dict[str, Any]) -> Any:
    """A random model whose attention matters: weights are large."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**settings)
    load = transformers.AutoModelForCausalLM.from_config
    try:
        model = load(config, attn_implementation="sdpa", dtype=torch.float32)
    except ValueError:  # as in load_model
        model = load(config, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1 or "sinks" in name:
                p.normal_(std=0.3)
    return model.eval()


def tried(check: Callable[[], None], limit: int | None) -> str:
    """What a run would say of it."""
    try:
        check()
    except UsageError as error:
        text = str(error)
        assert "\n" not in text
        if "differ by" in text:
            return "refused: differs from a plain forward"
        if "Error: " in text or "keeps arguments" in text:
            return "refused: attends in a way of its own"
        return f"refused: {text.split(':')[0]}"
    return "works" if limit is None else f"works up to {limit} tokens, where its rotary frequencies change"


def row_of(name: str) -> Row:
    """Both proofs, and where they pass the differences from padded rows and whole forwards."""
    model = made(*KINDS[name])
    limit = rope_limit(model.config.get_text_config())
    sampling = tried(lambda: prove_sampling(model), limit)
    updates = tried(lambda: prove(model, sampling=False), limit)
    packed = gradient = sampled = None
    if updates.startswith("works"):
        fast, slow = packed_log_probs(model, TREES, 30), padded_log_probs(model, TREES)
        packed = float((fast - slow).abs().max())
        got, want = gradients(model, fast.sum()), gradients(model, slow.sum())
        everything = [torch.cat([g[n].flatten() for n in want]) for g in (got, want)]
        gradient = relative(everything[0], everything[1])
    if sampling.startswith("works"):
        rows = [SequenceRequest(tuple(range(3, 3 + n)), f"{n}:{i}") for n in (2, 9, 20) for i in range(3)]
        options = {"max_batch_tokens": 10_000, "device": torch.device("cpu")}
        found = sample_rows(model, rows, Sampling(max_tokens=12), (), **options)
        plain = plain_log_probs(model, [(r.prompt_ids, f.token_ids) for r, f in zip(rows, found, strict=True)])
        apart = torch.tensor([x for f in found for x in f.logprobs]) - torch.tensor(plain)
        sampled = float(apart.abs().max())
    return Row(name, updates, sampling, (packed, gradient, sampled))


@pytest.fixture(scope="module")
def written() -> list[str]:
    return DOCUMENT.read_text().splitlines()


@pytest.mark.parametrize("name", KINDS)
def test_the_document_says_what_is_so_and_nothing_is_silently_wrong(name: str, written: list[str]) -> None:
    row = row_of(name)
    assert all(x is None or x < 1e-4 for x in row.numbers), row
    assert any(line.startswith(row.verdict()) for line in written), f"python {Path(__file__).name} writes: {row.line()}"


def test_the_document_has_no_other_rows(written: list[str]) -> None:
    names = [line.split(" | ")[0].strip("| ") for line in written if line.startswith("| ")]
    assert names == ["architecture", "---", *KINDS]


HEAD_OF_DOCUMENT = f"""# Models

Any causal language model of transformers can be loaded. Whether it is also computed rightly, a run finds out before it
samples anything: it compares a packed row of two small trees, and a few sampled tokens, with a plain forward of the same
model. The two may differ by 0.002 nats at one token and by 0.0005 on average in float32, and under bfloat16 by 0.3 on
average. A model that differs by more is refused in one line, which says by how much and where. This takes about a second
for a small model, draws no random number and changes no weight.

Windows, soft caps, attention sinks, latent attention and layers of several head sizes are kept in updates and in sampling.
Updates compute in evaluation mode: dropout and router noise that a config asks for are off, as they are in sampling. Where
rotary frequencies depend on a sequence's length (longrope, dynamic), prompts and completions must stay below the length at
which they change. Models that are refused here can still be evaluated through a server.

The table is written by `tests/contract/test_models.py` from tiny random models with windows of {WINDOW} tokens. Packed and sampled:
the largest difference of a log-probability from padded rows and whole forwards, in nats; gradient: its relative difference.

| architecture | updates | sampling in process | packed | gradient | sampled |
| --- | --- | --- | --- | --- | --- |
"""


@pytest.mark.parametrize("name", ["DeepSeek V2", "Llama 4, chunks", "Qwen 3"])
def test_sampling_is_right_on_several_threads_too(name: str) -> None:
    """Where linear layers of a CPU compute the transposed product, whose result no code may view as complex numbers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        prove_sampling(made(*KINDS[name]))
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    DOCUMENT.write_text(HEAD_OF_DOCUMENT + "\n".join(row_of(name).line() for name in KINDS) + "\n")
