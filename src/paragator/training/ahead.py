"""Off-policy by one step: the next batch is sampled while this one is trained (`train.ahead = 1`).

Sampler and trainer work at the same time, so a step takes as long as the slower of the two. The price: from the second step on,
rollouts come from the weights of one version before, and the loss weighs each token with min(policy / sampler, weight_cap)
(truncated importance sampling, see objective.py). A batch is sampled from one version as a whole: new weights are published when
none is under way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from paragator.core.types import Problem, Sample
from paragator.tasks import Task
from paragator.training.learner import Learner
from paragator.training.recipe import Recipe
from paragator.training.step import RolledOut, Step, rolled_out, trained


class Ahead:
    """The steps of a run, each on rollouts that were sampled while the one before was trained.

    chosen  the problems of a step, and spare ones where it may be refilled

    A batch under way when a run ends is dropped. A resumed run samples it again, from the newest weights.
    """

    def __init__(
        self, sample: Sample, task: Task, chosen: Callable[[int], Sequence[Sequence[Problem]]], recipe: Recipe
    ) -> None:
        self.sample, self.task, self.chosen, self.recipe = sample, task, chosen, recipe
        self.under_way: asyncio.Task[RolledOut] | None = None
        self.waited_s = 0.0

    async def settled(self) -> None:
        """Wait until nothing is under way, so that weights may change."""
        start = time.perf_counter()
        if self.under_way is not None:
            await asyncio.wait([self.under_way])
            self.under_way.result()
        self.waited_s = time.perf_counter() - start

    async def step(self, number: int, learner: Learner) -> Step:
        """Train on a step's batch while the next one is sampled from the weights that it starts from."""
        start, staleness = time.perf_counter(), float(self.under_way is not None)
        batch = await (self.under_way or self.begun(number))
        self.under_way = self.begun(number + 1) if number < self.recipe.schedule.steps else None
        found = await trained(batch, learner, self.recipe)
        parts_s = found.metrics["seconds"]
        overlap = max(0.0, parts_s - self.waited_s - (time.perf_counter() - start))
        found.metrics.update(seconds=parts_s - overlap, overlap=overlap, staleness=staleness)
        return found

    def begun(self, number: int) -> asyncio.Task[RolledOut]:
        """A step's rollouts, being sampled."""
        own, *spare = self.chosen(number)
        return asyncio.ensure_future(rolled_out(number, own, self.sample, self.task, self.recipe, *spare))

    async def aclose(self) -> None:
        """Give up what is under way."""
        if self.under_way is not None:
            self.under_way.cancel()
            await asyncio.gather(self.under_way, return_exceptions=True)
