"""Seconds of a training step beside other programs: OpenMP's threads as they are against the package's watch on them.

    python benchmarks/contention.py                 # 2 and 4 busy processes and a second training run, 3 rounds each
    python benchmarks/contention.py --quick         # a smaller step, one round; writes no results

Both sides are processes that take the same step (the quickstart's model and settings, a quarter of its problems, a
learning rate of 1e-9) again and again, in turns. Before has GOMP_SPINCOUNT=300000, which is the library's own value and,
being set, keeps the package from choosing. `explained_s` is what the share of the cores explains: the seconds of before
without load, times (2 + rivals) / (cores left by programs that are not the benchmark's), where rivals are the ready
threads beside the step's two. Busy processes loop in Python and end after MOST_S seconds, whatever happens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common

MOST_S = 900
"""Longest life of a busy process."""
THREADS = 2
BEFORE, AFTER = "before", "after"
SPIN_AS_EVER = "300000"
FOREVER = "forever\n"
TICKS = os.sysconf("SC_CLK_TCK")


def child(problems: int) -> None:
    """Answer each line of standard input with a step and what it took; at "forever" take steps until killed."""
    from paragator.config import Config
    from paragator.engines.local.compute import computed_now, set_threads
    from paragator.engines.local.loading import load_model
    from paragator.runs import connect, resolve
    from paragator.settings import load
    from paragator.tasks import load_task
    from paragator.training.policy import Policy
    from paragator.training.recipe import Recipe
    from paragator.training.step import step

    words = ["--train.problems", str(problems), "--optimizer.lr", "1e-9", "--model.device", "cpu"]
    config = load(Config, common.ROOT / "configs" / "quickstart.toml", words)
    set_threads(THREADS)
    model, tokenizer = computed_now(load_model, config.model)
    task = load_task(config.task)
    chosen = task.problems("train", problems, 0)
    policy = computed_now(Policy.from_config, model, tokenizer, config)
    engine = connect.local_engine(config, model, tokenizer, autocast=policy.accelerator.autocast)
    set_threads(THREADS)
    recipe = Recipe.from_config(config, resolve.build_packer(config, engine))

    def once() -> dict[str, float]:
        start, cpu = time.perf_counter(), time.process_time()
        found = asyncio.run(step(1, chosen, engine, task, policy, recipe)).metrics
        seconds = {"seconds": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
        return seconds | {"loss": found["loss"], "tokens": found["tokens"]}

    for line in sys.stdin:
        print(json.dumps(once()), flush=True)
        ends = time.monotonic() + MOST_S
        while line == FOREVER and time.monotonic() < ends:
            once()


def busy() -> None:
    """Loop until killed, MOST_S seconds have passed, or the benchmark is gone."""
    ends, parent = time.monotonic() + MOST_S, os.getppid()
    while time.monotonic() < ends and os.getppid() == parent:
        pass


class Running:
    """A process of this benchmark."""

    def __init__(self, *words: str, side: str = AFTER) -> None:
        env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        env |= {"GOMP_SPINCOUNT": SPIN_AS_EVER} if side == BEFORE else {}
        self.process = subprocess.Popen(
            [sys.executable, __file__, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def step(self, word: str = "step\n") -> dict[str, float]:
        """Ask for a step and wait for it."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(word)
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a process of the benchmark ended: {self.process.args}")
        found: dict[str, float] = json.loads(line)
        return found

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def machine_cpu_s() -> float:
    """CPU seconds of all programs since the machine started."""
    fields = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


@dataclass(frozen=True, slots=True)
class Taken:
    """One step: its seconds, the cores that programs which are none of ours left, and its digits."""

    seconds: float
    cores: float
    digits: tuple[float, float]


def take(side: Running, rivals: Sequence[Running]) -> Taken:
    for rival in rivals:
        rival.go()
    start, everybody, ours = time.perf_counter(), machine_cpu_s(), sum(r.cpu_s() for r in rivals)
    found = side.step()
    wall = time.perf_counter() - start
    ours = sum(r.cpu_s() for r in rivals) - ours + found["cpu_s"]
    for rival in rivals:
        rival.pause()
    others = max(0.0, machine_cpu_s() - everybody - ours) / wall
    return Taken(found["seconds"], max(0.1, (os.cpu_count() or 1) - others), (found["loss"], found["tokens"]))


