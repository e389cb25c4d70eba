"""Credited groups as token rows, exactly the ids that were sampled, and the plan that packs them. Pure; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from paragator.core.errors import DataError, UsageError
from paragator.core.types import Stage

STAGES: tuple[Stage, Stage] = ("generate", "aggregate")
LOGITS_AT_ONCE = 2**26
"""Most logits that exist at a time; more are computed in chunks from the hidden states, and again in the backward pass."""

TOGETHER = 2**12
"""Most prompt tokens that one attention call holds of several trees: only small trees gain by sharing one."""


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


@dataclass(frozen=True, slots=True)
class Piece:
    """A tree, or some branches of one with its prompt repeated; ids are indices into what `pack` was given."""

    tree: Tree
    tree_id: int
    branch_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Pieces that share one row; an idle one is computed and does not count (a process without rows takes part, see sharded.py)."""

    pieces: tuple[Piece, ...]
    idle: bool = False

    @property
    def num_tokens(self) -> int:
        return sum(piece.tree.num_tokens for piece in self.pieces)


def pack(trees: Sequence[Tree], max_tokens: int) -> list[PackedRow]:
    """Plan rows of at most `max_tokens` tokens, first-fit decreasing. Deterministic; uses no tensors.

    A larger tree is cut by branches and repeats its prompt; a single branch that is too long even alone with its prompt
    gets a row of its own. Raises UsageError for max_tokens < 1 and DataError for a malformed tree.
    """
    if max_tokens < 1:
        raise UsageError(f"max_tokens = {max_tokens}: a row needs at least 1 token")
    pieces = [piece for i, tree in enumerate(trees) for piece in _split(tree, i, max_tokens)]
    bins = first_fit([piece.tree.num_tokens for piece in pieces], max_tokens)
    return [PackedRow(tuple(pieces[i] for i in bin_)) for bin_ in bins]


def _split(tree: Tree, tree_id: int, max_tokens: int) -> list[Piece]:
    """A tree as pieces that fit the budget, where a single branch can; nothing without branches."""
    if not tree.prompt_ids:
        raise DataError(f"tree {tree_id} has an empty prompt: nothing predicts its first token; give it a start token")
    for b, branch in enumerate(tree.branches):
        if len(branch.token_ids) != len(branch.logprobs):
            raise DataError(
                f"branch {b} of tree {tree_id} has {len(branch.token_ids)} tokens but {len(branch.logprobs)} "
                "log-probabilities: keep both as the engine sampled them"
            )
    if not tree.branches:
        return []
    if tree.num_tokens <= max_tokens:
        return [Piece(tree, tree_id, tuple(range(len(tree.branches))))]
    bins = first_fit([len(b.token_ids) for b in tree.branches], max_tokens - len(tree.prompt_ids))
    return [Piece(replace(tree, branches=tuple(tree.branches[i] for i in bin_)), tree_id, tuple(bin_)) for bin_ in bins]


def first_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """First-fit decreasing: indices per bin, ascending in it; what exceeds the capacity is alone in its bin."""
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        for b, left in enumerate(room):
            if sizes[i] <= left:
                bins[b].append(i)
                room[b] -= sizes[i]
                break
        else:
            bins.append([i])
            room.append(capacity - sizes[i])
    return [sorted(bin_) for bin_ in bins]
