"""What the benchmarks share: taking turns, medians, the format of results, and prompts of an exact length.

`results/NAME.json` is a list of cases. Each has `name`, `ours_s` and `peer_s` (medians, in seconds), `peer`, `ratio`
(peer_s / ours_s, above 1 where ours is faster), `spread` (smallest and largest of each side) and `held_equal`, where
it was measured (`machine`, `commit`, `versions`, `date`), and further fields of the case. Without a peer `peer`,
`peer_s` and `ratio` are null.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paragator.runs.folder import installed

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
SMOLLM2 = ROOT / "models" / "smollm2-135m"
REQUIRED = (
    "name",
    "ours_s",
    "peer",
    "peer_s",
    "ratio",
    "spread",
    "held_equal",
    "machine",
    "commit",
    "versions",
    "date",
)
PACKAGES = ("torch", "transformers", "trl", "accelerate", "math-verify")

FEWEST = 3
"""Rounds that are measured even when time is up."""

Case = dict[str, Any]
Seconds = dict[str, list[float]]


def model_path(name: str) -> str:
    """Where a model is, embedded or smollm2; the program ends in one line where its weights are not there."""
    if name == "embedded":
        return name
    if not (SMOLLM2 / "config.json").is_file():
        raise SystemExit(f"error: no weights in {SMOLLM2.relative_to(ROOT)}; run: make weights")
    return str(SMOLLM2)


def parser(doc: str | None, *, repeats: int = 5) -> argparse.ArgumentParser:
    """The flags that every benchmark has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=repeats, help=f"measurements a side (default: {repeats})")
    made.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works; writes no results")
    made.add_argument("--output", type=Path, help="where the results go (default: benchmarks/results/NAME.json)")
    made.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all cores)")
    made.add_argument(
        "--within", type=float, metavar="S", help="after S seconds a case ends, with three rounds at least"
    )
    return made


def interleaved(
    sides: Mapping[str, Callable[[], Any]], repeats: int, *, warm: bool = True, within_s: float | None = None
) -> Seconds:
    """Seconds of each side, taking turns in alternating order: A B, B A, A B, ... One unmeasured call each comes first.

    After `within_s` seconds no further round begins, but there are at least three.
    """
    if warm:
        for call in sides.values():
            call()
    seconds: Seconds = {side: [] for side in sides}
    began = time.perf_counter()
    for repeat in range(repeats):
        if enough(repeat, began, within_s):
            break
        for side in list(sides)[:: -1 if repeat % 2 else 1]:
            start = time.perf_counter()
            sides[side]()
            seconds[side].append(time.perf_counter() - start)
    return seconds


def enough(rounds: int, began: float, within_s: float | None) -> bool:
    """Whether a case that began at `began` (time.perf_counter) has measured enough."""
    return within_s is not None and rounds >= FEWEST and time.perf_counter() - began > within_s


def case(
    name: str, ours: Sequence[float], peer: str | None, theirs: Sequence[float], held_equal: str, **more: Any
) -> Case:
    """One case from the seconds of both sides, which were measured in turns."""
    ours_s, peer_s = statistics.median(ours), statistics.median(theirs) if theirs else None
    pairs = [b / a for a, b in zip(ours, theirs, strict=False)]
    return {
        "name": name,
        "ours_s": ours_s,
        "peer": peer,
        "peer_s": peer_s,
        "ratio": None if peer_s is None else peer_s / ours_s,
        "spread": {
            "ours": [min(ours), max(ours)],
            "peer": [min(theirs), max(theirs)] if theirs else None,
            "ratio": [min(pairs), max(pairs)] if pairs else None,
        },
        "held_equal": held_equal,
        "repeats": len(ours),
        **more,
    }


def untimed(name: str, peer: str, held_equal: str, **more: Any) -> Case:
    """A case that compares something other than seconds, which are null."""
    return {**case(name, [0.0], peer, [], held_equal, **more), "ours_s": None, "spread": None}


def print_cases(cases: Sequence[Case], *columns: str) -> None:
    """A table of cases: medians with their spread, the ratio, and the columns named."""
    width = max((len(c["name"]) for c in cases), default=4) + 2
    print(
        f"{'case':<{width}} {'ours':>24} {'peer':>24} {'ratio':>7}  {'peer is':<28}"
        + "".join(f"  {c}" for c in columns)
    )
    for c in cases:
        spread = c["spread"] or {}
        ratio = "" if c["ratio"] is None else f"{c['ratio']:.2f}x"
        print(
            f"{c['name']:<{width}} {shown(c['ours_s'], spread.get('ours')):>24}"
            f" {shown(c['peer_s'], spread.get('peer')):>24} {ratio:>7}  {c['peer'] or '':<28}"
            + "".join(f"  {value(c.get(column)):>{len(column)}}" for column in columns),
            flush=True,
        )


