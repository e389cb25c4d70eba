"""report.html: one run on one self-contained page, valid however early the run stopped. Everything shown is escaped."""

from __future__ import annotations

import base64
import html
import json
import os
import tempfile
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from paragator.core.errors import DataError
from paragator.core.types import Completion, Failure, Grade, Group
from paragator.records import Graded, read
from paragator.report.compare import method_of, read_json, read_metrics
from paragator.report.plots import accuracy_by_round, is_number, reward_curves
from paragator.report.table import EvalTable, table

T = TypeVar("T")

READABLE = ("eval_after.jsonl", "eval.jsonl", "traces.jsonl", "eval_before.jsonl")
EVALUATIONS = {"before training": "eval_before.jsonl", "after training": "eval_after.jsonl", "alone": "eval.jsonl"}
"""What `train` writes around training, and what `eval` writes."""
TRACES, TRACES_OF_A_KIND = 24, 8
SHOWN_CHARACTERS = 3000
RECENT_STEPS = 10

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

STYLE = """
:root{color-scheme:light dark;--ink:#24292f;--soft:#667;--line:#d8dce2;--back:#fff;--panel:#f6f7f9;--good:#0b7a55;
--bad:#b3470a;--link:#0059a3}
@media(prefers-color-scheme:dark){:root{--ink:#dde1e6;--soft:#9aa3ad;--line:#3a4048;--back:#16191d;--panel:#1f2329;
--good:#4cc79a;--bad:#f0a070;--link:#7ab8f5}}
body{margin:0 auto;max-width:60rem;padding:1.5rem 1rem 4rem;font:16px/1.55 system-ui,sans-serif;color:var(--ink);
background:var(--back)}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}h3{font-size:.95rem;margin:1rem 0 .3rem}
p{margin:.4rem 0}.soft{color:var(--soft)}
.notice{border-left:3px solid var(--bad);padding:.2rem .8rem;background:var(--panel)}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.87rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{color:var(--soft);font-weight:600;vertical-align:bottom;white-space:normal}th:first-child,td:first-child{text-align:left;padding-left:0;white-space:normal}
img{width:100%;max-width:700px;height:auto;border-radius:6px;background:#fff}
details{border-top:1px solid var(--line);padding:.4rem 0}details details{border:0;margin-left:.2rem}
summary{cursor:pointer}pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--panel);padding:.5rem .7rem;
border-radius:6px;font:.82rem/1.45 ui-monospace,monospace;margin:.2rem 0 .6rem}
.correct{color:var(--good)}.incorrect{color:var(--bad)}.unscored,.failed{color:var(--soft)}.tag{font-size:.8rem;color:var(--soft)}
.marks{font-family:ui-monospace,monospace;letter-spacing:.1em}
"""

MARKS = {"correct": "\N{CHECK MARK}", "incorrect": "\N{BALLOT X}", "unscored": "?", "failed": "\N{EM DASH}"}


def write_report(run_dir: Path) -> Path:
    """Write run_dir/report.html from whatever the run has left there; the page names what is missing or unreadable.

    Replaces an earlier page in one move, so a reader never sees half a page. Returns its path.
    """
    run_dir = Path(run_dir)
    page = render(run_dir).encode()
    target = run_dir / "report.html"
    handle, name = tempfile.mkstemp(dir=run_dir, prefix=".report-", suffix=".html")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(page)
        os.chmod(name, 0o644)  # mkstemp's file is private to its owner
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return target