@dataclass(frozen=True, slots=True)
class Load:
    """What runs beside a step: the processes for each side, and how many threads of theirs are ready."""

    name: str
    rivals: dict[str, list[Running]]
    ready: int


def measured(sides: dict[str, Running], load: Load, repeats: int, within_s: float) -> dict[str, list[Taken]]:
    """The steps of both sides beside `load`, in turns; one step each comes first that does not count."""
    found: dict[str, list[Taken]] = {side: [] for side in sides}
    began = time.perf_counter()
    for repeat in range(-1, repeats):
        if repeat > 0 and time.perf_counter() - began > within_s:
            break
        for side in list(sides)[:: -1 if repeat % 2 else 1]:
            taken = take(sides[side], load.rivals[side])
            common.say(f"  {load.name}, {side}: {taken.seconds:.2f} s, {taken.cores:.2f} cores left by others")
            if repeat >= 0:
                found[side].append(taken)
    return found


def case(load: Load, found: dict[str, list[Taken]], quiet_s: float) -> common.Case:
    """One load: seconds of both sides, and how often they took what the share of the cores explains."""
    over: dict[str, list[float]] = {}
    for side, steps in found.items():
        over[side] = [t.seconds / (quiet_s * (THREADS + load.ready) / min(t.cores, THREADS)) for t in steps]
    after, before = ([t.seconds for t in found[side]] for side in (AFTER, BEFORE))
    return common.case(
        load.name,
        after,
        "OpenMP as it is",
        before,
        "work (the same step, digits checked), threads, weights; steps take turns",
        quiet_s=quiet_s,
        explained_s=quiet_s * (THREADS + load.ready) / THREADS,
        over_explained=statistics.median(over[AFTER]),
        peer_over_explained=statistics.median(over[BEFORE]),
        over_spread={"ours": [min(over[AFTER]), max(over[AFTER])], "peer": [min(over[BEFORE]), max(over[BEFORE])]},
        cores_left=statistics.median(t.cores for steps in found.values() for t in steps),
        same_digits=len({t.digits for steps in found.values() for t in steps}) == 1,
    )


def main(flags: argparse.Namespace) -> int:
    problems = "2" if flags.quick else "4"
    repeats = 1 if flags.quick else flags.repeats
    within = flags.within or 60.0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes are killed
    with ExitStack() as stack:
        steps, rivals = {}, {}
        for side in (BEFORE, AFTER):
            steps[side] = stack.enter_context(Running("--child", problems, side=side))
            steps[side].step()
            rivals[side] = stack.enter_context(Running("--child", problems, side=side))
            rivals[side].step(FOREVER)
            rivals[side].pause()
        loops = [stack.enter_context(Running("--busy")) for _ in range(4)]
        for one in loops:
            one.pause()
        loads = [
            Load("nothing beside", {side: [] for side in steps}, 0),
            Load("2 busy processes", dict.fromkeys(steps, loops[:2]), 2),
            Load("4 busy processes", dict.fromkeys(steps, loops), 4),
            Load("a second run of ours", {side: [one] for side, one in rivals.items()}, THREADS),
        ]
        cases, quiet_s = [], 0.0
        for load in loads:
            found = measured(steps, load, 3 * repeats if load.ready == 0 else repeats, within)
            if load.ready == 0:
                quiet_s = statistics.median(t.seconds * min(t.cores, THREADS) / THREADS for t in found[BEFORE])
            cases.append(case(load, found, quiet_s))
    common.finish(flags, "contention", cases, "explained_s", "over_explained", "peer_over_explained", "cores_left")
    if not all(c["same_digits"] for c in cases):
        print("digits differ between the sides")
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--busy"]:
        busy()
    elif sys.argv[1:2] == ["--child"]:
        child(int(sys.argv[2]))
    else:
        sys.exit(main(common.parser(__doc__, repeats=3).parse_args()))
