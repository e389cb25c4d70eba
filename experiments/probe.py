"""Headroom of the embedded model before policy optimisation: does its review tell right attempts from wrong ones, does it copy?

    python experiments/probe.py [--problems 256]

Held-out problems, the model's own candidates (T = 1), one aggregation round. Prints accuracy of the verdict words, the
accuracy of always saying "wrong", balanced accuracy, and how exactly a chosen attempt is written again.
"""

from __future__ import annotations

import argparse
import asyncio
import re

from paragator.config import Config
from paragator.core.packing import strip_thinking
from paragator.core.scaffold import Scaffold, run
from paragator.core.types import Plan
from paragator.engines.local.loading import load_model
from paragator.runs import connect, resolve
from paragator.settings import load

VERDICT = re.compile(r"([A-H]) (right|wrong)")
CHOICE = re.compile(r"use ([A-H]|none)")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--problems", type=int, default=256)
    parser.add_argument("--model", default="embedded")
    flags = parser.parse_args()
    config = load(Config, "configs/quickstart.toml", ["--model.path", flags.model])
    task = resolve.resolve(config, training=False).task
    engine = connect.local_engine(config, *load_model(config.model))
    problems = task.problems("held-out", flags.problems, 99)
    templates = config.model.templates()
    traces = await asyncio.gather(*(run(p, engine, Scaffold(Plan.method(4, 1), templates, seed=1)) for p in problems))
    said: dict[bool, list[bool]] = {True: [], False: []}
    copied: list[bool] = []
    afresh = total = 0
    for trace in traces:
        candidates = trace.population(0)
        right = [g.verdict == "correct" for g in task.grade(trace.problem, [c.text for c in candidates])]
        (group,) = trace.rounds[1]
        for output in group.completions:
            shown = {"ABCDEFGH"[i]: index for i, index in enumerate(group.pool)}
            for label, word in VERDICT.findall(output.text):
                if label in shown:
                    said[right[shown[label]]].append((word == "right") == right[shown[label]])
            choice = CHOICE.search(output.text)
            total += 1
            afresh += bool(choice and choice[1] == "none")
            if choice and choice[1] in shown:
                copied.append(strip_thinking(output.text) == candidates[shown[choice[1]]].text)
    hits = sum(said[True]) + sum(said[False])
    count = len(said[True]) + len(said[False])
    recall = [sum(v) / max(1, len(v)) for v in (said[True], said[False])]
    print(f"verdicts {count}: accuracy {hits / count:.3f}, always 'wrong' {len(said[False]) / count:.3f}")
    print(
        f"right ones called right {recall[0]:.3f}, wrong ones called wrong {recall[1]:.3f}, balanced {sum(recall) / 2:.3f}"
    )
    print(
        f"chosen attempt copied exactly {sum(copied) / max(1, len(copied)):.3f}; new attempt chosen {afresh / total:.3f}"
    )


if __name__ == "__main__":
    asyncio.run(main())
