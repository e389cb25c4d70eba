"""How an update grows: with the branches N and with the pool m, packed (ours) against one padded row a rollout.

    python benchmarks/linear.py [--quick] [--repeats 5] [--threads 2]

Embedded model, aggregation groups: N branches of 48 tokens on a prompt of 14 + 40 m. Both sides make the same gradient
(benchmarks/update.py compares it). Writes docs/update-growth.png beside the numbers.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import peers
import torch
from update import Work, policy_of, trees_of

from paragator.config import ModelConfig
from paragator.engines.local.loading import load_model

HELD = "rollouts, loss, float32, threads, AdamW, norm clipping; one group of equal branches, prompt of 14 + 40 m tokens"
PICTURE = common.ROOT / "docs" / "update-growth.png"
N, M = 8, 4


def measure(name: str, m: int, n: int, model: Any, flags: Any) -> common.Case:
    """One point: an update on one group."""
    length = 4 if flags.quick else 48
    work = Work(name, "embedded", (("aggregate", 14 + (4 if flags.quick else 40) * m, (length,) * n),))
    trees, constant = trees_of(work, model.config.vocab_size)
    rows = peers.ROWS
    peers.ROWS = n  # a micro-batch holds the group
    batches = peers.trl_batches(trees, constant, 0)
    peers.ROWS = rows
    policy, theirs = policy_of(copy.deepcopy(model), trees), copy.deepcopy(model)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-6, weight_decay=0.0)
    sides = {
        "ours": lambda: policy.update(trees, 1, {}),
        "padded": lambda: peers.padded_update(theirs, optimizer, batches, constant),
    }
    seconds = common.interleaved(sides, flags.repeats, within_s=flags.within)
    return common.case(name, seconds["ours"], "padded rows", seconds["padded"], HELD, branches=n, pool=m)


def draw(cases: Sequence[common.Case], path: Path) -> None:
    """Both series against N and against m."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, what, title in zip(
        figure.subplots(1, 2, sharey=True),
        ("branches", "pool"),
        ("branches N, pool of 4", "pool m, 8 branches"),
        strict=True,
    ):
        fixed = {"branches": "pool", "pool": "branches"}[what]
        points = sorted((c for c in cases if c[fixed] == {"pool": M, "branches": N}[fixed]), key=lambda c: c[what])
        for side, label in (("peer_s", "one padded row a rollout"), ("ours_s", "packed")):
            axes.plot([c[what] for c in points], [c[side] for c in points], marker="o", label=label)
        axes.set_xlabel(title)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("seconds an update")
    figure.axes[0].legend()
    figure.savefig(path, dpi=120)


def main() -> int:
    flags = common.parser(__doc__).parse_args()
    common.use_threads(flags.threads)
    model, _ = load_model(ModelConfig(path="embedded", device="cpu"))
    points = [(M, n) for n in (2, 4, 8, 16)] + [(m, N) for m in (1, 2, 8)]
    cases = [measure(f"embedded, N = {n}, m = {m}", m, n, model, flags) for m, n in points]
    if not flags.quick:
        draw(cases, PICTURE)
    common.finish(flags, "linear", cases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
