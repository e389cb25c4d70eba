"""`paragator doctor`: what this machine and installation can do."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from paragator.cli.main import parse, parser_for
from paragator.config import Config, ModelConfig
from paragator.core.errors import ParagatorError, UsageError
from paragator.runs.folder import installed
from paragator.settings import load


def main(arguments: list[str]) -> int:
    parser = parser_for("doctor")
    parser.add_argument("--config", help="estimate memory and time of a step of this TOML file; overrides may follow")
    parser.add_argument(
        "--flops", type=float, help="FLOP/s of the device; without it, a product is timed on this machine"
    )
    parser.add_argument("--fill", type=float, default=1.0, help="mean completion length over the longest (default 1)")
    flags, rest = parse(parser, arguments)
    if flags.config:
        return print_estimate(load(Config, flags.config, rest), flags.flops, flags.fill, flags.json)
    if rest:
        raise UsageError(f"unknown option {rest[0]}; see paragator doctor --help")
    found = examine()
    if flags.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name:<16} {value}")
    return 0 if found["embedded model"] == "ok" else 1


def examine() -> dict[str, Any]:
    """Versions, devices, the faster precision, and whether the embedded model is whole."""
    import torch

    from paragator.engines.local.loading import facts, pick_device
    from paragator.training.policy import pick_precision

    device = pick_device("auto")
    try:
        facts(ModelConfig())
        embedded = "ok"
    except ParagatorError as error:
        embedded = str(error)
    packages = ("paragator", "torch", "transformers", "accelerate", "reasoning-gym", "peft", "trl")
    return {
        "python": sys.version.split()[0],
        **{name: installed(name) or "not installed" for name in packages},
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "device": device,
        "precision": pick_precision("auto", device),
        "embedded model": embedded,
    }


def print_estimate(config: Config, rate: float | None, fill: float, as_json: bool) -> int:
    """Memory and time of a step, with the formulas that gave them."""
    from paragator.engines.local.loading import pick_device
    from paragator.planning.estimate import estimate
    from paragator.training.policy import pick_precision

    device = pick_device(config.model.device)
    bfloat16 = pick_precision(config.train.precision, device) == "bfloat16"
    used = product_rate(device, bfloat16) if rate is None else rate
    found = estimate(config, bfloat16=bfloat16, cuda=device.startswith("cuda"), rate=used, fill=fill)
    found["rate_from"] = f"a product timed on this machine ({device})" if rate is None else "--flops"
    if as_json:
        print(json.dumps(found))
        return 0
    print(
        f"{found['model']}: {found['parameters']:,} parameters, {found['trained_parameters']:,} trained, {found['precision']}"
    )
    for name, value in found["memory_bytes"].items():
        print(f"  {name:<12} {value / 1e9:>10.2f} GB")
    for stage, tokens in found["tokens_per_step"].items():
        print(f"  {stage}: " + ", ".join(f"{count:,} {what}" for what, count in tokens.items()) + " tokens a step")
    for part, seconds in found["seconds_per_step"].items():
        print(f"  {part:<12} {seconds:>10.1f} s a step = {found['flops_per_step'][part]:.3g} FLOP / {used:.3g} FLOP/s")
    print(f"rate: {found['rate_from']}; assumed: {found['assumed']}")
    for name, formula in found["formulas"].items():
        print(f"  {name} = {formula}")
    return 0


def product_rate(device: str, bfloat16: bool) -> float:
    """FLOP/s of a square matrix product: the best of three."""
    import torch

    size = 8192 if device.startswith("cuda") else 1024
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if bfloat16 else torch.float32)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # reading a number waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])
