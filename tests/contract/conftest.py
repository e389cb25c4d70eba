"""The engines under test: one scripted, one on a random two-layer model with a tokenizer of whole words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Literal

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from paragator.core.types import Completion, Failure, Group, Prompt, Sample
from paragator.engines.http.openai import OpenAI
from paragator.engines.local.compute import set_threads
from paragator.engines.local.transformers import TransformersEngine
from paragator.engines.sampling import Sampling
from paragator.engines.scripted import Scripted
from servers import Server, running

WORDS = [f"w{i}" for i in range(24)]
CONTEXT = 64
MAX_TOKENS = 12


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny matrices: threads only get in the way."""
    threads = torch.get_num_threads()
    set_threads(1)
    yield
    set_threads(threads)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, with a beginning-of-sequence token, and thinking markers as ordinary added tokens."""
    specials = ["<pad>", "<bos>", "<eos>"]
    vocabulary = {word: i for i, word in enumerate([*specials, "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(specials)
    inner.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    inner.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A random model, sharp enough that a wrong context shows in what is sampled."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


MakeEngine = Callable[..., TransformersEngine]


@pytest.fixture
def make_engine(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Iterator[MakeEngine]:
    """A transformers engine; keywords of Sampling go to both stages, `max_batch_tokens` to the engine."""
    made: list[TransformersEngine] = []

    def make(max_batch_tokens: int = 32_768, **settings: Any) -> TransformersEngine:
        sampling = Sampling(**{"max_tokens": MAX_TOKENS, **settings})
        both = {"generate": sampling, "aggregate": sampling}
        made.append(TransformersEngine(model, tokenizer, sampling=both, max_batch_tokens=max_batch_tokens))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def scripted_reply(prompt: Prompt, index: int, stage: str, seed: int) -> str | Completion | Failure:
    """A text that shows all it depends on; a prompt of more than 40 words does not fit."""
    if len(prompt.text.split()) > 40:
        return Failure("the prompt is too long")
    return f"{prompt.text} {index} {stage} {seed}"


@pytest.fixture(params=["scripted", "transformers", "openai", "openai one by one"])
def engine(request: pytest.FixtureRequest) -> Iterator[Sample]:
    """Every engine, for the contract that all keep."""
    if request.param == "scripted":
        yield Scripted(scripted_reply)
    elif request.param == "transformers":
        yield request.getfixturevalue("make_engine")()
    else:
        both = {"generate": Sampling(), "aggregate": Sampling()}
        with running(Server(context=40)) as server:
            engine = OpenAI(server.url, sampling=both)
            engine.servers[0].takes_n = request.param == "openai"
            yield engine


Ask = Callable[..., list[Group]]


@pytest.fixture
def ask() -> Ask:
    """Send (text, n, seed) requests to an engine at once, in one event loop; their groups in order."""

    def send(engine: Sample, *requests: tuple[str, int, int], stage: Literal["generate", "aggregate"] = "generate"):
        async def gather() -> list[Group]:
            calls: list[Coroutine[Any, Any, Group]] = [
                engine(Prompt(text), n, stage=stage, seed=seed) for text, n, seed in requests
            ]
            return await asyncio.gather(*calls)

        return asyncio.run(gather())

    return send
