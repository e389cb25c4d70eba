"""Prompt templates. A template is data: `{problem}` and `{attempts}` are replaced, nothing else is interpreted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from paragator.core.errors import UsageError
from paragator.core.types import Problem, Prompt

LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Templates:
    """The two prompts, and how one attempt is written into the second.

    candidate    holds {problem}
    aggregation  holds {problem} and {attempts}
    attempt      holds {attempt}, and may hold {label} (A, B, ...) or {number} (1, 2, ...)
    chat         send as a user message through the model's chat template
    names        where an aggregation names one attempt by its label instead of writing a solution: the expression that finds
                 it, as its first group; "" where it writes one
    """

    candidate: str
    aggregation: str
    attempt: str
    chat: bool = False
    names: str = ""

    def __post_init__(self) -> None:
        for name, needed in (
            ("candidate", "{problem}"),
            ("aggregation", "{problem}"),
            ("aggregation", "{attempts}"),
            ("attempt", "{attempt}"),
        ):
            if needed not in getattr(self, name):
                raise UsageError(f"template {name!r} has no {needed}: add it where that text belongs")

    def for_candidate(self, problem: Problem) -> Prompt:
        return Prompt(fill(self.candidate, {"problem": problem.text}), self.chat)

    def for_aggregation(self, problem: Problem, attempts: Sequence[str]) -> Prompt:
        """The prompt for one pool, attempts in the order given."""
        blocks = [
            fill(self.attempt, {"attempt": text, "label": LABELS[i % len(LABELS)], "number": str(i + 1)})
            for i, text in enumerate(attempts)
        ]
        return Prompt(fill(self.aggregation, {"problem": problem.text, "attempts": "".join(blocks)}), self.chat)

    def named(self, text: str, attempts: Sequence[str]) -> str:
        """The attempt that a text names, by the last label in it; "" where it names none of those shown."""
        found = re.findall(self.names, text)
        place = LABELS.find(found[-1]) if found else -1
        return attempts[place] if 0 <= place < len(attempts) else ""


def fill(template: str, values: dict[str, str]) -> str:
    """Replace each {name} once, left to right; text put in is never searched again, so it cannot inject a field."""
    out, rest = [], template
    while rest:
        found = [(rest.find("{" + name + "}"), name) for name in values]
        found = [(at, name) for at, name in found if at >= 0]
        if not found:
            break
        at, name = min(found)
        out += [rest[:at], values[name]]
        rest = rest[at + len(name) + 2 :]
    return "".join(out) + rest


COMPACT = Templates(
    candidate="{problem}\nsolve:",
    aggregation="{problem}\n{attempts}review:",
    attempt="{label} {attempt}\n",
)
"""For small models with their own tokenizer: no sentences, one label per attempt."""

CHAT = Templates(
    candidate="{problem}\n\nThink it through, then give your final answer inside \\boxed{}.",
    aggregation=(
        "{problem}\n\nSeveral independent attempts at this problem follow.\n\n{attempts}"
        "Treat the attempts as drafts: all of them may be right, some, or none, and some may stop early. "
        "Go through them critically, repair what is wrong, complete what is missing, reuse what helps, "
        "and write one solution of your own that is correct and complete. "
        "Give its final answer inside \\boxed{}."
    ),
    attempt="<attempt>\n{attempt}\n</attempt>\n\n",
    chat=True,
)
"""For instruction-tuned models."""

COMPACT_SELECT = replace(COMPACT, names=r"\buse ([A-Z])\b")
"""For small models whose review ends in "use B"."""
CHAT_SELECT = replace(
    CHAT,
    aggregation=(
        "{problem}\n\nSeveral independent attempts at this problem follow, each with its letter.\n\n{attempts}"
        "Check each of them step by step, then decide which one is most likely correct and complete. "
        "End with a line of the form\nBest: LETTER"
    ),
    attempt="<attempt {label}>\n{attempt}\n</attempt>\n\n",
    names=r"Best\W{0,8}([A-Z])\b",
)
"""Aggregations that name the best attempt."""

BUILTIN = {"compact": COMPACT, "chat": CHAT, "compact-select": COMPACT_SELECT, "chat-select": CHAT_SELECT}
