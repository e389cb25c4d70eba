"""`paragator plan`: tokens, FLOPs, seconds and cost of training steps that this machine cannot hold, by a stated model."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

from paragator.cli.main import Parser, parse, parser_for
from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.planning.estimate import HUB, Shape, shape_of
from paragator.planning.hardware import PRESETS, Cost, Efficiency, assumed
from paragator.planning.lengths import Lengths
from paragator.planning.rollout_events import Batching
from paragator.planning.simulate import PARTS, Cluster, Workload, plan
from paragator.settings import load

EPILOG = """lengths are a number of tokens, lognormal:MEAN:SIGMA, or a .jsonl file with a number a line; longer ones than the
stage's max_tokens are cut there. N and m are config keys: --rollout.candidates 16 --rollout.pool_size 4; so are
--train.problems, --train.steps, --train.batch_tokens and the rest. docs/plan.md explains the model and --assume's names.

  paragator plan configs/qwen3-4b-deepscaler.toml --preset h100 --gpus-train 4 --gpus-rollout 4 --solution lognormal:900:0.8
"""
TAIL = 0.6
"""Sigma of lengths that nobody gave: lognormal, with half of max_tokens as mean."""


def main(arguments: list[str]) -> int:
    flags, overrides = parse(arguments_of(), arguments)
    if flags.model and flags.params:
        raise UsageError(f"--model {flags.model} and --params {flags.params:g}: give one of them")
    if flags.active and not flags.params:
        raise UsageError(f"--active {flags.active:g} needs --params, all parameters of the mixture of experts")
    if flags.model:
        overrides += ["--model.path", flags.model]
    config = load(Config, flags.config, overrides)
    shape = shape_with(flags.params, flags.active) if flags.params else shape_of(config.model)
    workload, cluster = workload_of(config, flags), cluster_of(flags)
    if flags.price is not None and not 0 <= flags.price < math.inf:
        raise UsageError(f"--price {flags.price}: use the price of one GPU for one hour, 0 or more")
    found = plan(workload, shape, cluster, seed=config.seed, draws=flags.draws, price=flags.price)
    found["model"] = f"{flags.params:g} parameters" if flags.params else config.model.path
    found["assumed"] = assumptions(workload, cluster)
    if flags.plot:
        draw(found, Path(flags.plot))
    if flags.json:
        print(json.dumps(found))
    else:
        show(found)
    return 0


def arguments_of() -> Parser:
    """The flags; whatever else begins with -- is a config override."""
    parser = parser_for("plan")
    parser.epilog = EPILOG
    add = parser.add_argument
    add("config", nargs="?", help="a TOML file; without one, the defaults")
    add("--model", help=f"a model folder, or one of {', '.join(HUB)}")
    add("--params", type=float, help="parameters of a model of no particular name, e.g. 14e9")
    add("--active", type=float, help="parameters that a token uses, of a mixture of experts; with --params")
    add("--preset", default="h100", choices=PRESETS, help="the device (default h100)")
    add("--gpus-train", type=int, default=8, metavar="N", help="devices that train (default 8)")
    add("--gpus-rollout", type=int, default=0, metavar="N", help="devices that sample; 0: those that train (default)")
    add("--rollout-parallel", type=int, default=1, metavar="N", help="devices of a rollout replica (default 1)")
    add("--train-parallel", type=int, default=1, metavar="N", help="devices that share a micro-batch (default 1)")
    add("--rows", type=int, default=256, help="most rows that one replica decodes at once (default 256)")
    add("--problem", default="200", help="length of a problem with its template (default 200)")
    add("--solution", help=f"length of a candidate (default lognormal, mean max_tokens / 2, sigma {TAIL})")
    add("--aggregation", help="length of an aggregation (default likewise)")
    add("--shown", type=float, default=1.0, help="share of a solution that an aggregation is shown (default 1)")
    add("--signal", type=float, default=1.0, help="share of groups with credit that is not all zero (default 1)")
    add(
        "--attention",
        default="block",
        choices=("block", "dense"),
        help="of padded rows: block skips what the mask hides (default)",
    )
    add("--no-prefix-cache", action="store_true", help="every sibling reads its prompt anew")
    add(
        "--assume",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another peak or efficiency; may be repeated",
    )
    add("--price", type=float, help="of one GPU for one hour, in any currency; without it no cost is printed")
    add("--draws", type=int, default=3, help="simulated steps that are averaged (default 3)")
    add("--plot", metavar="FILE.png", help="draw the seconds of the four variants")
    return parser


def workload_of(config: Config, flags: Namespace) -> Workload:
    """Lengths as given, or half of each stage's max_tokens with a tail."""
    for name in ("shown", "signal"):
        if not 0 <= getattr(flags, name) <= 1:
            raise UsageError(f"--{name} {getattr(flags, name)}: use a share from 0 to 1")

    def lengths(name: str, most: int) -> Lengths:
        return Lengths.parse(getattr(flags, name) or f"lognormal:{max(1, most / 2):g}:{TAIL}", name)

    return Workload(
        config,
        Lengths.parse(flags.problem, "problem"),
        lengths("solution", config.generate.max_tokens),
        lengths("aggregation", config.aggregate.max_tokens),
        shown=flags.shown,
        signal={"generate": flags.signal, "aggregate": flags.signal},
    )


