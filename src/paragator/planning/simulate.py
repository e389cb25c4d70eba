"""Simulated training steps on devices that are not here: tokens, FLOPs and seconds by part. No torch, no weights.

Rollouts are simulated event by event (`rollout_events.py`), everything else is FLOPs or bytes over a rate (`hardware.py`).
Four ways to take the same step, on the same drawn lengths: rollouts pipelined or with a barrier, updates packed or padded.
docs/plan.md explains the model, its parameters and its limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from statistics import fmean
from typing import Any

from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.core.methods import METHODS
from paragator.core.types import Stage
from paragator.planning.estimate import pass_flops, passes
from paragator.planning.hardware import Cost, Efficiency, Hardware
from paragator.planning.lengths import Lengths
from paragator.planning.rollout_events import Batching, GroupRequest, Rollouts, roll_out
from paragator.training.memory import FLOAT, Shape, budget, memory_of, stages, with_tokens
from paragator.training.rows import STAGES, first_fit

PARTS = ("generate", "both", "aggregate", "grade", "update", "publish")
"""What a step's seconds are spent on, one after another; "both" while both stages are in flight."""
RESERVED = 0.9
"""Share of a device's memory that a rollout engine takes."""
HOST = 8
"""Devices of one host; more talk over the network."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One step: a config, and the lengths of problems (with their template), solutions and aggregations.

    shown     share of a solution that an aggregation is shown (less than 1 where thinking is stripped)
    template  tokens of the aggregation prompt beside problem and attempts
    attempt   tokens around one attempt
    signal    share of each stage's groups whose credit is not all zero: only these are updated on
    """

    config: Config
    problem: Lengths
    solution: Lengths
    aggregation: Lengths
    shown: float = 1.0
    template: int = 100
    attempt: int = 10
    signal: dict[Stage, float] = field(default_factory=lambda: {"generate": 1.0, "aggregate": 1.0})


@dataclass(frozen=True, slots=True)
class Cluster:
    """Devices. `gpus_rollout` 0: those that train sample too, and the trainer's state leaves less room for the cache.

    parallel        tensor-parallel degree of a rollout replica
    train_parallel  devices that share the products of one micro-batch
    skips           attention of padded rows skips what its mask hides (flash); else whole rows are computed
    """

    hardware: Hardware
    efficiency: Efficiency = field(default_factory=Efficiency)
    gpus_train: int = 1
    gpus_rollout: int = 0
    parallel: int = 1
    train_parallel: int = 1
    batching: Batching = field(default_factory=Batching)
    skips: bool = True

    @property
    def gpus(self) -> int:
        return self.gpus_train + self.gpus_rollout

    @property
    def replicas(self) -> int:
        return (self.gpus_rollout or self.gpus_train) // self.parallel

    def check(self) -> None:
        """UsageError for counts that cannot be."""
        for name, value, least in (
            ("gpus-train", self.gpus_train, 1),
            ("gpus-rollout", self.gpus_rollout, 0),
            ("rows", self.batching.rows, 1),
        ):
            if value < least:
                raise UsageError(f"--{name} {value}: at least {least} is needed")
        sampling = self.gpus_rollout or self.gpus_train
        for name, value, of in (
            ("rollout-parallel", self.parallel, sampling),
            ("train-parallel", self.train_parallel, self.gpus_train),
        ):
            if value < 1 or of % value:
                raise UsageError(f"--{name} {value} does not divide the {of} GPUs that it shares work over")


