"""How sure a model is of its tokens: in this process against a plain forward, over HTTP in both forms of servers."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import pytest
import torch

from paragator.core.types import Completion, Prompt
from paragator.engines.http.choices import cached_of, confidences_of
from paragator.engines.http.openai import OpenAI, Prices
from paragator.engines.local.transformers import TransformersEngine
from paragator.engines.sampling import Sampling
from servers import Server, running

PROMPT = Prompt("w1 w2 w3")


def test_in_process_it_is_that_of_a_plain_forward(model: Any, tokenizer: Any) -> None:
    """Both measures recomputed token by token from the whole sequence, at temperature 1 whatever is sampled at."""
    sampling = Sampling(1.3, 8, confidence=5)
    engine = TransformersEngine(model, tokenizer, sampling={"generate": sampling})
    group = asyncio.run(engine(PROMPT, 6, stage="generate", seed=1))
    assert group.prompt_ids is not None
    for one in group.completions:
        assert one.token_ids is not None and one.confidences is not None and one.certainty is not None
        ids = torch.tensor([[*group.prompt_ids, *one.token_ids]])
        with torch.no_grad():
            logprobs = model(ids).logits[0].float().log_softmax(-1)[len(group.prompt_ids) - 1 : -1]
        top = -logprobs.topk(5).values.mean(-1)
        assert list(one.confidences) == pytest.approx(top.tolist(), abs=6e-4)
        vocabulary = logprobs.shape[-1]
        certainty = -(logprobs + math.log(vocabulary)).sum() / (len(one.token_ids) * vocabulary)
        assert one.certainty == pytest.approx(float(certainty), abs=1e-4)


def test_asking_for_it_changes_no_sample(model: Any, tokenizer: Any) -> None:
    found = []
    for confidence in (0, 3):
        engine = TransformersEngine(model, tokenizer, sampling={"generate": Sampling(1.0, 8, confidence=confidence)})
        found.append(asyncio.run(engine(PROMPT, 5, stage="generate", seed=2)).completions)
    assert [one.token_ids for one in found[0]] == [one.token_ids for one in found[1]]
    assert all(one.confidences is None for one in found[0])


@pytest.mark.parametrize("form", ["chat", "text"])
def test_over_http_it_is_the_mean_of_what_came(form: str) -> None:
    rng = random.Random(form)
    tokens = [[-rng.expovariate(0.3) for _ in range(rng.randrange(1, 6))] for _ in range(7)]
    if form == "chat":
        content = [
            {"token": "x", "logprob": -1, "top_logprobs": [{"token": "x", "logprob": v} for v in t]} for t in tokens
        ]
        found: Any = {"content": content}
    else:
        found = {"top_logprobs": [{str(i): v for i, v in enumerate(t)} for t in tokens], "token_logprobs": [-1] * 7}
    assert confidences_of(found) == pytest.approx([-sum(t) / len(t) for t in tokens], abs=5.1e-4)


@pytest.mark.parametrize(
    "found",
    [None, {}, [], {"content": None}, {"content": [{"token": "x"}]}, {"content": [3]}, {"top_logprobs": [{}, None]}],
)
def test_servers_that_tell_nothing(found: Any) -> None:
    assert confidences_of(found) is None


@pytest.mark.parametrize(
    ("usage", "cached"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 7}}, 7),
        ({"prompt_cache_hit_tokens": 3}, 3),
        ({"cache_read_input_tokens": 0}, 0),
        ({"prompt_tokens_details": None}, None),
        ({}, None),
        (None, None),
    ],
)
def test_cached_prompt_tokens(usage: Any, cached: int | None) -> None:
    assert cached_of({"usage": usage}) == cached


def test_cached_tokens_cost_what_they_cost() -> None:
    assert Prices(2.0, 10.0).cost(1_000_000, 100_000, 500_000) == pytest.approx(3.0)
    assert Prices(2.0, 10.0, 0.5).cost(1_000_000, 100_000, 500_000) == pytest.approx(2.25)


def test_a_server_that_refuses_is_asked_without() -> None:
    """And the completion then has no confidences, so that a strategy says that it fell back."""

    async def asked(url: str) -> Any:
        engine = OpenAI(url, "m", sampling=Sampling(1.0, 8, confidence=20), key="")
        try:
            return await engine(Prompt("x", chat=True), 1, stage="generate", seed=1)
        finally:
            await engine.close()

    refusal = (400, "top_logprobs is not supported by this model")
    with running(Server(script=[refusal, "ok"])) as server, pytest.warns(UserWarning, match="refuses"):
        group = asyncio.run(asked(server.url))
    (one,) = group.outputs
    assert isinstance(one, Completion) and one.confidences is None
    bodies = [call.body for call in server.calls if call.path.endswith("completions")]
    assert bodies[0]["logprobs"] is True and bodies[0]["top_logprobs"] == 20
    assert not {"logprobs", "top_logprobs"} & bodies[-1].keys()
