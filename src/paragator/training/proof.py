"""Before a run starts: log-probabilities of a packed row against a plain forward of the same model (see engines/local/proof.py)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from paragator.engines.local.proof import (
    compare,
    device_of,
    narrowed,
    plain_log_probs,
    prove_sampling,
    random_ids,
    tokens_of_proof,
    told,
)
from paragator.training.packed import collate, log_probs
from paragator.training.rows import STAGES, Branch, Tree, pack


def prove(
    model: Any, *, sampling: bool = True, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> None:
    """UsageError unless updates, and `sampling` in this process, compute what the model computes alone.

    In float32 it is exact to rounding; under the autocast of a run it is about the kernels, and as exact as 16 bits are.
    """
    room = tokens_of_proof(model)
    shapes = [(room // 6 + 1, (room // 8 + 1, room // 3, 1)), (room // 2, (room // 4, room - room // 2, room // 2))]

    def branch(count: int, name: str) -> Branch:
        return Branch(random_ids(model, count, name), (0.0,) * count, 0.0)

    trees = [
        Tree(stage, random_ids(model, prompt, stage), tuple(branch(n, f"{stage}:{b}") for b, n in enumerate(branches)))
        for stage, (prompt, branches) in zip(STAGES, shapes, strict=True)
    ]
    (row,) = pack(trees, sum(tree.num_tokens for tree in trees))
    with told(model, "trained"), narrowed(model), autocast():
        plain = plain_log_probs(model, [(tree.prompt_ids, b.token_ids) for tree in trees for b in tree.branches])
        with torch.enable_grad():  # as in updates, whose kernels are then ready
            packed = log_probs(model, collate(row).to(device_of(model)))
        compare(model, "packed", packed.tolist(), plain)
    if sampling:
        prove_sampling(model, autocast)