def cluster_of(flags: Namespace) -> Cluster:
    """Devices and their efficiencies. UsageError for what cannot be."""
    hardware, efficiency = assumed(PRESETS[flags.preset], Efficiency(), flags.assume)
    if flags.rows < 1:
        raise UsageError(f"--rows {flags.rows}: at least 1 is needed")
    return Cluster(
        hardware,
        efficiency,
        flags.gpus_train,
        flags.gpus_rollout,
        flags.rollout_parallel,
        flags.train_parallel,
        Batching(rows=flags.rows, shared=not flags.no_prefix_cache),
        skips=flags.attention == "block",
    )


def shape_with(params: float, active: float | None) -> Shape:
    """A llama-like shape of about that many parameters: 80 hidden a layer, heads of 128, 8 key-value heads, Qwen3's vocabulary.

    With fewer `active` ones, 8 experts a token of as many as it takes. UsageError for sizes that no such shape has.
    """
    used = params if active is None else active
    if not 1e8 <= used <= params <= 1e13:
        raise UsageError(f"--params {params:g}, --active {used:g}: use 1e8 <= active <= params <= 1e13")
    shape = Shape(1, 128, 1, 1, 1, 128, 151_936, tied=True)
    for layers in range(8, 400, 2):
        hidden = 128 * max(4, round(80 * layers / 128))
        bare = Shape(layers, hidden, 0, hidden // 128, min(8, hidden // 128), 128, 151_936, tied=used < 8e9)
        inner = round((used - bare.parameters) / (3 * hidden * layers))
        if inner < 1:
            break
        shape = Shape(layers, hidden, inner, bare.heads, bare.kv_heads, 128, 151_936, tied=bare.tied)
        if inner <= 4 * hidden:
            break
    if active is None or active == params:
        return shape
    small = max(1, shape.inner // 8)
    experts = 8 + round((params - shape.parameters) / (3 * shape.hidden * small * shape.layers))
    return Shape(
        shape.layers,
        shape.hidden,
        small,
        shape.heads,
        shape.kv_heads,
        128,
        151_936,
        shape.tied,
        experts=experts,
        used=8,
    )


def assumptions(workload: Workload, cluster: Cluster) -> dict[str, Any]:
    """Everything that the result rests on and that is not in the config."""

    def told(lengths: Lengths) -> str:
        if lengths.observed:
            return f"{len(lengths.observed)} observed, mean {lengths.mean:.0f}"
        return f"lognormal, mean {lengths.mean:g}, sigma {lengths.sigma:g}" if lengths.sigma else f"{lengths.mean:g}"

    config = workload.config
    return {
        "problem": told(workload.problem),
        "solution": told(workload.solution),
        "aggregation": told(workload.aggregation),
        "shown": workload.shown,
        "signal": workload.signal["generate"],
        "problems": config.train.problems,
        "N": config.rollout.candidates,
        "m": config.rollout.pool_size,
        "gpus": {"train": cluster.gpus_train, "rollout": cluster.gpus_rollout},
        "parallel": {"train": cluster.train_parallel, "rollout": cluster.parallel},
        "rows": cluster.batching.rows,
        "attention": "block" if cluster.skips else "dense",
        **Cost(Shape(1, 1, 1, 1, 1, 1, 1, True), cluster.hardware, cluster.efficiency).told(),
    }


def show(found: dict[str, Any]) -> None:
    """The table of the four variants, then tokens, memory and assumptions."""
    from rich.console import Console
    from rich.table import Table

    variants = found["variants"]
    table = Table("a step", *(f"{v['rollout']}\n{v['update']}" for v in variants), title=found["model"])
    for column in table.columns[1:]:
        column.justify = "right"
    for part in (*PARTS, "step"):
        name = "whole step, s" if part == "step" else f"{part}, s"
        table.add_row(name, *(f"{v['seconds'][part]:.2f}" for v in variants), end_section=part == PARTS[-1])
    table.add_row("a GPU idles, s", *(f"{v['idle_s']:.2f}" for v in variants))
    for part in ("rollout", "update"):
        table.add_row(
            f"{part}, PFLOP", *(f"{v['flop'][part] / 1e15:,.4g}" for v in variants), end_section=part == "update"
        )
    table.add_row(f"{found['steps']} steps, h", *(f"{v['hours']:,.2f}" for v in variants))
    table.add_row("GPU-hours", *(f"{v['gpu_hours']:,.1f}" for v in variants))
    if variants[0]["cost"] is not None:
        table.add_row("cost at the given price", *(f"{v['cost']:,.0f}" for v in variants))
    console = Console()
    console.print(table)
    room = found["memory"]
    print("tokens a step: " + ", ".join(f"{n:,.0f} {name}" for name, n in found["tokens_per_step"].items()))
    fits = "" if room["training_fits"] else "  DOES NOT FIT: take more GPUs, LoRA or gradient checkpointing"
    print(
        f"memory of a training GPU: {room['training_bytes'] / 1e9:.1f} of {room['device_bytes'] / 1e9:.0f} GB{fits}; "
        f"cache of a replica: {room['kv_tokens']:,.0f} tokens"
    )
    print("assumed: " + ", ".join(f"{name} = {value}" for name, value in found["assumed"].items()))


def draw(found: dict[str, Any], path: Path) -> None:
    """The parts of a step, stacked, one bar a variant. UsageError where the file cannot be written."""
    from matplotlib.figure import Figure

    from paragator.report.plots import COLOURS

    variants = found["variants"]
    names = [f"{v['rollout']}, {v['update']}" for v in variants]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    start = [0.0] * len(variants)
    for part, colour in zip(PARTS, COLOURS, strict=False):
        seconds = [v["seconds"][part] for v in variants]
        axes.barh(names, seconds, left=start, color=colour, label=part)
        start = [a + b for a, b in zip(start, seconds, strict=True)]
    for place, (end, variant) in enumerate(zip(start, variants, strict=True)):
        axes.text(end, place, f" {end:.3g} s ({variant['idle_s'] / end:.0%} idle)", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(start))
    axes.set_xlabel("Seconds a step")
    axes.set_title(found["model"])
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(PARTS), frameon=False)
    try:
        figure.savefig(path, dpi=200)
    except (OSError, ValueError) as error:
        raise UsageError(f"--plot {path}: {error}; give a file that ends in .png in a folder that exists") from None
