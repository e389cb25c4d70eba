"""Finished runs: read from their directories, one evaluation of one task each, and gathered by method and seed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paragator.core.errors import DataError, UsageError
from paragator.records import Graded, read
from paragator.stats.curves import read_metrics
from paragator.stats.measures import Scores, scores

SECTIONS: dict[str, set[str]] = {
    "model": {"path", "device"},
    "method": {"recorded"},
    "generate": set(),
    "aggregate": set(),
    "rollout": set(),
    "train": {
        *("threads", "batch_tokens", "checkpoint_every", "checkpoint_minutes"),
        *("keep_last", "keep_every", "keep_best", "eval_every"),
    },
    "optimizer": set(),
    "eval": {"seed"},
}
"""In which sections seeds of one method are alike, but for these keys."""
EVALUATIONS = ("eval_after", "eval", "eval_before")
"""What a run directory may hold, the one that counts first."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run's last evaluation. `task` is its name and its file, if any; `texts` its problems by id.

    `lacking` says what it lacks of the traces that its config asks for; "" when nothing.
    """

    path: Path
    evaluation: str
    method: str
    task: tuple[str, str]
    seed: int | None
    temperature: float | None
    metrics: list[dict[str, Any]]
    texts: Mapping[str, str]
    scores: Scores
    config: Mapping[str, Any]
    lacking: str

    @property
    def name(self) -> str:
        return self.path.resolve().name


@dataclass(frozen=True, slots=True)
class MethodRuns:
    """A method: its runs by benchmark, several where it was run with several seeds.

    `method` is its label without more, `panel` its label without temperature and seeds.
    """

    label: str
    method: str
    panel: str
    temperature: float | None
    runs: Mapping[str, tuple[Run, ...]]

    def num_rounds(self, benchmark: str) -> int:
        """Rounds that all its runs of a benchmark have, the initial one included; 0 without a run."""
        return min((run.scores.num_rounds for run in self.runs.get(benchmark, ())), default=0)


def load_run(path: Path, k: int) -> Run:
    """A run directory; DataError when it has no evaluation."""
    evaluation, records = read_evaluation(path)
    config = read_json(path / "config.json")
    task, generate = part(config, "task"), part(config, "generate")
    return Run(
        path=path,
        evaluation=evaluation,
        method=method_of(config),
        task=(str(task.get("name", "unknown")), str(task.get("held_out_path") or task.get("path") or "")),
        seed=config.get("seed"),
        temperature=generate.get("temperature"),
        metrics=read_metrics(path),
        texts={record.trace.problem.id: record.trace.problem.text for record in records},
        scores=scores(records, k),
        config=config,
        lacking=lacking(config, read_json(path / "manifest.json"), len(records)),
    )


def lacking(config: Mapping[str, Any], manifest: Mapping[str, Any], traces: int) -> str:
    """What an evaluation of so many traces lacks, in words; "" when nothing, or when its run does not say how many there are."""
    settings, problems = config.get("eval"), manifest.get("held_out")
    repeats = settings.get("repeats") if isinstance(settings, dict) else None
    if not isinstance(problems, int) or not isinstance(repeats, int) or traces >= problems * repeats:
        return ""
    return f"only {traces} of {problems * repeats} traces (interrupted, or still running)"


def gather(runs: Sequence[Run], labels: Sequence[str] = ()) -> list[MethodRuns]:
    """Runs as rows in the order given: by label, else by method; apart where only a temperature or a name differs.

    Several runs of a row on one benchmark are its seeds. UsageError when labels are not one a run, or when runs of one
    method, benchmark and seed cannot be told apart. DataError when runs of one benchmark are not on the same problems.
    """
    if labels and len(labels) != len(runs):
        raise UsageError(f"{len(labels)} labels for {len(runs)} runs: give --label once a run, in their order")
    names = benchmark_names([run.task for run in runs])
    check_same_problems(runs)
    methods = list(labels) or [run.method if run.method != "unknown" else run.name for run in runs]
    methods = [" ".join(method.split()) for method in methods]  # a label is one line of a table
    plain = [with_temperature(i, runs, methods) for i in range(len(runs))]
    heads = plain if labels else tell_apart(runs, plain)
    check_distinct(runs, heads)
    rows = []
    for head in dict.fromkeys(heads):
        own = [i for i, other in enumerate(heads) if other == head]
        found: dict[str, tuple[Run, ...]] = {}
        for task, name in names.items():
            if some := [runs[i] for i in own if runs[i].task == task]:
                found[name] = tuple(sorted(some, key=lambda run: (run.seed is None, run.seed)))
                if not labels:
                    check_seeds(head, found[name])
        method = methods[own[0]]
        panel = method + head.removeprefix(plain[own[0]])
        rows.append(MethodRuns(head + seeds_of(found), method, panel, runs[own[0]].temperature, found))
    return rows


def benchmark_names(tasks: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """A short name for each task: its own, or its file's; with both, then numbered, where that is not enough."""
    known = list(dict.fromkeys(tasks))
    short = [Path(path).stem if name == "jsonl" and path else name for name, path in known]
    full = [f"{name} {Path(path).stem}".strip() for name, path in known]
    names = [a if short.count(a) == 1 else b for a, b in zip(short, full, strict=True)]
    twins = [names[: i + 1].count(name) for i, name in enumerate(names)]
    return {task: name if n == 1 else f"{name} #{n}" for task, name, n in zip(known, names, twins, strict=True)}


