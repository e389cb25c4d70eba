"""What every engine keeps, and what the transformers engine keeps on top, against a model without cache or batch."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Qwen3Config,
)

from paragator.core.errors import UsageError
from paragator.core.types import Completion, Failure, Group, Prompt
from paragator.engines.encoding import encode
from paragator.engines.local import generation
from paragator.engines.local.generation import Branched, SequenceRequest, batches, draw
from paragator.engines.local.loading import add_lora
from paragator.engines.local.transformers import TransformersEngine
from paragator.engines.sampling import Sampling
from paragator.engines.scripted import Scripted

SHORT, MIDDLE, LONG = "w1 w2 w3", "w4 w5 w6 w7 w8 w9", " ".join(f"w{i % 20}" for i in range(30))
TOO_LONG = " ".join(["w1"] * 60)


# ---- every engine -------------------------------------------------------------------------------------------------


def test_siblings_come_in_number_and_in_order(engine, ask):
    few, many = ask(engine, (SHORT, 3, 7), (SHORT, 8, 7))
    assert [len(few.outputs), len(many.outputs)] == [3, 8]
    assert few.outputs == many.outputs[:3]  # sibling i does not depend on how many are asked for
    assert len(set(many.outputs)) > 1
    assert few.prompt == Prompt(SHORT)


@pytest.mark.parametrize("stage", ["generate", "aggregate"])
def test_stage_is_handed_through(engine, ask, stage):
    (group,) = ask(engine, (SHORT, 2, 7), stage=stage)
    assert group.stage == stage


def test_same_seed_same_outputs_and_other_seed_other_outputs(engine, ask):
    first, again, other = (ask(engine, (MIDDLE, 6, seed))[0] for seed in (1, 1, 2))
    assert texts(first) == texts(again)
    assert texts(first) != texts(other)


def test_what_else_is_asked_does_not_matter(engine, ask):
    (alone,) = ask(engine, (MIDDLE, 5, 3))
    together = ask(engine, (LONG, 4, 8), (SHORT, 4, 9), (MIDDLE, 5, 3), (MIDDLE, 2, 4))
    assert texts(together[2]) == texts(alone)
    assert [o.token_ids for o in together[2].outputs] == [o.token_ids for o in alone.outputs]


def test_failure_is_a_value_beside_groups_that_succeed(engine, ask):
    failed, fine = ask(engine, (TOO_LONG, 3, 1), (SHORT, 2, 1))
    assert len(failed.outputs) == 3 and all(isinstance(o, Failure) and o.reason for o in failed.outputs)
    assert len(fine.completions) == 2


def test_no_samples_is_an_empty_group(engine, ask):
    (group,) = ask(engine, (SHORT, 0, 1))
    assert group.outputs == ()


def texts(group: Group) -> list[str]:
    return [o.text for o in group.completions]


# ---- scripted -----------------------------------------------------------------------------------------------------


def test_scripted_remembers_calls_and_answers_in_the_order_of_its_delays(ask):
    ended: list[str] = []

    def reply(prompt, index, stage, seed):
        ended.append(prompt.text)
        return Completion(prompt.text, "length")

    engine = Scripted(reply, delay=lambda prompt, seed: 0.02 if prompt.text == "slow" else 0.0)
    slow, fast = ask(engine, ("slow", 1, 0), ("fast", 1, 0))
    assert ended == ["fast", "slow"]
    assert [c[0].text for c in engine.calls] == ["slow", "fast"]
    assert (slow.outputs[0].text, fast.outputs[0].finish_reason) == ("slow", "length")


# ---- transformers: oracles ----------------------------------------------------------------------------------------


def full_logits(model, ids):
    with torch.no_grad():
        return model.eval()(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_equal_a_plain_forward_pass(make_engine, model, ask, temperature):
    for group in ask(make_engine(temperature=temperature), (SHORT, 4, 1), (LONG, 4, 2), (MIDDLE, 4, 3)):
        for out in group.completions:
            logits = full_logits(model, [*group.prompt_ids, *out.token_ids])[len(group.prompt_ids) - 1 : -1]
            expected = torch.log_softmax(logits / temperature, -1)[range(len(out.token_ids)), list(out.token_ids)]
            torch.testing.assert_close(torch.tensor(out.logprobs), expected, atol=1e-4, rtol=0)


def one_row_at_a_time(model, prompt_ids, seed, index):
    """The slow oracle: one row's token ids, drawn from a plain forward pass over all of it for every token."""
    rng, ids = random.Random(f"{seed}:{index}"), list(prompt_ids)
    for _ in range(12):
        probs = torch.softmax(full_logits(model, ids)[-1].double(), -1).tolist()
        u, mass, token = rng.random() * math.fsum(probs), 0.0, -1
        while mass <= u:
            token += 1
            mass += probs[token]
        ids.append(token)
        if token == 2:
            break
    return ids[len(prompt_ids) :]


