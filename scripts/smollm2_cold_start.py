"""Teaches SmolLM2 the form of a worked sum: `python scripts/smollm2_cold_start.py CONFIG SOURCE [--examples N]`.

Supervised learning on worked solutions of the config's training problems, through the config's own prompts. Every other
demonstration answers the problem alone; the rest also show a pool of attempts, each step of which is wrong with
probability 0.35, and answer with the right solution. In one pool of four no attempt is right, so that copying one is not
enough: the right lines have to be kept and the rest worked out.

It uses the trainer for rollouts unchanged: with credit 1 its gradient is that of maximum likelihood. The folder that
`model.path` names is written; checkpoints lie beside it, and an interrupted cold start resumes from them.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch

from paragator import tasks
from paragator.config import Config, ModelConfig
from paragator.core.types import Problem, Prompt
from paragator.engines.encoding import encode
from paragator.engines.local import loading
from paragator.settings import load
from paragator.training import checkpoint
from paragator.training.packed import collate, log_probs
from paragator.training.policy import Policy
from paragator.training.rows import Branch, Tree, pack

STEP_ERROR = 0.35
BATCH = 16
"""Demonstrations an update."""
HELD_OUT = 32
SAVE_EVERY = 10


def main() -> int:
    parser = argparse.ArgumentParser(description="Cold start of SmolLM2 on chain arithmetic, by supervised learning.")
    parser.add_argument("config", help="configs/smollm2.toml: its task, prompts, model.path and [train] are used")
    parser.add_argument("source", help="the folder of the model to start from")
    parser.add_argument("--examples", type=int, default=960, help="demonstrations (default: 960)")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument(
        "--seed", type=int, default=1000, help="apart from the run's: joint training sees other problems"
    )
    options = parser.parse_args()
    config = load(Config, options.config)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    model, tokenizer = loading.load_model(ModelConfig(path=options.source))
    settings = {"lr": options.lr, "schedule": "cosine", "betas": (0.9, 0.99)}
    steps = options.examples // BATCH
    config = config.model_copy(
        update={
            # no sampler, so no importance weights
            "engine": config.engine.model_copy(update={"kind": "transformers"}),
            "optimizer": config.optimizer.model_copy(update=settings),
            "train": config.train.model_copy(update={"steps": steps}),
        }
    )
    problems = tasks.load_task(config.task).problems("train", steps * BATCH + HELD_OUT, options.seed)
    rng = Random(f"{options.seed}:cold start")
    trees = [demonstration(p, config, tokenizer, rng, aggregation=i % 2 == 1) for i, p in enumerate(problems)]
    target = Path(config.model.path)
    learn(Policy.from_config(model, tokenizer, config), trees[HELD_OUT:], trees[:HELD_OUT], target)
    print(f"{target}: {steps * BATCH} demonstrations")
    return 0


def demonstration(problem: Problem, config: Config, tokenizer: Any, rng: Random, *, aggregation: bool) -> Tree:
    """A prompt and its answer, each token with the same credit."""
    templates = config.model.templates()
    prompt: Prompt = templates.for_candidate(problem)
    if aggregation:
        pool = [worked(problem, rng, STEP_ERROR) for _ in range(config.rollout.pool_size)]
        prompt = templates.for_aggregation(problem, pool)
    answer = [*tokenizer(worked(problem, rng), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    branch = Branch(tuple(answer), (0.0,) * len(answer), 1 / (BATCH * config.generate.max_tokens))
    return Tree("aggregate" if aggregation else "generate", tuple(encode(tokenizer, prompt)), (branch,))


def worked(problem: Problem, rng: Random, error: float = 0.0) -> str:
    """The sum from left to right, a line a step; a step errs with probability `error`, by up to 3."""
    first, *rest = re.findall(r"[+-] \d+|\d+", problem.text)
    total, lines = int(first), []
    for term in rest:
        result = total + int(term.replace(" ", ""))
        if rng.random() < error:
            result += rng.choice((-3, -2, -1, 1, 2, 3))
        lines.append(f"{total} {term} = {result}")
        total = result
    return "\n".join([*lines, f"\\boxed{{{total}}}"])


def learn(policy: Policy, trees: Sequence[Tree], held_out: Sequence[Tree], target: Path) -> None:
    """One pass over `trees`, BATCH an update; `target` is written whole or not at all."""
    checkpoints = target.with_name(target.name + "-checkpoints")
    steps, began = len(trees) // BATCH, time.monotonic()
    newest = checkpoint.newest(checkpoints)
    first = policy.restore(newest)["step"] if newest else 0
    for step in range(first + 1, steps + 1):
        policy.update(trees[(step - 1) * BATCH : step * BATCH], step, {})
        if step % SAVE_EVERY == 0 or step == steps:
            nats = ", ".join(f"{stage} {surprise(policy, held_out, stage):.3f}" for stage in ("generate", "aggregate"))
            print(
                f"update {step} of {steps}, {time.monotonic() - began:.0f} s; held out, nats a token: {nats}",
                flush=True,
            )
            policy.save(checkpoints / f"step_{step}", {"step": step})
            checkpoint.keep_newest(checkpoints, 1)
    whole = target.with_name(target.name + ".writing")
    policy.export(whole)
    whole.rename(target)


def surprise(policy: Policy, trees: Sequence[Tree], stage: str) -> float:
    """Mean negative log-probability of the answers of a stage's demonstrations."""
    rows = pack([tree for tree in trees if tree.stage == stage], policy.batch_tokens)
    with torch.no_grad(), policy.accelerator.autocast():
        parts = [log_probs(policy.model, collate(row)) for row in rows]
    return -float(torch.cat(parts).mean())


if __name__ == "__main__":
    sys.exit(main())
