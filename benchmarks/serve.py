"""`paragator serve` under load: many clients at once over an upstream that fails often.

    python benchmarks/serve.py                  1,000 clients, 30% faults
    python benchmarks/serve.py --clients 100

Upstream (tests/servers.py), server and clients are processes of their own. Prints one JSON object: how requests ended (an
answer, or a typed error by its code), seconds, and the server's largest memory. Exit code 1 where a request ended otherwise,
memory reached 1 GB, or the server's count of tokens is not that of the answers' usage.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import psutil

ROOT = Path(__file__).parents[1]
MODEL = "fake@aggregate_vote:n=4,rounds=1"
MOST_BYTES = 2**30


def started(command: Sequence[str]) -> tuple[subprocess.Popen[str], str]:
    """A process, and the base URL in its first line."""
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    words = process.stdout.readline().replace(";", " ").split()
    return process, next(word for word in words if word.startswith("http://"))


async def ask(session: aiohttp.ClientSession, url: str, number: int) -> tuple[str, int]:
    """How one request ended, and the tokens that its answer reports."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"What is {number} + 1?"}]}
    try:
        async with session.post(f"{url}/chat/completions", json=body) as answer:
            found: dict[str, Any] = await answer.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        return f"NO ANSWER: {type(error).__name__}", 0
    if answer.status == 200 and found["choices"][0]["message"]["content"]:
        return "answer", found["usage"]["total_tokens"]
    error = found.get("error", {})
    typed = bool(error.get("type") and error.get("code") and error.get("message"))
    return (f"{answer.status} {error['code']}" if typed else f"UNTYPED: {answer.status}"), 0


async def load(url: str, clients: int) -> tuple[Counter[str], int, float]:
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        asked = [ask(session, url, number) for number in range(clients)]
        ended = await asyncio.gather(*asked)
        async with session.get(url.removesuffix("/v1") + "/metrics") as answer:
            lines = (await answer.text()).splitlines()
    counted = next(float(line.split()[1]) for line in lines if line.startswith("paragator_tokens_total "))
    return Counter(how for how, _ in ended), sum(tokens for _, tokens in ended), counted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--faults", type=float, default=0.3)
    parser.add_argument("--at-once", type=int, help="the server's max_requests; as many as clients by default")
    args = parser.parse_args()
    upstream, upstream_url = started(
        [str(ROOT / "tests/servers.py"), "--faults", str(args.faults), "--latency", "0.05"]
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "serve.toml"
        settings.write_text(f"port = 0\nmax_requests = {args.at_once or args.clients}\n")
        engine = ["--url", upstream_url, "--engine.request_timeout_s", "1", "--engine.max_in_flight", "256"]
        server, url = started(["-m", "paragator", "serve", str(settings), *engine])
    try:
        begun = time.perf_counter()
        ended, tokens, counted = asyncio.run(load(url, args.clients))
        seconds = time.perf_counter() - begun
        peak = peak_bytes(server.pid)
    finally:
        for process in (server, upstream):
            process.terminate()
            process.wait(30)
    whole = set(ended) != {"answer"} or tokens == counted  # rounds of failed requests are counted and not reported
    ok = not any(how.startswith(("NO", "UNTYPED")) for how in ended) and peak < MOST_BYTES and whole
    found = {"clients": args.clients, "faults": args.faults, "ended": dict(ended), "seconds": round(seconds, 1)}
    print(json.dumps(found | {"peak_mb": round(peak / 2**20), "tokens": tokens, "counted": counted, "ok": ok}))
    return 0 if ok else 1


def peak_bytes(pid: int) -> int:
    """The largest resident memory of a process so far, where the system tells; else the present one."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    memory: int = psutil.Process(pid).memory_info().rss
    return memory


if __name__ == "__main__":
    sys.exit(main())
