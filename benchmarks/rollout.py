"""Rollouts: the in-process engine against transformers' generate; on vLLM pipelining against a barrier and the limit.

    python benchmarks/rollout.py [--vllm] [--full] [--quick] [--repeats 5] [--threads 2]

In process: N siblings of aggregation prompts. generate gets every sibling as its own row and keeps finished rows in the
batch. Lengths are forced on both sides: by no end token at all (uniform), or by an end token at a given place (heavy tail).
On vLLM: both stages of a training step's rollouts, where a problem aggregates as soon as its own candidates are there, against waiting
for all candidates, and against the server's raw throughput: all requests of both stages at once, which no method can do.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import common
import torch
import vllm_side
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from paragator.config import ModelConfig
from paragator.core.scaffold import Scaffold, run
from paragator.core.types import Group, Plan, Problem, Prompt, Stage
from paragator.engines.local import generation
from paragator.engines.local.compute import computed_now
from paragator.engines.local.loading import load_model
from paragator.engines.local.transformers import TransformersEngine
from paragator.engines.sampling import Sampling

NO_TOKEN = 2**40
HELD = "prompts, number of siblings, length of every completion, temperature 1, float32, threads, weights"
HELD_VLLM = (
    "server, model, requests (prompts, seeds and lengths, checked), empty prefix cache at the start; "
    "the server keeps a thread less than the machine has cores"
)


@dataclass(frozen=True)
class Size:
    name: str
    model: str
    prompts: int
    tokens: int
    siblings: int
    longest: int
    tail: bool


def sizes(quick: bool) -> list[Size]:
    if quick:
        return [
            Size("SmolLM2, tiny", "smollm2", 1, 40, 4, 6, False),
            Size("embedded, tiny", "embedded", 2, 60, 4, 16, True),
        ]
    return [
        Size("SmolLM2, 1 prompt of 356, N = 8, uniform", "smollm2", 1, 356, 8, 64, False),
        Size("SmolLM2, 1 prompt of 700, N = 8, heavy tail", "smollm2", 1, 700, 8, 128, True),
        Size("embedded, 8 prompts of 112, N = 16, uniform", "embedded", 8, 112, 16, 32, False),
        Size("embedded, 8 prompts of 212, N = 16, heavy tail", "embedded", 8, 212, 16, 96, True),
    ]


class Ends(LogitsProcessor):
    """An end token at row i's place `lengths[i]`, none before."""

    def __init__(self, lengths: list[int], end: int, prompt: int) -> None:
        self.lengths, self.end, self.prompt = torch.tensor(lengths), end, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        last = (self.lengths == input_ids.shape[1] - self.prompt + 1).to(scores.device)
        scores[:, self.end] = -torch.inf
        scores[last] = -torch.inf
        scores[last, self.end] = 0
        return scores


@contextmanager
def forced(rows: dict[str, int], longest: int, end: int) -> Iterator[None]:
    """Our engine draws an end token at each stream's length and none before; a row is known by its uniform numbers."""
    place = {u: t + 1 == rows[name] for name in rows for t, u in enumerate(generation.stream(name, longest))}
    real = generation.draw

    def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
        logits[:, end] = -torch.inf
        token, logprob = real(logits, uniforms, sampling)
        last = torch.tensor([place[u] for u in uniforms.tolist()], device=token.device)
        return torch.where(last, end, token), logprob

    with mock.patch.object(generation, "draw", draw):
        yield


def generated(model: Any, every: Tensor, lengths: list[int], end: int | None) -> None:
    """transformers' generate on rows [B, T]: to `lengths`, by an `end` token or, if they are all the same, by none."""
    tokens = every.shape[1]
    model.eval()
    with torch.no_grad():
        found = model.generate(
            input_ids=every,
            attention_mask=torch.ones_like(every),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max(lengths),
            pad_token_id=0,
            eos_token_id=NO_TOKEN if end is None else end,
            logits_processor=LogitsProcessorList([] if end is None else [Ends(lengths, end, tokens)]),
        )
    assert found.shape[1] - tokens == max(lengths), "lengths were not as asked"


