"""The table of data sets, what is read from them, and `paragator data`. The files here are written for these tests."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paragator.cli.main import run
from paragator.config import TaskConfig
from paragator.core.errors import DataError, UsageError
from paragator.core.types import Grade, Problem
from paragator.tasks import load_task, reasoning_gym
from paragator.tasks.base import is_held_out
from paragator.tasks.benchmarks import TABLE, DataSet, Fields, read_table
from paragator.tasks.sources import DataEntry, as_text, find, load_rows, read_entry, shown, subset

Write = Callable[..., Path]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, and no data but what a test writes."""
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARAGATOR_DATA", str(tmp_path / "set"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_rows(name: str, *rows: dict[str, Any]) -> Path:
        path = tmp_path / "set" / TABLE[name].file if name in TABLE else tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write_rows


def numbered(count: int, name: str = "p") -> list[dict[str, Any]]:
    return [{"id": f"{name}{i}", "problem": f"{name} number {i}", "answer": str(i)} for i in range(count)]


# ---- the table -------------------------------------------------------------------------------------------------------


def test_every_set_says_where_it_is() -> None:
    for row in TABLE.values():
        assert row.file.endswith(".jsonl") and row.licence and row.note, row.name
        assert row.revision is None or re.fullmatch(r"[0-9a-f]{40}", row.revision), row.name
        assert row.revision or not row.hub or "unpinned" in row.note or "unverified" in row.note, row.name
        assert not row.subset or row.training, row.name


def test_the_sets_of_the_published_tables_are_there() -> None:
    wanted = (
        "aime24 aime25 hmmt_feb25 brumo25 imo_answerbench olympiadbench math500 gsm8k principia_bench deepscaler-10k"
    )
    assert set(wanted.split()) | {"principia_collection-30k"} <= TABLE.keys()
    assert sum(row.rows or 0 for row in TABLE.values() if row.part) == TABLE["principia_bench"].rows


def test_a_set_may_take_what_it_does_not_give_from_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(
        '[a]\nrows = 3\nfields.answer = ["x"]\n[b]\nlike = "a"\nrows = 4\nfile = "c.jsonl"\n'
    )
    table = read_table(tmp_path / "t.toml")
    assert (table["a"].file, table["a"].rows) == ("a.jsonl", 3)
    assert table["b"] == replace(table["a"], name="b", rows=4, file="c.jsonl")
    assert table["b"].fields.answer == ("x",) and table["b"].fields.id == Fields().id


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"unknown data set 'math50'; did you mean math500"):
        find("math50")
    with pytest.raises(UsageError, match=r"task.name = 'gsm8' is not a task; did you mean gsm8k"):
        load_task(TaskConfig(name="gsm8"))
    with pytest.raises(UsageError, match=r"task.name = 'zzzzzz' is not a task; see paragator data list"):
        load_task(TaskConfig(name="zzzzzz"))


# ---- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row", "problem", "kind"),
    [
        ("aime24", {"ID": "2024-I-1", "Problem": "p", "Answer": 204}, Problem("2024-I-1", "p", "204"), "number"),
        ("aime25", {"problem_idx": 7, "problem": " p ", "answer": "70"}, Problem("aime25-7", "p", "70"), "number"),
        ("aime25", {"id": "aime25-7", "problem": "p", "answer": "70"}, Problem("aime25-7", "p", "70"), "number"),
        ("gsm8k", {"id": "g", "question": "p", "answer": "so 6*7 #### 42"}, Problem("g", "p", "42"), "number"),
        ("gsm8k", {"id": "g", "problem": "p", "answer": "42"}, Problem("g", "p", "42"), "number"),
        ("math_train", {"id": "m", "problem": "p", "solution": "is $\\boxed{\\pi}$."}, Problem("m", "p", "\\pi"), None),
        ("math_train", {"id": "m", "problem": "p", "answer": "5"}, Problem("m", "p", "5"), None),
        ("olympiadbench", {"id": 3, "question": "p", "final_answer": ["1", "2"]}, Problem("olympiadbench-3", "p", "1, 2"), None),
        ("olympiadbench", {"id": "o", "problem": "p", "answers": ["1", "2"], "answer": "1"}, Problem("o", "p", "1, 2"), None),
        ("imo_answerbench", {"Problem ID": "i", "Problem": "p", "Short Answer": "3"}, Problem("i", "p", "3"), None),
        ("principia_bench", {"id": "s", "problem_statement": "p", "answer": "1", "answer_type": "Set"}, Problem("s", "p", "1"), "set"),
        (
            "principia_bench",
            {"id": "s", "problem_statement": "p", "answer": "f", "answer_type": "Piecewise Function"},
            Problem("s", "p", "f"),
            "piecewise",
        ),
        ("deepscaler", {"id": "d", "problem": "p", "answer": None}, Problem("d", "p", ""), None),
    ],
)  # fmt: skip
def test_rows_of_hub_and_file_alike(name: str, row: dict[str, Any], problem: Problem, kind: str | None) -> None:
    entry = read_entry(row, TABLE[name], "here:1")
    assert (entry.problem, entry.kind) == (problem, kind)


