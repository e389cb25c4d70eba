"""Runs side by side: accuracy by round, and what each gains over the first run, paired by problem."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paragator.core.errors import DataError, UsageError
from paragator.core.estimators import Interval, paired_bootstrap
from paragator.records import Graded, read, read_json_lines
from paragator.report.plots import accuracy_by_round, reward_curves
from paragator.report.table import EvalTable, by_problem, plain, show_interval, table

NOTE = "Percent of problems, with 95% intervals bootstrapped over problems."


@dataclass(frozen=True, slots=True)
class Run:
    """One run as the comparison shows it. `gains[t]`: pass@1 of round t minus the first run's; None in that run."""

    label: str
    method: str
    path: Path
    evaluation: str
    metrics: list[dict[str, Any]]
    table: EvalTable
    gains: tuple[Interval | None, ...]

    def cell(self, round_: int, name: str) -> Interval | None:
        """One measure of one round; None where this run did not get that far."""
        return getattr(self.table.rounds[round_], name) if round_ < len(self.table.rounds) else None

    def gain(self, round_: int) -> Interval | None:
        return self.gains[round_] if round_ < len(self.gains) else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs in the order given; the first is the one that differences refer to."""

    k: int
    runs: tuple[Run, ...]

    @property
    def num_rounds(self) -> int:
        return max(len(run.table.rounds) for run in self.runs)

    def accuracy(self) -> list[list[str]]:
        """Cells, headings first: initial pass@1 and pass@k, then pass@1 of each aggregation round."""
        later = range(1, self.num_rounds)
        head = ["run", "initial pass@1", f"initial pass@{self.k}", *(f"round {t} pass@1" for t in later)]
        rows = [
            [
                run.label,
                *(show_interval(run.cell(0, name)) for name in ("pass_at_1", "pass_at_k")),
                *(show_interval(run.cell(t, "pass_at_1")) for t in later),
            ]
            for run in self.runs
        ]
        return [head, *rows]

    def differences(self) -> list[list[str]]:
        """Cells, headings first: pass@1 of each round minus the first run's on the same problems."""
        rounds = range(self.num_rounds)
        head = [f"pass@1 - {self.runs[0].label}", *(f"round {t}" for t in rounds)]
        return [head, *([run.label, *(show_interval(run.gain(t), "+") for t in rounds)] for run in self.runs[1:])]

    def markdown(self) -> str:
        """Both tables as GitHub Markdown."""
        tables = [self.accuracy(), self.differences()] if len(self.runs) > 1 else [self.accuracy()]
        return "\n\n".join([*(markdown_table(rows) for rows in tables), NOTE]) + "\n"

    def latex(self) -> str:
        """Both tables as LaTeX tabulars (package booktabs)."""
        tables = [self.accuracy(), self.differences()] if len(self.runs) > 1 else [self.accuracy()]
        return f"% {NOTE}\n" + "\n".join(latex_table(rows) for rows in tables)

    def csv(self) -> str:
        """Long form, one number with its bounds a line, as shares of 1; an empty field was not measured."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["run", "method", "round", "measure", "mean", "low", "high"])
        for run in self.runs:
            for t in range(len(run.table.rounds)):
                named = [(f"pass@{self.k}", "pass_at_k"), (f"maj@{self.k}", "maj_at_k")]
                found = [(title, run.cell(t, name)) for title, name in [("pass@1", "pass_at_1"), *named]]
                for title, cell in [*found, ("pass@1 - first run", run.gain(t))]:
                    bounds = [cell.mean, cell.low, cell.high] if cell else [math.nan] * 3
                    numbers = ["" if math.isnan(x) else f"{x:.6f}" for x in bounds]
                    writer.writerow([run.label, run.method, t, title, *numbers])
        return out.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: every run's table, and its differences to the first run."""
        runs = [
            {
                "label": run.label,
                "method": run.method,
                "path": str(run.path),
                "evaluation": run.evaluation,
                "table": run.table.to_dict(),
                "gains": [plain(gain) for gain in run.gains],
            }
            for run in self.runs
        ]
        return {"k": self.k, "first": self.runs[0].label, "runs": runs}

    def draw(self, out_dir: Path) -> list[Path]:
        """Write reward_curves.png and accuracy_by_round.png; returns their paths."""
        out_dir.mkdir(parents=True, exist_ok=True)
        pictures = {
            "reward_curves.png": reward_curves({run.label: run.metrics for run in self.runs if run.metrics}),
            "accuracy_by_round.png": accuracy_by_round({run.label: run.table.to_dict() for run in self.runs}),
        }
        for name, data in pictures.items():
            (out_dir / name).write_bytes(data)
        return [out_dir / name for name in pictures]