def plan(
    workload: Workload, shape: Shape, cluster: Cluster, *, seed: int = 0, draws: int = 3, price: float | None = None
) -> dict[str, Any]:
    """Mean of `draws` simulated steps in four variants, as plain numbers; `price` is of one GPU for one hour."""
    cluster.check()
    if draws < 1:
        raise UsageError(f"--draws {draws}: at least 1 is needed")
    if price is not None and not 0 <= price < math.inf:
        raise UsageError(f"--price {price}: use the price of one GPU for one hour, 0 or more")
    config = workload.config
    if config.rollout.pools > 1 or METHODS[config.method.name].rounds > 1:
        raise UsageError(
            f"method.name = {config.method.name}, rollout.pools = {config.rollout.pools}: the simulator knows one pool a "
            "problem and one aggregation round a step; set rollout.pools = 1 and another method"
        )
    h = cluster.hardware
    tokens = budget(config, shape, h.memory_bytes / 2, bfloat16=h.value_bytes < FLOAT, cuda=True)
    workload = replace(workload, config=with_tokens(config, tokens))
    room = room_of(workload, shape, cluster)
    drawn = [groups_of(workload, Random(f"{seed}:{i}")) for i in range(draws)]
    rollouts = {
        name: [sampled(workload, groups, shape, cluster, room["kv_tokens"], name == "barrier") for groups in drawn]
        for name in ("barrier", "pipelined")
    }
    updates = {
        name: [updated(workload, groups, shape, cluster, name == "packed") for groups in drawn]
        for name in ("padded", "packed")
    }
    variants = []
    for rollout, sampling in rollouts.items():
        for update, training in updates.items():
            found = [one_step(workload, shape, cluster, *pair) for pair in zip(sampling, training, strict=True)]
            variants.append(
                {
                    "rollout": rollout,
                    "update": update,
                    **mean_of(found),
                    **run_of(found, workload.config, cluster, price),
                }
            )
    return {
        "parameters": shape.parameters,
        "active_parameters": shape.active,
        "tokens_per_step": tokens_of(drawn, rollouts["pipelined"], updates),
        "memory": room,
        "variants": variants,
        "steps": workload.config.train.steps,
        "seed": seed,
        "draws": draws,
    }


Groups = list[tuple[GroupRequest, GroupRequest | None]]


def groups_of(workload: Workload, rng: Random) -> Groups:
    """Each problem's candidates and aggregations with drawn lengths; aggregations see `pool_size` of the candidates."""
    config, out = workload.config, []
    two = METHODS[config.method.name].aggregate
    n, m, room = config.rollout.candidates, config.rollout.pool_size, config.rollout.max_prompt_tokens
    for i in range(config.train.problems):
        problem = workload.problem.draw(rng)
        lengths = [workload.solution.draw(rng, config.generate.max_tokens) for _ in range(n)]
        shown = [lengths[j] for j in rng.sample(range(n), m)]
        prompt = problem + workload.template + sum(round(workload.shown * s) + workload.attempt for s in shown)
        prompt = min(prompt, room) if room else prompt
        again = [workload.aggregation.draw(rng, config.aggregate.max_tokens) for _ in range(n)]
        learnt = [rng.random() < workload.signal[stage] for stage in STAGES]
        first, second = (
            GroupRequest(i, "generate", problem, lengths, learnt[0]),
            GroupRequest(i, "aggregate", prompt, again, learnt[1]),
        )
        out.append((first, second if two else None))
    return out


def sampled(
    workload: Workload, groups: Groups, shape: Shape, cluster: Cluster, kv_tokens: float, barrier: bool
) -> Rollouts:
    """The rollouts of one step; recorded candidates (offline aggregation) are not sampled."""
    cost = Cost(shape, cluster.hardware, cluster.efficiency, cluster.parallel)
    again = [fresh(b) for _, b in groups if b is not None]
    first = [fresh(a) for a, _ in groups]
    if METHODS[workload.config.method.name].source == "offline":
        first, again = again, []
    batching = cluster.batching
    limited = replace(batching, capacity=min(kv_tokens, batching.capacity))
    return roll_out(first, again, cost, limited, cluster.replicas, barrier=barrier)


def fresh(request: GroupRequest) -> GroupRequest:
    """The request as it was before anything ran."""
    return GroupRequest(request.problem, request.stage, request.prompt, request.lengths)


@dataclass(frozen=True, slots=True)
class Update:
    """Micro-batches of an update: FLOPs of each, and tokens with and without padding."""

    flop: list[float]
    computed: int
    tokens: int
    predicted: int


def updated(workload: Workload, groups: Groups, shape: Shape, cluster: Cluster, packed: bool) -> Update:
    """The update on one step's groups. Packed: a prompt once, as `packed.py` does. Padded: a row for each rollout.

    At most batch_tokens at a time; padded rows of like length go together. Both skip groups without signal.
    """
    method, most = METHODS[workload.config.method.name], workload.config.train.batch_tokens or 0
    trained = [r for pair in groups for r in pair if r is not None and r.signal and method.scheme(r.stage) is not None]
    if packed:
        rows = [row for r in trained for row in cut(r.prompt, r.lengths, most)]
        bins = first_fit([row.num_tokens for row in rows], most)
        batches = [[joined([rows[i] for i in bin_])] for bin_ in bins]
    else:
        rows = [UpdateRow(n := r.prompt + length, length, n * n / 2) for r in trained for length in r.lengths]
        batches = microbatches(rows, most)
    products, scores = passes(workload.config)
    flop = [batch_flop(shape, batch, packed or cluster.skips, products, scores) for batch in batches]
    computed = sum(len(batch) * batch[0].num_tokens for batch in batches)
    return Update(flop, computed, sum(row.num_tokens for row in rows), sum(row.predicted for row in rows))


