"""Results: what an evaluation and a training run hand back, and what a run directory holds of them."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paragator import records
from paragator.core.errors import DataError, UsageError
from paragator.core.types import Failure
from paragator.records import Graded
from paragator.stats.curves import EVALS, best_step, read_metrics
from paragator.stats.strategies import StrategyTable
from paragator.stats.table import EvalTable, table

if TYPE_CHECKING:
    from pandas import DataFrame

EVALUATIONS = ("eval", "eval_before", "eval_after")
TRACES = "traces"
"""What a run directory may hold as NAME.jsonl: its evaluations, and what training sampled."""
WIDTH = 80
"""Columns of a table on a terminal."""
MOSTLY = 0.5
"""From which share of cut solutions on a result warns."""


@dataclass(frozen=True, repr=False)
class EvalResult:
    """An evaluation: graded traces and what is computed from them. Printing it prints its tables; notebooks draw them.

    traces    one a problem and repeat, in their order; only the finished ones where it was stopped
    k         of pass@k and maj@k
    finished  whether nothing is left to ask
    folder    the run directory, where one was kept
    usage     tokens, calls and cost of a server, summed over attempts; None in-process
    spent     what was spent, where that ended it: the traces are those that were finished by then
    strategies  traces by strategy, where some were compared; `traces` are the first one's
    """

    traces: Sequence[Graded]
    k: int = 4
    finished: bool = True
    folder: Path | None = None
    usage: Mapping[str, Any] | None = None
    name: str = "evaluation"
    strategies: Mapping[str, Sequence[Graded]] = field(default_factory=dict)
    spent: str = ""

    @classmethod
    def read(cls, path: str | Path, k: int = 4) -> EvalResult:
        """An evaluation from its file, as runs/NAME/eval.jsonl; DataError where that holds no graded trace."""
        found = list(records.read(Path(path)))
        if not found:
            raise DataError(f"{path}: no graded trace in it")
        return cls(found, k, folder=Path(path).parent, name=Path(path).stem)

    def apart(self) -> EvalResult:
        """The same without its folder, which is gone."""
        return replace(self, folder=None)

    def table(self) -> EvalTable:
        """Numbers by round, with 95% intervals over problems."""
        return self._table

    @cached_property
    def _table(self) -> EvalTable:
        return table(self.traces, self.k)

    @cached_property
    def compared(self) -> StrategyTable:
        """Strategies side by side: what each answers, what it costs, and what it gains; UsageError without any."""
        return StrategyTable(self.strategies, self.k)

    @property
    def failed(self) -> list[Graded]:
        """Traces of which a round failed for good."""
        found = [self.traces, *list(self.strategies.values())[1:]]
        return [record for traces in found for record in traces if record.trace.failure]

    def samples(self) -> list[dict[str, Any]]:
        """Every completion as a row: problem, repeat, round, index, text, answer, verdict, reward, tokens, pool, prompt."""
        return [row for record in self.traces for row in rows_of(record)]

    def frame(self) -> DataFrame:
        """The same as a pandas DataFrame; UsageError where pandas is not installed."""
        return frame(self.samples())

    def text(self, *, wide: bool = False, width: int = WIDTH) -> str:
        """Accuracy by round within a `width`; `wide`: all columns, and the tables of cost and of pools where some were shown."""
        if self.strategies:
            return "\n".join(f"  {line}" for line in self.compared.text().splitlines())
        found = self.table()
        sheets = [sheet.text(None if wide else width - 2) for sheet in found.sheets()[: None if wide else 1]]
        parts = [*sheets, found.note, cut_note(self.traces)]
        return "\n".join(f"  {line}" for part in parts for line in part.splitlines())

    def to_dict(self) -> dict[str, Any]:
        """The tables as JSON values."""
        return self.compared.to_dict() if self.strategies else self.table().to_dict()

    def __repr__(self) -> str:
        if not self.traces:
            return f"{self.name}: no trace is finished"
        state = "" if self.finished else f", partial: {self.spent or 'stopped'} before all were finished"
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"{self.name}: {len(self.traces)} traces{failed}{state}\n{self.text()}"

    def _repr_html_(self) -> str:
        if not self.traces:
            return f"<p>{html.escape(repr(self))}</p>"
        head = html.escape(repr(self).partition("\n")[0])
        return f"<p><b>{head}</b></p>" + html_tables(self.table())


@dataclass(frozen=True, repr=False)
class TrainResult:
    """A training run: its run directory and what lies there.

    metrics      the rows of metrics.jsonl, one a step
    evals        the rows of evals.jsonl, one an evaluation while training
    before       evaluations around training; None where the config asks for none, or it was stopped before
    finished     whether all steps were taken and evaluated; else it can be resumed
    checkpoints  folders, the oldest first
    model        the folder with the trained weights and tokenizer, once training is finished
    """

    folder: Path
    metrics: Sequence[Mapping[str, Any]] = ()
    evals: Sequence[Mapping[str, Any]] = ()
    before: EvalResult | None = None
    after: EvalResult | None = None
    finished: bool = True
    checkpoints: Sequence[Path] = ()
    model: Path | None = None
    report: Path | None = None

    @classmethod
    def read(cls, folder: str | Path, k: int = 4, *, finished: bool = True) -> TrainResult:
        """What a run directory holds."""
        run_dir = Path(folder)
        found = {name: evaluation(run_dir / f"{name}.jsonl", k) for name in EVALUATIONS}
        steps = run_dir / "metrics.jsonl"
        saved = [path for path in (run_dir / "checkpoints").glob("step_*") if path.name[5:].isdigit()]
        return cls(
            run_dir,
            metrics=list(records.read_json_lines(steps)) if steps.exists() else (),
            evals=read_metrics(run_dir, EVALS),
            before=found["eval_before"],
            after=found["eval_after"] or found["eval"],
            finished=finished,
            checkpoints=sorted(saved, key=lambda path: int(path.name[5:])),
            model=model if (model := run_dir / "model").is_dir() else None,
            report=page if (page := run_dir / "report.html").is_file() else None,
        )

    @property
    def updated(self) -> int:
        """How many steps changed the weights; the others had no credit, or were refused."""
        return sum(bool(row.get("updated")) for row in self.metrics)

    @property
    def best(self) -> Path | None:
        """The checkpoint with the best evaluation while training; None without one."""
        name = f"step_{best_step(self.evals)}"
        return next((path for path in self.checkpoints if path.name == name), None)

    def frame(self) -> DataFrame:
        """Metrics by step as a pandas DataFrame; UsageError where pandas is not installed."""
        return frame(self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """The run directory, its evaluations and its numbers of steps and of updated ones, as JSON values."""
        return run_json(self.folder, self.after.k if self.after else 4)

    def __repr__(self) -> str:
        state = "finished" if self.finished else "stopped, can be resumed"
        head = f"{self.folder}: {len(self.metrics)} steps, {state}"
        return "\n".join([head, *(f"{what}\n{found.text()}" for what, found in self.evaluations())])

    def _repr_html_(self) -> str:
        head = f"<p><b>{html.escape(repr(self).partition(chr(10))[0])}</b></p>"
        return head + "".join(f"<p>{what}</p>{html_tables(found.table())}" for what, found in self.evaluations())

    def evaluations(self) -> list[tuple[str, EvalResult]]:
        """When each of them was."""
        known = (("before training", self.before), ("after training", self.after))
        return [(what, found) for what, found in known if found]


def run_json(run_dir: Path, k: int) -> dict[str, Any]:
    """What `train --json` and `eval --json` print: the evaluations of a run directory, its steps and those that updated."""
    out: dict[str, Any] = {"run": str(run_dir), "report": str(run_dir / "report.html")}
    for name in EVALUATIONS:
        if found := evaluation(run_dir / f"{name}.jsonl", k):
            out[name] = found.to_dict()
    metrics = run_dir / "metrics.jsonl"
    updated = [bool(row.get("updated")) for row in records.read_json_lines(metrics)] if metrics.exists() else []
    out |= {"steps": len(updated), "updated": sum(updated)}
    return dict(json.loads(json.dumps(out)))


def evaluation(path: Path, k: int) -> EvalResult | None:
    """The evaluation in a file; None without one."""
    return EvalResult.read(path, k) if path.exists() and path.stat().st_size else None


def read_traces(run: str | Path, name: str = "") -> Iterator[Graded]:
    """The graded traces of a run, one at a time: of `name` ("traces", "eval", "eval_before", "eval_after").

    Without a name, what training sampled, else its evaluation. `run` may also be such a file. DataError without any.
    """
    path = Path(run)
    if path.is_file():
        return records.read(path)
    names = (name,) if name else (TRACES, "eval", "eval_after", "eval_before")
    files = [path / f"{one}.jsonl" for one in names]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise DataError(f"{path} holds no {' or '.join(file.name for file in files)}; name a run directory")
    return records.read(found)


def rows_of(record: Graded) -> Iterator[dict[str, Any]]:
    """A trace's completions and failures as rows, in order."""
    trace = record.trace
    head = {"problem": trace.problem.id, "repeat": trace.extra.get("repeat", 0)}
    for number, (groups, grades) in enumerate(zip(trace.rounds, record.grades, strict=True)):
        index = 0
        for group, own in zip(groups, grades, strict=True):
            for output, grade in zip(group.outputs, own, strict=True):
                row = {**head, "round": number, "index": index, "pool": list(group.pool), "prompt": group.prompt.text}
                index += 1
                if isinstance(output, Failure):
                    yield {**row, "failure": output.reason}
                    continue
                row |= {"text": output.text, "finish_reason": output.finish_reason, "tokens": output.length}
                if grade is not None:
                    row |= {"answer": grade.answer, "verdict": grade.verdict, "reward": grade.reward}
                    row["reason"] = grade.reason
                yield row


