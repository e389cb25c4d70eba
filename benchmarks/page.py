"""The page at scale: 10,000 problems of 40 completions from `paragator view`, first paint and memory measured in the browser.

python benchmarks/page.py [--problems 10000] [--characters 400]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from random import Random
from typing import Any


def record(n: int, rng: Random, characters: int) -> dict[str, Any]:
    """A trace of 8 candidates and four rounds of 8 aggregations."""
    rounds = []
    for t in range(5):
        outputs = []
        for _ in range(8):
            right = rng.random() < 0.4 + 0.05 * t
            grade = {
                "verdict": "correct" if right else "incorrect",
                "answer": str(right * 42 or rng.randrange(9)),
                "reason": "",
            }
            text = " ".join(str(rng.randrange(10**6)) for _ in range(characters // 7))
            outputs.append({"text": text, "finish_reason": "stop", "token_ids": None, "num_tokens": characters // 3,
                            "thinking": None, "grade": {**grade, "value": None}})  # fmt: skip
        pool = list(range(8)) if t else []
        rounds.append([{"stage": "aggregate" if t else "generate", "prompt": f"problem {n}", "chat": True, "pool": pool,
                        "reductions": [], "num_prompt_tokens": 99, "outputs": outputs}])  # fmt: skip
    plan = {"candidates": 8, "rounds": 4, "pool_size": 8, "pools": 1, "aggregations": 8, "minimum": 1}
    return {"version": 1, "problem": {"id": f"p{n}", "text": f"problem {n}", "answer": "42"}, "plan": plan, "seed": 0,
            "failure": None, "extra": {"repeat": 0}, "rounds": rounds}  # fmt: skip


def get(url: str) -> Any:
    with urllib.request.urlopen(url) as answer:  # nosec B310: the server that this script started
        return json.load(answer)


def measure(url: str, problems: int) -> None:
    """Print when the list is on screen, how long a filter takes, and what the page's process holds."""
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium"),
            args=["--no-sandbox", "--enable-precise-memory-info"],
        )
        page = browser.new_page()
        start = time.perf_counter()
        page.goto(f"{url}#view=rollouts")
        page.locator("a.problem").first.wait_for()
        print(f"list of {problems:,} problems on screen after {time.perf_counter() - start:.2f} s")
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
        print(f"first contentful paint after {paint / 1000:.2f} s")
        before = page.locator("[role=status]").last.inner_text()
        start = time.perf_counter()
        page.get_by_label("Show").select_option("lost")
        expect(page.locator("[role=status]").last).not_to_have_text(before)  # from outside: the page forbids eval
        print(f"filtered after {time.perf_counter() - start:.2f} s")
        start = time.perf_counter()
        page.locator("a.problem").first.click()
        page.locator(".card").first.wait_for()
        print(f"a problem with its 40 cards after {time.perf_counter() - start:.2f} s")
        heap = page.evaluate("performance.memory.usedJSHeapSize") / 2**20
        pids = [one["id"] for one in browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
                if one["type"] == "renderer"]  # fmt: skip
        resident = max(
            int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") for pid in pids
        )
        print(f"JavaScript heap {heap:.0f} MB, the page's process {resident / 2**20:.0f} MB resident")
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--characters", type=int, default=400, help="of a completion")
    asked = parser.parse_args()
    home, rng = Path(tempfile.mkdtemp(prefix="page-")), Random(0)
    run = home / "runs" / "large"
    run.mkdir(parents=True)
    with (run / "eval.jsonl").open("w") as file:
        for n in range(asked.problems):
            file.write(json.dumps(record(n, rng, asked.characters)) + "\n")
    print(f"eval.jsonl: {(run / 'eval.jsonl').stat().st_size / 2**20:.0f} MB")
    environment = {**os.environ, "XDG_CACHE_HOME": str(home)}
    command = [sys.executable, "-m", "paragator", "view", str(home / "runs"), "--port", "0"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout
        url = process.stdout.readline().split()[0]
        while (get(f"{url}/api/runs") or [{}])[0].get("files", {}).get("eval", 0) < asked.problems:
            time.sleep(0.2)
        print(f"indexed after {time.perf_counter() - start:.1f} s, once")
        measure(url, asked.problems)
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
