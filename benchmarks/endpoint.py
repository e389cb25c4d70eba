"""What the endpoint engine does under faults and under load, on the fake servers of tests/servers.py.

python benchmarks/endpoint.py faults     2,000 problems, 30% of the answers are faults: all end, none is asked twice
python benchmarks/endpoint.py flight     10,000 requests in flight: memory, event-loop lag, processor time
python benchmarks/endpoint.py flight --in-flight 64 --latency 0.01     the same at a usual number in flight
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from paragator.core.types import Failure, Group, Prompt  # noqa: E402
from paragator.engines.http.openai import Limits, OpenAI  # noqa: E402
from servers import Server, running  # noqa: E402

LAG_EVERY_S = 0.01


def faults(count: int) -> dict[str, Any]:
    """Ask `count` problems of a server that fails three times in ten."""
    with running(Server(faults=0.3, latency_s=0.01, keep=False)) as server:
        engine = OpenAI(server.url, key="", limits=Limits(request_timeout_s=0.5, backoff_s=0.05))
        began = time.perf_counter()
        groups, _ = asyncio.run(ask(engine, count))
        wall = time.perf_counter() - began
    outputs = [output for group in groups for output in group.outputs]
    failures = Counter(output.reason.split(":")[0] for output in outputs if isinstance(output, Failure))
    faulted = sum(number for name, number in server.outcomes.items() if name != "ok")
    ideal = count + faulted  # an answer a problem, and each fault costs the call that met it
    calls = engine.usage.calls
    return {
        "problems": count,
        "completed": len(outputs) - sum(failures.values()),
        "failed": dict(failures),
        "calls": calls,
        "ideal": ideal,
        "calls over ideal": round(calls / ideal - 1, 4),
        "server": dict(server.outcomes),
        "wall_s": round(wall, 1),
    }


def flight(count: int, in_flight: int, latency_s: float) -> dict[str, Any]:
    """Send `count` requests, so many in flight, to a server in another process that answers after `latency_s`."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    command = [sys.executable, str(ROOT / "tests/servers.py"), "--latency", str(latency_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            engine = OpenAI(url, key="", limits=Limits(max_in_flight=in_flight))
            before, began, cpu = (
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
                time.perf_counter(),
                time.process_time(),
            )
            groups, lags = asyncio.run(ask(engine, count))
            cpu, wall = time.process_time() - cpu, time.perf_counter() - began
        finally:
            process.kill()
    lags.sort()
    return {
        "requests": count,
        "completed": sum(len(group.completions) for group in groups),
        "most in flight": engine.endpoint.gate.most_inside,
        "retries": engine.usage.retries,
        "cpu_ms a request": round(1000 * cpu / count, 3),
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "rss_mb before": before // 1024,
        "lag_ms p50, p99, max": [round(1000 * lags[int(q * (len(lags) - 1))], 1) for q in (0.5, 0.99, 1)],
        "wall_s": round(wall, 1),
    }


async def ask(engine: OpenAI, count: int) -> tuple[list[Group], list[float]]:
    """One sample of each of `count` prompts, all at once; how late the event loop was meanwhile, in seconds."""
    lags: list[float] = []
    watching = asyncio.create_task(watch(lags))
    prompts = (Prompt(f"Problem {index}: what is {index} + 1?", chat=True) for index in range(count))
    groups = await asyncio.gather(*(engine(p, 1, stage="generate", seed=i) for i, p in enumerate(prompts)))
    watching.cancel()
    await engine.close()
    return groups, lags


async def watch(lags: list[float]) -> None:
    while True:
        before = time.perf_counter()
        await asyncio.sleep(LAG_EVERY_S)
        lags.append(time.perf_counter() - before - LAG_EVERY_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("faults", "flight"))
    parser.add_argument("--count", type=int, help="problems or requests")
    parser.add_argument("--in-flight", type=int, help="flight: requests at a time; all if not set")
    parser.add_argument("--latency", type=float, default=30.0, help="flight: seconds to each answer")
    args = parser.parse_args()
    count = args.count or (2000 if args.what == "faults" else 10_000)
    found = faults(count) if args.what == "faults" else flight(count, args.in_flight or count, args.latency)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
