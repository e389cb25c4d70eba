"""SkyRL's Tinker server, without uv and on Python 3.11: python scripts/skyrl_server.py ARGS, those of `python -m skyrl.tinker.api`.

For SkyRL 0.3.0, in the environment of `make tinker`. It listens on 127.0.0.1, where SkyRL's own default is every address.
"""

from __future__ import annotations

import argparse
import runpy
import sys
import typing

import typing_extensions

ENGINE = "--engine"


def serve() -> None:
    """What the module does as a program, with an engine that this file starts."""
    import uvicorn
    from skyrl.tinker import api
    from skyrl.tinker.config import EngineConfig, add_model, config_to_argv

    api._build_uv_run_cmd_engine = lambda parent, config: [sys.executable, __file__, ENGINE, *config_to_argv(config)]
    parser = argparse.ArgumentParser(description="SkyRL's Tinker server")
    add_model(parser, EngineConfig)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = vars(parser.parse_args())
    settings = {name: value for name, value in given.items() if name in EngineConfig.model_fields}
    api.app.state.engine_config = EngineConfig.model_validate(settings)
    uvicorn.run(api.app, host=given["host"], port=given["port"])


if __name__ == "__main__":
    typing.TypedDict = typing_extensions.TypedDict  # pydantic asks for it below Python 3.12
    if sys.argv[1:2] == [ENGINE]:
        del sys.argv[1]
        runpy.run_module("skyrl.tinker.engine", run_name="__main__")
    else:
        serve()
