"""kill -9 at random and aimed moments of a tiny training: `python scripts/kills.py [KILLS] [--ranks 2] [--seed N]`.

A run is killed a few times, resumed each time, and must end in the bytes of a run that nobody disturbed: weights,
optimiser state, traces, metrics (seconds left out), evaluations, the exported model. After each kill every checkpoint
must be whole, and no more steps lost than lie between two of them. The cases train adapters, with a KL, under a cosine
schedule, with two updates a step, and the embedded model; all evaluate while training. Half of the kills come at a
random instant; the others strike in the process itself where most is at stake: around an optimiser step, between the
files of a checkpoint, before and after the rename that makes it visible, while old ones are removed, in an evaluation,
in the middle of a line.

With `--ranks 2` each attempt is two processes of one run, either of which is killed; the other has to end by itself. Sums
in another order round otherwise, so that weights there must agree within 1e-6 (relative L2), in every checkpoint that is kept.

Attempts are forks of one process that has imported everything, so that a kill takes a second and not ten. It needs
POSIX. Prints a table and exits with 1 where an end differs; that run's folder is kept and named.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from safetensors.torch import load_file

from paragator import records
from paragator.cli.main import run
from paragator.core.errors import ParagatorError, RunError
from paragator.report import page
from paragator.runs import folder
from paragator.stats.curves import read_metrics
from paragator.tasks.demonstrations import LARGEST, WORDS
from paragator.training import checkpoint
from paragator.training.warmup import WarmupConfig, build_model, build_tokenizer, export

STEPS, INTERVAL, MOST_KILLS = 6, 2, 5
APART, LIMIT_S = 1e-6, 60.0
"""How far weights of several ranks may be apart, and within what time all ranks must end after one was killed."""
RANKED = ("full weights", "lora and kl", "two updates")
"""Cases of several ranks."""
CASES = {
    "full weights": [],
    "lora": ["--model.lora_rank=2"],
    "kl": ["--train.kl=0.05"],
    "lora and kl": ["--model.lora_rank=2", "--train.kl=0.05"],
    "schedule": ["--optimizer.schedule=cosine", "--optimizer.warmup_steps=2"],
    "embedded model": [
        "--model.path=embedded",
        "--task.name=countdown",
        "--train.problems=2",
        "--generate.max_tokens=24",
        "--aggregate.max_tokens=24",
        "--train.truncated=wrong",
        "--optimizer.lr=0.0001",
    ],
    "two updates": ["--train.updates=2", "--optimizer.weight_decay=0.1", "--optimizer.schedule=linear"],
}
AIMS = (
    "torch.optim.adamw:AdamW.step",
    "paragator.training.checkpoint:save_file",
    "paragator.training.checkpoint:os.fsync",
    "paragator.training.checkpoint:fingerprint",
    "paragator.training.loop:evaluated",
    "paragator.runs.evaluate:grade_trace",
    "pathlib:Path.rename",
    "shutil:rmtree",
    "os:replace",
    "paragator.records:append_json_lines",
    "paragator.training.policy:Policy.export",
    "paragator.training.policy:Policy.restore",
)
"""Functions before or after a call of which the process kills itself; and "torn", in the middle of a written line."""
IMPORTED_LATE = (
    "paragator.engines.local.transformers",
    "paragator.runs.train",
    "paragator.training.loop",
    "paragator.training.sharded",
    "peft",
    "transformers.models.llama.modeling_llama",
)
REWARD = """import zlib
def score(problem, texts):
    return [float(zlib.crc32((problem.id + text).encode()) % 2) for text in texts]
