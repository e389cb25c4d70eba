"""A whole two-stage training step (sample, pool, aggregate, grade, update): ours against the same step built on TRL.

    python benchmarks/step.py [--quick] [--repeats 5] [--threads 2]

Ours is `paragator.training.step.step` with the in-process engine. The other side is what a TRL user would write: GRPOTrainer
samples each stage with transformers' generate (num_generations rows a prompt, each prefilled by itself), scores them with
a reward function and computes its loss in micro-batches of 8 rows; in between the solutions become aggregation prompts.
End-of-sequence tokens stop neither side, so that both sample `max_tokens` tokens for every completion. First, TRL's
gradient on the rollouts of one of our steps is compared with ours.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import common
import peers
import torch
import update

from paragator.config import Config, ModelConfig
from paragator.core.packing import Packer
from paragator.core.types import Completion, Grade, Group, Problem, Prompt, Stage
from paragator.engines.local.compute import computed_now
from paragator.engines.local.loading import load_model
from paragator.engines.local.transformers import TransformersEngine
from paragator.engines.sampling import Sampling
from paragator.settings import validate
from paragator.tasks import Task
from paragator.training.credited import credited
from paragator.training.policy import Policy
from paragator.training.recipe import Recipe
from paragator.training.rows import Tree
from paragator.training.step import step

NO_TOKEN = 2**40
HELD = (
    "problems, templates, pools (m, one a problem), completions and their length (end tokens stop nothing), "
    "rewards (a function of the text), Dr.GRPO's loss on both stages, float32, threads, weights; TRL without "
    "gradient checkpointing, batches of 8 rows"
)


@dataclass(frozen=True)
class Size:
    name: str
    model: str
    problems: int
    candidates: int
    pool_size: int
    prompt: int
    max_tokens: int


def sizes(quick: bool, full: bool) -> list[Size]:
    if quick:
        return [Size("SmolLM2, tiny", "smollm2", 1, 8, 4, 8, 4), Size("embedded, tiny", "embedded", 1, 8, 4, 10, 6)]
    return [
        Size("SmolLM2, 1 problem, N = 8, m = 4, 32 tokens", "smollm2", 1, 8, 4, 60, 32),
        *([Size("SmolLM2, 1 problem, N = 8, m = 4, 64 tokens", "smollm2", 1, 8, 4, 60, 64)] * full),
        Size("embedded, 8 problems, N = 16, m = 4", "embedded", 8, 16, 4, 14, 24),
        Size("embedded, 8 problems, N = 16, m = 8", "embedded", 8, 16, 8, 14, 24),
    ]


def reward(text: str) -> float:
    """Right or wrong, half and half, by the text alone."""
    return float(hashlib.sha256(text.encode("utf-8", "replace")).digest()[0] % 2)


class Ours:
    """Our step: policy, in-process engine, scaffold."""

    def __init__(self, size: Size, model: Any, tokenizer: Any, problems: Sequence[Problem]) -> None:
        self.problems = problems
        row = 2 * size.prompt + (size.pool_size + size.candidates + 1) * (size.max_tokens + 8)
        stage = {"max_tokens": size.max_tokens}
        config: Config = validate(
            Config,
            {
                "method": {"name": "online_multitask"},
                "model": {"template": "compact"},
                "rollout": {"candidates": size.candidates, "pool_size": size.pool_size},
                "generate": stage,
                "aggregate": stage,
                "train": {
                    "batch_tokens": max(2048, row),
                    "precision": "float32",
                    "steps": 10**6,
                },
                "optimizer": {"lr": 1e-6, "warmup_steps": 0, "betas": (0.9, 0.999)},
            },
        )
        self.policy = Policy.from_config(model, tokenizer, config)
        self.recipe = Recipe.from_config(config, Packer())
        sampling = Sampling(1.0, size.max_tokens)
        self.engine = TransformersEngine(model, tokenizer, sampling={"generate": sampling, "aggregate": sampling})
        self.engine.eos_ids = (NO_TOKEN,)
        self.task = Task("by hash", lambda split, count, seed: list(problems), grade)
        self.number = 0
        self.parts: list[dict[str, float]] = []
        self.prompt_tokens: list[int] = []
        self.trees: list[Tree] = []

    async def sample(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        """The engine's group with every completion marked as ended, which is what lets it be trained on."""
        group = await self.engine(prompt, n, stage=stage, seed=seed)
        self.prompt_tokens.append(len(group.prompt_ids or ()))
        done = tuple(replace(o, finish_reason="stop") if isinstance(o, Completion) else o for o in group.outputs)
        return replace(group, outputs=done)

    def step(self) -> None:
        self.number += 1
        self.prompt_tokens = []
        made = step(self.number, self.problems, self.sample, self.task, self.policy, self.recipe)
        done = asyncio.run(made)
        self.parts.append({k: v for k, v in done.metrics.items() if k.startswith("seconds/")})
        crediting, count = self.recipe.crediting, len(self.problems)
        self.trees = [t for r in done.records for t in credited(r, crediting, count)]


def grade(problem: Problem, texts: Sequence[str]) -> list[Grade]:
    return [Grade("correct" if reward(text) else "incorrect", text) for text in texts]


