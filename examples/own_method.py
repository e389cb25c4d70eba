"""Train with a method of one's own: a credit function on the rewards of one group. Takes seconds.

python examples/own_method.py
"""

import paragator


def best_minus_mean(rewards):
    scored = [r for r in rewards if r is not None]
    mean = sum(scored) / len(scored) if scored else 0.0
    return [0.0 if r is None else max(0.0, r - mean) for r in rewards]


method = paragator.Method("positive_only", generate=best_minus_mean, aggregate="pass@1")
settings = {"name": "own-method", "train.steps": 2, "train.problems": 4, "eval.problems": 8}
print(paragator.train(settings, method=method, overwrite=True))
