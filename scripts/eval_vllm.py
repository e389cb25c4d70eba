"""Runs `paragator eval` over vLLM servers of its own: `python scripts/eval_vllm.py CONFIG SERVERS [flags of paragator eval]`.

They serve the model that the config's model.path names, in float32, by engine.vllm_python and engine.vllm_arguments, and are
stopped at the end. An evaluation that was begun is resumed. Logs: build/logs/vllm-NAME-I.log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path

from paragator.config import Config
from paragator.core.errors import ParagatorError
from paragator.engines.http.vllm import NAME, served
from paragator.runs.folder import is_used
from paragator.settings import load


async def main(path: str, servers: int, flags: list[str]) -> int:
    """The evaluation's exit code."""
    config = load(Config, path)
    name = flags[flags.index("--name") + 1] if "--name" in flags else config.name
    resume = ["--resume"] if is_used(Path(config.runs) / name) and "--overwrite" not in flags else []
    arguments = [*config.engine.vllm_arguments, "--dtype", "float32"]
    model, logs = Path(config.model.path).resolve(), [Path(f"build/logs/vllm-{name}-{i}.log") for i in range(servers)]
    print(f"starting vLLM; its log is {' and '.join(map(str, logs))}", flush=True)
    async with contextlib.AsyncExitStack() as stack:
        starting = (served(config.engine.vllm_python, model, log, arguments) for log in logs)
        urls = await asyncio.gather(*map(stack.enter_async_context, starting))
        words = ["eval", path, "--name", name, "--url", json.dumps(urls), "--engine.model", NAME, *resume, *flags]
        evaluation = await asyncio.create_subprocess_exec(sys.executable, "-m", "paragator", *words)
        with contextlib.suppress(
            asyncio.CancelledError
        ):  # Ctrl-C reaches the evaluation too, which then ends by itself
            return await evaluation.wait()
        return await evaluation.wait()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} CONFIG SERVERS [flags of paragator eval]")
    try:
        sys.exit(asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])))
    except ParagatorError as error:
        sys.exit(f"error: {error}")
