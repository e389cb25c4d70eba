"""The weights of one vLLM server, changed by vLLM's own routes: a folder that it reloads, or a LoRA adapter beside them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from paragator.core.errors import ParagatorError, UsageError
from paragator.engines.http.client import Answer, Broken, Unreachable
from paragator.engines.http.endpoint import Endpoint, Lost
from paragator.engines.http.server import Server, listed_in

ROUTE_TIMEOUT_S = 600.0
"""Longest wait for a server to finish what it serves, or to load a model."""
CHECK_TIMEOUT_S = 60.0
"""Longest wait for a server to say which weights it has."""
UNSET = "default"
"""What vLLM calls the weights that it was started with."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank."""


class Weights:
    """The weights of one server, by vLLM's own routes, which are at its root. Raises Lost where it does not do as it is told.

    label    what the server was last told that its weights are called: the folder they came from
    loading  the folder that it may still be reading
    loaded   the folder that it has read
    """

    def __init__(self, server: Server) -> None:
        parts = urlsplit(server.endpoint.url)
        self.server, self.url = server, server.endpoint.url
        self.admin = Endpoint(f"{parts.scheme}://{parts.netloc}", server.endpoint.key)
        self.label: str | None = None
        self.loading: Path | None = None
        self.loaded: Path | None = None
        self.begun = self.passed = 0
        self.checking: asyncio.Task[None] | None = None

    async def load(self, target: Path) -> None:
        """Load a folder of weights while no request is being served, forget cached prefixes, and see that it is so."""
        await self.admin.client.close()  # vLLM drops what was idle while the trainer computed
        await self.not_shared()
        paused = await self.ask("POST", "/pause?mode=wait") is not None
        self.loading = target
        try:
            await self.reload(target)
        except (ParagatorError, Lost):
            if paused:
                with contextlib.suppress(Lost):  # the first error tells more
                    await self.ask("POST", "/resume")
            raise
        if paused:
            await self.ask("POST", "/resume")
        await self.check()
        self.loading, self.loaded = None, target

    async def reload(self, target: Path) -> None:
        """Name the version, then load it: a restart in between forgets the name, and `check` finds out."""
        if await self.ask("POST", "/update_weight_version", {"new_version": str(target)}) is not None:
            self.label = str(target)
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(target)}}
        if await self.ask("POST", "/collective_rpc", body) is None:
            raise UsageError(
                f"engine.url = {self.url}: the server has no /collective_rpc; start vLLM with VLLM_SERVER_DEV_MODE=1"
            )
        forgotten = await self.ask("POST", "/reset_prefix_cache")
        if forgotten is not None and forgotten.get("success") is False:
            raise Lost("it serves others while its weights change; give the run its own")
        if self.label is None:
            warnings.warn(
                f"engine.url = {self.url}: this vLLM has no weight versions; mismatch_kl alone tells whether a step "
                "was sampled from the weights it was given",
                stacklevel=2,
            )

    async def not_shared(self) -> None:
        """Lost while the server has the weights of another run, although it had ours."""
        found = await self.reported()
        if self.label and found not in (None, UNSET) and Path(str(found)).parent != Path(self.label).parent:
            raise Lost(f"it reports weights {found!r}: another run publishes to it; give the run its own")

    async def check(self) -> None:
        """Lost when the server does not report the version that it was last given."""
        if self.label is not None and (found := await self.reported()) != self.label:
            raise Lost(
                f"it reports weights {found!r} where it was given {self.label!r}: restarted, or another run publishes to it"
            )

    async def reported(self) -> object:
        """What the server says that its weights are; asked twice, as vLLM drops idle connections."""
        if self.label is None:
            return None
        try:
            answer = await self.ask("GET", "/weight_info", limit_s=CHECK_TIMEOUT_S)
        except Lost:
            answer = await self.ask("GET", "/weight_info", limit_s=CHECK_TIMEOUT_S)
        return (answer or {}).get("weight_version")

    async def confirm(self) -> None:
        """A `check` that begins after this call; calls at the same time share one."""
        begun = self.begun
        while self.passed <= begun and self.label is not None:
            if self.checking is None or self.checking.done():
                self.checking = asyncio.ensure_future(self.next_check())
                self.checking.add_done_callback(lambda task: task.cancelled() or task.exception())  # looked at
            await asyncio.shield(self.checking)

    async def next_check(self) -> None:
        self.begun += 1
        number = self.begun
        await self.check()
        self.passed = number

    async def ask(
        self, method: str, path: str, body: Mapping[str, object] | None = None, *, limit_s: float | None = None
    ) -> dict[str, Any] | None:
        """One attempt: the answer's JSON object, {} for another body, None where there is no such route; else Lost."""
        answer = await self.sent(method, path, body, limit_s)
        if answer.status == 404:
            return None
        if answer.status == 200:
            return fields_of(answer.body)
        raise Lost(f"{path} failed (http {answer.status}: {self.admin.said(answer.body)})")

    async def sent(
        self, method: str, path: str, body: Mapping[str, object] | None = None, limit_s: float | None = None
    ) -> Answer:
        """One attempt; Lost where no answer comes."""
        data = b"" if body is None else json.dumps(body).encode()
        limit_s = ROUTE_TIMEOUT_S if limit_s is None else limit_s
        try:
            async with asyncio.timeout(limit_s):
                return await self.admin.client.send(method, path, self.admin.headers(), data)
        except TimeoutError:
            reason = f"no answer within {limit_s:.0f} s"
        except (Broken, Unreachable) as error:
            reason = str(error)
        raise Lost(f"{path} failed ({reason})")


class Adapter(Weights):
    """A LoRA adapter of one server, under a name that holds its version and is never used twice.

    Requests ask for it by that name and answers must bear it, see server.py, so there is nothing else to confirm: a server
    that was restarted does not know it. The weights that the server was started with stay as they are.
    """

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.base, self.mark = urlsplit(server.endpoint.url).path, secrets.token_hex(4)

    async def load(self, target: Path) -> None:
        """Load an adapter, have requests ask for it, and unload this run's older ones."""
        await self.admin.client.close()  # vLLM drops what was idle while the trainer computed
        self.loading, name = target, f"{target.name}-{self.mark}"
        listing = listed_in(await self.sent("GET", f"{self.base}/models", limit_s=CHECK_TIMEOUT_S))
        found = {row["id"]: Path(str(row.get("root"))) for row in listing}
        if name not in found:
            await self.add(name, target)
        for other, folder in found.items():
            if other != name and folder.parent == target.parent:
                await self.ask("POST", f"{self.base}/unload_lora_adapter", {"lora_name": other})
        self.server.adapter = name
        self.loading, self.loaded = None, target

    async def add(self, name: str, target: Path) -> None:
        """Load an adapter under a name; UsageError where the server was not started for it."""
        answer = await self.sent(
            "POST", f"{self.base}/load_lora_adapter", {"lora_name": name, "lora_path": str(target)}
        )
        if answer.status != 200:
            rank = rank_for(json.loads((target / "adapter_config.json").read_text())["r"])
            raise UsageError(
                f"engine.url = {self.url}: the server loads no adapter (http {answer.status}: "
                f"{self.admin.said(answer.body)}); start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora and "
                f"--max-lora-rank {rank}, where it can read {target}"
            )
        self.server.endpoint.good += 1  # the URL is right: a 404 from now on says that the adapter is gone


def rank_for(rank: int) -> int:
    """The least --max-lora-rank for adapters of a rank."""
    return next((most for most in RANKS if most >= rank), rank)


def fields_of(body: bytes) -> dict[str, Any]:
    """A JSON object; an empty one for anything else."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
