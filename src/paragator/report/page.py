"""report.html: one run on one self-contained page, valid however early the run stopped. Everything shown is escaped."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from paragator.core.errors import DataError
from paragator.records import read
from paragator.report.bars import step_seconds
from paragator.report.markup import STYLE, as_details, as_image, as_table, show
from paragator.report.plots import accuracy_by_round, accuracy_by_tokens, accuracy_over_training, reward_curves
from paragator.report.readings import choose, readings
from paragator.stats.curves import EVALS, is_number, read_metrics
from paragator.stats.runs import lacking, method_of, part, read_json
from paragator.stats.table import EvalTable, rounds_sheets, table

T = TypeVar("T")

READABLE = ("eval_after.jsonl", "eval.jsonl", "traces.jsonl", "eval_before.jsonl")
EVALUATIONS = {"before training": "eval_before.jsonl", "after training": "eval_after.jsonl", "alone": "eval.jsonl"}
"""What `train` writes around training, and what `eval` writes."""
RECENT_STEPS = 10
HEADINGS = {
    "accuracy": "Accuracy",
    "tokens and failures": "Tokens and failures",
    "pools": "Pools and what became of them",
}

PAIRED = (
    ("reward", "Mean reward"),
    ("zero_credit", "Groups without signal"),
    ("truncated", "Truncated rollouts"),
    ("unscored", "Unscored rollouts"),
)
"""Metrics that both stages have, as "generate/..." and "aggregate/..."."""

SINGLE = {
    "generate/pass_at_k": "Candidates: pass@k",
    "pool/has_correct": "Pools with a right candidate",
    "ratio": "Probability ratio, mean",
    "clipped": "Clipped tokens, share",
    "mismatch_kl": "KL of trainer to sampler, per token",
    "loss": "Loss",
    "grad_norm": "Gradient norm",
    "lr": "Learning rate",
    "tokens": "Tokens a step",
    "seconds": "Seconds a step",
}


def write_report(run_dir: Path) -> Path:
    """Write run_dir/report.html from whatever the run has left there; the page names what is missing or unreadable.

    Replaces an earlier page in one move, so a reader never sees half a page. Returns its path.
    """
    target = Path(run_dir) / "report.html"
    new = target.with_name(f".report-{os.getpid()}.html")
    try:
        new.write_bytes(render(target.parent).encode())
        os.replace(new, target)
    finally:
        new.unlink(missing_ok=True)
    return target


def render(run_dir: Path) -> str:
    """The page's text."""
    notices: list[str] = []
    config = attempt(read_json, run_dir / "config.json", notices) or {}
    manifest = attempt(read_json, run_dir / "manifest.json", notices) or {}
    metrics = attempt(lambda path: read_metrics(path.parent), run_dir / "metrics.jsonl", notices) or []
    evals = attempt(lambda path: read_metrics(path.parent, EVALS), run_dir / EVALS, notices) or []
    k = part(config, "eval").get("k")
    tables: dict[str, EvalTable] = {}
    for label, file in EVALUATIONS.items():
        reader = partial(evaluation, k=k if isinstance(k, int) and k > 0 else 4)
        if one := attempt(reader, run_dir / file, notices):
            tables[label] = one
            if what := lacking(config, manifest, one.traces):
                notices.append(f"{file}: {what}.")
    source, chosen = "", []
    for source in READABLE:
        if chosen := attempt(lambda path: choose(read(path)), run_dir / source, notices) or []:
            break
    if absent := [name for name in expected(run_dir) if not (run_dir / name).is_file()]:
        notices.append(
            f"No {', '.join(absent)} (yet): the run was interrupted, is still running, or does not write it."
        )
    name = str(config.get("name", run_dir.resolve().name))
    body = [
        f"<header><h1>{show(name)}</h1>{status(config, manifest, metrics, tables)}</header>",
        *(f'<p class="notice">{show(text)}</p>' for text in dict.fromkeys(notices)),
        headline(tables),
        pictures(metrics, tables, evals),
        health(metrics),
        readings(source, chosen),
        *(as_details(title, value) for title, value in (("Configuration", config), ("Manifest", manifest)) if value),
    ]
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{show(name)} - paragator</title><style>{STYLE}</style></head>\n<body>\n"
    )
    return head + "\n".join(part for part in body if part) + "\n</body></html>\n"


def attempt(load: Callable[[Path], T], path: Path, notices: list[str]) -> T | None:
    """What `load` makes of a file; None without the file, and with a notice on the page where it cannot be read."""
    if not path.is_file():
        return None
    try:
        return load(path)
    except (DataError, OSError) as error:
        notices.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        notices.append(f"{path}: a line is not in this version's form ({error!r}); remove or fix it")
    return None


