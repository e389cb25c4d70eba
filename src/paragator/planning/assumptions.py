"""What a plan assumes where nothing was measured or given: a model's shape, lengths, and everything said back to the reader."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.planning.lengths import Lengths
from paragator.planning.simulate import Cluster, Workload
from paragator.training.memory import Shape

TAIL = 0.6
"""Sigma of lengths that nobody gave: lognormal, with half of max_tokens as mean."""


def workload_of(
    config: Config,
    *,
    problem: str = "200",
    solution: str | None = None,
    aggregation: str | None = None,
    shown: float = 1.0,
    signal: float = 1.0,
) -> Workload:
    """A step of `config` with these lengths (see `Lengths.parse`); a stage's default is lognormal around half its max_tokens."""
    for name, share in (("shown", shown), ("signal", signal)):
        if not 0 <= share <= 1:
            raise UsageError(f"--{name} {share}: use a share from 0 to 1")

    def lengths(text: str | None, name: str, most: int) -> Lengths:
        return Lengths.parse(text or f"lognormal:{max(1, most / 2):g}:{TAIL}", name)

    return Workload(
        config,
        Lengths.parse(problem, "problem"),
        lengths(solution, "solution", config.generate.max_tokens),
        lengths(aggregation, "aggregation", config.aggregate.max_tokens),
        shown=shown,
        signal={"generate": signal, "aggregate": signal},
    )


def shape_with(params: float, active: float | None = None) -> Shape:
    """A llama-like shape of about that many parameters: 80 hidden a layer, heads of 128, 8 key-value heads, Qwen3's vocabulary.

    With fewer `active` ones, 8 experts a token of as many as it takes. UsageError for sizes that no such shape has.
    """
    used = params if active is None else active
    if not 1e8 <= used <= params <= 1e13:
        raise UsageError(f"--params {params:g}, --active {used:g}: use 1e8 <= active <= params <= 1e13")
    shape = Shape(1, 128, 1, 1, 1, 128, 151_936, tied=True)
    for layers in range(8, 400, 2):
        hidden = 128 * max(4, round(80 * layers / 128))
        bare = Shape(layers, hidden, 0, hidden // 128, min(8, hidden // 128), 128, 151_936, tied=used < 8e9)
        inner = round((used - bare.parameters) / (3 * hidden * layers))
        if inner < 1:
            break
        shape = replace(bare, inner=inner)
        if inner <= 4 * hidden:
            break
    if active is None or active == params:
        return shape
    small = max(1, shape.inner // 8)
    experts = 8 + round((params - shape.parameters) / (3 * shape.hidden * small * shape.layers))
    return replace(shape, inner=small, experts=experts, used=8)


def assumptions(workload: Workload, cluster: Cluster) -> dict[str, Any]:
    """Everything that the result rests on and that is not in the config."""
    rollout = workload.config.rollout
    return {
        "problem": str(workload.problem),
        "solution": str(workload.solution),
        "aggregation": str(workload.aggregation),
        "shown": workload.shown,
        "signal": workload.signal["generate"],
        "problems": workload.config.train.problems,
        "N": rollout.candidates,
        "m": rollout.pool_size,
        "gpus": {"train": cluster.gpus_train, "rollout": cluster.gpus_rollout},
        "parallel": {"train": cluster.train_parallel, "rollout": cluster.parallel},
        "rows": cluster.batching.rows,
        "attention": "block" if cluster.skips else "dense",
        **asdict(cluster.hardware),
        **asdict(cluster.efficiency),
    }