def compare(run_dirs: Sequence[Path], k: int = 4) -> Comparison:
    """Read the runs' last evaluation (after training where there is one) and set them side by side.

    UsageError without a run; DataError when a run has no evaluation, or the same problem id is another problem in it.
    """
    if not run_dirs:
        raise UsageError("no run given: name at least one run directory")
    loaded = [(Path(path), *read_evaluation(Path(path))) for path in run_dirs]
    methods = [method_of(read_json(path / "config.json")) for path, _, _ in loaded]
    first = loaded[0][2]
    runs = []
    for i, (path, evaluation, records) in enumerate(loaded):
        if i:
            check_same_problems(loaded[0][0], first, path, records)
        runs.append(
            Run(
                label=label_of(i, [path for path, _, _ in loaded], methods),
                method=methods[i],
                path=path,
                evaluation=evaluation,
                metrics=read_metrics(path),
                table=table(records, k),
                gains=tuple(gain(first, records, t, k) if i else None for t in range(num_rounds(records))),
            )
        )
    return Comparison(k, tuple(runs))


def gain(first: Sequence[Graded], other: Sequence[Graded], round_: int, k: int) -> Interval | None:
    """pass@1 of a round minus the first run's, over the problems that both have; None when there is none."""
    a, b = (by_problem(records, round_, "pass_at_1", k) for records in (first, other))
    return paired_bootstrap(a, b) if a.keys() & b.keys() else None


def num_rounds(records: Sequence[Graded]) -> int:
    return max(record.num_rounds for record in records)


def check_same_problems(first_path: Path, first: Sequence[Graded], path: Path, records: Sequence[Graded]) -> None:
    """Ids that two evaluations share must name the same problems, or pairing them would mean nothing."""
    texts = {record.trace.problem.id: record.trace.problem.text for record in first}
    for record in records:
        problem = record.trace.problem
        if texts.get(problem.id, problem.text) != problem.text:
            raise DataError(
                f"{path}: problem {problem.id!r} differs from that of {first_path}; evaluate both on the same problems"
            )


def read_evaluation(run_dir: Path) -> tuple[str, list[Graded]]:
    """The name and records of a run's last evaluation; DataError when it has none."""
    if not run_dir.is_dir():
        raise DataError(f"{run_dir}: no such run directory")
    for name in ("eval_after", "eval", "eval_before"):
        path = run_dir / f"{name}.jsonl"
        if path.is_file() and (records := list(read(path))):
            return name, records
    raise DataError(f"{run_dir}: holds no eval_after.jsonl or eval_before.jsonl; run `paragator eval` on it first")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl by step; of a step that a resumed run did again, the last. [] without the file."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = {row["step"]: row for row in read_json_lines(path) if isinstance(row.get("step"), int)}
    return [rows[step] for step in sorted(rows)]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} without the file, DataError when it is something else."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); remove or mend the file") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: not a JSON object; remove or mend the file")
    return value


def method_of(config: dict[str, Any]) -> str:
    """`method.name` of a resolved config, or "unknown"."""
    method = config.get("method")
    return str(method.get("name", "unknown")) if isinstance(method, dict) else "unknown"


def label_of(index: int, paths: Sequence[Path], methods: Sequence[str]) -> str:
    """The method's name; with the directory where several runs share a method, or have none."""
    method, name = methods[index], paths[index].resolve().name
    if method == "unknown":
        label = name
    else:
        label = method if methods.count(method) == 1 else f"{method} ({name})"
    twins = [i for i, path in enumerate(paths) if path.resolve().name == name and methods[i] == method]
    return label if len(twins) == 1 else f"{label} #{twins.index(index) + 1}"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [escaped[0], rule, *escaped[1:]])


def latex_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = [" & ".join(latex_text(cell) for cell in row) + r" \\" for row in rows]
    columns = "l" + "r" * (len(rows[0]) - 1)
    top = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*top, *body, r"\bottomrule", r"\end{tabular}", ""])


LATEX = {c: "\\" + c for c in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def latex_text(text: str) -> str:
    """Text with LaTeX's special characters escaped, and a minus sign before a negative number."""
    return re.sub(r"(?<!\S)(\[?)-(?=\d)", r"\1$-$", "".join(LATEX.get(c, c) for c in text))
