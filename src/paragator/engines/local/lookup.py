"""Prompt-lookup decoding: a row's next tokens are drafted from what followed its last two tokens before, and run in one pass.

An aggregation copies much of its pool, which is in its prompt. A draft is kept as far as it is what the row's uniform numbers
draw there, given what the model says after it. So rows are the same with drafts and without, apart from float rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

from paragator.engines.sampling import Sampling

FIRST = 2
"""Tokens of a row's first draft. Each is twice as long after one that was kept whole, else as long as what was kept."""
BREAK_EVEN, PATIENCE = 0.5, 8
"""A row's drafts end once the tokens kept are by so many fewer than this share of those drafted."""
BEFORE = -1
"""Stands before a prompt, so that its first token ends a pair too."""


class Drafted:
    """One row: its prompt's tokens and its own, of which there are `place`, and its draft of what comes next.

    ended  whether it sampled an end token, or has no room left
    """

    def __init__(self, ids: Sequence[int], place: int, sampling: Sampling, ends: Collection[int]) -> None:
        self.ids = seen = [BEFORE, *ids]
        self.after = dict(zip(pairwise(seen), range(2, len(seen)), strict=False))
        self.most, self.room, self.ends = sampling.lookup, sampling.max_tokens, ends
        self.place, self.ended = place, False
        self.draft: list[int] = []
        self.length, self.balance = min(FIRST, self.most), 0.0

    def take(self, drawn: Sequence[int]) -> None:
        """What was drawn after each token that was run: true up to the first that is not as drafted."""
        kept = 0
        for token, guess in zip(drawn, [*self.draft, None], strict=True):
            self.after[self.ids[-2], self.ids[-1]] = len(self.ids)
            self.ids.append(token)
            self.place += 1
            self.ended = token in self.ends or self.place == self.room
            if self.ended or token != guess:
                break
            kept += 1
        if self.draft:
            self.length = min(self.most, 2 * self.length) if kept == len(self.draft) else max(1, kept)
            self.balance += kept - BREAK_EVEN * len(self.draft)

    def following(self) -> list[int]:
        """The tokens to run: its last one and its draft."""
        begin = self.after.get((self.ids[-2], self.ids[-1])) if self.balance > -PATIENCE else None
        most = min(self.length, self.room - self.place - 1)
        self.draft = [] if begin is None else self.ids[begin : begin + most]
        return [self.ids[-1], *self.draft]
