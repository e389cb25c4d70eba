"""An engine of two: one gives candidates, as from a recording, another one all that is asked afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from paragator.core.types import Group, Prompt, Sample, Stage


@dataclass(frozen=True, slots=True)
class ByStage:
    """Satisfies `Sample` with `generate` for candidates and `aggregate` for aggregations and ratings."""

    generate: Sample
    aggregate: Sample

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        chosen = self.generate if stage == "generate" else self.aggregate
        return await chosen(prompt, n, stage=stage, seed=seed)