def cut_note(traces: Sequence[Graded]) -> str:
    """A warning where most solutions of a stage were cut at their longest length; "" where they were not."""
    ends: dict[str, list[bool]] = {"generate": [], "aggregate": []}
    for record in traces:
        for number, groups in enumerate(record.trace.rounds):
            finished = [one.finish_reason == "length" for group in groups for one in group.completions]
            ends["aggregate" if number else "generate"] += finished
    cut = {stage: sum(found) / len(found) for stage, found in ends.items() if found}
    long = {stage: share for stage, share in cut.items() if share > MOSTLY}
    shares = ", ".join(f"{share:.0%} at {stage}.max_tokens" for stage, share in long.items())
    return f"warning: most solutions were cut before their end ({shares}); raise it" if long else ""


def html_tables(found: EvalTable) -> str:
    """An evaluation's tables as HTML."""
    out = []
    for sheet in found.sheets():
        head, *body = [[html.escape(cell) for cell in row] for row in sheet.cells()]
        lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
        heads = "".join(f"<th>{cell}</th>" for cell in head)
        out.append(f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>")
    return "".join([*out, f"<p>{html.escape(found.note)}</p>" if found.note else ""])


def frame(rows: Sequence[Mapping[str, Any]]) -> DataFrame:
    try:
        from pandas import DataFrame
    except ImportError:
        raise UsageError("pandas is not installed: pip install pandas, or use .samples()") from None
    return DataFrame(list(rows))
