"""vLLM as the rollout engine of training: exact tokens and log-probabilities out, the policy's weights in after each step.

The server needs VLLM_SERVER_DEV_MODE=1 (its weight routes) and --logprobs-mode processed_logprobs (after temperature).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from paragator.core.errors import RunError, UsageError
from paragator.core.types import Group, Prompt, Stage
from paragator.engines.encoding import misfit
from paragator.engines.endpoint import Endpoint, Refused
from paragator.engines.openai import OpenAIEngine

START_TIMEOUT_S = 900.0
RELOAD_TIMEOUT_S = 600.0
NAME = "policy"
PR_SET_PDEATHSIG = 1
Export = Callable[[Path], None]
"""Writes the policy as a folder of safetensors, config and tokenizer."""


class VllmEngine:
    """Satisfies `Sample` through `engine` (in token mode) and takes new weights between requests, never during one.

    folder   where versions of the weights are handed over; the server reads it, so both share this file system
    version  the step whose weights the server samples from; None before the first `publish`
    """

    def __init__(self, engine: OpenAIEngine, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        parts = urlsplit(engine.endpoint.url)
        root = f"{parts.scheme}://{parts.netloc}"
        key = engine.endpoint.key
        self.admin = Endpoint(root, key, 1, RELOAD_TIMEOUT_S, RELOAD_TIMEOUT_S)
        self.version: int | None = None
        self.flying = 0
        self.publishing = False

    @property
    def context(self) -> int | None:
        """Tokens that prompt and completion may have together."""
        return self.engine.context

    def count(self, prompt: Prompt) -> int:
        """A prompt's length in tokens."""
        return self.engine.count(prompt)

    def misfit(self, prompt_tokens: int, max_tokens: int) -> str | None:
        """Why a prompt of this length cannot be sampled, or None."""
        return misfit(prompt_tokens, max_tokens, self.context)

    async def __call__(self, prompt: Prompt, n: int, *, stage: Stage, seed: int) -> Group:
        if self.publishing:
            raise RunError("a rollout was asked for while weights were being published: it would span two versions")
        self.flying += 1
        try:
            return await self.engine(prompt, n, stage=stage, seed=seed)
        finally:
            self.flying -= 1

    async def publish(self, export: Export, version: int) -> None:
        """Write a version atomically, let the server load it and forget cached prefixes. RunError when it does not."""
        if self.flying:
            raise RunError(f"{self.flying} rollouts are under way: weights are published between steps")
        self.publishing = True
        try:
            target = written(export, self.folder, version)
            weights = {"method": "reload_weights", "kwargs": {"weights_path": str(target)}}
            for path, body in (("/collective_rpc", weights), ("/reset_prefix_cache", {})):
                await self.tell(path, body)
            self.version = version
            for old in self.folder.glob("version_*"):
                if old != target:
                    shutil.rmtree(old, ignore_errors=True)
        finally:
            self.publishing = False

    async def tell(self, path: str, body: Mapping[str, object]) -> None:
        try:
            await self.admin.post(path, body, lambda found: None)
        except Refused as error:
            if error.status == 404:
                raise UsageError(
                    f"engine.url = {self.engine.endpoint.url}: the server has no {path}; start vLLM with VLLM_SERVER_DEV_MODE=1"
                ) from None
            raise RunError(f"{path} failed ({error}); the run can go on with --resume") from None

    async def close(self) -> None:
        """Close the connections; the server goes on."""
        self.admin.wire.close()
        await self.engine.close()


def written(export: Export, folder: Path, version: int) -> Path:
    """`folder`/version_N, untied, complete or not there."""
    target, temporary = folder / f"version_{version}", folder / f"writing_{version}"
    for leftover in (temporary, target):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    export(temporary)
    untie(temporary)
    temporary.rename(target)
    return target


def untie(folder: Path) -> None:
    """Write the output layer of a model that shares it with its embeddings.

    vLLM's CPU backend packs that layer when it starts and does not pack it again on a reload of tied weights, so the old
    one would go on to be used (seen with 0.32: log-probabilities off by 1.5, KL 0.09).
    """
    config = json.loads((folder / "config.json").read_text())
    file = folder / "model.safetensors"
    if not config.get("tie_word_embeddings") or not file.is_file():
        return
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    if "lm_head.weight" not in tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}, indent=2) + "\n")


@asynccontextmanager
async def served(python: str, model: Path, log: Path, arguments: Sequence[str] = ()) -> AsyncIterator[str]:
    """A vLLM server of its own for as long as the block runs; yields its base URL. RunError when it does not come up."""
    if shutil.which(python) is None:
        raise UsageError(
            f"engine.vllm_python = {python}: no such interpreter; run `make vllm`, or start a server and set engine.url"
        )
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", NAME]
    command += ["--host", "127.0.0.1", "--port", str(port), "--logprobs-mode", "processed_logprobs", *arguments]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        server = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **os.environ, "VLLM_SERVER_DEV_MODE": "1"},
            start_new_session=True,
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )
    try:
        await healthy(server, port, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        stop(server)


async def healthy(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the server answers; RunError with where to look when it ends first, or takes too long."""
    probe = Endpoint(f"http://127.0.0.1:{port}")
    for _ in range(int(START_TIMEOUT_S)):
        if server.poll() is not None:
            raise RunError(f"vLLM ended with code {server.returncode} before it was ready; see {log}")
        try:
            if (await probe.get("/health", 5)).status == 200:
                probe.wire.close()
                return
        except UsageError:
            pass
        await asyncio.sleep(1)
    raise RunError(f"vLLM was not ready after {START_TIMEOUT_S:.0f} s; see {log}")


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and whatever it started, also when it ended by itself: its workers may not have."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(15)


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
