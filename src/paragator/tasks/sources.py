"""Sets of the table in `benchmarks.toml`, and any file of rows, as problems: from a local folder, or else from the hub.

A local file is `PARAGATOR_DATA/<file>` or `data/<file>`; the hub is read through the `datasets` library (extra `data`).
A row whose answer is empty is left out and counted; one without a field that it must have is a DataError.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from paragator.core.errors import DataError, UsageError
from paragator.core.hub import hub_reached
from paragator.core.types import Problem
from paragator.grading.extract import final_box
from paragator.tasks.benchmarks import TABLE, DataSet, Fields
from paragator.tasks.files import rows_of
from paragator.tasks.references import problem_text, reference_of

FOLDER = "PARAGATOR_DATA"
ALIASES = {"numerical": "number", "integer": "number", "decimal": "number", "piecewisefunction": "piecewise"}
"""Names of answer kinds in data sets -> the grader's names."""
TYPED = ("equation", "inequality", "interval", "set", "matrix", "piecewise", "number", "fraction")
"""Kinds that are taken from a known set's own column; others there are left to the grader to infer."""


@dataclass(frozen=True, slots=True)
class DataEntry:
    """A problem, what kind of answer it has (None: infer), and whether the file's answer was text.

    given  the file's reference, where the answer was read from within it
    """

    problem: Problem
    kind: str | None = None
    textual: bool = True
    given: str | None = None

    @property
    def said(self) -> str:
        """The problem text with white space normalised: two problems with the same one are the same."""
        return " ".join(self.problem.text.split())

    @property
    def key(self) -> str:
        """A hash of the normalised text."""
        return content_hash(self.problem.text)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A set as it can be used: distinct problems with answers, in the file's order; and what was left out."""

    found: str
    entries: list[DataEntry]
    empty: list[str]
    """Ids of rows without an answer."""
    repeated: list[str]
    """Ids of rows that repeat an earlier row of a set whose rows have no ids of their own."""


def find(name: str) -> DataSet:
    """The row of that name; UsageError with suggestions."""
    if name in TABLE:
        return TABLE[name]
    raise UsageError(f"unknown data set {name!r}; {suggest(name, TABLE)}")


def suggest(name: str, known: Iterable[str]) -> str:
    """ "did you mean ...?", or where the names are listed."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else "see paragator data list"


def folders() -> list[Path]:
    """Where local files are looked for; UsageError when PARAGATOR_DATA is not a folder."""
    named = os.environ.get(FOLDER)
    if named and not Path(named).is_dir():
        raise UsageError(f"{FOLDER} = {named}: no such folder; fix or unset it")
    return [*([Path(named)] if named else []), Path("data")]


def locate(data_set: DataSet) -> Path | None:
    """The local file of a set, if there is one."""
    return next((path for folder in folders() if (path := folder / data_set.file).is_file()), None)


def place_of(data_set: DataSet) -> str:
    """The local file, else the hub repository and revision."""
    if path := locate(data_set):
        return str(path)
    return f"hub:{data_set.hub}@{(data_set.revision or 'main')[:7]}" if data_set.hub else "not here"


def resolve(name: str) -> DataSet:
    """A row of the table, or a file of rows as one; UsageError with suggestions."""
    path = Path(name)
    if name in TABLE or not (path.suffix or path.is_file()):
        return replace(find(name), subset=None)
    if not path.is_file():
        raise UsageError(f"{name}: no such file, and no such set; see paragator data list")
    return DataSet("", str(path.absolute()), fields=Fields(kind=("kind", "answer_type")))


def numbered_rows(data_set: DataSet) -> tuple[str, list[tuple[int, dict[str, Any]]]]:
    """Where a set was found, and its rows, each with its line in the file; a part of a set is only its own rows."""
    if path := locate(data_set):
        found, rows = str(path), list(rows_of(path))
    else:
        found, hub_rows = from_hub(data_set)
        rows = list(enumerate(hub_rows, 1))
    if data_set.part:
        rows = [(n, row) for n, row in rows if data_set.part in squeezed(first(row, data_set.part_fields))]
        if not rows:
            raise DataError(
                f"{found}: no row has {data_set.part!r} in {' or '.join(data_set.part_fields)}; check the file's fields"
            )
    return found, rows


def from_hub(data_set: DataSet) -> tuple[str, list[dict[str, Any]]]:
    """The hub's rows; when they cannot be read, a DataError that names both ways to get them."""
    where = f"{FOLDER} = a folder with {data_set.file}"
    if data_set.hub is None:
        raise DataError(f"{data_set.name}: no local file, and no hub repository is known; set {where}")
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise DataError(
            f"{data_set.name}: no local file; set {where}, or pip install 'paragator[data]' to load {data_set.hub} from the hub"
        ) from None
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs retries for half a minute
    alone = not hub_reached()
    if alone:  # what an earlier call kept is read, and nothing is asked for
        datasets.config.HF_HUB_OFFLINE = importlib.import_module("huggingface_hub").constants.HF_HUB_OFFLINE = True
    try:
        rows = datasets.load_dataset(
            data_set.hub, data_set.config, split=data_set.split, revision=data_set.revision or "main"
        )
    except Exception as error:  # the library, the network and the hub may raise anything
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        what = "the hub does not answer, and no copy of it is kept here" if alone else said
        raise DataError(
            f"{data_set.name}: the hub's {data_set.hub} cannot be loaded ({what}); try again later, or set {where}"
        ) from error
    return f"hub:{data_set.hub}@{(data_set.revision or 'main')[:12]}", [dict(row) for row in rows]


