"""The method in one file: a tiny policy, the package's core, and a plain torch loop. No trainer, no transformers.

    python examples/one_file.py

The policy is a table of logits: which of ten answers to give to a problem, and, when shown a pool, which of its attempts to
copy, by whether an attempt looks right (even) or not. A right answer is an even one. Unlike in `training/step.py`
there are no tokens, so a rollout has one log-probability; all else (scaffold, credit, one update for both stages) is the same.
"""

from __future__ import annotations

import asyncio

import torch

from paragator.core.credit import pass_at_1, pass_at_k
from paragator.core.prompts import Templates
from paragator.core.scaffold import Scaffold, run
from paragator.core.types import Completion, Group, Plan, Problem, Prompt, Stage, Trace

TEMPLATES = Templates(candidate="{problem}?", aggregation="{problem}:{attempts}", attempt=" {attempt}")
N, M, K = 16, 4, 4


class Policy:
    """answer [10]: logits of the candidates; look [2]: how much an odd and an even attempt attracts the aggregator."""

    def __init__(self) -> None:
        start = torch.tensor([0.0, 1.0] * 5)
        self.answer = start.clone().requires_grad_()
        self.look = torch.zeros(2, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.answer, self.look], lr=0.05)

    def logits(self, prompt: Prompt) -> tuple[torch.Tensor, list[str]]:
        """The logits over what may be written in answer to a prompt, and those texts."""
        attempts = prompt.text.partition(":")[2].split()
        if not attempts:
            return self.answer, [str(i) for i in range(10)]
        return torch.stack([self.look[1 - int(a) % 2] for a in attempts]), attempts

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        """The engine: n samples, each one token, its index among the texts."""
        logits, texts = self.logits(prompt)
        generator = torch.Generator().manual_seed(seed % 2**31)
        chosen = torch.multinomial(logits.detach().softmax(0), n, replacement=True, generator=generator).tolist()
        return Group(prompt, tuple(Completion(texts[i], token_ids=(i,)) for i in chosen), stage=stage)


def reward(text: str) -> float:
    return float(int(text) % 2 == 0)


def loss(policy: Policy, trace: Trace) -> torch.Tensor:
    """Candidates by pass@k, aggregations by pass@1, in one sum."""
    total = torch.zeros(())
    for groups in trace.rounds:
        for group in groups:
            rewards = [reward(c.text) for c in group.completions]
            credit = pass_at_k(rewards, K) if group.stage == "generate" else pass_at_1(rewards)
            logprobs = policy.logits(group.prompt)[0].log_softmax(0)
            for completion, advantage in zip(group.completions, credit, strict=True):
                assert completion.token_ids is not None
                total = total - advantage * logprobs[completion.token_ids[0]] / N
    return total


async def main() -> tuple[float, float]:
    """Train 60 steps on 8 problems each; print and return the last step's rewards of both stages."""
    policy = Policy()
    means = [0.0, 0.0]
    for step in range(60):
        problems = [Problem(f"{step}-{i}", f"p{i}") for i in range(8)]
        plan = Plan.training(N, M)
        traces = await asyncio.gather(*(run(p, policy, Scaffold(plan, TEMPLATES, seed=step)) for p in problems))
        policy.optimizer.zero_grad()
        torch.stack([loss(policy, trace) for trace in traces]).sum().backward()
        policy.optimizer.step()
        for round_ in (0, 1):
            scores = [reward(c.text) for trace in traces for c in trace.population(round_)]
            means[round_] = sum(scores) / len(scores)
        if step % 10 == 9:
            print(f"step {step + 1}: candidates {means[0]:.2f}, aggregations {means[1]:.2f}")
    return means[0], means[1]


if __name__ == "__main__":
    asyncio.run(main())
