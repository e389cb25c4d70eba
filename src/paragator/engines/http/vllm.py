"""vLLM as the engine of training: exact tokens and log-probabilities out, the policy's weights in after each step.

The server needs --logprobs-mode processed_logprobs (after temperature), and VLLM_SERVER_DEV_MODE=1 (its weight routes) or,
for adapters, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from paragator.core.errors import ParagatorError, RunError, UsageError
from paragator.core.types import Group, Prompt, Stage
from paragator.engines.encoding import misfit
from paragator.engines.http.endpoint import Endpoint, Lost
from paragator.engines.http.openai import OpenAI
from paragator.engines.http.server import Server
from paragator.engines.http.weights import Weights

START_TIMEOUT_S = 900.0
LATE_S = 60.0
"""How long a server may load weights once another one has them; more where that one took longer."""
NAME = "policy"
LOG_CHARS = 200
LINGER_S = 3.0
"""How long a server that fails may take to end."""
Export = Callable[[Path], None]
"""Writes the policy as a folder of safetensors, config and tokenizer, or its adapter alone."""


class VllmEngine:
    """Satisfies `Sample` with one or more vLLM servers, which take new weights between requests, never during one.

    engine   the servers in token mode
    folder   where versions of the weights are handed over; the servers read it, so all share this file system
    version  the step whose weights the servers sample from; None before the first `publish`
    target   its folder

    `kind` is how a server takes a version. A server that comes back gets the current weights before it is used. Each answer
    counts only if its server still reports that version afterwards (or, of an adapter, bears its name): what one sampled
    that was restarted is sampled again.
    """

    def __init__(self, engine: OpenAI, folder: Path, kind: type[Weights] = Weights) -> None:
        self.engine, self.folder = engine, folder
        self.weights = {server: kind(server) for server in engine.servers}
        self.version: int | None = None
        self.target: Path | None = None
        self.publishing = False
        engine.fleet.watch()
        engine.fleet.fit, engine.fleet.confirm = self.fit, self.confirm

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
        return await self.engine(prompt, n, stage=stage, seed=seed)

    async def publish(self, export: Export, version: int) -> None:
        """Write a version atomically and have the servers load it; those that do not are lost. RunError once none is left."""
        if in_flight := sum(server.in_flight for server in self.engine.servers):
            raise RunError(f"{in_flight} rollouts are under way: weights are published between steps")
        if version == self.version:
            return
        self.publishing = True
        try:
            self.target = written(export, self.folder, version)
            await self.load(self.target, self.engine.fleet.left)
            await self.engine.fleet.some()
            self.version = version
            self.engine.fleet.homes.clear()  # the servers forgot their prefixes
            used = {self.target, *(weights.loading for weights in self.weights.values())}
            for old in self.folder.iterdir():
                if old not in used:  # a server that does not find what it is loading dies
                    shutil.rmtree(old, ignore_errors=True)
        finally:
            self.publishing = False

    async def load(self, target: Path, servers: Sequence[Server]) -> None:
        """Have servers load a folder; once one has it, the others must follow in LATE_S or as much time again."""
        start, fleet = time.monotonic(), self.engine.fleet
        late = {asyncio.ensure_future(self.weights[server].load(target)): server for server in servers}
        limit: float | None = None
        try:
            while late:
                done, _ = await asyncio.wait(late, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    server, error = late.pop(task), task.exception()
                    if isinstance(error, Lost) or (isinstance(error, UsageError) and self.version is not None):
                        fleet.lose(server, str(error))
                    elif error is not None:
                        raise error
                    else:
                        limit = max(LATE_S, time.monotonic() - start)
                if not done:
                    for server in late.values():
                        fleet.lose(server, f"it did not load its weights within {limit:.0f} s of another one")
                    return
        finally:
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def fit(self, server: Server) -> None:
        """Give a server that comes back the current weights, if there are any yet."""
        if self.target is not None:
            await self.weights[server].load(self.target)

    async def confirm(self, server: Server) -> None:
        """Lost where what a server answered so far may be of other weights than the current ones."""
        weights = self.weights[server]
        await weights.confirm()
        if weights.loaded != self.target:
            raise Lost("its weights are not the current ones")

    async def close(self) -> None:
        """Close the connections; the servers keep running."""
        await self.engine.close()
        for weights in self.weights.values():
            await weights.admin.client.close()


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
    one would still be used (seen with 0.32: log-probabilities off by 1.5, KL 0.09).
    """
    file = folder / "model.safetensors"
    if not file.is_file() or not (config := json.loads((folder / "config.json").read_text())).get(
        "tie_word_embeddings"
    ):
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
            env=environment(python),
            start_new_session=True,
        )
    watch = watched(server.pid)
    try:
        await healthy(server, port, log)
        try:
            yield f"http://127.0.0.1:{port}/v1"
        except ParagatorError as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(LINGER_S)
            if server.poll() is None:
                raise
            raise RunError(f"{ended(server, log)}; then --resume") from error
    finally:
        stop(server)
        watch.kill()  # after the server: killed in between, this process leaves nothing behind
        watch.communicate()


def environment(python: str) -> dict[str, str]:
    """The server's: the routes for its weights open, and torch's compiler off where it cannot link, below a folder with a space."""
    compiler = {"TORCHDYNAMO_DISABLE": "1"} if " " in str(Path(python).absolute()) else {}
    routes = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    return {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **compiler, **os.environ, **routes}


def ended(server: subprocess.Popen[bytes], log: Path, when: str = "") -> str:
    """That a server ended, with the last error in its log, or else the last line, and where that is."""
    lines = [line.strip() for line in log.read_text(errors="replace").split("\n") if line.strip()]
    errors = [line for line in lines if re.search(r"(Error|Exception)\b.*: ", line)]
    last = [*lines[-1:], *errors[-1:]][-1] if lines else "its log is empty"
    said = "".join(char for char in last if char.isprintable())[:LOG_CHARS]
    return f"vLLM ended with code {server.returncode}{when} ({said}); see {log}"


async def healthy(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the server answers; RunError with where to look when it ends first, or takes too long."""
    probe = Endpoint(f"http://127.0.0.1:{port}")
    try:
        for _ in range(int(START_TIMEOUT_S)):
            if server.poll() is not None:
                raise RunError(ended(server, log, " before it was ready"))
            with contextlib.suppress(UsageError):
                if (await probe.get("/health", 5)).status == 200:
                    return
            await asyncio.sleep(1)
    finally:
        await probe.client.close()
    raise RunError(f"vLLM was not ready after {START_TIMEOUT_S:.0f} s; see {log}")


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and whatever it started, also when it ended by itself: its workers may not have."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(15)


def watched(group: int) -> subprocess.Popen[bytes]:
    """A process that ends a process group once this one is gone, however that came: its standard input then closes.

    The server alone could be told by the kernel; its workers, which hold the memory, could not.
    """
    words = ["sh", "-c", 'cat > /dev/null; kill -s KILL -- "-$0"', str(group)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
