"""Packs a pool into an aggregation prompt that fits the budget. Every reduction is recorded, none is silent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paragator.core.errors import UsageError
from paragator.core.prompts import Templates
from paragator.core.thinking import strip_thinking
from paragator.core.types import Problem, Prompt

KEEPS = (0.5, 0.25, 0.125)
"""Shares of each attempt to keep where a prompt does not fit, tried in this order."""


@dataclass(frozen=True, slots=True)
class Packed:
    """An aggregation prompt, the population indices that it shows in order, and what was reduced to make it fit.

    `misfit` says why not even one attempt fits beside the problem; then the prompt shows none.
    """

    prompt: Prompt
    pool: tuple[int, ...]
    reductions: tuple[str, ...] = ()
    misfit: str | None = None


@dataclass(frozen=True, slots=True)
class Packer:
    """How attempts enter an aggregation prompt.

    strip_thinking  show an attempt without its thinking; one whose thinking never ends has nothing to show
    max_tokens      the aggregation prompt's budget in tokens; None is unlimited
    count           counts a prompt's tokens; needed with max_tokens
    count_attempt   counts one attempt as it is shown, with what its template adds; then a prompt's length is `count` of
                    the prompt without attempts plus these
    """

    strip_thinking: bool = True
    max_tokens: int | None = None
    count: Callable[[Prompt], int] | None = None
    count_attempt: Callable[[str], int] | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.count is None:
            raise UsageError(f"max_tokens = {self.max_tokens} without count: pass a function that counts tokens")

    def pack(self, problem: Problem, attempts: Sequence[tuple[int, str]], templates: Templates) -> Packed:
        """Write the attempts, given as (population index, text), into the aggregation prompt.

        Too long for the budget: first each attempt keeps only its tail (where the answer is), down to an eighth of
        its length, then attempts are left out, last drawn first.
        """
        shown = [(i, strip_thinking(text) if self.strip_thinking else text.strip()) for i, text in attempts]
        empty = sum(not text for _, text in shown)
        shown = [(i, text) for i, text in shown if text]
        notes = [f"empty:{empty}"] if empty else []
        full, keep = shown, 1.0
        while shown and not self.fits(problem, [text for _, text in shown], templates):
            if keep > KEEPS[-1]:
                keep /= 2
                shown = [(i, tail(text, keep)) for i, text in full[: len(shown)]]
            else:
                shown = shown[:-1]
        if keep < 1.0:
            notes.append(f"tail:{keep}")
        if len(shown) < len(full):
            notes.append(f"dropped:{len(full) - len(shown)}")
        misfit = None
        if full and not shown:
            misfit = f"context length: the problem leaves no room for an attempt in {self.max_tokens} tokens of prompt"
        prompt = templates.for_aggregation(problem, [text for _, text in shown])
        return Packed(prompt, tuple(i for i, _ in shown), tuple(notes), misfit)

    def fits(self, problem: Problem, texts: Sequence[str], templates: Templates) -> bool:
        if self.max_tokens is None or self.count is None:
            return True
        if self.count_attempt is None:
            return self.count(templates.for_aggregation(problem, texts)) <= self.max_tokens
        bare = self.count(templates.for_aggregation(problem, []))
        return bare + sum(map(self.count_attempt, texts)) <= self.max_tokens


def tail(text: str, share: float) -> str:
    """The last `share` of a text, marked as cut."""
    return "... " + text[-max(1, int(len(text) * share)) :]
