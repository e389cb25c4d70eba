"""An engine of two: one gives candidates, as a recording or a cheap model, another one all that is asked afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace

from paragator.core.types import Group, Prompt, Sample, Stage

Engines = Sample | tuple[Sample | None, Sample | None] | None
"""Whoever samples: one engine, or one for candidates and one for what comes after them. None is whom the config names."""


@dataclass(frozen=True, slots=True)
class ByStage:
    """Satisfies `Sample` with `generate` for candidates and `aggregate` for aggregations and ratings.

    models  the name of each, which its groups then carry
    """

    generate: Sample
    aggregate: Sample
    models: tuple[str, str] = ("", "")

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        later = stage != "generate"
        group = await (self.aggregate if later else self.generate)(prompt, n, stage=stage, seed=seed)
        return replace(group, model=self.models[later]) if self.models[later] else group
