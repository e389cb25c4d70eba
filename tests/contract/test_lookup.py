"""Prompt lookup: rows with drafts against the same rows without, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from paragator.config import ModelConfig
from paragator.engines.local import generation
from paragator.engines.local.branching import Ragged
from paragator.engines.local.generation import Branched, SampledSequence, SequenceRequest, sample_rows
from paragator.engines.local.loading import load_model
from paragator.engines.local.lookup import PATIENCE, Drafted
from paragator.engines.local.proof import plain_log_probs
from paragator.engines.sampling import Sampling

LONG = """3 3 9 5 -> 57
A 3 / 3 = 1 , 1 * 9 = 9 , 9 + 5 = 14
B 3 * 9 = 27 , 5 * 3 = 15 , 27 - 15 = 12
C 9 * 5 = 45 , 45 + 3 = 48 , 48 + 3 = 51
review:"""
SHORT = "3 3 9 -> 27\nA 3 / 3 = 1 , 1 * 9 = 9\nB 3 * 9 = 27 , 27 / 3 = 9\nreview:"
END = 2
Passes = list[tuple[int, int, int]]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    """Of every pass with drafts: its tokens, its rows, and the place of the last one."""
    found: Passes = []
    real = Branched.ragged

    def noted(self: Branched, token: torch.Tensor, ragged: Ragged) -> torch.Tensor:
        found.append((len(token), len(ragged.grid), ragged.length))
        return real(self, token, ragged)

    monkeypatch.setattr(Branched, "ragged", noted)
    return found


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets from how few rows on they are drafted."""
    return lambda rows: monkeypatch.setattr(generation, "FEW", {"cpu": rows})


def sampled(
    model: Any, rows: Sequence[SequenceRequest], sampling: Sampling, ends: tuple[int, ...]
) -> list[SampledSequence]:
    return sample_rows(model, rows, sampling, ends, max_batch_tokens=2**20, device=torch.device("cpu"))


def same(found: Sequence[SampledSequence], plain: Sequence[SampledSequence]) -> None:
    """Tokens and ends are equal, numbers up to float rounding."""
    assert [(f.token_ids, f.stopped) for f in found] == [(p.token_ids, p.stopped) for p in plain]
    for f, p in zip(found, plain, strict=True):
        assert f.logprobs == pytest.approx(p.logprobs, abs=1e-5)
        assert (f.certainty, f.confidences) == (
            pytest.approx(p.certainty, abs=1e-5),
            pytest.approx(p.confidences, abs=2e-3),
        )


@pytest.mark.parametrize("all_at", [4, 99])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, 40),
        Sampling(0.0, 40),
        Sampling(0.7, 33, top_p=0.9, confidence=5),
        Sampling(1.3, 23, top_k=5),
        Sampling(1.0, 1),
    ],
    ids=["plain", "greedy", "nucleus", "top k", "one token"],
)
def test_aggregations_are_the_same_with_drafts_and_without(
    sampling: Sampling, all_at: int, few: Callable[[int], None], passes: Passes
) -> None:
    """Rows of two prompts end at different places, by the end token within a draft or by max_tokens."""
    model, tokenizer = load_model(ModelConfig(path="embedded", device="cpu"))
    prompts = [tuple(tokenizer(text)["input_ids"]) for text in (LONG, SHORT)]
    rows = [SequenceRequest(ids, f"{len(ids)}:{i}") for ids in prompts for i in range(4)]
    plain = sampled(model, rows, sampling, (END,))
    assert not passes
    few(all_at)
    same(sampled(model, rows, replace(sampling, lookup=7), (END,)), plain)
    assert all(place < sampling.max_tokens for _, _, place in passes)
    if sampling.max_tokens == 40:  # the rows of the longer prompt go on for longer
        assert passes
    if all_at > len(rows) and sampling.max_tokens > 1:
        assert any(tokens > rows for tokens, rows, _ in passes)
        assert len(passes) < 2 * max(len(p.token_ids) for p in plain)


SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 80}
SHAPE |= {
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_key_value_heads": 2,
}
SOME_WINDOWS = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 12}
MODELS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": 6},
    "Gemma2": {**SOME_WINDOWS, "attn_logit_softcapping": 3.0},
    "GptOss": {**SOME_WINDOWS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
}


