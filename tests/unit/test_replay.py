"""A recording answers as an engine, and what it does not hold is one clear line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from paragator.core.errors import DataError, UsageError
from paragator.core.packing import Packer
from paragator.core.prompts import CHAT, COMPACT
from paragator.core.scaffold import Scaffold, run
from paragator.core.types import Completion, Group, Plan, Problem, Prompt
from paragator.engines.replay import Replay, problems
from paragator.engines.scripted import Scripted

ROWS: list[dict[str, Any]] = [
    {"id": "a", "problem": "1 + 1?", "answer": "2", "completions": [f"\\boxed{{{i}}}" for i in range(8)]},
    {
        "id": "b",
        "problem": "6 / 2?",
        "answer": 3,
        "completions": [
            {"text": "so 3", "model": "m", "correct": True, "answer": "3"},
            {"text": "it is", "finish_reason": "length", "num_tokens": 2, "thinking": "hm"},
        ],
    },
]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "recording.jsonl", ROWS)


def ask(engine: Replay, n: int, seed: int = 0, text: str = "1 + 1?") -> Group:
    prompt = COMPACT.for_candidate(Problem("x", text))
    return asyncio.run(engine(prompt, n, stage="generate", seed=seed))


def texts(group: Group) -> list[str]:
    return [c.text for c in group.completions]


def test_all_that_is_recorded_comes_in_its_order(file: Path) -> None:
    engine = Replay.read(file, COMPACT)
    for seed in range(3):
        assert texts(ask(engine, 8, seed)) == ROWS[0]["completions"]


def test_fewer_are_a_seeded_draw_without_replacement(file: Path) -> None:
    engine = Replay.read(file, COMPACT)
    draws = [texts(ask(engine, 3, seed)) for seed in range(40)]
    assert draws == [texts(ask(engine, 3, seed)) for seed in range(40)]
    assert all(len(set(d)) == 3 and d == sorted(d) for d in draws)
    assert len({tuple(d) for d in draws}) > 10
    assert {t for d in draws for t in d} == set(ROWS[0]["completions"])


def test_without_a_draw_fewer_are_the_first(file: Path) -> None:
    engine = Replay.read(file, COMPACT, drawn=False)
    assert texts(ask(engine, 3, 5)) == ROWS[0]["completions"][:3]


def test_what_is_recorded_of_a_completion_is_kept(file: Path) -> None:
    group = ask(Replay.read(file, COMPACT), 2, text="6 / 2?")
    assert group.outputs == (Completion("so 3"), Completion("it is", "length", num_tokens=2, thinking="hm"))
    assert group.completions[0].length is None


def test_it_is_found_by_the_prompt_of_the_templates_in_use(file: Path) -> None:
    plan, problem = Plan.sampling(2), problems(file)[1]
    trace = asyncio.run(run(problem, Replay.read(file, CHAT), Scaffold(plan, CHAT)))
    assert texts(trace.rounds[0][0]) == ["so 3", "it is"]
    with pytest.raises(UsageError, match="no recording for this prompt"):
        asyncio.run(run(problem, Replay.read(file, CHAT), Scaffold(plan, COMPACT)))


def test_its_problems_need_no_other_file(file: Path) -> None:
    assert problems(file) == [Problem("a", "1 + 1?", "2"), Problem("b", "6 / 2?", "3")]


def test_an_answer_may_be_a_list_as_in_a_task_file(tmp_path: Path) -> None:
    file = written(tmp_path / "r.jsonl", [{"problem": "q?", "completions": ["t"], "answer": [1, "x", 2.0]}])
    assert problems(file)[0].answer == "1, x, 2"


def test_the_problem_may_lie_in_another_field(tmp_path: Path) -> None:
    file = written(tmp_path / "r.jsonl", [{"asked": "q?", "completions": ["t"]}])
    assert texts(ask(Replay.read(file, COMPACT, problem_field="asked"), 1, text="q?")) == ["t"]
    with pytest.raises(DataError, match="row 1: field 'problem' is missing"):
        Replay.read(file, COMPACT)
    with pytest.raises(DataError, match="problem '1' has no answer"):
        problems(file, problem_field="asked")


def test_what_is_not_recorded_is_one_clear_line(file: Path) -> None:
    engine = Replay.read(file, COMPACT)
    with pytest.raises(UsageError, match=r"problem b: 3 candidates asked, 2 recorded; set eval.candidates = 2"):
        ask(engine, 3, text="6 / 2?")
    with pytest.raises(UsageError, match="no recording for this prompt"):
        ask(engine, 1, text="other")
    with pytest.raises(UsageError, match=r"beyond what is recorded: set eval.rounds = 0"):
        asyncio.run(engine(Prompt("1 + 1?"), 1, stage="aggregate", seed=0))


def test_check_refuses_before_anything_is_spent(file: Path) -> None:
    engine = Replay.read(file, COMPACT)
    prompts = [COMPACT.for_candidate(p) for p in problems(file)]
    engine.check(Plan.sampling(2), prompts)
    with pytest.raises(UsageError, match=r"rounds = 3 is a round beyond .* eval.rounds = 0"):
        engine.check(Plan.method(2, 3), prompts)
    with pytest.raises(UsageError, match="3 candidates asked, 2 recorded"):
        engine.check(Plan.sampling(3), prompts)
    with pytest.raises(UsageError, match="no recording"):
        engine.check(Plan.sampling(1), [Prompt("other")])


def test_another_engine_may_aggregate_within_a_budget(file: Path) -> None:
    other = Scripted(lambda prompt, index, stage, seed: f"from {stage}")
    engine = Replay.read(file, COMPACT, aggregator=other)
    engine.check(Plan.method(8, 1), [])
    packer = Packer(max_tokens=10, count=lambda prompt: len(prompt.text.split()))
    trace = asyncio.run(run(problems(file)[0], engine, Scaffold(Plan.method(8, 1), COMPACT, packer)))
    assert texts(trace.rounds[0][0]) == ROWS[0]["completions"]
    (group,) = trace.rounds[1]
    assert texts(group) == ["from aggregate"] * 8
    assert "dropped:6" in group.reductions
    assert [stage for _, _, stage, _ in other.calls] == ["aggregate"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completions": ["t"]}, "field 'problem' is missing or empty"),
        ({"problem": " ", "completions": ["t"]}, "field 'problem' is missing or empty"),
        ({"problem": "p"}, "no solution in it; it has problem; read are lists .completions, candidates, responses"),
        ({"problem": "p", "completions": []}, "'completions' must be a list"),
        ({"problem": "p", "completions": "t"}, "'completions' must be a list"),
        ({"problem": "p", "completions": [None]}, "a completion is a text"),
        ({"problem": "p", "completions": [{"answer": "2"}]}, "a completion is a text"),
        ({"problem": "p", "completions": [{"text": "t", "finish_reason": "eos"}]}, "finish_reason = 'eos'"),
        ({"problem": "p", "completions": [{"text": "t", "num_tokens": "9"}]}, "num_tokens = '9'"),
        ({"problem": "p", "completions": [{"text": "t", "thinking": 1}]}, "thinking = 1"),
        ({"problem": "p", "completions": ["t"], "answer": {"a": 1}}, "row 2: answer = {'a': 1}: write it as text"),
        ({"problem": "p", "completions": ["t"], "answer": True}, "row 2: answer = True: write it as text"),
        ({"id": "a", "problem": "p", "completions": ["t"]}, "id 'a' occurs twice"),
        ({"problem": "1 + 1?", "completions": ["t"]}, "'a' and '2' have the same text"),
    ],
)
def test_a_broken_recording_names_the_row(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    file = written(tmp_path / "r.jsonl", [ROWS[0], row])
    with pytest.raises(DataError, match=message) as caught:
        Replay.read(file, COMPACT)
    assert "\n" not in str(caught.value)


def test_an_empty_or_missing_recording(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing recorded"):
        Replay.read(written(tmp_path / "r.jsonl", []), COMPACT)
    with pytest.raises(DataError, match="no such file"):
        Replay.read(tmp_path / "absent.jsonl", COMPACT)


# ---- layouts ----

SAMPLES = [
    {"id": f"s{i}", "problem_id": "a", "problem": "1 + 1?", "answer": "2", "output": f"\\boxed{{{i}}}"}
    for i in range(3)
]
LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "a list a problem": [{"id": "a", "question": "1 + 1?", "gold": 2, "generations": ["\\boxed{0}", "\\boxed{1}", "\\boxed{2}"]}],
    "a sample a row": [{**one, "correct": i == 2} for i, one in enumerate(SAMPLES)],
    "a sample a row, among others": [
        SAMPLES[0], {"problem": "6 / 2?", "answer": "3", "response": "3"}, SAMPLES[1], SAMPLES[2]
    ],
    "RSA": [{"orig_prompt": "1 + 1?", "gt": "2", "candidates": ["\\boxed{0}", "\\boxed{1}", "\\boxed{2}"], "mean_acc": 0.3}],
    "PaCoRe": [
        {
            "conversation": [{"role": "user", "content": "1 + 1?"}],
            "ground_truth": {"answer": "2"},
            "responses": ["\\boxed{0}", {"content": "\\boxed{1}", "reasoning_content": "hm"}, "\\boxed{2}"],
        }
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_read_as_ours(name: str, tmp_path: Path) -> None:
    """Completions, the problem, its reference; and as the task itself."""
    from paragator.config import TaskConfig
    from paragator.tasks import load_task

    file = written(tmp_path / "r.jsonl", LAYOUTS[name])
    assert texts(ask(Replay.read(file, COMPACT), 3)) == ["\\boxed{0}", "\\boxed{1}", "\\boxed{2}"]
    assert ("1 + 1?", "2") in [(problem.text, problem.answer) for problem in problems(file)]
    task = load_task(TaskConfig(name="jsonl", path=str(file), held_out_path=str(file)), recorded=True)
    assert {p.text: p.answer for p in task.problems("held-out", 9, 0)} == {p.text: p.answer for p in problems(file)}


def test_a_sample_may_name_its_problem_by_id_alone(tmp_path: Path) -> None:
    rows = [{"id": "a", "output": "x"}, {"id": "other", "output": "z"}, {"id": "a", "output": "y"}]
    file = written(tmp_path / "r.jsonl", rows)
    assert texts(ask(Replay.read(file, COMPACT, known=[Problem("a", "1 + 1?")]), 2)) == ["x", "y"]
    with pytest.raises(DataError, match="give --task, which has it by id"):
        Replay.read(file, COMPACT)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [{"x": 1, "text": "t"}],
            "no solution in it; it has text, x; read are lists .completions, .* or one a row .output",
        ),
        ([SAMPLES[0], {**SAMPLES[1], "answer": "3"}], "answers '2' and '3' of one problem"),
        ([{**SAMPLES[0], "answer": ["a", {"b": 1}]}], "write it as text"),
        ([{"orig_prompt": "p", "gt": "1", "candidates": None, "k": 4}], "it has candidates, gt, k, orig_prompt"),
    ],
)
def test_an_unknown_layout_is_one_line(rows: list[dict[str, Any]], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says) as caught:
        Replay.read(written(tmp_path / "r.jsonl", rows), COMPACT)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "loop_0.pkl").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(DataError, match="a pickle runs code when it is read"):
        Replay.read(tmp_path / "loop_0.pkl", COMPACT)