def with_temperature(index: int, runs: Sequence[Run], methods: Sequence[str]) -> str:
    """A run's label, with its initial temperature where runs of that label differ in it."""
    label, own = methods[index], runs[index].temperature
    varied = {run.temperature for run, other in zip(runs, methods, strict=True) if other == label}
    return f"{label} T={own:g}" if len(varied) > 1 and own is not None else label


def tell_apart(runs: Sequence[Run], heads: Sequence[str]) -> list[str]:
    """Labels with the directory's name, then a number, where runs share method, benchmark and seed."""
    count = Counter((head, run.task, run.seed) for head, run in zip(heads, runs, strict=True))
    clash = {head for (head, _, _), n in count.items() if n > 1}
    tasks = {head: {run.task for run, other in zip(runs, heads, strict=True) if other == head} for head in clash}
    for head in clash:
        if len(tasks[head]) > 1:
            some = [str(run.path) for run, other in zip(runs, heads, strict=True) if other == head]
            raise UsageError(
                f"{', '.join(some)}: runs of {head} with the same task and seed; say which belong together by --label"
            )
    named = [f"{head} ({run.name})" if head in clash and head != run.name else head
             for head, run in zip(heads, runs, strict=True)]  # fmt: skip
    return [name if named.count(name) == 1 or heads[i] not in clash else f"{name} #{named[: i + 1].count(name)}"
            for i, name in enumerate(named)]  # fmt: skip


def check_distinct(runs: Sequence[Run], heads: Sequence[str]) -> None:
    """A directory that is given twice in one row would count as two seeds."""
    seen = Counter((head, run.path.resolve()) for head, run in zip(heads, runs, strict=True))
    for (head, path), n in seen.items():
        if n > 1:
            raise UsageError(f"{path} is given {n} times as {head}; name each run once")


def seeds_of(runs: Mapping[str, tuple[Run, ...]]) -> str:
    """ " (seeds 0, 1, 2)" where a row has several runs of a benchmark; each benchmark's own where they differ."""
    if all(len(some) == 1 for some in runs.values()):
        return ""
    lists = {name: ", ".join(str("?" if run.seed is None else run.seed) for run in some) for name, some in runs.items()}
    if len(set(lists.values())) == 1:
        return f" (seeds {next(iter(lists.values()))})"
    return f" (seeds {'; '.join(f'{name} {seeds}' for name, seeds in lists.items())})"


def check_same_problems(runs: Sequence[Run]) -> None:
    """Runs of one task must be on the same problems and call the same correct, or pairing them would mean nothing."""
    first: dict[tuple[str, str], Run] = {}
    noted: dict[tuple[str, str], Run] = {}
    for run in runs:
        if run.scores.note and run.scores.note != (known := noted.setdefault(run.task, run)).scores.note:
            raise DataError(
                f"{run.path}: {run.scores.note} Not so in {known.path}: {known.scores.note} Evaluate both alike"
            )
        other = first.setdefault(run.task, run)
        if odd := sorted(run.texts.keys() ^ other.texts.keys()):
            has, lacks = (run, other) if odd[0] in run.texts else (other, run)
            raise DataError(
                f"{lacks.path}: lacks problem {odd[0]!r} of {has.path} ({len(odd)} problems are in one of them only); "
                "evaluate both on the same problems, an interrupted one with --resume"
            )
        for key, text in run.texts.items():
            if other.texts[key] != text:
                raise DataError(
                    f"{run.path}: problem {key!r} differs from that of {other.path}; evaluate both on the same problems"
                )


def read_evaluation(run_dir: Path) -> tuple[str, list[Graded]]:
    """The name and records of a run's last evaluation; DataError when it has none."""
    if not run_dir.is_dir():
        raise DataError(f"{run_dir}: no such run directory")
    for name in EVALUATIONS:
        path = run_dir / f"{name}.jsonl"
        if path.is_file() and (records := list(read(path))):
            return name, records
    raise DataError(
        f"{run_dir}: holds no eval_after.jsonl, eval.jsonl or eval_before.jsonl; run `paragator eval` first"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} without the file, DataError when it is something else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); remove or fix the file") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: not a JSON object; remove or fix the file")
    return value


def method_of(config: Mapping[str, Any]) -> str:
    """What a run is called by its resolved config: its method; a server's model or a recording by name; or "unknown"."""
    engine = part(config, "engine")
    if engine.get("kind") == "openai":
        return str(engine.get("model") or "unknown")
    if engine.get("kind") == "replay":
        return Path(str(engine.get("recording"))).stem
    return str(part(config, "method").get("name", "unknown"))


def part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of a config; {} where it is none."""
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def check_seeds(label: str, runs: Sequence[Run]) -> None:
    """DataError where runs that would be averaged as seeds differ in more than their seed."""
    for run, name in ((run, name) for run in runs[1:] for name in SECTIONS):
        own, first = part(run.config, name), part(runs[0].config, name)
        for key in sorted((own.keys() | first.keys()) - SECTIONS[name]):
            if own.get(key) != first.get(key):
                raise DataError(
                    f"{run.path}: {name}.{key} = {own.get(key)!r}, but {first.get(key)!r} in {runs[0].path}, so they are not seeds "
                    f"of one {label}; say what each is by --label, once a run"
                )