def test_a_row_without_an_id_is_named_by_what_it_says() -> None:
    ids = [read_entry({"problem": p, "answer": "1"}, TABLE["aime24"], "").problem.id for p in ("a b", "a  b", "a c")]
    assert ids[0] == ids[1] != ids[2] and ids[0].startswith("aime24-")


@pytest.mark.parametrize(
    "row", [{"problem": "p"}, {"answer": "1"}, {"problem": "", "answer": "1"}, {"problem": None, "answer": "1"}]
)
def test_a_missing_field_says_where(row: dict[str, Any]) -> None:
    with pytest.raises(
        DataError, match=r"here:7: field 'problem' or 'question'.* is missing|field 'answer' or .* is missing"
    ):
        read_entry(row, TABLE["aime24"], "here:7")


@pytest.mark.parametrize(
    ("value", "text"), [(5, "5"), (5.0, "5"), (0.5, "0.5"), (True, "True"), ([1, "x"], "1, x"), ("5.0", "5.0")]
)
def test_answers_as_text(value: Any, text: str) -> None:
    assert as_text(value) == text


def test_kinds_that_the_grader_has_not_are_inferred() -> None:
    row = {"problem": "p", "answer": "1", "answer_type": "Something Else"}
    assert read_entry(row, TABLE["principia_bench"], "").kind is None


@pytest.mark.parametrize("value", [{"a": 1}, True, [1, {"a": 1}], [[None]]])
def test_what_is_no_answer_is_refused(value: Any) -> None:
    with pytest.raises(
        DataError, match=r"here:7: answer = .*: write it as text, a number, or a list of them"
    ) as caught:
        read_entry({"problem": "p", "answer": value}, TABLE["aime24"], "here:7")
    assert "\n" not in str(caught.value)


def test_answers_inside_solutions() -> None:
    assert shown("a #### 1 #### 2", "####") == "2"
    assert shown("\\boxed{1} is not it, but $\\boxed{2}$.", "box") == "2"
    assert shown("$\\boxed{1}$ and $\\boxed{2}$.", "box") == "1, 2"
    assert shown("no mark", "####") == shown("no mark", "box") == shown("no mark", "") == "no mark"


def test_a_seeded_subset_does_not_depend_on_the_order() -> None:
    entries = [DataEntry(Problem(str(i), f"text {i}", "1")) for i in range(50)]
    drawn = subset(entries, 9, 0)
    random.Random(1).shuffle(entries)
    assert subset(entries, 9, 0) == drawn and len(drawn) == 9
    assert subset(entries, 9, 1) != drawn
    assert len(subset(entries, 99, 0)) == 50


# ---- sets ------------------------------------------------------------------------------------------------------------


def test_empty_answers_and_repeats_are_left_out_and_counted(write: Write) -> None:
    rows = [{"problem": "a", "answer": "1"}, {"problem": "b", "answer": " "}, {"problem": "a", "answer": "2"}]
    path = write("deepscaler", *rows)
    found = load_rows(TABLE["deepscaler"])
    assert found.found == str(path) and [e.problem.answer for e in found.entries] == ["1"]
    assert len(found.empty) == len(found.repeated) == 1


def test_one_id_for_two_problems_is_an_error(write: Write) -> None:
    write("aime24", {"id": "a", "problem": "one", "answer": "1"}, {"id": "a", "problem": "two", "answer": "2"})
    with pytest.raises(DataError, match=r"aime24.jsonl:2: id 'a' occurs twice"):
        load_rows(TABLE["aime24"])


