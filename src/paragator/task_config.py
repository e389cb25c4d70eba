"""The section of a config that says what is solved and how it is checked: built-in tasks, files, benchmarks, rewards."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from paragator.core.hooks import named
from paragator.settings import Section

Hook = Annotated[str, BeforeValidator(named)]
"""A function of the user's: "module:function", or the function itself, of which the config keeps the name."""
MOST_COUNTDOWN = 8
"""Numbers of a Countdown problem."""


class TaskConfig(Section):
    name: str = "countdown"
    """"countdown", "arithmetic", "composite", "jsonl" (your own file), "reasoning-gym/NAME", or a name in `paragator data list`."""
    style: Literal["compact", "words"] = "compact"
    """How a built-in task words its problems: symbols for the embedded model, a sentence for others."""
    path: str | None = None
    """jsonl: the file, one object a line with fields problem and answer."""
    held_out_path: str | None = None
    """jsonl: the held-out file; without it, a tenth of `path` by content."""
    fields: dict[str, str] = Field({})
    """jsonl: the file's own field names, such as {problem = "question", answer = "gold"}."""
    kind: str | None = None
    """What the answers are ("number", "set", "equation", ...; see docs/grading.md); None infers it from each reference."""
    parameters: dict[str, Any] = Field({})
    """reasoning-gym: parameters of the generator."""
    reward: Hook | None = None
    """A reward function "module:function" (problem, texts) -> one number or None a text; replaces the task's checker."""
    correct_from: float = 1.0
    """reward: from which number on a solution counts as correct, in pass@k, maj@k and what pools are measured by."""
    min_numbers: int = Field(4, ge=2, le=32)
    """Fewest numbers (countdown) or terms (arithmetic)."""
    max_numbers: int = Field(4, ge=2, le=32)
    """Most numbers (countdown: 8) or terms."""
    parts: int = Field(3, ge=2, le=8)
    """composite: independent problems in one, all of which must be solved."""
    part: Literal["arithmetic", "countdown"] = "arithmetic"
    """composite: what its parts are; the ranges below and above are theirs."""
    fraction: bool = False
    """composite: the reward is the share of parts that are right, instead of 1 or 0 for the whole."""
    min_value: int = Field(1, ge=1)
    """countdown: smallest number. arithmetic: as few digits as this has."""
    max_value: int = Field(12, ge=1)
    """countdown: largest number. arithmetic: as many digits as this has."""
    min_target: int = Field(10, ge=1)
    """countdown: smallest target."""
    max_target: int = Field(99, ge=1)
    """countdown: largest target."""

    @model_validator(mode="after")
    def ordered(self) -> TaskConfig:
        for what in ("numbers", "value", "target"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if low > high:
                raise ValueError(f"task.min_{what} = {low} is above task.max_{what} = {high}")
        if self.name == "countdown" and self.max_numbers > MOST_COUNTDOWN:
            raise ValueError(f"task.max_numbers = {self.max_numbers}: Countdown has {MOST_COUNTDOWN} numbers at most")
        if self.reward is None and self.correct_from != 1:
            raise ValueError(
                f"task.correct_from = {self.correct_from} is of a reward function; set task.reward, or remove it"
            )
        return self
