"""Prompt lookup in process: what a pass over drafts costs, what drafts gain on aggregations, and how far a step is from its products.

    python benchmarks/lookup.py [--quick] [--repeats 5] [--threads 1] [--smollm2]

Processor seconds, so that other programs disturb less; the sides take turns. Nothing is written.

1. A pass over R rows with 2, 4 and 8 tokens each, against one token each: what is gained if all drafts are kept, and lost if none.
2. Aggregations of the quickstart's problems, with drafts and without, for several numbers of rows.
3. Ours and TRL's on a step of benchmarks/step.py, and the same step's products alone: x W' forward, and twice more backward.
"""

from __future__ import annotations

import asyncio
import copy
import random
import statistics
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import common
import step
import torch

from paragator.config import Config, ModelConfig
from paragator.core.scaffold import Scaffold, run
from paragator.core.types import Plan, Problem
from paragator.engines.local import generation
from paragator.engines.local.branching import Ragged
from paragator.engines.local.compute import computed_now
from paragator.engines.local.generation import Branched, Drawn, SequenceRequest, prefill, sample_rows
from paragator.engines.local.loading import load_model
from paragator.engines.local.transformers import TransformersEngine
from paragator.engines.sampling import Sampling
from paragator.runs import resolve
from paragator.settings import validate

Seconds = dict[Any, list[float]]
CPU = torch.device("cpu")


def taking_turns(sides: Mapping[Any, Callable[[], Any]], repeats: int) -> Seconds:
    """Processor seconds of every side, in alternating order; the first round is not counted."""
    found: Seconds = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name in list(sides)[:: -1 if repeat % 2 else 1]:
            began = time.process_time()
            sides[name]()
            found[name] += [time.process_time() - began] * (repeat > 0)
    return found


def ratios(found: Seconds, base: Any) -> str:
    """Every side against `base`, pair by pair: median (smallest to largest)."""
    parts = []
    for name, seconds in found.items():
        pairs = [s / b for s, b in zip(seconds, found[base], strict=True)]
        parts.append(f"{name}: {statistics.median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f})")
    return f"{base}: {statistics.median(found[base]):.3g} s; " + ", ".join(parts)


