"""Distributions of lengths in tokens: constant, lognormal, or observed ones from a file."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean

from paragator.core.errors import DataError, UsageError

MOST_SIGMA = 3.0


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of lengths in tokens: `observed` ones drawn with replacement, else lognormal (sigma 0: constant)."""

    mean: float
    sigma: float = 0.0
    observed: tuple[int, ...] = ()

    def draw(self, rng: Random, most: int | None = None) -> int:
        """At least 1, at most `most`."""
        if self.observed:
            length = rng.choice(self.observed)
        elif self.sigma:
            length = round(rng.lognormvariate(math.log(self.mean) - self.sigma**2 / 2, self.sigma))
        else:
            length = round(self.mean)
        return max(1, length if most is None else min(length, most))

    def __str__(self) -> str:
        if self.observed:
            return f"{len(self.observed)} observed, mean {self.mean:.0f}"
        return f"lognormal, mean {self.mean:g}, sigma {self.sigma:g}" if self.sigma else f"{self.mean:g}"

    @classmethod
    def parse(cls, text: str, what: str) -> Lengths:
        """ "2048", "lognormal:MEAN:SIGMA", or a JSONL file of numbers. UsageError or DataError in one line."""
        if text.endswith(".jsonl"):
            return cls.read(Path(text))
        name, *numbers = text.split(":")
        try:
            mean, sigma = (float(text), 0.0) if not numbers else (float(numbers[0]), float(numbers[1]))
        except (ValueError, IndexError):
            mean = sigma = math.nan
        if len(numbers) > 2 or (numbers and name != "lognormal") or not (1 <= mean <= 1e7 and 0 <= sigma <= MOST_SIGMA):
            raise UsageError(
                f"--{what} {text}: use a number of tokens, lognormal:MEAN:SIGMA (mean >= 1, sigma 0 to {MOST_SIGMA:g}), "
                "or a .jsonl file of lengths"
            )
        return cls(mean, sigma)

    @classmethod
    def read(cls, path: Path) -> Lengths:
        """Lengths from a file with one number a line, or one object with a field "tokens"."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{path}: {getattr(error, 'strerror', None) or error}; give a JSONL file of lengths"
            ) from None
        found = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                value = row["tokens"] if isinstance(row, dict) else row
            except (ValueError, KeyError):
                value = None
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise DataError(f'{path}:{number} is {line[:40]!r}; write a number of tokens, or {{"tokens": number}}')
            found.append(value)
        if not found:
            raise DataError(f"{path} holds no lengths; write one number of tokens a line")
        return cls(fmean(found), 0.0, tuple(found))