def load_rows(data_set: DataSet) -> Loaded:
    """The set as it can be used; DataError for a missing field or for an id that two different problems share."""
    found, rows = numbered_rows(data_set)
    entries: dict[str, DataEntry] = {}
    empty: list[str] = []
    repeated: list[str] = []
    for number, row in rows:
        entry = read_entry(row, data_set, f"{found}:{number}")
        seen = entries.get(entry.problem.id)
        if seen and seen.problem.text != entry.problem.text:
            raise DataError(f"{found}:{number}: id {entry.problem.id!r} occurs twice; rename one")
        if not entry.problem.answer:
            empty.append(entry.problem.id)
        elif seen:
            repeated.append(entry.problem.id)
        else:
            entries[entry.problem.id] = entry
    if not entries:
        raise nothing_in(found)
    return Loaded(found, list(entries.values()), empty, repeated)


def nothing_in(found: object) -> DataError:
    return DataError(f"{found}: no problems in it; one JSON object a line, fields problem and answer")


def read_entry(row: Mapping[str, Any], data_set: DataSet, where: str) -> DataEntry:
    """One row; its answer is "" when the file's is empty. DataError when a field is missing or the answer cannot be one.

    An id that is a bare number gets the set's name before it; a row without one gets a hash of its text.
    """
    name = f"{data_set.name}-" if data_set.name else ""
    asked = required(row, data_set.fields.problem, where)
    text = problem_text(asked, where)
    if text is None:
        raise DataError(f"{where}: problem = {repr(asked)[:80]}: write it as text, or as a list of chat messages")
    text = text.strip()
    if not text:
        raise missing(data_set.fields.problem, where)
    value = required(row, data_set.fields.answer, where)
    answer = shown(answer_text(value, where).strip(), data_set.shown_after)
    id_ = first(row, data_set.fields.id)
    if id_ is None:
        id_ = name + content_hash(text)[:12]
    elif not isinstance(id_, str) or id_.isdigit():
        id_ = f"{name}{id_}"
    kind = squeezed(first(row, data_set.fields.kind))
    kind = ALIASES.get(kind, kind)
    if data_set.name and kind not in TYPED:
        kind = ""
    given = answer
    if not data_set.name:
        answer = reference_of(answer, where, kind=kind or data_set.kind, prose=data_set.prose)
    return DataEntry(
        Problem(id_, text, answer), kind or data_set.kind, is_text(value), given if given != answer else None
    )


def required(row: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    value = first(row, names)
    if value is None and not any(name in row for name in names):
        raise missing(names, where)
    return "" if value is None else value


def missing(names: Sequence[str], where: str) -> DataError:
    return DataError(
        f"{where}: field {' or '.join(map(repr, names))} is missing or empty; fix the line, or name the field"
    )


def first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value of the first name that the row has; None when it has none."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def answer_text(value: Any, where: str) -> str:
    """An answer of a file as text; DataError for what is neither text nor a number nor a list of them."""
    if not is_plain(value):
        raise DataError(f"{where}: answer = {repr(value)[:80]}: write it as text, a number, or a list of them")
    return as_text(value)


def is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def as_text(value: Any) -> str:
    """An answer as the text that the grader reads: a list with commas, a whole float as an integer."""
    if isinstance(value, list | tuple):
        return ", ".join(as_text(part) for part in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def is_text(value: Any) -> bool:
    """Whether an answer is text, or a list of texts."""
    return all(isinstance(part, str) for part in value) if isinstance(value, list) else isinstance(value, str)


def shown(text: str, after: str) -> str:
    """The answer in a worked solution: its last box, or what follows the mark; `text` itself where it has neither."""
    if after == "box":
        return text if (boxed := final_box(text, strict=False)) is None else boxed
    return text.rpartition(after)[2].strip() if after else text


def squeezed(value: Any) -> str:
    """Lower case letters and digits only, to compare names."""
    return "".join(c for c in str(value or "").lower() if c.isalnum())


def content_hash(text: str) -> str:
    """A hash of a text that ignores white space."""
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()


def by_content(entries: Iterable[DataEntry]) -> list[DataEntry]:
    """The entries in an order that does not depend on the file's."""
    return sorted(entries, key=lambda entry: (entry.key, entry.problem.id))


def subset(entries: Iterable[DataEntry], count: int, seed: int) -> list[DataEntry]:
    """`count` of the entries, or all that there are: they depend on the seed and on their texts alone."""
    ordered = by_content(entries)
    return Random(seed).sample(ordered, min(count, len(ordered)))
