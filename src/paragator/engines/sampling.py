"""Sampling settings of one stage. Importable without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paragator.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampling settings of one stage.

    temperature  logits are divided by it; 0 takes the likeliest token
    max_tokens   the longest completion, in tokens, its end-of-sequence token included
    top_p        keep the likeliest tokens that together hold this mass; 1 keeps all
    top_k        keep this many of the likeliest tokens; 0 keeps all
    confidence   also tell how sure the model was of each token, by so many of its likeliest ones; 0 does not
    """

    temperature: float = 1.0
    max_tokens: int = 64
    top_p: float = 1.0
    top_k: int = 0
    confidence: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature = {self.temperature}: use 0 for the likeliest token, or a number above 0")
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens = {self.max_tokens}: at least 1 is needed")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p = {self.top_p}: it must be above 0 and at most 1 (1 is off)")
        if self.top_k < 0:
            raise UsageError(f"top_k = {self.top_k}: use 0 for off, or a number of tokens to keep")
