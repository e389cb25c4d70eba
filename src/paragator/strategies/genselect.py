"""GenSelect (arXiv 2504.16891, 2507.17797): the model names the best of up to eight solutions; a knockout above eight."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from paragator.core.errors import UsageError
from paragator.core.prompts import Templates
from paragator.core.thinking import strip_thinking
from paragator.core.together import together
from paragator.core.types import Choice, Completion, Group, Trace
from paragator.strategies.base import Asking, Sizes
from paragator.strategies.choose import spread, voted

SELECT = Templates(
    candidate="{problem}",
    aggregation=(
        "{problem}\n\nSeveral solutions of this problem follow, each with its number.\n\n{attempts}"
        "Compare them: where do their answers differ, and which steps are wrong? Say which one solution is the best. "
        "End with a line of the form\nJudgment: NUMBER"
    ),
    attempt="Solution {number}:\n{attempt}\n\n",
)
T = TypeVar("T")
JUDGMENT = re.compile(r"Judg(?:e)?ment\W{0,8}(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class GenSelect:
    """n candidates; the model picks one of up to `window` by number, winners meet until one is left.

    window     solutions in one request (published: 8)
    max_chars  a longer solution takes no part (published: 16,384 characters, without its thinking)

    Solutions are shown without their thinking; unfinished ones take no part. Where no number can be read, a random one of
    those shown goes on (published); of a last request, each of them in expectation.
    """

    n: int | None = None
    window: int = 8
    max_chars: int = 16_384

    def __post_init__(self) -> None:
        if self.window < 2:
            raise UsageError(f"genselect: window = {self.window}; show 2 solutions or more")

    async def __call__(self, asking: Asking) -> Trace:
        found = await asking.candidates(self.candidates(asking.sizes))
        left = [(i, text) for i, one in enumerate(found.completions) if (text := self.shown(one))]
        asking.random("genselect").shuffle(left)
        if not left:
            weights = voted(await asking.answers(found.completions))
            return asking.selected(found, Choice(0, weights, why="none is finished: a vote") if weights else None)
        ratings: list[Group] = []
        stage = 0
        while len(left) > 1:
            tables = dealt(left, self.window)
            asked = await together(
                *(self.ask(asking, table, f"{stage}:{i}") for i, table in enumerate(tables) if len(table) > 1)
            )
            ratings += [group for group, _ in asked]
            picks = iter(pick for _, pick in asked)
            winners = [next(picks) if len(table) > 1 else table[0][0] for table in tables]
            if len(tables) == 1 and winners[0] is None:
                chosen = spread([i in dict(left) for i in range(len(found.completions))])
                return asking.selected(found, Choice(0, chosen, why="no number could be read"), ratings)
            rng = asking.random(f"genselect:{stage}")
            texts = dict(left)
            left = [
                (place, texts[place])
                for table, winner in zip(tables, winners, strict=True)
                for place in [rng.choice(table)[0] if winner is None else winner]
            ]
            stage += 1
        weights = spread([i == left[0][0] for i in range(len(found.completions))])
        return asking.selected(found, Choice(0, weights), ratings)

    def shown(self, solution: Completion) -> str:
        """A solution as it is shown; "" where it takes no part."""
        text = strip_thinking(solution.text)
        return text if solution.finish_reason == "stop" and len(text) <= self.max_chars else ""

    async def ask(self, asking: Asking, table: Sequence[tuple[int, str]], name: str) -> tuple[Group, int | None]:
        """One request and the place of the solution that it names, if it names one that was shown."""
        group, packed = await asking.rate(SELECT, table, f"genselect:{name}")
        number = read_number(group)
        named = number is not None and 1 <= number <= len(packed.pool)
        return group, packed.pool[number - 1] if named and number is not None else None

    def candidates(self, sizes: Sizes) -> int:
        return self.n or sizes.candidates

    def requests(self, sizes: Sizes) -> int:
        total, left = self.candidates(sizes), self.candidates(sizes)
        while left > 1:
            tables = dealt(list(range(left)), self.window)
            total += sum(len(table) > 1 for table in tables)
            left = len(tables)
        return total


def read_number(group: Group) -> int | None:
    """The last number that a rating gives as its judgment, outside its thinking."""
    texts = [strip_thinking(one.text) for one in group.completions]
    numbers = JUDGMENT.findall(texts[0]) if texts else []
    return int(numbers[-1][:9]) if numbers else None


def dealt(items: Sequence[T], window: int) -> list[Sequence[T]]:
    """As few tables as hold at most `window` each, as even as can be."""
    tables = math.ceil(len(items) / window)
    return [items[i::tables] for i in range(tables)]
