"""Steps without signal: `python -m idle_steps WORDS` is the command line, in which steps 2 to 6 have none, each for another reason."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paragator import records
from paragator.core.types import Completion, Failure, Grade, Group, Prompt
from paragator.tasks import Task
from paragator.training import loop
from paragator.training.policy import Policy


def cut(output: Completion) -> Completion:
    return replace(output, finish_reason="length")


def lost(output: Completion) -> Failure:
    return Failure("the server is gone")


@dataclass(frozen=True)
class Idle:
    """What becomes of a step's rollouts and how they are graded (None: as ever); what is warned of."""

    warning: str
    change: Callable[[Completion], Completion | Failure] | None = None
    grade: Grade | None = None

    def sampled(self, group: Group) -> Group:
        outputs = tuple(self.change(o) if self.change and isinstance(o, Completion) else o for o in group.outputs)
        return replace(group, outputs=outputs)

    def task(self, task: Task) -> Task:
        return replace(task, grade=lambda problem, texts: [self.grade for _ in texts]) if self.grade else task


NO_CREDIT = "in every group the rewards are alike, or fewer than k are wrong under pass@k"
ALIKE = f"generate: {NO_CREDIT}; aggregate: {NO_CREDIT}"
KINDS = {
    2: Idle("generate: every rollout was cut at max_tokens; aggregate: every rollout was cut at max_tokens", cut),
    3: Idle(ALIKE, grade=Grade("correct", "1")),
    4: Idle(ALIKE, grade=Grade("incorrect", "1")),
    5: Idle("generate: no rollout is scored; aggregate: no rollout is scored", grade=Grade("unscored")),
    6: Idle("generate: every rollout failed", lost),
}
"""By step; the steps around them have signal."""
WORDS = (
    *("--train.steps", "7", "--train.checkpoint_every", "1", "--train.keep_last", "9", "--train.updates", "2"),
    *("--eval.around_training", "false", "--optimizer.weight_decay", "0.1", "--optimizer.schedule", "cosine"),
)
"""With all that could move a weight without a gradient: decay, moments of a step before, a second update."""
real = loop.step


def step(number: int, problems: Any, sample: Any, task: Task, policy: Policy, *more: Any) -> Awaitable[Any]:
    """A step of training, without signal where `KINDS` says so."""
    if number not in KINDS:
        return real(number, problems, sample, task, policy, *more)
    idle = KINDS[number]

    async def changed(prompt: Prompt, n: int, *, stage: Any, seed: int) -> Group:
        return idle.sampled(await sample(prompt, n, stage=stage, seed=seed))

    return real(number, problems, changed, idle.task(task), policy, *more)


def check(run_dir: Path, said: str) -> None:
    """Every step without signal left weights and moments bit for bit, and was named; those around it moved them."""
    folders = {number: run_dir / "checkpoints" / f"step_{number}" for number in range(1, 8)}
    for file in ("weights.safetensors", "optimizer.safetensors"):
        first, *idle, last = (folders[number] / file for number in range(1, 8))
        assert all(path.read_bytes() == first.read_bytes() for path in idle) and last.read_bytes() != first.read_bytes()
    for number, kind in KINDS.items():
        assert f"step {number}: no weight was changed ({kind.warning})" in said
    assert said.count("no weight was changed") == len(KINDS)
    updated = [row["updated"] for row in records.read_json_lines(run_dir / "metrics.jsonl")]
    assert updated == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]


if __name__ == "__main__":
    from paragator.cli.main import main

    loop.step = step
    sys.exit(main())
