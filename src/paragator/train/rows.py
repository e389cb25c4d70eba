"""Credited groups as token rows: exactly the ids that were sampled. Pure; no torch."""

from __future__ import annotations

from dataclasses import dataclass

from paragator.core.types import Stage


@dataclass(frozen=True, slots=True)
class Branch:
    """One rollout of a group as training sees it.

    token_ids [T] and logprobs [T] as sampled; `credit` is the advantage, already times its stage's weight and divided
    by the stage's constant length (Dr.GRPO), so that the loss is a plain sum over tokens.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    credit: float


@dataclass(frozen=True, slots=True)
class Tree:
    """One prompt and its branches: the unit of packing."""

    stage: Stage
    prompt_ids: tuple[int, ...]
    branches: tuple[Branch, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + sum(len(b.token_ids) for b in self.branches)
