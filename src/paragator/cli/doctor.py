"""`paragator doctor`: what this machine and installation can do."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from paragator.cli.compose import installed
from paragator.cli.main import parse, parser_for
from paragator.config import ModelConfig
from paragator.core.errors import ParagatorError, UsageError


def main(arguments: list[str]) -> int:
    parser = parser_for("doctor")
    flags, rest = parse(parser, arguments)
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

    from paragator.engines.loading import facts, pick_device
    from paragator.train.policy import pick_precision

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
