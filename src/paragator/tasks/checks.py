"""Checks of data sets: counts, duplicates, empty answers, references that do not grade, overlaps. And their first problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from paragator.config import TaskConfig
from paragator.core.errors import DataError
from paragator.core.text import one_line
from paragator.core.types import Problem
from paragator.grading.decide import KINDS
from paragator.tasks.base import load_task
from paragator.tasks.benchmarks import TABLE, DataSet
from paragator.tasks.overlap import Index, Match
from paragator.tasks.reasoning_gym import PREFIX
from paragator.tasks.references import NoReference
from paragator.tasks.sources import DataEntry, first, locate, nothing_in, numbered_rows, read_entry, resolve

EXAMPLES = 5
FINDINGS = (
    *("missing", "doubled_ids", "doubled_problems", "empty", "not_text", "no_answer", "unknown_kind", "unverified"),
)
"""What may be wrong with a row: fields of CheckedSet."""


@dataclass(frozen=True, slots=True)
class CheckedSet:
    """What was found in one set; every list holds the ids (for `missing` and `no_answer`, the places) of the rows concerned."""

    name: str
    found: str
    training: bool
    rows: int
    expected: int | None
    entries: list[DataEntry]
    """The rows that have a problem and an answer."""
    missing: list[str] = field(default_factory=list)
    doubled_ids: list[str] = field(default_factory=list)
    doubled_problems: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    not_text: list[str] = field(default_factory=list)
    no_answer: list[str] = field(default_factory=list)
    unknown_kind: list[str] = field(default_factory=list)
    read_within: list[str] = field(default_factory=list)
    """Rows whose answer was read from within their reference; these are right, if it was meant so."""
    unverified: list[str] = field(default_factory=list)

    @property
    def miscounted(self) -> bool:
        return self.expected is not None and self.rows != self.expected

    @property
    def problems(self) -> list[Problem]:
        return [entry.problem for entry in self.entries]

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.miscounted and not any(getattr(self, name) for name in FINDINGS)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        head = {"name": self.name, "found": self.found, "rows": self.rows, "expected": self.expected}
        return head | {"usable": len(self.entries)} | {name: getattr(self, name) for name in (*FINDINGS, "read_within")}


@dataclass(frozen=True, slots=True)
class Shared:
    """Problems of the set `of` that share 13 words with one of the set `within`."""

    within: str
    of: str
    total: int
    """Problems of `of`."""
    matches: list[tuple[str, Match]]
    """Their ids, each with its best match; the largest share first."""

    def at_least(self, share: float) -> int:
        """How many have that share of their runs in one problem there: 1 is the whole text, 0.5 often a twin with other numbers."""
        return sum(match.share >= share for _, match in self.matches)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        matches = [{"id": id_, "other": match.other, "share": round(match.share, 4)} for id_, match in self.matches]
        counts = {"shared": len(matches), "half": self.at_least(0.5), "whole": self.at_least(1)}
        return {"in": self.within, "of": self.of, "problems": self.total, **counts, "matches": matches}


def check_sets(
    names: Sequence[str] = (), against: Sequence[str] = (), *, references: bool = False
) -> tuple[list[CheckedSet], list[Shared]]:
    """Checks sets and files by name, or every set with a local file; and what they share with evaluation sets.

    Training sets are compared with all local evaluation sets, or every set with those that `against` names.
    """
    here = [row for row in TABLE.values() if locate(row) and not row.subset and not row.part]
    if not names and not here:
        raise DataError(
            "no local data: set PARAGATOR_DATA to a folder of JSONL files, or name sets to load from the hub"
        )
    chosen = [resolve(name) for name in names] or here
    others = [resolve(name) for name in against] or [row for row in here if not row.training]
    checked = [check_set(row, references=references) for row in chosen]
    known = dict(zip(chosen, checked, strict=True))
    scanned = [c for c in checked if c.training or against]
    return checked, overlaps(scanned, [known.get(row) or check_set(row) for row in others]) if scanned else []


def check_set(data_set: DataSet, *, references: bool = False) -> CheckedSet:
    """Read a set, locally or from the hub, and check every row; `references` also grades each answer against itself."""
    found, rows = numbered_rows(data_set)
    expected = data_set.file_rows if data_set.file_rows and locate(data_set) else data_set.rows
    checked = CheckedSet(
        data_set.name or data_set.file, found, data_set.training or not data_set.name, len(rows), expected, []
    )
    texts: set[str] = set()
    ids: Counter[str] = Counter()
    for number, row in rows:
        try:
            entry = read_entry(row, data_set, f"{found}:{number}")
        except NoReference as error:
            checked.no_answer.append(f"line {number} ({str(error).partition(': ')[2].rpartition(': ')[0]})")
            continue
        except DataError:
            checked.missing.append(f"line {number}")
            continue
        if entry.kind is not None and entry.kind not in KINDS and row.get("kind") is not None:
            checked.unknown_kind.append(f"{entry.problem.id} ({entry.kind})")
        look(entry, checked, texts)
        if first(row, data_set.fields.id) is not None:
            ids[entry.problem.id] += 1
    checked.doubled_ids.extend(id_ for id_, count in ids.items() if count > 1)
    if references:
        checked.unverified.extend(unverified(checked.entries))
    return checked


def look(entry: DataEntry, checked: CheckedSet, texts: set[str]) -> None:
    if entry.key in texts:
        checked.doubled_problems.append(entry.problem.id)
    texts.add(entry.key)
    if not entry.problem.answer:
        checked.empty.append(entry.problem.id)
        return
    if not entry.textual:
        checked.not_text.append(entry.problem.id)
    if entry.given is not None:
        checked.read_within.append(
            f"{entry.problem.id} ({one_line(entry.given, 60)} is read as {entry.problem.answer})"
        )
    checked.entries.append(entry)


def unverified(entries: Sequence[DataEntry]) -> list[str]:
    """Ids of the problems whose own answer, in a box, is not graded correct, each with the reason."""
    from paragator.grading import grade_many

    items = [(f"\\boxed{{{e.problem.answer}}}", e.problem.answer, e.kind if e.kind in KINDS else None) for e in entries]
    pairs = zip(entries, grade_many(items), strict=True)
    return [f"{e.problem.id} ({grade.reason})" for e, grade in pairs if grade.verdict != "correct"]


def overlaps(scanned: Iterable[CheckedSet], indexed: Sequence[CheckedSet]) -> list[Shared]:
    """For each pair of sets with common problems, which; a set is not compared with itself."""
    owners = [(checked, problem) for checked in indexed for problem in checked.problems]
    index = Index([problem for _, problem in owners])
    out: list[Shared] = []
    for within in scanned:
        found: dict[str, list[tuple[str, Match]]] = {}
        for match in index.matches(within.problems):
            checked, problem = owners[match.number]
            if checked.found != within.found:
                found.setdefault(checked.name, []).append((problem.id, match))
        totals = {checked.name: len(checked.entries) for checked in indexed}
        for name, matches in found.items():
            matches.sort(key=lambda pair: -pair[1].share)
            out.append(Shared(within.name, name, totals[name], matches))
    return out


def first_problems(name: str, count: int) -> list[Problem]:
    """The first of a set's or a file's rows, as they are; the first draws of a generator."""
    if name.startswith(PREFIX):
        return load_task(TaskConfig(name=name)).problems("train", count, 0)
    data_set = resolve(name)
    found, rows = numbered_rows(data_set)
    if not rows:
        raise nothing_in(found)
    out = []
    for place, (number, row) in enumerate(rows[:count], 1):
        named = row if first(row, data_set.fields.id) is not None else {"id": place, **row}
        out.append(read_entry(named, data_set, f"{found}:{number}").problem)
    return out
