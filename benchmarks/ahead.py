"""What `train.ahead` = 1 saves: whole runs on a scripted vLLM whose answers take heavy-tailed times, and an update that sleeps.

    python benchmarks/ahead.py [--steps 12]

Requests take lognormal seconds (sigma 1) that follow from prompt and seed, so both sides wait for the same ones. One JSON object a
line: seconds a step, and the share of sampler's and trainer's time in which they idle, with ahead 0 and 1; beside it the longer of
ahead 0's own two halves, which is all that overlapping can reach. Wall clock, not CPU: nothing is computed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]
import mortal  # noqa: E402
from paragator import records  # noqa: E402

MEDIAN_S, SIGMA = 0.03, 1.0


class Slow(mortal.Mortal):
    """A completion's latency is drawn by its prompt and seed."""

    def choose(self, call: Any) -> Any:
        if call.path == "/v1/completions":
            rng = random.Random(f"{call.body['prompt']}:{call.body['seed']}")
            self.latency_s = MEDIAN_S * rng.lognormvariate(0.0, SIGMA)
        else:
            self.latency_s = 0.0
        return super().choose(call)


class Sleeper(mortal.Learner):
    """An update takes so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def update(self, *given: Any) -> dict[str, float]:
        time.sleep(self.seconds)
        return super().update(*given)


async def nothing() -> None:
    """No faults."""


async def run(ahead: int, update_s: float) -> list[dict[str, float]]:
    """The steps of a run but the first, which has nothing to overlap with."""
    trial = mortal.Trial(0, ahead, [Slow(model="policy"), Slow(model="policy")], learner=Sleeper(update_s))
    for server in trial.servers:
        await server.start()
    with tempfile.TemporaryDirectory() as folder:
        await trial.run(Path(folder).resolve(), nothing)
        found: list[dict[str, float]] = list(records.read_json_lines(Path(folder) / "metrics.jsonl"))[1:]
    for server in trial.servers:
        server.end()
    assert not trial.wrong()
    return found


def sampling(step: dict[str, float]) -> float:
    return sum(step.get(f"seconds/{part}", 0.0) for part in ("generate", "both", "aggregate"))


def idle(steps: list[dict[str, float]]) -> float:
    """Of a sampler and a trainer, over all steps."""
    busy = sum(sampling(step) + step["seconds/update"] for step in steps)
    return 1 - busy / (2 * sum(step["seconds"] for step in steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    mortal.STEPS = parser.parse_args().steps
    for update_s in (0.15, 0.4, 1.0):
        alone, both = (asyncio.run(run(ahead, update_s)) for ahead in (0, 1))
        found: dict[str, float] = {"update_s": update_s, "sampling_s": statistics.fmean(map(sampling, alone))}
        for name, steps in (("0", alone), ("1", both)):
            found[f"step_s_{name}"] = statistics.fmean(step["seconds"] for step in steps)
            found[f"idle_{name}"] = idle(steps)
        found["longer_half_s"] = statistics.fmean(max(sampling(s), s["seconds/update"]) for s in alone)
        print(json.dumps({name: round(value, 3) for name, value in found.items()}), flush=True)


if __name__ == "__main__":
    main()
