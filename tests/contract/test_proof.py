"""What a run proves of its model before it starts, and models that are refused in one line."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from paragator.config import Config, ModelConfig
from paragator.core.errors import UsageError
from paragator.core.types import Prompt
from paragator.engines.encoding import encode
from paragator.engines.local import branching, proof
from paragator.engines.local.loading import EMBEDDED, load_model
from paragator.engines.local.proof import prove_sampling
from paragator.engines.local.transformers import TransformersEngine
from paragator.settings import validate
from paragator.training import attention
from paragator.training.policy import Policy
from paragator.training.proof import prove
from paragator.training.recipe import PolicySettings
from toys import TREES, gradients, packed_log_probs, padded_log_probs, relative, toy


def policy_of(model: Any, **train: Any) -> Policy:
    config = validate(Config, {"train": {"precision": "float32", **train}})
    return Policy(model, None, PolicySettings.from_config(config))


def embedded(**model: Any) -> Any:
    return load_model(ModelConfig(**model))[0]


@pytest.mark.parametrize("more", [{}, {"lora_rank": 4}])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_embedded_model_passes_and_nothing_random_is_drawn(precision: str, more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    random.seed(0)
    policy = policy_of(embedded(**more), precision=precision)
    before, drawn = torch.get_rng_state(), random.getstate()
    weights = {name: p.clone() for name, p in policy.raw.named_parameters()}
    prove(policy.raw, autocast=policy.accelerator.autocast)
    assert torch.equal(torch.get_rng_state(), before) and random.getstate() == drawn
    assert all(torch.equal(p, weights[name]) and p.grad is None for name, p in policy.raw.named_parameters())


def test_attention_that_ignores_a_window_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy("Mistral", sliding_window=4096, max_position_embeddings=32_768)
    prove(model)
    assert model.config.sliding_window == 4096
    monkeypatch.setattr(attention, "window_of", lambda module, more: None)
    with pytest.raises(
        UsageError, match=r"packed log-prob.* MistralForCausalLM differ by .* at token \d+ of 5\d, .* plain"
    ):
        prove(model)
    monkeypatch.undo()
    monkeypatch.setattr(branching, "window_of", lambda module, more: None)
    with pytest.raises(UsageError, match="sampled log-probabilities of MistralForCausalLM differ by"):
        prove_sampling(model)
    assert model.config.sliding_window == 4096


def test_a_window_that_is_never_reached_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "window_of", lambda module, more: None)
    prove(toy("Mistral", sliding_window=512, max_position_embeddings=256))


@pytest.mark.parametrize(
    "kind,more,reason",
    [
        ("DiffLlama", {}, "sampled log-probabilities of DiffLlamaForCausalLM differ by"),
        ("Doge", {}, "DogeForCausalLM cannot be trained here: RuntimeError"),
        ("StableLm", {}, "StableLmForCausalLM cannot be trained here"),
        ("Bart", {"d_model": 16}, "BartForCausalLM differ"),
        ("Roberta", {"is_decoder": True, "pad_token_id": 1}, "RobertaForCausalLM differ by"),
        ("Llama4", {}, "layers of type 'chunked_attention' cannot be packed"),
    ],
)
def test_other_conventions_are_refused_in_one_line(kind: str, more: dict[str, Any], reason: str) -> None:
    if kind == "Llama4":
        made = transformers.Llama4TextConfig(vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=2)
        made.num_attention_heads, made.num_key_value_heads, made.head_dim = 4, 2, 4
        made.pad_token_id = None
        model = transformers.Llama4ForCausalLM._from_config(made, attn_implementation="sdpa")
        model.apply(lambda m: [torch.nn.init.normal_(p, std=0.1) for p in m.parameters(recurse=False) if p.dim() > 1])
    else:
        model = toy(kind, **more)
    before = model.config._attn_implementation
    with pytest.raises(UsageError, match=reason) as error:
        prove(model)
    assert model.config._attn_implementation == before or kind == "DiffLlama"  # whose packed row is right
    assert "\n" not in str(error.value)


def test_rounding_to_16_bits_is_no_difference_and_a_wrong_mask_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy("Mistral", sliding_window=6)
    with torch.autocast("cpu", torch.bfloat16):
        prove(model)
        monkeypatch.setattr(attention, "window_of", lambda module, more: None)
        with pytest.raises(UsageError, match="packed log-probabilities of MistralForCausalLM differ by"):
            prove(model)


def test_nan_is_no_agreement() -> None:
    model = toy()
    with pytest.raises(UsageError, match="differ by inf nats at token 2 of 2"):
        proof.compare(model, "sampled", [-1.0, float("nan")], [-1.0, -1.0])


SOFT: list[tuple[str, dict[str, Any]]] = [
    ("Gemma2", {"attn_logit_softcapping": 2.0, "sliding_window": 6, "head_dim": 8, "query_pre_attn_scalar": 8}),
    ("GptOss", {"sliding_window": 6, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
]


@pytest.mark.parametrize("kind,more", SOFT, ids=[kind for kind, _ in SOFT])
def test_soft_caps_and_sinks_equal_padded(kind: str, more: dict[str, Any]) -> None:
    model = toy(kind, **more, attn_implementation="eager")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() < 2 or "expert" in name:
                p.normal_(std=0.5)
    slow = padded_log_probs(model, TREES)
    want = gradients(model, slow.sum())
    for budget in (1000, 17):
        fast = packed_log_probs(model, TREES, budget)
        assert relative(fast, slow) < 1e-5
        got = gradients(model, fast.sum())
        assert got.keys() == want.keys()
        assert max(relative(got[name], want[name]) for name in want) < 1e-4
    assert relative(padded_log_probs(model, TREES), slow) < 1e-5, "a plain forward is still itself"
    prove(model)


def copied(folder: Path, **settings: Any) -> str:
    """The embedded model in a folder of its own, with other settings in its config."""
    shutil.copytree(EMBEDDED, folder)
    found = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(found))
    return str(folder)


def refused(path: str) -> str:
    with pytest.raises(UsageError) as error:
        load_model(ModelConfig(path=path))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    assert "9 tensors are missing from its weights, such as model.layers.6." in refused(
        copied(tmp_path / "m", num_hidden_layers=7)
    )
    assert "1 tensors are missing from its weights, such as lm_head.weight" in refused(
        copied(tmp_path / "n", tie_word_embeddings=False)
    )


def test_a_tokenizer_larger_than_the_embedding(tmp_path: Path) -> None:
    path = copied(tmp_path / "m")
    found = json.loads(Path(path, "tokenizer.json").read_text())
    found["model"]["vocab"] |= {f"word{i}": 178 + i for i in range(5)}
    Path(path, "tokenizer.json").write_text(json.dumps(found))
    assert "the tokenizer has tokens up to 182, the model embeddings for 178" in refused(path)


def test_a_token_without_an_embedding_that_a_prompt_has() -> None:
    model, tokenizer = load_model(ModelConfig())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    engine = TransformersEngine(model, tokenizer, sampling={"generate": proof.Sampling(max_tokens=2)})
    with pytest.raises(UsageError, match="a prompt has token 178, the model embeddings for 178"):
        asyncio.run(engine(Prompt("1 2 <extra>"), 1, stage="generate", seed=0))


def test_no_end_token(tmp_path: Path) -> None:
    path = copied(tmp_path / "m", eos_token_id=None)
    settings = json.loads(Path(path, "tokenizer_config.json").read_text())
    settings["eos_token"] = None
    Path(path, "tokenizer_config.json").write_text(json.dumps(settings))
    Path(path, "generation_config.json").unlink()
    assert "names no end token" in refused(path)


def test_flash_attention_in_a_config_is_not_asked_for(tmp_path: Path) -> None:
    for i, name in enumerate(("_attn_implementation", "attn_implementation", "_attn_implementation_internal")):
        model, _ = load_model(ModelConfig(path=copied(tmp_path / str(i), **{name: "flash_attention_2"})))
        assert model.config._attn_implementation == "sdpa"


def test_an_end_token_that_a_tokenizer_appends_is_left_out() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    want = encode(tokenizer, Prompt("1 2"))
    end = tokenizer.eos_token
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    assert tokenizer("1 2")["input_ids"][-1] == tokenizer.eos_token_id
    found = encode(tokenizer, Prompt("1 2"))
    assert found == [i for i in want if i != tokenizer.bos_token_id] or found == want


@pytest.mark.parametrize(
    "template", ["{{ messages[0].content", "{{ raise_exception('no user') }}", "{{ missing.name }}"]
)
def test_a_broken_chat_template(template: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match="chat template fails: ") as error:
        encode(tokenizer, Prompt("hello", chat=True))
    assert "\n" not in str(error.value)
