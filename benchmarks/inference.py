"""Aggregation rounds over a benchmark on a real vLLM server: our scaffold against a barrier after every round.

    python benchmarks/inference.py --vllm [--full] [--quick] [--repeats 5] [--threads 2]
    python benchmarks/inference.py --simulated        # `agree` against RSA's loop, see simulated.py
    python benchmarks/inference.py --expected         # the same without noise, see expected.py

Population inference as in RSA (arXiv 2509.26626): N solutions a problem; in each of T rounds every one of N new
solutions is asked for with its own random subset of K of the last round's. `rsa` below restates the published loop: a
round's requests of all problems go out together, and the next round begins when the last one is back. Ours is
`paragator.core.scaffold.run`, where an aggregation waits for its own subset only. Both make the same requests (checked):
prompts, seeds, lengths. N is four times K, as published. `steps` and `peer_steps` are the tokens on the
longest chain of requests that wait for each other: what counts where a server's step costs the same for few rows and many.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import vllm_side

from paragator.core.prompts import Templates
from paragator.core.scaffold import Scaffold, derive, run
from paragator.core.types import Plan, Problem, Sample
from paragator.engines.http.server import seed_of

HELD = (
    "server, model, requests (prompts, seeds and lengths, checked), requests allowed in flight, empty prefix cache at the start; "
    "the server keeps a thread less than the machine has cores"
)


async def rsa(
    problems: Sequence[Problem], sample: Sample, plan: Plan, templates: Templates, seed: int
) -> list[list[str]]:
    """Recursive self-aggregation: all problems, a barrier each round. The last round's texts, a list a problem."""
    n = plan.candidates
    groups = await asyncio.gather(
        *(sample(templates.for_candidate(p), n, stage="generate", seed=derive(seed, p, 0, 0)) for p in problems)
    )
    populations = [[c.text for c in group.completions] for group in groups]
    for round_ in range(1, plan.rounds + 1):
        calls = []
        for problem, population in zip(problems, populations, strict=True):
            for i in range(n):
                subset = random.Random(f"{seed}:{problem.id}:{round_}:{i}").sample(range(n), plan.pool_size)
                prompt = templates.for_aggregation(problem, [population[j] for j in subset])
                calls.append(sample(prompt, 1, stage="aggregate", seed=derive(seed, problem, round_, i)))
        answers = iter(await asyncio.gather(*calls))
        populations = [[next(answers).completions[0].text for _ in range(n)] for _ in problems]
    return populations


async def ours(problems: Sequence[Problem], sample: Sample, plan: Plan, templates: Templates, seed: int) -> None:
    """Our scaffold, every pool for itself."""
    await asyncio.gather(*(run(p, sample, Scaffold(plan, templates, seed=seed)) for p in problems))


def chains(problems: Sequence[Problem], plan: Plan, length: Callable[[int], int], seed: int) -> tuple[int, int]:
    """Tokens on the longest chain of requests that wait for each other: ours, and with a barrier each round."""
    n, longest, slowest = plan.candidates, 0, [0] * (plan.rounds + 1)
    for problem in problems:
        first = [length(seed_of(derive(seed, problem, 0, 0), i)) for i in range(n)]
        ends = [max(first)] * n
        slowest[0] = max(slowest[0], *first)
        for t in range(1, plan.rounds + 1):
            own = [length(seed_of(derive(seed, problem, t, i), 0)) for i in range(n)]
            pools = [random.Random(f"{seed}:{problem.id}:{t}:{i}").sample(range(n), plan.pool_size) for i in range(n)]
            ends = [max(ends[j] for j in pool) + tokens for pool, tokens in zip(pools, own, strict=True)]
            slowest[t] = max(slowest[t], *own)
        longest = max(longest, *ends)
    return longest, sum(slowest)


async def measure(kind: str, url: str, tokenizer: Any, flags: Any) -> common.Case:
    count, plan, longest = (2, Plan.population(2, 2, 1), 8) if flags.quick else (2, Plan.population(8, 2, 5), 128)
    rng = random.Random("inference")
    problems = [Problem(f"p{i}", common.prompt_of(tokenizer, 60, rng)[0]) for i in range(count)]
    engine = vllm_side.Fixed(url, tokenizer, vllm_side.lengths(kind, longest), in_flight=256)
    asked: dict[str, list[vllm_side.Request]] = {}

    async def side(loop: Any, name: str) -> None:
        engine.requests = []
        await loop(problems, engine, plan, vllm_side.TEMPLATES, 0)
        asked[name] = engine.requests

    sides = {"ours": lambda: side(ours, "ours"), "rsa": lambda: side(rsa, "rsa")}
    await vllm_side.in_turns({"ours": sides["ours"]}, url, 1)  # warm-up: kernels are compiled
    seconds = await vllm_side.in_turns(sides, url, flags.repeats, flags.within)
    vllm_side.same(kind, asked["ours"], asked["rsa"])
    await engine.close()
    steps, peer_steps = chains(problems, plan, engine.length, 0)
    return common.case(
        f"{count} problems, N = {plan.candidates}, K = {plan.pool_size}, {plan.rounds} rounds, {kind}",
        seconds["ours"],
        "RSA's loop (restated)",
        seconds["rsa"],
        HELD,
        requests=len(asked["ours"]),
        number_type=vllm_side.number_type(),
        sampled_tokens=sum(length for _, length, _ in asked["ours"]),
        prompt_tokens=sum(len(ids) for ids, _, _ in asked["ours"]),
        steps=steps,
        peer_steps=peer_steps,
    )


async def measured(flags: Any) -> list[common.Case]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(common.model_path("smollm2"))
    with tempfile.TemporaryDirectory() as folder:
        async with vllm_side.vllm(Path(folder) / "vllm.log", flags.threads) as url:
            return [await measure(kind, url, tokenizer, flags) for kind in vllm_side.kinds(flags.full)]


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--full", action="store_true", help="uniform lengths too")
    parser.add_argument("--vllm", action="store_true", help="needed: says that a vLLM server may be started")
    parser.add_argument("--simulated", action="store_true", help="agree against RSA's loop over a simulated server")
    parser.add_argument("--problems", type=int, default=200, help="of the simulation, of each kind")
    parser.add_argument("--expected", action="store_true", help="the same in expectation, for many settings of agree")
    flags = parser.parse_args()
    if flags.expected:
        import expected

        return expected.main()
    if flags.simulated:
        import simulated

        return simulated.main(flags.problems)
    if not flags.vllm:
        parser.error("nothing to measure without --vllm, --simulated or --expected")
    common.finish(flags, "inference", asyncio.run(measured(flags)), "requests", "sampled_tokens", "steps", "peer_steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