def render(run_dir: Path) -> str:
    """The page's text."""
    notices: list[str] = []
    config = attempt(read_json, run_dir / "config.json", notices) or {}
    manifest = attempt(read_json, run_dir / "manifest.json", notices) or {}
    metrics = attempt(lambda path: read_metrics(path.parent), run_dir / "metrics.jsonl", notices) or []
    k = section(config, "eval").get("k")
    tables: dict[str, EvalTable] = {}
    for label, file in EVALUATIONS.items():
        reader = partial(evaluation, k=k if isinstance(k, int) and k > 0 else 4)
        if one := attempt(reader, run_dir / file, notices):
            tables[label] = one
    source, chosen = "", []
    for source in READABLE:
        if chosen := attempt(choose_from, run_dir / source, notices) or []:
            break
    if absent := [name for name in expected(run_dir) if not (run_dir / name).is_file()]:
        notices.append(f"No {', '.join(absent)} (yet): the run was interrupted, is still going, or does not write it.")
    name = str(config.get("name", run_dir.resolve().name))
    body = [
        f"<header><h1>{show(name)}</h1>{status(config, manifest, metrics, tables)}</header>",
        *(f'<p class="notice">{show(text)}</p>' for text in dict.fromkeys(notices)),
        headline(tables),
        pictures(metrics, tables),
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
        notices.append(f"{path}: a line is not in this version's form ({error!r}); remove or mend it")
    return None


def evaluation(path: Path, k: int) -> EvalTable | None:
    """An evaluation's numbers; None when it holds no record yet."""
    records = list(read(path))
    return table(records, k) if records else None


def section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


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
    parts = [f"method {method_of(dict(config))}"]
    parts += [f"{name} {section(config, name)[key]}" for name, key in (("model", "path"), ("task", "name"))
              if key in section(config, name)]  # fmt: skip
    planned = section(config, "train").get("steps")
    parts.append(f"{len(metrics)}{f' of {planned}' if planned is not None else ''} steps")
    if "status" in manifest:
        parts.append(f"status {manifest['status']}")
    parts.append(f"evaluated {' and '.join(tables)}" if tables else "not evaluated")
    return f'<p class="soft">{show(" · ".join(parts))}</p>'


def headline(tables: Mapping[str, EvalTable]) -> str:
    """Accuracy by round with intervals, and the diagnostics of rounds and pools, before and after."""
    if not tables:
        return "<h2>Accuracy</h2><p>No evaluation is recorded.</p>"
    rows = [["", *next(iter(tables.values())).rows()[0]]]
    sizes = []
    for label, one in tables.items():
        rows += [[label, *cells] for cells in one.rows()[1:]]
        sizes.append(f"{label}: {one.problems} problems, {one.traces} traces")
    note = f"Percent, with 95% intervals bootstrapped over problems ({'; '.join(sizes)}). A dash: nothing to measure."
    accuracy, rest = [row[:6] for row in rows], [[*row[:2], *row[6:]] for row in rows]
    return (
        f'<h2>Accuracy</h2>{as_table(accuracy)}<p class="soft">{show(note)}</p>'
        f"<h2>Rounds and their pools</h2>{as_table(rest)}"
    )


def pictures(metrics: Sequence[dict[str, Any]], tables: Mapping[str, EvalTable]) -> str:
    """The two pictures, as far as there is something to draw."""
    out = []
    if tables:
        data = accuracy_by_round({label: one.to_dict() for label, one in tables.items()})
        out.append(f"<h2>Accuracy by round</h2>{as_image(data, 'pass@1, pass@k and maj@k by round')}")
    if metrics:
        out.append(f"<h2>Reward over training</h2>{as_image(reward_curves({'this run': metrics}), 'reward by step')}")
    return "\n".join(out)


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


def choose_from(path: Path) -> list[tuple[str, Graded]]:
    return choose(read(path))


def choose(records: Iterable[Graded]) -> list[tuple[str, Graded]]:
    """At most TRACES (kind, record): some recoveries, as many destructions, then plain ones; the latest of each."""
    kept: dict[str, deque[Graded]] = {
        "recovery": deque(maxlen=TRACES_OF_A_KIND),
        "destruction": deque(maxlen=TRACES_OF_A_KIND),
        "plain": deque(maxlen=TRACES),
    }
    for record in records:
        kept[kind_of(record)].append(record)
    return [(kind, record) for kind, some in kept.items() for record in some][:TRACES]


def kind_of(record: Graded) -> str:
    """recovery: no candidate was right and a last solution is; destruction: the reverse; else plain."""
    if record.num_rounds < 2:
        return "plain"
    before, after = (
        any(grade and grade.verdict == "correct" for group in groups for grade in group)
        for groups in (record.grades[0], record.grades[-1])
    )
    return {(False, True): "recovery", (True, False): "destruction"}.get((before, after), "plain")


def readings(source: str, chosen: Sequence[tuple[str, Graded]]) -> str:
    """Traces to read, folded."""
    if not chosen:
        return "<h2>Traces</h2><p>No trace is recorded.</p>"
    note = (
        f"{len(chosen)} traces of {source}. Recovery: no candidate was right, a solution of the last round is; "
        "destruction: the reverse. One group of marks a round."
    )
    head = f'<h2>Traces</h2><p class="soft">{show(note)}</p>'
    return "\n".join([head, *(reading(kind, one) for kind, one in chosen)])


def reading(kind: str, record: Graded) -> str:
    """One trace: the problem, its candidates, and every pool with its aggregations."""
    trace = record.trace
    marks = " &rarr; ".join("".join(mark(grade) for group in groups for grade in group) for groups in record.grades)
    out = [
        f'<details><summary>{show(trace.problem.id)} <span class="tag">{kind}</span> <span class="marks">{marks}</span>'
        "</summary>",
        f"<h3>Problem</h3>{as_text(trace.problem.text)}",
    ]
    if trace.failure:
        out.append(f'<p class="notice">{show(trace.failure)}</p>')
    for t, (groups, grades) in enumerate(zip(trace.rounds, record.grades, strict=True)):
        first = 0
        for group, group_grades in zip(groups, grades, strict=True):
            out.append(round_title(t, group))
            out += outputs(group, group_grades, first)
            first += len(group.completions)
    return "\n".join([*out, "</details>"])


def round_title(round_: int, group: Group) -> str:
    """What a group was shown."""
    if round_ == 0:
        return "<h3>Candidates</h3>"
    pool = ", ".join(f"#{index}" for index in group.pool) or "nothing"
    reduced = f" (reduced: {', '.join(group.reductions)})" if group.reductions else ""
    title = f"Round {round_}: aggregations of {pool} of round {round_ - 1}{reduced}"
    prompt = f"<details><summary>Its prompt</summary>{as_text(group.prompt.text)}</details>"
    return f"<h3>{show(title)}</h3>{prompt}"


def outputs(group: Group, grades: Sequence[Grade | None], first: int) -> list[str]:
    """Every output of a group with its verdict; `first` is the population index of its first solution."""
    out = []
    for output, grade in zip(group.outputs, grades, strict=True):
        if isinstance(output, Failure):
            out.append(f'<p class="failed">{MARKS["failed"]} failed: {show(output.reason)}</p>')
            continue
        out.append(f"<div>#{first} {verdict(output, grade)}</div>{as_text(output.text)}")
        first += 1
    return out


def verdict(output: Completion, grade: Grade | None) -> str:
    """A solution's verdict in words, with its answer and why."""
    word = grade.verdict if grade else "unscored"
    parts: list[str] = [word]
    if grade and grade.answer is not None:
        parts.append(f"answer {grade.answer}")
    if grade and grade.reason:
        parts.append(grade.reason)
    if output.finish_reason != "stop":
        parts.append("truncated" if output.finish_reason == "length" else output.finish_reason)
    return f'<span class="{word}">{MARKS[word]} {show(", ".join(parts))}</span>'


def mark(grade: Grade | None) -> str:
    word = grade.verdict if grade else "failed"
    return f'<span class="{word}">{MARKS[word]}</span>'


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, headings first."""
    lines = [
        "<tr>" + "".join(f"<{tag}>{show(cell)}</{tag}>" for cell in row) + "</tr>"
        for tag, part in (("th", rows[:1]), ("td", rows[1:]))
        for row in part
    ]
    return '<div class="scroll"><table>' + "\n".join(lines) + "</table></div>"


def as_image(png: bytes, alt: str) -> str:
    return f'<img alt="{show(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def as_text(text: str) -> str:
    """A block of model or data text; a very long one without its middle."""
    left_out = len(text) - SHOWN_CHARACTERS
    if left_out > 0:
        half = SHOWN_CHARACTERS // 2
        text = f"{text[:half]}\n[... {left_out:,} characters left out ...]\n{text[-half:]}"
    return f"<pre>{show(text)}</pre>"


def as_details(title: str, value: Mapping[str, Any]) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return f"<details><summary>{show(title)}</summary><pre>{show(text)}</pre></details>"


def show(text: object) -> str:
    """Text for HTML: escaped, and with what has no look of its own (control, format, surrogate) spelled out."""
    return html.escape("".join(c if c in "\n\t" else visible(c) for c in str(text)))


def visible(character: str) -> str:
    r"""The character, or \x1b, \u202e and the like spelled out."""
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return ascii(character)[1:-1]
    return character
