"""Your own task and grader in Python: a model learns to multiply whatever it is asked. Takes seconds.

python examples/own_task.py
"""

from collections.abc import Sequence

import paragator


def problems(split: str, count: int, seed: int) -> list[paragator.Problem]:
    first = 1 if split == "train" else 5
    return [paragator.Problem(f"{split}-{i}", f"{first + i % 4} 7 -> {10 + i % 80}") for i in range(count)]


def grade(problem: paragator.Problem, texts: Sequence[str]) -> list[paragator.Grade]:
    return [paragator.Grade("correct" if "*" in text else "incorrect", text) for text in texts]


config = paragator.Config.model_validate(
    {"name": "own-task", "train": {"steps": 3, "problems": 4}, "generate": {"max_tokens": 24}, "eval": {"problems": 8}}
)
print(paragator.train(config, task=paragator.Task("times", problems, grade), overwrite=True))
