"""`paragator serve`: an OpenAI-compatible server that answers by rounds over any engine."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import TYPE_CHECKING

from paragator.cli.eval import OF_PROBLEM, add_short, add_strategy, values_of
from paragator.cli.main import parse, parser_for
from paragator.config import Config
from paragator.core.errors import UsageError
from paragator.runs.defaults import solve_config

if TYPE_CHECKING:
    from paragator.serve.settings import ServeSettings

OWN = ("host", "port", "key_file", "key_env", "max_requests", "max_tokens_total")


def main(arguments: list[str]) -> int:
    parser = parser_for("serve")
    parser.add_argument("settings", nargs="?", metavar="SERVE.toml", help="the server's settings and presets")
    parser.add_argument("--config", help="a TOML file: engine, prompts, sampling, default rounds")
    for name in OWN:
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=f"`{name}` of SERVE.toml")
    add_short(parser, OF_PROBLEM)
    add_strategy(parser, "store", "Answers where a client names none; without one, the rounds of the plan and a vote.")
    if not (find_spec("starlette") and find_spec("uvicorn")):
        parser.parse_known_args(arguments)  # --help needs neither
        raise UsageError("paragator serve needs starlette and uvicorn: pip install 'paragator[serve]'")
    flags, overrides = parse(parser, arguments)
    from paragator.serve.settings import ServeSettings
    from paragator.settings import load

    given = {name: getattr(flags, name) for name in OWN if getattr(flags, name) is not None}
    settings = load(ServeSettings, flags.settings, [f"--{name}={value}" for name, value in given.items()])
    asyncio.run(serve(solve_config(values_of(flags, overrides, OF_PROBLEM)), settings))
    return 0


async def serve(config: Config, settings: ServeSettings) -> None:
    """Serve until interrupted."""
    from paragator.serve.listen import listening

    async with listening(config, settings) as (url, solver):
        print(f"serving {', '.join(solver.models)} at {url}; Ctrl-C stops", flush=True)
        await asyncio.Event().wait()