REQUESTS = ((LONG, 3, 11), (SHORT, 6, 12), (MIDDLE, 6, 13), (SHORT, 2, 14))


@pytest.mark.parametrize("max_batch_tokens", [32_768, 100, 1])
def test_equal_to_sampling_one_row_at_a_time_without_a_cache(make_engine, model, ask, max_batch_tokens):
    ended = set()
    for group, (_, _, seed) in zip(ask(make_engine(max_batch_tokens), *REQUESTS), REQUESTS, strict=True):
        for index, out in enumerate(group.completions):
            assert list(out.token_ids) == one_row_at_a_time(model, group.prompt_ids, seed, index)
            ended.add(len(out.token_ids))
    assert len(ended) > 3  # rows ended at different steps, so finished ones left the batch


MLA = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
MLA |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 8}
KINDS = {
    "qwen3": (Qwen3Config, {"head_dim": 16, "num_key_value_heads": 1}, True),
    "llama with adapters": (LlamaConfig, {"num_key_value_heads": 1}, True),
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}, True),
    "gpt_neox": (GPTNeoXConfig, {}, True),
    "opt": (OPTConfig, {"ffn_dim": 64, "word_embed_proj_dim": 32}, True),
    "mistral": (MistralConfig, {"num_key_value_heads": 1, "sliding_window": 4}, True),
    "deepseek": (DeepseekV3Config, MLA, False),
    "gemma2": (Gemma2Config, {"head_dim": 16, "num_key_value_heads": 1, "sliding_window": 4}, True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_models_share_prompts_where_they_can_and_sample_right_in_any_case(kind, tokenizer, ask, monkeypatch):
    settings, more, shares = KINDS[kind]
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape = {} if kind == "gpt2" else {**shape, "max_position_embeddings": 64}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    std = "init_std" if kind == "opt" else "initializer_range"
    config = settings(vocab_size=len(tokenizer), **{std: 0.3}, **shape, **ids, **more)
    model = AutoModelForCausalLM.from_config(config).eval()
    model = add_lora(model, 2) if "adapters" in kind else model
    before, made = model.config._attn_implementation, []
    monkeypatch.setattr(generation, "Branched", lambda *args: made.append(args) or Branched(*args))
    engine = TransformersEngine(model, tokenizer, sampling={"generate": Sampling(max_tokens=12)})
    for group, (_, _, seed) in zip(ask(engine, *REQUESTS), REQUESTS, strict=True):
        for index, out in enumerate(group.completions):
            assert list(out.token_ids) == one_row_at_a_time(model, group.prompt_ids, seed, index)
    engine.close()
    assert bool(made) == shares
    assert model.config._attn_implementation == before


def test_frequencies_match_the_distribution():
    probs = torch.tensor([0.4, 0.3, 0.2, 0.07, 0.03])
    count = 20_000
    uniforms = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = draw(probs.log().expand(count, -1) * 0.5, uniforms, Sampling(temperature=0.5))
    expected = probs * count
    chi_square = ((torch.bincount(tokens, minlength=5) - expected) ** 2 / expected).sum()
    assert chi_square < 18.5  # 4 degrees of freedom, p = 0.001
    torch.testing.assert_close(logprobs, probs.log()[tokens])


def test_the_ends_of_the_unit_interval_draw_tokens_that_have_mass():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(2, -1)
    tokens, _ = draw(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), Sampling())
    assert tokens.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("settings", "kept"), [({"top_k": 2}, {0, 1}), ({"top_p": 0.6}, {0, 1}), ({"top_p": 0.3}, {0}), ({}, {0, 1, 2, 3})]
)
def test_top_k_and_top_p_keep_the_likeliest_and_renormalise(settings, kept):
    probs = torch.tensor([0.4, 0.3, 0.2, 0.1])
    uniforms = torch.linspace(0, 0.999, 200, dtype=torch.float64)
    tokens, logprobs = draw(probs.log().expand(200, -1), uniforms, Sampling(**settings))
    assert set(tokens.tolist()) == kept
    share = probs / probs[sorted(kept)].sum()
    torch.testing.assert_close(logprobs, share.log()[tokens])