def made(kind: str, more: dict[str, Any]) -> Any:
    """A random model whose attention matters: weights are large."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SHAPE, **more)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_random_models_whatever_is_drafted(
    name: str, few: Callable[[int], None], passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts of the true tokens, each third one wrong, so that many are kept and each pass leaves rejected keys behind."""
    model, sampling = made(name, MODELS[name]), Sampling(1.0, 30)
    rows = [SequenceRequest(tuple(range(1, 1 + n)), f"{n}:{i}") for n in (2, 9, 15) for i in range(3)]
    ends = tuple(range(5, 9))
    plain = sampled(model, rows, sampling, ends)
    assert len({len(p.token_ids) for p in plain}) > 2
    truth = {(r.prompt_ids, p.token_ids[:1]): p.token_ids for r, p in zip(rows, plain, strict=True)}

    def guess(self: Drafted) -> list[int]:
        prompt, own = tuple(self.ids[1 : -self.place]), tuple(self.ids[-self.place :])
        rest = truth.get((prompt, own[:1]), ())[self.place :][: min(4, self.room - self.place - 1)]
        self.draft = [(t + 1) % 80 if (self.place + i) % 3 == 0 else t for i, t in enumerate(rest)]
        return [self.ids[-1], *self.draft]

    monkeypatch.setattr(Drafted, "following", guess)
    few(99)
    found = sampled(model, rows, replace(sampling, lookup=4), ends)
    same(found, plain)
    assert 0 < len(passes) < max(len(p.token_ids) for p in plain)
    told = plain_log_probs(model, [(r.prompt_ids, f.token_ids) for r, f in zip(rows, found, strict=True)])
    assert [x for f in found for x in f.logprobs] == pytest.approx(told, abs=1e-4)


def test_models_whose_state_cannot_be_cut_back_draft_nothing(few: Callable[[int], None], passes: Passes) -> None:
    model = made("Lfm2", {"full_attn_idxs": [1]})
    rows = [SequenceRequest((1, 2, 3) * 3, str(i)) for i in range(3)]
    plain = sampled(model, rows, Sampling(1.0, 9), ())
    few(99)
    same(sampled(model, rows, Sampling(1.0, 9, lookup=4), ()), plain)
    assert not passes


def row(ids: list[int], *, most: int = 8, room: int = 100, place: int = 1) -> Drafted:
    return Drafted(ids, place, Sampling(max_tokens=room, lookup=most), (END,))


def test_a_draft_is_what_followed_the_last_two_tokens_when_they_last_stood_there() -> None:
    assert row([5, 6, 7, 9, 5, 6, 8, 4, 5, 6]).following() == [6, 8, 4]
    assert row([5, 6, 7, 9, 6]).following() == [6]
    assert row([7]).following() == [7]
    assert row([5, 6, 8, 4, 5, 6], room=3, place=1).following() == [6, 8]  # the last token is drawn after the draft
    assert row([5, 6, 8, 4, 5, 6], room=2, place=1).following() == [6]


def test_drafts_grow_while_they_are_kept_and_end_in_a_row_that_keeps_none() -> None:
    copying = row([*range(10, 60), 10, 11])
    lengths = []
    for _ in range(4):
        ids = copying.following()
        lengths.append(len(ids) - 1)
        copying.take([t + 1 for t in ids])
    assert lengths == [2, 4, 8, 8] and copying.ids[-1] == 11 + sum(lengths) + 4
    other, drafted = row([5, 6, 7, 5, 6]), 0
    for _ in range(40):
        ids = other.following()
        drafted += len(ids) - 1
        other.take([8, *ids[1:]])  # not the 7 that was drafted
        other.ids[-2:] = 5, 6
        other.after[5, 6] = 3
    assert 2 * PATIENCE <= drafted <= 3 * PATIENCE and other.following() == [6]


def test_an_end_token_within_a_draft_and_the_last_place_end_a_row() -> None:
    ending = row([5, 6, END, 7, 5, 6])
    assert ending.following() == [6, END, 7]
    ending.take([END, 7, 8])
    assert ending.ended and ending.ids[-1] == END and ending.place == 2
    full = row([5, 6, 8, 9, 5, 6], room=3)
    assert full.following() == [6, 8]
    full.take([8, 9])
    assert full.ended and full.place == 3
