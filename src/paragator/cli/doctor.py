"""`paragator doctor`: what this machine and installation can do."""

from __future__ import annotations

import json
import sys
from typing import Any

from paragator.cli.main import parse, parser_for
from paragator.core.errors import UsageError
from paragator.runs.defaults import run_config
from paragator.runs.folder import installed
from paragator.settings import ON, read_values, sections

PACKAGES = ("paragator", "torch", "transformers", "accelerate", "reasoning-gym", "peft", "trl")


def main(arguments: list[str]) -> int:
    parser = parser_for("doctor")
    add = parser.add_argument
    add("--config", help="estimate memory and time of a step of this TOML file; overrides may follow")
    add("--flops", type=float, help="FLOP/s of the device; without it, a product is timed on this machine")
    add("--fill", type=float, default=1.0, help="mean completion length over the longest (default 1)")
    flags, rest = parse(parser, arguments)
    if rest and not flags.config:
        raise UsageError(f"unknown option {rest[0]}; see paragator doctor --help")
    config = run_config(read_values(flags.config, rest)) if flags.config else None
    from paragator.planning.machine import estimate_here, examine

    if config:
        found = estimate_here(config, flags.flops, flags.fill)
        names = [] if any(word.partition("=")[0] == f"--{ON}" for word in rest) else sections(flags.config)
        found["sections"] = {name: on_machine(flags.config, [*rest, f"--{ON}", name]) for name in names}
    else:
        versions = {name: installed(name) or "not installed" for name in PACKAGES}
        found = {"python": sys.version.split()[0], **versions, **examine()}
    if flags.json:
        print(json.dumps(found))
    elif config:
        show_estimate(found)
    else:
        for name, value in found.items():
            print(f"{name:<16} {value}")
    return 0 if config or found["embedded model"] == "ok" else 1


def on_machine(path: str, overrides: list[str]) -> dict[str, Any]:
    """What a config needs on cards, with one of its sections."""
    from paragator.planning.estimate import estimate

    found = estimate(run_config(read_values(path, overrides)), bfloat16=True, cuda=True, rate=1.0)
    return {name: found[name] for name in ("processes", "trained_parameters", "memory_bytes", "fits")}


def show_sections(found: dict[str, Any]) -> None:
    """Memory of each section of a config on cards, and which card holds it."""
    for name, one in found.items():
        cards = ", ".join(f"{card} {'yes' if fit else 'no'}" for card, fit in one["fits"].items())
        part = f"{one['memory_bytes']['peak'] / 1e9:.1f} GB a process, {one['processes']} of them"
        print(f"--on {name}: {one['trained_parameters']:,} trained, {part}; fits a card: {cards}")


def show_estimate(found: dict[str, Any]) -> None:
    """Memory and time of a step, with the formulas that gave them."""
    sizes = f"{found['parameters']:,} parameters, {found['trained_parameters']:,} trained"
    print(f"{found['model']}: {sizes}, {found['precision']}")
    for name, value in found["memory_bytes"].items():
        print(f"  {name:<12} {value / 1e9:>10.2f} GB")
    for stage, tokens in found["tokens_per_step"].items():
        print(f"  {stage}: " + ", ".join(f"{count:,} {what}" for what, count in tokens.items()) + " tokens a step")
    rate = found["flops_per_second"]
    for part, seconds in found["seconds_per_step"].items():
        print(f"  {part:<12} {seconds:>10.1f} s a step = {found['flops_per_step'][part]:.3g} FLOP / {rate:.3g} FLOP/s")
    print(f"rate: {found['rate_from']}; assumed: {found['assumed']}")
    show_sections(found["sections"])
    for name, formula in found["formulas"].items():
        print(f"  {name} = {formula}")
