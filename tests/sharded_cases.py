"""Gradients and updates of the policy in one process and in several: `python -m sharded_cases OUT` is one of the processes."""

from __future__ import annotations

import copy
import dataclasses
import os
import sys
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import Partial, Replicate
from transformers import AutoConfig, AutoModelForCausalLM

from paragator.config import ModelConfig, OptimizerConfig
from paragator.core.errors import UsageError
from paragator.core.types import Stage
from paragator.engines.local.loading import load_model
from paragator.training import packed
from paragator.training.balance import scaled
from paragator.training.objective import LossSettings
from paragator.training.policy import NotFinite, Policy
from paragator.training.recipe import PolicySettings
from paragator.training.rows import Branch, Tree
from toys import toy

CONSTANTS: dict[Stage, float] = {"generate": 0.01, "aggregate": 0.02}


@dataclasses.dataclass(frozen=True)
class Case:
    """How a gradient is computed; `replicas` and `parts` only where the processes are a multiple.

    `model` is "embedded" or a tiny random one of four heads, such as "llama, odd vocabulary".
    """

    budget: int = 400
    reverse: bool = False
    trees: int = 9
    kl: float = 0.0
    weight_cap: float | None = None
    checkpointing: bool = False
    lora: int = 0
    double: bool = False
    precision: str = "float32"
    chunked: bool = False
    updates: int = 0  # 0: only the gradient is compared
    loaded: bool = False  # a second update follows, in many processes after all was gathered, lost and loaded
    replicas: int = 1
    parts: int = 1
    groups: bool = False  # also two groups of two parts
    model: str = "embedded"
    max_grad_norm: float = 1e9
    wrong: bool = False  # norms of heads are taken for whole ones
    broken: bool = False
    stage: Stage | None = None
    balance: bool = False
    router_loss: float = 0.0  # above 0: of a small mixture of experts

    def runs_on(self, size: int) -> bool:
        """Whether so many processes compute it: replicas need four, parts two, or four with groups."""
        if self.replicas > 1 or (self.groups and size == 4):
            return size == 4
        return size == 2 or (size == 3 and self.parts == 1)


CASES = {
    "plain": Case(),
    "candidates only": Case(stage="generate"),
    "aggregations only": Case(stage="aggregate"),
    "small rows": Case(budget=90),
    "one row": Case(budget=4096),
    "another order": Case(reverse=True),
    "another order, small rows": Case(reverse=True, budget=120),
    "KL": Case(kl=0.1),
    "KL, small rows": Case(kl=0.1, budget=90),
    "KL, one row": Case(kl=0.1, budget=4096),
    "weights": Case(weight_cap=1.5),
    "weights, KL": Case(weight_cap=1.5, kl=0.1, budget=200),
    "checkpointing": Case(checkpointing=True),
    "checkpointing, KL, small rows": Case(checkpointing=True, kl=0.1, budget=120),
    "adapters": Case(lora=4),
    "adapters, KL": Case(lora=4, kl=0.1),
    "adapters, checkpointing, small rows": Case(lora=4, checkpointing=True, budget=120),
    "chunked head": Case(chunked=True, budget=4096),
    "chunked head, checkpointing": Case(chunked=True, checkpointing=True),
    "chunked head, KL, adapters": Case(chunked=True, kl=0.1, lora=4),
    "replicas": Case(replicas=2),
    "replicas, KL, small rows": Case(replicas=2, kl=0.1, budget=90),
    "float64": Case(double=True),
    "float64, one tree": Case(double=True, trees=1),
    "bfloat16": Case(precision="bfloat16"),
    "three updates": Case(updates=3, weight_cap=1.5),
    "three updates, KL": Case(updates=3, kl=0.1),
    "three updates of adapters": Case(updates=3, lora=4),
    "measured and balanced": Case(balance=True),
    "routers": Case(router_loss=0.5, budget=90),
    "routers, three updates": Case(router_loss=0.5, updates=3, budget=90, trees=4),
    "NaN in one row": Case(broken=True),
    "split, candidates only": Case(parts=2, model="llama", trees=5, stage="generate", groups=True),
    "split, aggregations only, chunked head, checkpointing": Case(
        parts=2, model="llama", trees=5, stage="aggregate", chunked=True, checkpointing=True, budget=4096
    ),
    "split, biases, clipped": Case(parts=2, model="qwen2", trees=5, max_grad_norm=1e-3),
    "split, tied, chunked head, KL, float64": Case(
        parts=2, model="qwen3", trees=5, chunked=True, kl=0.1, budget=90, double=True, groups=True
    ),
    "split, odd vocabulary, three updates": Case(
        parts=2, model="llama, odd vocabulary", trees=5, updates=3, weight_cap=1.5
    ),
    "split, loaded between updates": Case(parts=2, model="llama", trees=5, updates=1, loaded=True, groups=True),
    "split, wrongly": Case(parts=2, model="qwen3", trees=1, wrong=True),
}


