"""Your own task and grader in Python: a model learns to multiply whatever it is asked. Takes seconds.

python examples/own_task.py
"""

from collections.abc import Sequence

import paragator


def problems(split: str, count: int, seed: int) -> list[paragator.Problem]:
    """Even numbers are trained on, odd ones are held out, so no text is in both splits."""
    numbers = range(0 if split == "train" else 1, 2 * count, 2)
    return [paragator.Problem(f"p{n}", f"{1 + n % 12} {1 + n // 12} -> 24") for n in numbers]


def grade(problem: paragator.Problem, texts: Sequence[str]) -> list[paragator.Grade]:
    return [paragator.Grade("correct" if "*" in text else "incorrect", text) for text in texts]


settings = {
    "name": "own-task",
    "train.steps": 3,
    "train.problems": 4,
    "generate.max_tokens": 24,
    "eval.problems": 8,
}
print(paragator.train(settings, task=paragator.Task("times", problems, grade), overwrite=True))
