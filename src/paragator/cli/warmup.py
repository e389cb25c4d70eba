"""`paragator warmup CONFIG`: the embedded model from nothing."""

from __future__ import annotations

import json

from paragator.cli.main import parse, parser_for
from paragator.core.errors import UsageError
from paragator.settings import load


def main(arguments: list[str]) -> int:
    parser = parser_for("warmup")
    parser.add_argument("config", nargs="?", help="a TOML file such as configs/warmup-countdown.toml")
    flags, overrides = parse(parser, arguments)
    if flags.config is None:
        raise UsageError("no config given; try paragator warmup configs/warmup-countdown.toml")
    from paragator.training.warmup import WarmupConfig, warmup

    config = load(WarmupConfig, flags.config, overrides)
    output = warmup(config, (lambda line: None) if flags.json else lambda line: print(line, flush=True))
    print(json.dumps({"output": str(output)}) if flags.json else f"model: {output}")
    return 0
