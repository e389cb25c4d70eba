"""Fake OpenAI-compatible servers: one that counts, one that fails on purpose. Standard library only.

In a test, in a thread of its own:      with running(Server(faults=0.3)) as server: ... server.url ... server.calls
As a process (prints its base URL):     python tests/servers.py --port 0 --count-file calls.txt --latency 0.01

An answer is a pure function of (prompt text, seed, index of the choice), so a client's results can be compared over runs.
A fault is a pure function of (server seed, request, how often it came before), so neither time nor order decides it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

FAULTS = ("429", "429-after", "500", "503", "reset", "stall", "truncated", "garbage")
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}

Reply = Callable[[str, int, int], str | dict[str, Any]]
"""(prompt text, seed, index) -> a text, or fields of the choice (text, finish_reason, reasoning_content)."""


def boxed_digit(prompt: str, seed: int, index: int) -> str:
    """A short solution that depends on all three."""
    rng = random.Random(f"{prompt}:{seed}:{index}")
    return f"Thinking of {rng.getrandbits(32)}, the answer is \\boxed{{{rng.randrange(10)}}}."


@dataclass(slots=True)
class Call:
    """One request as it came, and what became of it: ok, 400, ..., a fault's name, or cancelled."""

    path: str
    body: Any
    headers: dict[str, str]
    outcome: str = "pending"

    @property
    def fingerprint(self) -> str:
        text = json.dumps([self.path, self.body], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Server:
    """The settings of a server, and what it saw.

    latency_s   from a completion request's end to its answer
    faults      share of completion requests that fail in one of the ways of `kinds`
    script      outcomes of the first completion requests, in order of arrival: "ok", a fault, (status, error text), or
                "held", which is answered as "ok" after `release`
    max_n       choices that it gives at most; `refuse_n` answers 400 to a larger n instead
    context     a prompt of more words is refused with 400
    max_model_len  listed; prompt and max_tokens together may have so many words, else 400
    tokenize    POST /tokenize counts words (`counted` of them so far), else 404
    vocabulary  how many ids of tokens it answers with
    key         requests without this bearer token get 401
    keep        remember calls in `calls` (off for large runs; `outcomes` and `seen` are kept anyhow)
    count_file  gets a line "fingerprint path" a completed request, once its answer is written
    """

    model: str = "fake"
    others: tuple[str, ...] = ()  # models that it lists too
    reply: Reply = boxed_digit
    latency_s: float = 0.0
    faults: float = 0.0
    kinds: Sequence[str] = FAULTS
    seed: int = 0
    retry_after: str = "0.05"
    script: list[str | tuple[int, str]] = field(default_factory=list)
    max_n: int | None = None
    refuse_n: bool = False
    context: int | None = None
    max_model_len: int | None = None
    tokenize: bool = False
    counted: int = 0
    vocabulary: int = 1000
    key: str | None = None
    keep: bool = True
    count_file: str | None = None
    host: str = "127.0.0.1"
    port: int = 0
    calls: list[Call] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    most_in_flight: int = 0
    held: list[Callable[[], object]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/v1"

    async def start(self) -> asyncio.Server:
        """Listen; `port` becomes the real one."""
        self.counts = None
        if self.count_file:
            self.counts = os.open(self.count_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(lambda: Connection(self), self.host, self.port, backlog=16_384)
        self.port = listening.sockets[0].getsockname()[1]
        return listening

    def settled(self) -> Server:
        """From another thread: wait until nothing is in flight, so that the counts are whole."""
        end = time.monotonic() + 120
        while self.in_flight and time.monotonic() < end:
            time.sleep(0.005)
        return self

    def release(self) -> None:
        """From another thread: answer what is held."""
        while self.held:
            self.held.pop()()

    def choose(self, call: Call) -> str | tuple[int, str]:
        """What this request gets: "ok", a fault's name, or a status with an error text."""
        if self.key is not None and call.headers.get("authorization") != f"Bearer {self.key}":
            return 401, f"Incorrect API key provided: {call.headers.get('authorization')}"
        if call.path == "/v1/models":
            return "ok"
        if call.path == "/tokenize" and self.tokenize:
            self.counted += 1
            return "ok"
        if call.path not in ("/v1/completions", "/v1/chat/completions"):
            return 404, f"no such path: {call.path}"
        if self.script:
            return self.script.pop(0)
        if self.context is not None and len(prompt_of(call.body).split()) > self.context:
            return 400, f"This model's maximum context length is {self.context} tokens."
        words = len(prompt_of(call.body).split())
        if self.max_model_len is not None and words + call.body["max_tokens"] > self.max_model_len:
            return 400, f"This model's maximum context length is {self.max_model_len} tokens."
        if self.refuse_n and self.max_n is not None and call.body.get("n", 1) > self.max_n:
            return 400, f"n must be at most {self.max_n}"
        if not self.faults:
            return "ok"
        fingerprint = call.fingerprint
        rng = random.Random(f"{self.seed}:{fingerprint}:{self.seen[fingerprint]}")
        self.seen[fingerprint] += 1
        return rng.choice(self.kinds) if rng.random() < self.faults else "ok"

    def answer(self, call: Call) -> dict[str, Any]:
        """The body of a good answer."""
        if call.path == "/v1/models":
            return {
                "object": "list",
                "data": [
                    {"id": name, "object": "model", "max_model_len": self.max_model_len}
                    for name in (self.model, *self.others)
                ],
            }
        if call.path == "/tokenize":
            return {"count": len(prompt_of(call.body).split()), "max_model_len": self.max_model_len}
        body, chat = call.body, call.path.endswith("chat/completions")
        prompt = prompt_of(body)
        count = min(body.get("n") or 1, self.max_n or 1_000_000)
        choices = [self.choice(body, prompt, index, chat) for index in range(count)]
        used = {"prompt_tokens": len(prompt.split()), "completion_tokens": sum(c.pop("words") for c in choices)}
        return {
            "id": "fake",
            "object": "chat.completion" if chat else "text_completion",
            "created": 0,
            "model": self.model,
            "choices": choices,
            "usage": {**used, "total_tokens": sum(used.values())},
        }

    def choice(self, body: Any, prompt: str, index: int, chat: bool) -> dict[str, Any]:
        made = self.reply(prompt, body.get("seed") or 0, index)
        fields = {"text": made} if isinstance(made, str) else dict(made)
        text, finish = fields.pop("text", None), fields.pop("finish_reason", "stop")
        words = (text or "").split()
        limit = body.get("max_tokens") or body.get("max_completion_tokens")
        if limit and len(words) > limit:
            words, finish = words[:limit], "length"
            text = " ".join(words)
        out: dict[str, Any] = {"index": index, "finish_reason": finish, "logprobs": None, "words": len(words)}
        if chat:
            return {**out, "message": {"role": "assistant", "content": text, **fields}}
        if body.get("return_token_ids"):  # as vLLM does, with a token a word
            rng = random.Random(text)
            out["token_ids"] = [rng.randrange(self.vocabulary) for _ in words]
            out["prompt_token_ids"] = body["prompt"] if isinstance(body["prompt"], list) else None
        if body.get("logprobs") is not None:
            rng = random.Random(text)
            out["logprobs"] = {"tokens": words, "token_logprobs": [-rng.random() for _ in words]}
        return {**out, "text": text, **fields}

    def done(self, call: Call, outcome: str) -> None:
        """Note what became of a call."""
        call.outcome = outcome
        self.outcomes[outcome] += 1
        self.in_flight -= 1
        if outcome == "ok" and self.counts is not None and call.path.endswith("completions"):
            os.write(self.counts, f"{call.fingerprint} {call.path}\n".encode())


@dataclass
class VllmServer(Server):
    """With vLLM's own routes for changing weights, which it notes in `told` and obeys as far as a label goes.

    routes    those it has; an older vLLM has fewer
    refused   what /collective_rpc answers instead of obeying: (status, error text)
    deaf      ignores /update_weight_version, as if someone else came after
    paused    holds nothing back, only says whether it was resumed
    die_at    completion requests until it is gone: it drops this one, all that follow, and takes no connection any more
    max_lora_rank  of adapters that may be loaded while it runs; None where it was not started for that
    adapters  the loaded ones by name, with their folders
    """

    routes: Sequence[str] = (
        "/pause?mode=wait", "/update_weight_version", "/collective_rpc", "/reset_prefix_cache", "/weight_info", "/resume",
    )  # fmt: skip
    refused: tuple[int, str] | None = None
    deaf: bool = False
    paused: bool = False
    die_at: int | None = None
    max_lora_rank: int | None = None
    adapters: dict[str, str] = field(default_factory=dict)
    asked: int = 0
    weights: str | None = None
    label: str = "default"
    told: list[str] = field(default_factory=list)

    async def start(self) -> asyncio.Server:
        self.listening = await super().start()
        return self.listening

    def choose(self, call: Call) -> str | tuple[int, str]:
        if self.die_at is not None and self.asked >= self.die_at:
            return "reset"
        if call.path in self.routes:
            self.told.append(call.path)
            return self.refused if self.refused and call.path == "/collective_rpc" else "ok"
        if call.path.endswith("/completions"):
            self.asked += 1
            if self.asked == self.die_at:
                self.stop_listening()
                return "reset"
        if self.max_lora_rank is not None and (refused := self.refusal(call)):
            return refused
        return "ok" if self.is_lora(call) else super().choose(call)

    def is_lora(self, call: Call) -> bool:
        return self.max_lora_rank is not None and call.path.endswith("load_lora_adapter")

    def refusal(self, call: Call) -> tuple[int, str] | None:
        """vLLM's own checks of adapters, in its words."""
        if call.path.endswith("/completions") and call.body["model"] not in (self.model, *self.adapters):
            return 404, f"The model `{call.body['model']}` does not exist."
        if not self.is_lora(call):
            return None
        name = call.body["lora_name"]
        if call.path == "/v1/unload_lora_adapter":
            return None if name in self.adapters else (404, f"The lora adapter '{name}' cannot be found.")
        if name in (self.model, *self.adapters):
            return 400, f"The lora adapter '{name}' has already been loaded."
        settings = Path(call.body["lora_path"]) / "adapter_config.json"
        if not settings.is_file():
            return 404, f"Loading lora {name} failed: No adapter found for {call.body['lora_path']}"
        if (rank := json.loads(settings.read_text())["r"]) > self.max_lora_rank:
            return 500, f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}."
        return None

    def stop_listening(self) -> None:
        """Close once the connections just accepted are served: asyncio (3.11) forgets those, open and unread."""
        loop = asyncio.get_running_loop()
        for socket in self.listening.sockets:
            loop.remove_reader(socket.fileno())
        loop.call_soon(loop.call_soon, self.listening.close)

    def answer(self, call: Call) -> dict[str, Any]:
        if self.is_lora(call):
            return self.change(**call.body, load=not call.path.endswith("unload_lora_adapter"))
        if call.path not in self.routes:
            found = super().answer(call)
            for name, folder in self.adapters.items() if call.path == "/v1/models" else ():
                found["data"].append({"id": name, "root": folder, "parent": self.model})
            named = call.body and call.body.get("model")
            return {**found, "model": named} if named in self.adapters else found
        if call.path in ("/pause?mode=wait", "/resume"):
            self.paused = call.path != "/resume"
        elif call.path == "/collective_rpc":
            self.load(call.body["kwargs"]["weights_path"])
        elif call.path == "/reset_prefix_cache":
            return {"success": not self.in_flight > 1}
        elif call.path == "/update_weight_version":
            self.label = self.label if self.deaf else call.body["new_version"]
        return {"weight_version": self.label}

    def change(self, lora_name: str, lora_path: str = "", load: bool = True) -> dict[str, Any]:
        """Load or unload an adapter."""
        if load:
            self.adapters[lora_name] = lora_path
        else:
            del self.adapters[lora_name]
        return {}

    def load(self, folder: str) -> None:
        """Take the weights of a folder."""
        self.weights = folder


def prompt_of(body: Any) -> str:
    """The prompt as one text; token ids are written out as words."""
    if "messages" in body:
        return "\n".join(str(message["content"]) for message in body["messages"])
    prompt = body["prompt"]
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))