def evaluation(path: Path, k: int) -> EvalTable | None:
    """An evaluation's numbers; None when it holds no record yet."""
    records = list(read(path))
    return table(records, k) if records else None


def expected(run_dir: Path) -> tuple[str, ...]:
    """The files that a finished run of this kind, `eval` or `train`, has written."""
    both = ("config.json", "manifest.json")
    if (run_dir / "eval.jsonl").is_file():
        return both
    return (*both, "metrics.jsonl", *(name for name in READABLE if name != "eval.jsonl"))


def status(
    config: Mapping[str, Any],
    manifest: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    tables: Mapping[str, EvalTable],
) -> str:
    """Method, model, task and how far the run came."""
    parts = [f"method {method_of(config)}"]
    elsewhere = part(config, "engine").get("kind") in ("openai", "replay", "own")
    model = manifest.get("model") if elsewhere else part(config, "model").get("path")
    named = (("model", model), ("task", part(config, "task").get("name")))
    parts += [f"{name} {value}" for name, value in named if value]
    planned = part(config, "train").get("steps")
    if metrics or "alone" not in tables:
        parts.append(f"{len(metrics)}{f' of {planned}' if planned is not None else ''} steps")
    else:
        parts.remove(f"method {method_of(config)}")
    if "status" in manifest:
        parts.append(f"status {manifest['status']}")
    parts.append(f"evaluated {' and '.join(tables)}" if tables else "not evaluated")
    return f'<p class="soft">{show(" · ".join(parts))}</p>'


def headline(tables: Mapping[str, EvalTable]) -> str:
    """Accuracy by round with intervals, then cost and pools, before and after."""
    if not tables:
        return "<h2>Accuracy</h2><p>No evaluation is recorded.</p>"
    out = []
    for sheet in rounds_sheets({f"{label}, round": one for label, one in tables.items()}):
        out.append(f"<h2>{show(HEADINGS[sheet.name])}</h2>{as_table(sheet.cells())}")
    sizes = "; ".join(f"{label}: {one.problems} problems, {one.traces} traces" for label, one in tables.items())
    note = f"Shares in percent, with 95% intervals bootstrapped over problems ({sizes}). A dash: nothing to measure."
    notes = dict.fromkeys([note, *(one.note for one in tables.values() if one.note)])
    return "\n".join([*out, f'<p class="soft">{show(" ".join(notes))}</p>'])


def pictures(
    metrics: Sequence[dict[str, Any]], tables: Mapping[str, EvalTable], evals: Sequence[dict[str, Any]]
) -> str:
    """The pictures, as far as there is something to draw."""
    drawn = {
        "Accuracy by round": accuracy_by_round(tables),
        "Accuracy by tokens": accuracy_by_tokens(tables),
        "Held-out accuracy over training": accuracy_over_training(evals),
        "Reward over training": reward_curves({"this run": metrics}),
        "Seconds of a step": step_seconds(metrics),
    }
    return "\n".join(f"<h2>{title}</h2>{as_image(png, title)}" for title, png in drawn.items() if png)


def health(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Training metrics: first step, last step, and the mean of the last few."""
    if not metrics:
        return "<h2>Training</h2><p>No training step is recorded.</p>"
    named = {f"{stage}/{key}": f"{title}: {who}" for key, title in PAIRED
             for stage, who in (("generate", "candidates"), ("aggregate", "aggregations"))} | SINGLE  # fmt: skip
    parts = sorted({key for row in metrics for key in row if key.startswith("seconds/")})
    named |= {key: f"Seconds: {key.removeprefix('seconds/')}" for key in parts}
    rows = [["", "first", "last", f"last {RECENT_STEPS}, mean"]]
    for key, title in named.items():
        values = [row.get(key) for row in metrics]
        recent = [value for value in values[-RECENT_STEPS:] if value is not None and is_number(value)]
        if any(is_number(value) for value in values):
            average = sum(recent) / len(recent) if recent else None
            rows.append([title, *(number(value) for value in (values[0], values[-1], average))])
    span = (
        f"Steps {metrics[0]['step']} to {metrics[-1]['step']}; shares are of 1. "
        "A group is without signal when all its credits are zero."
    )
    return f'<h2>Training</h2>{as_table(rows)}<p class="soft">{show(span)}</p>'


def number(value: object) -> str:
    if not is_number(value):
        return "-"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"
