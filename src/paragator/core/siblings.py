"""Siblings of one prompt asked for one at a time: their seeds, their groups as one, and an engine that does so."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from paragator.core.together import together
from paragator.core.types import Completion, Failure, Group, Prompt, Sample, Stage


def sibling_seeds(seed: int, n: int) -> list[int]:
    """Seeds of n siblings that are asked for one by one."""
    return [random.Random(f"{seed}:{index}").getrandbits(63) for index in range(n)]


def joined(groups: Sequence[Group]) -> Group:
    """Groups of one prompt as one, in order."""
    outputs: tuple[Completion | Failure, ...] = tuple(output for group in groups for output in group.outputs)
    informed = next((group for group in groups if group.prompt_length is not None), groups[0])
    return replace(informed, outputs=outputs)


def one_by_one(sample: Sample) -> Sample:
    """`sample` asked n times for one completion instead of once for n, with the seeds of `sibling_seeds`."""

    async def split(prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        return joined(await together(*(sample(prompt, 1, stage=stage, seed=each) for each in sibling_seeds(seed, n))))

    return split