def microbatches(rows: Sequence[UpdateRow], most: int) -> list[list[UpdateRow]]:
    """Rows of similar length together, at most `most` tokens with padding (one row may be above)."""
    batches: list[list[UpdateRow]] = []
    for row in sorted(rows, key=lambda r: -r.num_tokens):
        if batches and (len(batches[-1]) + 1) * batches[-1][0].num_tokens <= most:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


@dataclass(frozen=True, slots=True)
class UpdateRow:
    """A row of the update: its tokens, those of branches, and how many (query, key) pairs its attention computes."""

    num_tokens: int
    predicted: int
    pairs: float

    @classmethod
    def of(cls, prompt: int, lengths: Sequence[int]) -> UpdateRow:
        """A prompt once, and its branches, as `tree_attention` computes them."""
        pairs = prompt * prompt / 2 + sum(b * (prompt + b) for b in lengths)
        return cls(prompt + sum(lengths), sum(lengths), pairs)


def cut(prompt: int, lengths: Sequence[int], most: int) -> list[UpdateRow]:
    """A group as rows of at most `most` tokens, its prompt repeated in each."""
    if prompt + sum(lengths) <= most:
        return [UpdateRow.of(prompt, lengths)]
    return [UpdateRow.of(prompt, [lengths[i] for i in bin_]) for bin_ in first_fit(lengths, most - prompt)]


def joined(rows: Sequence[UpdateRow]) -> UpdateRow:
    """Rows as one."""
    return UpdateRow(sum(r.num_tokens for r in rows), sum(r.predicted for r in rows), sum(r.pairs for r in rows))


def batch_flop(shape: Shape, batch: Sequence[UpdateRow], skips: bool, products: int, scores: int) -> float:
    """FLOPs of a forward and backward pass: padding is multiplied too; only branch tokens go through the head."""
    length = batch[0].num_tokens
    tokens = len(batch) * length
    pairs = sum(row.pairs for row in batch) if skips else tokens * length
    dense = pass_flops(shape, tokens, 0, sum(row.predicted for row in batch))
    return products * dense + scores * 4.0 * shape.layers * shape.q * pairs


def one_step(workload: Workload, shape: Shape, cluster: Cluster, rollouts: Rollouts, update: Update) -> dict[str, Any]:
    """Seconds of one step by part, FLOPs by part, and the device-seconds in which nothing ran; these with train.ahead = 1 too.

    With it sampling and training coincide, on devices of their own; devices that do both gain nothing.
    """
    e = cluster.efficiency
    cost = Cost(shape, cluster.hardware, e, cluster.train_parallel)
    solutions = workload.config.rollout.candidates * (1 + (METHODS[workload.config.method.name].aggregate is not None))
    copies = cluster.gpus_train // cluster.train_parallel
    updates = workload.config.train.updates
    busy = [updates * s for s in shares(update.flop, copies, cost)]
    rank = workload.config.model.lora_rank
    trained = (shape.adapters(rank) if rank else shape.parameters) / shape.parameters
    update_s = max(busy) + updates * (e.update_s + trained * cost.exchange_s(copies, cluster.gpus_train > HOST))
    alone = cluster.gpus == 1  # the engine samples from the trainer's own weights
    sampler = Cost(shape, cluster.hardware, e, cluster.parallel)
    seconds = {part: rollouts.parts.get(part, 0.0) for part in PARTS[:3]}
    seconds["grade"] = graded(rollouts.ends, solutions, e) - rollouts.seconds
    seconds["update"] = update_s
    seconds["publish"] = 0.0 if alone else sampler.publish_s(cluster.gpus > HOST)
    total = sum(seconds.values())
    worked = rollouts.busy_s * cluster.parallel + sum(busy) * cluster.train_parallel
    worked += (update_s - max(busy)) * cluster.gpus_train + seconds["publish"] * cluster.gpus
    ahead = max(total - update_s - seconds["publish"], update_s) + seconds["publish"] if cluster.gpus_rollout else total
    return {
        "seconds": {**seconds, "step": total},
        "idle_s": total - worked / cluster.gpus,
        "ahead": {"step": ahead, "idle_s": ahead - worked / cluster.gpus},
        "flop": {"rollout": rollouts.flop, "update": updates * sum(update.flop)},
    }


