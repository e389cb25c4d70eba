"""The data sets of a local folder, where there is one: PARAGATOR_DATA, or ../shared/data beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from paragator.config import TaskConfig
from paragator.tasks import checks, load_task
from paragator.tasks.benchmarks import TABLE, DataSet
from paragator.tasks.checks import CheckedSet
from paragator.tasks.sources import load_rows

FOLDER = Path(os.environ.get("PARAGATOR_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data").resolve()
HERE = [row for row in TABLE.values() if (FOLDER / row.file).is_file() and not row.part]
EMPTY = {"math_train": 2, "gaokao2023en": 2}
"""Rows without an answer, as they came."""
REPEATED = {"deepscaler": 287, "deepscaler-10k": 287, "math_train": 1, "hardmath_mini": 58}
"""Rows whose problem occurs before, apart from white space."""

pytestmark = pytest.mark.skipif(
    not HERE, reason=f"no data sets in {FOLDER}; set PARAGATOR_DATA to a folder that has them"
)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARAGATOR_DATA", str(FOLDER))


def checked(name: str) -> CheckedSet:
    row = TABLE[name]
    if row not in HERE:
        pytest.skip(f"no {row.file} in {FOLDER}")
    return checks.check_set(row)


@pytest.mark.parametrize("row", HERE, ids=lambda row: row.name)
def test_a_set_is_what_the_table_says(row: DataSet) -> None:
    found = checks.check_set(row)
    assert found.rows == found.expected
    assert found.missing == found.doubled_ids == found.not_text == []
    assert len(found.empty) == EMPTY.get(row.name, 0)
    assert len(found.doubled_problems) == REPEATED.get(row.name, 0)
    assert not any("#### " in e.problem.answer for e in found.entries)


@pytest.mark.parametrize("row", HERE, ids=lambda row: row.name)
def test_a_set_loads_and_gives_distinct_problems(row: DataSet) -> None:
    loaded = load_rows(row)
    assert len(loaded.entries) == (row.file_rows or row.rows or 0) - EMPTY.get(row.name, 0) and not loaded.repeated
    task = load_task(TaskConfig(name=row.name))
    problems = task.problems("train" if row.training else "held-out", 20_000, 0)
    assert len({p.id for p in problems}) == len(problems) > 0
    if row.subset:
        assert len(problems) == row.subset
    elif not row.training:
        assert len(problems) == len(loaded.entries)


def test_olympiadbench_joins_its_lists() -> None:
    answers = {p.id: p.answer for p in checked("olympiadbench").problems}
    assert len(answers) == 674 and all(isinstance(answer, str) and "['" not in answer for answer in answers.values())


def test_no_problem_of_aime_2024_or_2025_is_in_deepscaler() -> None:
    shared = checks.overlaps([checked("deepscaler")], [checked("aime24"), checked("aime25")])
    assert all(s.at_least(0.5) == 0 for s in shared)
    assert all(s.matches[0][1].share < 0.3 for s in shared), "stock phrases only"


def test_overlaps_that_are_known() -> None:
    """AIME 2022 and 2023 are in DeepScaleR, seven problems of MATH-500, and some of OlympiadBench and (nearly) IMO-AnswerBench."""
    others = [checked(name) for name in ("aimo_aime", "math500", "imo_answerbench", "olympiadbench")]
    shared = {s.of: (s.at_least(0.5), s.at_least(1)) for s in checks.overlaps([checked("deepscaler")], others)}
    assert shared == {"aimo_aime": (60, 58), "math500": (18, 7), "imo_answerbench": (10, 0), "olympiadbench": (6, 2)}