# ---- transformers: what a completion holds ------------------------------------------------------------------------


def test_finish_reasons_and_the_end_token(make_engine, ask):
    outputs = ask(make_engine(), *((SHORT, 8, seed) for seed in range(6)))
    reasons = Counter()
    for out in (o for group in outputs for o in group.completions):
        reasons[out.finish_reason] += 1
        assert len(out.token_ids) == len(out.logprobs) <= 12
        assert (out.token_ids[-1] == 2) == (out.finish_reason == "stop")
        assert 2 not in out.token_ids[:-1]
        assert out.finish_reason == "stop" or len(out.token_ids) == 12
        assert "<eos>" not in out.text
    assert set(reasons) == {"stop", "length"}


def test_token_ids_decode_to_the_text_and_thinking_markers_survive(make_engine, tokenizer, ask):
    engine = make_engine(temperature=2.0)  # hot: all tokens turn up
    outputs = [o for group in ask(engine, *((MIDDLE, 8, seed) for seed in range(8))) for o in group.completions]
    for out in outputs:
        assert out.text == tokenizer.decode(list(out.token_ids), skip_special_tokens=True)
    assert any("<think>" in o.text for o in outputs) and any("</think>" in o.text for o in outputs)


def test_a_completion_of_a_prompt_that_opens_thinking_begins_with_its_marker(make_engine, tokenizer, ask):
    outputs = ask(make_engine(), (f"{SHORT} <think>", 2, 0))[0].completions
    for out in outputs:
        assert out.text == "<think>" + tokenizer.decode(list(out.token_ids), skip_special_tokens=True)


def test_every_end_token_of_the_model_stops(make_engine, model, ask):
    model.generation_config.eos_token_id = [2, 9]
    engine = make_engine()
    assert engine.eos_ids == (2, 9)
    ends = {o.token_ids[-1] for g in ask(engine, (SHORT, 32, 0)) for o in g.completions if o.finish_reason == "stop"}
    assert ends == {2, 9}


def test_prompt_ids_and_count(make_engine, tokenizer, ask):
    engine = make_engine()
    (group,) = ask(engine, (SHORT, 1, 0))
    assert (
        list(group.prompt_ids)
        == encode(engine.tokenizer, Prompt(SHORT))
        == [1, *tokenizer.convert_tokens_to_ids(SHORT.split())]
    )
    assert engine.count(Prompt(SHORT)) == 4


