"""How far a model can go along its own policy gradient: `python scripts/along_gradient.py CONFIG [--section.key VALUE ...]`.

One step's gradient is taken at the config's model (its method, problems and rollouts a step), and the weights are moved
against it by several distances, each time from the same start. It prints the mean rewards of candidates and of their
aggregations on held-out problems, sampled with the same seeds each time, and once after random noise of the largest
distance. If reward falls although noise of the same size does no harm, the loss curves sharply along its gradient,
and no learning rate helps much: a small one gets nowhere, and a large one destroys what the model knew.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import torch

from paragator.config import Config
from paragator.core.scaffold import Scaffold, run
from paragator.core.types import Plan, Problem
from paragator.engines.local import loading
from paragator.engines.local.compute import computed
from paragator.runs import connect, resolve
from paragator.settings import load
from paragator.tasks import grade_trace
from paragator.training.policy import Policy
from paragator.training.recipe import Recipe
from paragator.training.step import step

DISTANCES = (0.003, 0.01, 0.03, 0.1, 0.3)
"""L2 norms of the moves."""
PROBLEMS, CANDIDATES, SEED = 128, 8, 5
"""Of the measurement: held-out problems, solutions of each round, and the seed of the draws."""


async def measured(config: Config, task: Any, engine: Any, problems: Sequence[Problem]) -> str:
    """Mean reward of each round in percent, with its standard error over problems."""
    plan, packer = Plan.training(CANDIDATES, config.rollout.pool_size), resolve.build_packer(config, engine)

    async def one(problem: Problem) -> Any:
        trace = await run(problem, engine, Scaffold(plan, config.model.templates(), packer, SEED))
        return await grade_trace(task, trace, {})

    records = await asyncio.gather(*map(one, problems))
    means = [[100 * fmean(x or 0.0 for x in record.rewards(t)) for record in records] for t in range(2)]
    return "   ".join(
        f"{name} {fmean(values):5.1f} (se {stdev(values) / len(values) ** 0.5:.1f})"
        for name, values in zip(("candidates", "aggregations"), means, strict=True)
    )


async def probe(config: Config) -> None:
    checked = resolve.resolve(config, training=True)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    model, tokenizer = await computed(loading.load_model, config.model)
    policy = await computed(Policy.from_config, model, tokenizer, config)
    engine = connect.local_engine(config, policy.raw, tokenizer, autocast=policy.accelerator.autocast)
    held_out = checked.task.problems("held-out", PROBLEMS, 1)
    gradient: dict[str, torch.Tensor] = {}

    def kept() -> None:
        gradient.update({name: p.grad.clone() for name, p in policy.tensors().items() if p.grad is not None})

    policy.optimizer.step = kept  # the raw gradient, not the optimiser's update
    problems = checked.task.problems("train", config.train.problems, config.seed)
    recipe = Recipe.from_config(config, resolve.build_packer(config, engine))
    await step(1, problems, engine, checked.task, policy, recipe)
    begun = {name: p.detach().clone() for name, p in policy.tensors().items()}
    norm = sum(float(g.square().sum()) for g in gradient.values()) ** 0.5
    print(f"gradient's norm {norm:.4f}, {config.train.problems} problems by {config.rollout.candidates} candidates")

    async def at(name: str, move: dict[str, torch.Tensor]) -> None:
        for key, p in policy.tensors().items():
            p.data.copy_(begun[key] + move[key] if key in move else begun[key])
        print(f"{name:<24} {await measured(config, checked.task, engine, held_out)}", flush=True)

    await at("where it is", {})
    for distance in DISTANCES:
        await at(f"along the gradient {distance:g}", {key: -distance / norm * g for key, g in gradient.items()})
    torch.manual_seed(0)
    noise = {key: torch.randn_like(p) for key, p in begun.items()}
    size = sum(float(x.square().sum()) for x in noise.values()) ** 0.5
    await at(f"noise of norm {DISTANCES[-1]:g}", {key: DISTANCES[-1] / size * x for key, x in noise.items()})
    engine.close()


if __name__ == "__main__":
    asyncio.run(probe(load(Config, sys.argv[1], sys.argv[2:])))
