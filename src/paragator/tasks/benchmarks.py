"""The table of benchmarks and training sets, read from `benchmarks.toml`. `sources.py` loads their rows."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PROBLEM = ("problem", "question", "problem_statement", "Problem", "prompt")
ANSWER = ("answer", "final_answer", "Answer", "Short Answer", "expected_answer")
ID = ("id", "problem_idx", "unique_id", "ID", "Problem ID", "uuid")


@dataclass(frozen=True, slots=True)
class Fields:
    """Field names of a file's rows; of several names the first that is present counts."""

    problem: tuple[str, ...] = PROBLEM
    answer: tuple[str, ...] = ANSWER
    id: tuple[str, ...] = ID
    kind: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DataSet:
    """One benchmark or training set.

    hub, config, revision, split   where `datasets` finds it; hub None: only as a local file; revision None: unpinned
    file, file_rows                its local name, and its rows there where they differ from the hub's
    fields                         field names, the hub's and the local file's
    shown_after                    the answer is what follows this mark ("####"), or the last "box", where there is one
    part                           only rows whose source, in one of `part_fields`, holds this word
    subset, subset_seed            training draws this many problems of the training side, the same ones in every run
    kind                           what the answers are, for the grader; None infers it from each reference
    prose                          answers may be sentences, which a reward function reads
    rows                           how many rows the hub's split holds; None where no source says
    """

    name: str
    file: str
    hub: str | None = None
    rows: int | None = None
    licence: str = ""
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    file_rows: int | None = None
    fields: Fields = Fields()
    shown_after: str = ""
    part: str = ""
    part_fields: tuple[str, ...] = ("source", "source_data", "dataset", "subset")
    kind: str | None = None
    prose: bool = False
    training: bool = False
    subset: int | None = None
    subset_seed: int = 0
    note: str = ""


def read_table(path: Path) -> dict[str, DataSet]:
    """The sets of a TOML file by name. `like` names an earlier set, whose keys count where a set does not give its own."""
    table: dict[str, DataSet] = {}
    for name, given in tomllib.loads(path.read_text(encoding="utf-8")).items():
        keys: dict[str, Any] = dict(given)
        if "fields" in keys:
            keys["fields"] = Fields(**{field: tuple(names) for field, names in keys["fields"].items()})
        like = table[keys.pop("like")] if "like" in keys else DataSet(name, f"{name}.jsonl")
        table[name] = replace(like, name=name, **keys)
    return table


TABLE = read_table(Path(__file__).with_suffix(".toml"))
