"""vLLM-like servers that die, come back with old weights, answer 5xx, hang, forget their cache; and training on them.

A completion's first token says from which weights it is, so that the learner sees what it is trained on. Everything runs in
one event loop; no model is computed.

    PYTHONPATH=src:tests python tests/mortal.py 100        # so many runs, and what they met
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paragator.config import Config
from paragator.core.errors import RunError
from paragator.core.packing import Packer
from paragator.core.types import Problem
from paragator.engines.http import endpoint, fleet, vllm, weights
from paragator.engines.http.openai import Limits, OpenAI
from paragator.engines.http.vllm import VllmEngine
from paragator.engines.http.weights import Adapter, Weights
from paragator.engines.sampling import Sampling
from paragator.settings import validate
from paragator.tasks import Task, load_task
from paragator.training import checkpoint
from paragator.training.loop import Sampler, train
from paragator.training.recipe import Recipe
from servers import Call, Connection, VllmServer

STEPS = 4
FAULTS = ("die", "old", "unseen", "5xx", "hang", "cache")
HURRY: dict[str, tuple[Any, float]] = {
    "SILENT_S": (endpoint, 0.2),
    "PING_EVERY_S": (fleet, 0.1),
    "PING_TIMEOUT_S": (fleet, 1.0),
    "FIRST_PAUSE_S": (fleet, 0.02),
    "LONGEST_PAUSE_S": (fleet, 0.2),
    "TRIAL_TIMEOUT_S": (fleet, 1.0),
    "LATE_S": (vllm, 1.0),
    "CHECK_TIMEOUT_S": (weights, 1.0),
    "ROUTE_TIMEOUT_S": (weights, 1.0),
}
"""Waits that are tens of seconds for people are one here: more than this process may stand still on a busy machine."""


@dataclass
class Mortal(VllmServer):
    """`mood` is what ails it; a cut connection is all that a client sees of a death."""

    mood: str = ""
    open: set[Any] = field(default_factory=set)

    async def start(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        self.counts = None
        self.listening = await loop.create_server(lambda: Thread(self), self.host, self.port)
        self.port = self.listening.sockets[0].getsockname()[1]
        return self.listening

    def end(self) -> None:
        self.listening.close()
        for transport in list(self.open):
            transport.abort()

    def forget(self, old: str | None = None) -> None:
        """Have the weights that it was started with, or those of an old version."""
        self.weights, self.label, self.paused = old, old or "default", False
        self.adapters.clear()

    def choose(self, call: Call) -> str | tuple[int, str]:
        if self.mood == "hang":
            return "stall"
        if self.mood == "5xx" and call.path.startswith("/v1/completions"):
            return 500, "engine dead"
        return super().choose(call)

    def answer(self, call: Call) -> dict[str, Any]:
        found = super().answer(call)
        return {"success": False} if self.mood == "cache" and call.path == "/reset_prefix_cache" else found

    def choice(self, body: Any, prompt: str, index: int, chat: bool) -> dict[str, Any]:
        rng = random.Random(f"{prompt}:{body['seed']}:{index}")
        held = self.adapters.get(body["model"], self.weights)
        ids = [int(held.rpartition("_")[2]) if held else 99, rng.randrange(100)]
        text = f"\\boxed{{{rng.randrange(2)}}}"
        told = {"token_logprobs": [-1.0, -1.0]}
        return {"index": index, "finish_reason": "stop", "text": text, "words": 2, "token_ids": ids, "logprobs": told}


class Thread(Connection):
    """A connection that its server can cut."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.server.open.add(transport)  # type: ignore[attr-defined]

    def connection_lost(self, error: Exception | None) -> None:
        self.server.open.discard(self.transport)  # type: ignore[attr-defined]
        super().connection_lost(error)


class Words:
    """A tokenizer of the number of words."""

    eos_token_id = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()]}

    def decode(self, ids: Sequence[int]) -> str:
        return ""


class Learner:
    """Keeps the versions of the weights that it was trained on, by step; changes none."""

    def __init__(self) -> None:
        self.updates = 0
        self.seen: dict[int, set[int]] = {}

    def update(self, trees: Sequence[Any], step: int, kl_constants: Mapping[Any, float]) -> dict[str, float]:
        self.updates += 1
        self.seen[step] = {branch.token_ids[0] for tree in trees for branch in tree.branches}
        time.sleep(0.02)
        return {"updated": 1.0, "mismatch_kl": 0.0}

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        checkpoint.save(folder, {}, {}, {**meta, "updates": self.updates})

    def restore(self, folder: Path) -> dict[str, Any]:
        meta = checkpoint.read_meta(folder)
        self.updates = meta["updates"]
        return meta

    def publish(self) -> None: ...

    def close(self) -> None: ...

    def export(self, folder: Path) -> None:
        (folder / "adapter_config.json").write_text('{"r": 8}')


class Quiet:
    """Events that nobody hears."""

    def on_step(self, metrics: Mapping[str, float], records: Sequence[Any]) -> None: ...

    async def evaluate(self, number: int) -> None: ...

    def should_stop(self) -> bool:
        return False


