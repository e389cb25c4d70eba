"""Layouts of recorded solutions: one row a problem or one row a sample, as rows of one form.

{"problem": "...", "answer": "18", "completions": ["...", {"text": "..."}]}      ours; a list a problem
{"problem": "...", "answer": "18", "output": "..."}                              one sample a row, joined by problem
{"id": "p1", "output": "..."}                                                    the same, by the id of a task's problem
{"orig_prompt": "...", "gt": "18", "candidates": ["..."]}                        RSA's populations, as JSON
{"conversation": [...], "ground_truth": "18", "responses": ["..."]}              PaCoRe's training data
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from paragator.core.errors import DataError
from paragator.tasks.files import rows_of
from paragator.tasks.references import problem_text

READ: Mapping[str, tuple[str, ...]] = {
    "id": ("problem_id", "question_id", "id"),
    "problem": ("problem", "question", "prompt", "orig_prompt", "conversation", "messages"),
    "answer": ("answer", "gt", "ground_truth", "reference", "gold"),
    "completions": ("completions", "candidates", "responses", "outputs", "samples", "generations"),
    "output": ("output", "completion", "response", "generation", "model_output"),
}
"""What is read of a row, by any of these names: the first that it has."""
PICKLES = (".pkl", ".pickle")
KEYS_SHOWN = 12


def recorded_rows(path: Path, problem_field: str = "problem") -> Iterator[tuple[int, dict[str, Any]]]:
    """Each problem of a file, numbered, with `id` and `problem` where it has them, `answer`, `completions` and its other keys.

    DataError, in one line that names its keys, for a row of another layout, and where samples of one problem disagree
    about its answer.
    """
    if path.suffix in PICKLES:
        raise DataError(f"{path}: a pickle runs code when it is read; write its rows as JSON, one a line")
    names = {**READ, "problem": (problem_field, *READ["problem"])}
    joined: dict[str, dict[str, Any]] = {}
    for number, (_, row) in enumerate(rows_of(path), 1):
        where = f"{path}: row {number}"
        found = {what: row[name] for what, some in names.items() if (name := first(row, some))}
        if "completions" not in found and "output" not in found:
            raise DataError(f"{where}: {unknown(row)}")
        if isinstance(answer := found.get("answer"), Mapping) and "answer" in answer:
            found["answer"] = answer["answer"]
        row = {name: row[name] for name in ("kind",) if name in row} | found
        if "completions" in found:
            row["completions"] = [*map(solution, found["completions"])] if listed(found["completions"]) else None
            yield number, row
            continue
        key = str(problem_text(found.get("problem"), where) or found.get("id"))
        other = joined.setdefault(key, {**row, "number": number, "completions": []})
        if other.get("answer") != row.get("answer"):
            one, two = other.get("answer"), row.get("answer")
            raise DataError(
                f"{where}: answers {one!r:.40} and {two!r:.40} of one problem; `answer` is the reference of all"
            )
        other["completions"].append(solution(found["output"]))
    for row in joined.values():
        yield row.pop("number"), row


def first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of these keys that a row has a value for."""
    return next((name for name in names if row.get(name) is not None), None)


def listed(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def solution(value: Any) -> Any:
    """A recorded solution; a message of a chat as its text and thinking."""
    if not isinstance(value, Mapping) or "text" in value or "content" not in value:
        return value
    return {"text": value["content"], "thinking": value.get("reasoning_content") or None}


def unknown(row: Mapping[str, Any]) -> str:
    """Why a row holds no solution: which keys it has, and which are read."""
    has = ", ".join(sorted(row)[:KEYS_SHOWN]) + (", ..." if len(row) > KEYS_SHOWN else "")
    lists, ones = ", ".join(READ["completions"]), ", ".join(READ["output"])
    return f"no solution in it; it has {has or 'nothing'}; read are lists ({lists}) or one a row ({ones})"
