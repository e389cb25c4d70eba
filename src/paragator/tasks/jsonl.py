"""Tasks over recorded problems: a file of rows, or a set of the table in `benchmarks.toml`; one grader for all.

A row has the fields `problem` and `answer`, and optionally `id` and `kind`; `task.fields` renames them.
Answers are compared by `paragator.grading`; for another comparison, set a reward function (`task.reward`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import get_args

from paragator.config import TaskConfig
from paragator.core.errors import DataError, UsageError
from paragator.core.types import Grade, Problem
from paragator.grading import check_kind
from paragator.tasks.base import Split, Task, is_held_out
from paragator.tasks.benchmarks import TABLE, DataSet, Fields
from paragator.tasks.files import Row, rows_of
from paragator.tasks.recordings import recorded_rows
from paragator.tasks.sources import DataEntry, by_content, find, load_rows, nothing_in, read_entry, subset

NAMES = ("problem", "answer", "id", "kind")


def build(config: TaskConfig) -> Task:
    """The task over `config.path`; its held-out split is `config.held_out_path`, or a tenth of the file."""
    if config.path is None:
        raise UsageError("task.path is not set: name a JSONL file with fields problem and answer")
    path = existing(config.path, "task.path")
    own = data_set(config)
    held_out = held_out_of(config)

    def read(split: Split) -> list[DataEntry]:
        return divide(split, functools.partial(read_file, path, own), held_out, str(path))

    return as_task("jsonl", read, config.kind)


def build_recorded(config: TaskConfig) -> Task:
    """The task over the problems of a recording, all of them held out."""
    path, own = existing(str(config.path), "task.path"), data_set(config.model_copy(update={"fields": {}}))
    rows = functools.partial(recorded_rows, problem_field=config.fields.get("problem", "problem"))
    return as_task("jsonl", lambda split: read_file(path, own, rows), config.kind)


def build_row(config: TaskConfig) -> Task:
    """The task over a row of the table: a benchmark is held out as a whole, a training set gives a tenth."""
    row = find(config.name)
    if config.path or config.fields:
        raise UsageError(
            f"task.path and task.fields are for task.name = jsonl; put {row.file} into PARAGATOR_DATA instead"
        )
    held_out = held_out_of(config)
    if held_out and not row.training:
        raise UsageError(f"task.held_out_path: {row.name} is held out as a whole; leave it out")

    def read(split: Split) -> list[DataEntry]:
        if not row.training:
            if split == "train":
                raise UsageError(
                    f"task.name = {row.name} is for evaluation only; train on deepscaler, or see paragator data list"
                )
            return load_rows(row).entries
        entries = divide(split, lambda: load_rows(row).entries, held_out, row.name)
        if split == "train" and row.subset:
            return subset((e for e in entries if not is_held_out(e.said)), row.subset, row.subset_seed)
        return entries

    return as_task(row.name, read, config.kind)


def held_out_of(config: TaskConfig) -> Callable[[], list[DataEntry]] | None:
    """Reads `task.held_out_path`, a JSONL file or the name of a row of the table; None when it is not set."""
    name = config.held_out_path
    if name is None:
        return None
    if name in TABLE:
        return lambda: load_rows(TABLE[name]).entries
    return functools.partial(read_file, existing(name, "task.held_out_path"), data_set(config))


def divide(
    split: Split, read: Callable[[], list[DataEntry]], held_out: Callable[[], list[DataEntry]] | None, what: str
) -> list[DataEntry]:
    """One side of a set: by the held-out file where there is one, else by content. No problem is on both sides."""
    if held_out and split == "held-out":
        return held_out()
    if held_out:
        kept = {entry.key for entry in held_out()}
        found = [entry for entry in read() if entry.key not in kept]
    else:
        found = [entry for entry in read() if is_held_out(entry.said) == (split == "held-out")]
    if not found:
        raise DataError(f"{what}: no {split} problems; set task.held_out_path or use a larger file")
    return found


def as_task(name: str, read: Callable[[Split], list[DataEntry]], kind: str | None = None) -> Task:
    """A task over what `read` gives for a split, graded by `paragator.grading`; `kind` overrides the entries' own."""
    check_kind(kind, "task.kind")
    read = functools.cache(read)
    kinds: dict[str, str | None] = {}
    """By problem text: two files may both have a problem 1."""

    def listed(split: Split) -> list[DataEntry]:
        kinds.update((entry.problem.text, entry.kind) for entry in read(split))
        return read(split)

    def kind_of(problem: Problem) -> str | None:
        """Also for a problem that was never listed, such as one with a recorded pool."""
        for split in get_args(Split):
            if problem.text not in kinds:
                with suppress(DataError, UsageError):  # a split that does not exist has no kinds
                    listed(split)
        return kinds.setdefault(problem.text, None)

    def problems(split: Split, count: int, seed: int) -> list[Problem]:
        """The first `count` in an order that depends on the seed and on what the problems say; all, if there are fewer."""
        entries = by_content(listed(split))
        Random(seed).shuffle(entries)
        return [entry.problem for entry in entries[:count]]

    async def grade(problem: Problem, texts: Sequence[str]) -> list[Grade]:
        from paragator.grading import grade_many_async

        wanted = kind or kind_of(problem)
        return await grade_many_async([(text, str(problem.answer), wanted) for text in texts])

    return Task(name, problems, grade)


def data_set(config: TaskConfig) -> DataSet:
    """A user's file as a row of the table, with field names from `task.fields`.

    The kinds in it count where neither `task.kind` nor `task.reward` does.
    """
    unknown = config.fields.keys() - set(NAMES)
    if unknown:
        raise UsageError(f"task.fields: unknown field {sorted(unknown)[0]!r}; known: {', '.join(NAMES)}")
    names = {name: (config.fields.get(name, name),) for name in NAMES}
    if config.kind or config.reward:
        del names["kind"]
    return DataSet("", "", fields=Fields(**names), prose=config.reward is not None)


def read_file(path: Path, row: DataSet, rows: Callable[[Path], Iterator[Row]] = rows_of) -> list[DataEntry]:
    """Every problem of a file; DataError for a missing field, an unknown kind, an empty answer, a duplicate id or no rows at all.

    `rows` reads the file. A row without an id is named by its place among the rows, blank lines not counted.
    """
    out: dict[str, DataEntry] = {}
    for place, (number, line) in enumerate(rows(path), 1):
        where = f"{path}:{number}"
        named = any(name in line for name in row.fields.id)
        entry = read_entry(line if named else {**line, row.fields.id[0]: str(place)}, row, where)
        try:
            check_kind(entry.kind)
        except UsageError as error:
            raise DataError(f"{where}: {error}") from None
        if not entry.problem.answer:
            raise DataError(f"{where}: field {row.fields.answer[0]!r} is missing or empty; fix or remove the line")
        if entry.problem.id in out:
            raise DataError(f"{where}: id {entry.problem.id!r} occurs twice; rename one")
        out[entry.problem.id] = entry
    if not out:
        raise nothing_in(path)
    return list(out.values())


def existing(name: str, key: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"{key} = {name}: no such file")
    return path