@dataclass
class Trial:
    """One run's servers, what they met, and what the run was trained on."""

    seed: int
    ahead: int = 0
    kind: type[Weights] = Weights
    servers: list[Mortal] = field(
        default_factory=lambda: [Mortal(latency_s=0.02, model="policy", max_lora_rank=8) for _ in range(3)]
    )
    met: Counter[str] = field(default_factory=Counter)
    learner: Learner = field(default_factory=Learner)
    told: list[str] = field(default_factory=list)

    async def run(self, folder: Path, faults: Callable[[], Any], wait_s: float = 30.0) -> None:
        """A run to its end, from its newest checkpoint, while `faults()` has its way with the servers."""
        config = settings(self.seed, folder, self.ahead)
        task: Task = load_task(config.task)
        problems: list[Problem] = task.problems("train", 16, self.seed)
        sampling = {"generate": Sampling(1.0, 8), "aggregate": Sampling(1.0, 8)}
        limits = Limits(request_timeout_s=1.5, total_timeout_s=60, backoff_s=0.02, wait_s=wait_s)
        client = OpenAI([s.url for s in self.servers], "policy", sampling=sampling, key="", limits=limits)
        client.tokenizer, client.fleet.tell = Words(), self.told.append
        engine = VllmEngine(client, folder / "weights", self.kind)

        async def publish(step: int) -> None:
            await engine.publish(self.learner.export, step)

        chaos = asyncio.ensure_future(faults())
        recipe = Recipe.from_config(config, Packer(True))
        try:
            await train(folder, recipe, self.learner, Sampler(engine, publish), task, problems, Quiet())
        finally:
            chaos.cancel()
            await asyncio.gather(chaos, return_exceptions=True)
            await engine.close()

    async def some_die(self) -> None:
        """Faults at random of all servers but the first."""
        rng = random.Random(self.seed)
        while True:
            await asyncio.sleep(rng.uniform(0, 0.1))
            server, fault = rng.choice(self.servers[1:]), rng.choice(FAULTS)
            self.met[fault] += 1
            await self.strike(server, fault, rng.uniform(0.05, 2.0 if fault == "hang" else 0.5))

    async def strike(self, server: Mortal, fault: str, seconds: float) -> None:
        if fault == "unseen":
            server.forget()
        elif fault in ("die", "old"):
            old = server.weights
            server.end()
            await asyncio.sleep(seconds)
            server.forget(old if fault == "old" else None)
            await server.start()
        else:
            server.mood = fault
            await asyncio.sleep(seconds)
            server.mood = ""

    async def all_die(self) -> None:
        """Each in a way of its own, for good, when the run is under way."""
        rng = random.Random(self.seed)
        while sum(server.asked for server in self.servers) < rng.randrange(1, 60):
            await asyncio.sleep(0.002)
        for server in self.servers:
            fault = rng.choice(("die", "5xx", "hang"))
            self.met[f"all: {fault}"] += 1
            if fault == "die":
                server.end()
            server.mood = fault

    def wrong(self) -> dict[int, set[int]]:
        """Steps that were trained on weights which they should not have been: those before the step, at most `ahead` older."""
        right = {step: {step - 1} | ({max(0, step - 2)} if self.ahead else set()) for step in self.learner.seen}
        return {step: seen for step, seen in self.learner.seen.items() if not seen <= right[step]}


def settings(seed: int, folder: Path, ahead: int) -> Config:
    values: dict[str, Any] = {
        "seed": seed,
        "engine": {"kind": "vllm", "url": "http://127.0.0.1:1/v1"},
        "task": {"name": "arithmetic"},
        "rollout": {"candidates": 4, "pool_size": 2},
        "method": {"k": 2},
        "train": {"steps": STEPS, "problems": 4, "truncated": "wrong", "kl": 0.1},  # every rollout is trained on
    }
    if ahead:
        values["train"]["ahead"] = ahead
    return validate(Config, values)


async def trial(seed: int, ahead: int = 0, kind: type[Weights] = Weights) -> Trial:
    """A run while all servers but one come and go; every third one's servers all die, and it is resumed."""
    found = Trial(seed, ahead, kind)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for server in found.servers:
            await server.start()
        if seed % 3 == 0:
            with suppress(RunError):
                await found.run(folder, found.all_die, wait_s=0.3)
                raise AssertionError("the run ended without a server")
            assert any("no server is left" in line for line in found.told)
            assert not found.wrong(), found.wrong()
            for server in found.servers:
                server.end()
                server.forget()
                server.mood = ""
                await server.start()
        await found.run(folder, found.some_die)
        for server in found.servers:
            server.end()
    assert sorted(found.learner.seen) == list(range(1, STEPS + 1)) and all(found.learner.seen.values())
    assert not found.wrong(), found.wrong()
    return found


async def several(seeds: Sequence[int], ahead: int, kind: type[Weights]) -> list[Trial]:
    return list(await asyncio.gather(*(trial(seed, ahead, kind) for seed in seeds)))


def main(count: int, at_once: int = 5) -> None:
    for name, (module, seconds) in HURRY.items():
        setattr(module, name, seconds)
    for ahead, kind in ((0, Weights), (1, Weights), (0, Adapter)):
        start, met, told = time.monotonic(), Counter[str](), Counter[str]()
        for first in range(0, count, at_once):
            for found in asyncio.run(several(range(first, min(count, first + at_once)), ahead, kind)):
                met += found.met
                told += Counter("lost" if "is lost" in line else "back" for line in found.told)
        shown = f"{kind.__name__}, ahead {ahead}: {count} runs, {time.monotonic() - start:.0f} s; met {dict(met)}; told {dict(told)}"
        print(shown, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