def test_temperature_zero_takes_the_likeliest_whatever_the_seed(make_engine, model, ask):
    first, other = ask(make_engine(temperature=0.0), (MIDDLE, 2, 1), (MIDDLE, 1, 2))
    assert first.outputs[0].token_ids == first.outputs[1].token_ids == other.outputs[0].token_ids
    ids = [*first.prompt_ids, *first.outputs[0].token_ids]
    likeliest = full_logits(model, ids).argmax(-1).tolist()
    assert likeliest[len(first.prompt_ids) - 1 : -1] == list(first.outputs[0].token_ids)


# ---- transformers: batching ---------------------------------------------------------------------------------------


@pytest.fixture
def forward_shapes(model):
    shapes: list[tuple[int, ...]] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield shapes
    handle.remove()


def test_each_distinct_prompt_is_prefilled_once(make_engine, ask, forward_shapes):
    ask(make_engine(), (SHORT, 5, 1), (LONG, 4, 2), (SHORT, 3, 3))
    assert forward_shapes[0] == (2, 31)  # two prompts, the longer with its beginning-of-sequence token
    assert all(width == 1 for _, width in forward_shapes[1:])
    assert forward_shapes[1][0] <= 12 and len(forward_shapes) <= 12


def test_finished_rows_leave_the_batch(make_engine, ask, forward_shapes):
    ask(make_engine(max_tokens=30), (SHORT, 40, 1))
    sizes = [rows for rows, _ in forward_shapes[1:]]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]


def test_requests_of_nested_tasks_share_one_batch(make_engine, forward_shapes):
    engine = make_engine()

    async def later(index):
        for _ in range(index % 4):
            await asyncio.sleep(0)
        return await asyncio.gather(*(engine(Prompt(f"w{index}"), 2, stage="generate", seed=i) for i in range(2)))

    async def everything():
        await asyncio.gather(*(later(i) for i in range(8)))

    asyncio.run(everything())
    assert [shape for shape in forward_shapes if shape[1] > 1] == [(8, 2)]


def test_batches_keep_the_budget_and_siblings_together():
    rows = [SequenceRequest((7,) * length, f"{length}:{i}") for length in (4, 2, 9) for i in range(5)]
    parts = list(batches(rows, max_tokens=1, max_batch_tokens=40))
    assert sorted(i for part in parts for i in part) == list(range(15))
    for part in parts:
        assert len(part) * max(len(rows[i].prompt_ids) + 1 for i in part) <= 40
    assert [len(part) for part in parts] == [5, 5, 4, 1]  # only the last prompt's five rows are above the budget


def test_the_models_mode_and_gradients_are_as_before(make_engine, model, ask):
    model.train()
    model.model.layers[0].self_attn.attention_dropout = 0.5
    first, second = ask(make_engine(), (SHORT, 4, 1))[0], ask(make_engine(), (SHORT, 4, 1))[0]
    assert first.outputs == second.outputs and model.training
    model(torch.tensor([[1, 5, 6]])).logits.sum().backward()
    assert model.lm_head.weight.grad is not None


