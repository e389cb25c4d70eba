"""Versioned JSON lines of graded traces: what training and evaluation write, and reports read.

Only complete lines count: a torn last line (of a killed writer) is dropped on reading and cut off before
appending. Token ids are kept, log-probabilities are not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from paragator.core.errors import DataError
from paragator.core.types import Choice, Completion, Failure, Grade, Group, Plan, Problem, Prompt, Trace, Verdict

VERSION = 1


@dataclass(frozen=True, slots=True)
class Graded:
    """A trace and, for each round, group and output, its grade (None for a failed output)."""

    trace: Trace
    grades: tuple[tuple[tuple[Grade | None, ...], ...], ...]

    def rewards(self, round_: int) -> list[float | None]:
        """The round's rewards in population order; None where unscored. Failed outputs are left out."""
        return [grade.reward for grade in self.of_round(round_)]

    def right(self, round_: int) -> list[float | None]:
        """The round's verdicts in population order: 1 correct, 0 incorrect, None unscored."""
        return [grade.right for grade in self.of_round(round_)]

    def answers(self, round_: int) -> list[str | None]:
        """The round's answers in population order."""
        return [grade.answer for grade in self.of_round(round_)]

    def of_round(self, round_: int) -> list[Grade]:
        """The round's grades in population order."""
        return [grade for group in self.grades[round_] for grade in group if grade is not None]

    @property
    def is_fractional(self) -> bool:
        """Whether a reward is neither 0 nor 1."""
        return any(reward not in (None, 0, 1) for t in range(self.num_rounds) for reward in self.rewards(t))

    @property
    def num_rounds(self) -> int:
        """Recorded rounds, the initial one included."""
        return len(self.trace.rounds)


def encode(record: Graded) -> dict[str, Any]:
    """One record as plain JSON values."""
    trace = record.trace
    rounds = [
        [encode_group(group, grades) for group, grades in zip(groups, round_grades, strict=True)]
        for groups, round_grades in zip(trace.rounds, record.grades, strict=True)
    ]
    out = {
        "version": VERSION,
        "problem": asdict(trace.problem),
        "plan": asdict(trace.plan),
        "seed": trace.seed,
        "failure": trace.failure,
        "extra": dict(trace.extra),
        "rounds": rounds,
    }
    if trace.ratings:
        out["ratings"] = [encode_group(group, (None,) * len(group.outputs)) for group in trace.ratings]
    return out | ({"choice": asdict(trace.choice)} if trace.choice else {})


def encode_group(group: Group, grades: tuple[Grade | None, ...]) -> dict[str, Any]:
    outputs: list[dict[str, Any]] = []
    for output, grade in zip(group.outputs, grades, strict=True):
        if isinstance(output, Failure):
            outputs.append({"failure": output.reason})
            continue
        outputs.append({"text": output.text, "finish_reason": output.finish_reason, "token_ids": output.token_ids})
        outputs[-1] |= {"num_tokens": output.num_tokens, "thinking": output.thinking}
        outputs[-1]["grade"] = encode_grade(grade) if grade else None
    found = {
        "stage": group.stage,
        "prompt": group.prompt.text,
        "chat": group.prompt.chat,
        "pool": group.pool,
        "reductions": group.reductions,
        "num_prompt_tokens": group.prompt_length,
        "outputs": outputs,
    }
    return found | ({"model": group.model} if group.model else {})


def encode_grade(grade: Grade) -> dict[str, Any]:
    """A grade's values; its parts only where it has some."""
    return {name: value for name, value in asdict(grade).items() if name != "parts" or value}


def decode(row: dict[str, Any]) -> Graded:
    """The inverse of `encode`; DataError when the row is no such record, or of a newer version."""
    version = row.get("version")
    if version != VERSION:
        raise DataError(f"record version {version!r}: this paragator reads {VERSION}; use the paragator that wrote it")
    try:
        return decode_row(row)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"not a record of a graded trace ({error!r}); remove or fix the line") from None


