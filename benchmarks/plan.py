"""The simulator behind `paragator plan` against measured training steps of the embedded model on this CPU.

Rates are measured in the same run: a large product, a large copy, then decoding, prefill and an update of ONE shape ("calibration").
The other shapes (N, m, lengths) are predicted from those; nothing is fitted to what is predicted. The only input from a predicted
case is its workload: N, m, problems, limits, the observed lengths of candidates and aggregations, the share of groups with signal.
Prompts, batches, micro-batches, FLOPs and seconds are the simulator's. `ours_s` is the measured step, `peer_s` the predicted one.

    python benchmarks/plan.py            # a few minutes; writes results/plan.json
    python benchmarks/plan.py --quick    # two tiny cases; writes nothing
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from common import case, finish, parser, say, use_threads

from paragator.config import Config
from paragator.planning.hardware import PRESETS, Cost, Efficiency
from paragator.planning.lengths import Lengths
from paragator.planning.rollout_events import Batching
from paragator.planning.simulate import Cluster, Workload, groups_of, plan, updated
from paragator.settings import validate
from paragator.training.memory import Shape, shape_of

WITHIN = 0.20
PARTS = ("generate", "aggregate", "grade", "update")
# name, problems, N, m, longest candidate, longest aggregation; the first calibrates.
# Every stage fits one batch of the in-process engine: rows x (prompt + longest) below 32,768 tokens.
SHAPES = (
    ("calibration: N 8, m 4", 8, 8, 4, 24, 40),
    ("N 16, m 4", 8, 16, 4, 24, 40),
    ("N 8, m 8", 8, 8, 8, 24, 40),
    ("N 6, m 2, short", 8, 6, 2, 16, 24),
    ("N 8, m 4, long", 8, 8, 4, 96, 120),
    ("N 12, m 6, 12 problems", 12, 12, 6, 24, 40),
)
QUICK = (("calibration: N 6, m 2", 2, 6, 2, 24, 40), ("N 8, m 4", 3, 8, 4, 24, 40))


def main(words: Sequence[str]) -> int:
    flags = parser(__doc__, repeats=7).parse_args(words)
    use_threads(flags.threads)
    shapes, repeats = (QUICK, min(flags.repeats, 2)) if flags.quick else (SHAPES, flags.repeats)
    bench = Bench()
    shape = shape_of(bench.config(*shapes[0][1:]).model)
    cluster = bench.calibrated(shape, shapes[0], repeats)
    cases = []
    for name, *sizes in shapes[1:]:
        config = bench.config(*sizes)
        measured, workload = bench.steps(config, repeats)
        found = plan(workload, shape, cluster, draws=20)
        predicted = next(v for v in found["variants"] if (v["rollout"], v["update"]) == ("barrier", "packed"))[
            "seconds"
        ]
        whole = [step["seconds"] for step in measured]
        off = predicted["step"] / statistics.median(whole) - 1
        cases.append(
            case(
                name,
                whole,
                "predicted by the simulator",
                [predicted["step"]],
                "N, m, problems, limits, observed lengths, share of groups with signal",
                off=off,
                within=abs(off) <= WITHIN,
                measured_parts_s=parts_of(measured),
                predicted_parts_s={part: predicted[part] for part in PARTS},
                calibration=bench.told,
            )
        )
        say(f"{name}: measured {statistics.median(whole):.3f} s, predicted {predicted['step']:.3f} s, {off:+.1%}")
        for part in PARTS:
            say(f"    {part:<10} {parts_of(measured)[part]:.4f} measured, {predicted[part]:.4f} predicted")
    finish(flags, "plan", cases, "off", "within")
    print(f"{sum(c['within'] for c in cases)} of {len(cases)} within {WITHIN:.0%}")
    return 0


def parts_of(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median seconds of each part."""
    return {part: statistics.median(s.get(f"seconds/{part}", 0.0) for s in steps) for part in (*PARTS, "idle")}


def best(call: Callable[[], Any], repeats: int = 5) -> float:
    """Median seconds of a call in the thread that computes, after one that does not count."""
    from paragator.engines.local.compute import computed_now

    def timed() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    computed_now(call)
    return statistics.median(computed_now(timed) for _ in range(repeats))