def passes(name: str, model: Any, rows: int, prompt: int, repeats: int) -> None:
    """1. One pass; rows stand at token 16 of their completions."""
    rng, room = random.Random(0), 32
    ids = [tuple(rng.randrange(4, 170) for _ in range(prompt)) for _ in range(-(-rows // 16))]
    asked = [SequenceRequest(ids[i // 16], str(i)) for i in range(rows)]
    with torch.no_grad():
        _, following = prefill(model.eval(), asked, room, CPU)
        assert isinstance(following, Branched)

        def one(tokens: int) -> Callable[[], Any]:
            ragged = Ragged.of([tokens] * rows, [16] * rows, CPU)
            drawn = Drawn(asked, Sampling(max_tokens=room), (), CPU)
            given = torch.full((rows * tokens,), 5)
            return lambda: drawn.draw(following.ragged(given, ragged), ragged.rows, ragged.places)

        found = taking_turns({tokens: one(tokens) for tokens in (1, 2, 4, 8)}, repeats)
    print(f"a pass, {name}, {rows} rows on prompts of {prompt}: tokens a row: {ratios(found, 1)}", flush=True)


def aggregations(model: Any, tokenizer: Any, sizes: list[tuple[int, int]], repeats: int) -> None:
    """2. The quickstart's first step; drafts in whatever batch."""
    config = validate(Config, tomllib.loads((common.ROOT / "configs" / "quickstart.toml").read_text()))
    engine = TransformersEngine(model, tokenizer, sampling=resolve.samplings(config))
    problems = resolve.load_task(config.task).problems("train", max(p for p, _ in sizes), 0)
    plan = Scaffold(Plan.training(16, 4), config.model.templates(), seed=1)

    async def prompts() -> list[tuple[int, ...]]:
        traces = await asyncio.gather(*(run(problem, engine, plan) for problem in problems))
        return [group.prompt_ids or () for trace in traces for group in trace.rounds[1]]

    found, sampling = asyncio.run(prompts()), resolve.samplings(config)["aggregate"]
    for count, siblings in sizes:
        rows = [SequenceRequest(ids, f"{p}:{i}") for p, ids in enumerate(found[:count]) for i in range(siblings)]

        def side(drafted: int, rows: list[SequenceRequest] = rows) -> Callable[[], Any]:
            with_drafts = replace(sampling, lookup=drafted)
            return lambda: sample_rows(model, rows, with_drafts, (2,), max_batch_tokens=2**20, device=CPU)

        for few, text in ((10**6, "drafts from the start"), (generation.FEW["cpu"], "as it is")):
            with mock.patch.object(generation, "FEW", {"cpu": few}):
                seconds = taking_turns({"off": side(0), 4: side(4), 8: side(8)}, repeats)
            print(f"aggregations, {count} prompts, {siblings} rows each, {text}: {ratios(seconds, 'off')}", flush=True)


def products(size: step.Size, model: Any, tokenizer: Any, repeats: int) -> None:
    """3. A step, TRL's step, and the products of ours."""
    rng, shapes = random.Random(size.name), Counter[tuple[tuple[int, ...], int, bool]]()
    problems = [Problem(f"p{i}", common.prompt_of(tokenizer, size.prompt, rng)[0]) for i in range(size.problems)]

    def noted(layer: Any, given: tuple[Any, ...]) -> None:
        shapes[tuple(layer.weight.shape), given[0].numel() // layer.in_features, torch.is_grad_enabled()] += 1

    def replay() -> None:
        for (weight, rows, trained), count in shapes.items():
            w, x, y = torch.ones(weight), torch.ones(rows, weight[1]), torch.ones(rows, weight[0])
            for _ in range(count):
                torch.nn.functional.linear(x, w)
                if trained:
                    y @ w
                    y.t() @ x

    with tempfile.TemporaryDirectory() as folder:
        ours = computed_now(lambda: step.Ours(size, copy.deepcopy(model), tokenizer, problems))
        theirs = computed_now(lambda: step.Trl(size, copy.deepcopy(model), tokenizer, problems, folder))
        layers = [part for part in ours.policy.raw.modules() if isinstance(part, torch.nn.Linear)]
        hooks = [layer.register_forward_pre_hook(noted) for layer in layers]
        ours.step()
        for hook in hooks:
            hook.remove()
        sides = {"ours": ours.step, "products": lambda: computed_now(replay), "TRL": lambda: computed_now(theirs.step)}
        print(f"a step, {size.name}: {ratios(taking_turns(sides, repeats), 'products')}", flush=True)
        ours.engine.close()
    parts = {name: statistics.median(p.get(name, 0.0) for p in ours.parts) for name in ours.parts[0]}
    print("  parts of ours, wall clock: " + ", ".join(f"{name} {s:.2f} s" for name, s in parts.items()), flush=True)


def main() -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--smollm2", action="store_true", help="passes and a step of SmolLM2 too")
    flags = parser.parse_args()
    common.use_threads(flags.threads)
    model, tokenizer = load_model(ModelConfig(path="embedded", device="cpu"))
    for rows in (1, 16) if flags.quick else (1, 4, 16, 128):
        passes("embedded", model, rows, 75, flags.repeats)
    aggregations(model, tokenizer, [(1, 1)] if flags.quick else [(1, 1), (1, 4), (16, 16)], flags.repeats)
    sizes = step.sizes(flags.quick, full=False)
    products(sizes[1], model, tokenizer, flags.repeats)
    if flags.smollm2:
        model, tokenizer = load_model(ModelConfig(path=common.model_path("smollm2"), device="cpu"))
        for rows in (1, 4, 8):
            passes("SmolLM2", model, rows, 400, flags.repeats)
        products(sizes[0], model, tokenizer, flags.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
