"""Shared by the vLLM benchmarks: their own server, and requests that do not depend on what was sampled.

A request's length follows from its seed (min_tokens = max_tokens, end tokens ignored), and what an aggregation is shown
follows from the seeds of the solutions, in as many tokens as they were sampled with. So every way to run a plan makes
exactly the same requests.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import common

from paragator.core.prompts import COMPACT, Templates
from paragator.core.types import Completion, Failure, Group, Prompt, Stage
from paragator.engines.http.endpoint import Endpoint
from paragator.engines.http.openai import Limits, OpenAI
from paragator.engines.http.server import Asked, Server
from paragator.engines.http.vllm import served
from paragator.engines.sampling import Sampling

PYTHON = common.ROOT / ".venv-vllm" / "bin" / "python"
TEMPLATES: Templates = COMPACT
CONTEXT = 2048
WORDS = (
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "hand",
)
Request = tuple[tuple[int, ...], int, int]
"""Prompt ids, length, seed."""


class Fixed(OpenAI):
    """Asks for exactly `length(seed)` tokens, and notes what it asked for."""

    def __init__(self, url: str, tokenizer: Any, length: Callable[[int], int], in_flight: int) -> None:
        super().__init__(url, "policy", sampling=Sampling(1.0, 1), key="", limits=Limits(max_in_flight=in_flight))
        self.tokenizer = tokenizer
        self.servers[:] = [FixedServer(self.endpoint, self)]
        self.length, self.requests = length, list[Request]()

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        """The group with its texts replaced by words that follow from (seed, sibling)."""
        group = await super().__call__(prompt, n, stage=stage, seed=seed)
        outputs: list[Completion | Failure] = []
        for i, output in enumerate(group.outputs):
            if isinstance(output, Failure):
                raise SystemExit(f"a request failed: {output.reason}")
            words = random.Random(f"{seed}:{i}:text").choices(WORDS, k=len(output.token_ids or ()))
            outputs.append(replace(output, text=" ".join(words), finish_reason="stop"))
        return replace(group, outputs=tuple(outputs))

    async def raw(self, requests: Sequence[Request]) -> None:
        """All requests at once, straight to the server, in the order given."""
        url = self.endpoint.url
        flood = Fixed(url, self.tokenizer, self.length, len(requests))

        async def ask(request: Request) -> None:
            body = {"model": "policy", "prompt": request[0], "seed": request[2], "temperature": 1.0, "logprobs": 0}
            body |= {"max_tokens": request[1], "min_tokens": request[1], "ignore_eos": True, "return_token_ids": True}
            await flood.endpoint.post("/completions", body, lambda found: None)

        await asyncio.gather(*map(ask, requests))
        await flood.close()


class FixedServer(Server):
    """The server of a Fixed engine, asked for one completion at a time."""

    def __init__(self, endpoint: Endpoint, engine: Fixed) -> None:
        super().__init__(endpoint, "policy", {})
        self.engine, self.takes_n = engine, False

    def body(self, asked: Asked, n: int, seed: int) -> dict[str, Any]:
        tokens = self.engine.length(seed)
        self.engine.requests.append((tuple(asked.ids or ()), tokens, seed))
        body = super().body(asked, n, seed)
        return body | {"max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True}


def lengths(kind: str, longest: int) -> Callable[[int], int]:
    """A request's length from its seed: always the same, or heavy-tailed with about the same mean."""
    table = common.heavy_tailed(random.Random(kind), 64, longest)
    if kind == "uniform":
        return lambda seed: round(statistics.fmean(table))
    return lambda seed: random.Random(f"length:{seed}").choice(table)


def kinds(full: bool) -> tuple[str, ...]:
    """The kinds of lengths to measure."""
    return ("heavy tail", "uniform") if full else ("heavy tail",)


def number_type() -> str:
    """What a server computes in: bfloat16, as servers do, where this CPU has products in it; else float32."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.is_file() else []
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "float32"


@asynccontextmanager
async def vllm(log: Path, threads: int) -> AsyncIterator[str]:
    """A vLLM server with SmolLM2 for as long as the block runs; its base URL."""
    if not PYTHON.is_file() or not common.SMOLLM2.is_dir():
        raise SystemExit("needs `make vllm` and `make weights`")
    os.environ |= {
        "OMP_NUM_THREADS": str(max(1, threads - 1)),  # one core is left to the client and the server's own loop
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    arguments = [
        "--enforce-eager",
        "--distributed-executor-backend",
        "uni",
        "--dtype",
        number_type(),
        "--no-enable-chunked-prefill",
    ]
    arguments += ["--max-model-len", str(CONTEXT), "--max-num-seqs", "64"]
    common.say("starting vLLM (about a minute)")
    async with served(str(PYTHON), common.SMOLLM2, log, arguments) as url:
        yield url


async def forget(url: str) -> None:
    """Empty the server's prefix cache, so that all measurements start equal."""
    endpoint = Endpoint(url.removesuffix("/v1"))
    await endpoint.post("/reset_prefix_cache", {}, lambda found: None)
    await endpoint.client.close()


async def in_turns(
    sides: dict[str, Callable[[], Awaitable[Any]]], url: str, repeats: int, within_s: float | None = None
) -> common.Seconds:
    """`common.interleaved` for coroutines of one event loop; the server's prefix cache is emptied before each."""
    loop = asyncio.get_running_loop()
    seconds: common.Seconds = {side: [] for side in sides}
    began = time.perf_counter()
    for repeat in range(repeats):
        if common.enough(repeat, began, within_s):
            break
        for side in list(sides)[:: -1 if repeat % 2 else 1]:
            await forget(url)
            start = loop.time()
            await sides[side]()
            seconds[side].append(loop.time() - start)
        common.say(f"round {repeat + 1} of {repeats}: " + ", ".join(f"{s} {v[-1]:.1f} s" for s, v in seconds.items()))
    return seconds


def same(name: str, first: Sequence[Request], second: Sequence[Request]) -> None:
    """Check that both sides made the same requests; otherwise the comparison means nothing."""
    if sorted(first) != sorted(second):
        raise SystemExit(f"{name}: the two sides asked for different things ({len(first)} and {len(second)} requests)")
