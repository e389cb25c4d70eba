"""`agree` against RSA's loop over a simulated server: same accuracy, in how much of the time and the tokens?

    python benchmarks/inference.py --simulated [--problems 200]

Time is virtual: the event loop jumps to the next event, so no core matters. A problem has a difficulty q ~ Beta(a, b), a
candidate is right with probability q; wrong ones give one of four answers, the first one half of the time. An aggregation
that sees r right ones of k is right with probability 0.9 r / k + 0.1 q, or 0.3 q without any. Lengths are Pareto (exponent
1.3, from 300 tokens, cut at 16,384): heavy tails. A token takes one unit of time, IN_FLIGHT requests run at once. Prompts
count 100 tokens and 400 a solution shown. Both sides ask with N = 16, K = 4, T = 10 at most and answer by a vote over their
last round, as an expectation over ties. Both have the same problems and candidates, so differences are paired; `expected`
is the same difference for these problems without the draws (expected.py).
"""

from __future__ import annotations

import asyncio
import json
import random
import selectors
import sys
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from expected import EXPONENT, KINDS, LONGEST, NEVER, PROMPT, ROUNDS, SHORTEST, SHOWN, K, N, aggregated, spent
from inference import rsa

from paragator.core.estimators import majority_at_k
from paragator.core.prompts import CHAT
from paragator.core.scaffold import Scaffold
from paragator.core.siblings import sibling_seeds
from paragator.core.types import Completion, Group, Plan, Problem, Prompt, Stage
from paragator.stats.resample import resample
from paragator.strategies import Asking, Sizes, strategy_named

IN_FLIGHT = 1024
SETTINGS = ((4, 0.95), (16, 0.97), (16, 0.999))
"""`agree`'s start and confidence: its defaults, those that docs/strategies.md recommends, and nearly all of RSA."""
T = TypeVar("T")


class Skipping(selectors.DefaultSelector):
    """Waits for nothing: the clock goes on instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


def run(job: Coroutine[Any, Any, T]) -> tuple[T, float]:
    """What a job returns, and the virtual time that it took."""
    selector = Skipping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    try:
        return loop.run_until_complete(job), selector.now
    finally:
        loop.close()


class Simulated:
    """Satisfies `Sample`; see the module."""

    def __init__(self, shape: tuple[float, float], count: int) -> None:
        rng = random.Random(f"{shape}")
        self.right = [rng.betavariate(*shape) for _ in range(count)]
        self.tokens, self.places = 0, asyncio.Semaphore(IN_FLIGHT)

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        seeds = (
            sibling_seeds(seed, n) if n > 1 else [seed]
        )  # of candidates asked for at once, as of those asked for alone
        outputs = await asyncio.gather(*(self.one(prompt.text, stage, each) for each in seeds))
        return Group(prompt, tuple(outputs), stage=stage)

    async def one(self, text: str, stage: Stage, seed: int) -> Completion:
        rng = random.Random(f"{text}:{seed}")
        q = self.right[int(text.partition("<")[2].partition(">")[0])]
        shown = [word for word in text.split() if word.startswith("answer=")]
        good = shown.count("answer=right")
        if stage == "aggregate":
            q = aggregated(good, len(shown), q)
        wrong = rng.choice([0, 0, 0, 1, 2, 3])
        answer = "right" if rng.random() < q else f"wrong{wrong}"
        length = min(LONGEST, int(SHORTEST * rng.paretovariate(EXPONENT)))
        async with self.places:
            await asyncio.sleep(length)
        self.tokens += length + PROMPT + SHOWN * len(shown)
        return Completion(f"{rng.random()} answer={answer} ", num_tokens=length)


def read(texts: Sequence[str]) -> list[str | None]:
    return [text.partition("answer=")[2].split()[0] for text in texts]


async def read_all(problem: Problem, solutions: Sequence[Completion]) -> list[str | None]:
    return read([one.text for one in solutions])


def vote(texts: Sequence[str]) -> float:
    answers = read(texts)
    return majority_at_k(answers, [float(answer == "right") for answer in answers], len(answers))


def compared(kind: str, problems: Sequence[Problem]) -> Iterator[dict[str, Any]]:
    """RSA's loop once, and `agree` with each of SETTINGS."""
    count = len(problems)

    async def by_rsa() -> tuple[list[float], int]:
        server = Simulated(KINDS[kind], count)
        populations = await rsa(problems, server, Plan.population(N, K, ROUNDS), CHAT, 0)
        return [vote(texts) for texts in populations], server.tokens

    async def by_agree(name: str) -> tuple[list[float], int]:
        server, agree = Simulated(KINDS[kind], count), strategy_named(name)
        asked = [Asking(p, server, Scaffold(Plan.sampling(1), CHAT), read_all, Sizes()) for p in problems]
        traces = await asyncio.gather(*(agree(one) for one in asked))
        chosen = [(t, t.choice) for t in traces]
        right = [vote([c.text for c in t.population(choice.round)]) for t, choice in chosen if choice]
        return right, server.tokens

    (peer, peer_tokens), peer_time = run(by_rsa())
    q = np.array(Simulated(KINDS[kind], count).right)
    peer_expected = spent(N, NEVER, q)[0]
    for start, confidence in SETTINGS:
        name = f"agree:n={N},k={K},rounds={ROUNDS},start={start},confidence={confidence}"
        (own, own_tokens), own_time = run(by_agree(name))
        (gain,) = resample([[a - b for a, b in zip(own, peer, strict=True)]], seed=(0,))
        found = gain.interval()
        yield {
            "kind": kind,
            "rsa": round(100 * sum(peer) / count, 1),
            name: round(100 * sum(own) / count, 1),
            "difference": [round(100 * x, 1) for x in (found.mean, found.low, found.high)],
            "expected": round(100 * float(np.mean(spent(start, confidence, q)[0] - peer_expected)), 1),
            "tokens": round(peer_tokens / own_tokens, 2),
            "time": round(peer_time / own_time, 2),
        }


def main(count: int = 200) -> int:
    problems = [Problem(f"p{i}", f"problem <{i}>", "right") for i in range(count)]
    for kind in KINDS:
        for found in compared(kind, problems):
            print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