class Bench:
    """The embedded model, its engine, and steps on it as `paragator train` takes them."""

    def __init__(self) -> None:
        from paragator.engines.local import loading
        from paragator.engines.local.compute import computed_now
        from paragator.tasks import load_task

        config = self.config(8, 8, 4, 24, 40)
        self.model, self.tokenizer = computed_now(loading.load_model, config.model)
        self.task = load_task(config.task)
        self.problems = self.task.problems("train", 512, 0)
        self.number = 0
        self.told: dict[str, float] = {}

    def config(self, problems: int, n: int, m: int, longest: int, longest_again: int) -> Config:
        """float32, truncated rollouts trained on as wrong, so that every rollout of a group with signal is."""
        return validate(
            Config,
            {
                "model": {"device": "cpu"},
                "task": {"name": "countdown", "min_numbers": 3, "max_numbers": 4},
                "method": {"name": "paragator", "k": min(4, n - 1)},
                "rollout": {"candidates": n, "pool_size": m},
                "generate": {"max_tokens": longest},
                "aggregate": {"max_tokens": longest_again},
                "train": {
                    "problems": problems,
                    "truncated": "wrong",
                    "precision": "float32",
                    "batch_tokens": 4096,  # else the trainer and the simulator choose for themselves
                    "steps": 1000,
                },
                "optimizer": {"lr": 1e-9},
                "eval": {"candidates": 4},
            },
        )

    def steps(self, config: Config, repeats: int) -> tuple[list[dict[str, float]], Workload]:
        """Metrics of `repeats` real steps after one that does not count, and the workload that they were."""
        from paragator.engines.local.compute import computed_now
        from paragator.runs import connect, resolve
        from paragator.training.policy import Policy
        from paragator.training.recipe import Recipe
        from paragator.training.step import step

        policy = computed_now(Policy.from_config, self.model, self.tokenizer, config)
        engine = connect.local_engine(config, self.model, self.tokenizer)
        recipe = Recipe.from_config(config, resolve.build_packer(config, engine))
        seen: dict[str, list[int]] = {"problem": [], "generate": [], "aggregate": []}
        signal = {"generate": 0, "aggregate": 0}
        update, metrics = policy.update, []

        def counted(trees: Any, *rest: Any) -> dict[str, float]:
            for tree in trees:
                signal[tree.stage] += 1
            return update(trees, *rest)

        policy.update = counted  # type: ignore[method-assign]
        count = config.train.problems
        for repeat in range(repeats + 1):
            if repeat == 1:
                signal.update(dict.fromkeys(signal, 0))
                seen = {name: [] for name in seen}
            chosen = [self.problems[(self.number * count + i) % len(self.problems)] for i in range(count)]
            self.number += 1
            found = asyncio.run(step(self.number, chosen, engine, self.task, policy, recipe))
            metrics.append(found.metrics)
            for record in found.records:
                for groups in record.trace.rounds:
                    for group in groups:
                        seen[group.stage] += [c.length or 1 for c in group.completions]
                seen["problem"].append(record.trace.rounds[0][0].prompt_length or 1)
        engine.close()
        observed = {name: Lengths(statistics.fmean(values), 0.0, tuple(values)) for name, values in seen.items()}
        workload = Workload(
            config,
            observed["problem"],
            observed["generate"],
            observed["aggregate"],
            template=0,  # "review:" is as long as "solve:"
            attempt=1,  # a label and a line's end, without the solution's end of sequence
            signal={name: number / (repeats * count) for name, number in signal.items()},
        )
        return metrics[1:], workload

    def calibrated(self, shape: Shape, first: tuple[Any, ...], repeats: int) -> Cluster:
        """This machine as a cluster of one device, from the first shape alone."""
        import torch

        from paragator.engines.local.compute import computed_now
        from paragator.engines.local.generation import COMPACT_BELOW
        from paragator.planning.machine import product_rate

        name, *sizes = first
        config = self.config(*sizes)
        metrics, workload = self.steps(config, repeats)
        parts = parts_of(metrics)
        block = torch.ones(2**24)
        rate, speed = computed_now(product_rate, "cpu", False), 2 * 4 * block.numel() / best(block.clone)
        hardware = replace(PRESETS["cpu"], name="this machine", flops_s=rate, memory_bytes_s=speed)
        batching = Batching(rows=10**6, continuous=False, leave_at=COMPACT_BELOW)
        cluster = Cluster(
            hardware, Efficiency(overlap_share=0.0, graders=1, update_s=0, batch_s=0), batching=batching, skips=False
        )
        solutions = 2 * config.rollout.candidates * config.train.problems
        efficiency = replace(cluster.efficiency, grade_s=parts["grade"] / solutions)
        efficiency = self.sampling(shape, replace(cluster, efficiency=efficiency), sizes, workload)
        efficiency = self.updating(shape, replace(cluster, efficiency=efficiency), config, workload, parts["update"])
        self.told = {
            "product_flops_s": rate,
            "copy_bytes_s": speed,
            "measured_step_s": statistics.median(m["seconds"] for m in metrics),
        }
        self.told |= asdict(hardware) | asdict(efficiency)
        say(f"{name}: " + ", ".join(f"{k} = {v:.3g}" for k, v in self.told.items() if isinstance(v, float)))
        return replace(cluster, efficiency=efficiency)

    def sampling(self, shape: Shape, cluster: Cluster, sizes: Sequence[int], workload: Workload) -> Efficiency:
        """Prefill and decode rates at the calibration's rows and prompts: one row, its rows short, its rows long."""
        problems, n, m, *_ = sizes
        rows, short = problems * n, round(workload.problem.mean)
        long = short + round(m * (workload.solution.mean + 1))
        tokens = 24
        cost = Cost(shape, cluster.hardware, cluster.efficiency)
        e, h = cluster.efficiency, cluster.hardware
        one, many = self.prefill(1, 1, short), self.prefill(problems, n, long)
        work = problems * cost.prefill_flop(long)
        share = work / max(1e-9, many - one) / h.flops_s
        e = replace(e, prefill_share=share, decode_share=share, prefill_s=one)
        # what is left of a decode step after the products: a constant, a part for each row, a part for each byte of cache
        cost = Cost(shape, h, replace(e, memory_share=1e30, decode_s=0, row_s=0))
        left = []
        for count, length in ((1, short), (rows, short), (rows, long)):
            groups = (1, 1) if count == 1 else (problems, n)
            step = (self.prefill(*groups, length, tokens) - self.prefill(*groups, length)) / (tokens - 1)
            kv = count * (length + tokens / 2)
            left.append((count, kv, step - cost.decode_step_s(count, kv)))
        per_byte = max((left[2][2] - left[1][2]) / ((left[2][1] - left[1][1]) * cost.kv_bytes), 1e-15)
        e = replace(e, memory_share=1 / (per_byte * h.memory_bytes_s))
        rest = [seconds - per_byte * (cost.weight_bytes() + kv * cost.kv_bytes) for _, kv, seconds in left]
        row_s = max(0.0, (rest[1] - rest[0]) / (rows - 1))
        return replace(e, row_s=row_s, decode_s=max(0.0, rest[0] - row_s))

    def prefill(self, problems: int, n: int, length: int, tokens: int = 1) -> float:
        """Seconds to sample `tokens` tokens of n siblings of each of some prompts of `length` random tokens."""
        from random import Random

        from paragator.engines.local.generation import SequenceRequest, sample_rows
        from paragator.engines.sampling import Sampling

        rng = Random(0)
        prompts = [tuple(rng.randrange(3, 170) for _ in range(length)) for _ in range(problems)]
        rows = [SequenceRequest(prompt, f"{p}:{i}") for p, prompt in enumerate(prompts) for i in range(n)]
        options: dict[str, Any] = {"max_batch_tokens": 10**9, "device": self.model.device}
        return best(lambda: sample_rows(self.model, rows, Sampling(1.0, tokens), (), **options))

    def updating(
        self, shape: Shape, cluster: Cluster, config: Config, workload: Workload, seconds: float
    ) -> Efficiency:
        """Seconds of an empty update and of an empty micro-batch by tiny trees; the rate by the measured steps."""
        from random import Random

        from paragator.engines.local.compute import computed_now
        from paragator.training.policy import Policy
        from paragator.training.rows import Branch, Tree

        small = config.model_copy(update={"train": config.train.model_copy(update={"batch_tokens": 64})})
        policy = computed_now(Policy.from_config, self.model, self.tokenizer, small)
        tree = Tree("generate", (3,) * 4, (Branch((5,) * 36, (-1.0,) * 36, 1e-6),))

        def update(trees: int) -> float:
            return best(lambda: policy.update([tree] * trees, 1, {"generate": 0.0}))

        one, nine = update(1), update(9)
        batch_s = (nine - one) / 8
        drawn = [updated(workload, groups_of(workload, Random(i)), shape, cluster, True) for i in range(20)]
        flop, batches = statistics.fmean(sum(u.flop) for u in drawn), statistics.fmean(len(u.flop) for u in drawn)
        update_s = max(0.0, one - batch_s)
        spent = max(1e-9, seconds - update_s - batches * batch_s)
        share = flop / spent / cluster.hardware.flops_s
        return replace(cluster.efficiency, update_share=share, update_s=update_s, batch_s=batch_s)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
