"""docs/performance.md from benchmarks/results/*.json: the part between its two markers is rewritten.

python benchmarks/report.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import common

PAGE = common.ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- results: written by benchmarks/report.py -->", "<!-- end of results -->"
TITLES = {
    "update": "One update: forward, backward, optimiser",
    "linear": "How an update grows",
    "step": "A whole two-stage step",
    "rollout": "Rollouts",
    "inference": "Aggregation rounds on vLLM",
    "gpu": "One CUDA card",
    "contention": "A step beside other programs",
    "grading": "Grading",
    "startup": "Until anything happens",
    "plan": "Measured steps (ours) against `paragator plan` (peer)",
}
"""The benchmarks that time something against a peer, in the order of the page."""
COLUMNS = {
    "update": ("us_per_token", "peer_us_per_token", "of_product", "gradient_distance", "cost_ratio", "memory_ratio"),
    "step": ("prompt_tokens", "peer_prompt_tokens", "sampled_tokens", "gradient_distance"),
    "rollout": ("tokens_per_s", "peer_tokens_per_s", "number_type"),
    "gpu": ("of_product", "gradient_distance", "tokens_per_s", "peer_tokens_per_s", "off"),
    "inference": ("requests", "sampled_tokens", "steps", "peer_steps", "number_type"),
    "contention": ("explained_s", "over_explained", "peer_over_explained", "cores_left"),
    "grading": ("ours_per_s", "peer_per_s", "ours_right", "peer_right"),
}
"""Further fields of a case that the page shows; without a value in any case a column is left out."""


def section(name: str, cases: Sequence[common.Case]) -> str:
    """One benchmark: where, what was held equal, and its table."""
    columns = [c for c in COLUMNS.get(name, ()) if any(case.get(c) is not None for case in cases)]
    head = ["case", "ours", "peer", "ratio", "peer is", *(c.replace("_", " ") for c in columns)]
    lines = [f"## {TITLES[name]}", "", f"`python benchmarks/{name}.py`. {measured(cases)}", ""]
    lines += [f"Held equal: {held}." for held in dict.fromkeys(case["held_equal"] for case in cases)]
    lines += ["", row(head), row(["---"] * len(head))]
    for case in cases:
        spread = case["spread"] or {}
        ratio = "" if case["ratio"] is None else f"**{case['ratio']:.2f}**"
        shown = [common.shown(case[f"{side}_s"], spread.get(side)) for side in ("ours", "peer")]
        lines.append(row([case["name"], *shown, ratio, case["peer"] or "", *(cell(case.get(c)) for c in columns)]))
    return "\n".join(lines)


def measured(cases: Sequence[common.Case]) -> str:
    """Machine, commit, versions and date of a file of results."""
    first = cases[0]
    commits = ", ".join(dict.fromkeys(str(case["commit"]) for case in cases))
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    repeats = sorted({case.get("repeats", 1) for case in cases})
    times = " to ".join(map(str, dict.fromkeys((repeats[0], repeats[-1]))))
    return f"{first['date']}, commit {commits}, {first['machine']}; {versions}; medians of {times}."


def cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else common.value(value)


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def written(page: str, results: Path) -> str:
    """The page with its results replaced by those of a folder."""
    if BEGIN not in page or END not in page:
        raise SystemExit(f"{PAGE} has lost its markers: put back {BEGIN} and {END}, in this order")
    found = {name: results / f"{name}.json" for name in TITLES}
    sections = [section(name, json.loads(path.read_text())) for name, path in found.items() if path.is_file()]
    missing = [f"`{name}`" for name, path in found.items() if not path.is_file()]
    if missing:
        sections.append(f"Not measured yet: {', '.join(missing)}.")
    before, after = page.partition(BEGIN)[0], page.rpartition(END)[2]
    return before + BEGIN + "\n\n" + "\n\n".join(sections) + "\n\n" + END + after


def main() -> int:
    PAGE.write_text(written(PAGE.read_text(), common.RESULTS))
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
