"""The gradients of the two stages: their norms, the cosine between them, and the factor that brings the norms to a ratio.

Ours. Pass@k's credit is weaker than pass@1's by (N-k)/(Nk), and by how much depends on how many groups have signal; a
measured factor takes the place of a guessed weight. That pass@k's gradient can oppose pass@1's is arXiv 2602.21189.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from paragator.training.rows import STAGES, Tree

Gradient = Sequence[torch.Tensor | None]
"""One tensor a parameter, always in the same order; None where the loss does not depend on it."""
KEPT = 0.7
"""What a new measurement leaves of the factor before it, in its logarithm: one step's gradients are mostly noise."""


def compared(
    gradient: Callable[[Sequence[Tree]], Gradient], trees: Sequence[Tree], others: Sequence[Tree]
) -> dict[str, float]:
    """What can be measured of trees: each stage's norm, their cosine, and that of the candidates with `others`.

    `gradient` gives that of some trees; at most two exist at a time.
    """
    candidates, aggregations = ([tree for tree in trees if tree.stage == stage] for stage in STAGES)
    first = gradient(candidates) if candidates else ()
    found = {"generate/grad_norm": product(first, first) ** 0.5} if first else {}
    for name, of in (("stage_cosine", aggregations), ("generate/credit_cosine", others)):
        second = gradient(of) if of and (first or of is aggregations) else ()
        norm = product(second, second) ** 0.5 if second else 0.0
        if of is aggregations and second:
            found["aggregate/grad_norm"] = norm
        if norm and found.get("generate/grad_norm"):
            cosine = product(first, second) / (found["generate/grad_norm"] * norm)
            found[name] = max(-1.0, min(1.0, cosine))
    return found


def product(a: Gradient, b: Gradient) -> float:
    """The inner product of two gradients, whole where they are sharded."""
    parts = [(x.float() * y.float()).sum() for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    total: Any = torch.stack(parts).sum() if parts else 0.0
    return float(total.full_tensor() if hasattr(total, "full_tensor") else total)


def factor(before: float | None, norms: Mapping[str, float], ratio: float) -> float | None:
    """What to scale candidates' credit by, after one more measurement; as before where a stage had no gradient."""
    candidates, aggregations = (norms.get(f"{stage}/grad_norm", 0.0) for stage in STAGES)
    if not candidates or not aggregations:
        return before
    now = ratio * aggregations / candidates
    return float(now if before is None else before**KEPT * now ** (1 - KEPT))


def scaled(trees: Sequence[Tree], by: float) -> list[Tree]:
    """The trees with candidates' credit times `by`."""
    return [
        replace(tree, branches=tuple(replace(branch, credit=branch.credit * by) for branch in tree.branches))
        if tree.stage == "generate"
        else tree
        for tree in trees
    ]
