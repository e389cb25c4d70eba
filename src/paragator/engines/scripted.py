"""An engine that answers from a function: no model, no torch. For tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from paragator.core.types import Completion, Failure, Group, Prompt, Stage

Reply = Callable[[Prompt, int, Stage, int], str | Completion | Failure]
"""(prompt, sibling index, stage, the request's seed) -> one output."""


class Scripted:
    """Satisfies `Sample` with `reply(prompt, index, stage, seed)`; its completions carry no token ids.

    reply  called once for each sibling, in order; a text becomes a Completion, other outputs pass unchanged
    delay  seconds that a request of (prompt, seed) takes, to let requests answer in another order than they came
    calls  every request so far, as (prompt, n, stage, seed), in the order they came
    """

    def __init__(self, reply: Reply, *, delay: Callable[[Prompt, int], float] | None = None) -> None:
        self.reply = reply
        self.delay = delay
        self.calls: list[tuple[Prompt, int, Stage, int]] = []

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        self.calls.append((prompt, n, stage, seed))
        if self.delay:
            await asyncio.sleep(self.delay(prompt, seed))
        outputs = [self.reply(prompt, index, stage, seed) for index in range(n)]
        return Group(prompt, tuple(Completion(o) if isinstance(o, str) else o for o in outputs), stage=stage)

    def close(self) -> None:
        """Nothing to release; part of what engines offer."""
