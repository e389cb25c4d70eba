"""`paragator plan`: tokens, FLOPs, seconds and cost of training steps that this machine cannot hold, by a stated model."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from paragator.cli.main import Parser, parse, parser_for
from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.planning.assumptions import TAIL, assumptions, shape_with, workload_of
from paragator.planning.hardware import PRESETS, Efficiency, assumed
from paragator.planning.rollout_events import Batching
from paragator.planning.simulate import PARTS, Cluster, plan
from paragator.settings import load
from paragator.training.memory import HUB, shape_of

EPILOG = """lengths are a number of tokens, lognormal:MEAN:SIGMA, or a .jsonl file with a number a line; longer ones than the
stage's max_tokens are cut there. N and m are config keys: --rollout.candidates 16 --rollout.pool_size 4; so are
--train.problems, --train.steps, --train.batch_tokens and the rest. docs/plan.md explains the model and --assume's names.

  paragator plan configs/qwen3-4b-deepscaler.toml --preset h100 --gpus-train 4 --gpus-rollout 4 --solution lognormal:900:0.8
"""


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
    given = {name: getattr(flags, name) for name in ("problem", "solution", "aggregation", "shown", "signal")}
    workload, cluster = workload_of(config, **given), cluster_of(flags)
    found = plan(workload, shape, cluster, seed=config.seed, draws=flags.draws, price=flags.price)
    found["model"] = f"{flags.params:g} parameters" if flags.params else config.model.path
    found["assumed"] = assumptions(workload, cluster)
    if flags.plot:
        from paragator.report.bars import variant_seconds

        try:
            Path(flags.plot).write_bytes(variant_seconds(found).png())
        except OSError as error:
            raise UsageError(
                f"--plot {flags.plot}: {error.strerror}; give a PNG file in a folder that exists"
            ) from None
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
    kinds = ("block", "dense")
    add("--attention", default="block", choices=kinds, help="of padded rows: block skips what the mask hides (default)")
    add("--no-prefix-cache", action="store_true", help="each sibling reads the prompt again")
    assume = "another peak or efficiency; may be repeated"
    add("--assume", action="append", default=[], metavar="NAME=VALUE", help=assume)
    add("--price", type=float, help="of one GPU for one hour, in any currency; without it no cost is printed")
    add("--draws", type=int, default=3, help="simulated steps that are averaged (default 3)")
    add("--plot", metavar="FILE.png", help="draw the seconds of the four variants")
    return parser


def cluster_of(flags: Namespace) -> Cluster:
    """Devices and their efficiencies."""
    hardware, efficiency = assumed(PRESETS[flags.preset], Efficiency(), flags.assume)
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
    for ahead, steps in enumerate(([{**v, **v["seconds"]} for v in variants], [v["ahead"] for v in variants])):
        table.add_row(f"idle, ahead = {ahead}", *(f"{s['idle_s'] / s['step']:.0%} of {s['step']:.1f} s" for s in steps))
    table.add_section()
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