def test_weights_are_cast_once_a_batch_where_the_models_forward_autocasts(model, tokenizer, ask):
    """What Accelerate makes of a model in mixed precision; each layer's product is counted by the type of its weights."""
    inner, casts = model.forward, []

    def forward(**inputs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return inner(**inputs)

    model.forward = forward

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._to_copy.default and args[0] is model.lm_head.weight:
                casts.append(1)
            return function(*args, **(kwargs or {}))

    @contextmanager
    def autocast():
        with torch.autocast("cpu", dtype=torch.bfloat16), Casts():
            yield

    for context, expected in ((Casts, 12), (autocast, 1)):
        casts.clear()
        engine = TransformersEngine(model, tokenizer, sampling={"generate": Sampling(max_tokens=12)}, autocast=context)
        engine.eos_ids = (10**6,)
        ask(engine, (SHORT, 2, 0))
        engine.close()
        assert len(casts) == expected


def test_a_change_of_weights_counts_from_the_next_request(make_engine, model, ask):
    engine = make_engine(temperature=0.0)
    (before,) = ask(engine, (SHORT, 1, 0))
    with torch.no_grad():
        model.lm_head.weight.neg_()
    assert ask(engine, (SHORT, 1, 0))[0].outputs[0].token_ids != before.outputs[0].token_ids


# ---- transformers: what goes wrong --------------------------------------------------------------------------------


def test_a_chat_prompt_needs_a_chat_template(make_engine, tokenizer):
    engine = make_engine()
    with pytest.raises(UsageError, match=r'no chat template: set model\.template = "compact"'):
        asyncio.run(engine(Prompt("w1", chat=True), 1, stage="generate", seed=0))
    tokenizer.chat_template = (
        "{% for m in messages %}w20 {{ m.content }} {% endfor %}{% if add_generation_prompt %}w21{% endif %}"
    )
    try:
        assert encode(engine.tokenizer, Prompt("w1", chat=True)) == tokenizer.convert_tokens_to_ids(
            ["w20", "w1", "w21"]
        )
    finally:
        tokenizer.chat_template = None


def test_a_prompt_above_the_context_says_so(make_engine, ask):
    (group,) = ask(make_engine(), (TOO_LONG, 2, 0))
    assert group.outputs == (Failure("prompt of 61 tokens plus max_tokens 12 exceeds the context of 64"),) * 2
    assert len(group.prompt_ids) == 61


def test_a_stage_without_settings_is_refused(model, tokenizer):
    engine = TransformersEngine(model, tokenizer, sampling={"generate": Sampling()})
    with pytest.raises(UsageError, match="aggregate"):
        asyncio.run(engine(Prompt("w1"), 1, stage="aggregate", seed=0))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"max_tokens": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
    ],
)
def test_sampling_refuses_nonsense(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        Sampling(**settings)


def test_an_error_of_the_model_reaches_every_caller_and_the_engine_goes_on(make_engine, model, ask):
    engine = make_engine()
    forward, model.forward = model.forward, lambda **kwargs: 1 / 0
    with pytest.raises(ZeroDivisionError):
        ask(engine, (SHORT, 1, 0), (LONG, 1, 0))
    model.forward = forward
    assert len(ask(engine, (SHORT, 2, 0))[0].completions) == 2


def slowed(model, seconds):
    """A list that grows with each forward pass, which from now on takes so much longer."""
    forward, running = model.forward, []

    def slow(**kwargs):
        running.append(1)
        time.sleep(seconds)
        return forward(**kwargs)

    model.forward = slow
    return running


def test_requests_that_were_given_up_take_no_others_with_them(model, tokenizer):
    """Of two stages with settings of their own, one is given up while it waits for the other's batch."""
    both = {"generate": Sampling(1.0, 40), "aggregate": Sampling(0.5, 6)}
    engine = TransformersEngine(model, tokenizer, sampling=both)
    engine.eos_ids = ()
    running = slowed(model, 0.01)

    async def give_one_up():
        first = asyncio.create_task(engine(Prompt(SHORT), 2, stage="generate", seed=0))
        second = asyncio.create_task(engine(Prompt(SHORT), 2, stage="aggregate", seed=0))
        while not running:
            await asyncio.sleep(0.001)
        first.cancel()
        return await second

    assert [len(c.token_ids) for c in asyncio.run(give_one_up()).completions] == [6, 6]
    assert len(running) < 30


def test_cancelled_requests_end_the_batch_and_the_engine_goes_on(make_engine, model, ask, forward_shapes):
    engine = make_engine(max_tokens=40)
    engine.eos_ids = ()
    forward = model.forward
    running = slowed(model, 0.02)

    async def cancel_early():
        task = asyncio.create_task(engine(Prompt(SHORT), 2, stage="generate", seed=0))
        while not running:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_early())
    engine.close()
    assert len(running) < 20
    model.forward = forward
    assert len(ask(engine, (SHORT, 2, 0))[0].completions) == 2