def test_a_place_is_the_line_in_the_file(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("aime24", {"problem": "one", "answer": "1"}, {"problem": "two"})
    path.write_text("\n\n" + path.read_text())
    with pytest.raises(DataError, match=r"aime24.jsonl:4: field 'answer'"):
        load_rows(TABLE["aime24"])
    assert run(["data", "check", "aime24"]) == 3
    assert "missing: line 4" in capsys.readouterr().out


def test_a_set_without_a_problem_is_an_error(write: Write) -> None:
    write("aime24", {"problem": "one", "answer": ""})
    with pytest.raises(DataError, match="no problems in it"):
        load_rows(TABLE["aime24"])


def test_parts_of_a_benchmark(write: Write) -> None:
    rows = [
        {"problem_statement": s, "answer": "1", "source": s} for s in ("SuperGPQA", "RealMath", "ARB", "real-math v2")
    ]
    write("principia_bench", *rows)
    assert [e.problem.text for e in load_rows(TABLE["principia_bench_realmath"]).entries] == [
        "RealMath",
        "real-math v2",
    ]
    with pytest.raises(DataError, match="no row has 'physics' in source or source_data"):
        load_rows(TABLE["principia_bench_physics"])


def test_the_data_folder_here_comes_after_the_named_one(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "aime24.jsonl").write_text('{"problem": "here", "answer": "1"}\n')
    assert load_rows(TABLE["aime24"]).entries[0].problem.text == "here"
    write("aime24", {"problem": "named", "answer": "1"})
    assert load_rows(TABLE["aime24"]).entries[0].problem.text == "named"
    monkeypatch.setenv("PARAGATOR_DATA", "nowhere")
    with pytest.raises(UsageError, match="PARAGATOR_DATA = nowhere: no such folder"):
        load_rows(TABLE["aime24"])


class Hub:
    """Stands in for the `datasets` library."""

    def __init__(self, rows: list[dict[str, Any]] | Exception) -> None:
        self.rows, self.asked = rows, ()
        self.config: Any = None

    def load_dataset(self, *args: Any, **keywords: Any) -> list[dict[str, Any]]:
        self.asked = (*args, keywords)
        if isinstance(self.rows, Exception):
            raise self.rows
        return self.rows


def test_the_hub_is_asked_for_the_pinned_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paragator.tasks.sources.hub_reached", lambda: True)
    hub = Hub([{"question": "what?", "answer": "because #### 5"}])
    monkeypatch.setitem(sys.modules, "datasets", hub)
    row = TABLE["gsm8k"]
    found = load_rows(row)
    assert hub.asked == ("openai/gsm8k", "main", {"split": "test", "revision": row.revision})
    assert found.found.startswith("hub:openai/gsm8k@") and found.entries[0].problem.answer == "5"


@pytest.mark.parametrize(
    ("library", "wanted"),
    [
        (None, ["aime24: no local file", "PARAGATOR_DATA", "paragator[data]"]),
        (Hub(ConnectionError("no\nroute")), ["Maxwell-Jia/AIME_2024", "ConnectionError: no route", "PARAGATOR_DATA"]),
    ],
)
def test_without_the_hub_one_line_says_both_ways(
    monkeypatch: pytest.MonkeyPatch, library: Any, wanted: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setattr("paragator.tasks.sources.hub_reached", lambda: True)
    with pytest.raises(DataError) as caught:
        load_rows(TABLE["aime24"])
    assert "\n" not in str(caught.value) and all(part in str(caught.value) for part in wanted)


def test_a_hub_that_does_not_answer_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library would retry for half a minute, and tell of each time; offline it reads what it kept."""
    library = Hub(ConnectionError("OfflineModeIsEnabled"))
    library.config = SimpleNamespace(HF_HUB_OFFLINE=False)
    constants = SimpleNamespace(HF_HUB_OFFLINE=False)
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(constants=constants))
    monkeypatch.setattr("paragator.tasks.sources.hub_reached", lambda: False)
    with pytest.raises(
        DataError, match=r"^aime24: .* \(the hub does not answer, and no copy of it is kept here\); try"
    ):
        load_rows(TABLE["aime24"])
    assert library.config.HF_HUB_OFFLINE and constants.HF_HUB_OFFLINE


def test_a_set_that_is_on_no_hub_says_so() -> None:
    with pytest.raises(DataError, match=r"scibench: no local file, and no hub repository is known; set PARAGATOR_DATA"):
        load_rows(TABLE["scibench"])


# ---- tasks -----------------------------------------------------------------------------------------------------------


def test_a_benchmark_is_held_out_as_a_whole(write: Write) -> None:
    write("aime24", *numbered(30))
    task = load_task(TaskConfig(name="aime24"))
    everything = task.problems("held-out", 999, 0)
    assert len(everything) == 30 and task.name == "aime24"
    assert task.problems("held-out", 7, 0) == everything[:7] != task.problems("held-out", 7, 1)
    with pytest.raises(UsageError, match=r"aime24 is for evaluation only"):
        task.problems("train", 1, 0)


def test_a_training_set_gives_a_tenth(write: Write) -> None:
    write("deepscaler", *numbered(300))
    task = load_task(TaskConfig(name="deepscaler"))
    train, held_out = task.problems("train", 999, 0), task.problems("held-out", 999, 0)
    assert len(train) + len(held_out) == 300 and 10 < len(held_out) < 60
    assert all(is_held_out(p.text) for p in held_out) and not any(is_held_out(p.text) for p in train)


def test_a_subset_is_of_the_training_side_and_the_same_whatever_is_held_out(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = DataSet(**{f: getattr(TABLE["deepscaler-10k"], f) for f in DataSet.__slots__} | {"subset": 20})
    monkeypatch.setitem(TABLE, "deepscaler-10k", small)
    write("deepscaler", *numbered(300))
    write("aime24", *numbered(30, "q"))
    task = load_task(TaskConfig(name="deepscaler-10k"))
    drawn = task.problems("train", 999, 0)
    assert len(drawn) == 20 and not any(is_held_out(p.text) for p in drawn)
    assert set(drawn) == set(task.problems("train", 999, 5)), "the run's seed orders them only"
    other = load_task(TaskConfig(name="deepscaler-10k", held_out_path="aime24"))
    assert set(other.problems("train", 999, 0)) == set(drawn)
    assert {p.id for p in other.problems("held-out", 999, 0)} == {f"q{i}" for i in range(30)}


def test_what_does_not_belong_to_a_row_is_refused() -> None:
    with pytest.raises(UsageError, match=r"task.path and task.fields are for task.name = jsonl; put aime24.jsonl into"):
        load_task(TaskConfig(name="aime24", path="x.jsonl"))
    with pytest.raises(UsageError, match=r"aime24 is held out as a whole"):
        load_task(TaskConfig(name="aime24", held_out_path="aime25"))
    with pytest.raises(UsageError, match=r"task.held_out_path = aime: no such file"):
        load_task(TaskConfig(name="deepscaler", held_out_path="aime"))


def test_a_benchmark_is_graded_with_each_rows_kind(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    async def grade(items: list[tuple[str, str, str | None]]) -> list[Grade]:
        return [Grade("correct", str(item)) for item in items]

    monkeypatch.setattr("paragator.grading.grade_many_async", grade, raising=False)
    rows = [("a", "Matrix"), ("b", "Integer"), ("c", None)]
    write("principia_bench", *({"problem_statement": p, "answer": p, "answer_type": kind} for p, kind in rows))
    task = load_task(TaskConfig(name="principia_bench"))
    for problem in task.problems("held-out", 9, 0):
        grades: Any = task.grade(problem, ["x"])
        wanted = {"a": "matrix", "b": "number", "c": None}[problem.text]
        assert asyncio.run(grades)[0].answer == str(("x", problem.text, wanted))


# ---- reasoning-gym ---------------------------------------------------------------------------------------------------


def test_a_generator_by_name_with_parameters() -> None:
    task = load_task(TaskConfig(name="reasoning-gym/gcd", parameters={"min_value": 10, "max_value": 99}))
    train, held_out = task.problems("train", 12, 3), task.problems("held-out", 3, 3)
    assert len({p.text for p in train} | {p.text for p in held_out}) == 15
    assert train == load_task(
        TaskConfig(name="reasoning-gym/gcd", parameters={"min_value": 10, "max_value": 99})
    ).problems("train", 12, 3)
    json.dumps([p.answer for p in train])
    problem = train[0]
    texts = [
        problem.answer,
        f"<think>5</think> so \\boxed{{{problem.answer}}}",
        f"it is {problem.answer}0",
        "<think>1",
        "",
        "9" * 20_000,
    ]
    grades: Any = task.grade(problem, texts)
    assert [g.verdict for g in grades] == ["correct", "correct", "incorrect", "incorrect", "incorrect", "incorrect"]
    assert grades[2].reason.startswith("score 0.")


def test_a_seed_may_be_negative() -> None:
    task = load_task(TaskConfig(name="reasoning-gym/chain_sum"))
    for problem in task.problems("train", 3, -3):
        grades: Any = task.grade(problem, [problem.answer])
        assert grades[0].verdict == "correct", problem.id


def test_a_score_below_one_is_wrong_and_a_checker_that_raises_cannot_tell() -> None:
    def score(answer: str, item: dict[str, Any]) -> float:
        return 1 / int(answer)

    checker = SimpleNamespace(score_answer=score)
    grades = [reasoning_gym.grade_one(checker, {}, text) for text in ("1", "2", "0", "x")]
    assert [(g.verdict, g.reason) for g in grades] == [
        ("correct", ""),
        ("incorrect", "score 0.50"),
        ("unscored", "the checker raised ZeroDivisionError"),
        ("unscored", "the checker raised ValueError"),
    ]


@pytest.mark.parametrize(
    ("name", "parameters", "wanted"),
    [
        ("mazee", {}, "no such generator; did you mean maze"),
        ("n_queens", {}, "evaluates what a model writes"),
        ("countdown", {}, "use task.name = countdown"),
        ("maze", {"seed": 1}, "task.parameters.seed"),
        ("maze", {"no_such": 1}, "task.parameters for reasoning-gym/maze"),
        ("maze", {"min_dist": -1}, "task.parameters for reasoning-gym/maze"),
    ],
)
def test_a_generator_that_cannot_be(name: str, parameters: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted):
        load_task(TaskConfig(name=f"reasoning-gym/{name}", parameters=parameters))


def test_a_generator_is_not_built_before_problems_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some take seconds; refusing what cannot be must not."""
    importlib.import_module("reasoning_gym")
    built: list[Any] = []
    monkeypatch.setattr(reasoning_gym, "create", lambda *asked: built.append(asked))
    task = load_task(TaskConfig(name="reasoning-gym/acre"))
    assert not built
    with pytest.raises(TypeError):  # there is no stream to draw from
        task.problems("train", 1, 0)
    assert built == [("acre", {}, 0)]


@pytest.mark.parametrize("name", ["countdown", "arithmetic", "aime24", "x.jsonl"])
def test_loading_a_task_imports_no_data_library(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"problem": "p", "answer": "1"}\n')
    code = f"""
import sys
from paragator.config import TaskConfig
from paragator.tasks import load_task
load_task(TaskConfig(name={name!r}))
print(sorted({{"datasets", "reasoning_gym", "sympy", "torch", "transformers"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_no_checker_of_the_installed_package_evaluates_an_answer() -> None:
    """Calls that evaluate text, by generator module; those of a generator that is not refused were read by a person."""
    evaluating = {"eval", "exec", "parse_expr", "sympify", "parse_latex", "literal_eval"}
    read = {
        "codeio": "exec of the package's own programs, to make a problem",
        "number_sorting": "eval of the item's own answer",
        "bitwise_arithmetic": "eval of the item's own expression",
        "basic_arithmetic": "eval of the item's own expression",
        "propositional_logic": "a recursive reader of its own of that name",
    }
    importlib.import_module("reasoning_gym")
    from reasoning_gym.factory import DATASETS

    found = set()
    for name, (generator, _) in DATASETS.items():
        tree = ast.parse(inspect.getsource(sys.modules[generator.__module__]))
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        called = {f.id if isinstance(f, ast.Name) else f.attr for f in calls if isinstance(f, ast.Name | ast.Attribute)}
        if called & evaluating:
            found.add(name)
    assert found - read.keys() <= reasoning_gym.UNSAFE
    assert reasoning_gym.UNSAFE - {"composite"} <= found


# ---- the command -----------------------------------------------------------------------------------------------------


def test_list_names_every_set_and_where_it_is(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("aime24", *numbered(1))
    assert run(["data", "list"]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert TABLE.keys() <= lines.keys()
    assert (
        lines["aime24"].endswith(str(path))
        and "hub:openai/gsm8k@740312a" in lines["gsm8k"]
        and "1,319" in lines["gsm8k"]
    )
    assert run(["data", "list", "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} == TABLE.keys()


def test_check_finds_what_is_wrong(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    again = [{"id": "p0", "problem": "again", "answer": 5}, {"id": "x", "problem": "again", "answer": ""}, {"id": "y"}]
    rows = [*numbered(27), *again]
    write("aime24", *rows[:-1])
    assert run(["data", "check", "aime24", "--json"]) == 3
    (found,) = json.loads(capsys.readouterr().out)["sets"]
    assert (found["rows"], found["expected"], found["usable"]) == (29, 30, 28)
    assert (found["doubled_ids"], found["doubled_problems"], found["empty"], found["not_text"]) == (
        ["p0"],
        ["x"],
        ["x"],
        ["p0"],
    )
    write("aime24", *rows)
    assert run(["data", "check", "aime24"]) == 3
    assert "aime24: missing: line 30" in capsys.readouterr().out


def test_check_is_content_with_a_good_set(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write("aime24", *numbered(30))
    assert run(["data", "check"]) == 0
    assert "nothing found" in capsys.readouterr().out


def test_check_compares_training_with_evaluation(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(f"word{i}" for i in range(20))
    write("aime24", {"id": "e", "problem": text, "answer": "1"})
    own = write("own.jsonl", {"problem": f"So: {text}", "answer": "1", "id": "t"}, {"problem": "other", "answer": "2"})
    assert run(["data", "check", str(own), "--json"]) == 3
    (found,) = json.loads(capsys.readouterr().out)["overlaps"]
    assert (found["in"], found["of"], found["problems"], found["shared"], found["whole"]) == (
        str(own),
        "aime24",
        1,
        1,
        1,
    )
    assert found["matches"] == [{"id": "e", "other": "t", "share": 1.0}]
    assert run(["data", "check", str(own), "--against", str(own)]) == 0, "a set is not compared with itself"
    capsys.readouterr()
    assert run(["data", "check", "aime24", "--against", str(own)]) == 3
    assert "e" in capsys.readouterr().out


def test_check_references(write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def grade(items: list[tuple[str, str, str | None]]) -> list[Grade]:
        return [Grade("incorrect" if reference == "1" else "correct", text, "no") for text, reference, _ in items]

    monkeypatch.setattr("paragator.grading.grade_many", grade, raising=False)
    write("aime24", *numbered(30))
    assert run(["data", "check", "aime24", "--references"]) == 3
    assert "aime24: unverified: p1 (no)" in capsys.readouterr().out


def test_show_prints_no_control_character(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write("aime24", {"id": "a\n\x1b[2J", "problem": "one\nt\x1b[31mwo", "answer": "\x07"})
    assert run(["data", "show", "aime24"]) == 0
    assert capsys.readouterr().out == "a\\n\\x1b[2J\n  one\n  t\\x1b[31mwo\n  answer: \\x07\n\n"
    assert run(["data", "show", "aime24", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["answer"] == "\x07"
    assert run(["data", "show", "reasoning-gym/gcd", "--count", "1"]) == 0


def test_show_of_an_empty_file_is_an_error(write: Write) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no problems in it"):
        run(["data", "show", str(write("none.jsonl"))])


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("chek", "unknown verb 'chek'; did you mean check"),
        ("zzz", "known: list, check, show"),
        ("show aime2", "did you mean aime2"),
        ("show none.jsonl", "none.jsonl: no such file"),
        ("show aime24 --count 0", "--count = 0"),
        ("show", "see paragator data show --help"),
        ("check aim24", "did you mean aime24"),
        ("check", "no local data: set PARAGATOR_DATA"),
        ("list more", "see paragator data list --help"),
    ],
)
def test_wrong_words(line: str, wanted: str) -> None:
    with pytest.raises((UsageError, DataError), match=re.escape(wanted)):
        run(["data", *line.split()])


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data"]) == run(["data", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in ("list", "check", "show"))