def in_process(size: Size, models: dict[str, Any], flags: Any) -> common.Case:
    model, tokenizer = models[size.model]
    rng = random.Random(size.name)
    texts, ids = zip(*(common.prompt_of(tokenizer, size.tokens, rng) for _ in range(size.prompts)), strict=True)
    rows = size.prompts * size.siblings
    lengths = common.heavy_tailed(rng, rows, size.longest) if size.tail else [size.longest] * rows
    sampling = Sampling(1.0, size.longest)
    engine = TransformersEngine(model, tokenizer, sampling={"aggregate": sampling}, max_batch_tokens=2**20)
    end = engine.eos_ids[0]
    engine.eos_ids = (end,) if size.tail else (NO_TOKEN,)
    streams = {f"{p}:{i}": lengths[p * size.siblings + i] for p in range(size.prompts) for i in range(size.siblings)}

    async def groups() -> list[Group]:
        calls = (engine(Prompt(t), size.siblings, stage="aggregate", seed=p) for p, t in enumerate(texts))
        return await asyncio.gather(*calls)

    def ours() -> None:
        if size.tail:
            with forced(streams, size.longest, end):
                found = asyncio.run(groups())
        else:
            found = asyncio.run(groups())
        assert [len(c.token_ids or ()) for g in found for c in g.completions] == lengths, "lengths were not as asked"

    every = torch.tensor([list(row) for row in ids for _ in range(size.siblings)])

    def theirs() -> None:
        generated(model, every, lengths, end if size.tail else None)

    warm = size.model == "embedded" or flags.quick
    seconds = common.interleaved(
        {"ours": ours, "theirs": lambda: computed_now(theirs)}, flags.repeats, warm=warm, within_s=flags.within
    )
    engine.close()
    peer = f"transformers {common.installed('transformers')} generate"
    made = sum(lengths)
    found = common.case(size.name, seconds["ours"], peer, seconds["theirs"], HELD, sampled_tokens=made)
    return {**found, "tokens_per_s": made / found["ours_s"], "peer_tokens_per_s": made / found["peer_s"]}


class Barrier:
    """A `Sample` whose aggregations wait until the candidates of all problems are there."""

    def __init__(self, sample: Any, problems: int) -> None:
        self.sample, self.missing, self.open = sample, problems, asyncio.Event()

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        if stage == "aggregate":
            await self.open.wait()
        group: Group = await self.sample(prompt, n, stage=stage, seed=seed)
        if stage == "generate":
            self.missing -= 1
            if not self.missing:
                self.open.set()
        return group


async def on_vllm(kind: str, url: str, tokenizer: Any, flags: Any) -> list[common.Case]:
    """Pipelined against a barrier, and against everything at once."""
    count, plan, longest = (2, Plan.training(2, 2), 8) if flags.quick else (8, Plan.training(4, 4), 160)
    rng = random.Random("rollout")
    problems = [Problem(f"p{i}", common.prompt_of(tokenizer, 60, rng)[0]) for i in range(count)]
    engine = vllm_side.Fixed(url, tokenizer, vllm_side.lengths(kind, longest), in_flight=256)
    asked: dict[str, list[vllm_side.Request]] = {}

    async def side(name: str) -> None:
        engine.requests = []
        sample = Barrier(engine, count) if name == "barrier" else engine
        await asyncio.gather(*(run(p, sample, Scaffold(plan, vllm_side.TEMPLATES)) for p in problems))
        asked[name] = engine.requests

    sides = {"pipelined": lambda: side("pipelined"), "barrier": lambda: side("barrier")}
    first = {"pipelined": sides["pipelined"]}  # warm-up, and the requests that raw repeats
    await vllm_side.in_turns(first, url, 1)
    sides["raw"] = lambda: engine.raw(asked["pipelined"])
    seconds = await vllm_side.in_turns(sides, url, flags.repeats, flags.within)
    vllm_side.same(kind, asked["pipelined"], asked["barrier"])
    await engine.close()
    name = f"vLLM, {count} problems, N = {plan.candidates}, m = {plan.pool_size}, {kind}"
    made = sum(length for _, length, _ in asked["pipelined"])
    more = {"sampled_tokens": made, "requests": len(asked["pipelined"]), "number_type": vllm_side.number_type()}
    found = []
    for side_name, peer in (("barrier", "a barrier between the stages"), ("raw", "vLLM, all requests at once")):
        row = common.case(name, seconds["pipelined"], peer, seconds[side_name], HELD_VLLM, **more)
        row |= {"tokens_per_s": made / row["ours_s"], "peer_tokens_per_s": made / row["peer_s"]}
        found.append(row)
    return found


async def vllm_cases(flags: Any) -> list[common.Case]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(common.model_path("smollm2"))
    with tempfile.TemporaryDirectory() as folder:
        async with vllm_side.vllm(Path(folder) / "vllm.log", flags.threads) as url:
            return [row for kind in vllm_side.kinds(flags.full) for row in await on_vllm(kind, url, tokenizer, flags)]


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--full", action="store_true", help="on vLLM uniform lengths too")
    parser.add_argument("--vllm", action="store_true", help="also on a vLLM server (make vllm)")
    flags = parser.parse_args()
    common.use_threads(flags.threads)
    paths = {name: common.model_path(name) for name in ("smollm2", "embedded")}
    models = {name: computed_now(load_model, ModelConfig(path=path, device="cpu")) for name, path in paths.items()}
    cases = []
    for size in sizes(flags.quick):
        cases.append(in_process(size, models, flags))
        common.print_cases(cases[-1:], "tokens_per_s")
    models.clear()
    if flags.vllm:
        cases += asyncio.run(vllm_cases(flags))
    common.finish(flags, "rollout", cases, "tokens_per_s", "peer_tokens_per_s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