def decode_row(row: dict[str, Any]) -> Graded:
    decoded = [[decode_group(group) for group in groups] for groups in row["rounds"]]
    trace = Trace(
        Problem(**row["problem"]),
        Plan(**row["plan"]),
        row["seed"],
        tuple(tuple(group for group, _ in groups) for groups in decoded),
        row["failure"],
        row["extra"],
        tuple(decode_group(group)[0] for group in row.get("ratings", ())),
        decode_choice(row["choice"]) if row.get("choice") else None,
    )
    if (choice := trace.choice) and len(choice.weights) != len(trace.population(choice.round)):
        raise ValueError(f"{len(choice.weights)} weights for {len(trace.population(choice.round))} solutions")
    for t in range(1, len(trace.rounds)):
        known = range(len(trace.population(t - 1)))
        if odd := [index for group in trace.rounds[t] for index in group.pool if index not in known]:
            raise ValueError(f"round {t} shows solution {odd[0]!r} of {len(known)}")
    return Graded(trace, tuple(tuple(grades for _, grades in groups) for groups in decoded))


def decode_choice(row: dict[str, Any]) -> Choice:
    return Choice(row["round"], tuple(row["weights"]), tuple(row["scores"]), row["why"])


def decode_group(row: dict[str, Any]) -> tuple[Group, tuple[Grade | None, ...]]:
    outputs: list[Completion | Failure] = []
    grades: list[Grade | None] = []
    for output in row["outputs"]:
        if "failure" in output:
            outputs.append(Failure(output["failure"]))
            grades.append(None)
            continue
        ids = output["token_ids"]
        ids = None if ids is None else tuple(ids)
        known = {name: output.get(name) for name in ("num_tokens", "thinking")}
        outputs.append(Completion(output["text"], output["finish_reason"], ids, **known))
        marks = output["grade"] or {"verdict": "unscored", "reason": "not graded"}
        grade = Grade(**{**marks, "parts": tuple(marks.get("parts", ()))})
        if grade.verdict not in get_args(Verdict):
            raise ValueError(f"verdict {grade.verdict!r}")
        grades.append(grade)
    group = Group(
        Prompt(row["prompt"], row["chat"]),
        tuple(outputs),
        stage=row["stage"],
        pool=tuple(row["pool"]),
        reductions=tuple(row["reductions"]),
        num_prompt_tokens=row.get("num_prompt_tokens"),
        model=str(row.get("model", "")),
    )
    return group, tuple(grades)


def read_json_lines(path: Path, *, ours: bool = True) -> Iterator[dict[str, Any]]:
    """Every line of a JSONL file; a broken one is a DataError.

    In a file of `ours` a last line without its newline is a torn write and is dropped; in another it is data.
    """
    return (row for _, row in numbered_lines(path, ours=ours))


def numbered_lines(path: Path, *, ours: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same with line numbers."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if ours and not line.endswith(b"\n"):
                return
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not a JSON object ({error}); remove or fix the line") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: not a JSON object; remove or fix the line")
            yield number, row


def read(path: Path) -> Iterator[Graded]:
    """The graded traces of a file; a DataError names file and line."""
    for number, row in numbered_lines(path, ours=True):
        try:
            record = decode(row)
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from None
        yield record


def append_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows, after cutting off a torn last line; whole lines are flushed before this returns. An OSError names the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("a+b") as file:
            cut_torn_line(file)
            file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def cut_torn_line(file: Any) -> None:
    """Truncate a file opened in "a+b" mode after its last newline."""
    end = file.seek(0, 2)
    position = end
    while position > 0:
        start = max(0, position - 65536)
        file.seek(start)
        at = file.read(position - start).rfind(b"\n")
        if at >= 0:
            if start + at + 1 < end:
                file.truncate(start + at + 1)
            return
        position = start
    if end:
        file.truncate(0)


def append(path: Path, records: Iterable[Graded]) -> None:
    """Append graded traces."""
    append_json_lines(path, (encode(record) for record in records))
