"""Runs `paragator eval` over a vLLM server of its own: `python scripts/eval_vllm.py CONFIG [eval's own flags]`.

Serves the model that the config's model.path names, in float32, with engine.vllm_python and engine.vllm_arguments, and stops
the server at the end. An evaluation that was begun is resumed. The server's log is build/logs/vllm-NAME.log.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from paragator.config import Config
from paragator.core.errors import ParagatorError
from paragator.engines.http.vllm import NAME, served
from paragator.runs.folder import is_used
from paragator.settings import load


async def main(path: str, flags: list[str]) -> int:
    """The evaluation's exit code."""
    config = load(Config, path)
    name = flags[flags.index("--name") + 1] if "--name" in flags else config.name
    resume = ["--resume"] if is_used(Path(config.runs) / name) and "--overwrite" not in flags else []
    arguments = [*config.engine.vllm_arguments, "--dtype", "float32"]
    log = Path("build/logs") / f"vllm-{name}.log"
    print(f"starting vLLM; its log is {log}", flush=True)
    async with served(config.engine.vllm_python, Path(config.model.path).resolve(), log, arguments) as url:
        words = ["eval", path, "--name", name, "--url", url, "--engine.model", NAME, *resume, *flags]
        evaluation = await asyncio.create_subprocess_exec(sys.executable, "-m", "paragator", *words)
        try:
            return await evaluation.wait()
        except asyncio.CancelledError:  # Ctrl-C reaches the evaluation too, which ends by itself
            return await evaluation.wait()


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(sys.argv[1], sys.argv[2:])))
    except IndexError:
        sys.exit(f"usage: {sys.argv[0]} CONFIG [flags of paragator eval]")
    except ParagatorError as error:
        sys.exit(f"error: {error}")