class Trl:
    """The same step on GRPOTrainer."""

    def __init__(self, size: Size, model: Any, tokenizer: Any, problems: Sequence[Problem], folder: str) -> None:
        self.size, self.tokenizer, self.problems = size, tokenizer, problems
        self.micro = size.problems * size.candidates // peers.ROWS
        self.trainer = peers.trainer_of(
            model,
            tokenizer,
            folder,
            longest=size.max_tokens,
            group=size.candidates,
            steps=2 * self.micro,
            reward=lambda completions, **_: [reward(text) for text in completions],
            generation_kwargs={"eos_token_id": NO_TOKEN},
        )
        self.trainer.eos_token_ids = [NO_TOKEN]
        self.templates = ModelConfig(template="compact").templates()
        self.rng = random.Random(0)
        self.prompt_tokens: list[int] = []

    def rollouts(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """`candidates` rollouts of every prompt, scored, as TRL makes them."""
        rows = [{"prompt": prompt} for prompt in prompts for _ in range(self.size.candidates)]
        found: dict[str, torch.Tensor] = self.trainer._generate_and_score_completions(rows)
        self.prompt_tokens += found["prompt_mask"].sum(1)[:: self.size.candidates].tolist()
        return found

    def step(self) -> None:
        from trl.trainer.utils import split_tensor_dict

        self.prompt_tokens = []
        n, m = self.size.candidates, self.size.pool_size
        first = self.rollouts([self.templates.for_candidate(p).text for p in self.problems])
        texts = self.tokenizer.batch_decode(first["completion_ids"], skip_special_tokens=True)
        prompts = []
        for i, problem in enumerate(self.problems):
            pool = [text.strip() for text in self.rng.sample(texts[i * n : (i + 1) * n], m)]
            prompts.append(self.templates.for_aggregation(problem, pool).text)
        second = self.rollouts(prompts)
        batches = [batch for stage in (first, second) for batch in split_tensor_dict(stage, self.micro)]
        peers.trl_update(self.trainer, batches)


def gradient_distance(size: Size, ours: Ours, theirs: Trl) -> float:
    """How far TRL's gradient is from ours on the rollouts of our last step, both from our weights."""
    update.ours_backward(ours.policy, ours.trees)
    want = peers.gradients(ours.policy.raw)
    constant = 1 / (size.max_tokens * size.problems * size.candidates)
    batches = peers.trl_batches(ours.trees, constant, theirs.tokenizer.pad_token_id or 0)
    model = theirs.trainer.model
    before = copy.deepcopy(model.state_dict())
    model.load_state_dict(ours.policy.raw.state_dict())
    model.zero_grad()
    peers.trl_backward(theirs.trainer, batches)
    # TRL divides by the rows and micro-batches that it is given, ours by the rollouts of a stage
    found = {
        name: g * len(batches) * peers.ROWS / (size.problems * size.candidates)
        for name, g in peers.gradients(model).items()
    }
    model.load_state_dict(before)
    return peers.distance(want, found)


def measure(size: Size, models: dict[str, Any], flags: Any) -> common.Case:
    model, tokenizer = models[size.model]
    rng = random.Random(size.name)
    texts = [common.prompt_of(tokenizer, size.prompt, rng)[0] for _ in range(size.problems)]
    problems = [Problem(f"p{i}", text) for i, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder:
        ours = computed_now(lambda: Ours(size, copy.deepcopy(model), tokenizer, problems))
        theirs = computed_now(lambda: Trl(size, copy.deepcopy(model), tokenizer, problems, folder))
        ours.step()  # warm-up: imports and allocations
        apart = computed_now(gradient_distance, size, ours, theirs)
        if size.model == "embedded" or flags.quick:
            computed_now(theirs.step)
        ours.parts.clear()
        seconds = common.interleaved(
            {"ours": ours.step, "theirs": lambda: computed_now(theirs.step)},
            flags.repeats,
            warm=False,
            within_s=flags.within,
        )
        ours.engine.close()
    parts = {k.removeprefix("seconds/"): statistics.median(p.get(k, 0.0) for p in ours.parts) for k in ours.parts[0]}
    sampled = 2 * size.problems * size.candidates * size.max_tokens
    return common.case(
        size.name,
        seconds["ours"],
        f"TRL {common.installed('trl')} and generate",
        seconds["theirs"],
        HELD,
        sampled_tokens=sampled,
        prompt_tokens=sum(ours.prompt_tokens),
        peer_prompt_tokens=sum(theirs.prompt_tokens),
        trained_branches=sum(len(tree.branches) for tree in ours.trees),
        gradient_distance=apart,
        parts_s=parts,
    )


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--full", action="store_true", help="SmolLM2 with completions of 64 tokens too")
    flags = parser.parse_args()
    common.use_threads(flags.threads)
    chosen = sizes(flags.quick, flags.full)
    models = {
        name: computed_now(load_model, ModelConfig(path=common.model_path(name), device="cpu"))
        for name in {size.model for size in chosen}
    }
    cases = []
    for size in chosen:
        cases.append(measure(size, models, flags))
        common.print_cases(cases[-1:], "gradient_distance", "prompt_tokens", "peer_prompt_tokens")
    common.finish(flags, "step", cases, "gradient_distance", "prompt_tokens", "peer_prompt_tokens")
    return common.disagreed(cases, update.AGREE)


if __name__ == "__main__":
    sys.exit(main())