def trees_of(case: Case) -> list[Tree]:
    """Random prompts and branches, of both stages unless the case wants one."""
    draw = Random(7)
    out = []
    for number in range(case.trees):
        stage: Stage = case.stage or ("generate", "aggregate")[number % 2]  # type: ignore[assignment]
        prompt = tuple(draw.randrange(5, 30) for _ in range(draw.randrange(4, 40)))
        branches = []
        for _ in range(draw.randrange(1, 6)):
            size = draw.randrange(1, 30)
            ids = tuple(draw.randrange(5, 30) for _ in range(size))
            probs = tuple(-draw.uniform(2, 4) for _ in range(size))
            branches.append(Branch(ids, probs, draw.uniform(-1, 1) * CONSTANTS[stage]))
        out.append(Tree(stage, prompt, tuple(branches)))
    if case.broken:
        bad = dataclasses.replace(out[-1].branches[0], credit=float("nan"))
        out[-1] = dataclasses.replace(out[-1], branches=(bad, *out[-1].branches[1:]))
    return out[::-1] if case.reverse else out


def model_of(case: Case) -> tuple[Any, Any]:
    if case.model == "embedded":
        return load_model(ModelConfig(path="embedded", lora_rank=case.lora, device="cpu"), 1)
    family, _, odd = case.model.partition(", ")
    config = AutoConfig.for_model(
        family,
        vocab_size=31 if odd else 32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=family == "qwen3",
    )
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # biases are 0 and norms 1
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.1)
    return model, None


def policy_of(case: Case, team: Any = None) -> Policy:
    model, tokenizer = model_of(case)
    if case.router_loss:
        model = toy("Mixtral", vocab_size=40, num_local_experts=4, sliding_window=None)
    if case.double:
        model.double()
    settings = PolicySettings(
        loss=LossSettings(weight_cap=case.weight_cap),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=0, max_grad_norm=case.max_grad_norm),
        temperature={"generate": 1.0, "aggregate": 0.9},
        steps=10,
        updates=max(1, case.updates),
        kl=case.kl,
        precision=case.precision,  # type: ignore[arg-type]
        gradient_checkpointing=case.checkpointing,
        max_refused=1,
        stage_ratio=3.0 if case.balance else None,
        router_loss=case.router_loss,
    )
    if team is None:
        policy = Policy(model, tokenizer, settings)
    else:
        from paragator.training import split
        from paragator.training.sharded import Grid, Shard

        split.Partial = Replicate if case.wrong else Partial  # type: ignore[attr-defined]
        policy = Shard(model, tokenizer, settings, team, Grid(case.replicas, case.parts))
    policy.batch_tokens = case.budget
    return policy


def reload(policy: Any) -> None:
    """Gather weights and moments on rank 0, zero them everywhere, and load what rank 0 has."""
    weights, moments = copy.deepcopy(policy.gathered(moments=True))  # some are the optimiser's own
    state = {name: policy.optimizer.state[p] for name, p in policy.tensors().items()}
    kinds = {name: list(found) for name, found in state.items()}
    with torch.no_grad():
        for name, parameter in policy.tensors().items():
            for tensor in (parameter, *state[name].values()):
                tensor.zero_()
    policy.load(kinds, weights, moments)


def outcome(case: Case, team: Any = None) -> dict[str, torch.Tensor]:
    """Whole gradients, or weights after updates, by name, and the statistics; of a broken case the weights and `refused`."""
    from paragator.training.sharded import whole

    packed.LOGITS_AT_ONCE = 2**10 if case.chunked else 2**26
    policy, trees = policy_of(case, team), trees_of(case)
    if case.updates or case.broken:
        stats = policy.update(trees, 1, CONSTANTS)
        if case.loaded:
            if team is not None:
                reload(policy)
            stats = policy.update(trees, 2, CONSTANTS)
        found = {name: whole(p).clone() for name, p in policy.tensors().items()}
    else:
        measured = policy.measure(trees, trees[:3]) if case.balance else {}
        rows = policy.rows(trees if policy.factor is None else scaled(trees, policy.factor))
        stats, _ = policy.gradient(rows, [None] * len(rows), CONSTANTS)
        found = {name: whole(p.grad).clone() for name, p in policy.tensors().items() if p.grad is not None}
        stats |= measured
        if case.balance:  # the update scales as well: its gradient's norm says so
            updated = policy.update(trees, 1, CONSTANTS)
            stats |= {"balance": updated["balance"], "updated norm": updated["grad_norm"]}
    return found | {f"stats/{k}": torch.tensor(v, dtype=torch.float64) for k, v in stats.items()}


def main(folder: Path) -> None:
    """All cases that suit the number of processes; rank 0 writes what came out."""
    from paragator.training.team import Team

    torch.set_num_threads(1)
    team = Team(120.0)
    team.join()
    for name, case in CASES.items():
        if not case.runs_on(team.size):
            continue
        try:
            found = outcome(case, team)
        except (NotFinite, UsageError) as problem:
            found = {"refused": torch.tensor(float(len(problem.args)))}
        if team.rank == 0:
            save_file({k: v.contiguous() for k, v in found.items()}, folder / f"{name}.safetensors")
    os._exit(0)  # without the team's farewell, which needs orders


if __name__ == "__main__":
    main(Path(sys.argv[1]))