"""


def prepared(home: Path) -> list[str]:
    """A model, problems and a reward in `home`; the words that train on them."""
    words = [*WORDS, *map(str, range(LARGEST + 1))]
    model = build_model(WarmupConfig(output="", width=32, layers=1, context=160), len(words))
    export(model, build_tokenizer(words), home / "model")
    settings = json.loads((home / "model" / "generation_config.json").read_text())
    settings["eos_token_id"] = list(range(2, 60))  # one token in three ends a completion, so that few are cut off
    (home / "model" / "generation_config.json").write_text(json.dumps(settings))
    for name, first in (("train", 0), ("test", 100)):
        rows = [{"id": f"{name}{i}", "problem": f"{first + i} 2 -> {i}", "answer": i} for i in range(8)]
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "kills_reward.py").write_text(REWARD)
    values = {
        "model.path": home / "model", "task.name": "jsonl", "task.path": home / "train.jsonl",
        "task.held_out_path": home / "test.jsonl", "task.reward": "kills_reward:score", "method.k": 2,
        "rollout.candidates": 4, "rollout.pool_size": 2, "generate.max_tokens": 8, "aggregate.max_tokens": 8,
        "train.steps": STEPS, "train.problems": 4, "train.precision": "float32", "train.checkpoint_every": INTERVAL,
        "train.threads": 1, "train.eval_every": 3, "train.keep_last": 1, "optimizer.lr": 0.01,
        "optimizer.warmup_steps": 0, "eval.problems": 3, "eval.rounds": 1,
    }  # fmt: skip
    return ["train", *(f"--{key}={value}" for key, value in values.items())]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def aim(where: str, count: int, after: bool) -> None:
    """Have this process die before or after the `count`-th call of a function."""
    calls = 0
    if where == "torn":
        real_write = records.append_json_lines

        def torn(path: Path, rows: Any) -> None:
            nonlocal calls
            calls += 1
            rows = list(rows)
            if calls == count and rows:
                line = json.dumps(rows[-1]).encode()
                real_write(path, rows[:-1])
                with path.open("ab") as file:
                    file.write(line[: len(line) // 2])
                die()
            real_write(path, rows)

        records.append_json_lines = torn
        return
    module, _, name = where.partition(":")
    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    real = getattr(owner, last)

    def deadly(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and not after:
            die()
        found = real(*args, **more)
        if calls == count:
            die()
        return found

    setattr(owner, last, deadly)


def nothing() -> None:
    pass


def attempt(
    words: list[str], log: Path, ranks: int = 1, victim: int = 0, before: Callable[[], None] = nothing
) -> list[int]:
    """The process ids of a training that has begun in forks, in one of which `before` was called first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        if process := os.fork():
            processes.append(process)
            continue
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if ranks > 1:
            found = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": ranks,
                "LOCAL_WORLD_SIZE": ranks,
                "MASTER_PORT": port,
            }
            os.environ |= {name: str(value) for name, value in found.items()} | {"MASTER_ADDR": "127.0.0.1"}
        code = 1
        try:
            if rank == victim:
                before()
            code = run(words)
        except ParagatorError as error:
            print(f"error: {error}", file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(code)
    return processes


def ended(processes: Sequence[int]) -> list[int]:
    """The exit codes of forks, once they have ended; -9 where one was killed. Kills what is left after LIMIT_S."""
    codes: dict[int, int] = {}
    failed_at = float("inf")
    while len(codes) < len(processes):
        for process in processes:
            if process not in codes and (found := os.waitpid(process, os.WNOHANG))[0]:
                codes[process] = os.waitstatus_to_exitcode(found[1])
                if codes[process]:
                    failed_at = min(failed_at, time.monotonic())
        if time.monotonic() - failed_at > LIMIT_S:
            for process in set(processes) - codes.keys():
                os.kill(process, signal.SIGKILL)
            sys.exit(f"processes {sorted(set(processes) - codes.keys())} did not end within {LIMIT_S:g} s of another")
        time.sleep(0.01)
    return [codes[process] for process in processes]


def harmed(run_dir: Path) -> list[str]:
    """What a kill must never leave: a checkpoint that is not whole, or more steps after the last one than an interval."""
    found = checkpoint.steps(run_dir / "checkpoints")
    for path in found:
        try:
            checkpoint.read(path)
        except RunError as error:
            return [str(error)]
    taken = max((row["step"] for row in read_metrics(run_dir)), default=0)
    last = checkpoint.number_of(found[-1]) if found else 0
    return [f"{taken - last} steps lost"] if taken - last > INTERVAL else []


def left_by(run_dir: Path) -> dict[str, Any]:
    """What two runs that did the same have in common."""
    files = [
        path for name in ("checkpoints", "model", "evals") for path in (run_dir / name).rglob("*") if path.is_file()
    ]
    found: dict[str, Any] = {str(path.relative_to(run_dir)): path.read_bytes() for path in files}
    found["traces"] = (run_dir / "traces.jsonl").read_bytes()
    rows = records.read_json_lines(run_dir / "metrics.jsonl")
    found["metrics"] = [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]
    return found | {name: (run_dir / f"{name}.jsonl").read_bytes() for name in ("eval_before", "eval_after", "evals")}


def apart(first: Path, second: Path) -> list[str]:
    """The files of weights in which two runs are further apart than rounding, or which only one of them has."""
    names = [{str(p.relative_to(run_dir)) for p in run_dir.rglob("*.safetensors")} for run_dir in (first, second)]
    found = sorted(names[0] ^ names[1])
    for name in sorted(names[0] & names[1]):
        a, b = load_file(first / name), load_file(second / name)
        difference = sum(float((a[key].double() - b[key].double()).square().sum()) for key in a)
        size = sum(float(a[key].double().square().sum()) for key in a)
        if "optimizer" not in name and difference**0.5 > APART * size**0.5:
            found.append(f"{name} by {(difference / size) ** 0.5:.1e}")
    return found


class Case:
    """One configuration: what it leaves undisturbed, how long that takes, and runs of it that are killed."""

    def __init__(self, name: str, words: list[str], home: Path, rng: Random, ranks: int) -> None:
        self.name, self.words, self.home, self.rng, self.ranks = name, [*words, f"--runs={home}"], home, rng, ranks
        self.identical = 0
        start = time.perf_counter()
        if any(codes := ended(attempt([*self.words, "--name=whole"], home / "log", ranks))):
            sys.exit(f"{name}: an undisturbed run ends with {codes}; see {home / 'log'}")
        self.seconds = time.perf_counter() - start
        self.whole = left_by(home / "whole")
        if not any(row["updated"] for row in self.whole["metrics"]):
            sys.exit(f"{name}: no step changed a weight, so that nothing would show")

    def killed(self, most: int) -> tuple[Counter[str], list[str]]:
        """Kills by moment in one run, `most` of them at most, and what differs at its end."""
        run_dir, kills, log = self.home / "killed", Counter[str](), self.home / "log"
        shutil.rmtree(run_dir, ignore_errors=True)
        for _ in range(self.rng.randint(1, most)):
            words, victim = self.next_words(run_dir), self.rng.randrange(self.ranks)
            if self.rng.random() < 0.5:
                moment, processes = "random", attempt(words, log, self.ranks)
                time.sleep(self.rng.uniform(0.02, self.seconds))
                os.kill(processes[victim], signal.SIGKILL)
            else:
                moment, count, after = self.rng.choice((*AIMS, "torn")), self.rng.randint(1, 6), self.rng.random() < 0.5
                moment = AIMS[0] if victim else moment  # others do not happen there
                processes = attempt(words, log, self.ranks, victim, lambda: aim(moment, count, after))  # noqa: B023 (a fork)
            codes = ended(processes)
            hit = codes[victim] == -signal.SIGKILL  # else it had ended by itself
            kills[f"rank {victim}, {moment}" if self.ranks > 1 else moment] += hit
            if any(code not in (0, -signal.SIGKILL, hit and self.ranks > 1) for code in codes):
                return kills, [f"an attempt ended with {codes}"]
            if harm := harmed(run_dir):
                return kills, harm
        if any(codes := ended(attempt(self.next_words(run_dir), log, self.ranks))):
            return kills, [f"the last attempt ended with {codes}"]
        found = left_by(run_dir)
        differing = [k for k in sorted(found.keys() | self.whole.keys()) if found.get(k) != self.whole.get(k)]
        self.identical += not differing
        return kills, differing if self.ranks == 1 else apart(self.home / "whole", run_dir)

    def next_words(self, run_dir: Path) -> list[str]:
        return [*self.words, "--name=killed", *(["--resume"] if folder.is_used(run_dir) else [])]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kills", nargs="?", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name in IMPORTED_LATE:
        importlib.import_module(name)
    page.write_report = lambda run_dir: run_dir / "report.html"  # drawn from what is compared anyway
    home = Path(tempfile.mkdtemp(prefix="kills-"))
    os.chdir(home)
    words, rng = prepared(home), Random(options.seed)
    cases = []
    for name, more in CASES.items() if options.ranks == 1 else [(name, CASES[name]) for name in RANKED]:
        (home / name.replace(" ", "-")).mkdir()
        cases.append(Case(name, [*words, *more], home / name.replace(" ", "-"), rng, options.ranks))
    by_case, by_moment, runs = Counter[str](), Counter[str](), Counter[str]()
    while by_case.total() < options.kills:
        case = cases[runs.total() % len(cases)]
        kills, differing = case.killed(min(MOST_KILLS, options.kills - by_case.total()))
        by_moment += kills
        by_case[case.name] += kills.total()
        runs[case.name] += 1
        print(f"{by_case.total()} of {options.kills} kills in {runs.total()} runs", file=sys.stderr, flush=True)
        if differing:
            print(f"{case.name}, after {dict(kills)}: {', '.join(differing)} (see {case.home})")
            return 1
    for title, counts in (("case", by_case), ("moment", by_moment)):
        print(f"kills by {title}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    print(
        f"{by_case.total()} kills in {runs.total()} runs: every end that of an undisturbed run, "
        f"{sum(case.identical for case in cases)} of them in every bit"
    )
    shutil.rmtree(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