class Connection(asyncio.Protocol):
    """One client connection, one request at a time."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.buffer = bytearray()
        self.call: Call | None = None
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        first, *lines = self.buffer[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        stop = end + 4 + int(headers.get("content-length", 0))
        if len(self.buffer) < stop:
            return
        body = json.loads(self.buffer[end + 4 : stop]) if stop > end + 4 else None
        del self.buffer[:stop]
        self.begin(Call(first.split(" ")[1], body, headers))

    def begin(self, call: Call) -> None:
        server, self.call = self.server, call
        server.in_flight += 1
        server.most_in_flight = max(server.most_in_flight, server.in_flight)
        if server.keep:
            server.calls.append(call)
        outcome = server.choose(call)
        if outcome == "stall":
            return  # until the client gives up
        loop = asyncio.get_running_loop()
        if outcome == "held":
            server.held.append(partial(loop.call_soon_threadsafe, self.finish, call, "ok"))
            return
        latency_s = 0.0 if call.path == "/v1/models" else server.latency_s
        self.timer = loop.call_later(latency_s, self.finish, call, outcome)

    def finish(self, call: Call, outcome: str | tuple[int, str]) -> None:
        self.call = None
        if outcome == "ok":
            self.send(200, self.server.answer(call))
        elif outcome == "reset":
            self.transport.abort()
        elif outcome == "truncated":
            self.send(200, self.server.answer(call), cut=True)
        elif outcome == "garbage":
            self.send(200, b'{"choices": [{"text": "I am not')
        else:
            status, text = outcome if isinstance(outcome, tuple) else (int(outcome[:3]), f"fault {outcome}")
            after = self.server.retry_after if outcome == "429-after" else None
            self.send(status, {"error": {"message": text, "type": "fake"}}, after=after)
        self.server.done(call, outcome if isinstance(outcome, str) else str(outcome[0]))

    def send(self, status: int, body: Any, *, cut: bool = False, after: str | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"HTTP/1.1 {status} {REASONS.get(status, 'Fault')}\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(data)}\r\n" + (f"retry-after: {after}\r\n" if after else "")
        self.transport.write(head.encode() + b"\r\n" + (data[: len(data) // 2] if cut else data))
        if cut:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self.timer:
            self.timer.cancel()
        if self.call:
            self.server.done(self.call, "cancelled")


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """`server` in a thread of its own, until the block ends."""
    loop = asyncio.new_event_loop()
    listening = loop.run_until_complete(server.start())
    thread = threading.Thread(target=loop.run_forever, name="fake-server")
    thread.start()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        listening.close()
        loop.close()


def main() -> None:
    """Serve until killed; the first line of output is the base URL."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--count-file", help="gets a line for each completed request")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that fail")
    parser.add_argument("--seed", type=int, default=0, help="decides which fail")
    parser.add_argument("--max-n", type=int, help="most choices a request")
    parser.add_argument("--key", help="the only bearer token that is let in")
    parser.add_argument("--vllm", action="store_true", help="with vLLM's routes for changing weights")
    parser.add_argument("--vocabulary", type=int, default=1000, help="how many ids of tokens it answers with")
    args = parser.parse_args()
    server = (VllmServer if args.vllm else Server)(
        port=args.port, count_file=args.count_file, latency_s=args.latency, faults=args.faults, seed=args.seed,
        max_n=args.max_n, key=args.key, keep=False, vocabulary=args.vocabulary,
    )  # fmt: skip

    async def serve() -> None:
        listening = await server.start()
        print(server.url, flush=True)
        await listening.serve_forever()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