def shares(flop: Sequence[float], copies: int, cost: Cost) -> list[float]:
    """Seconds of each data-parallel copy: the next longest micro-batch goes to the one with the least."""
    busy = [0.0] * copies
    for work in sorted(flop, reverse=True):
        index = min(range(copies), key=busy.__getitem__)
        busy[index] += work / cost.update_rate() + cost.efficiency.batch_s
    return busy


def graded(ends: Sequence[float], solutions: int, e: Efficiency) -> float:
    """When the last solution is graded; a problem's come when its rollouts end."""
    free = [0.0] * max(1, int(e.graders))
    for end in sorted(ends):
        for _ in range(solutions):
            index = min(range(len(free)), key=free.__getitem__)
            free[index] = max(free[index], end) + e.grade_s
    return max([*free, *ends])


def mean_of(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over simulated steps, key by key."""
    out: dict[str, Any] = {}
    for key, value in found[0].items():
        values = [row[key] for row in found]
        out[key] = mean_of(values) if isinstance(value, dict) else fmean(values)
    return out


def run_of(
    found: Sequence[dict[str, Any]], config: Config, cluster: Cluster, price: float | None
) -> dict[str, float | None]:
    """The whole run as configured: hours, GPU-hours, and cost where a price is given."""
    part = "ahead" if config.train.ahead else "seconds"
    hours = config.train.steps * fmean(row[part]["step"] for row in found) / 3600
    return {
        "hours": hours,
        "gpu_hours": hours * cluster.gpus,
        "cost": None if price is None else hours * cluster.gpus * price,
    }


def tokens_of(
    drawn: Sequence[Groups], rollouts: Sequence[Rollouts], updates: dict[str, list[Update]]
) -> dict[str, float]:
    """Mean tokens of a step: sampled and prefilled, and what each update computes, padding included."""
    out = {"generated": fmean(r.generated for r in rollouts), "prefilled": fmean(r.prefilled for r in rollouts)}
    prompts = [b.prompt for groups in drawn for _, b in groups if b is not None]
    out["aggregation_prompt"] = fmean(prompts) if prompts else 0.0
    out["trained"] = fmean(u.predicted for u in updates["packed"])
    return out | {f"computed_{name}": fmean(u.computed for u in found) for name, found in updates.items()}


def room_of(workload: Workload, shape: Shape, cluster: Cluster) -> dict[str, Any]:
    """Bytes of a training device (its state sharded over all of them), and tokens of cache of one replica."""
    config, h = workload.config, cluster.hardware
    tokens = config.train.batch_tokens or 0
    found = memory_of(config, shape, stages(config)[-1], tokens, h.value_bytes < FLOAT, True)
    state = (found.weights + found.gradients + found.optimiser + found.reference) / cluster.gpus_train
    training = state + (found.activations + found.working) / cluster.train_parallel
    free = RESERVED * h.memory_bytes - (0 if cluster.gpus_rollout else state)
    weights = h.value_bytes * shape.parameters
    cache = cluster.parallel * free - weights
    per_token = Cost(shape, h, cluster.efficiency, cluster.parallel).kv_bytes
    longest = config.generate.max_tokens + config.aggregate.max_tokens
    if cache < longest * per_token:
        raise UsageError(
            f"a replica of {cluster.parallel} {h.name} has {max(0, cluster.parallel * free) / 1e9:.0f} GB for "
            f"{weights / 1e9:.0f} GB of weights and its cache; raise --rollout-parallel or --gpus-rollout, or take larger GPUs"
        )
    return {
        "training_bytes": training,
        "training_state_bytes": state,
        "device_bytes": h.memory_bytes,
        "training_fits": training <= h.memory_bytes,
        "kv_bytes_per_token": per_token,
        "kv_tokens": cache / per_token,
    }