def shown(median: float | None, spread: Sequence[float] | None) -> str:
    """A median with its smallest and largest."""
    if median is None:
        return ""
    return f"{value(median)} s" + (f" ({value(spread[0])} to {value(spread[1])})" if spread else "")


def value(number: Any) -> str:
    """Three digits of a number."""
    if not isinstance(number, float):
        return "" if number is None else str(number)
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def finish(flags: argparse.Namespace, name: str, cases: Sequence[Case], *columns: str) -> None:
    """Print the table and write the results; a quick run writes only where --output says."""
    print()
    print_cases(cases, *columns)
    path = flags.output or (None if flags.quick else RESULTS / f"{name}.json")
    if path is not None:
        write(path, cases)
        print(f"\n{path}")


def disagreed(cases: Sequence[Case], most: float) -> int:
    """The exit status: 1, and their names, where gradients of both sides differ by more than `most`."""
    wrong = [c["name"] for c in cases if c.get("gradient_distance", 0) > most]
    if wrong:
        print(f"gradients differ by more than {most:g}: {', '.join(wrong)}")
    return 1 if wrong else 0


def write(path: Path, cases: Sequence[Case], *, where: Mapping[str, Any] | None = None) -> None:
    """Write cases with where they were measured."""
    here = environment() if where is None else where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{**c, **here} for c in cases], indent=1) + "\n")


def environment() -> Case:
    """Machine, commit, versions and date."""
    versions = {name: found for name in PACKAGES if (found := installed(name))}
    return {
        "machine": machine(),
        "commit": commit(),
        "versions": {"python": platform.python_version(), **versions},
        "date": time.strftime("%Y-%m-%d"),
    }


def machine() -> str:
    """CUDA device, processor, cores and memory."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        named = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = named[0] if named else model
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cuda = sys.modules["torch"].cuda if "torch" in sys.modules else None
    device = f"{cuda.get_device_name()}, " if cuda and cuda.is_available() else ""
    return f"{device}{model}, {os.cpu_count()} cores, {gigabytes:.0f} GB"


def commit() -> str | None:
    """The commit of the source tree, with "+" when files of the package or the benchmarks differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    head = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "--", "src", "benchmarks/*.py")
    return f"{head}{'+' if changed else ''}" if head else None


def use_threads(count: int) -> None:
    """Let torch compute on `count` threads, in this thread and in the one in which the package computes."""
    from paragator.engines.local.compute import set_threads

    set_threads(count)


def prompt_of(tokenizer: Any, length: int, rng: random.Random) -> tuple[str, tuple[int, ...]]:
    """A text of everyday pieces whose encoding has exactly `length` tokens, and that encoding."""
    vocabulary = tokenizer.get_vocab()
    pieces = sorted(p for p in vocabulary if p[0] in "Ġ▁" and p[1:].isascii() and p[1:].isalpha() and p[1:].islower())
    pieces = pieces or sorted(p for p in vocabulary if p.isascii() and p.isalnum())
    ids = [vocabulary[piece] for piece in rng.choices(pieces, k=length)]
    for _ in range(100):
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        found = list(tokenizer(text)["input_ids"])
        if len(found) == length:
            return text, tuple(found)
        ids = found[:length] + [vocabulary[piece] for piece in rng.choices(pieces, k=max(0, length - len(found)))]
    raise SystemExit(f"no text of exactly {length} tokens found for {type(tokenizer).__name__}")


def heavy_tailed(rng: random.Random, count: int, longest: int, shortest: int = 4) -> list[int]:
    """`count` lengths in random order: the quantiles of a log-normal around an eighth of the longest, so a tail is always there."""
    quantile = statistics.NormalDist(math.log(longest / 8), 1.1).inv_cdf
    lengths = [round(math.exp(quantile((i + 0.5) / count))) for i in range(count)]
    lengths = [min(longest, max(shortest, length)) for length in lengths]
    rng.shuffle(lengths)
    return lengths


def say(text: str) -> None:
    """A line of progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)
